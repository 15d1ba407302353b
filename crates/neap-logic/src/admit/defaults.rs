//! What a revision template gets that does not say (facts A2.7, A4.22).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::view::{items, list_mut, object, text};
use crate::config::features::SecurePodDefaults;
use crate::config::{Defaults, Settings};
use crate::names::child_name;

/// Fills in a revision spec. `parent` is the metadata names of containers may be made from; `creating` says
/// whether the object is new.
pub(super) fn revision(spec: &mut Value, parent: &Value, creating: bool, settings: &Settings) {
    if !spec.is_object() {
        *spec = json!({});
    }
    let d = &settings.defaults;
    timeouts(spec, d);
    if spec["containerConcurrency"].is_null() {
        spec["containerConcurrency"] = d.container_concurrency.into();
    }
    names(spec, parent, d);
    if let Some(links) = d.enable_service_links.filter(|_| creating && spec["enableServiceLinks"].is_null()) {
        spec["enableServiceLinks"] = links.into();
    }
    let writable: BTreeSet<String> = items(&spec["volumes"])
        .iter()
        .filter(|v| ["emptyDir", "persistentVolumeClaim", "ephemeral"].iter().any(|kind| !v[*kind].is_null()))
        .map(|v| text(v, "name").to_owned())
        .collect();
    let alone = items(&spec["containers"]).len() == 1;
    let secure = settings.features.secure_pod_defaults;
    let pod_context = spec["securityContext"].clone();
    for container in list_mut(spec, "containers") {
        resources(container, d);
        if alone || !items(&container["ports"]).is_empty() {
            serving_readiness(container);
        }
        probes(container);
        read_only(container, &writable);
        secure_container(container, &pod_context, secure);
    }
    for container in list_mut(spec, "initContainers") {
        read_only(container, &writable);
        secure_container(container, &pod_context, secure);
    }
}

fn timeouts(spec: &mut Value, d: &Defaults) {
    if spec["timeoutSeconds"].as_i64().unwrap_or(0) == 0 {
        spec["timeoutSeconds"] = d.timeout_seconds.into();
    }
    let total = spec["timeoutSeconds"].as_i64().unwrap_or(d.timeout_seconds);
    for (field, default) in [
        ("responseStartTimeoutSeconds", d.response_start_timeout_seconds),
        ("idleTimeoutSeconds", d.idle_timeout_seconds),
    ] {
        if spec[field].is_null() && default != 0 && default < total {
            spec[field] = default.into();
        }
    }
}

fn names(spec: &mut Value, parent: &Value, d: &Defaults) {
    let of = |spec: &Value, field: &str| {
        items(&spec[field]).iter().map(|c| text(c, "name").to_owned()).filter(|n| !n.is_empty()).collect::<Vec<_>>()
    };
    let mut taken: BTreeSet<String> = of(spec, "containers").into_iter().chain(of(spec, "initContainers")).collect();
    // Go's template sees the parent's metadata with capitalised fields.
    let context = json!({
        "Name": text(parent, "name"),
        "Namespace": text(parent, "namespace"),
        "Labels": parent["labels"].as_object().cloned().unwrap_or_default(),
        "Annotations": parent["annotations"].as_object().cloned().unwrap_or_default(),
    });
    for (field, template, fallback) in [
        ("containers", &d.container_name, crate::config::defaults::CONTAINER_NAME),
        ("initContainers", &d.init_container_name, crate::config::defaults::INIT_CONTAINER_NAME),
    ] {
        let base =
            template.render(&context).ok().filter(|name| !name.is_empty()).unwrap_or_else(|| fallback.to_owned());
        let containers = list_mut(spec, field);
        let several = containers.len() > 1;
        let mut suffix = 0;
        for container in containers.iter_mut().filter(|c| c.is_object() && text(c, "name").is_empty()) {
            let mut name = base.clone();
            if several || taken.contains(&name) {
                loop {
                    name = child_name(&base, &format!("-{suffix}"));
                    suffix += 1;
                    if !taken.contains(&name) {
                        break;
                    }
                }
            }
            container["name"] = name.clone().into();
            taken.insert(name);
        }
    }
}

fn resources(container: &mut Value, d: &Defaults) {
    for (field, defaults) in [("requests", &d.requests), ("limits", &d.limits)] {
        for (resource, amount) in defaults {
            if !container.is_object() || !container["resources"][field][resource].is_null() {
                continue;
            }
            let resources = object(container, "resources");
            let held = resources.entry(field).or_insert_with(|| json!({}));
            if held.is_null() {
                *held = json!({});
            }
            held[resource] = amount.clone().into();
        }
    }
}

/// Who serves is asked whether it is ready; by default, whether it listens.
fn serving_readiness(container: &mut Value) {
    if !container.is_object() {
        return;
    }
    let probe = object(container, "readinessProbe");
    let has = |probe: &serde_json::Map<String, Value>, key: &str| probe.get(key).is_some_and(|v| !v.is_null());
    if !["httpGet", "tcpSocket", "exec", "grpc"].iter().any(|handler| has(probe, handler)) {
        probe.insert("tcpSocket".into(), json!({"port": 0}));
    }
}

/// What the probes that are there do not say.
fn probes(container: &mut Value) {
    for field in ["readinessProbe", "livenessProbe", "startupProbe"] {
        if let Some(grpc) = container.pointer_mut(&format!("/{field}/grpc")).and_then(Value::as_object_mut) {
            grpc.entry("service").or_insert_with(|| "".into());
        }
    }
    let Some(probe) = container.get_mut("readinessProbe").and_then(Value::as_object_mut) else { return };
    let number =
        |probe: &serde_json::Map<String, Value>, key: &str| probe.get(key).and_then(Value::as_i64).unwrap_or(0);
    if number(probe, "successThreshold") == 0 {
        probe.insert("successThreshold".into(), 1.into());
    }
    if number(probe, "periodSeconds") != 0 {
        for (field, default) in [("failureThreshold", 3), ("timeoutSeconds", 1)] {
            if number(probe, field) == 0 {
                probe.insert(field.into(), default.into());
            }
        }
    }
}

fn read_only(container: &mut Value, writable: &BTreeSet<String>) {
    for mount in list_mut(container, "volumeMounts") {
        if mount.is_object() && !writable.contains(text(mount, "name")) {
            mount["readOnly"] = true.into();
        }
    }
}

/// The ports below this one need a capability.
const FIRST_FREE_PORT: i64 = 1024;

fn secure_container(container: &mut Value, pod_context: &Value, secure: SecurePodDefaults) {
    if secure == SecurePodDefaults::Disabled || !container.is_object() {
        return;
    }
    let low_port =
        items(&container["ports"]).iter().any(|p| p["containerPort"].as_i64().unwrap_or_default() < FIRST_FREE_PORT);
    let context = object(container, "securityContext");
    context.entry("allowPrivilegeEscalation").or_insert(false.into());
    if text(&pod_context["seccompProfile"], "type").is_empty() {
        let profile = context.entry("seccompProfile").or_insert_with(|| json!({}));
        if text(profile, "type").is_empty() {
            profile["type"] = "RuntimeDefault".into();
        }
    }
    if !context.contains_key("capabilities") {
        let mut capabilities = json!({"drop": ["ALL"]});
        if low_port {
            capabilities["add"] = json!(["NET_BIND_SERVICE"]);
        }
        context.insert("capabilities".into(), capabilities);
    }
    if secure == SecurePodDefaults::Enabled && pod_context["runAsNonRoot"].is_null() {
        context.entry("runAsNonRoot").or_insert(true.into());
    }
}
