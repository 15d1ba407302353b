//! The certificate that the sidecars of a namespace show to gateway and activator (fact D4.4): one for each namespace that
//! runs revisions, while `system-internal-tls` is on.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use neap_api::keys::networking;
use neap_api::networking::{Certificate, CertificateSpec};

use super::cache::Cache;
use super::ensure::{Match, controller_ref, ensure, is_controlled_by};
use super::{Plan, meta};
use crate::conditions;
use crate::config::Settings;

/// The Certificate, and the Secret it is kept in.
pub const NAME: &str = "serving-certs";
/// The name by which every data plane is known to every other.
const DATA_PLANE: &str = "data-plane.knative.dev";
/// What certificates between the platform's parts carry as their type (C3.7).
const SYSTEM_INTERNAL: &str = "system-internal";

/// Whether revisions need the certificate: only a sidecar shows it.
pub fn is_needed(settings: &Settings) -> bool {
    settings.network.system_internal_tls && settings.deployment.queue_sidecar_image.is_some()
}

/// A namespace and the certificate of the sidecars in it.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The namespace.
    pub namespace: Option<Arc<Namespace>>,
    /// The certificate of that name, whoever owns it.
    pub certificate: Option<Arc<Certificate>>,
}

/// Gathers what [`plan`] needs, where there is anything to plan.
pub fn observe<C: Cache>(cache: &C, namespace: &str, settings: &Settings) -> Option<Observed> {
    is_needed(settings)
        .then(|| Observed { namespace: cache.get("", namespace), certificate: cache.get(namespace, NAME) })
}

/// Asks for the certificate of a namespace; says whether it can be used, or why not.
pub fn plan(o: &Observed, settings: &Settings, plan: &mut Plan) -> Result<(), String> {
    let held = o.certificate.as_deref();
    let Some(namespace) = o.namespace.as_deref() else { return Err("its namespace is not known yet".into()) };
    if held.is_some_and(|held| !is_controlled_by(&held.metadata, namespace)) {
        return Err(format!("there is an existing Certificate {NAME:?} that we do not own"));
    }
    let wanted = make(namespace, settings);
    let write = ensure(held, &wanted, Match::Exact);
    let changes = write.is_some();
    plan.write(write);
    let ready = held.filter(|_| !changes).is_some_and(|held| {
        let status = held.status.as_ref();
        status.is_some_and(|s| conditions::is_ready(&s.conditions, s.observed_generation, held.metadata.generation))
    });
    if ready { Ok(()) } else { Err(format!("Certificate {NAME} is not ready")) }
}

fn make(namespace: &Namespace, settings: &Settings) -> Certificate {
    let name = meta::name(&namespace.metadata);
    Certificate {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            namespace: Some(name.into()),
            labels: Some(BTreeMap::from([(networking::CERTIFICATE_TYPE.to_owned(), SYSTEM_INTERNAL.to_owned())])),
            annotations: Some(BTreeMap::from([(
                networking::CERTIFICATE_CLASS.to_owned(),
                settings.network.certificate_class.clone(),
            )])),
            owner_references: Some(vec![controller_ref(namespace)]),
            ..ObjectMeta::default()
        },
        spec: CertificateSpec {
            dns_names: vec![format!("kn-user-{name}"), DATA_PLANE.into()],
            domain: String::new(),
            secret_name: NAME.into(),
        },
        status: None,
    }
}
