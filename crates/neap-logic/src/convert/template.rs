//! Configuration and Revision specs: `revisionTemplate`, `container`, `concurrencyModel`, `servingState`, builds (facts
//! I5, I6).

use neap_api::keys::serving;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::memo::{ConfigurationMemo, RevisionMemo, ServingState};
use super::{Fields, present, remove_from, show_generation, take, take_generation, words};
use crate::admit::field_error::Errors;

/// Why a build is refused: there is nothing here that would run it.
const NO_BUILDS: &str =
    "cannot be converted, nothing builds images here (build it beforehand and name the image in the container)";

const CONTAINER: &str = "container";
const CONTAINERS: &str = "containers";
const CONCURRENCY: &str = "containerConcurrency";
const MODEL: &str = "concurrencyModel";
const STATE: &str = "servingState";

pub(super) fn configuration_to_stored(spec: &mut Fields, memo: &mut ConfigurationMemo) -> Errors {
    memo.generation = take_generation(spec);
    let mut errors = no_builds(spec, &["build"]);
    let templates = present(spec, &["revisionTemplate", "template"]);
    if templates.len() > 1 {
        errors.add(Errors::both(&templates));
        return errors;
    }
    let field = templates.first().copied().unwrap_or("template");
    memo.revision_template = field == "revisionTemplate";
    if let Some(mut template) = take(spec, field) {
        if let Some(revision) = template.get_mut("spec").and_then(Value::as_object_mut) {
            errors.add(revision_to_stored(revision, &mut memo.revision).via_field("spec").via_field(field));
        }
        spec.insert("template".into(), template);
    }
    // A null beside the form that was used is nothing.
    take_null(spec, "revisionTemplate");
    errors
}

pub(super) fn configuration_to_old(spec: &mut Fields, memo: &ConfigurationMemo, generation: Option<i64>) {
    show_generation(spec, memo.generation, generation);
    if let Some(revision) = spec.get_mut("template").and_then(|t| t.get_mut("spec")).and_then(Value::as_object_mut) {
        // A template is counted by nobody: what was written stays.
        revision_to_old(revision, &memo.revision, None);
    }
    if memo.revision_template
        && let Some(template) = spec.remove("template")
    {
        spec.insert("revisionTemplate".into(), template);
    }
}

pub(super) fn revision_to_stored(spec: &mut Fields, memo: &mut RevisionMemo) -> Errors {
    memo.generation = take_generation(spec);
    let mut errors = no_builds(spec, &["buildName", "buildRef"]);
    let containers = present(spec, &[CONTAINER, CONTAINERS]);
    if containers.len() > 1 {
        errors.add(Errors::both(&containers));
    } else if let Some(container) = take(spec, CONTAINER) {
        memo.container = true;
        spec.insert(CONTAINERS.into(), json!([container]));
    }
    take_null(spec, CONTAINER);
    memo.concurrency_model = known(spec, MODEL, &mut errors);
    memo.serving_state = known(spec, STATE, &mut errors);
    if let Some(model) = memo.concurrency_model {
        match spec.get(CONCURRENCY).and_then(Value::as_i64) {
            // Zero was the same as nothing.
            None | Some(0) => {
                memo.implied_concurrency = true;
                spec.insert(CONCURRENCY.into(), model.concurrency().into());
            }
            Some(written) if !model.allows(written) => errors.add(Errors::both(&[MODEL, CONCURRENCY])),
            Some(_) => {}
        }
    }
    errors
}

pub(super) fn revision_to_old(spec: &mut Fields, memo: &RevisionMemo, generation: Option<i64>) {
    show_generation(spec, memo.generation, generation);
    let alone = spec.get(CONTAINERS).and_then(Value::as_array).is_some_and(|list| list.len() == 1);
    if memo.container
        && alone
        && let Some(Value::Array(mut list)) = spec.remove(CONTAINERS)
    {
        spec.insert(CONTAINER.into(), list.swap_remove(0));
    }
    let concurrency = spec.get(CONCURRENCY).and_then(Value::as_i64).unwrap_or(0);
    if let Some(model) = memo.concurrency_model.filter(|model| model.allows(concurrency)) {
        spec.insert(MODEL.into(), json!(model));
        if memo.implied_concurrency && concurrency == model.concurrency() {
            spec.remove(CONCURRENCY);
        }
    }
    if let Some(state) = memo.serving_state {
        spec.insert(STATE.into(), json!(state));
    }
}

/// Labels a Revision with the routing state that a serving state stands for; says whether that is this function's doing.
pub(super) fn set_routing_state(object: &mut Value, state: ServingState) -> bool {
    // Whoever wrote both is taken at today's word.
    let Some(labels) = words(object, "labels").filter(|labels| !labels.contains_key(serving::ROUTING_STATE)) else {
        return false;
    };
    labels.insert(serving::ROUTING_STATE.into(), state.routing_state().into());
    true
}

/// Shows the serving state that the routing state stands for now, and hides the label that was made from it.
pub(super) fn hide_routing_state(object: &mut Value, memo: &mut RevisionMemo) {
    let Some(written) = memo.serving_state else { return };
    let label = object["metadata"]["labels"][serving::ROUTING_STATE].as_str().unwrap_or_default();
    if label == written.routing_state() {
        if memo.labelled {
            remove_from(object, "labels", serving::ROUTING_STATE);
        }
    } else {
        memo.serving_state = ServingState::of(label);
    }
}

fn no_builds(spec: &mut Fields, fields: &[&str]) -> Errors {
    let mut errors = Errors::none();
    for field in fields {
        if take(spec, field).is_some_and(|value| value != "") {
            errors.add(Errors::of(NO_BUILDS, &[field]));
        }
    }
    errors
}

/// Takes out a field that has one of a few words; empty is as if it were not there.
fn known<T: DeserializeOwned>(spec: &mut Fields, field: &str, errors: &mut Errors) -> Option<T> {
    let value = take(spec, field).filter(|value| *value != "")?;
    let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let known = serde_json::from_value(value).ok();
    if known.is_none() {
        errors.add(Errors::invalid(shown, field));
    }
    known
}

fn take_null(spec: &mut Fields, field: &str) {
    if spec.get(field).is_some_and(Value::is_null) {
        spec.remove(field);
    }
}
