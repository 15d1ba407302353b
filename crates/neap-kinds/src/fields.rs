//! Fields that a field selector may name, beyond `metadata.name` and `metadata.namespace`.

use neap_apiserver::jsonpath::JsonPath;
use neap_apiserver::selector::SelectableField;

/// Group, plural, fields; a field's label is its path.
const FIELDS: &[(&str, &str, &[&str])] = &[
    (
        "",
        "pods",
        &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
    ),
    (
        "",
        "events",
        &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
    ),
    ("", "secrets", &["type"]),
    ("", "namespaces", &["status.phase"]),
    ("", "nodes", &["spec.unschedulable"]),
    ("", "services", &["spec.clusterIP", "spec.type"]),
    ("apps", "replicasets", &["status.replicas"]),
];

pub(crate) fn all() -> impl Iterator<Item = (&'static str, &'static str, Vec<SelectableField>)> {
    FIELDS.iter().map(|(group, plural, labels)| {
        let fields =
            labels.iter().map(|label| SelectableField { label: (*label).to_owned(), path: path(label) }).collect();
        (*group, *plural, fields)
    })
}

fn path(label: &str) -> JsonPath {
    JsonPath::parse(&format!(".{label}")).expect("the labels above are plain paths")
}
