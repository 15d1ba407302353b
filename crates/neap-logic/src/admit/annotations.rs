//! Rules for names, labels and annotations (facts A7.1, A7.9, A7.10, C1.9).

use std::fmt::Display;
use std::time::Duration;

use neap_api::keys::{autoscaling as keys, neap, networking, serving};
use serde_json::Value;

use super::field_error::Errors;
use super::view::{items, object, pairs, text};
use crate::config::autoscaler::WINDOW_BOUNDS;
use crate::config::go::{format_duration, parse_duration};
use crate::config::{Autoscaler, Settings, quantity};
use crate::names;
use crate::routing::IngressKey;
use crate::routing::extras::{self, RuleTarget};

/// Prefix of the annotations that size the sidecar.
const SIDECAR_PREFIX: &str = "queue.sidecar.serving.knative.dev/";
/// After the prefix: the annotations that are quantities.
const SIDECAR_AMOUNTS: [&str; 6] = [
    "cpu-resource-request",
    "cpu-resource-limit",
    "memory-resource-request",
    "memory-resource-limit",
    "ephemeral-storage-resource-request",
    "ephemeral-storage-resource-limit",
];
/// Kinds of autoscaler this platform has itself end like this.
const OWN_CLASS_SUFFIX: &str = ".knative.dev";

/// The name rule of all kinds.
pub(super) fn name(meta: &Value) -> Errors {
    let (own, generate) = (text(meta, "name"), text(meta, "generateName"));
    if let Some(problems) = Some(generate).filter(|g| !g.is_empty()).and_then(prefix_problems) {
        return Errors::of(format!("not a DNS 1035 label prefix: {problems}"), &["generateName"]);
    }
    if let Some(problems) = Some(own).filter(|n| !n.is_empty()).and_then(label_problems) {
        return Errors::of(format!("not a DNS 1035 label: {problems}"), &["name"]);
    }
    if own.is_empty() && generate.is_empty() {
        return Errors::of("name or generateName is required", &["name"]);
    }
    Errors::none()
}

/// How Kubernetes words the rule.
const LABEL_RULE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

/// What is wrong with a DNS-1035 label, as Go prints a list of texts.
pub(super) fn label_problems(label: &str) -> Option<String> {
    let mut problems = Vec::new();
    if label.len() > names::MAX_NAME {
        problems.push(format!("must be no more than {} characters", names::MAX_NAME));
    }
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let spelled = label.starts_with(|c: char| c.is_ascii_lowercase())
        && label.ends_with(edge)
        && label.chars().all(|c| edge(c) || c == '-');
    if !spelled {
        problems.push(LABEL_RULE.to_owned());
    }
    (!problems.is_empty()).then(|| format!("[{}]", problems.join(" ")))
}

/// What is wrong with what stands before a generated suffix: it may end with a dash.
pub(super) fn prefix_problems(prefix: &str) -> Option<String> {
    match prefix.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => label_problems(&format!("{}a", &rest[..rest.len() - last_len(rest)])),
        _ => label_problems(prefix),
    }
}

fn last_len(text: &str) -> usize {
    text.chars().next_back().map_or(0, char::len_utf8)
}

/// The annotations of the networking group a template may have.
const NETWORKING: [&str; 9] = [
    networking::INGRESS_CLASS,
    networking::INGRESS_CLASS_ALT,
    networking::CERTIFICATE_CLASS,
    networking::CERTIFICATE_CLASS_ALT,
    networking::DISABLE_TLS,
    networking::DISABLE_AUTO_TLS,
    networking::DISABLE_AUTO_TLS_ALT,
    networking::HTTP_OPTION,
    networking::HTTP_PROTOCOL,
];

/// Annotations of the networking group are known, or mistakes.
pub(super) fn networking(annotations: &Value) -> Errors {
    let mut errors = Errors::none();
    for (key, _) in pairs(annotations) {
        if key.starts_with(networking::PUBLIC_GROUP) && !NETWORKING.contains(&key) {
            errors.add(Errors::invalid_key(key, ""));
        }
    }
    errors
}

