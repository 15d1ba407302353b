//! Config-maps, secrets and service accounts as the watches show them, and everything else a pod needs, fetched.
//!
//! The index answers at once; what it does not have is asked for once more, because the watch of one kind may lag
//! behind the watch of another.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use neap_runtime::trees;
use serde::de::DeserializeOwned;
use tokio::time::{Duration, Instant};

use super::needs::{DEFAULT_ACCOUNT, Found, Needs, TokenNeed, is_name};
use super::reclaim;
use super::spec::account_of;
use super::volumes::claim_dir;
use crate::feed::Change;

/// Namespace and name.
pub(super) type Key = (String, String);

#[derive(Default)]
pub(super) struct Sources {
    pub(super) config_maps: Index<ConfigMap>,
    pub(super) secrets: Index<Secret>,
    pub(super) accounts: Index<ServiceAccount>,
}

pub(super) struct Index<K>(RwLock<HashMap<Key, Arc<K>>>);

impl<K> Default for Index<K> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<K: Resource + Clone> Index<K> {
    /// Takes a change; the keys it touches.
    pub(super) fn take(&self, change: Change<K>) -> Vec<Key> {
        let mut index = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
        match change {
            Change::Apply(object) => {
                let key = key(&object);
                index.insert(key.clone(), Arc::new(object));
                vec![key]
            }
            Change::Delete(object) => {
                let key = key(&object);
                index.remove(&key);
                vec![key]
            }
            Change::Reset(all) => {
                let mut touched: Vec<Key> = index.keys().cloned().collect();
                *index = all.into_iter().map(|object| (key(&object), Arc::new(object))).collect();
                touched.extend(index.keys().cloned());
                touched
            }
        }
    }

    fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let index = self.0.read().unwrap_or_else(PoisonError::into_inner);
        index.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }
}

/// Tokens a pod's worker holds, with the time they are to be replaced at.
pub(super) type Tokens = HashMap<TokenNeed, (String, Instant)>;

impl Sources {
    /// Whether an account gives its pods this secret for their images.
    pub(super) fn pulls_with(&self, namespace: &str, account: &str, secret: &str) -> bool {
        let account = self.accounts.get(namespace, account);
        account.is_some_and(|a| a.image_pull_secrets.iter().flatten().any(|s| s.name == secret))
    }

    /// Everything but tokens.
    pub(super) async fn gather(&self, client: &Client, pod: &Pod, needs: &Needs) -> kube::Result<Found> {
        let namespace = pod.namespace().unwrap_or_default();
        let account = match account_of(pod) {
            // Most pods name no other, and it may be missing: no request for each of them.
            DEFAULT_ACCOUNT => self.accounts.get(&namespace, DEFAULT_ACCOUNT),
            named => lookup(&self.accounts, client, &namespace, named).await?,
        };
        let mut found = Found { account, ..Found::default() };
        for name in &needs.config_maps {
            if let Some(map) = lookup(&self.config_maps, client, &namespace, name).await? {
                found.config_maps.insert(name.clone(), map);
            }
        }
        let accounts = found.account.iter().flat_map(|a| a.image_pull_secrets.iter().flatten());
        let pull: Vec<String> = accounts.map(|r| r.name.clone()).collect();
        for name in needs.secrets.iter().chain(&pull) {
            if let Some(secret) = lookup(&self.secrets, client, &namespace, name).await? {
                found.secrets.insert(name.clone(), secret);
            }
        }
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
        for name in needs.claims.iter().filter(|name| is_name(name)) {
            let Some(claim) = claims.get_opt(name).await? else { continue };
            // Who has it keeps it while it is being deleted.
            let has = |going: &Time| pod.metadata.creation_timestamp.as_ref().is_some_and(|born| born.0 <= going.0);
            if claim.metadata.name.as_ref() == Some(name) && claim.metadata.deletion_timestamp.as_ref().is_none_or(has)
            {
                found.claims.insert(name.clone(), claim.metadata.uid.unwrap_or_default());
            }
        }
        if needs.services {
            let services: Api<Service> = Api::namespaced(client.clone(), &namespace);
            found.services = services.list(&ListParams::default()).await?.items;
        }
        Ok(found)
    }
}

/// A token of the pod's account, bound to the pod.
pub(super) async fn token(client: &Client, pod: &Pod, need: &TokenNeed) -> kube::Result<String> {
    let (audience, seconds) = need;
    let spec = TokenRequestSpec {
        audiences: (!audience.is_empty()).then(|| vec![audience.clone()]),
        expiration_seconds: Some(*seconds),
        bound_object_ref: Some(k8s_openapi::api::authentication::v1::BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
        }),
    };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let issued = api.create_token_request(account_of(pod), &PostParams::default(), &request).await?;
    Ok(issued.status.and_then(|s| s.token).unwrap_or_default())
}

