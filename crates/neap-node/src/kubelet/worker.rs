//! One pod, from its first sight to its end. A task of its own, so that a slow volume of one pod never delays another.
//!
//! Level-driven: it looks at the latest object and the latest runtime status, does what is missing, and waits until
//! either changes. What it was woken by does not matter.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Pod, PodStatus as ApiStatus};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use neap_runtime::pod::{ContainerState, PodId, PodSpec, PodStatus};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::drain::Leaving;
use super::needs::{self, Found};
use super::recorder::About;
use super::schedule::is_active;
use super::sources::{Tokens, make_directories, refresh_after, token};
use super::spec::{GRACE_SECONDS, SpecError, pod_spec, unasked_token};
use super::status::{OVERDUE, Progress, ended_status, same, status};
use super::tell::{self, Told};
use super::{Shared, needs::TOKEN_SECONDS};
use crate::ports::PORTS;

/// First pause after something failed; doubled up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(10);
/// What a pod gets to end when its object vanished without a graceful deletion.
const FORCED_GRACE: Duration = Duration::from_secs(1);

/// What may wake a worker beside a new object. A permit waits when it is busy.
#[derive(Default)]
pub(super) struct Wake {
    pub(super) runtime: Notify,
    pub(super) sources: Notify,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    id: PodId,
    about: About,
    pod: watch::Receiver<Arc<Pod>>,
    wake: Arc<Wake>,
    /// What the runtime was given last.
    given: Option<PodSpec>,
    /// Why it was not given what it should have.
    problem: Option<SpecError>,
    tokens: Tokens,
    /// The pod as it was when the runtime was last given something.
    seen: Option<Arc<Pod>>,
    written: Option<ApiStatus>,
    ports: Option<String>,
    told: Option<PodStatus>,
    retry: Retry,
}

#[derive(Default)]
struct Retry {
    pause: Option<Duration>,
    at: Option<Instant>,
}

impl Retry {
    fn again(&mut self) {
        let pause = self.pause.map_or(RETRY_FIRST, |p| (p * 2).min(RETRY_LAST));
        self.pause = Some(pause);
        self.at = Some(Instant::now() + pause);
    }

    fn done(&mut self) {
        *self = Self::default();
    }

