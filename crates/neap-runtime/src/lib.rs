//! Pods on this machine: images, namespaces, cgroups, network, probes, logs. Knows no API object and no watch.

pub mod image;
pub mod pod;
