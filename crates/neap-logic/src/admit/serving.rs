//! Service, Configuration, Revision, Route and DomainMapping (facts A2 to A6).

use neap_api::keys::serving as keys;
use serde_json::{Value, json};

use super::annotations;
use super::defaults;
use super::field_error::Errors;
use super::podspec;
use super::template;
use super::view::{difference, is_set, items, list_mut, text};
use crate::config::Settings;
use crate::convert;
use crate::names::is_fqdn;

/// An object on its way in.
pub(super) struct Incoming<'a> {
    pub(super) value: Value,
    pub(super) old: Option<&'a Value>,
    pub(super) user: &'a str,
    pub(super) settings: &'a Settings,
}

fn is_owned(value: &Value) -> bool {
    !items(&value["metadata"]["ownerReferences"]).is_empty()
}

/// Service.
pub(super) fn service(x: &mut Incoming<'_>) -> Errors {
    // A Service that owns nothing says nothing of what to run, and is given nothing to say.
    let manual = convert::is_manual(&x.value);
    if manual {
        x.value["spec"] = json!({});
    } else {
        template::default(&mut x.value, x.old, x.settings);
        let spec = &mut x.value["spec"];
        if items(&spec["traffic"]).is_empty() {
            spec["traffic"] = json!([{"latestRevision": true, "percent": 100}]);
        }
        default_traffic(spec);
    }
    annotations::set_user(&mut x.value, x.old, x.user);

    let value = &x.value;
    let meta = &value["metadata"];
    let mut errors = annotations::name(meta)
        .and(annotations::no_autoscaling(&meta["annotations"]).via_field("annotations"))
        .and(annotations::rollout(&meta["annotations"]).via_field("annotations"))
        .and(annotations::beyond(meta, Some(&annotations::tags(&value["spec"]))))
        .via_field("metadata");
    if !manual {
        errors.add(template::validate(&value["spec"]["template"], meta, x.settings).via_field("spec.template"));
        errors.add(traffic(&value["spec"]["traffic"], true).via_field("spec"));
    }
    if let Some(old) = x.old {
        errors.add(annotations::user_unchanged(value, old));
        errors.add(
            template::name_change(&value["spec"]["template"], &old["spec"]["template"]).via_field("spec.template"),
        );
    }
    errors
}

/// Configuration.
pub(super) fn configuration(x: &mut Incoming<'_>) -> Errors {
    template::default(&mut x.value, x.old, x.settings);
    let owned = is_owned(&x.value);
    if !owned {
        annotations::set_user(&mut x.value, x.old, x.user);
    }
    let value = &x.value;
    let meta = &value["metadata"];
    let mut errors = annotations::name(meta)
        .and(annotations::no_autoscaling(&meta["annotations"]).via_field("annotations"))
        .and(owner_label(meta, keys::SERVICE, "Service").via_field("labels"))
        .via_field("metadata");
    errors.add(template::validate(&value["spec"]["template"], meta, x.settings).via_field("spec.template"));
    if let Some(old) = x.old {
        if !owned {
            errors.add(annotations::user_unchanged(value, old));
        }
        errors.add(
            template::name_change(&value["spec"]["template"], &old["spec"]["template"]).via_field("spec.template"),
        );
    }
    errors
}

/// A label that names an owner needs that owner.
fn owner_label(meta: &Value, key: &str, kind: &str) -> Errors {
    let Some(name) = meta["labels"][key].as_str() else { return Errors::none() };
    let owned = items(&meta["ownerReferences"]).iter().any(|o| o["kind"] == kind && o["name"] == name);
    if owned { Errors::none() } else { Errors::missing(&[key]) }
}

