//! The shell every controller has: observe, plan, apply, report.
//!
//! It is given a key and nothing else, looks at the whole present state, and decides nothing itself. Never
//! two runs of one key at a time.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::Client;
use kube::api::{DeleteParams, DynamicObject, GetParams, PatchParams, PostParams, Preconditions};
use kube::core::{Request, Resource as _, request};
use neap_logic::config::Settings;
use neap_logic::plan::{Context, Object, ObjectRef, Patch, Plan, Refusal, Seen, Severity, Write};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, debug_span, warn};

use crate::autoscaler::Clock;
use crate::caches::Caches;
use crate::events::Recorder;
use crate::index::Key;
use crate::metrics::{Metrics, Outcome};
use crate::queue::Queue;

/// Keys of one controller looked at at the same time. Each is a handful of API calls; more would only queue
/// in the client.
const CONCURRENCY: usize = 64;

/// What the controllers share.
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) caches: Arc<Caches>,
    pub(crate) settings: watch::Receiver<Arc<Settings>>,
    pub(crate) clock: Clock,
    pub(crate) events: Recorder,
    pub(crate) metrics: Metrics,
    pub(crate) told: Told,
}

impl Shared {
    fn context(&self, refusals: Vec<Refusal>) -> Context {
        Context { now: self.clock.now(), settings: self.settings.borrow().clone(), refusals }
    }
}

/// What makes one controller differ from another.
pub(crate) trait Reconciler: Send + Sync + 'static {
    /// Its name in logs, events and metrics.
    const NAME: &'static str;
    /// Everything its plan may look at.
    type Observed: Send;

    /// Gathers, from caches only.
    fn observe(&self, caches: &Caches, key: &Key, context: Context) -> Option<Self::Observed>;
    /// Decides.
    fn plan(&self, observed: &Self::Observed) -> Plan;
    /// The object it is about.
    fn subject(&self, observed: &Self::Observed) -> Object;
    /// The object is gone.
    fn forget(&self, _key: &Key) {}
}

/// A call that did not go through.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The request could not be built.
    #[error("the request for {target} could not be built")]
    Build {
        /// What was to be called.
        target: String,
        /// Why.
        source: request::Error,
    },
    /// The API did not do it.
    #[error("{verb} {target} failed")]
    Api {
        /// What was to be done.
        verb: &'static str,
        /// To what.
        target: String,
        /// Why.
        source: kube::Error,
    },
}

/// How a write ended.
enum Written {
    Done(Option<Value>),
    /// The API knows something newer than the caches: the plan is made again.
    Stale,
    Refused(Refusal),
}

/// Works the queue until `stop`; what is under way then is finished.
pub(crate) async fn work<R: Reconciler>(
    reconciler: R,
    queue: Arc<Queue>,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let reconciler = Arc::new(reconciler);
    let mut jobs = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            key = queue.next(), if jobs.len() < CONCURRENCY => {
                shared.metrics.depth(R::NAME, queue.depth());
                let place = Place { queue: queue.clone(), key, controller: R::NAME, metrics: shared.metrics.clone() };
                jobs.spawn(one(reconciler.clone(), place, shared.clone()));
            }
            Some(done) = jobs.join_next() => {
                if let Err(panic) = done {
                    warn!(controller = R::NAME, error = %panic, "a look at an object ended early");
                }
            }
        }
    }
    while jobs.join_next().await.is_some() {}
}

/// A key that is being worked on; giving it back lets it come again, also after a panic.
struct Place {
    queue: Arc<Queue>,
    key: Key,
    controller: &'static str,
    metrics: Metrics,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.done(&self.key);
        self.metrics.depth(self.controller, self.queue.depth());
    }
}

async fn one<R: Reconciler>(reconciler: Arc<R>, place: Place, shared: Arc<Shared>) {
    let span = debug_span!("look", controller = R::NAME, key = %place.key);
    let timer = shared.metrics.start(R::NAME);
    let outcome = look(reconciler.as_ref(), &place, &shared).instrument(span).await;
    let queue = &place.queue;
    match outcome {
        Ok(Next::Settled { again }) => {
            queue.forget(&place.key);
            if let Some(delay) = again {
                queue.add_after(place.key.clone(), delay);
            }
            timer.end(Outcome::Settled);
        }
        Ok(Next::Stale) => {
            queue.retry(place.key.clone());
            timer.end(Outcome::Stale);
        }
        Ok(Next::Refused) => {
            queue.retry(place.key.clone());
            timer.end(Outcome::Refused);
        }
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(source) = cause {
                text = format!("{text}: {source}");
                cause = source.source();
            }
            warn!(controller = R::NAME, key = %place.key, error = text, "tried again later");
            queue.retry(place.key.clone());
            timer.end(Outcome::Failed);
        }
    }
}