    fn is_due(&self) -> bool {
        self.at.is_some_and(|at| at <= Instant::now())
    }
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, id: PodId, pod: watch::Receiver<Arc<Pod>>, wake: Arc<Wake>) -> Self {
        let about = {
            let pod = pod.borrow();
            About {
                kind: "Pod",
                namespace: pod.namespace().unwrap_or_default(),
                name: pod.name_any(),
                uid: id.0.clone(),
            }
        };
        // After a restart of ours what the runtime shows is not news.
        let told = shared.runtime.status(&id);
        Self {
            shared,
            id,
            about,
            pod,
            wake,
            given: None,
            problem: None,
            tokens: Tokens::new(),
            seen: None,
            written: None,
            ports: None,
            told,
            retry: Retry::default(),
        }
    }

    pub(super) async fn run(mut self) {
        let mut sources_changed = false;
        loop {
            let pod = self.pod.borrow_and_update().clone();
            if pod.metadata.deletion_timestamp.is_some() {
                return self.terminate(&pod).await;
            }
            let due = sources_changed || self.retry.is_due() || self.token_is_due();
            if !is_active(&pod) {
                // It has ended: what it referred to is of no concern any more.
                self.tokens.clear();
                self.retry.done();
            } else if due || self.is_news(&pod) {
                sources_changed = false;
                self.place_and_hand_over(&pod).await;
            }
            self.report(&pod).await;
            let overdue = self.end_if_overdue(&pod);
            let timer = self.next_timer().into_iter().chain(overdue).min();
            tokio::select! {
                changed = self.pod.changed() => {
                    if changed.is_err() {
                        return self.abandoned().await;
                    }
                }
                () = self.wake.runtime.notified() => {}
                () = self.wake.sources.notified() => sources_changed = true,
                () = async { sleep_until(timer.unwrap_or_else(Instant::now)).await }, if timer.is_some() => {}
                () = self.shared.shutdown.cancelled() => return,
            }
        }
    }

    /// Whether the object differs in what the runtime's specification is made of.
    fn is_news(&self, pod: &Arc<Pod>) -> bool {
        let Some(seen) = &self.seen else { return true };
        !Arc::ptr_eq(seen, pod)
            && (seen.spec != pod.spec
                || seen.metadata.labels != pod.metadata.labels
                || seen.metadata.annotations != pod.metadata.annotations)
    }

    /// Ends a pod that has been active for as long as it may; else when that will be.
    fn end_if_overdue(&self, pod: &Pod) -> Option<Instant> {
        let seconds = pod.spec.as_ref()?.active_deadline_seconds.filter(|_| is_active(pod))?;
        let begun = self.written.as_ref().or(pod.status.as_ref())?.start_time.as_ref()?.0;
        let ran = (self.shared.clock)().duration_since(begun);
        let left = SignedDuration::from_secs(seconds).saturating_sub(ran);
        if left.is_positive() {
            return Some(Instant::now() + left.unsigned_abs());
        }
        if self.told.as_ref().is_some_and(|known| known.evicted.is_none()) {
            self.shared.runtime.evict(&self.id, OVERDUE);
        }
        None
    }

    fn token_is_due(&self) -> bool {
        self.tokens.values().any(|(_, at)| *at <= Instant::now())
    }

    fn next_timer(&self) -> Option<Instant> {
        // While something fails, a token that is due waits with it.
        self.retry.at.or_else(|| self.tokens.values().map(|(_, at)| *at).min())
    }

    /// Writes the node's name into a pod that was just placed, while the runtime already begins.
    async fn place_and_hand_over(&mut self, pod: &Arc<Pod>) {
        let unplaced = pod.spec.as_ref().is_some_and(|s| s.node_name.as_deref().unwrap_or_default().is_empty());
        self.seen = Some(pod.clone());
        let (shared, about) = (self.shared.clone(), self.about.clone());
        let place = async move { if unplaced { place(&shared, &about).await } else { true } };
        let (placed, given) = tokio::join!(place, self.hand_over(pod));
        if placed && given {
            self.retry.done();
        } else {
            self.retry.again();
        }
    }

    /// Resolves what the pod refers to and gives the runtime what it does not have yet. Returns whether all is well.
    async fn hand_over(&mut self, pod: &Pod) -> bool {
        let found = match self.resolve(pod).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(pod = %self.about.name, %error, "what a pod refers to cannot be read; trying again");
                return false;
            }
        };
        let spec = match pod_spec(pod, &found, &self.shared.around) {
            Ok(spec) => spec,
            Err(problem) => {
                if self.problem.as_ref() != Some(&problem) {
                    self.tell(told_of(&problem));
                }
                self.problem = Some(problem);
                return false;
            }
        };
        self.problem = None;
        if self.given.as_ref() == Some(&spec) {
            return true;
        }
        let fresh = self.shared.runtime.status(&self.id).is_none();
        if let Err(error) = make_directories(&self.shared.around.claims, pod, &found, fresh).await {
            tracing::warn!(pod = %self.about.name, %error, "a volume's directory cannot be made");
            self.tell(Told::warning("FailedMount", format!("a volume's directory cannot be made: {error}")));
            return false;
        }
        if let Some(unkept) = self.shared.runtime.unkept(&spec).filter(|_| fresh) {
            self.tell(Told::warning("NotOffered", unkept));
        }
        match self.shared.runtime.ensure(spec.clone()).await {
            Ok(()) => {
                self.given = Some(spec);
                true
            }
            Err(error) => {
                tracing::warn!(pod = %self.about.name, %error, "the runtime did not take a pod");
                self.tell(Told::warning("FailedCreatePodSandBox", error.to_string()));
                false
            }
        }
    }

    async fn resolve(&mut self, pod: &Pod) -> kube::Result<Found> {
        let (client, around) = (&self.shared.client, &self.shared.around);
        let needs = needs::of(pod);
        let mut found = self.shared.sources.gather(client, pod, &needs).await?;
        let mut wanted = needs.tokens;
        if unasked_token(pod, &found, around) {
            wanted.insert((String::new(), TOKEN_SECONDS));
        }
        self.tokens.retain(|need, _| wanted.contains(need));
        for need in wanted {
            let fresh = self.tokens.get(&need).filter(|(_, at)| *at > Instant::now());
            let token = match fresh {
                Some((token, _)) => token.clone(),
                None => {
                    let issued = token(client, pod, &need).await?;
                    self.tokens.insert(need.clone(), (issued.clone(), Instant::now() + refresh_after(&need)));
                    issued
                }
            };
            found.tokens.insert(need, token);
        }
        Ok(found)
    }

    /// Writes the status if it differs from what was written last. On the path of every wake: nothing here may wait
    /// for anything but the write itself.
    async fn report(&mut self, pod: &Pod) {
        let known = self.shared.runtime.status(&self.id);
        if !self.show_ports(pod, known.as_ref()).await {
            return;
        }
        let progress = self.problem.as_ref().map_or(Progress::Accepted, Progress::Refused);
        let now = (self.shared.clock)();
        let next = status(pod, self.written.as_ref(), known.as_ref(), progress, &self.shared.around.node, now);
        let before = self.written.as_ref().or(pod.status.as_ref());
        if !before.is_some_and(|before| same(before, &next)) {
            match write_status(&self.shared, &self.about, before, &next).await {
                Ok(()) => self.written = Some(next),
                Err(error) if is_gone(&error) => {}
                Err(error) => {
                    tracing::warn!(pod = %self.about.name, %error, "a pod's status cannot be written; trying again");
                    self.retry.again();
                }
            }
        }
        if let Some(known) = known {
            if self.told.as_ref() != Some(&known) {
                for told in tell::changes(self.told.as_ref(), &known) {
                    self.tell(told);
                }
            }
            self.told = Some(known);
        }
    }

    /// Where the pod shares the machine's network, its real ports must be known before it counts as ready.
    async fn show_ports(&mut self, pod: &Pod, known: Option<&PodStatus>) -> bool {
        let Some(ports) = known.map(|k| &k.ports).filter(|p| !p.is_empty()) else { return true };
        let text = serde_json::to_string(ports).expect("names and numbers");
        let shown = self.ports.as_ref().or_else(|| pod.annotations().get(PORTS));
        if shown == Some(&text) {
            return true;
        }
        let patch = json!({"metadata": {"uid": self.id.0, "annotations": {PORTS: text}}});
        match self.pods().patch(&self.about.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => {
                self.ports = Some(text);
                true
            }
            Err(error) if is_gone(&error) => false,
            Err(error) => {
                tracing::warn!(pod = %self.about.name, %error, "a pod's ports cannot be written; trying again");
                self.retry.again();
                false
            }
        }
    }

    /// Nothing in flight, then stopped, then the object goes.
    async fn terminate(mut self, pod: &Arc<Pod>) {
        let grace = grace_of(pod);
        let deadline = Instant::now() + grace;
        let known = self.shared.runtime.status(&self.id);
        if let Some(known) = known {
            for container in &known.containers {
                if matches!(container.state, ContainerState::Running { .. }) {
                    self.tell(Told::normal("Killing", format!("Stopping container {}", container.name)));
                }
            }
            if !grace.is_zero() {
                self.wait_for_drain(&known, deadline).await;
            }
            if self.shared.shutdown.is_cancelled() {
                return;
            }
            let left = self.time_left(grace, deadline);
            if !self.stop(pod, left).await {
                return;
            }
        }
        self.say_ended(pod).await;
        self.finalize().await;
    }

    async fn wait_for_drain(&mut self, known: &PodStatus, deadline: Instant) {
        let leaving = Leaving {
            namespace: self.about.namespace.clone(),
            name: self.about.name.clone(),
            uid: self.id.0.clone(),
            ip: known.ip,
            ports: known.ports.clone(),
        };
        let shared = self.shared.clone();
        let mut drained = shared.drain.drained(leaving, deadline);
        loop {
            tokio::select! {
                () = &mut drained => return,
                () = sleep_until(deadline) => return,
                () = shared.shutdown.cancelled() => return,
                changed = self.pod.changed() => {
                    // Deleted by force, or told to hurry.
                    if changed.is_err() || grace_of(&self.pod.borrow_and_update()).is_zero() {
                        return;
                    }
                }
            }
        }
    }

    /// What is left of the grace period for the containers themselves.
    fn time_left(&self, grace: Duration, deadline: Instant) -> Duration {
        if grace.is_zero() || grace_of(&self.pod.borrow()).is_zero() {
            return Duration::ZERO;
        }
        // A drain that took all the time still leaves a moment for the signal.
        deadline.saturating_duration_since(Instant::now()).max(FORCED_GRACE)
    }

    /// Stops the pod while its status goes on being written. Returns whether it is gone.
    async fn stop(&mut self, pod: &Arc<Pod>, grace: Duration) -> bool {
        let shared = self.shared.clone();
        let id = self.id.clone();
        let (mut grace, mut has_object) = (grace, true);
        loop {
            let mut removal = shared.runtime.remove(&id, grace);
            let removed = loop {
                tokio::select! {
                    removed = &mut removal => break Some(removed),
                    () = self.wake.runtime.notified() => self.report(pod).await,
                    changed = self.pod.changed(), if has_object => {
                        // Told to hurry, or deleted by force: then nobody is left who could wish for more time.
                        has_object = changed.is_ok();
                        let nearer = if has_object { grace_of(&self.pod.borrow_and_update()) } else { FORCED_GRACE };
                        if nearer < grace {
                            grace = nearer;
                            break None;
                        }
                    }
                    () = shared.shutdown.cancelled() => return false,
                }
            };
            match removed {
                None => {}
                Some(Ok(())) => return true,
                Some(Err(error)) => {
                    tracing::warn!(pod = %self.about.name, %error, "a pod cannot be stopped; trying again");
                    self.tell(Told::warning("FailedKillPod", error.to_string()));
                    if !self.pause().await {
                        return false;
                    }
                }
            }
        }
    }

    /// Where somebody else keeps the object, it is not to say for ever that the pod runs.
    async fn say_ended(&mut self, pod: &Pod) {
        let now = self.pod.borrow().clone();
        let before = self.written.clone().or_else(|| pod.status.clone()).unwrap_or_default();
        let over = matches!(before.phase.as_deref(), Some("Succeeded" | "Failed"));
        if over || now.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) {
            return;
        }
        let next = ended_status(before.clone(), (self.shared.clock)());
        if let Err(error) = write_status(&self.shared, &self.about, Some(&before), &next).await
            && !is_gone(&error)
        {
            tracing::warn!(pod = %self.about.name, %error, "the end of a pod cannot be written");
        }
    }

    /// Removes the object whose pod is gone.
    async fn finalize(&mut self) {
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(self.id.0.clone()), ..Preconditions::default() }),
            ..DeleteParams::default()
        };
        loop {
            match self.pods().delete(&self.about.name, &parameters).await {
                Ok(_) => return,
                Err(error) if is_gone(&error) => return,
                Err(error) => {
                    tracing::warn!(pod = %self.about.name, %error, "a stopped pod's object cannot be removed; trying again");
                    if !self.pause().await {
                        return;
                    }
                }
            }
        }
    }

    /// The object vanished: whatever runs of it is nobody's.
    async fn abandoned(mut self) {
        loop {
            match self.shared.runtime.remove(&self.id, FORCED_GRACE).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(pod = %self.about.name, %error, "a pod without an object cannot be stopped; trying again");
                    if !self.pause().await {
                        return;
                    }
                }
            }
        }
    }

    /// Waits before the next try; false when we are shutting down.
    async fn pause(&mut self) -> bool {
        self.retry.again();
        let at = self.retry.at.unwrap_or_else(Instant::now);
        tokio::select! {
            () = sleep_until(at) => true,
            () = self.shared.shutdown.cancelled() => false,
        }
    }

    fn tell(&self, told: Told) {
        self.shared.recorder.tell(&self.about, told);
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.shared.client.clone(), &self.about.namespace)
    }
}