/// Revision.
pub(super) fn revision(x: &mut Incoming<'_>) -> Errors {
    let Some(old) = x.old else {
        let parent = x.value["metadata"].clone();
        defaults::revision(&mut x.value["spec"], &parent, true, x.settings);
        let value = &x.value;
        let meta = &value["metadata"];
        return annotations::name(meta)
            .and(annotations::autoscaling(&meta["annotations"], &x.settings.autoscaler).via_field("annotations"))
            .and(annotations::sidecar(&meta["annotations"]).via_field("annotations"))
            .and(owner_label(meta, keys::CONFIGURATION, "Configuration").via_field("labels"))
            .via_field("metadata")
            .and(template::revision_spec(&value["spec"], x.settings).via_field("spec"));
    };
    let value = &x.value;
    let mut errors = annotations::name(&value["metadata"])
        .and(
            annotations::autoscaling(&value["metadata"]["annotations"], &x.settings.autoscaler)
                .via_field("annotations"),
        )
        .and(owner_label(&value["metadata"], keys::CONFIGURATION, "Configuration").via_field("labels"))
        .via_field("metadata");
    if value["spec"] != old["spec"] {
        let changes = difference(&old["spec"], &value["spec"]);
        errors.add(Errors::of("Immutable fields changed (-old +new)", &["spec"]).details(changes));
    }
    errors
}

/// Route.
pub(super) fn route(x: &mut Incoming<'_>) -> Errors {
    if !x.value["spec"].is_object() {
        x.value["spec"] = json!({});
    }
    default_traffic(&mut x.value["spec"]);
    let owned = is_owned(&x.value);
    if !owned {
        annotations::set_user(&mut x.value, x.old, x.user);
    }
    let value = &x.value;
    let meta = &value["metadata"];
    let mut errors = annotations::name(meta)
        .and(annotations::no_autoscaling(&meta["annotations"]).via_field("annotations"))
        .and(annotations::rollout(&meta["annotations"]).via_field("annotations"))
        .and(annotations::beyond(meta, Some(&annotations::tags(&value["spec"]))))
        .and(owner_label(meta, keys::SERVICE, "Service").via_field("labels"))
        .via_field("metadata");
    errors.add(traffic(&value["spec"]["traffic"], false).via_field("spec"));
    if let Some(old) = x.old.filter(|_| !owned) {
        errors.add(annotations::user_unchanged(value, old));
    }
    errors
}

fn default_traffic(spec: &mut Value) {
    for target in list_mut(spec, "traffic").iter_mut().filter(|t| t.is_object()) {
        if target["latestRevision"].is_null() {
            target["latestRevision"] = text(target, "revisionName").is_empty().into();
        }
        if target["percent"].is_null() {
            target["percent"] = 0.into();
        }
    }
}

fn traffic(targets: &Value, in_service: bool) -> Errors {
    let mut errors = Errors::none();
    let mut sum = 0i64;
    let mut tags: Vec<(&str, usize)> = Vec::new();
    for (i, one) in items(targets).iter().enumerate() {
        errors.add(target(one, in_service).via_index(i).via_field("traffic"));
        sum = sum.saturating_add(one["percent"].as_i64().unwrap_or(0));
        let tag = text(one, "tag");
        if tag.is_empty() {
            continue;
        }
        // The index stands behind the field, as upstream has it.
        if let Some(problems) = annotations::label_problems(tag) {
            errors.add(
                Errors::invalid(format!("not a DNS 1035 label: {problems}"), &format!("tag[{i}]")).via_field("traffic"),
            );
        }
        match tags.iter().find(|(seen, _)| *seen == tag) {
            Some((_, first)) => {
                let paths = [format!("traffic[{first}].tag"), format!("traffic[{i}].tag")];
                errors.add(Errors::of(format!("Multiple definitions for {tag:?}"), &[&paths[0], &paths[1]]));
            }
            None => tags.push((tag, i)),
        }
    }
    if sum != 100 {
        errors.add(Errors::of(format!("Traffic targets sum to {sum}, want 100"), &["traffic"]));
    }
    errors
}

