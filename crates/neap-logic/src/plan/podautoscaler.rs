//! What a PodAutoscaler asks for: the ServerlessService, the Metric (or the HorizontalPodAutoscaler), the count of its
//! target, its status (D11, D13, A6.2).
//!
//! The count is not one of the plan's writes: it has to be set first, and on a wake before anything else is looked at.

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_core::Resource;
use neap_api::autoscaling::{Metric, MetricSpec, PodAutoscaler, PodAutoscalerStatus};
use neap_api::condition::{READY, find};
use neap_api::keys::autoscaling as keys;
use neap_api::networking::{ServerlessService, ServerlessServiceSpec};
use neap_api::{Condition, ConditionStatus};

use super::ensure::{Match, controller_ref, ensure, is_controlled_by};
use super::meta::name;
use super::{Context, Plan, TAKEN};
use crate::conditions::{Conditions, POD_AUTOSCALER, is_ready, status_of};
use crate::names::private_service;
use crate::scale::{
    Activity, Decision, InPath, Scaling, Situation, Step, active_threshold, hpa_spec, initial_burst_capacity, step,
};

/// Condition: the Revision is ready to take requests by itself.
pub const ACTIVE: &str = "Active";
/// Condition: the initial scale was reached once.
pub const SCALE_TARGET_INITIALIZED: &str = "ScaleTargetInitialized";
/// Condition: the ServerlessService is ready.
pub const SKS_READY: &str = "SKSReady";
/// Condition of a ServerlessService: since when activators are behind its public Service.
const ACTIVATOR_ENDPOINTS: &str = "ActivatorEndpointsPopulated";

const SERVE: &str = "Serve";
const PROXY: &str = "Proxy";

/// What the decider says, without its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Wanted instances, before bounds.
    pub desired: u32,
    /// Negative: the activator is to stay in the path.
    pub excess_burst_capacity: i32,
    /// Activators to put in the path.
    pub num_activators: u32,
}

impl From<&Decision> for Decided {
    fn from(decision: &Decision) -> Self {
        let Decision { desired, excess_burst_capacity, num_activators, .. } = *decision;
        Self { desired, excess_burst_capacity, num_activators }
    }
}

/// All that is looked at for a PodAutoscaler of our own class.
#[derive(Clone, Debug)]
pub struct Observed<'a> {
    /// The object.
    pub pa: &'a PodAutoscaler,
    /// Its ServerlessService, by name.
    pub sks: Option<&'a ServerlessService>,
    /// Its Metric, by name.
    pub metric: Option<&'a Metric>,
    /// Its settings.
    pub scaling: &'a Scaling,
    /// The latest decision; `None` while nothing has been measured.
    pub decided: Option<Decided>,
    /// Since when the load has been measured without a gap; `None` while it is not.
    pub measured_since: Option<jiff::Timestamp>,
    /// Replicas the target asks for now; `None` when it does not exist (yet).
    pub replicas: Option<u32>,
    /// Instances ready.
    pub ready: u32,
    /// What is known of the path of requests.
    pub in_path: InPath,
    /// The time, and writes the API refused.
    pub context: &'a Context,
}

/// A plan, and the count to set before it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scaled {
    /// Replicas to set on the scale of the target, where they differ.
    pub scale: Option<u32>,
    /// Everything else.
    pub plan: Plan,
}

/// The count of the target alone: the part of [`plan`] that a wake carries out at once.
pub fn scale(o: &Observed<'_>) -> Option<u32> {
    let conditions = Conditions::new(POD_AUTOSCALER, observed_conditions(o.pa), o.context.now);
    apply(step(o.scaling, &situation(o, &conditions)), o.replicas)
}

/// Plans a PodAutoscaler of our own class.
pub fn plan(o: &Observed<'_>) -> Scaled {
    let mut plan = Plan::default();
    if o.pa.metadata.deletion_timestamp.is_some() {
        return Scaled { scale: None, plan };
    }
    let mut conditions = Conditions::new(POD_AUTOSCALER, observed_conditions(o.pa), o.context.now);
    let mut status = o.pa.status.clone().unwrap_or_default();

    let situation = situation(o, &conditions);
    let step = step(o.scaling, &situation);
    let scale = apply(step, o.replicas);
    if let Some(to) = scale {
        plan.because(format!("the target goes from {} to {to} replicas", o.replicas.unwrap_or(0)));
    }
    if let Some(why) = step.why() {
        plan.because(why.to_string());
    }
    if let Some(again) = step.again() {
        plan.again_in(again);
    }

    let want = step.want();
    let burst = o.decided.map_or_else(|| initial_burst_capacity(o.scaling), |d| d.excess_burst_capacity);
    let inactive = matches!(situation.activity, Activity::Inactive(_));
    let proxy = want == 0 || burst < 0 || want < 0 && inactive;
    let activators = o.decided.map_or(0, |d| d.num_activators);
    let owned = serverless_service(o.pa, o.sks, if proxy { PROXY } else { SERVE }, activators, o.context, &mut plan)
        .and_then(|()| metric(o, &mut plan));

    propagate(o.sks.filter(|_| owned.is_ok()), &mut status, &mut conditions);
    status.actual_scale = Some(signed(o.ready));
    if want >= 0 || status.desired_scale.is_none() {
        // After a restart nothing is measured for a moment; the count reported before stands until something is.
        status.desired_scale = Some(want);
    }
    match owned {
        Ok(()) => active(o, want, &mut conditions),
        Err(Trouble { reason, message }) => conditions.mark_false(ACTIVE, reason, &message),
    }
    finish(o.pa, status, conditions, &mut plan);
    Scaled { scale, plan }
}

