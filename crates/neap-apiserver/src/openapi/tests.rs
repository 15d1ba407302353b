//! The documents hold what kubectl looks for in them.

use serde_json::{Value, json};

use super::*;

const VERBS: &[&str] = &["get", "list", "create", "update", "patch", "delete", "deletecollection", "watch"];

fn raw() -> Value {
    json!({
        "type": "object",
        "description": "A thing.",
        "required": ["metadata", "spec"],
        "properties": {
            "spec": {
                "type": "object",
                "properties": {
                    "port": {"x-kubernetes-int-or-string": true},
                    "maybe": {"type": "string", "nullable": true, "enum": ["a", "b"], "default": "a"},
                    "list": {
                        "type": "array",
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["port", "protocol"],
                        "items": {"type": "object", "properties": {"port": {"type": "integer"}}},
                    },
                },
            },
        },
    })
}

fn doc<'a>(group: &'a str, kind: &'a str, namespaced: bool, schema: &'a Value) -> KindDoc<'a> {
    KindDoc {
        group,
        version: "v1",
        kind,
        plural: "things",
        namespaced,
        verbs: VERBS,
        subresources: &["status", "log"],
        strategic: true,
        schema,
    }
}

#[test]
fn names_of_schemas() {
    let schema = raw();
    for (group, expected) in [
        ("", "io.k8s.api.core.v1.Thing"),
        ("apps", "io.k8s.api.apps.v1.Thing"),
        ("coordination.k8s.io", "io.k8s.api.coordination.v1.Thing"),
        ("apiextensions.k8s.io", "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.Thing"),
        ("serving.knative.dev", "dev.knative.serving.v1.Thing"),
    ] {
        assert_eq!(common::schema_name(&doc(group, "Thing", true, &schema), "Thing"), expected);
    }
}

#[test]
fn a_patch_announces_field_validation() {
    let schema = raw();
    let document = v3_group_version(&[doc("apps", "Thing", true, &schema)]);
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/things/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"], json!({"group": "apps", "version": "v1", "kind": "Thing"}));
    assert_eq!(patch["x-kubernetes-action"], "patch");
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedThing");
    let parameters: Vec<&str> =
        patch["parameters"].as_array().expect("a list").iter().filter_map(|p| p["name"].as_str()).collect();
    assert_eq!(parameters, ["dryRun", "fieldManager", "fieldValidation", "force"]);
}

#[test]
fn paths_follow_scope_verbs_and_subresources() {
    let schema = raw();
    let paths = |doc: KindDoc<'_>| -> Vec<String> {
        let document = v3_group_version(&[doc]);
        let paths = document["paths"].as_object().expect("a map");
        paths
            .iter()
            .map(|(path, item)| {
                let methods: Vec<&str> = item
                    .as_object()
                    .expect("a map")
                    .keys()
                    .map(String::as_str)
                    .filter(|k| *k != "parameters")
                    .collect();
                format!("{path} {}", methods.join(","))
            })
            .collect()
    };
    assert_eq!(
        paths(doc("g.x", "Thing", true, &schema)),
        [
            "/apis/g.x/v1/namespaces/{namespace}/things delete,get,post",
            "/apis/g.x/v1/namespaces/{namespace}/things/{name} delete,get,patch,put",
            "/apis/g.x/v1/namespaces/{namespace}/things/{name}/status get,patch,put",
            "/apis/g.x/v1/things get",
        ]
    );
    let readable = KindDoc { verbs: &["get", "list"], subresources: &[], ..doc("", "Thing", false, &schema) };
    assert_eq!(paths(readable), ["/api/v1/things get", "/api/v1/things/{name} get"]);
}

#[test]
fn schemas_refer_to_shared_metadata() {
    let schema = raw();
    let document = v3_group_version(&[doc("g.x", "Thing", true, &schema)]);
    let schemas = &document["components"]["schemas"];
    let thing = &schemas["x.g.v1.Thing"];
    let reference = "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    assert_eq!(thing["properties"]["metadata"]["allOf"], json!([{"$ref": reference}]));
    assert_eq!(thing["required"], json!(["spec"]));
    assert_eq!(thing["description"], "A thing.");
    assert_eq!(thing["x-kubernetes-group-version-kind"], json!([{"group": "g.x", "version": "v1", "kind": "Thing"}]));
    let list = &thing["properties"]["spec"]["properties"]["list"];
    assert_eq!(list["x-kubernetes-patch-merge-key"], "port");
    assert_eq!(list["x-kubernetes-patch-strategy"], "merge");
    assert_eq!(
        schemas["x.g.v1.ThingList"]["properties"]["items"]["items"]["$ref"],
        "#/components/schemas/x.g.v1.Thing"
    );
    let meta = &schemas["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"]["properties"];
    assert_eq!(meta["ownerReferences"]["x-kubernetes-patch-merge-key"], "uid");
    check_references(&document, &document);
}