enum Next {
    Settled { again: Option<Duration> },
    Stale,
    Refused,
}

async fn look<R: Reconciler>(reconciler: &R, place: &Place, shared: &Shared) -> Result<Next, CallError> {
    let observe = |refusals| reconciler.observe(&shared.caches, &place.key, shared.context(refusals));
    let Some(observed) = observe(Vec::new()) else {
        reconciler.forget(&place.key);
        return Ok(Next::Settled { again: None });
    };
    let mut subject = reconciler.subject(&observed);
    let mut plan = reconciler.plan(&observed);
    drop(observed);
    if !plan.writes.is_empty() || plan.status.is_some() {
        debug!(writes = plan.writes.len(), status = plan.status.is_some(), reasons = ?plan.reasons, "planned");
    }
    let about = subject.reference();
    let mut refusals = Vec::new();
    for (place, write) in std::mem::take(&mut plan.writes).into_iter().enumerate() {
        if plan.barrier > 0 && place >= plan.barrier && !refusals.is_empty() {
            break;
        }
        let target = write.target();
        match apply(shared, write).await? {
            Written::Done(answer) => {
                if let Some(answer) = answer.filter(|_| target == about) {
                    subject.value = answer;
                }
            }
            Written::Stale => return Ok(Next::Stale),
            Written::Refused(refusal) => refusals.push(refusal),
        }
    }
    let refused = !refusals.is_empty();
    if refused {
        // What was refused changes what is to be told; what was written stays written.
        let Some(observed) = observe(refusals.clone()) else { return Ok(Next::Stale) };
        plan = reconciler.plan(&observed);
        tell_refusals(&shared.told, R::NAME, &refusals, &mut plan);
    }
    if let Some(status) = plan.status.take() {
        if let Some(fields) = subject.value.as_object_mut() {
            fields.insert("status".into(), status);
        }
        match put_status(shared, &subject).await? {
            Written::Stale => return Ok(Next::Stale),
            Written::Refused(refusal) => {
                warn!(object = %refusal.target, error = refusal.message, "the API refuses a status");
                plan.warning(
                    "UpdateFailed",
                    format!("Failed to update status for {:?}: {}", about.name, refusal.message),
                );
                shared.events.record(R::NAME, &subject, plan.events, shared.clock.now());
                return Ok(Next::Refused);
            }
            Written::Done(_) => {}
        }
    }
    // Told last, so that a plan made again does not tell twice.
    shared.events.record(R::NAME, &subject, std::mem::take(&mut plan.events), shared.clock.now());
    if refused {
        return Ok(Next::Refused);
    }
    for taken in &plan.taken {
        if catch_up(shared, taken).await == Found::Gone {
            return Ok(Next::Stale);
        }
    }
    Ok(Next::Settled { again: plan.again })
}

/// Whatever is refused is told beside the object, also where its plan has no words for it (A1.8).
fn tell_refusals(log: &Told, controller: &'static str, refusals: &[Refusal], plan: &mut Plan) {
    for Refusal { target, message } in refusals {
        let told = |event: &neap_logic::plan::Event| {
            event.severity == Severity::Warning && event.message.contains(message.as_str())
        };
        if plan.events.iter().any(told) {
            continue;
        }
        let text = format!("Failed to write {target}: {message}");
        if log.is_new(&text) {
            warn!(controller, %target, error = message.as_str(), "the API refuses a write; it is tried again");
        }
        plan.warning("InternalError", text);
    }
}

/// What has been logged, so that a refusal which is met again each minute is one line.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<HashSet<String>>);

impl Told {
    /// Sentences remembered; then all are forgotten at once, and told once more.
    const MOST: usize = 1024;

    fn is_new(&self, text: &str) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= Self::MOST {
            told.clear();
        }
        told.insert(text.to_owned())
    }
}

fn base(target: &ObjectRef) -> Request {
    Request::new(DynamicObject::url_path(&target.resource, target.namespace.as_deref()))
}

fn body(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON can be written")
}

