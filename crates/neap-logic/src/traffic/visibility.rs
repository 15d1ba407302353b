//! Who may call a route and each of its tags: the world, or only the cluster (C3.5).

use std::collections::BTreeMap;

use neap_api::keys::networking::{VISIBILITY, VISIBILITY_CLUSTER_LOCAL};

use super::Traffic;
use crate::config::Settings;
use crate::names::hosts::{self, HostError, RouteName};

/// From where a host can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// From outside and inside.
    External,
    /// From inside only.
    ClusterLocal,
}

/// The visibility of each group. `labels_of` gives the labels of the Kubernetes Service that stands for a
/// tag: a tag can be hidden by labelling it.
pub fn resolve(
    route: &RouteName<'_>,
    traffic: &Traffic,
    labels_of: &dyn Fn(&str) -> Option<BTreeMap<String, String>>,
    settings: &Settings,
) -> Result<BTreeMap<String, Visibility>, HostError> {
    let is_hidden =
        |labels: &BTreeMap<String, String>| labels.get(VISIBILITY).is_some_and(|v| v == VISIBILITY_CLUSTER_LOCAL);
    let all_local = is_hidden(route.labels) || hosts::is_local(&hosts::host(route, "", false, settings)?, settings);
    let mut visibilities = BTreeMap::new();
    for tag in traffic.groups.keys() {
        let service = hosts::tag_service(route, tag, settings)?;
        let local = all_local || labels_of(&service).as_ref().is_some_and(is_hidden);
        visibilities.insert(tag.clone(), if local { Visibility::ClusterLocal } else { Visibility::External });
    }
    Ok(visibilities)
}
