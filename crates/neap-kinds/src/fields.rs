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
        let field =
            |label: &&str| SelectableField { label: (*label).to_owned(), path: path(label), absent: absent(label) };
        (*group, *plural, labels.iter().map(field).collect())
    })
}

fn path(label: &str) -> JsonPath {
    // The source of an event is an object, and its component is meant.
    let path = if label == "source" { "source.component" } else { label };
    JsonPath::parse(&format!(".{path}")).expect("the labels above are plain paths")
}

/// What a field is taken for that is not there.
fn absent(label: &str) -> &'static str {
    match label {
        "spec.hostNetwork" | "spec.unschedulable" => "false",
        "status.replicas" => "0",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_apiserver::selector::FieldSelector;
    use serde_json::json;

    #[test]
    fn what_is_not_there_has_the_value_of_its_type() {
        let check = |plural: &str, text: &str, object: serde_json::Value, want: bool| {
            let (_, _, fields) = all().find(|(_, p, _)| *p == plural).unwrap();
            let selector = FieldSelector::parse(text).unwrap();
            selector.check(&fields).unwrap();
            assert_eq!(selector.matches("ns", "a", &object, &fields), want, "{text} {object}");
        };
        check("nodes", "spec.unschedulable=false", json!({}), true);
        check("nodes", "spec.unschedulable=false", json!({"spec": {"unschedulable": true}}), false);
        check("nodes", "spec.unschedulable!=true", json!({}), true);
        check("pods", "spec.hostNetwork=false,spec.nodeName=", json!({}), true);
        check("replicasets", "status.replicas=0", json!({}), true);
        check("events", "source=kubelet", json!({"source": {"component": "kubelet"}}), true);
    }
}
