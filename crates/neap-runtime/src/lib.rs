//! Pods on this machine: images, namespaces, cgroups, network, probes, logs. Knows no API object and no watch.

mod capabilities;
mod cgroup;
mod clock;
pub mod image;
mod launch;
mod linux;
mod logs;
mod machine;
mod net;
pub mod pod;
mod probe;
mod record;
pub mod slice;
pub mod spawner;
mod sys;
mod users;
