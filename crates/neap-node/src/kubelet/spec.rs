//! From an API pod and everything it refers to, to what the runtime must know. Values in, values out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container, LifecycleHandler, Pod, PodSecurityContext, PodSpec as ApiSpec, Probe as ApiProbe, ResourceRequirements,
    SeccompProfile, SecurityContext,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use neap_runtime::pod::{
    ContainerSpec, Dns, Hook, Mount, PodId, PodSpec, Port, Probe, ProbeAction, PullPolicy, Resources, RestartPolicy,
    Seccomp,
};

use super::env::{NodeFacts, environment, expand_with};
use super::needs::{DEFAULT_ACCOUNT, Found, TOKEN_DIR, TOKEN_SECONDS, account, wants_token};
use super::secrets::credentials;
use super::status::qos_class;
use super::volumes::{TOKEN_VOLUME, token_volume, volume};
use crate::quantity;

/// Kubernetes' default of `terminationGracePeriodSeconds`.
pub(super) const GRACE_SECONDS: i64 = 30;
/// Kubernetes' default `terminationMessagePath`.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// Kubernetes' probe defaults, in seconds and counts.
const PROBE_PERIOD: i32 = 10;
const PROBE_TIMEOUT: i32 = 1;
const PROBE_FAILURES: i32 = 3;
/// Names with fewer dots are first tried within the search domains, as in every Kubernetes pod.
const NDOTS: &str = "ndots:5";

/// What is the same for every pod of this machine.
#[derive(Clone, Debug)]
pub struct Surroundings {
    pub node: NodeFacts,
    /// The cluster's name server; without one pods use the machine's.
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// The machine's own resolver settings, for `dnsPolicy: Default`.
    pub host_dns: Dns,
    /// Directories of PersistentVolumeClaims, `NAMESPACE/NAME` below it.
    pub claims: PathBuf,
    /// Where pods reach the API server; without it they get neither its address nor a token unasked.
    pub api: Option<ApiAccess>,
}

#[derive(Clone, Debug)]
pub struct ApiAccess {
    pub host: String,
    pub port: u16,
    /// PEM of the authority that signed the server's certificate.
    pub authority: Vec<u8>,
}

/// Why a pod cannot be handed to the runtime yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SpecError {
    /// The container waits as `CreateContainerConfigError`.
    #[error("{message}")]
    Container { container: String, message: String },
    /// The pod waits as `ContainerCreating`; an event says why.
    #[error("MountVolume.SetUp failed for volume {volume:?} : {message}")]
    Volume { volume: String, message: String },
}

pub(super) fn pod_spec(pod: &Pod, found: &Found, around: &Surroundings) -> Result<PodSpec, SpecError> {
    let empty = ApiSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let name = pod.metadata.name.clone().unwrap_or_default();
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let mut volumes = BTreeMap::new();
    for declared in spec.volumes.iter().flatten() {
        let made = volume(declared, pod, found, &around.node, &around.claims)
            .map_err(|message| SpecError::Volume { volume: declared.name.clone(), message })?;
        volumes.insert(declared.name.clone(), made);
    }
    let mut mounts_token = false;
    if let Some(api) = &around.api
        && wants_token(spec, found.account.as_deref())
        && let Some(token) = found.tokens.get(&(String::new(), TOKEN_SECONDS))
    {
        mounts_token = true;
        volumes.insert(TOKEN_VOLUME.to_owned(), token_volume(token, &api.authority, &namespace));
    }
    let context = Context { pod, spec, found, around, mounts_token };
    let containers = |list: &[Container]| list.iter().map(|c| context.container(c)).collect::<Result<Vec<_>, _>>();
    let grace = pod.metadata.deletion_grace_period_seconds.or(spec.termination_grace_period_seconds);
    let groups = spec.security_context.clone().unwrap_or_default();
    let group = |number: i64| u32::try_from(number).ok();
    let aliases = spec.host_aliases.iter().flatten();
    Ok(PodSpec {
        id: PodId(pod.metadata.uid.clone().unwrap_or_default()),
        hostname: host_name(spec.hostname.as_deref().filter(|h| !h.is_empty()).unwrap_or(&name)),
        init_containers: containers(spec.init_containers.as_deref().unwrap_or_default())?,
        containers: containers(&spec.containers)?,
        volumes,
        restart: match spec.restart_policy.as_deref() {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        },
        dns: dns(spec, &namespace, around),
        share_process_namespace: spec.share_process_namespace.unwrap_or(false),
        host_network: spec.host_network.unwrap_or(false),
        host_pid: spec.host_pid.unwrap_or(false),
        host_ipc: spec.host_ipc.unwrap_or(false),
        grace: seconds(i32::try_from(grace.unwrap_or(GRACE_SECONDS)).unwrap_or(i32::MAX)),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        host_aliases: aliases
            .filter_map(|alias| Some((alias.ip.parse().ok()?, alias.hostnames.clone().unwrap_or_default())))
            .collect(),
        own_users: spec.host_users == Some(false),
        fs_group: groups.fs_group.and_then(group),
        supplemental_groups: groups.supplemental_groups.into_iter().flatten().filter_map(group).collect(),
        name,
        namespace,
    })
}

