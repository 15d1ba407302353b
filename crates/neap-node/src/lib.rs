//! What a bare machine lacks to be a cluster: a kubelet over the pod runtime, the loops that Kubernetes' own controller
//! manager runs (deployments, endpoints, namespaces, quotas, claims, garbage collection), cluster DNS and an image
//! registry. None of it is started on Kubernetes. Knows no Knative kind.

mod feed;
mod quantity;
mod report;

pub mod claims;
pub mod deployments;
pub mod dns;
pub mod endpoints;
pub mod events;
pub mod gc;
pub mod kubelet;
pub mod logs;
pub mod namespaces;
pub mod ports;
pub mod quota;
pub mod registry;
pub mod service_ports;