/// Autoscaling annotations belong on the template.
pub(super) fn no_autoscaling(annotations: &Value) -> Errors {
    let mut errors = Errors::none();
    for (key, _) in pairs(annotations).filter(|(key, _)| key.starts_with(keys::GROUP)) {
        errors.add(
            Errors::invalid_key(key, "")
                .details("autoscaling annotations must be put under \"spec.template.metadata.annotations\" to work"),
        );
    }
    errors
}

/// The duration of a gradual rollout.
pub(super) fn rollout(annotations: &Value) -> Errors {
    let Some((key, value)) =
        get(annotations, &[serving::ROLLOUT_DURATION, serving::ROLLOUT_DURATION_ALT]).filter(|(_, v)| !v.is_empty())
    else {
        return Errors::none();
    };
    match parse_duration(value) {
        None => Errors::invalid(value, key),
        Some(d) if !d.is_whole_seconds() => {
            Errors::of(format!("rollout-duration={value} is not at second precision"), &[key])
        }
        Some(d) if d.nanos < 0 => Errors::of(format!("rollout-duration={value} must be positive"), &[key]),
        Some(_) => Errors::none(),
    }
}

/// How long a revision may take.
pub(super) fn progress_deadline(annotations: &Value) -> Errors {
    let Some((key, value)) = get(annotations, &[serving::PROGRESS_DEADLINE]).filter(|(_, v)| !v.is_empty()) else {
        return Errors::none();
    };
    match parse_duration(value) {
        None => Errors::invalid(value, key),
        Some(d) if !d.is_whole_seconds() => {
            Errors::of(format!("progress-deadline={value} is not at second precision"), &[key])
        }
        Some(d) if d.nanos < 0 => Errors::of(format!("progress-deadline={value} must be positive"), &[key]),
        Some(_) => Errors::none(),
    }
}

/// The sidecar's resources.
pub(super) fn sidecar(annotations: &Value) -> Errors {
    let mut errors = Errors::none();
    for (key, value) in pairs(annotations) {
        let Some(what) = key.strip_prefix(SIDECAR_PREFIX) else { continue };
        let mut wrong = Errors::none();
        if SIDECAR_AMOUNTS.contains(&what) {
            if quantity::parse(value).is_none() {
                wrong.add(Errors::invalid(value, ""));
            }
        } else if matches!(what, "resource-percentage" | "resourcePercentage") {
            let advice = "Queue proxy resource percentage annotation is deprecated. Please use the available annotations to explicitly set resource values per service";
            wrong.add(Errors::of(advice, &[""]).warning());
            match value.parse::<f64>() {
                Err(_) => wrong.add(Errors::invalid(value, "")),
                Ok(v) if !(0.1..=100.0).contains(&v) => wrong.add(Errors::out_of_bounds(v, 0.1, 100, "")),
                Ok(_) => {}
            }
        }
        errors.add(wrong.via_key(key));
    }
    errors
}

/// Prefixes of the annotations that go beyond Knative. What begins so and is none of them is a slip of the pen, which might
/// leave open what was meant to be closed.
const BEYOND: [&str; 6] =
    [neap::AUTH, neap::RATE_LIMIT, neap::SESSION_AFFINITY, neap::HEDGE_AFTER, neap::ROUTES, neap::WILDCARD];

