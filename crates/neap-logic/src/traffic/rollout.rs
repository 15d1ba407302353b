//! Gradual rollout: a new revision takes over its predecessor's share step by step (facts E6).
//!
//! The state travels as JSON in an annotation of the Ingress, in upstream's shape. Time is nanoseconds since
//! 1970 and is always an argument.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Traffic;

/// How every target that follows a configuration is spread over revisions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rollout {
    /// One entry per followed configuration and tag.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub configurations: Vec<ConfigurationRollout>,
}

/// The spread of one configuration under one tag.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigurationRollout {
    /// The configuration.
    pub configuration_name: String,
    /// The tag; empty for the route's own host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tag: String,
    /// The share all its revisions have together.
    #[serde(default)]
    pub percent: i64,
    /// Its revisions, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<RevisionRollout>,
    /// How the next step is made.
    #[serde(default)]
    pub step_params: StepParams,
}

/// One revision's share.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevisionRollout {
    /// The revision.
    pub revision_name: String,
    /// Its share.
    pub percent: i64,
}

/// The pace of a rollout; all zero outside one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepParams {
    /// When it began.
    #[serde(default, rename = "starttime", skip_serializing_if = "is_zero")]
    pub start_time: i64,
    /// When the next step is due; 0 before the first step was measured.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub next_step_time: i64,
    /// Nanoseconds between steps.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub step_duration: i64,
    /// Percent moved per step.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub step_size: i64,
}

/// The share a new revision begins with.
const FIRST_STEP: i64 = 1;
/// The shortest time a step is taken to need, in seconds.
const SHORTEST_STEP: f64 = 1.0;

impl Rollout {
    /// Where the traffic wants to end: each followed configuration on its latest revision alone.
    pub fn goal(traffic: &Traffic) -> Self {
        let mut configurations: Vec<ConfigurationRollout> = traffic
            .groups
            .iter()
            .flat_map(|(tag, targets)| {
                targets.iter().filter(|t| t.latest && t.percent > 0).map(move |target| ConfigurationRollout {
                    configuration_name: target.configuration.clone(),
                    tag: tag.clone(),
                    percent: target.percent,
                    revisions: vec![RevisionRollout {
                        revision_name: target.revision.clone(),
                        percent: target.percent,
                    }],
                    step_params: StepParams::default(),
                })
            })
            .collect();
        configurations.sort_by(|a, b| (&a.tag, &a.configuration_name).cmp(&(&b.tag, &b.configuration_name)));
        Self { configurations }
    }

    /// Whether it can be gone on from: what somebody wrote by hand may not add up.
    pub fn is_consistent(&self) -> bool {
        self.configurations.iter().all(|c| {
            c.percent <= 100
                && (0..=c.percent).contains(&c.step_params.step_size)
                && c.revisions.iter().map(|r| r.percent).sum::<i64>() == c.percent
        })
    }

    /// The entry of a configuration under a tag.
    pub fn of(&self, configuration: &str, tag: &str) -> Option<&ConfigurationRollout> {
        self.configurations.iter().find(|c| c.configuration_name == configuration && c.tag == tag)
    }

    /// Whether every configuration is on one revision.
    pub fn is_done(&self) -> bool {
        self.configurations.iter().all(|c| c.revisions.len() <= 1)
    }

    /// The routes of the first step are served: its length sets the pace of the others.
    pub fn observe_ready(&mut self, now: i64, duration: Duration) {
        for c in &mut self.configurations {
            let p = &mut c.step_params;
            if p.step_duration != 0 || p.start_time == 0 {
                continue;
            }
            let measured = Duration::from_nanos(u64::try_from(now - p.start_time).unwrap_or_default());
            let first = measured.as_secs_f64().ceil().max(SHORTEST_STEP);
            // The first step is made; one more step is made however long that took.
            let rest = (duration.as_secs_f64() - first).max(SHORTEST_STEP);
            let remaining = (c.percent - FIRST_STEP) as f64;
            let steps = (rest / first).max(1.0).min(remaining);
            p.step_size = (remaining / steps).round() as i64;
            p.step_duration = (rest / steps * 1e9) as i64;
            p.next_step_time = now.saturating_add(p.step_duration);
        }
    }