struct Context<'a> {
    pod: &'a Pod,
    spec: &'a ApiSpec,
    found: &'a Found,
    around: &'a Surroundings,
    mounts_token: bool,
}

impl Context<'_> {
    fn container(&self, c: &Container) -> Result<ContainerSpec, SpecError> {
        let failed = |message: String| SpecError::Container { container: c.name.clone(), message };
        let api = self.around.api.as_ref().map(|a| (a.host.as_str(), a.port));
        let env = environment(self.pod, c, self.found, &self.around.node, api).map_err(failed)?;
        let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
            list.iter().flatten().map(|text| expand_with(text, &env)).collect()
        };
        let pod_wide = self.spec.security_context.clone().unwrap_or_default();
        let own = c.security_context.clone().unwrap_or_default();
        if let Some(protection) = not_offered(self.spec, &pod_wide, &own) {
            return Err(failed(format!("{protection} is asked for, and not offered on this machine")));
        }
        let capabilities = own.capabilities.clone().unwrap_or_default();
        Ok(ContainerSpec {
            name: c.name.clone(),
            image: c.image.clone().unwrap_or_default(),
            pull: pull_policy(c),
            credentials: credentials(self.spec, self.found),
            command: expanded(&c.command),
            args: expanded(&c.args),
            working_dir: c.working_dir.clone().filter(|d| !d.is_empty()).map(PathBuf::from),
            user: own.run_as_user.or(pod_wide.run_as_user),
            group: own.run_as_group.or(pod_wide.run_as_group),
            run_as_non_root: own.run_as_non_root.or(pod_wide.run_as_non_root).unwrap_or(false),
            read_only_root: own.read_only_root_filesystem.unwrap_or(false),
            privileged: own.privileged.unwrap_or(false),
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            no_new_privileges: no_new_privileges(&own),
            resources: resources(c.resources.as_ref()),
            oom_score: Some(oom_score(self.spec, c, self.around.node.memory_bytes)),
            mounts: self.mounts(c, &env),
            ports: c.ports.iter().flatten().filter_map(port).collect(),
            startup: c.startup_probe.as_ref().and_then(|p| probe(p, c)),
            readiness: c.readiness_probe.as_ref().and_then(|p| probe(p, c)),
            liveness: c.liveness_probe.as_ref().and_then(|p| probe(p, c)),
            sidecar: c.restart_policy.as_deref() == Some("Always"),
            stdin: c.stdin.unwrap_or(false),
            stdin_once: c.stdin_once.unwrap_or(false),
            terminal: c.tty.unwrap_or(false),
            seccomp: seccomp(own.seccomp_profile.as_ref().or(pod_wide.seccomp_profile.as_ref())),
            post_start: c.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()).and_then(|h| handler(h, c)),
            pre_stop: c.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()).and_then(|h| handler(h, c)),
            termination_message_path: c
                .termination_message_path
                .clone()
                .filter(|p| !p.is_empty())
                .unwrap_or_else(|| TERMINATION_LOG.to_owned())
                .into(),
            termination_message_from_logs: c.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"),
            env,
        })
    }

    fn mounts(&self, c: &Container, env: &[(String, String)]) -> Vec<Mount> {
        let own = c.volume_mounts.iter().flatten().map(|m| {
            let below = m.sub_path.clone().or_else(|| m.sub_path_expr.as_ref().map(|e| expand_with(e, env)));
            Mount {
                volume: m.name.clone(),
                path: PathBuf::from(&m.mount_path),
                sub_path: below.filter(|p| !p.is_empty()).map(PathBuf::from),
                read_only: m.read_only.unwrap_or(false),
            }
        });
        let token = self.mounts_token.then(|| Mount {
            volume: TOKEN_VOLUME.to_owned(),
            path: PathBuf::from(TOKEN_DIR),
            sub_path: None,
            read_only: true,
        });
        own.chain(token).collect()
    }
}

