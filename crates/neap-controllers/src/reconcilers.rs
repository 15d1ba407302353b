//! One controller per kind: which observation and which plan belong together.

use std::sync::Arc;

use neap_api::serving::Revision;
use neap_logic::plan::cache::Cache;
use neap_logic::plan::{
    Context, Object, Plan, configuration, domainmapping, garbage, ingress, labeler, revision, route, serverlessservice,
    service, wildcard,
};

use crate::caches::Caches;
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