/// The annotations that go beyond Knative: each says something, or is refused. `tags` are those of the object's traffic; a
/// DomainMapping has none, and leads to services instead.
pub(super) fn beyond(meta: &Value, tags: Option<&[&str]>) -> Errors {
    let annotations = &meta["annotations"];
    let mut errors = Errors::none();
    for (key, _) in pairs(annotations) {
        let meant = BEYOND.iter().any(|known| key.starts_with(known));
        if meant && !extras::ALL.contains(&key) {
            errors.add(Errors::invalid_key(key, ""));
        }
    }
    let of = IngressKey::new(text(meta, "namespace"), text(meta, "name"));
    let (_, problems) = extras::extras(&of, |key| annotations[key].as_str());
    for problem in problems {
        errors.add(Errors::invalid(problem.message, problem.key));
    }
    if tags.is_some() && annotations[neap::WILDCARD].is_string() {
        errors.add(Errors::invalid("only a DomainMapping can have it", neap::WILDCARD));
    }
    if let Some(list) = annotations[neap::ROUTES].as_str() {
        match extras::rules(list, tags.is_none()) {
            Err(problem) => errors.add(Errors::invalid(problem.message, problem.key)),
            Ok(rules) => {
                for rule in &rules {
                    if let (RuleTarget::Tag(tag), Some(tags)) = (&rule.target, tags)
                        && !tags.contains(&tag.as_str())
                    {
                        errors.add(Errors::invalid(format!("spec.traffic has no tag {tag:?}"), neap::ROUTES));
                    }
                }
            }
        }
    }
    errors.via_field("annotations")
}

/// The tags of an object's traffic.
pub(super) fn tags(spec: &Value) -> Vec<&str> {
    items(&spec["traffic"]).iter().map(|target| text(target, "tag")).filter(|tag| !tag.is_empty()).collect()
}

/// The value under the first spelling that is present, with that spelling.
fn get<'a>(annotations: &'a Value, spellings: &[&'a str]) -> Option<(&'a str, &'a str)> {
    spellings.iter().find_map(|key| Some((*key, annotations[*key].as_str()?)))
}

/// All autoscaling annotations of a template or a PodAutoscaler.
pub(super) fn autoscaling(annotations: &Value, settings: &Autoscaler) -> Errors {
    class(annotations)
        .and(scales(annotations, settings))
        .and(numbers(annotations))
        .and(durations(annotations))
        .and(metric(annotations, &settings.pod_autoscaler_class))
        .and(algorithm(annotations))
        .and(initial_scale(annotations, settings))
}

fn class(annotations: &Value) -> Errors {
    match get(annotations, &[keys::CLASS]) {
        Some((key, v)) if v.ends_with(OWN_CLASS_SUFFIX) && v != keys::CLASS_KPA && v != keys::CLASS_HPA => {
            Errors::invalid(v, key)
        }
        _ => Errors::none(),
    }
}

fn count(annotations: &Value, spellings: &[&str]) -> (i32, Errors) {
    let Some((key, value)) = spellings.iter().find_map(|key| Some((*key, annotations[*key].as_str()?))) else {
        return (0, Errors::none());
    };
    match value.parse::<i128>() {
        Err(_) => (0, Errors::invalid(value, key)),
        Ok(n) => match i32::try_from(n).ok().filter(|n| *n >= 0) {
            Some(n) => (n, Errors::none()),
            None => (0, Errors::out_of_bounds(value, 0, i32::MAX, key)),
        },
    }
}

fn scales(annotations: &Value, settings: &Autoscaler) -> Errors {
    let (min, mut errors) = count(annotations, &[keys::MIN_SCALE, keys::MIN_SCALE_ALT]);
    let (max, wrong) = count(annotations, &[keys::MAX_SCALE, keys::MAX_SCALE_ALT]);
    errors.add(wrong);
    if max != 0 && max < min {
        errors.add(Errors::of(
            format!("max-scale={max} is less than min-scale={min}"),
            &[keys::MAX_SCALE, keys::MIN_SCALE],
        ));
    }
    if let Some((key, _)) =
        get(annotations, &[keys::MAX_SCALE, keys::MAX_SCALE_ALT]).filter(|_| settings.max_scale_limit != 0)
    {
        let limit = settings.max_scale_limit;
        if max > limit {
            errors.add(Errors::out_of_bounds(max, 1, limit, key));
        }
        if max == 0 {
            errors.add(Errors::of(format!("max-scale=0 (unlimited), must be less than {limit}"), &[key]));
        }
    }
    if let Some((key, value)) = get(annotations, &[keys::ACTIVATION_SCALE]) {
        errors.add(match value.parse::<i32>() {
            Err(_) => Errors::invalid(value, key),
            Ok(n) if min > n => Errors::of(format!("min-scale={min} is greater than activation-scale={n}"), &[key]),
            Ok(n) if max != 0 && max < n => {
                Errors::of(format!("max-scale={max} is less than activation-scale={n}"), &[key])
            }
            Ok(n) if n < 2 => Errors::of(format!("activation-scale={n} must be greater than 1"), &[key]),
            Ok(_) => Errors::none(),
        });
    }
    errors
}