/// Protections that a pod may ask for and would not get: better not to run than to run without.
fn not_offered(spec: &ApiSpec, pod: &PodSecurityContext, own: &SecurityContext) -> Option<&'static str> {
    let app_armor = own.app_armor_profile.as_ref().or(pod.app_armor_profile.as_ref());
    let shares = [spec.host_network, spec.host_pid, spec.host_ipc].contains(&Some(true));
    let shares_while_apart = spec.host_users == Some(false) && shares;
    let table = [
        (shares_while_apart, "hostUsers: false together with hostNetwork, hostPID or hostIPC"),
        (app_armor.is_some_and(|profile| profile.type_ == "Localhost"), "an AppArmor profile of its own"),
        (own.se_linux_options.is_some() || pod.se_linux_options.is_some(), "an SELinux label"),
        (pod.supplemental_groups_policy.as_deref() == Some("Strict"), "supplementalGroupsPolicy: Strict"),
        (own.proc_mount.as_deref() == Some("Unmasked"), "procMount: Unmasked"),
        (pod.sysctls.as_ref().is_some_and(|all| !all.is_empty()), "a kernel setting (sysctls)"),
        (spec.runtime_class_name.as_ref().is_some_and(|name| !name.is_empty()), "a runtime class"),
    ];
    table.into_iter().find_map(|(asked, what)| asked.then_some(what))
}

/// As long as the kernel and DNS allow.
fn host_name(name: &str) -> String {
    const LONGEST: usize = 63;
    name[..name.floor_char_boundary(LONGEST)].trim_end_matches(['-', '.']).to_owned()
}

/// The tokens that `pod_spec` will look for.
pub(super) fn unasked_token(pod: &Pod, found: &Found, around: &Surroundings) -> bool {
    around.api.is_some() && pod.spec.as_ref().is_some_and(|spec| wants_token(spec, found.account.as_deref()))
}

pub(super) fn account_of(pod: &Pod) -> &str {
    pod.spec.as_ref().map_or(DEFAULT_ACCOUNT, account)
}

/// Without a policy of its own an image without a fixed tag is asked for each time.
fn pull_policy(c: &Container) -> PullPolicy {
    pull_policy_of(c.image_pull_policy.as_deref(), c.image.as_deref().unwrap_or_default())
}

/// The same for an image that is a volume.
pub(super) fn pull_policy_of(policy: Option<&str>, image: &str) -> PullPolicy {
    match policy {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some("IfNotPresent") => PullPolicy::IfNotPresent,
        _ => {
            let name = image.rsplit('/').next().unwrap_or_default();
            let latest = !image.contains('@') && name.split_once(':').is_none_or(|(_, tag)| tag == "latest");
            if latest { PullPolicy::Always } else { PullPolicy::IfNotPresent }
        }
    }
}

fn no_new_privileges(context: &SecurityContext) -> bool {
    context.allow_privilege_escalation == Some(false) && context.privileged != Some(true)
}

