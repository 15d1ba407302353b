//! What a pod refers to: config-maps, secrets, tokens, claims. Read from the spec once, so that everything can be
//! fetched before the rules in `spec` run, and so that a change of a config-map finds the pods it concerns. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, PodSpec, Secret, Service, ServiceAccount, Volume};

/// Seconds a projected token lives when the pod does not say; Kubernetes' default.
pub(super) const TOKEN_SECONDS: i64 = 3600;
/// Where programs look for the token that every pod may have.
pub(super) const TOKEN_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The account of pods that name none.
pub(super) const DEFAULT_ACCOUNT: &str = "default";

/// A token: audience (empty for the API server) and lifetime in seconds.
pub(super) type TokenNeed = (String, i64);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) config_maps: BTreeSet<String>,
    pub(super) secrets: BTreeSet<String>,
    pub(super) tokens: BTreeSet<TokenNeed>,
    pub(super) claims: BTreeSet<String>,
    pub(super) account: String,
    /// Environment variables for the services of the namespace.
    pub(super) services: bool,
}

/// What was found of what a pod needs. What is absent here does not exist.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) config_maps: BTreeMap<String, Arc<ConfigMap>>,
    pub(super) secrets: BTreeMap<String, Arc<Secret>>,
    pub(super) account: Option<Arc<ServiceAccount>>,
    pub(super) tokens: BTreeMap<TokenNeed, String>,
    /// Name to UID.
    pub(super) claims: BTreeMap<String, String>,
    pub(super) services: Vec<Service>,
}

pub(super) fn of(pod: &Pod) -> Needs {
    let mut needs = Needs::default();
    let Some(spec) = &pod.spec else { return needs };
    needs.account = account(spec).to_owned();
    needs.services = spec.enable_service_links.unwrap_or(true);
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        needs.container(container);
    }
    for volume in spec.volumes.iter().flatten() {
        needs.volume(volume, pod);
    }
    needs.secrets.extend(spec.image_pull_secrets.iter().flatten().map(|s| s.name.clone()));
    needs
}

/// Whether an object can have this name. Others are not even asked for: a name becomes part of an address and of a path.
pub(super) fn is_name(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().copied().is_some_and(plain)
            && bytes.last().copied().is_some_and(plain)
            && bytes.iter().all(|c| plain(*c) || *c == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// The account a pod runs as.
pub(super) fn account(spec: &PodSpec) -> &str {
    spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(DEFAULT_ACCOUNT)
}

/// Whether the pod gets a token it did not ask for by a volume. Unlike in a cluster the account `default` gives one
/// only to pods that say so: nobody gives it rights here, and a token costs each start a signature and a volume.
pub(super) fn wants_token(spec: &PodSpec, found: Option<&ServiceAccount>) -> bool {
    let mounted = |c: &Container| c.volume_mounts.iter().flatten().any(|m| m.mount_path == TOKEN_DIR);
    let own = spec.automount_service_account_token;
    let accounts = found.and_then(|a| a.automount_service_account_token);
    let wanted = own.or(accounts).unwrap_or(account(spec) != DEFAULT_ACCOUNT);
    wanted && found.is_some() && !spec.containers.iter().any(mounted)
}

/// The claim behind a volume, if it is one. A generic ephemeral volume is a claim named after the pod.
pub(super) fn claim(volume: &Volume, pod: &Pod) -> Option<String> {
    if let Some(claim) = &volume.persistent_volume_claim {
        return Some(claim.claim_name.clone());
    }
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    volume.ephemeral.as_ref().map(|_| format!("{pod_name}-{}", volume.name))
}

impl Needs {
    fn container(&mut self, container: &Container) {
        for source in container.env_from.iter().flatten() {
            self.config_maps.extend(source.config_map_ref.as_ref().map(|r| r.name.clone()));
            self.secrets.extend(source.secret_ref.as_ref().map(|r| r.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            self.config_maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
            self.secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
        }
    }

    fn volume(&mut self, volume: &Volume, pod: &Pod) {
        self.config_maps.extend(volume.config_map.as_ref().map(|c| c.name.clone()));
        self.secrets.extend(volume.secret.as_ref().and_then(|s| s.secret_name.clone()));
        if volume.persistent_volume_claim.is_some() {
            self.claims.extend(claim(volume, pod));
        }
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            self.config_maps.extend(source.config_map.as_ref().map(|c| c.name.clone()));
            self.secrets.extend(source.secret.as_ref().map(|s| s.name.clone()));
            if let Some(token) = &source.service_account_token {
                let audience = token.audience.clone().unwrap_or_default();
                self.tokens.insert((audience, token.expiration_seconds.unwrap_or(TOKEN_SECONDS)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_reference_of_a_pod_is_found() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {
                "enableServiceLinks": false,
                "imagePullSecrets": [{"name": "pull"}],
                "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "s1"}}]}],
                "containers": [{
                    "name": "c",
                    "envFrom": [{"configMapRef": {"name": "m1"}}],
                    "env": [
                        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m2", "key": "k"}}},
                        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s2", "key": "k"}}},
                    ],
                }],
                "volumes": [
                    {"name": "v1", "configMap": {"name": "m3"}},
                    {"name": "v2", "secret": {"secretName": "s3"}},
                    {"name": "v3", "persistentVolumeClaim": {"claimName": "data"}},
                    {"name": "v4", "projected": {"sources": [
                        {"configMap": {"name": "m4"}}, {"secret": {"name": "s4"}},
                        {"serviceAccountToken": {"path": "t", "audience": "vault", "expirationSeconds": 600}},
                    ]}},
                ],
            },
        }))
        .unwrap();
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<BTreeSet<_>>();
        let want = Needs {
            config_maps: names(&["m1", "m2", "m3", "m4"]),
            secrets: names(&["pull", "s1", "s2", "s3", "s4"]),
            tokens: BTreeSet::from([("vault".to_owned(), 600)]),
            claims: names(&["data"]),
            account: "default".to_owned(),
            services: false,
        };
        assert_eq!(of(&pod), want);
    }

    #[test]
    fn names_lead_nowhere() {
        for name in ["data", "a", "a-b.c-1", "web-data-0"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "data/status", "data?x=/../../etc", "a..b", "-a", "A", "a%2Fb", "a b"] {
            assert!(!is_name(name), "{name}");
        }
        assert!(!is_name(&"a".repeat(254)));
    }

    #[test]
    fn a_token_is_given_to_a_named_account_or_on_request() {
        let check = |name: &str, own: Option<bool>, accounts: Option<bool>, want: bool| {
            let service_account_name = Some(name.to_owned());
            let spec = PodSpec { automount_service_account_token: own, service_account_name, ..Default::default() };
            let account = ServiceAccount { automount_service_account_token: accounts, ..Default::default() };
            assert_eq!(wants_token(&spec, Some(&account)), want, "{name} {own:?} {accounts:?}");
        };
        check("robot", None, None, true);
        check("robot", Some(false), None, false);
        check("robot", None, Some(false), false);
        check("robot", Some(true), Some(false), true);
        check("", None, None, false);
        check("default", None, None, false);
        check("default", Some(true), None, true);
        check("default", None, Some(true), true);
        assert!(!wants_token(&PodSpec::default(), None));
    }
}
