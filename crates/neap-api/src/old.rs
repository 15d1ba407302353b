//! The versions of the serving kinds that are only converted: `v1alpha1` and `v1beta1` of 2018 to 2020 (facts I1 to I7).
//!
//! Their objects are checked after conversion, by the schema of v1. So these schemas are for people and their tools: they
//! name and explain the words that v1 does not have, and let everything else pass. An installation on Kubernetes gets no
//! old versions, since nothing there would convert them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion,
};
use serde_json::{Map, Value, json};

use crate::schema;
use crate::serving::GROUP;

/// Newest first. Both versions are read with the same words.
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];

/// Makes the schema of a spec; none where the shape has not changed.
type Spec = Option<fn() -> Value>;

/// Adds the old versions to a kind that has some.
pub(crate) fn with_old_versions(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let (names, spec): (&[&str], Spec) = match crd.spec.names.kind.as_str() {
        _ if crd.spec.group != GROUP => (&[], None),
        "Service" => (&VERSIONS, Some(service)),
        "Configuration" => (&VERSIONS, Some(configuration)),
        "Revision" => (&VERSIONS, Some(revision)),
        "Route" => (&VERSIONS, Some(route)),
        // It began as v1alpha1 in the shape it still has.
        "DomainMapping" => (&["v1alpha1"], None),
        _ => (&[], None),
    };
    let Some(stored) = crd.spec.versions.first().cloned() else { return crd };
    for name in names {
        let mut version = CustomResourceDefinitionVersion {
            name: (*name).into(),
            storage: false,
            deprecated: Some(true),
            ..stored.clone()
        };
        let props = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        if let (Some(spec), Some(props)) = (spec, props.and_then(|props| props.properties.as_mut())) {
            props.insert("spec".into(), parse(spec()));
            if let Some(status) = props.remove("status") {
                props.insert("status".into(), schema::edited(status, old_status));
            }
        }
        crd.spec.versions.push(version);
    }
    crd
}

fn parse(schema: Value) -> k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps {
    serde_json::from_value(schema).expect("the schemas below are schemas")
}

fn text(about: &str) -> Value {
    json!({"type": "string", "description": about})
}

fn number(about: &str) -> Value {
    json!({"type": "integer", "format": "int64", "description": about})
}

fn words(about: &str, words: &[&str]) -> Value {
    json!({"type": "string", "description": about, "enum": words})
}

/// What today's versions describe in full.
fn anything(about: &str) -> Value {
    json!({"type": "object", "description": about, "x-kubernetes-preserve-unknown-fields": true})
}

fn list(about: &str, items: Value) -> Value {
    json!({"type": "array", "description": about, "items": items})
}

fn object(about: &str, fields: &[(&str, Value)]) -> Value {
    let fields: Map<String, Value> = fields.iter().map(|(name, field)| ((*name).to_owned(), field.clone())).collect();
    json!({"type": "object", "description": about, "properties": fields})
}

fn generation() -> (&'static str, Value) {
    ("generation", number("Counted by the server in old times; metadata.generation is the count today."))
}

fn service() -> Value {
    let inner = || {
        let about = "What to run: the spec of the Configuration that the Service owns.";
        ("configuration", object(about, &configuration_fields()))
    };
    let mut fields = vec![
        (
            "runLatest",
            object(
                "All requests go to the newest ready Revision. Today: no traffic, or one target with latestRevision.",
                &[inner()],
            ),
        ),
        (
            "release",
            object(
                "Requests go to one Revision, or are shared by two. Today: traffic with the tags current, candidate and latest.",
                &[
                    (
                        "revisions",
                        list(
                            "The current Revision and, while one is rolled out, the candidate. `@latest` is the newest ready one.",
                            json!({"type": "string"}),
                        ),
                    ),
                    ("rolloutPercent", number("Share of requests the candidate gets, 0 to 99.")),
                    inner(),
                ],
            ),
        ),
        (
            "pinned",
            object(
                "All requests go to one Revision. Today: traffic with its revisionName.",
                &[("revisionName", text("The Revision.")), inner()],
            ),
        ),
        (
            "manual",
            anything("The Service owns nothing; its Configuration and Route are cared for by hand. Says nothing else."),
        ),
        ("traffic", traffic()),
    ];
    fields.extend(configuration_fields());
    object("Exactly one of runLatest, release, pinned, manual, or template and traffic.", &fields)
}

fn configuration() -> Value {
    object("What to run.", &configuration_fields())
}

fn configuration_fields() -> Vec<(&'static str, Value)> {
    let template = |about: &str| {
        let metadata = anything("Labels, annotations and possibly the name of the Revision.");
        object(about, &[("metadata", metadata), ("spec", revision())])
    };
    vec![
        ("template", template("The template a new Revision is stamped from.")),
        ("revisionTemplate", template("The older name of template; only one of them may be set.")),
        (
            "build",
            anything("Refused: nothing builds images here. Build the image beforehand and name it in the container."),
        ),
        generation(),
    ]
}