fn target(target: &Value, in_service: bool) -> Errors {
    let mut errors = Errors::none();
    let (revision, configuration) = (text(target, "revisionName"), text(target, "configurationName"));
    let latest = target["latestRevision"].as_bool();
    if let Some(latest) = latest.filter(|latest| *latest != revision.is_empty()) {
        let message = format!("may not set revisionName {revision:?} when latestRevision is {latest}");
        errors.add(Errors::of(message, &["latestRevision"]));
    }
    match (revision.is_empty(), configuration.is_empty()) {
        (_, false) if in_service => errors.add(Errors::disallowed(&["configurationName"])),
        (false, false) => errors.add(Errors::both(&["revisionName", "configurationName"])),
        (false, true) => errors.add(qualified(revision, "revisionName")),
        (true, false) => errors.add(qualified(configuration, "configurationName")),
        (true, true) if in_service => {}
        (true, true) => errors.add(Errors::neither(&["revisionName", "configurationName"])),
    }
    if let Some(percent) = target["percent"].as_i64().filter(|p| !(0..=100).contains(p)) {
        errors.add(Errors::out_of_bounds(percent, 0, 100, "percent"));
    }
    if is_set(&target["url"]) {
        errors.add(Errors::disallowed(&["url"]));
    }
    errors
}

/// How Kubernetes words the rule.
const QUALIFIED_RULE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

fn qualified(name: &str, field: &str) -> Errors {
    match crate::names::is_qualified_name(name) {
        true => Errors::none(),
        false => Errors::invalid_key(name, field).details(QUALIFIED_RULE),
    }
}

/// DomainMapping.
pub(super) fn domain_mapping(x: &mut Incoming<'_>) -> Errors {
    let namespace = x.value["metadata"]["namespace"].clone();
    let reference = &mut x.value["spec"]["ref"];
    if reference.is_object() && text(reference, "namespace").is_empty() && namespace.is_string() {
        reference["namespace"] = namespace;
    }
    annotations::set_user(&mut x.value, x.old, x.user);

    let value = &x.value;
    let meta = &value["metadata"];
    let mut errors = Errors::none();
    if is_set(&meta["generateName"]) {
        errors.add(Errors::disallowed(&["metadata.generateName"]));
    }
    let name = text(meta, "name");
    let cluster_domain = &x.settings.neap.cluster_domain;
    if let Some(problem) = domain_problem(name) {
        let message = format!("invalid name {name:?}: name: Invalid value: {name:?}: {problem}");
        errors.add(Errors::of(message, &["metadata.name"]));
    }
    if name.ends_with(&format!(".{cluster_domain}")) {
        let message =
            format!("invalid name {name:?}: must not be a subdomain of cluster local domain {cluster_domain:?}");
        errors.add(Errors::of(message, &["metadata.name"]));
    }
    errors.add(annotations::beyond(meta, None).via_field("metadata"));
    errors.add(self::reference(&value["spec"]["ref"], text(meta, "namespace")).via_field("ref").via_field("spec"));
    if !value["spec"]["tls"].is_null() && text(&value["spec"]["tls"], "secretName").is_empty() {
        errors.add(Errors::missing(&["spec.tls.secretName"]));
    }
    if let Some(old) = x.old {
        errors.add(annotations::user_unchanged(value, old));
    }
    errors
}

/// Why a name is no fully qualified domain name, in Kubernetes' words.
fn domain_problem(name: &str) -> Option<&'static str> {
    let bare = name.strip_suffix('.').unwrap_or(name);
    if !crate::names::is_dns1123_subdomain(bare) {
        return Some(podspec::SUBDOMAIN_RULE);
    }
    if !bare.contains('.') {
        return Some("should be a domain with at least two segments separated by dots");
    }
    (!is_fqdn(name)).then_some("must be no more than 63 characters")
}

fn reference(reference: &Value, own_namespace: &str) -> Errors {
    let mut errors = Errors::none();
    for field in ["name", "kind"] {
        if text(reference, field).is_empty() {
            errors.add(Errors::missing(&[field]));
        }
    }
    if !text(reference, "group").is_empty() {
        errors.add(Errors::disallowed(&["group"]));
    }
    if text(reference, "apiVersion").is_empty() {
        errors.add(Errors::missing(&["apiVersion"]));
    }
    let namespace = text(reference, "namespace");
    if !namespace.is_empty() && namespace != own_namespace {
        errors.add(
            Errors::of("mismatched namespaces", &["namespace"])
                .details(format!("parent namespace: {own_namespace:?} does not match ref: {namespace:?}")),
        );
    }
    errors
}
