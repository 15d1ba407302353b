//! Pods on this machine: images, namespaces, cgroups, network, probes, logs. Knows no API object and no watch.
//!
//! [`Runtime`] is the way in, [`pod`] are its words, [`spawner::main_if_requested`] must be the first call of the
//! program that uses it.

mod attach;
mod bundle;
mod capabilities;
mod cgroup;
mod clock;
mod disk;
pub mod image;
mod launch;
mod lifecycle;
mod linux;
mod logs;
mod machine;
mod mode;
mod net;
mod oci;
pub mod pod;
mod probe;
mod record;
mod runtime;
mod seccomp;
pub mod spawner;
mod sys;
mod terminal;
pub mod trees;
mod users;
mod volumes;

pub use disk::size_of_disk;
pub use logs::Record as LogRecord;
pub use logs::shelf;
pub use net::{NetworkError, PortMap, Transport};
pub use oci::Bundle;
pub use runtime::{Config, Mode, OpenError, Runtime};
pub use sys::raise_open_files;
pub use trees::remove as remove_tree;