fn revision() -> Value {
    let fields = [
        ("container", anything("The container that runs the code. Today: containers with one element.")),
        ("containers", list("The containers that run the code.", anything("A container, as Kubernetes describes it."))),
        (
            "concurrencyModel",
            words(
                "Single: one request at a time. Multi: several. Today: containerConcurrency 1 or 0.",
                &["Single", "Multi"],
            ),
        ),
        ("containerConcurrency", number("Requests one instance may handle at the same time; 0 means no limit.")),
        (
            "servingState",
            words(
                "Whether the Revision takes requests. Today: the label serving.knative.dev/routingState.",
                &["Active", "Reserve", "Retired"],
            ),
        ),
        ("timeoutSeconds", number("Seconds a request may take in all.")),
        ("serviceAccountName", text("The ServiceAccount of its pods.")),
        ("volumes", list("Volumes that containers may mount.", anything("A volume, as Kubernetes describes it."))),
        ("buildName", text("Refused: nothing builds images here.")),
        ("buildRef", anything("Refused: nothing builds images here.")),
        generation(),
    ];
    let mut schema = object("An immutable snapshot of code and configuration.", &fields);
    // The other fields of a pod.
    schema["x-kubernetes-preserve-unknown-fields"] = true.into();
    schema
}

fn route() -> Value {
    object("How requests are spread.", &[("traffic", traffic()), generation()])
}

fn traffic() -> Value {
    let target = object(
        "One share of the requests.",
        &[
            ("name", text("The older name of tag; only one of them may be set.")),
            ("tag", text("A name under which this target alone can be called.")),
            ("revisionName", text("The Revision to send to.")),
            ("configurationName", text("The Configuration whose latest ready Revision to send to.")),
            (
                "latestRevision",
                json!({"type": "boolean", "description": "Whether the target follows the latest ready Revision."}),
            ),
            ("percent", number("Share of requests, 0 to 100.")),
            ("url", text("Where the tag answers; only in a status.")),
        ],
    );
    list("How requests are spread over Revisions and Configurations.", target)
}

/// Adds the old words to the schema of today's status.
fn old_status(status: &mut Value) {
    let Some(fields) = status.get_mut("properties").and_then(Value::as_object_mut) else { return };
    if fields.contains_key("url") {
        fields.insert("domain".into(), text("The host of url."));
        fields.insert("domainInternal".into(), text("The host of address.url."));
    }
    if let Some(address) =
        fields.get_mut("address").and_then(|a| a.get_mut("properties")).and_then(Value::as_object_mut)
    {
        address.insert("hostname".into(), text("The host of url."));
    }
    if fields.contains_key("traffic") {
        fields.insert("traffic".into(), traffic());
    }
    if fields.contains_key("containerStatuses") {
        fields.insert("imageDigest".into(), text("The image of the first container, resolved to its digest."));
        fields.insert("serviceName".into(), text("The Kubernetes Service that reaches this Revision."));
    }
}

#[cfg(test)]
mod tests {
    /// Facts I1 to I7: each word of the old API can be looked up, and only the old API has it.
    #[test]
    fn a0_15_a7_8_old_words_are_described_in_old_versions_only() {
        let mut rows = Vec::new();
        let serving = crate::crd::knative().filter(|crd| crd.spec.group == super::GROUP);
        for crd in serving.map(super::with_old_versions) {
            for version in &crd.spec.versions {
                let schema = serde_json::to_string(&version.schema).expect("JSON");
                for word in [
                    "runLatest",
                    "release",
                    "pinned",
                    "manual",
                    "rolloutPercent",
                    "revisionTemplate",
                    "buildName",
                    "\"container\"",
                    "concurrencyModel",
                    "servingState",
                    "domainInternal",
                ] {
                    let is_old = schema.contains(&format!("\"{}\":", word.trim_matches('"')));
                    assert!(!is_old || version.deprecated == Some(true), "{word} in {}", version.name);
                }
                let deprecated = if version.deprecated == Some(true) { " deprecated" } else { "" };
                let stored = if version.storage { " stored" } else { "" };
                rows.push(format!("{} {}{stored}{deprecated}", crd.spec.names.kind, version.name));
            }
        }
        let both = |kind: &str| {
            ["v1 stored", "v1beta1 deprecated", "v1alpha1 deprecated"].map(|version| format!("{kind} {version}"))
        };
        let mut want: Vec<String> =
            ["Service", "Configuration", "Revision", "Route"].into_iter().flat_map(both).collect();
        want.extend(["DomainMapping v1beta1 stored".to_owned(), "DomainMapping v1alpha1 deprecated".to_owned()]);
        assert_eq!(rows, want);
    }
}