/// Percentages with their bounds.
const BOUNDED: [([&str; 2], i32, i32); 3] = [
    ([keys::PANIC_WINDOW, keys::PANIC_WINDOW_ALT], 1, 100),
    ([keys::PANIC_THRESHOLD, keys::PANIC_THRESHOLD_ALT], 110, 1000),
    ([keys::TARGET_UTILIZATION, keys::TARGET_UTILIZATION_ALT], 1, 100),
];

fn numbers(annotations: &Value) -> Errors {
    let mut errors = Errors::none();
    for (spellings, low, high) in BOUNDED {
        let Some((key, value)) = get(annotations, &spellings) else { continue };
        errors.add(match value.parse::<f64>() {
            Err(_) => Errors::invalid(value, key),
            Ok(v) if (f64::from(low)..=f64::from(high)).contains(&v) => Errors::none(),
            // What is no number lies in no bounds.
            Ok(_) => Errors::out_of_bounds(value, low, high, key),
        });
    }
    if let Some((key, value)) = get(annotations, &[keys::TARGET]) {
        let least = crate::config::autoscaler::TARGET_MIN;
        errors.add(match value.parse::<f64>() {
            Err(_) => Errors::invalid(value, key),
            Ok(v) if !v.is_finite() => Errors::invalid(value, key),
            Ok(v) if v < least => Errors::of(format!("target {value} should be at least {least}"), &[key]),
            Ok(_) => Errors::none(),
        });
    }
    if let Some((key, value)) = get(annotations, &[keys::TARGET_BURST_CAPACITY, keys::TARGET_BURST_CAPACITY_ALT])
        && !value.parse::<f64>().is_ok_and(|v| v.is_finite() && (v >= 0.0 || v == -1.0))
    {
        errors.add(Errors::invalid(value, key));
    }
    errors
}

fn durations(annotations: &Value) -> Errors {
    let (shortest, longest) = WINDOW_BOUNDS;
    let check = |spellings: &[&str], low: Duration, whole: bool| -> Errors {
        let Some((key, value)) = spellings.iter().find_map(|key| Some((*key, annotations[*key].as_str()?))) else {
            return Errors::none();
        };
        let bounds = || Errors::out_of_bounds(value, go(low), go(longest), key);
        match parse_duration(value) {
            None => Errors::invalid(value, key),
            Some(d) => match d.positive() {
                Some(length) if length >= low && length <= longest => match whole && !d.is_whole_seconds() {
                    true => Errors::of("must be specified with at most second precision", &[key]),
                    false => Errors::none(),
                },
                _ => bounds(),
            },
        }
    };
    check(&[keys::WINDOW], shortest, true)
        .and(check(&[keys::RETENTION, keys::RETENTION_ALT], Duration::ZERO, false))
        .and(check(&[keys::SCALE_DOWN_DELAY, keys::SCALE_DOWN_DELAY_ALT], Duration::ZERO, true))
}

fn go(duration: Duration) -> impl Display {
    format_duration(duration)
}

