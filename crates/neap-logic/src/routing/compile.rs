//! One Ingress object, compiled. What cannot be routed is left out and named in `problems`; the rest still serves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use neap_api::keys::{headers, neap};
use neap_api::networking::{HttpPath, Ingress, IngressSplit};

use super::extras::{self, Extras, PathMore};
use super::hash::network_hash;
use super::host::HOST_LIMIT;
use super::rule::{Backend, Header, HostRoutes, IngressKey, PathRule, Port, RevisionKey, SecretRef, Split};

/// `visibility` of a rule that the outside must not reach (F1.2).
const CLUSTER_LOCAL: &str = "ClusterLocal";
/// `httpOption` that sends plain requests to https (F1.5).
const REDIRECTED: &str = "Redirected";

/// What one Ingress contributes to the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledIngress {
    /// Which Ingress.
    pub key: IngressKey,
    /// When it was created: of two that claim a host the older one gets it.
    pub created: Option<Timestamp>,
    /// Its K-Network-Hash.
    pub hash: Arc<str>,
    /// The routes of each host pattern it names.
    pub hosts: Vec<(Arc<str>, Arc<HostRoutes>)>,
    /// The certificate of each host pattern it names one for.
    pub certificates: Vec<(Arc<str>, Arc<SecretRef>)>,
    /// What it asks for beyond Knative; few do.
    pub extras: Option<Arc<Extras>>,
    /// What was left out, and why, one sentence each.
    pub problems: Vec<String>,
}

/// Compiles an Ingress. Its class is not looked at.
pub fn compile(ingress: &Ingress) -> CompiledIngress {
    let key = IngressKey::new(
        ingress.metadata.namespace.as_deref().unwrap_or_default(),
        ingress.metadata.name.as_deref().unwrap_or_default(),
    );
    let hash: Arc<str> = network_hash(ingress).into();
    let mut problems = Vec::new();
    let annotation = |name: &str| ingress.metadata.annotations.as_ref()?.get(name).map(String::as_str);
    let (extras, wrong) = extras::extras(&key, annotation);
    problems.extend(wrong.into_iter().map(|problem| format!("annotation {}: {}", problem.key, problem.message)));
    let extras = extras.into_part();
    let mut more = annotation(neap::PATHS)
        .and_then(|text| {
            let read = extras::read_paths(text);
            read.map_err(|error| problems.push(format!("annotation {}: {error}", neap::PATHS))).ok()
        })
        .unwrap_or_default();

    // Several rules may name the same host: their paths are put together, in the order of the rules.
    let mut sides: BTreeMap<Arc<str>, Sides> = BTreeMap::new();
    for (at, rule) in ingress.spec.rules.iter().enumerate() {
        let paths = rule.http.iter().flat_map(|http| &http.paths).enumerate();
        let paths: Vec<PathRule> =
            paths.filter_map(|(n, path)| path_rule(path, more.remove(&(at, n)), &key, &mut problems)).collect();
        if paths.is_empty() {
            problems.push(format!("spec.rules[{at}] has no path that can be routed"));
            continue;
        }
        // Paths are shared between the hosts of a rule; sorted here so that single-rule hosts share the sorted list.
        let paths: Arc<[PathRule]> = sorted(paths).into();
        let local = rule.visibility == CLUSTER_LOCAL;
        for host in patterns(&rule.hosts, &format!("spec.rules[{at}].hosts"), &mut problems) {
            let side = sides.entry(host).or_default();
            let side = if local { &mut side.local } else { &mut side.external };
            *side = Some(match side.take() {
                None => paths.clone(),
                Some(earlier) => sorted(earlier.iter().chain(paths.iter()).cloned().collect()).into(),
            });
        }
    }

    let redirect = ingress.spec.http_option == REDIRECTED;
    let secured: BTreeSet<String> =
        ingress.spec.tls.iter().flat_map(|tls| &tls.hosts).map(|host| host.to_ascii_lowercase()).collect();
    let hosts = sides
        .into_iter()
        .map(|(host, Sides { external, local })| {
            let (ingress, hash, extras) = (key.clone(), hash.clone(), extras.clone());
            // Nobody is sent to where no certificate can be shown: one for all names below another needs more than the
            // certificate of that name.
            let redirect = redirect && (!host.starts_with('*') || secured.contains(&*host));
            (host, Arc::new(HostRoutes { ingress, hash, redirect, external, local, extras }))
        })
        .collect();
    let mut certificates = Vec::new();
    for (at, tls) in ingress.spec.tls.iter().enumerate() {
        let secret = Arc::new(SecretRef {
            namespace: tls.secret_namespace.as_str().into(),
            name: tls.secret_name.as_str().into(),
        });
        for host in patterns(&tls.hosts, &format!("spec.tls[{at}].hosts"), &mut problems) {
            certificates.push((host, secret.clone()));
        }
    }
    let created = ingress.metadata.creation_timestamp.as_ref().map(|time| time.0);
    CompiledIngress { key, created, hash, hosts, certificates, extras, problems }
}

