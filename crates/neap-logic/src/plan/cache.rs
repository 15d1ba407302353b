//! What a plan may look at: the objects as they were last seen.
//!
//! The observing half of each kind reads through [`Cache`], so that the same code gathers from a shell's
//! caches and from a test's handful of objects. Reading never waits and never fails: what is not there is
//! not there.

use std::fmt::Debug;
use std::sync::Arc;

use kube_core::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A kind that can be looked up.
pub trait Cached:
    Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Cached for K where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

/// Objects as they were last seen.
pub trait Cache {
    /// One object; `namespace` is empty for kinds of the whole cluster.
    fn get<K: Cached>(&self, namespace: &str, name: &str) -> Option<Arc<K>>;

    /// The objects of a namespace that carry a label with this value, by name.
    fn labelled<K: Cached>(&self, namespace: &str, label: &str, value: &str) -> Vec<Arc<K>>;

    /// The objects of a namespace whose comma-separated annotation has this member, by name.
    fn listing<K: Cached>(&self, namespace: &str, annotation: &str, member: &str) -> Vec<Arc<K>>;
}
