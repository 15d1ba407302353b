//! What a revision may ask of its pod: the pod itself and its volumes (facts A4.5 to A4.7, A4.11, A4.18).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::container::{self, Role};
use super::field_error::Errors;
use super::view::{is_set, items, only, text};
use crate::config::features::SecurePodDefaults;
use crate::config::{Features, Flag, Settings, quantity};
use crate::names;

const ALWAYS: [&str; 6] = [
    "serviceAccountName",
    "containers",
    "volumes",
    "imagePullSecrets",
    "enableServiceLinks",
    "automountServiceAccountToken",
];

fn flagged(features: &Features) -> [(&'static str, Flag); 16] {
    [
        ("affinity", features.podspec_affinity),
        ("topologySpreadConstraints", features.podspec_topology_spread_constraints),
        ("hostAliases", features.podspec_host_aliases),
        ("nodeSelector", features.podspec_node_selector),
        ("runtimeClassName", features.podspec_runtime_class_name),
        ("tolerations", features.podspec_tolerations),
        ("shareProcessNamespace", features.podspec_share_process_namespace),
        ("hostIPC", features.podspec_host_ipc),
        ("hostPID", features.podspec_host_pid),
        ("hostNetwork", features.podspec_host_network),
        ("priorityClassName", features.podspec_priority_class_name),
        ("schedulerName", features.podspec_scheduler_name),
        ("initContainers", features.podspec_init_containers),
        ("dnsPolicy", features.podspec_dns_policy),
        ("dnsConfig", features.podspec_dns_config),
        ("securityContext", features.podspec_security_context),
    ]
}

/// A pod as the rules of its containers see it.
pub(super) struct Pod<'a> {
    pub(super) settings: &'a Settings,
    /// Volumes by name.
    pub(super) volumes: BTreeMap<&'a str, &'a Value>,
    /// The name by which a probe may call the serving container's port.
    pub(super) port_name: &'a str,
}

/// Checks the pod fields of a revision spec; the revision's own fields are looked at elsewhere.
pub(super) fn validate(spec: &Value, own_fields: &[&str], settings: &Settings) -> Errors {
    let features = &settings.features;
    let mut allowed: Vec<&str> = ALWAYS.iter().chain(own_fields).copied().collect();
    allowed.extend(flagged(features).iter().filter(|(_, flag)| flag.is_open()).map(|(field, _)| *field));
    if features.secure_pod_defaults != SecurePodDefaults::Disabled {
        allowed.push("securityContext");
    }
    let mut errors = only(spec, &allowed);
    if spec["automountServiceAccountToken"] == true {
        errors.add(Errors::disallowed(&["automountServiceAccountToken"]));
    }
    errors.add(security(&spec["securityContext"], features).via_field("securityContext"));
    let containers = items(&spec["containers"]);
    let init_containers = items(&spec["initContainers"]);
    for (field, list) in [("containers", containers), ("initContainers", init_containers)] {
        for (i, container) in list.iter().enumerate() {
            errors.add(
                container::warn_insecure(container, &spec["securityContext"], settings)
                    .via_field("securityContext")
                    .via_field_index(field, i),
            );
        }
    }
    let volumes = items(&spec["volumes"]);
    errors.add(volumes_of(volumes, &mounted(containers, init_containers), settings).via_field("volumes"));
    let pod = Pod {
        settings,
        volumes: volumes.iter().map(|v| (text(v, "name"), v)).collect(),
        port_name: serving_port_name(containers),
    };
    errors.add(init(init_containers, containers, &pod));
    errors.add(one_port(containers).via_field("containers[*]"));
    match containers {
        [] => errors.add(Errors::missing(&["containers"])),
        [only] => errors.add(container::validate(only, Role::Serving, &pod).via_field_index("containers", 0)),
        several => errors.add(many(several, &pod)),
    }
    let account = text(spec, "serviceAccountName");
    if !account.is_empty() && !names::is_dns1123_subdomain(account) {
        errors.add(Errors::invalid(account, "serviceAccountName").details(SUBDOMAIN_RULE));
    }
    errors
}

/// How Kubernetes words the rule.
pub(super) const SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

/// Of a port without a name.
const DEFAULT_PORT_NAME: &str = "http";

fn serving_port_name(containers: &[Value]) -> &str {
    let port = containers.iter().rev().find_map(|c| items(&c["ports"]).first());
    port.map(|p| text(p, "name")).filter(|name| !name.is_empty()).unwrap_or(DEFAULT_PORT_NAME)
}

/// All containers together have one port; of a single container it need not be said.
fn one_port(containers: &[Value]) -> Errors {
    match containers.iter().map(|c| items(&c["ports"]).len()).sum::<usize>() {
        0 if containers.len() > 1 => Errors::missing(&["ports"]),
        0 | 1 => Errors::none(),
        _ => Errors::of("more than one container port is set", &["ports"])
            .details("Only a single port is allowed across all containers"),
    }
}

