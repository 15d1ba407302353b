//! From "it should look like this" to a write, or to none when it already does.
//!
//! Objects only we write must be *exactly* as wanted; of objects whose server fills in fields of its own, or that others
//! mark for their own ends, what is wanted must be *there*. To take such a mark off would begin a quarrel without end.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube_core::Resource;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Object, Write};

/// How an observed object is compared with the wanted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// Labels, annotations and everything outside metadata and status are equal.
    Exact,
    /// Labels and annotations have what is wanted; everything outside metadata and status is equal.
    Content,
    /// Everything wanted is there; what else is there stays.
    Contains,
}

/// The write that makes `observed` look like `wanted`, if one is needed.
pub fn ensure<K>(observed: Option<&K>, wanted: &K, how: Match) -> Option<Write>
where
    K: Resource<DynamicType = ()> + Serialize,
{
    let wanted = Object::of(wanted);
    let Some(observed) = observed else { return Some(Write::Create(wanted)) };
    let mut object = Object::of(observed);
    let before = object.value.clone();
    let fields = object.value.as_object_mut().expect("an API object is a JSON object");
    for (key, value) in wanted.value.as_object().expect("an API object is a JSON object") {
        match key.as_str() {
            "apiVersion" | "kind" | "status" => {}
            "metadata" => metadata(fields, value, how),
            _ => put(fields, key, value, how),
        }
    }
    (object.value != before).then_some(Write::Update(object))
}

fn metadata(fields: &mut Map<String, Value>, wanted: &Value, how: Match) {
    let Some(held) = fields.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    for part in ["labels", "annotations"] {
        match (wanted.get(part), how) {
            (Some(value), Match::Contains | Match::Content) => put(held, part, value, Match::Contains),
            (Some(value), Match::Exact) => put(held, part, value, Match::Exact),
            (None, Match::Exact) => {
                held.remove(part);
            }
            (None, Match::Contains | Match::Content) => {}
        }
    }
}

fn put(fields: &mut Map<String, Value>, key: &str, wanted: &Value, how: Match) {
    match (fields.get_mut(key), how) {
        (Some(held), Match::Contains) => overlay(held, wanted),
        (Some(held), Match::Exact | Match::Content) if held == wanted => {}
        _ => {
            fields.insert(key.to_owned(), wanted.clone());
        }
    }
}

/// Lays `wanted` over `held`: objects are merged, lists of equal length element by element, anything else is
/// replaced.
fn overlay(held: &mut Value, wanted: &Value) {
    match (held, wanted) {
        (Value::Object(held), Value::Object(wanted)) => {
            for (key, value) in wanted {
                match held.get_mut(key) {
                    Some(part) => overlay(part, value),
                    None => drop(held.insert(key.clone(), value.clone())),
                }
            }
        }
        (Value::Array(held), Value::Array(wanted)) if held.len() == wanted.len() => {
            held.iter_mut().zip(wanted).for_each(|(held, wanted)| overlay(held, wanted));
        }
        (held, wanted) if held != wanted => *held = wanted.clone(),
        _ => {}
    }
}

/// The reference by which a child names its controller.
pub fn controller_ref<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Whether `owner` controls the object with this metadata.
pub fn is_controlled_by<K: Resource<DynamicType = ()>>(child: &ObjectMeta, owner: &K) -> bool {
    let uid = owner.meta().uid.as_deref();
    child.owner_references.iter().flatten().any(|r| r.controller == Some(true) && uid.is_some_and(|uid| uid == r.uid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;
    use serde_json::json;

    fn service(value: Value) -> Service {
        serde_json::from_value(value).expect("a Service")
    }

    fn check(observed: Value, wanted: Value, how: Match, want: Option<Value>) {
        let got = ensure(Some(&service(observed)), &service(wanted), how).map(|write| match write {
            Write::Update(object) => object.value,
            other => panic!("{other:?}"),
        });
        assert_eq!(got, want.map(|value| serde_json::to_value(service(value)).expect("JSON")));
    }

    #[test]
    fn only_what_differs_is_written() {
        let stored = json!({
            "metadata": {"name": "a", "resourceVersion": "7", "labels": {"x": "1", "foreign": "y"}},
            "spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1", "ports": [{"port": 80, "protocol": "TCP"}]},
        });
        let wanted = json!({"metadata": {"name": "a", "labels": {"x": "1"}}, "spec": {"type": "ClusterIP", "ports": [{"port": 80}]}});
        check(stored.clone(), wanted.clone(), Match::Contains, None);
        let mut exact = stored.clone();
        exact["metadata"]["labels"] = json!({"x": "1"});
        exact["spec"] = wanted["spec"].clone();
        check(stored.clone(), wanted.clone(), Match::Exact, Some(exact));
        let mut content = stored.clone();
        content["spec"] = wanted["spec"].clone();
        check(stored.clone(), wanted, Match::Content, Some(content));
        let mut moved = stored.clone();
        moved["spec"]["ports"][0]["port"] = json!(81);
        check(
            stored,
            json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 81}]}}),
            Match::Contains,
            Some(moved),
        );
    }

    #[test]
    fn what_does_not_exist_is_created() {
        assert!(matches!(
            ensure(None, &service(json!({"metadata": {"name": "a"}})), Match::Exact),
            Some(Write::Create(_))
        ));
    }

    #[test]
    fn a1_11_a_child_names_its_controller() {
        let owner = service(json!({"metadata": {"name": "a", "uid": "u"}}));
        let reference = controller_ref(&owner);
        assert_eq!(
            serde_json::to_value(&reference).expect("JSON"),
            json!({"apiVersion": "v1", "kind": "Service", "name": "a", "uid": "u", "controller": true, "blockOwnerDeletion": true})
        );
        let child = ObjectMeta { owner_references: Some(vec![reference]), ..ObjectMeta::default() };
        assert!(is_controlled_by(&child, &owner));
        assert!(!is_controlled_by(&child, &service(json!({"metadata": {"name": "a", "uid": "other"}}))));
    }
}
