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
            if !items(&container["ports"]).is_empty() {
                errors.add(Errors::of("init container port is not allowed", &["ports"]));
            }
        }
        Role::Sidecar if !probing_open => {
            for field in ["livenessProbe", "readinessProbe"].iter().filter(|field| !container[**field].is_null()) {
                errors.add(Errors::disallowed(&[field]));
            }
        }
        Role::Sidecar | Role::Serving => {}
    }
    if role != Role::Init && (role == Role::Serving || probing_open) {
        for field in PROBES {
            errors.add(probe(&container[field], role, pod, field == "readinessProbe").via_field(field));
        }
    }
    let mut allowed: Vec<&str> = FIELDS.to_vec();
    if role == Role::Init {
        // Said above in words of their own.
        allowed.push("lifecycle");
    }
    errors.add(only(container, &allowed));
    let name = text(container, "name");
    if RESERVED_NAMES.contains(&name) {
        errors.add(Errors::of(format!("{name:?} is a reserved container name"), &["name"]));
    } else if !name.is_empty() && !is_dns1123_label(name) {
        errors.add(Errors::invalid(name, "name"));
    }
    errors.add(env(container, role, pod.settings).via_field("env"));
    errors.add(env_from(container).via_field("envFrom"));
    errors.add(image(container));
    errors.add(ports(container).via_field("ports"));
    if items(&container["ports"]).len() > 1 {
        errors.add(
            Errors::of("More than one container port is set", &["ports"]).details("Only a single port is allowed"),
        );
    }
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
        match set.len() {
            0 => wrong.add(Errors::neither(&SOURCES)),
            1 => wrong.add(only(&source[set[0]], &["name", "optional"]).via_field(set[0])),
            _ => wrong.add(Errors::both(&SOURCES)),
        }
        errors.add(wrong.via_index(i));
    }
    errors
}