#[derive(Default)]
struct Sides {
    external: Option<Arc<[PathRule]>>,
    local: Option<Arc<[PathRule]>>,
}

/// F1.6: by rank; else the given order.
fn sorted(mut paths: Vec<PathRule>) -> Vec<PathRule> {
    paths.sort_by_key(|path| std::cmp::Reverse(path.rank()));
    paths
}

/// The host patterns of a list, in lower case; those nobody could ever ask for are reported.
fn patterns(hosts: &[String], field: &str, problems: &mut Vec<String>) -> Vec<Arc<str>> {
    let mut good = Vec::with_capacity(hosts.len());
    for host in hosts {
        let bare = host.strip_prefix("*.").unwrap_or(host);
        if bare.is_empty() || host.len() > HOST_LIMIT || (bare != "*" && bare.contains('*')) {
            problems.push(format!("{field}: {host:?} is not a host name"));
        } else {
            good.push(host.to_ascii_lowercase().into());
        }
    }
    good
}

fn path_rule(
    path: &HttpPath,
    more: Option<PathMore>,
    key: &IngressKey,
    problems: &mut Vec<String>,
) -> Option<PathRule> {
    let splits: Vec<Split> = path
        .splits
        .iter()
        .filter_map(|split| match split_rule(path, split, key) {
            Ok(split) => Some(split),
            Err(problem) => {
                problems.push(format!("path {:?}: {problem}", path.path));
                None
            }
        })
        .collect();
    let splits = match whole(splits) {
        Ok(splits) => splits.into(),
        Err(problem) => {
            problems.push(format!("path {:?}: {problem}", path.path));
            return None;
        }
    };
    Some(PathRule {
        prefix: path.path.as_str().into(),
        matches: path.headers.iter().map(|(name, wanted)| header(name, &wanted.exact)).collect(),
        more: more.map(Box::new),
        rewrite_host: Some(path.rewrite_host.as_str()).filter(|host| !host.is_empty()).map(Into::into),
        splits,
    })
}

/// F1.4: percents sum to 100, and a single split may leave its percent out.
fn whole(mut splits: Vec<Split>) -> Result<Vec<Split>, String> {
    if let [only] = &mut *splits {
        only.percent = 100;
        return Ok(splits);
    }
    match splits.iter().map(|split| u32::from(split.percent)).sum() {
        _ if splits.is_empty() => Err("it has no split that can be routed".to_owned()),
        100u32 => Ok(splits),
        sum => Err(format!("its splits sum to {sum} percent, want 100")),
    }
}

fn split_rule(path: &HttpPath, split: &IngressSplit, key: &IngressKey) -> Result<Split, String> {
    if split.service_name.is_empty() {
        return Err("a split names no service".to_owned());
    }
    let port = match &split.service_port {
        IntOrString::Int(number) => match u16::try_from(*number) {
            Ok(number) if number > 0 => Port::Number(number),
            _ => return Err(format!("port {number} of service {:?} is out of range", split.service_name)),
        },
        IntOrString::String(name) => Port::Name(name.as_str().into()),
    };
    let percent = u8::try_from(split.percent).ok().filter(|percent| *percent <= 100);
    let percent = percent.ok_or_else(|| format!("percent {} is out of range", split.percent))?;

    let mut set: BTreeMap<String, &str> = BTreeMap::new();
    for (name, value) in path.append_headers.iter().chain(&split.append_headers) {
        set.insert(name.to_ascii_lowercase(), value);
    }
    let namespace: Arc<str> = match split.service_namespace.as_str() {
        "" => key.namespace.clone(),
        namespace => namespace.into(),
    };
    let revision = set.get(headers::REVISION).map(|name| RevisionKey {
        namespace: set.get(headers::NAMESPACE).map_or_else(|| namespace.clone(), |ns| (*ns).into()),
        name: (*name).into(),
    });
    Ok(Split {
        backend: Backend { namespace, service: split.service_name.as_str().into(), port, revision },
        percent,
        headers: set.into_iter().map(|(name, value)| header(&name, value)).collect(),
    })
}

fn header(name: &str, value: &str) -> Header {
    Header { name: name.to_ascii_lowercase().into(), value: value.into() }
}
