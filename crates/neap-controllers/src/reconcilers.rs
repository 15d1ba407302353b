//! One controller per kind: which observation and which plan belong together.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use neap_api::keys::config;
use neap_api::networking::Certificate;
use neap_api::serving::Revision;
use neap_logic::certificates::Issuer;
use neap_logic::plan::cache::Cache;
use neap_logic::plan::{
    Context, Object, Plan, certificate, configuration, domainmapping, garbage, ingress, labeler, revision, route,
    serverlessservice, service, wildcard,
};

use crate::caches::Caches;
use crate::certificates::{Ask, Desk, certificate_of, held};
use crate::digests::Digests;
use crate::index::Key;
use crate::kinds::stand_ins;
use crate::ports::GatewayStatus;
use crate::shell::Reconciler;

macro_rules! plain {
    ($(#[$doc:meta])* $name:ident, $module:ident, $words:literal, $subject:ident) => {
        $(#[$doc])*
        pub(crate) struct $name;

        impl Reconciler for $name {
            const NAME: &'static str = $words;
            type Observed = $module::Observed;

            fn observe(&self, caches: &Caches, key: &Key, context: Context) -> Option<Self::Observed> {
                $module::observe(caches, &key.namespace, &key.name, context)
            }

            fn plan(&self, observed: &Self::Observed) -> Plan {
                $module::plan(observed)
            }

            fn subject(&self, observed: &Self::Observed) -> Object {
                Object::of(observed.$subject.as_ref())
            }
        }
    };
}

plain!(
    /// Service → Configuration and Route.
    Services, service, "service-controller", service
);
plain!(
    /// Configuration → Revisions.
    Configurations, configuration, "configuration-controller", configuration
);
plain!(
    /// Route → Ingress, placeholders, certificates.
    Routes, route, "route-controller", route
);
plain!(
    /// Route → marks on what it leads to.
    Labeler, labeler, "labeler-controller", route
);
plain!(
    /// DomainMapping → claim and Ingress.
    DomainMappings, domainmapping, "domainmapping-controller", mapping
);
plain!(
    /// Configuration → Revisions nobody will miss.
    Garbage, garbage, "gc-controller", configuration
);

plain!(
    /// Namespace → wildcard Certificates.
    Wildcards, wildcard, "nscert-controller", namespace
);

/// Revision → Deployment, PodAutoscaler, Images.
pub(crate) struct Revisions {
    pub(crate) digests: Digests,
}

impl Reconciler for Revisions {
    const NAME: &'static str = "revision-controller";
    type Observed = revision::Observed;

    fn observe(&self, caches: &Caches, key: &Key, context: Context) -> Option<Self::Observed> {
        let held = caches.get::<Revision>(&key.namespace, &key.name)?;
        let images = revision::images_to_resolve(&held, &context.settings);
        let known = self.digests.of(&held, &images, context.settings.deployment.digest_resolution_timeout);
        revision::observe(caches, &key.namespace, &key.name, known, context)
    }

    fn plan(&self, observed: &Self::Observed) -> Plan {
        revision::plan(observed)
    }

    fn subject(&self, observed: &Self::Observed) -> Object {
        Object::of(observed.revision.as_ref())
    }

    fn forget(&self, key: &Key) {
        self.digests.forget(key);
    }
}

/// ServerlessService → its two Services and the public Endpoints.
pub(crate) struct ServerlessServices;

impl Reconciler for ServerlessServices {
    const NAME: &'static str = "serverlessservice-controller";
    type Observed = serverlessservice::Observed;

    fn observe(&self, caches: &Caches, key: &Key, context: Context) -> Option<Self::Observed> {
        let gateway = &context.settings.neap.local_gateway;
        let stand_ins = stand_ins(caches, &Key::new(gateway.namespace.as_str(), gateway.name.as_str()));
        serverlessservice::observe(caches, &key.namespace, &key.name, stand_ins, context)
    }

    fn plan(&self, observed: &Self::Observed) -> Plan {
        serverlessservice::plan(observed)
    }

    fn subject(&self, observed: &Self::Observed) -> Object {
        Object::of(observed.serverless_service.as_ref())
    }
}

/// Ingress of our own class → what the gateway says about it.
pub(crate) struct Ingresses {
    pub(crate) gateway: Arc<dyn GatewayStatus>,
}

impl Reconciler for Ingresses {
    const NAME: &'static str = "ingress-controller";
    type Observed = ingress::Observed;

    fn observe(&self, caches: &Caches, key: &Key, context: Context) -> Option<Self::Observed> {
        ingress::observe(caches, &key.namespace, &key.name, self.gateway.served(key), context)
    }

    fn plan(&self, observed: &Self::Observed) -> Plan {
        ingress::plan(observed)
    }

    fn subject(&self, observed: &Self::Observed) -> Object {
        Object::of(observed.ingress.as_ref())
    }
}

/// Certificate of our own class → its Secret.
pub(crate) struct Certificates {
    pub(crate) desk: Desk,
}

impl Reconciler for Certificates {
    const NAME: &'static str = "certificate-controller";
    type Observed = certificate::Observed;

    fn observe(&self, caches: &Caches, key: &Key, context: Context) -> Option<Self::Observed> {
        let found = caches.get::<Certificate>(&key.namespace, &key.name);
        let uid = found.as_ref().and_then(|c| c.metadata.uid.clone()).unwrap_or_default();
        let order = certificate::order_name(&uid);
        for stale in self.orders(caches, key).filter(|name| *name != order) {
            self.desk.clean(&stale);
        }
        let certificate = found.filter(|certificate| certificate::is_ours(certificate))?;
        let secret = caches.get::<Secret>(&key.namespace, &certificate.spec.secret_name);
        let acme = context.settings.neap.acme.clone();
        let held = secret.as_deref().and_then(held);
        let chain = secret.as_ref().and_then(|secret| secret.data.as_ref()?.get(certificate::CHAIN));
        let chain = chain.and_then(|chain| String::from_utf8(chain.0.clone()).ok());
        // Who issued it knows when it is to be renewed.
        let issued = acme.as_ref().filter(|acme| held.as_ref().is_some_and(|held| held.issuer == acme.directory));
        let suggested = issued.zip(chain.as_deref()).and_then(|(acme, chain)| self.desk.suggested(key, acme, chain));
        let replaces = chain.filter(|_| suggested.is_some());
        let mut observed = certificate::Observed {
            secret,
            held,
            suggested,
            local: self.desk.local(),
            order: caches.get(config::NAMESPACE, &order),
            progress: certificate::Progress::Idle,
            challenges: Vec::new(),
            context,
            certificate,
        };
        match certificate::need(&observed) {
            certificate::Need::Issue(by @ (Issuer::Local | Issuer::Acme)) => {
                let names = observed.certificate.spec.dns_names.clone();
                let acme = acme.filter(|_| by == Issuer::Acme);
                (observed.progress, observed.challenges) =
                    self.desk.progress(Ask { key: key.clone(), uid, names, acme, replaces });
            }
            _ => self.desk.settle(key),
        }
        Some(observed)
    }

    fn plan(&self, observed: &Self::Observed) -> Plan {
        certificate::plan(observed)
    }

    fn subject(&self, observed: &Self::Observed) -> Object {
        Object::of(observed.certificate.as_ref())
    }

    fn forget(&self, key: &Key) {
        self.desk.forget(key);
    }
}

impl Certificates {
    /// The names of the Secrets of orders for a Certificate of that name.
    fn orders(&self, caches: &Caches, key: &Key) -> impl Iterator<Item = String> {
        let store = caches.store::<Secret>();
        let all: Vec<Arc<Secret>> = store
            .map(|store| store.read(|index| index.in_namespace(config::NAMESPACE).cloned().collect()))
            .unwrap_or_default();
        let of = move |secret: &Arc<Secret>| certificate_of(&secret.metadata).is_some_and(|of| of == *key);
        let names: Vec<String> = all.iter().filter(|s| of(s)).filter_map(|s| s.metadata.name.clone()).collect();
        names.into_iter()
    }
}