/// Kubernetes' arithmetic: who asked for nothing goes first, who asked for much late, and who was promised what it has
/// last.
fn oom_score(spec: &ApiSpec, c: &Container, machine: u64) -> u16 {
    const FIRST: u16 = 1000;
    const LAST: u16 = 2;
    match qos_class(spec) {
        "Guaranteed" => LAST,
        "BestEffort" => FIRST,
        _ => {
            let asked = c.resources.as_ref().and_then(|r| r.requests.as_ref()?.get("memory"));
            let asked = asked.and_then(|q| quantity::parse(&q.0)).map_or(0, |a| a.units().max(0));
            let part = 1000 * asked / i128::from(machine.max(1));
            u16::try_from(1000 - part.min(1000)).unwrap_or(FIRST).clamp(LAST + 1, FIRST - 1)
        }
    }
}

/// Without a word of its own a container gets the runtime's profile, as a kubelet with `seccompDefault` has it.
fn seccomp(profile: Option<&SeccompProfile>) -> Seccomp {
    let Some(profile) = profile else { return Seccomp::Default };
    match profile.type_.as_str() {
        "Unconfined" => Seccomp::Unconfined,
        "Localhost" => Seccomp::Local(profile.localhost_profile.clone().unwrap_or_default().into()),
        _ => Seccomp::Default,
    }
}

fn resources(declared: Option<&ResourceRequirements>) -> Resources {
    let Some(declared) = declared else { return Resources::default() };
    let amount = |map: &Option<BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
                  name: &str| {
        map.as_ref().and_then(|m| m.get(name)).and_then(|q| quantity::parse(&q.0))
    };
    let positive = |n: i128| u64::try_from(n).ok().filter(|n| *n > 0);
    let cpu_limit = amount(&declared.limits, "cpu");
    Resources {
        cpu_request_milli: amount(&declared.requests, "cpu").or(cpu_limit).and_then(|a| positive(a.thousandths())),
        cpu_limit_milli: cpu_limit.and_then(|a| positive(a.thousandths())),
        memory_limit: amount(&declared.limits, "memory").and_then(|a| positive(a.units())),
        pids_limit: None,
        storage_limit: amount(&declared.limits, "ephemeral-storage").and_then(|a| positive(a.units())),
    }
}

fn port(p: &k8s_openapi::api::core::v1::ContainerPort) -> Option<Port> {
    let container_port = u16::try_from(p.container_port).ok()?;
    Some(Port { name: p.name.clone().unwrap_or_default(), container_port })
}

fn probe(p: &ApiProbe, c: &Container) -> Option<Probe> {
    let action = if let Some(exec) = &p.exec {
        ProbeAction::Exec(exec.command.clone().unwrap_or_default())
    } else if let Some(http) = &p.http_get {
        http_action(http, c)?
    } else if let Some(tcp) = &p.tcp_socket {
        ProbeAction::Tcp { port: number(&tcp.port, c)? }
    } else if let Some(grpc) = &p.grpc {
        let port = number(&IntOrString::Int(grpc.port), c)?;
        ProbeAction::Grpc { port, service: grpc.service.clone().unwrap_or_default() }
    } else {
        return None;
    };
    let given = |value: Option<i32>, default: i32| value.filter(|n| *n > 0).unwrap_or(default);
    let count = |value: Option<i32>, default: i32| given(value, default).unsigned_abs();
    Some(Probe {
        action,
        initial_delay: seconds(p.initial_delay_seconds.unwrap_or(0)),
        period: seconds(given(p.period_seconds, PROBE_PERIOD)),
        timeout: seconds(given(p.timeout_seconds, PROBE_TIMEOUT)),
        success_threshold: count(p.success_threshold, 1),
        failure_threshold: count(p.failure_threshold, PROBE_FAILURES),
        grace: p.termination_grace_period_seconds.map(|n| seconds(i32::try_from(n).unwrap_or(i32::MAX))),
    })
}