/// Plans a PodAutoscaler of class HPA: the HorizontalPodAutoscaler scales, and requests never need an activator.
pub fn plan_hpa(
    pa: &PodAutoscaler,
    hpa: Option<&HorizontalPodAutoscaler>,
    sks: Option<&ServerlessService>,
    scaling: &Scaling,
    context: &Context,
) -> Plan {
    let mut plan = Plan::default();
    if pa.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let mut conditions = Conditions::new(POD_AUTOSCALER, observed_conditions(pa), context.now);
    let mut status = pa.status.clone().unwrap_or_default();

    let wanted = HorizontalPodAutoscaler { metadata: child_of(pa), spec: hpa_spec(pa, scaling), status: None };
    let owned = child(pa, hpa, &wanted, Match::Contains, context, &mut plan)
        .and_then(|()| serverless_service(pa, sks, SERVE, 0, context, &mut plan));

    propagate(sks.filter(|_| owned.is_ok()), &mut status, &mut conditions);
    if let Some(hpa) = hpa.and_then(|hpa| hpa.status.as_ref()) {
        status.desired_scale = Some(hpa.desired_replicas);
        status.actual_scale = hpa.current_replicas;
    }
    match owned {
        Ok(()) => {
            // This class never sleeps.
            conditions.mark_true(SCALE_TARGET_INITIALIZED);
            conditions.mark_true(ACTIVE);
        }
        Err(Trouble { reason, message }) => conditions.mark_false(ACTIVE, reason, &message),
    }
    finish(pa, status, conditions, &mut plan);
    plan
}

/// Why a child is not as it should be.
struct Trouble {
    reason: &'static str,
    message: String,
}

fn situation(o: &Observed<'_>, conditions: &Conditions) -> Situation {
    let active = conditions.get(ACTIVE);
    let since = active.and_then(|c| c.last_transition_time.as_ref()).map_or(o.context.now, |time| time.0);
    let activity = match conditions.status(ACTIVE) {
        ConditionStatus::True => Activity::Active(since),
        ConditionStatus::False => Activity::Inactive(since),
        ConditionStatus::Unknown => Activity::Activating(since),
    };
    let proxied = o.sks.and_then(|sks| find(&sks.status.as_ref()?.conditions, ACTIVATOR_ENDPOINTS));
    let proxied_since = proxied
        .filter(|condition| condition.status == ConditionStatus::True)
        .and_then(|condition| condition.last_transition_time.as_ref());
    Situation {
        desired: o.decided.map(|decided| decided.desired),
        activity,
        measured_since: o.measured_since,
        initialized: conditions.status(SCALE_TARGET_INITIALIZED) == ConditionStatus::True,
        // Where nothing runs, nothing waits for the path to move.
        in_path: if o.replicas == Some(0) { InPath::Always } else { o.in_path },
        proxied_for: proxied_since
            .and_then(|time| o.context.now.duration_since(time.0).try_into().ok())
            .unwrap_or_default(),
        now: o.context.now,
    }
}

/// The count to set: nothing where the target has it already or is not there.
fn apply(step: Step, replicas: Option<u32>) -> Option<u32> {
    match step {
        Step::Scale { to, .. } => replicas.filter(|now| *now != to).map(|_| to),
        _ => None,
    }
}

/// The `Active` condition and the one-way `ScaleTargetInitialized` (E4.13).
fn active(o: &Observed<'_>, want: i32, conditions: &mut Conditions) {
    let threshold = active_threshold(o.scaling, conditions.status(SCALE_TARGET_INITIALIZED) == ConditionStatus::True);
    if o.ready >= threshold {
        conditions.mark_true(SCALE_TARGET_INITIALIZED);
    }
    let before = conditions.status(ACTIVE);
    let inactive = before == ConditionStatus::False;
    if want == 0 || threshold == 0 {
        if before == ConditionStatus::Unknown && threshold > 0 {
            // Zero while activating means that the activation was given up.
            conditions.mark_false(ACTIVE, "TimedOut", "The target could not be activated.");
        } else if !(inactive && o.ready < threshold && is_timed_out(conditions)) {
            conditions.mark_false(ACTIVE, "NoTraffic", "The target is not receiving traffic.");
        }
    } else if want < 0 && inactive {
        // Nothing measured yet: what was known before stands.
    } else if o.ready < threshold {
        let message = "Requests to the target are being buffered as resources are provisioned.";
        conditions.mark_unknown(ACTIVE, "Queued", message);
    } else {
        conditions.mark_true(ACTIVE);
    }
}