fn grace_of(pod: &Pod) -> Duration {
    let own = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
    let seconds = pod.metadata.deletion_grace_period_seconds.or(own).unwrap_or(GRACE_SECONDS);
    // Beyond this no clock goes on.
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0).min(u64::from(u32::MAX)))
}

fn told_of(problem: &SpecError) -> Told {
    match problem {
        SpecError::Container { message, .. } => Told::warning("Failed", format!("Error: {message}")),
        SpecError::Volume { .. } => Told::warning("FailedMount", problem.to_string()),
    }
}

/// Binds a pod to this machine. Returns whether it is bound or gone.
async fn place(shared: &Shared, about: &About) -> bool {
    let node = &shared.around.node.name;
    let api: Api<Pod> = Api::namespaced(shared.client.clone(), &about.namespace);
    let patch = json!({"metadata": {"uid": about.uid}, "spec": {"nodeName": node}});
    match api.patch(&about.name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => {
            let message = format!("Successfully assigned {}/{} to {node}", about.namespace, about.name);
            shared.recorder.tell(about, Told::normal("Scheduled", message));
            true
        }
        Err(error) if is_gone(&error) => true,
        Err(error) => {
            tracing::warn!(pod = about.name, %error, "a pod cannot be placed; trying again");
            false
        }
    }
}

/// Sends what changed, and `null` for what is there no more.
pub(super) async fn write_status(
    shared: &Shared,
    about: &About,
    before: Option<&ApiStatus>,
    next: &ApiStatus,
) -> kube::Result<()> {
    let fields = |status: Option<&ApiStatus>| match status.map(serde_json::to_value) {
        Some(Ok(Value::Object(map))) => map,
        _ => serde_json::Map::new(),
    };
    let (old, new) = (fields(before), fields(Some(next)));
    let gone = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = new.iter().filter(|(key, value)| old.get(*key) != Some(value));
    let patch: serde_json::Map<String, Value> =
        changed.map(|(key, value)| (key.clone(), value.clone())).chain(gone).collect();
    let api: Api<Pod> = Api::namespaced(shared.client.clone(), &about.namespace);
    let patch = json!({"metadata": {"uid": about.uid}, "status": patch});
    api.patch_status(&about.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

/// The object is gone, or another one has its name.
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(e) if e.code == 404 || e.code == 409)
}
