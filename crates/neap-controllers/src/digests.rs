//! Digests of images, asked for in the background and remembered until their Revision has taken them.
//!
//! A failure is shown at once and tried again, so that a registry that was away for a minute costs a minute
//! and not the Revision.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::{Api, Client};
use neap_api::serving::Revision;
use neap_logic::plan::revision::Digest;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::index::Key;
use crate::ports::{Credentials, DigestResolver};
use crate::queue::Queue;

/// Questions to registries at the same time, as many as upstream's workers.
const CONCURRENCY: usize = 100;
/// Questions that may wait to be picked up.
const WAITING: usize = 1024;
/// How soon a Revision looks again when too many wait.
const BUSY_RETRY: Duration = Duration::from_millis(100);
/// First wait before a failed question is asked again; it doubles.
const RETRY: Duration = Duration::from_secs(1);
/// The service account of a pod that names none.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// What is known, and how to learn more.
pub(crate) struct Digests {
    known: Arc<Known>,
    questions: mpsc::Sender<Question>,
}

/// The task that asks.
pub(crate) struct Asker {
    known: Arc<Known>,
    questions: mpsc::Receiver<Question>,
    resolver: Arc<dyn DigestResolver>,
    client: Client,
}

#[derive(Default)]
struct Known {
    revisions: Mutex<HashMap<Key, Entry>>,
    queue: Arc<Queue>,
}

#[derive(Debug)]
struct Entry {
    uid: String,
    images: BTreeMap<String, Digest>,
}

#[derive(Debug, Clone)]
struct Question {
    revision: Key,
    uid: String,
    image: String,
    service_account: String,
    pull_secrets: Vec<String>,
    limit: Duration,
}

/// Both halves. Revisions are added to `queue` when something about their images becomes known.
pub(crate) fn pair(resolver: Arc<dyn DigestResolver>, client: Client, queue: Arc<Queue>) -> (Digests, Asker) {
    let known = Arc::new(Known { revisions: Mutex::default(), queue });
    let (sender, receiver) = mpsc::channel(WAITING);
    (Digests { known: known.clone(), questions: sender }, Asker { known, questions: receiver, resolver, client })
}

impl Known {
    fn revisions(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.revisions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers an answer; says whether anybody still wants it.
    fn answer(&self, question: &Question, digest: Digest) -> bool {
        let mut revisions = self.revisions();
        let Some(entry) = revisions.get_mut(&question.revision).filter(|e| e.uid == question.uid) else { return false };
        entry.images.insert(question.image.clone(), digest);
        drop(revisions);
        self.queue.add(question.revision.clone());
        true
    }
}

impl Digests {
    /// What is known of these images of a Revision; what is not is asked for.
    pub(crate) fn of(&self, revision: &Revision, images: &[String], limit: Duration) -> BTreeMap<String, Digest> {
        let key = Key::of(revision);
        let uid = revision.metadata.uid.clone().unwrap_or_default();
        let mut revisions = self.known.revisions();
        if images.is_empty() {
            revisions.remove(&key);
            return BTreeMap::new();
        }
        let entry = revisions.entry(key.clone()).or_insert_with(|| Entry { uid: uid.clone(), images: BTreeMap::new() });
        if entry.uid != uid {
            *entry = Entry { uid: uid.clone(), images: BTreeMap::new() };
        }
        let pod = &revision.spec.pod;
        for image in images {
            if entry.images.contains_key(image) {
                continue;
            }
            let question = Question {
                revision: key.clone(),
                uid: uid.clone(),
                image: image.clone(),
                service_account: pod
                    .service_account_name
                    .clone()
                    .filter(|n| !n.is_empty())
                    .unwrap_or_else(|| DEFAULT_SERVICE_ACCOUNT.into()),
                pull_secrets: pod.image_pull_secrets.iter().flatten().map(|s| s.name.clone()).collect(),
                limit,
            };
            match self.questions.try_send(question) {
                Ok(()) => drop(entry.images.insert(image.clone(), Digest::Pending)),
                Err(_) => self.known.queue.add_after(key.clone(), BUSY_RETRY),
            }
        }
        entry.images.clone()
    }

    /// The Revision is gone.
    pub(crate) fn forget(&self, revision: &Key) {
        self.known.revisions().remove(revision);
    }
}

impl Asker {
    /// Asks until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(CONCURRENCY));
        let mut jobs = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(_) = jobs.join_next() => {}
                question = self.questions.recv() => {
                    let Some(question) = question else { return };
                    jobs.spawn(ask(question, self.known.clone(), self.resolver.clone(), self.client.clone(), slots.clone()));
                }
            }
        }
    }
}

/// Asks until there is an answer or nobody wants one.
async fn ask(
    question: Question,
    known: Arc<Known>,
    resolver: Arc<dyn DigestResolver>,
    client: Client,
    slots: Arc<Semaphore>,
) {
    let mut delay = RETRY;
    loop {
        let answer = {
            // The semaphore is never closed.
            let Ok(_slot) = slots.acquire().await else { return };
            resolve(&question, resolver.as_ref(), &client).await
        };
        let digest = match answer {
            Ok(digest) => Digest::Resolved(digest),
            Err(error) => Digest::Failed(error),
        };
        let failed = matches!(digest, Digest::Failed(_));
        if !known.answer(&question, digest) || !failed {
            return;
        }
        sleep(delay).await;
        delay = delay.saturating_mul(2).min(resolver.longest_pause());
    }
}

async fn resolve(question: &Question, resolver: &dyn DigestResolver, client: &Client) -> Result<String, String> {
    let credentials =
        credentials(question, client).await.map_err(|error| format!("the pull secrets cannot be read: {error}"))?;
    let asked = resolver.resolve(question.image.clone(), credentials);
    match timeout(question.limit, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("the registry did not answer within {} s", question.limit.as_secs())),
    }
}

/// The pull secrets of the pod and of its service account. One that does not exist is left out, as a kubelet
/// does.
async fn credentials(question: &Question, client: &Client) -> Result<Credentials, kube::Error> {
    let namespace = &question.revision.namespace;
    let mut names = question.pull_secrets.clone();
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    if let Some(account) = accounts.get_opt(&question.service_account).await? {
        names.extend(account.image_pull_secrets.into_iter().flatten().map(|secret| secret.name));
    }
    names.sort();
    names.dedup();
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let mut docker_configs = Vec::new();
    for name in names.iter().filter(|name| !name.is_empty()) {
        if let Some(secret) = secrets.get_opt(name).await? {
            docker_configs.extend(docker_config(&secret));
        }
    }
    Ok(Credentials { service_account: question.service_account.clone(), docker_configs })
}

fn docker_config(secret: &Secret) -> Option<String> {
    let data = secret.data.as_ref()?;
    let text = |key: &str| data.get(key).and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
    // The older form is the inner part of the newer one.
    text(".dockerconfigjson").or_else(|| text(".dockercfg").map(|inner| format!("{{\"auths\":{inner}}}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn both_forms_of_pull_secrets_are_read() {
        let secret = |key: &str, text: &str| Secret {
            data: Some([(key.to_owned(), ByteString(text.as_bytes().to_vec()))].into()),
            ..Secret::default()
        };
        assert_eq!(docker_config(&secret(".dockerconfigjson", "{}")).as_deref(), Some("{}"));
        assert_eq!(docker_config(&secret(".dockercfg", "{\"r\":{}}")).as_deref(), Some("{\"auths\":{\"r\":{}}}"));
        assert_eq!(docker_config(&secret("other", "{}")), None);
    }
}
