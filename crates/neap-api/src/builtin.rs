//! The built-in Kubernetes kinds that one machine serves itself, in CRD shape. On Kubernetes none of this is used.

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::Resource;
use k8s_openapi::api::{
    apps::v1 as apps, autoscaling::v2 as autoscaling, coordination::v1 as coordination, core::v1 as core,
    discovery::v1 as discovery, events::v1 as events, rbac::v1 as rbac, storage::v1 as storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionNames, CustomResourceDefinitionSpec,
    CustomResourceSubresourceScale, CustomResourceSubresourceStatus, CustomResourceSubresources, JSONSchemaProps,
};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::crd::version;
use crate::schema;

/// The descriptions, each made when it is asked for.
pub fn crds() -> impl Iterator<Item = CustomResourceDefinition> {
    KINDS.iter().map(Kind::crd)
}

struct Kind {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    categories: &'static [&'static str],
    scope: &'static str,
    status: bool,
    /// Path of the label selector, where the kind can be scaled.
    scale: Option<&'static str>,
    schema: fn() -> Value,
}

const ALL: &[&str] = &["all"];
const NONE: &[&str] = &[];

/// A row: the type says group, version, kind and scope.
macro_rules! kind {
    ($type:ty, $plural:literal, $short:expr, $categories:expr, status: $status:literal, scale: $scale:expr) => {
        Kind {
            group: <$type as Resource>::GROUP,
            version: <$type as Resource>::VERSION,
            kind: <$type as Resource>::KIND,
            plural: $plural,
            short: $short,
            categories: $categories,
            scope: <<$type as Resource>::Scope as Scope>::WORD,
            status: $status,
            scale: $scale,
            schema: generate::<$type>,
        }
    };
    ($type:ty, $plural:literal, $short:expr, status: $status:literal) => {
        kind!($type, $plural, $short, NONE, status: $status, scale: None)
    };
}

/// The word for a type's scope.
trait Scope {
    const WORD: &'static str;
}

impl Scope for NamespaceResourceScope {
    const WORD: &'static str = "Namespaced";
}

impl Scope for ClusterResourceScope {
    const WORD: &'static str = "Cluster";
}

const KINDS: &[Kind] = &[
    kind!(core::Namespace, "namespaces", &["ns"], status: true),
    kind!(core::Node, "nodes", &["no"], status: true),
    kind!(core::Pod, "pods", &["po"], ALL, status: true, scale: None),
    kind!(core::Service, "services", &["svc"], ALL, status: true, scale: None),
    kind!(core::Endpoints, "endpoints", &["ep"], status: false),
    kind!(core::ConfigMap, "configmaps", &["cm"], status: false),
    kind!(core::Secret, "secrets", NONE, status: false),
    kind!(core::ServiceAccount, "serviceaccounts", &["sa"], status: false),
    kind!(core::Event, "events", &["ev"], status: false),
    kind!(core::PersistentVolumeClaim, "persistentvolumeclaims", &["pvc"], status: true),
    kind!(core::PersistentVolume, "persistentvolumes", &["pv"], status: true),
    kind!(core::ResourceQuota, "resourcequotas", &["quota"], status: true),
    kind!(core::LimitRange, "limitranges", &["limits"], status: false),
    kind!(events::Event, "events", &["ev"], status: false),
    kind!(apps::Deployment, "deployments", &["deploy"], ALL, status: true, scale: Some(".spec.selector")),
    kind!(apps::ReplicaSet, "replicasets", &["rs"], ALL, status: true, scale: Some(".spec.selector")),
    kind!(discovery::EndpointSlice, "endpointslices", NONE, status: false),
    kind!(coordination::Lease, "leases", NONE, status: false),
    kind!(autoscaling::HorizontalPodAutoscaler, "horizontalpodautoscalers", &["hpa"], ALL, status: true, scale: None),
    kind!(rbac::Role, "roles", NONE, status: false),
    kind!(rbac::RoleBinding, "rolebindings", NONE, status: false),
    kind!(rbac::ClusterRole, "clusterroles", NONE, status: false),
    kind!(rbac::ClusterRoleBinding, "clusterrolebindings", NONE, status: false),
    kind!(storage::StorageClass, "storageclasses", &["sc"], status: false),
];

