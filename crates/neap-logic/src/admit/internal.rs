//! The kinds users seldom write: autoscaling, networking, certificates (facts A6.2 to A6.6, F1).

use serde_json::Value;

use super::annotations;
use super::field_error::Errors;
use super::serving::Incoming;
use super::view::{is_set, items, list_mut, only, text};

/// PodAutoscaler.
pub(super) fn pod_autoscaler(x: &mut Incoming<'_>) -> Errors {
    annotations::default_autoscaling(&mut x.value, x.settings);
    let value = &x.value;
    let meta = &value["metadata"];
    let spec = &value["spec"];
    let target = &spec["scaleTargetRef"];
    let mut errors = only(target, &["apiVersion", "kind", "name"]);
    for field in ["apiVersion", "kind", "name"] {
        if text(target, field).is_empty() {
            errors.add(Errors::missing(&[field]));
        }
    }
    let mut errors = errors.via_field("scaleTargetRef");
    if text(spec, "protocolType").is_empty() {
        errors.add(Errors::missing(&["protocolType"]));
    }
    let most = x.settings.defaults.container_concurrency_max_limit;
    if let Some(concurrency) = spec["containerConcurrency"].as_i64().filter(|c| !(0..=most).contains(c)) {
        errors.add(Errors::out_of_bounds(concurrency, 0, most, "containerConcurrency"));
    }
    annotations::name(meta)
        .and(annotations::autoscaling(&meta["annotations"], &x.settings.autoscaler).via_field("annotations"))
        .via_field("metadata")
        .and(errors.via_field("spec"))
}

/// Metric.
pub(super) fn metric(x: &mut Incoming<'_>) -> Errors {
    let spec = &x.value["spec"];
    let empty = spec.as_object().is_none_or(|fields| !fields.values().any(is_set));
    let errors = if empty { Errors::missing(&["spec"]) } else { Errors::none() };
    annotations::name(&x.value["metadata"]).via_field("metadata").and(errors)
}

/// ServerlessService.
pub(super) fn serverless_service(x: &mut Incoming<'_>) -> Errors {
    let spec = &x.value["spec"];
    let mut errors = Errors::none();
    match text(spec, "mode") {
        "Serve" | "Proxy" => {}
        "" => errors.add(Errors::missing(&["mode"])),
        other => errors.add(Errors::invalid(other, "mode")),
    }
    if let Some(n) = spec["numActivators"].as_i64().filter(|n| *n < 0) {
        errors.add(Errors::invalid(n, "numActivators"));
    }
    let target = &spec["objectRef"];
    for field in ["apiVersion", "kind", "name"] {
        if text(target, field).is_empty() {
            errors.add(Errors::missing(&[field]).via_field("objectRef"));
        }
    }
    if text(spec, "protocolType").is_empty() {
        errors.add(Errors::missing(&["protocolType"]));
    }
    errors.via_field("spec")
}

/// Certificate.
pub(super) fn certificate(x: &mut Incoming<'_>) -> Errors {
    let spec = &x.value["spec"];
    let mut errors = Errors::none();
    let names: Vec<&str> = items(&spec["dnsNames"]).iter().filter_map(Value::as_str).collect();
    if names.is_empty() {
        errors.add(Errors::missing(&["dnsNames"]));
    }
    for (i, _) in names.iter().enumerate().filter(|(_, name)| name.is_empty()) {
        errors.add(Errors::invalid("", "").via_field_index("dnsNames", i));
    }
    let domain = text(spec, "domain");
    if !domain.is_empty() && !names.iter().any(|name| *name == domain || name.ends_with(&format!(".{domain}"))) {
        errors.add(Errors::invalid(domain, "domain"));
    }
    if text(spec, "secretName").is_empty() {
        errors.add(Errors::missing(&["secretName"]));
    }
    errors.via_field("spec")
}