fn handler(h: &LifecycleHandler, c: &Container) -> Option<Hook> {
    if let Some(exec) = &h.exec {
        return Some(Hook::Act(ProbeAction::Exec(exec.command.clone().unwrap_or_default())));
    }
    if let Some(http) = &h.http_get {
        return http_action(http, c).map(Hook::Act);
    }
    if let Some(sleep) = &h.sleep {
        return Some(Hook::Sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))));
    }
    let tcp = h.tcp_socket.as_ref()?;
    Some(Hook::Act(ProbeAction::Tcp { port: number(&tcp.port, c)? }))
}

fn http_action(http: &k8s_openapi::api::core::v1::HTTPGetAction, c: &Container) -> Option<ProbeAction> {
    Some(ProbeAction::Http {
        port: number(&http.port, c)?,
        path: http.path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "/".to_owned()),
        https: http.scheme.as_deref() == Some("HTTPS"),
        host: http.host.clone().filter(|h| !h.is_empty()),
        headers: http.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
    })
}

/// A port by number or by its container's name for it. 0 means the container's first port, as Knative writes it.
fn number(port: &IntOrString, c: &Container) -> Option<u16> {
    let ports = || c.ports.iter().flatten();
    let declared = match port {
        IntOrString::Int(0) => ports().next()?.container_port,
        IntOrString::Int(n) => *n,
        IntOrString::String(name) => match name.parse::<i32>() {
            Ok(n) => n,
            Err(_) => ports().find(|p| p.name.as_deref() == Some(name))?.container_port,
        },
    };
    u16::try_from(declared).ok().filter(|n| *n > 0)
}

fn dns(spec: &ApiSpec, namespace: &str, around: &Surroundings) -> Dns {
    let host_network = spec.host_network.unwrap_or(false);
    let domain = &around.cluster_domain;
    let mut dns = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => Dns::default(),
        "Default" => around.host_dns.clone(),
        "ClusterFirst" if host_network => around.host_dns.clone(),
        _ if around.cluster_dns.is_empty() => around.host_dns.clone(),
        _ => {
            let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
            searches.extend(around.host_dns.searches.iter().cloned());
            Dns { nameservers: around.cluster_dns.clone(), searches, options: vec![NDOTS.to_owned()] }
        }
    };
    let Some(own) = &spec.dns_config else { return dns };
    // Beside what the policy gives, without repetition; an option of the same name replaces.
    for server in own.nameservers.iter().flatten().filter_map(|s| s.parse().ok()) {
        if !dns.nameservers.contains(&server) {
            dns.nameservers.push(server);
        }
    }
    for search in own.searches.iter().flatten() {
        if !dns.searches.contains(search) {
            dns.searches.push(search.clone());
        }
    }
    for option in own.options.iter().flatten() {
        let name = option.name.as_deref().unwrap_or_default();
        dns.options.retain(|o| o.split(':').next() != Some(name));
        dns.options.push(match &option.value {
            Some(value) => format!("{name}:{value}"),
            None => name.to_owned(),
        });
    }
    dns
}

fn seconds(n: i32) -> Duration {
    Duration::from_secs(u64::try_from(n).unwrap_or(0))
}

/// The machine's resolver settings out of its `resolv.conf`. Loopback servers do not answer from inside a pod's network.
pub fn read_resolv_conf(text: &str, keep_loopback: bool) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let server: Option<IpAddr> = words.next().and_then(|w| w.parse().ok());
                dns.nameservers.extend(server.filter(|ip| keep_loopback || !ip.is_loopback()));
            }
            Some("search" | "domain") => dns.searches = words.map(str::to_owned).collect(),
            Some("options") => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    dns
}

impl Surroundings {
    /// A machine without a cluster's name server and without access to the API from inside pods.
    pub fn new(node: NodeFacts, claims: impl AsRef<Path>) -> Self {
        Self {
            node,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            host_dns: Dns::default(),
            claims: claims.as_ref().to_owned(),
            api: None,
        }
    }
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