    /// From where it stood (`previous`) towards `self`, the goal; also when the next step is due.
    pub fn step(&self, previous: &Rollout, now: i64) -> (Rollout, Option<i64>) {
        let configurations: Vec<_> = self
            .configurations
            .iter()
            .map(|goal| match previous.of(&goal.configuration_name, &goal.tag) {
                Some(before) => step(goal, before, now),
                None => goal.clone(),
            })
            .collect();
        let next = configurations.iter().map(|c| c.step_params.next_step_time).filter(|t| *t > now).min();
        (Rollout { configurations }, next)
    }
}

fn step(goal: &ConfigurationRollout, before: &ConfigurationRollout, now: i64) -> ConfigurationRollout {
    let (Some(newest), Some(wanted)) = (before.revisions.last(), goal.revisions.first()) else { return goal.clone() };
    // One percent or less cannot be divided.
    if goal.percent <= FIRST_STEP {
        return goal.clone();
    }
    let mut next = before.clone();
    next.percent = goal.percent;
    adjust(&mut next.revisions, goal.percent);
    if newest.revision_name == wanted.revision_name {
        let due = next.step_params.next_step_time;
        if due > 0 && now >= due {
            advance(&mut next, now);
        }
    } else if let Some(at) = next.revisions.iter().position(|r| r.revision_name == wanted.revision_name) {
        // Back to a revision that is still part of the rollout: it becomes the newest again.
        let back = next.revisions.remove(at);
        next.revisions.push(back);
        next.step_params = StepParams { start_time: now, ..StepParams::default() };
    } else {
        make_room(&mut next.revisions);
        next.revisions.push(RevisionRollout { revision_name: wanted.revision_name.clone(), percent: FIRST_STEP });
        next.step_params = StepParams { start_time: now, ..StepParams::default() };
    }
    if next.revisions.len() <= 1 {
        return goal.clone();
    }
    next
}

/// Takes the first step's share from the newest revision that can spare it, dropping those that cannot.
fn make_room(revisions: &mut Vec<RevisionRollout>) {
    let mut needed = FIRST_STEP;
    while needed > 0 {
        let Some(newest) = revisions.last_mut() else { return };
        if newest.percent > needed {
            newest.percent -= needed;
            return;
        }
        needed -= newest.percent;
        revisions.pop();
    }
}

/// Moves one step to the newest revision, from those that are next to it in age.
fn advance(rollout: &mut ConfigurationRollout, now: i64) {
    let size = rollout.step_params.step_size.max(1);
    let Some(newest) = rollout.revisions.pop() else { return };
    rollout.revisions.reverse();
    let moved = drain(&mut rollout.revisions, size);
    rollout.revisions.reverse();
    rollout.revisions.push(RevisionRollout { percent: newest.percent + moved, ..newest });
    rollout.step_params.next_step_time = now.saturating_add(rollout.step_params.step_duration);
}

/// Brings the sum to `percent`: more goes to the newest, less is taken from the oldest.
fn adjust(revisions: &mut Vec<RevisionRollout>, percent: i64) {
    let difference = percent - revisions.iter().map(|r| r.percent).sum::<i64>();
    if difference > 0 {
        if let Some(newest) = revisions.last_mut() {
            newest.percent += difference;
        }
    } else if difference < 0 {
        drain(revisions, -difference);
    }
}

/// Takes `amount` from the front, dropping what becomes empty; returns what could be taken.
fn drain(revisions: &mut Vec<RevisionRollout>, amount: i64) -> i64 {
    let mut left = amount;
    while left > 0 {
        let Some(first) = revisions.first_mut() else { break };
        if first.percent > left {
            first.percent -= left;
            return amount;
        }
        left -= first.percent;
        revisions.remove(0);
    }
    amount - left
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}
