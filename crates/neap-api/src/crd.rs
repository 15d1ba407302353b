//! Every kind the platform serves, described in the shape of a CustomResourceDefinition: names, scope, schema,
//! subresources, printer columns (facts A0). Written out by the installer on Kubernetes, registered as they are
//! in the platform's own API server.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionVersion,
    CustomResourceSubresourceStatus, CustomResourceSubresources, CustomResourceValidation, JSONSchemaProps,
};
use kube_core::CustomResourceExt;
use serde_json::Value;

use crate::schema;
use crate::{autoscaling, caching, networking, serving};

/// Knative's kinds with their old versions, then the built-in ones. Each description is made when it is asked for, since a pod's schema is large.
pub fn crds() -> impl Iterator<Item = CustomResourceDefinition> {
    knative().map(crate::old::with_old_versions).chain(crate::builtin::crds())
}

/// Knative's kinds alone, each in the one version that is stored: what an installation on Kubernetes needs.
pub fn knative() -> impl Iterator<Item = CustomResourceDefinition> {
    KNATIVE.iter().map(Description::crd)
}

struct Description {
    base: fn() -> CustomResourceDefinition,
    columns: &'static [Column],
    /// Duck-type labels (A0.14).
    ducks: &'static [&'static str],
}

/// Name, type, JSON path.
type Column = (&'static str, &'static str, &'static str);

const READY: Column = ("Ready", "string", ".status.conditions[?(@.type=='Ready')].status");
const REASON: Column = ("Reason", "string", ".status.conditions[?(@.type=='Ready')].reason");
const URL: Column = ("URL", "string", ".status.url");
const LATEST_CREATED: Column = ("LatestCreated", "string", ".status.latestCreatedRevisionName");
const LATEST_READY: Column = ("LatestReady", "string", ".status.latestReadyRevisionName");

const ADDRESSABLE: &str = "duck.knative.dev/addressable";
const PODSPECABLE: &str = "duck.knative.dev/podspecable";

const KNATIVE: &[Description] = &[
    Description {
        base: serving::Service::crd,
        columns: &[URL, LATEST_CREATED, LATEST_READY, READY, REASON],
        ducks: &[ADDRESSABLE, PODSPECABLE],
    },
    Description {
        base: serving::Configuration::crd,
        columns: &[LATEST_CREATED, LATEST_READY, READY, REASON],
        ducks: &[PODSPECABLE],
    },
    Description {
        base: serving::Revision::crd,
        columns: &[
            ("Config Name", "string", ".metadata.labels['serving\\.knative\\.dev/configuration']"),
            ("Generation", "string", ".metadata.labels['serving\\.knative\\.dev/configurationGeneration']"),
            READY,
            REASON,
            ("Actual Replicas", "integer", ".status.actualReplicas"),
            ("Desired Replicas", "integer", ".status.desiredReplicas"),
        ],
        ducks: &[],
    },
    Description { base: serving::Route::crd, columns: &[URL, READY, REASON], ducks: &[ADDRESSABLE] },
    Description { base: serving::DomainMapping::crd, columns: &[URL, READY, REASON], ducks: &[] },
    Description {
        base: autoscaling::PodAutoscaler::crd,
        columns: &[
            ("DesiredScale", "integer", ".status.desiredScale"),
            ("ActualScale", "integer", ".status.actualScale"),
            READY,
            REASON,
        ],
        ducks: &[],
    },
    Description { base: autoscaling::Metric::crd, columns: &[READY, REASON], ducks: &[] },
    Description { base: networking::Ingress::crd, columns: &[READY, REASON], ducks: &[] },
    Description {
        base: networking::ServerlessService::crd,
        columns: &[
            ("Mode", "string", ".spec.mode"),
            ("Activators", "integer", ".spec.numActivators"),
            ("ServiceName", "string", ".status.serviceName"),
            ("PrivateServiceName", "string", ".status.privateServiceName"),
            READY,
            REASON,
        ],
        ducks: &[],
    },
    Description { base: networking::Certificate::crd, columns: &[READY, REASON], ducks: &[] },
    Description { base: networking::ClusterDomainClaim::crd, columns: &[], ducks: &[] },
    Description { base: caching::Image::crd, columns: &[("Image", "string", ".spec.image")], ducks: &[] },
];

impl Description {
    fn crd(&self) -> CustomResourceDefinition {
        let mut crd = (self.base)();
        let labels = crd.metadata.labels.get_or_insert_default();
        labels.insert("app.kubernetes.io/name".into(), "knative-serving".into());
        labels.insert("knative.dev/crd-install".into(), "true".into());
        for duck in self.ducks {
            labels.insert((*duck).into(), "true".into());
        }
        for version in &mut crd.spec.versions {
            version.additional_printer_columns = columns(self.columns);
            version.subresources = Some(status_subresource());
            if let Some(validation) = &mut version.schema {
                schema::edit(validation, schema::for_knative);
            }
        }
        crd
    }
}

fn columns(columns: &[Column]) -> Option<Vec<CustomResourceColumnDefinition>> {
    (!columns.is_empty()).then(|| {
        columns
            .iter()
            .map(|(name, type_, path)| CustomResourceColumnDefinition {
                name: (*name).into(),
                type_: (*type_).into(),
                json_path: (*path).into(),
                ..Default::default()
            })
            .collect()
    })
}

/// Every Knative kind has the status subresource, and none has scale (A0).
fn status_subresource() -> CustomResourceSubresources {
    CustomResourceSubresources {
        status: Some(CustomResourceSubresourceStatus(Value::Object(Default::default()))),
        scale: None,
    }
}

/// A version with its schema; what `builtin` builds its descriptions from.
pub(crate) fn version(
    name: &str,
    schema: Option<JSONSchemaProps>,
    subresources: Option<CustomResourceSubresources>,
) -> CustomResourceDefinitionVersion {
    CustomResourceDefinitionVersion {
        name: name.into(),
        served: true,
        storage: true,
        schema: Some(CustomResourceValidation { open_api_v3_schema: schema }),
        subresources,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Facts A0: names, short names, categories, scope and columns as users and tools see them.
    #[test]
    fn a0_1_to_a0_12_knative_kinds_are_named_as_knative_names_them() {
        let mut rows = Vec::new();
        for crd in knative() {
            let names = &crd.spec.names;
            let version = &crd.spec.versions[0];
            let columns: Vec<_> =
                version.additional_printer_columns.iter().flatten().map(|c| c.name.as_str()).collect();
            rows.push(format!(
                "{}/{} {} {} [{}] [{}] {} | {}",
                crd.spec.group,
                version.name,
                names.kind,
                names.plural,
                names.short_names.as_deref().unwrap_or_default().join(","),
                names.categories.as_deref().unwrap_or_default().join(","),
                crd.spec.scope,
                columns.join(", "),
            ));
        }
        let want = include_str!("../tests/kinds.txt");
        assert_eq!(rows.join("\n") + "\n", want);
        let facts = ["A0.1", "A0.2", "A0.3", "A0.4", "A0.5", "A0.6", "A0.7", "A0.8", "A0.9", "A0.10", "A0.11", "A0.12"];
        assert_eq!(rows.len(), facts.len());
    }

    #[test]
    fn kinds_are_described_for_people() {
        for crd in knative() {
            let schema = serde_json::to_value(&crd.spec.versions[0].schema).expect("JSON");
            let root = &schema["openAPIV3Schema"];
            let about = root["description"].as_str().unwrap_or_default();
            assert!(about.ends_with('.') && !about.contains("derived type"), "{}: {about:?}", crd.spec.names.kind);
            assert!(root["required"].is_null(), "{}", crd.spec.names.kind);
        }
    }

    #[test]
    fn a0_14_kinds_say_what_they_can_stand_in_for() {
        let with = |duck: &str| -> Vec<String> {
            let labelled =
                knative().filter(|crd| crd.metadata.labels.as_ref().is_some_and(|all| all.contains_key(duck)));
            labelled.map(|crd| crd.spec.names.kind).collect()
        };
        assert_eq!(with(ADDRESSABLE), ["Service", "Route"]);
        assert_eq!(with(PODSPECABLE), ["Service", "Configuration"]);
    }

    /// A2.3, A3.3, A4.27, A5.3, A6.1 to A6.8: the fields of a status beside those that all have (A1.1).
    #[test]
    fn a1_1_a1_6_a2_3_a3_3_a4_27_a5_3_a6_7_a6_8_statuses() {
        let check = |kind: &str, want: &[&str]| {
            let crd = knative().find(|crd| crd.spec.names.kind == kind).expect("a kind");
            let schema = serde_json::to_value(&crd.spec.versions[0].schema).expect("JSON");
            let status = &schema["openAPIV3Schema"]["properties"]["status"]["properties"];
            let mut have: Vec<&str> = status.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
            let common = ["observedGeneration", "conditions", "annotations"];
            let mut all: Vec<&str> =
                if kind == "ClusterDomainClaim" { Vec::new() } else { common.iter().chain(want).copied().collect() };
            have.sort_unstable();
            all.sort_unstable();
            assert_eq!(have, all, "{kind}");
            if want.contains(&"address") {
                assert_eq!(status["address"]["properties"]["url"]["type"], "string");
            }
        };
        const LATEST: [&str; 2] = ["latestReadyRevisionName", "latestCreatedRevisionName"];
        check("Service", &[&LATEST[..], &["url", "address", "traffic"]].concat());
        check("Configuration", &LATEST);
        check(
            "Revision",
            &["logUrl", "containerStatuses", "initContainerStatuses", "actualReplicas", "desiredReplicas"],
        );
        check("Route", &["url", "address", "traffic"]);
        check("DomainMapping", &["url", "address"]);
        check("PodAutoscaler", &["serviceName", "metricsServiceName", "desiredScale", "actualScale"]);
        check("Metric", &[]);
        check("ServerlessService", &["serviceName", "privateServiceName"]);
        check("Ingress", &["publicLoadBalancer", "privateLoadBalancer"]);
        check("Certificate", &["notAfter", "http01Challenges"]);
        check("ClusterDomainClaim", &[]);
        check("Image", &[]);
    }

    /// What an API server stores is what was sent and what admission adds; one default is Kubernetes' own.
    #[test]
    fn schemas_of_knative_kinds_fill_in_protocols_only() {
        fn defaults(schema: &Value, path: &str, found: &mut Vec<String>) {
            for (key, held) in schema.as_object().into_iter().flatten() {
                if key == "default" && held.is_string() {
                    found.push(path.rsplit('/').next().unwrap_or_default().to_owned());
                }
                defaults(held, &format!("{path}/{key}"), found);
            }
        }
        let mut found = Vec::new();
        for crd in knative() {
            let schema = serde_json::to_value(&crd.spec.versions[0].schema).expect("JSON");
            assert!(!schema.to_string().contains("\"default\":{") && !schema.to_string().contains("\"default\":["));
            defaults(&schema, "", &mut found);
        }
        assert!(found.iter().all(|field| field == "protocol") && !found.is_empty(), "{found:?}");
    }

    #[test]
    fn schemas_are_structural_enough_to_be_objects() {
        for crd in crds() {
            for version in &crd.spec.versions {
                let schema = version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref()).expect("a schema");
                assert_eq!(schema.type_.as_deref(), Some("object"), "{}", crd.spec.names.kind);
            }
        }
    }
}