fn ports(container: &Value) -> Errors {
    let mut errors = Errors::none();
    for port in items(&container["ports"]) {
        errors.add(only(port, &["containerPort", "name", "protocol"]));
        let protocol = text(port, "protocol");
        if !matches!(protocol, "" | "TCP") {
            errors.add(Errors::invalid(protocol, "protocol"));
        }
        let number = port["containerPort"].as_i64().unwrap_or_default();
        if RESERVED_PORTS.contains(&number) {
            errors.add(
                Errors::of(format!("{number} is a reserved port"), &["containerPort"])
                    .details("8012, 8013, 8022, 9090, 9091 and 8008 are used by the platform"),
            );
        } else if !(0..=65535).contains(&number) {
            errors.add(Errors::out_of_bounds(number, 0, 65535, "containerPort"));
        }
        let name = text(port, "name");
        if !PORT_NAMES.contains(&name) {
            errors.add(
                Errors::of(format!("Port name {name} is not allowed"), &["name"])
                    .details("Name must be empty, or one of: 'h2c', 'http1'"),
            );
        }
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
    let may_add = settings.features.containerspec_add_capabilities.is_open()
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
    match (&own["capabilities"], items(&own["capabilities"]["drop"])) {
        (Value::Null, _) => errors.add(warn("capabilities")),
        (_, []) => errors.add(warn("capabilities.drop")),
        (_, dropped) => {
            if dropped.iter().any(|d| d.as_str().is_some_and(|d| d.eq_ignore_ascii_case("all") && d != "ALL")) {
                errors.add(Errors::of("Must be spelled as 'ALL'", &["capabilities.drop"]).warning());
            }
        }
    }
    errors
}

fn mounts(container: &Value, pod: &Pod<'_>) -> Errors {
    let mut allowed = vec!["name", "readOnly", "mountPath", "subPath"];
    let propagation_open = pod.settings.features.podspec_volumes_mount_propagation.is_open();
    if propagation_open {
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
        let clean = path.trim_end_matches('/');
        let clean = if clean.is_empty() && !path.is_empty() { "/" } else { clean };
        if path.is_empty() {
            wrong.add(Errors::missing(&["mountPath"]));
        } else if RESERVED_MOUNTS.contains(&clean) {
            wrong.add(Errors::of(format!("mountPath {clean:?} is a reserved path"), &["mountPath"]));
        } else if !path.starts_with('/') {
            wrong.add(Errors::invalid(path, "mountPath"));
        } else if !seen.insert(clean) {
            wrong.add(Errors::of(format!("{path:?} must be unique"), &["mountPath"]));
        }
        let writable = volume
            .is_some_and(|v| ["emptyDir", "persistentVolumeClaim", "ephemeral"].iter().any(|kind| !v[*kind].is_null()));
        if volume.is_some() && !writable && mount["readOnly"] != true {
            wrong.add(Errors::of("volume mount should be readOnly for this type of volume", &["readOnly"]));
        }
        let propagation = text(mount, "mountPropagation");
        if propagation_open && !matches!(propagation, "" | "None" | "HostToContainer") {
            wrong.add(Errors::invalid(propagation, "mountPropagation"));
        }
        errors.add(wrong.via_index(i));
    }
    errors
}

const HANDLERS: [&str; 4] = ["httpGet", "tcpSocket", "exec", "grpc"];

fn probe(probe: &Value, role: Role, pod: &Pod<'_>, is_readiness: bool) -> Errors {
    if probe.is_null() {
        return Errors::none();
    }
    let mut errors = only(
        probe,
        &[
            "httpGet",
            "tcpSocket",
            "exec",
            "grpc",
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
            "terminationGracePeriodSeconds",
        ],
    );
    let handlers: Vec<&str> = HANDLERS.into_iter().filter(|h| !probe[*h].is_null()).collect();
    match handlers.as_slice() {
        [] => errors.add(Errors::neither(&HANDLERS)),
        [_] => {}
        several => errors.add(Errors::both(several)),
    }
    errors.add(only(&probe["httpGet"], &["path", "port", "host", "scheme", "httpHeaders"]).via_field("httpGet"));
    errors.add(only(&probe["tcpSocket"], &["port", "host"]).via_field("tcpSocket"));
    errors.add(only(&probe["exec"], &["command"]).via_field("exec"));
    errors.add(only(&probe["grpc"], &["port", "service"]).via_field("grpc"));
    for handler in handlers.iter().filter(|h| **h != "exec") {
        errors.add(probe_port(&probe[*handler]["port"], role, pod).via_field("port").via_field(handler));
    }
    errors.and(timings(probe, is_readiness))
}

fn probe_port(port: &Value, role: Role, pod: &Pod<'_>) -> Errors {
    let unset = port.is_null() || port == 0 || port == "";
    match role {
        // The port of a container that serves nothing must be said.
        Role::Sidecar if unset => Errors::of("Probe port must be specified", &[""]),
        Role::Sidecar | Role::Init => Errors::none(),
        Role::Serving => match port {
            _ if unset => Errors::none(),
            Value::String(name) if name != pod.port.1 => {
                Errors::of(format!("Probe port must match container port: {name}"), &[""])
            }
            _ => Errors::none(),
        },
    }
}

fn timings(probe: &Value, is_readiness: bool) -> Errors {
    let of = |field: &str| probe[field].as_i64().unwrap_or_default();
    let mut errors = Errors::none();
    let most = i64::from(i32::MAX);
    // Zero means: as often as the platform likes, which leaves nothing else to say.
    if of("periodSeconds") == 0 && is_readiness {
        for field in ["failureThreshold", "timeoutSeconds"] {
            if of(field) != 0 {
                errors.add(
                    Errors::disallowed(&[field])
                        .details(format!("{field} can only be set when periodSeconds is non-zero")),
                );
            }
        }
    }
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        if of(field) < 0 {
            errors.add(Errors::out_of_bounds(of(field), 0, most, field));
        }
    }
    errors
}
