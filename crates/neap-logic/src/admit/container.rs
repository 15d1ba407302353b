//! What a revision may ask of a container (facts A4.8 to A4.17, A4.19 to A4.21, A7.11).

use std::collections::BTreeSet;

use serde_json::Value;

use super::field_error::Errors;
use super::podspec::Pod;
use super::view::{items, only, text};
use crate::config::features::SecurePodDefaults;
use crate::config::{Flag, Settings};
use crate::names::image::Reference;
use crate::names::is_dns1123_label;

/// What a container is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It takes the requests.
    Serving,
    /// It runs beside.
    Sidecar,
    /// It runs before.
    Init,
}

const FIELDS: [&str; 17] = [
    "name",
    "args",
    "command",
    "env",
    "workingDir",
    "envFrom",
    "image",
    "imagePullPolicy",
    "livenessProbe",
    "ports",
    "readinessProbe",
    "resources",
    "securityContext",
    "startupProbe",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "volumeMounts",
];
const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
const RESERVED_NAMES: [&str; 1] = [crate::plan::sidecar::NAME];
const RESERVED_ENV: [&str; 4] = ["PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"];
/// Ports of the sidecar and of the platform's own servers.
const RESERVED_PORTS: [i64; 6] = [8012, 8013, 8022, 9090, 9091, 8008];
const RESERVED_MOUNTS: [&str; 3] = ["/", "/dev", "/dev/log"];
const PORT_NAMES: [&str; 3] = ["", "h2c", "http1"];

pub(super) fn validate(container: &Value, role: Role, pod: &Pod<'_>) -> Errors {
    if container.as_object().is_none_or(serde_json::Map::is_empty) {
        return Errors::missing(&[""]);
    }
    let probing_open = pod.settings.features.multi_container_probing == Flag::Enabled;
    let mut errors = Errors::none();
    match role {
        Role::Init => {
            for field in PROBES.iter().chain(&["lifecycle"]).filter(|field| !container[**field].is_null()) {
                errors.add(Errors::of("field not allowed in an init container", &[field]));
            }
        }
        Role::Sidecar if !probing_open => PROBES.iter().for_each(|f| errors.add(no_probe(&container[f]).via_field(f))),
        Role::Sidecar | Role::Serving => {}
    }
    if role != Role::Init && (role == Role::Serving || probing_open) {
        for field in PROBES {
            errors.add(probe(&container[field], role, pod).via_field(field));
            if field == "readinessProbe" {
                errors.add(timings(&container[field]).via_field(field));
            }
        }
    }
    errors.add(only(container, &FIELDS));
    let name = text(container, "name");
    if RESERVED_NAMES.contains(&name) {
        errors.add(Errors::of(format!("{name:?} is a reserved container name"), &["name"]));
    } else if !name.is_empty() && !is_dns1123_label(name) {
        errors.add(Errors::invalid(name, "name"));
    }
    errors.add(env(container, role, pod.settings).via_field("env"));
    errors.add(env_from(container).via_field("envFrom"));
    errors.add(image(container));
    errors.add(ports(items(&container["ports"]), role).via_field("ports"));
    errors.add(only(&container["resources"], &["limits", "requests"]).via_field("resources"));
    errors.add(security(&container["securityContext"], pod.settings).via_field("securityContext"));
    let policy = text(container, "terminationMessagePolicy");
    if !matches!(policy, "" | "File" | "FallbackToLogsOnError") {
        errors.add(Errors::invalid(policy, "terminationMessagePolicy"));
    }
    errors.add(mounts(container, pod).via_field("volumeMounts"));
    errors
}

fn image(container: &Value) -> Errors {
    let image = text(container, "image");
    if image.is_empty() {
        return Errors::missing(&["image"]);
    }
    match Reference::parse(image) {
        Some(_) => Errors::none(),
        None => Errors::of("Failed to parse image reference", &["image"])
            .details(format!("image: {image:?}, error: could not parse reference: {image}")),
    }
}

