//! The data of claims: whose a directory is, and its end after its claim's.
//!
//! A directory is named after its claim, and the name may be another's tomorrow: a mark beside it holds the claim's UID.
//! What is marked for another is never given out. Data goes only with a claim that was seen going: a store that lost its
//! objects must not take the volumes along. A claim that is being deleted stays until its data is gone, so that it is
//! still seen going after a crash.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::Clock;
use super::needs::claim;
use super::schedule::is_active;
use super::sources::Key;
use crate::claims::{PROTECTION, released};
use crate::feed::{Change, changes};

/// Between two looks at whether a claim that is gone is still used by a pod. Whoever deletes a claim waits for it.
const LOOK: Duration = Duration::from_secs(1);
/// In front of the UID of a claim whose directory had to make room.
const ASIDE: &str = ".gone-";

/// A claim that is no more.
#[derive(Clone, Debug, PartialEq)]
struct Gone {
    /// `None` for what an earlier run set aside.
    key: Option<Key>,
    uid: String,
    /// Pods that are younger do not use it.
    at: Timestamp,
    /// Its object waits for the end of its data.
    waits: bool,
    /// It was said that its data cannot be removed.
    told: bool,
}

/// Runs until `shutdown`.
pub(super) async fn run(client: Client, claims: PathBuf, clock: Clock, shutdown: CancellationToken) {
    let mut events = Box::pin(changes::<PersistentVolumeClaim>(Api::all(client.clone()), watcher::Config::default()));
    let mut known: Option<BTreeMap<Key, String>> = None;
    let mut gone: Vec<Gone> = Vec::new();
    loop {
        // Of one that waits every change is seen.
        let mut seen = std::collections::HashSet::new();
        gone.retain(|one| seen.insert(one.uid.clone()));
        let look = async {
            match gone.is_empty() {
                true => std::future::pending().await,
                false => tokio::time::sleep(LOOK).await,
            }
        };
        let change = tokio::select! {
            () = shutdown.cancelled() => return,
            change = events.next() => Some(change),
            () = look => None,
        };
        match change {
            Some(None) => return,
            Some(Some(change)) => {
                if known.is_none() && matches!(change, Change::Reset(_)) {
                    gone.extend(set_aside_before(&claims, clock()).await);
                }
                gone.extend(lost(&mut known, change, clock()));
            }
            None => {}
        }
        let mut left = Vec::new();
        for one in gone.drain(..) {
            match is_used(&client, &one).await {
                Ok(false) => match dispose(&claims, &one).await {
                    Ok(()) => left.extend(let_go(&client, one).await),
                    Err(error) => {
                        if !one.told {
                            tracing::warn!(claim = ?one.key, %error, "the data of a deleted claim cannot be removed");
                        }
                        left.extend(one.waits.then_some(Gone { told: true, ..one }));
                    }
                },
                Ok(true) => left.push(one),
                Err(error) => {
                    tracing::warn!(claim = ?one.key, %error, "whether a deleted claim is used cannot be found out");
                    left.push(one);
                }
            }
        }
        gone = left;
    }
}