/// Every reference in the document must lead somewhere.
fn check_references(value: &Value, document: &Value) {
    match value {
        Value::Object(map) => {
            if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                let pointer = reference.strip_prefix('#').expect("a local reference");
                assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
            }
            map.values().for_each(|value| check_references(value, document));
        }
        Value::Array(items) => items.iter().for_each(|value| check_references(value, document)),
        _ => {}
    }
}

#[test]
fn the_old_version_says_what_it_can() {
    let schema = raw();
    let document = v2(&[doc("g.x", "Thing", true, &schema)]);
    check_references(&document, &document);
    let thing = &document["definitions"]["x.g.v1.Thing"]["properties"];
    assert_eq!(thing["metadata"]["$ref"], "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
    assert_eq!(thing["spec"]["properties"]["port"]["format"], "int-or-string");
    assert_eq!(thing["spec"]["properties"]["maybe"].get("nullable"), None);
    let text = document.to_string();
    assert!(!text.contains("\"allOf\"") && !text.contains("\"anyOf\""));
}

/// Reads one protobuf message into its fields: number and raw bytes (or the number of a varint).
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (byte, rest) = bytes.split_first().expect("a whole number");
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return value;
            }
        }
        unreachable!("the loop has no end");
    }
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let content = match tag & 7 {
            0 => varint(&mut bytes).to_le_bytes().to_vec(),
            1 => {
                let (number, rest) = bytes.split_at(8);
                bytes = rest;
                number.to_vec()
            }
            2 => {
                let length = varint(&mut bytes) as usize;
                let (content, rest) = bytes.split_at(length);
                bytes = rest;
                content.to_vec()
            }
            other => panic!("wire type {other}"),
        };
        out.push((tag >> 3, content));
    }
    out
}

fn only(bytes: &[u8], number: u64) -> Vec<u8> {
    let mut found = fields(bytes).into_iter().filter(|(field, _)| *field == number);
    let (_, content) = found.next().unwrap_or_else(|| panic!("field {number}"));
    assert!(found.next().is_none(), "field {number} once");
    content
}

fn named(bytes: &[u8], list: u64, name: &str) -> Vec<u8> {
    let entry = fields(bytes)
        .into_iter()
        .filter(|(field, _)| *field == list)
        .map(|(_, entry)| entry)
        .find(|entry| only(entry, 1) == name.as_bytes())
        .unwrap_or_else(|| panic!("{name}"));
    only(&entry, 2)
}

#[test]
fn the_old_version_in_protobuf() {
    let schema = raw();
    let document = v2_protobuf(&[doc("g.x", "Thing", true, &schema)]);
    assert_eq!(only(&document, 1), b"2.0");
    let thing = named(&only(&document, 9), 1, "x.g.v1.Thing");
    assert_eq!(only(&thing, 4), b"A thing.");
    assert_eq!(only(&thing, 19), b"spec", "required");
    assert_eq!(only(&only(&thing, 22), 1), b"object", "type");
    let extension = named(&thing, 31, "x-kubernetes-group-version-kind");
    assert_eq!(only(&extension, 2), br#"[{"group":"g.x","kind":"Thing","version":"v1"}]"#);
    let spec = named(&only(&thing, 25), 1, "spec");
    let maybe = named(&only(&spec, 25), 1, "maybe");
    assert_eq!(only(&only(&maybe, 5), 2), br#""a""#, "default");
    let path = named(&only(&document, 8), 2, "/apis/g.x/v1/namespaces/{namespace}/things/{name}");
    let patch = only(&path, 8);
    assert_eq!(only(&patch, 5), b"patchGXV1NamespacedThing");
    let queries: Vec<Vec<u8>> = fields(&patch)
        .into_iter()
        .filter(|(field, _)| *field == 8)
        .map(|(_, item)| only(&item, 1))
        .filter_map(|parameter| fields(&parameter).into_iter().find(|(choice, _)| *choice == 2))
        .map(|(_, other)| only(&only(&other, 3), 4))
        .collect();
    assert!(queries.contains(&b"fieldValidation".to_vec()));
}