fn env(container: &Value, role: Role, settings: &Settings) -> Errors {
    let mut sources = vec!["configMapKeyRef", "secretKeyRef"];
    if settings.features.podspec_field_ref.is_open() {
        sources.extend(["fieldRef", "resourceFieldRef"]);
    }
    let mut errors = Errors::none();
    for (i, variable) in items(&container["env"]).iter().enumerate() {
        let mut wrong = only(variable, &["name", "value", "valueFrom"]);
        let name = text(variable, "name");
        let reserved = RESERVED_ENV.contains(&name) && !(name == "PORT" && role != Role::Serving);
        if name.is_empty() {
            wrong.add(Errors::missing(&["name"]));
        } else if reserved {
            wrong.add(Errors::of(format!("{name:?} is a reserved environment variable"), &["name"]));
        }
        wrong.add(only(&variable["valueFrom"], &sources).via_field("valueFrom"));
        errors.add(wrong.via_index(i));
    }
    errors
}

fn env_from(container: &Value) -> Errors {
    const SOURCES: [&str; 2] = ["configMapRef", "secretRef"];
    let mut errors = Errors::none();
    for (i, source) in items(&container["envFrom"]).iter().enumerate() {
        let mut wrong = only(source, &["prefix", "configMapRef", "secretRef"]);
        let set: Vec<&str> = SOURCES.into_iter().filter(|s| !source[*s].is_null()).collect();
        // Without the index, as upstream says it.
        match set.len() {
            0 => errors.add(Errors::neither(&SOURCES)),
            1 => wrong.add(only(&source[set[0]], &["name", "optional"]).via_field(set[0])),
            _ => errors.add(Errors::both(&SOURCES)),
        }
        errors.add(wrong.via_index(i));
    }
    errors
}

fn ports(ports: &[Value], role: Role) -> Errors {
    if role == Role::Init {
        return ports.iter().fold(Errors::none(), |errors, port| errors.and(port_number(port)));
    }
    // That there is one at most is said of all containers together.
    let Some(port) = ports.first() else { return Errors::none() };
    let mut errors = port_number(port);
    let protocol = text(port, "protocol");
    if !matches!(protocol, "" | "TCP") {
        errors.add(Errors::invalid(protocol, "protocol"));
    }
    let name = text(port, "name");
    if !PORT_NAMES.contains(&name) {
        errors.add(
            Errors::of(format!("Port name {name} is not allowed"), &[""])
                .details("Name must be empty, or one of: 'h2c', 'http1'"),
        );
    }
    errors
}

fn port_number(port: &Value) -> Errors {
    let mut errors = only(port, &["containerPort", "name", "protocol"]);
    let number = port["containerPort"].as_i64().unwrap_or_default();
    if RESERVED_PORTS.contains(&number) {
        errors.add(
            Errors::invalid(format!("{number} is a reserved port"), "containerPort")
                .details(format!("{number} is a reserved port, please use a different value")),
        );
    }
    if !(0..=65535).contains(&number) {
        errors.add(Errors::out_of_bounds(number, 0, 65535, "containerPort"));
    }
    errors
}

fn security(context: &Value, settings: &Settings) -> Errors {
    let mut errors = only(
        context,
        &[
            "capabilities",
            "readOnlyRootFilesystem",
            "runAsUser",
            "runAsGroup",
            "runAsNonRoot",
            "allowPrivilegeEscalation",
            "seccompProfile",
        ],
    );
    errors.add(id(&context["runAsUser"], "runAsUser"));
    errors.add(id(&context["runAsGroup"], "runAsGroup"));
    let added = items(&context["capabilities"]["add"]);
    let only_bind = matches!(added, [one] if one == "NET_BIND_SERVICE");
    let may_add = settings.features.containerspec_add_capabilities == Flag::Enabled
        || settings.features.secure_pod_defaults != SecurePodDefaults::Disabled && only_bind;
    if !added.is_empty() && !may_add {
        errors.add(Errors::disallowed(&["capabilities.add"]));
    }
    errors
}

/// A user or group number.
pub(super) fn id(value: &Value, field: &str) -> Errors {
    match value.as_i64() {
        Some(n) if !(0..=i64::from(i32::MAX)).contains(&n) => Errors::out_of_bounds(n, 0, i32::MAX, field),
        _ => Errors::none(),
    }
}