/// Lets the object go as well. What comes back is to be tried again.
async fn let_go(client: &Client, gone: Gone) -> Option<Gone> {
    let (namespace, name) = gone.key.as_ref().filter(|_| gone.waits)?;
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let written = async {
        let found = api.get_opt(name).await?.filter(|found| found.uid().as_ref() == Some(&gone.uid));
        if let Some(patch) = found.as_ref().and_then(released) {
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        Ok(())
    };
    match written.await {
        Ok(()) => None,
        Err(kube::Error::Api(error)) if error.code == 404 => None,
        // Somebody changed it meanwhile.
        Err(kube::Error::Api(error)) if error.code == 409 => Some(gone),
        Err(error) => {
            tracing::warn!(claim = name, %error, "a deleted claim could not be let go; trying again");
            Some(gone)
        }
    }
}

/// One that waits for the end of its data.
fn going(claim: &PersistentVolumeClaim) -> Option<Gone> {
    let at = claim.metadata.deletion_timestamp.as_ref()?.0;
    let key = Some((claim.namespace().unwrap_or_default(), claim.name_any()));
    let waits = claim.finalizers().iter().any(|one| one == PROTECTION);
    waits.then(|| Gone { key, uid: claim.uid().unwrap_or_default(), at, waits, told: false })
}

/// Claims that were known and are not there any more, and those that are going.
fn lost(known: &mut Option<BTreeMap<Key, String>>, change: Change<PersistentVolumeClaim>, at: Timestamp) -> Vec<Gone> {
    let key = |claim: &PersistentVolumeClaim| (claim.namespace().unwrap_or_default(), claim.name_any());
    let uid = |claim: &PersistentVolumeClaim| claim.uid().unwrap_or_default();
    let map = known.get_or_insert_default();
    let going: Vec<Gone> = match &change {
        Change::Apply(claim) => going(claim).into_iter().collect(),
        Change::Delete(_) => Vec::new(),
        Change::Reset(all) => all.iter().filter_map(going).collect(),
    };
    let ended: Vec<(Key, String)> = match change {
        Change::Apply(claim) => {
            let (key, uid) = (key(&claim), uid(&claim));
            let before = map.insert(key.clone(), uid.clone());
            before.filter(|before| *before != uid).map(|before| (key, before)).into_iter().collect()
        }
        Change::Delete(claim) => {
            map.remove(&key(&claim));
            vec![(key(&claim), uid(&claim))]
        }
        Change::Reset(all) => {
            let now: BTreeMap<Key, String> = all.iter().map(|claim| (key(claim), uid(claim))).collect();
            let before = std::mem::replace(map, now);
            before.into_iter().filter(|(key, uid)| map.get(key) != Some(uid)).collect()
        }
    };
    let ended = ended.into_iter().map(|(key, uid)| Gone { key: Some(key), uid, at, waits: false, told: false });
    going.into_iter().chain(ended).collect()
}

/// Whether a pod may still have the directory mounted.
async fn is_used(client: &Client, gone: &Gone) -> kube::Result<bool> {
    let pods: Api<Pod> = match &gone.key {
        Some((namespace, _)) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let uses = |pod: &Pod| {
        let mut claims = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter_map(|v| claim(v, pod));
        let older = pod.creation_timestamp().is_none_or(|born| born.0 <= gone.at);
        older && is_active(pod) && claims.any(|name| gone.key.as_ref().is_none_or(|(_, of)| *of == name))
    };
    Ok(pods.list(&ListParams::default()).await?.items.iter().any(uses))
}

async fn dispose(claims: &Path, gone: &Gone) -> io::Result<()> {
    if let Some((namespace, name)) = &gone.key {
        let dir = claims.join(namespace).join(name);
        if marked(&dir).await?.as_ref() == Some(&gone.uid) {
            set_aside(claims, &dir, &gone.uid).await?;
        }
        // Of a namespace without claims nothing is kept; of others it is not empty.
        let _ = tokio::fs::remove_dir(claims.join(namespace)).await;
    }
    let aside = claims.join(format!("{ASIDE}{}", gone.uid));
    tokio::task::spawn_blocking(move || neap_runtime::remove_tree(&aside)).await.map_err(io::Error::other)?
}

/// What an earlier run set aside and did not remove.
async fn set_aside_before(claims: &Path, at: Timestamp) -> Vec<Gone> {
    let mut found = Vec::new();
    let Ok(mut entries) = tokio::fs::read_dir(claims).await else { return found };
    while let Ok(Some(entry)) = entries.next_entry().await {
        if let Some(uid) = entry.file_name().to_str().and_then(|name| name.strip_prefix(ASIDE)) {
            found.push(Gone { key: None, uid: uid.to_owned(), at, waits: false, told: false });
        }
    }
    found
}

/// Lets a directory that was an earlier claim's of the same name make room.
pub(super) async fn make_room(claims: &Path, dir: &Path, uid: &str) -> io::Result<()> {
    match marked(dir).await? {
        Some(other) if other != uid => set_aside(claims, dir, &other).await,
        _ => Ok(()),
    }
}

/// Notes whose a directory is.
pub(super) async fn mark(dir: &Path, uid: &str) -> io::Result<()> {
    if uid.is_empty() || marked(dir).await?.as_deref() == Some(uid) {
        return Ok(());
    }
    tokio::fs::write(mark_of(dir), uid).await
}

async fn set_aside(claims: &Path, dir: &Path, uid: &str) -> io::Result<()> {
    match tokio::fs::rename(dir, claims.join(format!("{ASIDE}{uid}"))).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    tokio::fs::remove_file(mark_of(dir)).await
}

/// The UID in the mark; `None` where there is none, or none that can be part of a name.
async fn marked(dir: &Path) -> io::Result<Option<String>> {
    match tokio::fs::read_to_string(mark_of(dir)).await {
        Ok(uid) => Ok(Some(uid).filter(|uid| super::needs::is_name(uid))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// No claim's name begins with a dot.
fn mark_of(dir: &Path) -> PathBuf {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    dir.with_file_name(format!(".{name}.uid"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim(name: &str, uid: &str) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n", "uid": uid}})).unwrap()
    }

    #[test]
    fn only_what_was_seen_going_is_gone() {
        let at = Timestamp::UNIX_EPOCH;
        let mut known = None;
        let mut check = |change, want: &[&str]| {
            let uids: Vec<String> = lost(&mut known, change, at).into_iter().map(|gone| gone.uid).collect();
            assert_eq!(uids, want);
        };
        check(Change::Reset(vec![claim("a", "1"), claim("b", "2")]), &[]);
        check(Change::Apply(claim("a", "1")), &[]);
        check(Change::Delete(claim("a", "1")), &["1"]);
        check(Change::Apply(claim("a", "3")), &[]);
        check(Change::Reset(vec![claim("a", "4"), claim("b", "2")]), &["3"]);
        check(Change::Reset(vec![claim("a", "4")]), &["2"]);
        let mut going = claim("a", "4");
        going.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
        check(Change::Apply(going.clone()), &[]);
        going.metadata.finalizers = Some(vec![PROTECTION.into()]);
        check(Change::Apply(going.clone()), &["4"]);
        check(Change::Reset(vec![going.clone()]), &["4"]);
        check(Change::Delete(going), &["4"]);
    }

    /// Also one that was deleted before this began, and not before the last pod has ended that used it.
    #[tokio::test(start_paused = true)]
    async fn a_deleted_claim_goes_after_its_data() {
        let api = neap_testkit::Api::start().await;
        let temporary = tempfile::tempdir().unwrap();
        let claims = temporary.path().to_owned();
        let (all, pods) = (
            Api::<PersistentVolumeClaim>::namespaced(api.client(), "default"),
            Api::<Pod>::namespaced(api.client(), "default"),
        );
        let mut one = claim("data", "");
        one.metadata = kube::api::ObjectMeta {
            name: Some("data".into()),
            finalizers: Some(vec![PROTECTION.into()]),
            ..Default::default()
        };
        one.spec = serde_json::from_value(
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}),
        )
        .unwrap();
        let made = all.create(&Default::default(), &one).await.unwrap();
        let dir = claims.join("default/data");
        tokio::fs::create_dir_all(&dir).await.unwrap();
        mark(&dir, &made.uid().unwrap()).await.unwrap();
        let user = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}});
        pods.create(&Default::default(), &serde_json::from_value(user).unwrap()).await.unwrap();
        all.delete("data", &Default::default()).await.unwrap();
        let shutdown = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(run(api.client(), claims.clone(), std::sync::Arc::new(|| Timestamp::UNIX_EPOCH), shutdown.clone()));
        tokio::time::sleep(LOOK * 5).await;
        assert!(dir.is_dir() && all.get_opt("data").await.unwrap().is_some(), "a pod uses it");
        pods.delete("p", &kube::api::DeleteParams::default().grace_period(0)).await.unwrap();
        neap_testkit::eventually("the claim's end", || async {
            all.get_opt("data").await.unwrap().is_none().then_some(())
        })
        .await;
        assert!(!dir.exists(), "the data went first");
        shutdown.cancel();
    }

    #[tokio::test]
    async fn the_next_claim_of_a_name_finds_nothing() {
        let temporary = tempfile::tempdir().unwrap();
        let claims = temporary.path();
        let dir = claims.join("n/data");
        let give = async |uid: &str| {
            make_room(claims, &dir, uid).await.unwrap();
            tokio::fs::create_dir_all(&dir).await.unwrap();
            mark(&dir, uid).await.unwrap();
            std::fs::read_dir(&dir).unwrap().count()
        };
        assert_eq!(give("one").await, 0);
        std::fs::write(dir.join("secret"), "x").unwrap();
        assert_eq!(give("one").await, 1, "its own data");
        assert_eq!(give("two").await, 0, "not another's");
        assert!(claims.join(".gone-one/secret").exists());
        // The first goes late, and takes only its own.
        std::fs::write(dir.join("mine"), "x").unwrap();
        let key = Some(("n".to_owned(), "data".to_owned()));
        let at = Timestamp::UNIX_EPOCH;
        let gone = |uid: &str| Gone { key: key.clone(), uid: uid.into(), at, waits: false, told: false };
        dispose(claims, &gone("one")).await.unwrap();
        assert!(!claims.join(".gone-one").exists() && dir.join("mine").exists());
        dispose(claims, &gone("two")).await.unwrap();
        assert_eq!(std::fs::read_dir(claims).unwrap().count(), 0, "nothing is left, no mark and no namespace either");
        assert_eq!(set_aside_before(claims, Timestamp::UNIX_EPOCH).await, []);
    }
}