fn is_timed_out(conditions: &Conditions) -> bool {
    conditions.get(ACTIVE).is_some_and(|condition| condition.reason == "TimedOut")
}

/// Takes over what the ServerlessService says.
fn propagate(sks: Option<&ServerlessService>, status: &mut PodAutoscalerStatus, conditions: &mut Conditions) {
    let Some((sks, said)) = sks.and_then(|sks| Some((sks, sks.status.as_ref()?))) else {
        conditions.mark_unknown(SKS_READY, "NotReady", "");
        return;
    };
    status.service_name.clone_from(&said.service_name);
    status.metrics_service_name.clone_from(&said.private_service_name);
    if is_ready(&said.conditions, said.observed_generation, sks.metadata.generation) {
        conditions.mark_true(SKS_READY);
    } else {
        let message = find(&said.conditions, READY).map_or("", |condition| &condition.message);
        conditions.mark_unknown(SKS_READY, "NotReady", message);
    }
}

fn serverless_service(
    pa: &PodAutoscaler,
    sks: Option<&ServerlessService>,
    mode: &str,
    activators: u32,
    context: &Context,
    plan: &mut Plan,
) -> Result<(), Trouble> {
    let reference = &pa.spec.scale_target_ref;
    let mut metadata = child_of(pa);
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(keys::METRIC);
    }
    let wanted = ServerlessService {
        metadata,
        spec: ServerlessServiceSpec {
            mode: mode.to_owned(),
            object_ref: ObjectReference {
                api_version: Some(reference.api_version.clone()),
                kind: Some(reference.kind.clone()),
                name: Some(reference.name.clone()),
                ..ObjectReference::default()
            },
            protocol_type: pa.spec.protocol_type.clone(),
            num_activators: signed(activators),
        },
        status: None,
    };
    child(pa, sks, &wanted, Match::Exact, context, plan)
}

fn metric(o: &Observed<'_>, plan: &mut Plan) -> Result<(), Trouble> {
    // Where every request passes an activator, its count is the whole truth (E3.6). So is the gateway's where pods have
    // no sidecar; there nobody could be asked.
    let sidecar = o.context.settings.deployment.queue_sidecar_image.is_some();
    let asked = sidecar && o.scaling.target_burst_capacity >= 0.0;
    let nanos = |window: std::time::Duration| i64::try_from(window.as_nanos()).unwrap_or(i64::MAX);
    let wanted = Metric {
        metadata: child_of(o.pa),
        spec: MetricSpec {
            stable_window: nanos(o.scaling.stable_window),
            panic_window: nanos(o.scaling.panic_window),
            scrape_target: if asked { private_service(name(&o.pa.metadata)) } else { String::new() },
        },
        status: None,
    };
    child(o.pa, o.metric, &wanted, Match::Exact, o.context, plan)
}

/// Plans one child. A child that is somebody else's is left alone.
fn child<K>(
    pa: &PodAutoscaler,
    observed: Option<&K>,
    wanted: &K,
    how: Match,
    context: &Context,
    plan: &mut Plan,
) -> Result<(), Trouble>
where
    K: Resource<DynamicType = ()> + serde::Serialize,
{
    let (kind, name) = (K::kind(&()), name(&pa.metadata));
    if observed.is_some_and(|child| !is_controlled_by(child.meta(), pa)) {
        let message = format!("There is an existing {kind} {name:?} that we do not own.");
        plan.again_in(TAKEN);
        return Err(Trouble { reason: "NotOwned", message });
    }
    plan.write(ensure(observed, wanted, how));
    match context.refusal::<K>(name) {
        Some(refusal) if observed.is_none() => {
            let message = format!("Failed to create {kind} {name:?}: {}", refusal.message);
            Err(Trouble { reason: "FailedCreate", message })
        }
        _ => Ok(()),
    }
}

/// Name, labels and annotations of a child: the PodAutoscaler's own.
fn child_of(pa: &PodAutoscaler) -> ObjectMeta {
    ObjectMeta {
        name: pa.metadata.name.clone(),
        namespace: pa.metadata.namespace.clone(),
        labels: pa.metadata.labels.clone(),
        annotations: pa.metadata.annotations.clone(),
        owner_references: Some(vec![controller_ref(pa)]),
        ..ObjectMeta::default()
    }
}

fn finish(pa: &PodAutoscaler, mut status: PodAutoscalerStatus, conditions: Conditions, plan: &mut Plan) {
    status.conditions = conditions.into_vec();
    status.observed_generation = pa.metadata.generation.unwrap_or_default();
    plan.set_status(pa.status.as_ref(), &status);
}

fn observed_conditions(pa: &PodAutoscaler) -> &[Condition] {
    pa.status.as_ref().map_or(&[], |status| &status.conditions)
}

/// Whether the PodAutoscaler says it is inactive: nothing runs for it, or will soon not.
pub fn is_inactive(pa: &PodAutoscaler) -> bool {
    status_of(observed_conditions(pa), ACTIVE) == ConditionStatus::False
}

fn signed(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