fn mounted<'a>(containers: &'a [Value], init_containers: &'a [Value]) -> BTreeSet<&'a str> {
    containers.iter().chain(init_containers).flat_map(|c| items(&c["volumeMounts"])).map(|m| text(m, "name")).collect()
}

fn security(context: &Value, features: &Features) -> Errors {
    let mut errors = match features.podspec_security_context {
        // Those who have secure defaults may opt out of one of them.
        Flag::Disabled => {
            let chosen = text(&context["seccompProfile"], "type");
            let opts_out = features.secure_pod_defaults != SecurePodDefaults::Disabled
                && matches!(chosen, "RuntimeDefault" | "Unconfined");
            only(context, if opts_out { &["seccompProfile"] } else { &[] })
        }
        _ => only(
            context,
            &["runAsUser", "runAsGroup", "runAsNonRoot", "fsGroup", "supplementalGroups", "seccompProfile"],
        ),
    };
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        errors.add(container::id(&context[field], field));
    }
    for (i, group) in items(&context["supplementalGroups"]).iter().enumerate() {
        errors.add(container::id(group, "").via_field_index("supplementalGroups", i));
    }
    errors
}

fn init(init_containers: &[Value], containers: &[Value], pod: &Pod<'_>) -> Errors {
    let mut errors = Errors::none();
    if init_containers.is_empty() {
        return errors;
    }
    if pod.settings.features.podspec_init_containers != Flag::Enabled {
        let message =
            format!("pod spec support for init-containers is off, but found {} init containers", init_containers.len());
        return Errors::of(message, &[]);
    }
    let mut seen: BTreeSet<&str> = containers.iter().map(|c| text(c, "name")).collect();
    for (i, container) in init_containers.iter().enumerate() {
        let mut wrong = container::validate(container, Role::Init, pod);
        if !seen.insert(text(container, "name")) {
            wrong.add(duplicate(container));
        }
        errors.add(wrong.via_field_index("initContainers", i));
    }
    errors
}

fn duplicate(container: &Value) -> Errors {
    Errors::of(format!("duplicate container name {:?}", text(container, "name")), &["name"])
}

fn many(containers: &[Value], pod: &Pod<'_>) -> Errors {
    if pod.settings.features.multi_container != Flag::Enabled {
        return Errors::of(format!("multi-container is off, but found {} containers", containers.len()), &[]);
    }
    let mut errors = Errors::none();
    let mut seen = BTreeSet::new();
    for (i, container) in containers.iter().enumerate() {
        let role = if items(&container["ports"]).is_empty() { Role::Sidecar } else { Role::Serving };
        let mut wrong = container::validate(container, role, pod);
        if !seen.insert(text(container, "name")) {
            wrong.add(duplicate(container));
        }
        errors.add(wrong.via_field_index("containers", i));
    }
    errors
}