/// When a token is replaced: well before it ends, as a kubelet does it.
pub(super) fn refresh_after(need: &TokenNeed) -> Duration {
    Duration::from_secs(u64::try_from(need.1).unwrap_or(0) * 4 / 5)
}

/// Makes the directories of a pod's claims, and what its host paths wish to be made. `fresh`: the pod does not run yet, so
/// what it mounts is given to its group.
pub(super) async fn make_directories(claims: &Path, pod: &Pod, found: &Found, fresh: bool) -> std::io::Result<()> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let group = context.and_then(|c| c.fs_group).and_then(|g| u32::try_from(g).ok());
    let only_on_mismatch = context.is_some_and(|c| c.fs_group_change_policy.as_deref() == Some("OnRootMismatch"));
    for (name, uid) in &found.claims {
        let dir = claim_dir(claims, pod, name);
        reclaim::make_room(claims, &dir, uid).await?;
        make_claim(claims, &dir).await?;
        if let Some(group) = group.filter(|_| fresh) {
            own(&dir, group, only_on_mismatch).await?;
        }
        reclaim::mark(&dir, uid).await?;
    }
    for host in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter_map(|v| v.host_path.as_ref()) {
        match host.type_.as_deref() {
            Some("DirectoryOrCreate") => tokio::fs::create_dir_all(&host.path).await?,
            Some("FileOrCreate") => {
                tokio::fs::OpenOptions::new().append(true).create(true).open(&host.path).await?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The directory of one claim. It appears with its modes: whoever finds it there does not set them.
async fn make_claim(claims: &Path, dir: &Path) -> std::io::Result<()> {
    let mode = std::os::unix::fs::PermissionsExt::from_mode;
    if tokio::fs::try_exists(dir).await? {
        return Ok(());
    }
    // No claim's name begins with a dot.
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let aside = dir.with_file_name(format!(".{name}.new"));
    let make = async {
        tokio::fs::create_dir_all(&aside).await?;
        // Whoever the pod runs as may write, as every local provisioner has it; other users of the machine may not
        // even come near.
        tokio::fs::set_permissions(claims, mode(0o700)).await?;
        tokio::fs::set_permissions(&aside, mode(0o777)).await?;
        tokio::fs::rename(&aside, dir).await
    };
    match make.await {
        // Another pod with the same claim was faster.
        Err(_) if tokio::fs::try_exists(dir).await? => Ok(()),
        made => made,
    }
}

/// Gives a claim's data to the pod's group, all of it, unless it was given already and that is enough.
async fn own(dir: &Path, group: u32, only_on_mismatch: bool) -> std::io::Result<()> {
    let dir = dir.to_owned();
    let work = move || match only_on_mismatch && trees::is_of_group(&dir, group)? {
        true => Ok(()),
        false => trees::give_to_group(&dir, group),
    };
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}

async fn lookup<K>(index: &Index<K>, client: &Client, namespace: &str, name: &str) -> kube::Result<Option<Arc<K>>>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    K::DynamicType: Default,
{
    if let Some(known) = index.get(namespace, name) {
        return Ok(Some(known));
    }
    if !is_name(name) {
        return Ok(None);
    }
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    Ok(api.get_opt(name).await?.map(Arc::new))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[tokio::test]
    async fn a_claims_directory_is_for_whoever_the_pod_runs_as() {
        let dir = tempfile::tempdir().unwrap();
        let (claims, claim) = (dir.path().join("claims"), dir.path().join("claims/n/data"));
        let mode = || std::fs::metadata(&claim).map(|m| (m.mode() & 0o7777, m.gid())).unwrap();
        // An earlier process ended before it had set the modes.
        std::fs::create_dir_all(dir.path().join("claims/n/.data.new")).unwrap();
        make_claim(&claims, &claim).await.unwrap();
        let own_group = std::fs::metadata(dir.path()).unwrap().gid();
        assert_eq!(mode(), (0o777, own_group));
        assert_eq!(std::fs::metadata(&claims).unwrap().mode() & 0o777, 0o700);
        if std::fs::metadata(dir.path()).unwrap().uid() != 0 {
            println!("skipped the rest: only root gives directories away");
            return;
        }
        let inside = claim.join("db/file");
        std::fs::create_dir(claim.join("db")).unwrap();
        std::fs::write(&inside, "x").unwrap();
        let of = |path: &Path| std::fs::metadata(path).unwrap().gid();
        own(&claim, 65532, true).await.unwrap();
        assert_eq!((mode(), of(&inside)), ((0o2777, 65532), 65532));
        // What was given once is looked at again only where the pod says so.
        std::os::unix::fs::chown(&inside, None, Some(0)).unwrap();
        own(&claim, 65532, true).await.unwrap();
        assert_eq!(of(&inside), 0);
        own(&claim, 65532, false).await.unwrap();
        assert_eq!(of(&inside), 65532);
    }
}
