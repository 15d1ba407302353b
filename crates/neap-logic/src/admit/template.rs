//! The revision template inside a Service or a Configuration, and a Revision's own spec (facts A4).

use serde_json::{Value, json};

use super::annotations;
use super::defaults;
use super::field_error::Errors;
use super::podspec;
use super::view::{difference, text};
use crate::config::Settings;

/// The fields a revision has beside its pod's.
const OWN_FIELDS: [&str; 4] =
    ["containerConcurrency", "timeoutSeconds", "responseStartTimeoutSeconds", "idleTimeoutSeconds"];

/// Fills in the template of a Service or a Configuration. A template whose name the user chose and kept is
/// left as it is, since what it made cannot change any more, unless filling it in makes it what it was: an apply of
/// the same manifest sends its lists without what had been filled in, and changes nothing by that.
pub(super) fn default(value: &mut Value, old: Option<&Value>, settings: &Settings) {
    let name = |object: &Value| text(&object["spec"]["template"]["metadata"], "name").to_owned();
    let kept = old.filter(|old| !name(value).is_empty() && name(value) == name(old));
    let parent = value["metadata"].clone();
    if let Some(old) = kept {
        let old = &old["spec"]["template"];
        let mut filled = value["spec"]["template"].clone();
        defaults::revision(&mut filled["spec"], &parent, false, settings);
        if filled == *old {
            value["spec"]["template"] = filled;
        }
        return;
    }
    if !value["spec"].is_object() {
        value["spec"] = json!({});
    }
    let template = &mut value["spec"]["template"];
    if !template.is_object() {
        *template = json!({});
    }
    defaults::revision(&mut template["spec"], &parent, old.is_none(), settings);
}

/// Checks a template; `parent` is the metadata of what it belongs to.
pub(super) fn validate(template: &Value, parent: &Value, settings: &Settings) -> Errors {
    let given = &template["metadata"]["annotations"];
    let notes = annotations::autoscaling(given, &settings.autoscaler)
        .and(annotations::networking(given))
        .and(annotations::sidecar(given))
        .and(annotations::progress_deadline(given))
        .via_field("metadata.annotations");
    revision_spec(&template["spec"], settings)
        .via_field("spec")
        .and(notes)
        .and(revision_name(&template["metadata"], parent))
}

fn revision_name(meta: &Value, parent: &Value) -> Errors {
    let generate = text(meta, "generateName");
    if let Some(problems) = Some(generate).filter(|g| !g.is_empty()).and_then(annotations::prefix_problems) {
        return Errors::invalid(format!("not a DNS 1035 label prefix: {problems}"), "metadata.generateName");
    }
    let name = text(meta, "name");
    if name.is_empty() {
        return Errors::none();
    }
    if let Some(problems) = annotations::label_problems(name) {
        return Errors::invalid(format!("not a DNS 1035 label: {problems}"), "metadata.name");
    }
    match text(parent, "name") {
        // A name cannot begin with one that does not exist yet.
        "" if !text(parent, "generateName").is_empty() => Errors::disallowed(&["metadata.name"]),
        "" => Errors::none(),
        parent if name.starts_with(&format!("{parent}-")) => Errors::none(),
        parent => Errors::invalid(format!("{name:?} must have prefix {:?}", format!("{parent}-")), "metadata.name"),
    }
}

/// A name the user chose stands for one template forever.
pub(super) fn name_change(template: &Value, old: &Value) -> Errors {
    let name = text(&template["metadata"], "name");
    if name.is_empty() || name != text(&old["metadata"], "name") || template == old {
        return Errors::none();
    }
    Errors::of("Saw the following changes without a name change (-old +new)", &["metadata.name"])
        .details(difference(old, template))
}

/// Checks a revision's spec.
pub(super) fn revision_spec(spec: &Value, settings: &Settings) -> Errors {
    let d = &settings.defaults;
    let mut errors = podspec::validate(spec, &OWN_FIELDS, settings);
    // The two shorter timeouts have no rule: what is longer than the whole never strikes (A4.3, A4.4).
    if let Some(total) = spec["timeoutSeconds"].as_i64().filter(|t| !(0..=d.max_timeout_seconds).contains(t)) {
        errors.add(Errors::out_of_bounds(total, 0, d.max_timeout_seconds, "timeoutSeconds"));
    }
    let least = i64::from(!d.allow_container_concurrency_zero);
    let most = d.container_concurrency_max_limit;
    if let Some(concurrency) = spec["containerConcurrency"].as_i64().filter(|c| !(least..=most).contains(c)) {
        errors.add(Errors::out_of_bounds(concurrency, least, most, "containerConcurrency"));
    }
    errors
}