/// Ingress.
pub(super) fn ingress(x: &mut Incoming<'_>) -> Errors {
    default_ingress(&mut x.value);
    let namespace = text(&x.value["metadata"], "namespace");
    let spec = &x.value["spec"];
    let mut errors = Errors::none();
    if items(&spec["rules"]).is_empty() {
        errors.add(Errors::missing(&["rules"]));
    }
    for (i, rule) in items(&spec["rules"]).iter().enumerate() {
        errors.add(self::rule(rule, namespace).via_field_index("rules", i));
    }
    for (i, tls) in items(&spec["tls"]).iter().enumerate() {
        let mut wrong = Errors::none();
        if items(&tls["hosts"]).is_empty() {
            wrong.add(Errors::missing(&["hosts"]));
        }
        for field in ["secretName", "secretNamespace"] {
            if text(tls, field).is_empty() {
                wrong.add(Errors::missing(&[field]));
            }
        }
        errors.add(wrong.via_field_index("tls", i));
    }
    errors.via_field("spec")
}

fn default_ingress(value: &mut Value) {
    let Some(spec) = value.get_mut("spec").filter(|s| s.is_object()) else { return };
    if text(spec, "httpOption").is_empty() {
        spec["httpOption"] = "Enabled".into();
    }
    for rule in list_mut(spec, "rules").iter_mut().filter(|r| r.is_object()) {
        if text(rule, "visibility").is_empty() {
            rule["visibility"] = "ExternalIP".into();
        }
        let Some(http) = rule.get_mut("http") else { continue };
        for path in list_mut(http, "paths") {
            // One backend gets everything.
            if let [only] = list_mut(path, "splits")
                && only.is_object()
                && only["percent"].as_i64().unwrap_or(0) == 0
            {
                only["percent"] = 100.into();
            }
        }
    }
}

fn rule(rule: &Value, namespace: &str) -> Errors {
    if rule.as_object().is_none_or(serde_json::Map::is_empty) {
        return Errors::missing(&[""]);
    }
    let mut errors = Errors::none();
    if items(&rule["hosts"]).is_empty() {
        errors.add(Errors::missing(&["hosts"]));
    }
    match text(rule, "visibility") {
        "" | "ExternalIP" | "ClusterLocal" => {}
        other => errors.add(Errors::invalid(other, "visibility")),
    }
    if rule["http"].is_null() {
        errors.add(Errors::missing(&["http"]));
        return errors;
    }
    let paths = items(&rule["http"]["paths"]);
    if paths.is_empty() {
        errors.add(Errors::missing(&["http.paths"]));
    }
    for (i, path) in paths.iter().enumerate() {
        errors.add(self::path(path, namespace).via_field_index("paths", i).via_field("http"));
    }
    errors
}

fn path(path: &Value, namespace: &str) -> Errors {
    let splits = items(&path["splits"]);
    if splits.is_empty() {
        return Errors::missing(&["splits"]);
    }
    let mut errors = Errors::none();
    let mut sum = 0i64;
    for (i, split) in splits.iter().enumerate() {
        let mut wrong = Errors::none();
        let percent = split["percent"].as_i64().unwrap_or(0);
        if !(0..=100).contains(&percent) {
            wrong.add(Errors::out_of_bounds(percent, 0, 100, "percent"));
        }
        sum = sum.saturating_add(percent);
        for field in ["serviceName", "serviceNamespace"] {
            if text(split, field).is_empty() {
                wrong.add(Errors::missing(&[field]));
            }
        }
        let backend = text(split, "serviceNamespace");
        if !backend.is_empty() && backend != namespace {
            wrong.add(Errors::invalid("service namespace must match ingress namespace", "serviceNamespace"));
        }
        let port = &split["servicePort"];
        if port.is_null() || port == 0 || port == "" {
            wrong.add(Errors::missing(&["servicePort"]));
        }
        errors.add(wrong.via_field_index("splits", i));
    }
    if sum != 100 {
        errors.add(Errors::of(format!("traffic split percentage must total to 100, but was {sum}"), &["splits"]));
    }
    errors
}