/// Settings whose Kubernetes default is insecure, unless this platform fills in better ones.
pub(super) fn warn_insecure(container: &Value, pod_context: &Value, settings: &Settings) -> Errors {
    const ADVICE: &str = "Kubernetes default value is insecure, Knative may default this to secure in a future release";
    let mut errors = Errors::none();
    if settings.features.secure_pod_defaults != SecurePodDefaults::Disabled {
        return errors;
    }
    let own = &container["securityContext"];
    let warn = |field: &str| Errors::of(ADVICE, &[field]).warning();
    if own["runAsNonRoot"].is_null() && pod_context["runAsNonRoot"].is_null() {
        errors.add(warn("runAsNonRoot"));
    }
    if own["allowPrivilegeEscalation"].is_null() {
        errors.add(warn("allowPrivilegeEscalation"));
    }
    match (&own["seccompProfile"], &pod_context["seccompProfile"]) {
        (Value::Null, Value::Null) => errors.add(warn("seccompProfile")),
        (own, pod) if text(own, "type").is_empty() && text(pod, "type").is_empty() => {
            errors.add(warn("seccompProfile.type"));
        }
        _ => {}
    }
    match (&own["capabilities"], &own["capabilities"]["drop"]) {
        (Value::Null, _) => errors.add(warn("capabilities")),
        (_, Value::Null) => errors.add(warn("capabilities.drop")),
        // The wrong spelling drops nothing.
        (_, dropped) if dropped[0] == "all" => {
            errors.add(Errors::invalid("all", "capabilities.drop").details("Must be spelled as 'ALL'").warning());
        }
        _ => {}
    }
    errors
}

fn mounts(container: &Value, pod: &Pod<'_>) -> Errors {
    let mut allowed = vec!["name", "readOnly", "mountPath", "subPath"];
    let propagation_flag = pod.settings.features.podspec_volumes_mount_propagation;
    if propagation_flag.is_open() {
        allowed.push("mountPropagation");
    }
    let mut errors = Errors::none();
    let mut seen = BTreeSet::new();
    for (i, mount) in items(&container["volumeMounts"]).iter().enumerate() {
        let mut wrong = only(mount, &allowed);
        let name = text(mount, "name");
        let volume = pod.volumes.get(name);
        if volume.is_none() {
            wrong.add(Errors::of("volumeMount has no matching volume", &["name"]));
        }
        let path = text(mount, "mountPath");
        let clean = clean_path(path);
        if path.is_empty() {
            wrong.add(Errors::missing(&["mountPath"]));
        } else if RESERVED_MOUNTS.contains(&clean.as_str()) {
            wrong.add(Errors::of(format!("mountPath {clean:?} is a reserved path"), &["mountPath"]));
        } else if !path.starts_with('/') {
            wrong.add(Errors::invalid(path, "mountPath"));
        } else if seen.contains(&clean) {
            wrong.add(Errors::invalid(format!("{path:?} must be unique"), "mountPath"));
        }
        seen.insert(clean);
        let writable = volume
            .is_some_and(|v| ["emptyDir", "persistentVolumeClaim", "ephemeral"].iter().any(|kind| !v[*kind].is_null()));
        let read_only = mount["readOnly"] == true;
        if !writable && !read_only {
            wrong.add(Errors::of("volume mount should be readOnly for this type of volume", &["readOnly"]));
        }
        if volume.is_some_and(|v| v["persistentVolumeClaim"]["readOnly"] == true) && !read_only {
            wrong.add(Errors::of("volume is readOnly but volume mount is not", &["readOnly"]));
        }
        wrong.add(propagation(mount, propagation_flag));
        errors.add(wrong.via_index(i));
    }
    errors
}

fn propagation(mount: &Value, flag: Flag) -> Errors {
    let Some(propagation) = mount["mountPropagation"].as_str() else { return Errors::none() };
    let mut errors = Errors::none();
    if flag != Flag::Enabled {
        let name = text(mount, "name");
        let message = format!(
            "Volume Mount Propagation support is disabled, but found volume mount {name} with mount propagation"
        );
        errors.add(Errors::of(message, &[]));
    }
    if !matches!(propagation, "None" | "HostToContainer") {
        let message = "mount propagation should be set to None or HostToContainer";
        errors.add(Errors::of(message, &["mountPropagation"]));
    }
    errors
}