fn metric(annotations: &Value, default_class: &str) -> Errors {
    let Some((key, metric)) = get(annotations, &[keys::METRIC]) else { return Errors::none() };
    let class = annotations[keys::CLASS].as_str().unwrap_or(default_class);
    let known = match class {
        keys::CLASS_KPA => matches!(metric, "concurrency" | "rps"),
        keys::CLASS_HPA => !metric.is_empty(),
        // Other autoscalers know their own metrics.
        _ => true,
    };
    if known { Errors::none() } else { Errors::invalid(metric, key) }
}

fn algorithm(annotations: &Value) -> Errors {
    if annotations[keys::CLASS].as_str() != Some(keys::CLASS_KPA) {
        return Errors::none();
    }
    match get(annotations, &[keys::AGGREGATION, keys::AGGREGATION_ALT]) {
        Some((key, v)) if !matches!(v, "" | "linear" | "weighted-exponential" | "weightedExponential") => {
            Errors::invalid(v, key)
        }
        _ => Errors::none(),
    }
}

fn initial_scale(annotations: &Value, settings: &Autoscaler) -> Errors {
    let Some((key, value)) = get(annotations, &[keys::INITIAL_SCALE, keys::INITIAL_SCALE_ALT]) else {
        return Errors::none();
    };
    match value.parse::<i64>() {
        Err(_) => Errors::invalid(value, key),
        Ok(n) if n < 0 => Errors::invalid(value, &format!("{key} must be greater than 0")),
        Ok(0) if !settings.allow_zero_initial_scale => {
            Errors::invalid(value, &format!("{key}=0 not allowed by cluster"))
        }
        Ok(_) => Errors::none(),
    }
}

/// Fills in class and metric of a PodAutoscaler.
pub(super) fn default_autoscaling(value: &mut Value, settings: &Settings) {
    let annotations = object(&mut value["metadata"], "annotations");
    let class =
        annotations.entry(keys::CLASS).or_insert_with(|| settings.autoscaler.pod_autoscaler_class.clone().into());
    let metric = class.as_str().and_then(crate::plan::revision::default_metric);
    if let Some(metric) = metric {
        annotations.entry(keys::METRIC).or_insert_with(|| metric.into());
    }
}

/// Records who made an object and who changed its spec last.
pub(super) fn set_user(value: &mut Value, old: Option<&Value>, user: &str) {
    if user.is_empty() {
        return;
    }
    let Some(old) = old else {
        let annotations = object(&mut value["metadata"], "annotations");
        annotations.insert(serving::CREATOR.into(), user.into());
        annotations.insert(serving::LAST_MODIFIER.into(), user.into());
        return;
    };
    let changed = old["spec"] != value["spec"];
    let annotations = object(&mut value["metadata"], "annotations");
    // A client that replaces all annotations need not know these two.
    for key in [serving::CREATOR, serving::LAST_MODIFIER] {
        let before = &old["metadata"]["annotations"][key];
        if !annotations.contains_key(key) && before.is_string() {
            annotations.insert(key.into(), before.clone());
        }
    }
    if changed {
        annotations.insert(serving::LAST_MODIFIER.into(), user.into());
    }
}

/// Nobody may change who made an object, nor who changed it last while nothing changed.
pub(super) fn user_unchanged(value: &Value, old: &Value) -> Errors {
    let of = |object: &Value, key: &str| object["metadata"]["annotations"][key].as_str().unwrap_or_default().to_owned();
    let mut errors = Errors::none();
    if of(value, serving::CREATOR) != of(old, serving::CREATOR) {
        errors.add(Errors::of("annotation value is immutable", &[serving::CREATOR]));
    }
    if value["spec"] == old["spec"] && of(value, serving::LAST_MODIFIER) != of(old, serving::LAST_MODIFIER) {
        errors.add(Errors::invalid(of(value, serving::LAST_MODIFIER), serving::LAST_MODIFIER));
    }
    errors.via_field("metadata.annotations")
}