async fn apply(shared: &Shared, write: Write) -> Result<Written, CallError> {
    let target = write.target();
    let (verb, request) = match write {
        Write::Create(object) => ("create", base(&target).create(&PostParams::default(), body(&object.value))),
        Write::Update(object) => {
            ("update", base(&target).replace(&target.name, &PostParams::default(), body(&object.value)))
        }
        Write::Patch(Patch { subresource, merge, .. }) => {
            let (params, merge) = (PatchParams::default(), kube::api::Patch::Merge(&merge));
            let request = match subresource {
                Some(part) => base(&target).patch_subresource(part, &target.name, &params, &merge),
                None => base(&target).patch(&target.name, &params, &merge),
            };
            ("patch", request)
        }
        Write::Delete(_) => ("delete", base(&target).delete(&target.name, &DeleteParams::default())),
        Write::DeleteSeen(seen) => ("delete", base(&target).delete(&target.name, &only_if_seen(&seen))),
    };
    call(shared, verb, &target, request).await
}

/// A deletion of an object only as long as it is what was decided on.
pub(crate) fn only_if_seen(seen: &Seen) -> DeleteParams {
    let (uid, resource_version) = (seen.uid.clone(), seen.resource_version.clone());
    DeleteParams { preconditions: Some(Preconditions { uid, resource_version }), ..DeleteParams::default() }
}

async fn put_status(shared: &Shared, subject: &Object) -> Result<Written, CallError> {
    let target = subject.reference();
    let request =
        base(&target).replace_subresource("status", &target.name, &PostParams::default(), body(&subject.value));
    call(shared, "write the status of", &target, request).await
}

async fn call(
    shared: &Shared,
    verb: &'static str,
    target: &ObjectRef,
    request: Result<http::Request<Vec<u8>>, request::Error>,
) -> Result<Written, CallError> {
    let request = request.map_err(|source| CallError::Build { target: target.to_string(), source })?;
    match shared.client.request::<Value>(request).await {
        Ok(answer) => {
            if verb == "delete" {
                return Ok(Written::Done(None));
            }
            shared.caches.written(target, answer.clone());
            Ok(Written::Done(Some(answer)))
        }
        Err(kube::Error::Api(status)) => match status.code {
            // Gone is what a deletion wants, and leaves nothing for a patch to mark.
            404 if matches!(verb, "delete" | "patch") => Ok(Written::Done(None)),
            404 | 409 => {
                debug!(%target, verb, error = status.message, "the caches are behind");
                catch_up(shared, target).await;
                Ok(Written::Stale)
            }
            400 | 403 | 405 | 422 => {
                Ok(Written::Refused(Refusal { target: target.clone(), message: status.message.clone() }))
            }
            _ => Err(CallError::Api { verb, target: target.to_string(), source: kube::Error::Api(status) }),
        },
        Err(source) => Err(CallError::Api { verb, target: target.to_string(), source }),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    There,
    Gone,
    /// The API did not say.
    Unknown,
}

/// Reads one object anew, so that the next look need not wait for the watch, and sees also what no watch
/// shows because it lacks our labels.
async fn catch_up(shared: &Shared, target: &ObjectRef) -> Found {
    let Ok(request) = base(target).get(&target.name, &GetParams::default()) else { return Found::Unknown };
    match shared.client.request::<Value>(request).await {
        Ok(object) => {
            shared.caches.read_anew(target, object);
            Found::There
        }
        Err(kube::Error::Api(status)) if status.code == 404 => {
            shared.caches.gone(target);
            Found::Gone
        }
        // Whatever goes wrong here goes wrong again in the next look, and is told there.
        Err(_) => Found::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;

    #[test]
    fn a1_8_no_refusal_is_silent() {
        let mut service = Service::default();
        service.metadata.name = Some("a".into());
        let refusal = |message: &str| Refusal { target: ObjectRef::of(&service), message: message.into() };
        let mut plan = Plan::default();
        plan.warning("CreationFailed", "Failed to write it: quota exceeded");
        let (log, refusals) = (Told::default(), [refusal("quota exceeded"), refusal("not allowed")]);
        tell_refusals(&log, "c", &refusals, &mut plan);
        let told: Vec<_> = plan.events.iter().map(|event| (event.reason.as_str(), event.message.as_str())).collect();
        assert_eq!(
            told,
            [
                ("CreationFailed", "Failed to write it: quota exceeded"),
                ("InternalError", "Failed to write Service a: not allowed"),
            ]
        );
        assert!(!log.is_new("Failed to write Service a: not allowed"), "it was logged");
    }
}