/// The shortest spelling of a path: no empty part, no `.`, and no `..` that another part could undo.
fn clean_path(path: &str) -> String {
    let absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !matches!(*part, "" | ".")) {
        match (part, parts.last()) {
            ("..", Some(last)) if *last != ".." => drop(parts.pop()),
            ("..", None) if absolute => {}
            _ => parts.push(part),
        }
    }
    format!("{}{}", if absolute { "/" } else { "" }, parts.join("/"))
}

const HANDLERS: [&str; 4] = ["httpGet", "tcpSocket", "exec", "grpc"];
const TIMINGS: [&str; 6] = [
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
    "terminationGracePeriodSeconds",
];

/// Names everything a forbidden probe says: each of its numbers, and the probe itself for its handler.
fn no_probe(probe: &Value) -> Errors {
    if probe.is_null() {
        return Errors::none();
    }
    let mut errors = only(probe, &HANDLERS);
    if HANDLERS.iter().any(|handler| !probe[*handler].is_null()) {
        errors.add(Errors::disallowed(&[""]));
    }
    errors
}

fn probe(probe: &Value, role: Role, pod: &Pod<'_>) -> Errors {
    if probe.is_null() {
        return Errors::none();
    }
    let mut errors = only(probe, &[&HANDLERS[..], &TIMINGS[..]].concat());
    let handlers: Vec<&str> = HANDLERS.into_iter().filter(|h| !probe[*h].is_null()).collect();
    match handlers.as_slice() {
        [] => errors.add(Errors::neither(&HANDLERS)),
        [_] => {}
        several => {
            // Spelled like this there, and only there.
            let named: Vec<&str> = several.iter().map(|h| if *h == "grpc" { "gRPC" } else { *h }).collect();
            errors.add(Errors::both(&named));
        }
    }
    errors.add(only(&probe["httpGet"], &["path", "port", "host", "scheme", "httpHeaders"]).via_field("httpGet"));
    errors.add(only(&probe["tcpSocket"], &["port", "host"]).via_field("tcpSocket"));
    errors.add(only(&probe["exec"], &["command"]).via_field("exec"));
    errors.add(only(&probe["grpc"], &["port", "service"]).via_field("grpc"));
    for handler in handlers.iter().filter(|h| matches!(**h, "httpGet" | "tcpSocket")) {
        errors.add(probe_port(&probe[*handler]["port"], role, pod).via_field(handler));
    }
    errors
}

fn probe_port(port: &Value, role: Role, pod: &Pod<'_>) -> Errors {
    let unset = port.is_null() || port == 0 || port == "";
    match (role, port) {
        // The port of a container that serves nothing must be said.
        (Role::Sidecar, _) if unset => Errors::invalid(0, "port").details("Probe port must be specified"),
        (Role::Serving, Value::String(name)) if !unset && name != pod.port_name => {
            Errors::invalid(name, "port").details("Probe port must match container port")
        }
        _ => Errors::none(),
    }
}

/// A readiness probe has bounds, after defaulting; those of other probes are the machine's affair.
fn timings(probe: &Value) -> Errors {
    if probe.is_null() {
        return Errors::none();
    }
    let of = |field: &str| probe[field].as_i64().unwrap_or_default();
    let mut errors = Errors::none();
    let mut at_least = |least: i64, fields: &[&str]| {
        for field in fields.iter().filter(|field| of(field) < least) {
            errors.add(Errors::out_of_bounds(of(field), least, i32::MAX, field));
        }
    };
    at_least(0, &["periodSeconds", "initialDelaySeconds"]);
    at_least(1, &["successThreshold"]);
    if of("periodSeconds") != 0 {
        at_least(1, &["timeoutSeconds", "failureThreshold"]);
        return errors;
    }
    // Zero means: as often as the platform likes, which leaves nothing else to say.
    for field in ["failureThreshold", "timeoutSeconds"].into_iter().filter(|field| of(field) != 0) {
        errors.add(Errors::of(format!("{field} is disallowed when periodSeconds is zero"), &[field]));
    }
    errors
}