/// Volume kinds with the feature each needs.
fn volume_kinds(features: &Features) -> [(&'static str, Option<Flag>); 9] {
    [
        ("secret", None),
        ("configMap", None),
        ("projected", None),
        ("emptyDir", Some(features.podspec_volumes_empty_dir)),
        ("persistentVolumeClaim", Some(features.podspec_persistent_volume_claim)),
        ("hostPath", Some(features.podspec_volumes_host_path)),
        ("csi", Some(features.podspec_volumes_csi)),
        ("ephemeral", Some(features.podspec_volumes_ephemeral)),
        ("image", Some(features.podspec_volumes_image)),
    ]
}

fn volumes_of(volumes: &[Value], mounted: &BTreeSet<&str>, settings: &Settings) -> Errors {
    let mut errors = Errors::none();
    let mut seen = BTreeSet::new();
    for (i, volume) in volumes.iter().enumerate() {
        let name = text(volume, "name");
        let mut wrong = Errors::none();
        if !seen.insert(name) {
            wrong.add(Errors::of(format!("duplicate volume name {name:?}"), &["name"]));
        }
        if !mounted.contains(name) {
            wrong.add(Errors::of(format!("volume with name {name:?} not mounted"), &["name"]));
        }
        if name.is_empty() {
            wrong.add(Errors::missing(&["name"]));
        } else if !names::is_dns1123_label(name) {
            wrong.add(Errors::invalid(name, "name"));
        }
        wrong.add(source(volume, settings));
        errors.add(wrong.via_index(i));
    }
    errors
}

fn source(volume: &Value, settings: &Settings) -> Errors {
    let kinds = volume_kinds(&settings.features);
    let open = |flag: &Option<Flag>| flag.is_none_or(|flag| flag == Flag::Enabled);
    let mut errors = Errors::none();
    let mut specified = Vec::new();
    for (field, held) in
        volume.as_object().into_iter().flatten().filter(|(field, held)| *field != "name" && !held.is_null())
    {
        match kinds.iter().find(|(kind, _)| kind == field) {
            None if is_set(held) => errors.add(Errors::disallowed(&[field])),
            None => {}
            Some((kind, flag)) => {
                if !open(flag) {
                    errors.add(Errors::of(disabled(kind, volume), &[]).and(Errors::disallowed(&[field])));
                }
                specified.push(*kind);
                errors.add(source_fields(field, held, settings));
            }
        }
    }
    match specified.as_slice() {
        [] => {
            let wanted: Vec<&str> = kinds.iter().filter(|(_, flag)| open(flag)).map(|(kind, _)| *kind).collect();
            errors.add(Errors::neither(&wanted));
        }
        [_] => {}
        several => errors.add(Errors::both(several)),
    }
    errors
}

fn disabled(kind: &str, volume: &Value) -> String {
    let label = match kind {
        "emptyDir" => "EmptyDir",
        "hostPath" => "HostPath",
        "csi" => "CSI",
        "ephemeral" => "Ephemeral",
        "image" => "Image",
        // The claim is named, not the volume.
        _ => {
            let claim = text(&volume["persistentVolumeClaim"], "claimName");
            return format!("Persistent volume claim support is disabled, but found persistent volume claim {claim}");
        }
    };
    format!("{label} volume support is disabled, but found {label} volume {}", text(volume, "name"))
}

fn source_fields(kind: &str, held: &Value, settings: &Settings) -> Errors {
    let mut errors = Errors::none();
    match kind {
        "secret" | "configMap" => errors.add(key_paths(&held["items"])),
        "projected" => {
            for (i, part) in items(&held["sources"]).iter().enumerate() {
                errors.add(projection(part).via_field_index("projected", i));
            }
        }
        "emptyDir" => {
            let medium = text(held, "medium");
            if !matches!(medium, "" | "Memory") {
                errors.add(Errors::invalid(medium, "emptyDir.medium"));
            }
            if held["sizeLimit"].as_str().is_some_and(|size| quantity::parse(size).is_none_or(|n| n < 0.0)) {
                errors.add(Errors::invalid(text(held, "sizeLimit"), "emptyDir.sizeLimit"));
            }
        }
        "persistentVolumeClaim"
            if held["readOnly"] != true && settings.features.podspec_persistent_volume_write != Flag::Enabled =>
        {
            let message = format!(
                "Persistent volume write support is disabled, but found persistent volume claim {} that is not read-only",
                text(held, "claimName")
            );
            errors.add(Errors::of(message, &[]));
        }
        "image" => {
            if text(held, "reference").is_empty() {
                errors.add(Errors::missing(&["image.reference"]));
            }
            let policy = text(held, "pullPolicy");
            if !matches!(policy, "" | "IfNotPresent" | "Always" | "Never") {
                errors.add(Errors::invalid(policy, "image.pullPolicy"));
            }
        }
        _ => {}
    }
    errors
}

fn key_paths(list: &Value) -> Errors {
    let mut errors = Errors::none();
    for (i, item) in items(list).iter().enumerate() {
        let mut wrong = only(item, &["key", "path", "mode"]);
        for field in ["key", "path"] {
            if text(item, field).is_empty() {
                wrong.add(Errors::missing(&[field]));
            }
        }
        errors.add(wrong.via_field_index("items", i));
    }
    errors
}

fn projection(part: &Value) -> Errors {
    const KINDS: [&str; 4] = ["secret", "configMap", "serviceAccountToken", "downwardAPI"];
    let mut errors = only(part, &KINDS);
    let specified: Vec<&str> = KINDS.into_iter().filter(|kind| !part[*kind].is_null()).collect();
    match specified.as_slice() {
        [] => errors.add(Errors::neither(&KINDS)),
        [_] => {}
        several => errors.add(Errors::both(several)),
    }
    for kind in specified {
        let held = &part[kind];
        let wrong = match kind {
            "secret" | "configMap" => {
                let named = if text(held, "name").is_empty() { Errors::missing(&["name"]) } else { Errors::none() };
                only(held, &["name", "items", "optional"]).and(named).and(key_paths(&held["items"]))
            }
            "serviceAccountToken" => {
                let path = if text(held, "path").is_empty() { Errors::missing(&["path"]) } else { Errors::none() };
                only(held, &["audience", "expirationSeconds", "path"]).and(path)
            }
            _ => downward(held),
        };
        errors.add(wrong.via_field(kind));
    }
    errors
}

fn downward(held: &Value) -> Errors {
    let mut errors = Errors::none();
    for (i, item) in items(&held["items"]).iter().enumerate() {
        let mut wrong = only(item, &["path", "fieldRef", "resourceFieldRef", "mode"]);
        match (is_set(&item["fieldRef"]), is_set(&item["resourceFieldRef"])) {
            (false, false) => wrong.add(Errors::neither(&["fieldRef", "resourceFieldRef"])),
            (true, true) => {
                wrong.add(Errors::of("Within a single item, cannot set both", &["resourceFieldRef", "fieldRef"]));
            }
            _ => {}
        }
        if text(item, "path").is_empty() {
            wrong.add(Errors::missing(&["path"]));
        }
        errors.add(wrong.via_field_index("items", i));
    }
    errors
}