impl Kind {
    fn crd(&self) -> CustomResourceDefinition {
        let props: JSONSchemaProps = serde_json::from_value((self.schema)()).expect("a generated schema is a schema");
        let subresources = (self.status || self.scale.is_some()).then(|| CustomResourceSubresources {
            status: self.status.then(|| CustomResourceSubresourceStatus(json!({}))),
            scale: self.scale.map(|selector| CustomResourceSubresourceScale {
                spec_replicas_path: ".spec.replicas".into(),
                status_replicas_path: ".status.replicas".into(),
                label_selector_path: Some(selector.into()),
            }),
        });
        CustomResourceDefinition {
            metadata: kube_core::ObjectMeta {
                name: Some(if self.group.is_empty() {
                    self.plural.into()
                } else {
                    format!("{}.{}", self.plural, self.group)
                }),
                ..Default::default()
            },
            spec: CustomResourceDefinitionSpec {
                group: self.group.into(),
                names: CustomResourceDefinitionNames {
                    kind: self.kind.into(),
                    list_kind: Some(format!("{}List", self.kind)),
                    plural: self.plural.into(),
                    singular: Some(self.kind.to_lowercase()),
                    short_names: some(self.short),
                    categories: some(self.categories),
                },
                scope: self.scope.into(),
                versions: vec![version(self.version, Some(schema::edited(props, schema::for_builtin)), subresources)],
                ..Default::default()
            },
            status: None,
        }
    }
}

fn some(words: &[&str]) -> Option<Vec<String>> {
    (!words.is_empty()).then(|| words.iter().map(|w| (*w).to_owned()).collect())
}

/// The OpenAPI v3 schema of a type, every reference written out.
fn generate<T: JsonSchema>() -> Value {
    let generator = SchemaSettings::openapi3().with(|s| s.inline_subschemas = true).into_generator();
    let mut value = generator.into_root_schema_for::<T>().to_value();
    if let Some(root) = value.as_object_mut() {
        for key in ["$schema", "title", "components"] {
            root.remove(key);
        }
    }
    if let Some(metadata) = value.pointer_mut("/properties/metadata") {
        // Checked by the API server itself, the same way for every kind.
        *metadata = json!({ "type": "object" });
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema_of(kind: &str) -> Value {
        let crd = crds().find(|c| c.spec.names.kind == kind).expect("the kind is served");
        serde_json::to_value(crd.spec.versions[0].schema.as_ref()).expect("json")["openAPIV3Schema"].take()
    }

    #[test]
    fn lists_carry_their_merge_keys() {
        let pod = schema_of("Pod");
        let containers = pod.pointer("/properties/spec/properties/containers").expect("containers");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        let ports = containers.pointer("/items/properties/ports").expect("ports");
        assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["containerPort", "protocol"]));
        assert_eq!(ports.pointer("/items/properties/protocol/default"), Some(&json!("TCP")));
        let service = schema_of("Service");
        let ports = service.pointer("/properties/spec/properties/ports").expect("ports");
        assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["port", "protocol"]));
    }

    #[test]
    fn quantities_are_numbers_or_strings() {
        let pod = schema_of("Pod");
        let limits = pod
            .pointer("/properties/spec/properties/containers/items/properties/resources/properties/limits/additionalProperties")
            .expect("limits");
        assert_eq!(limits["x-kubernetes-int-or-string"], true);
        assert!(limits.get("type").is_none());
    }

    #[test]
    fn deployments_can_be_scaled() {
        let crd = crds().find(|c| c.spec.names.kind == "Deployment").expect("deployments");
        let scale = crd.spec.versions[0].subresources.as_ref().and_then(|s| s.scale.as_ref()).expect("scale");
        assert_eq!(scale.spec_replicas_path, ".spec.replicas");
        assert_eq!(scale.label_selector_path.as_deref(), Some(".spec.selector"));
    }

    #[test]
    fn a_role_is_referred_to_as_a_whole() {
        for kind in ["RoleBinding", "ClusterRoleBinding"] {
            let schema = schema_of(kind);
            assert_eq!(schema.pointer("/properties/roleRef/x-kubernetes-map-type"), Some(&json!("atomic")), "{kind}");
        }
    }
}
