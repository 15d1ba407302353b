//! The kinds as one machine serves them: the descriptions of `neap-api`, the admission rules of `neap-logic`, and what
//! Kubernetes' own API server does for its built-in kinds beyond their schema (defaults, printer columns, selectable
//! fields), put together into the registry of an API server. The platform and the tests share it, so that a test talks
//! to the same API a user does.

mod columns;
mod defaults;
mod events;
mod fields;
mod rules;

use std::sync::{Arc, OnceLock};

use neap_api::{autoscaling, networking, serving};
use neap_apiserver::Registry;
use neap_apiserver::kind::{Check, Prepare};
use neap_apiserver::metadata::NameRule;
use neap_apiserver::{Admit, KindError};
use neap_logic::config::Settings;

/// Reads the settings in force; called for every admission.
pub type CurrentSettings = Arc<dyn Fn() -> Arc<Settings> + Send + Sync>;

/// Knative kinds that pass through admission (A7.5), by group and kind.
const ADMITTED: &[(&str, &str)] = &[
    (serving::GROUP, "Service"),
    (serving::GROUP, "Configuration"),
    (serving::GROUP, "Revision"),
    (serving::GROUP, "Route"),
    (serving::GROUP, "DomainMapping"),
    (autoscaling::GROUP, "PodAutoscaler"),
    (autoscaling::GROUP, "Metric"),
    (networking::GROUP, "Ingress"),
    (networking::GROUP, "ServerlessService"),
    (networking::GROUP, "Certificate"),
    ("", "ConfigMap"),
];

/// Kinds of the serving group that have old versions, by plural.
const CONVERTED: [&str; 5] = ["services", "configurations", "revisions", "routes", "domainmappings"];

/// Built-in kinds whose specification is not counted by a generation, by group and plural.
const WITHOUT_GENERATION: &[(&str, &str)] = &[
    ("", "namespaces"),
    ("", "services"),
    ("", "nodes"),
    ("", "persistentvolumes"),
    ("", "persistentvolumeclaims"),
    ("", "resourcequotas"),
    ("", "limitranges"),
    ("coordination.k8s.io", "leases"),
    ("autoscaling", "horizontalpodautoscalers"),
];

/// Built-in kinds of which a delete shows the object once more, by group and plural.
const SHOWN_WHEN_DELETED: &[(&str, &str)] = &[
    ("", "namespaces"),
    ("", "persistentvolumes"),
    ("", "persistentvolumeclaims"),
    ("", "pods"),
    ("", "resourcequotas"),
    ("", "serviceaccounts"),
    ("", "services"),
    ("storage.k8s.io", "storageclasses"),
];

/// Every kind of the platform.
///
/// # Errors
/// A description that cannot be served: a fault of this program, found by its tests.
pub fn registry(settings: CurrentSettings) -> Result<Registry, KindError> {
    let registry = described()?.fork();
    let admit: Admit = Arc::new(move |request| neap_logic::admit::admit(request, &settings()));
    for (group, kind) in ADMITTED {
        registry.admit(group, kind, admit.clone());
    }
    Ok(registry)
}

/// The kinds without what is decided by settings. Compiling every schema takes a while, and the result never changes, so
/// it is done once in a process.
fn described() -> Result<&'static Registry, KindError> {
    static DESCRIBED: OnceLock<Registry> = OnceLock::new();
    if let Some(registry) = DESCRIBED.get() {
        return Ok(registry);
    }
    let registry = describe()?;
    Ok(DESCRIBED.get_or_init(|| registry))
}

fn describe() -> Result<Registry, KindError> {
    let registry = Registry::new();
    for crd in neap_api::crds() {
        registry.register(&crd)?;
    }
    for (group, plural, columns) in columns::all() {
        registry.configure(group, plural, |kind| kind.columns = Some(columns));
    }
    for (group, plural, fields) in fields::all() {
        registry.configure(group, plural, |kind| kind.selectable = fields);
    }
    for (group, plural, prepare) in defaults::all() {
        registry.configure(group, plural, |kind| kind.prepare = Some(Arc::new(prepare) as Prepare));
    }
    for (group, plural, rule) in rules::all() {
        registry.configure(group, plural, |kind| kind.check = Some(Arc::new(rule) as Check));
    }
    for plural in CONVERTED {
        let convert = |object, from: &str, to: &str| {
            neap_logic::convert::convert(object, from, to).map_err(|errors| errors.refusals())
        };
        registry.convert(serving::GROUP, plural, Arc::new(convert));
    }
    for (group, plural) in WITHOUT_GENERATION {
        registry.configure(group, plural, |kind| kind.has_generation = Some(false));
    }
    for (group, plural) in SHOWN_WHEN_DELETED {
        registry.configure(group, plural, |kind| kind.shows_deleted = true);
    }
    registry.configure("discovery.k8s.io", "endpointslices", |kind| kind.has_generation = Some(true));
    // The scale subresource shows the selector, which no description of a built-in kind can say.
    registry.configure("apps", "deployments", |kind| {
        for scale in kind.versions.iter_mut().filter_map(|version| version.scale.as_mut()) {
            scale.selector = Some(vec!["spec".to_owned(), "selector".to_owned()]);
        }
    });
    registry.configure("coordination.k8s.io", "leases", |kind| kind.create_on_update = true);
    // Names of Services are names in DNS.
    registry.configure("", "services", |kind| kind.name_rule = NameRule::Label1035);
    registry.configure("", "pods", |kind| kind.grace = Some(Arc::new(defaults::pod_grace)));
    registry.alias("", "events", "events.k8s.io", "v1", Arc::new(events::convert));
    Ok(registry)
}
