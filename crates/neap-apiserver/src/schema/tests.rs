//! What a schema does to objects, case by case in Kubernetes' words.

use serde_json::{Value, json};

use super::*;

/// A schema around one `spec`.
fn around(spec: Value) -> Value {
    json!({"type": "object", "properties": {"spec": spec}})
}

fn compiled(spec: Value) -> Schema {
    Schema::compile(&around(spec)).expect("a structural schema")
}

/// An object around one `spec`.
fn object(spec: Value) -> Value {
    json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n"}, "spec": spec})
}

#[track_caller]
fn check_validate(schema: Value, spec: Value, expected: &[&str]) {
    let found: Vec<String> = compiled(schema).validate(&object(spec)).iter().map(ToString::to_string).collect();
    assert_eq!(found, expected);
}

#[track_caller]
fn check_default(schema: Value, spec: Value, expected: Value) {
    let schema = compiled(schema);
    let mut value = object(spec);
    schema.default(&mut value);
    assert_eq!(value["spec"], expected);
    let before = value.clone();
    schema.default(&mut value);
    assert_eq!(value, before, "defaulting twice must change nothing");
}

#[track_caller]
fn check_prune(schema: Value, spec: Value, expected: Value, unknown: &[&str]) {
    let schema = compiled(schema);
    let mut value = object(spec);
    assert_eq!(schema.prune(&mut value), unknown);
    assert_eq!(value["spec"], expected);
    assert_eq!(schema.prune(&mut value), Vec::<String>::new(), "pruning twice must change nothing");
}

/// A field `f` of this shape in `spec`.
fn field(schema: Value) -> Value {
    json!({"type": "object", "properties": {"f": schema}})
}

#[test]
fn types() {
    let of = |kind: &str| field(json!({"type": kind}));
    check_validate(
        of("integer"),
        json!({"f": "x"}),
        &[r#"spec.f: Invalid value: "string": spec.f in body must be of type integer: "string""#],
    );
    check_validate(
        of("string"),
        json!({"f": 3}),
        &[r#"spec.f: Invalid value: "integer": spec.f in body must be of type string: "integer""#],
    );
    check_validate(
        of("string"),
        json!({"f": null}),
        &[r#"spec.f: Invalid value: "null": spec.f in body must be of type string: "null""#],
    );
    check_validate(
        of("boolean"),
        json!({"f": 1.5}),
        &[r#"spec.f: Invalid value: "number": spec.f in body must be of type boolean: "number""#],
    );
    check_validate(of("number"), json!({"f": 3}), &[]);
    check_validate(of("integer"), json!({"f": 3.0}), &[]);
    check_validate(
        of("integer"),
        json!({"f": 3.5}),
        &[r#"spec.f: Invalid value: "number": spec.f in body must be of type integer: "number""#],
    );
    check_validate(field(json!({"type": "string", "nullable": true})), json!({"f": null}), &[]);
    check_validate(
        json!({"type": "object"}),
        json!([]),
        &[r#"spec: Invalid value: "array": spec in body must be of type object: "array""#],
    );
}

#[test]
fn complaints_that_go_together() {
    // A wrong type is still outside an enumeration; a text that is too long is not also held to the pattern.
    check_validate(
        field(json!({"type": "string", "enum": ["a"]})),
        json!({"f": 3}),
        &[
            r#"spec.f: Invalid value: "integer": spec.f in body must be of type string: "integer""#,
            r#"spec.f: Unsupported value: 3: supported values: "a""#,
        ],
    );
    check_validate(
        field(json!({"type": "string", "maxLength": 1, "pattern": "^a$"})),
        json!({"f": "bb"}),
        &["spec.f: Too long: may not be more than 1 byte"],
    );
}

#[test]
fn int_or_string() {
    let schema = || field(json!({"x-kubernetes-int-or-string": true}));
    check_validate(schema(), json!({"f": 8080}), &[]);
    check_validate(schema(), json!({"f": "http"}), &[]);
    check_validate(
        schema(),
        json!({"f": true}),
        &[r#"spec.f: Invalid value: "boolean": spec.f in body must be of type integer,string: "boolean""#],
    );
    let spelled_out = field(json!({
        "x-kubernetes-int-or-string": true,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "pattern": "^[0-9]+%?$",
    }));
    check_validate(spelled_out.clone(), json!({"f": 5}), &[]);
    check_validate(
        spelled_out,
        json!({"f": "x"}),
        &[r#"spec.f: Invalid value: "x": spec.f in body should match '^[0-9]+%?$'"#],
    );
}

#[test]
fn numbers() {
    let schema = field(json!({"type": "integer", "minimum": 1, "maximum": 10, "multipleOf": 2}));
    check_validate(schema.clone(), json!({"f": 4}), &[]);
    check_validate(
        schema.clone(),
        json!({"f": 12}),
        &["spec.f: Invalid value: 12: spec.f in body should be less than or equal to 10"],
    );
    check_validate(
        schema.clone(),
        json!({"f": 0}),
        &["spec.f: Invalid value: 0: spec.f in body should be greater than or equal to 1"],
    );
    check_validate(schema, json!({"f": 3}), &["spec.f: Invalid value: 3: spec.f in body should be a multiple of 2"]);
    let exclusive = field(
        json!({"type": "number", "minimum": 0, "exclusiveMinimum": true, "maximum": 1, "exclusiveMaximum": true}),
    );
    check_validate(exclusive.clone(), json!({"f": 0.5}), &[]);
    check_validate(
        exclusive.clone(),
        json!({"f": 0}),
        &["spec.f: Invalid value: 0: spec.f in body should be greater than 0"],
    );
    check_validate(exclusive, json!({"f": 1}), &["spec.f: Invalid value: 1: spec.f in body should be less than 1"]);
    check_validate(
        field(json!({"type": "integer", "format": "int32"})),
        json!({"f": 3_000_000_000_i64}),
        &[r#"spec.f: Invalid value: "int64": spec.f in body must be of type int32: "int64""#],
    );
}

#[test]
fn texts() {
    let schema = field(json!({"type": "string", "minLength": 2, "maxLength": 3, "pattern": "^[a-zé]+$"}));
    check_validate(schema.clone(), json!({"f": "éé"}), &[]);
    check_validate(
        schema.clone(),
        json!({"f": "a"}),
        &[r#"spec.f: Invalid value: "a": spec.f in body should be at least 2 chars long"#],
    );
    check_validate(schema.clone(), json!({"f": "abcd"}), &["spec.f: Too long: may not be more than 3 bytes"]);
    check_validate(
        schema,
        json!({"f": "A1"}),
        &[r#"spec.f: Invalid value: "A1": spec.f in body should match '^[a-zé]+$'"#],
    );
    check_validate(
        field(json!({"type": "string", "enum": ["a", "b"]})),
        json!({"f": "c"}),
        &[r#"spec.f: Unsupported value: "c": supported values: "a", "b""#],
    );
    check_validate(
        field(json!({"type": "integer", "enum": [1, 2]})),
        json!({"f": 3}),
        &[r#"spec.f: Unsupported value: 3: supported values: "1", "2""#],
    );
}

#[test]
fn formats() {
    for (format, good, bad) in [
        ("date-time", &["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.5+02:00"][..], &["2026-01-02", "x"][..]),
        ("date", &["2026-01-02"], &["2026-13-02", "x"]),
        ("byte", &["aGk=", ""], &["aGk", "%"]),
        ("duration", &["1h30m", "0", "1.5s", "2 days"], &["", "1", "x", "1parsec"]),
        ("ipv4", &["10.0.0.1"], &["10.0.0", "::1"]),
        ("ipv6", &["::1"], &["10.0.0.1"]),
        ("cidr", &["10.0.0.0/8", "fd00::/8"], &["10.0.0.0/33", "10.0.0.0"]),
        ("hostname", &["a.example"], &["-a", "a..b", ""]),
        ("email", &["a@b"], &["a", "a@"]),
        ("uri", &["http://a/b", "/x"], &["", "a b"]),
        ("uuid", &["123e4567-e89b-12d3-a456-426614174000"], &["123e4567"]),
        ("mac", &["00:11:22:33:44:55"], &["00:11"]),
        ("of-our-own", &["anything"], &[]),
    ] {
        let schema = || field(json!({"type": "string", "format": format}));
        for text in good {
            check_validate(schema(), json!({"f": text}), &[]);
        }
        for text in bad {
            let expected =
                format!("spec.f: Invalid value: \"{text}\": spec.f in body must be of type {format}: \"{text}\"");
            check_validate(schema(), json!({"f": text}), &[&expected]);
        }
    }
}

#[test]
fn objects_and_lists() {
    check_validate(
        json!({"type": "object", "required": ["f"], "properties": {"f": {"type": "string"}}}),
        json!({}),
        &["spec.f: Required value"],
    );
    check_validate(
        field(
            json!({"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 2}),
        ),
        json!({"f": {"a": 1, "b": "x", "c": 3}}),
        &[
            "spec.f: Too many: 3: must have at most 2 items",
            r#"spec.f.b: Invalid value: "string": spec.f.b in body must be of type integer: "string""#,
        ],
    );
    check_validate(
        field(json!({"type": "object", "minProperties": 1, "x-kubernetes-preserve-unknown-fields": true})),
        json!({"f": {}}),
        &["spec.f: Invalid value: 0: spec.f in body should have at least 1 properties"],
    );
    let list = field(json!({
        "type": "array", "minItems": 1, "maxItems": 2,
        "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
    }));
    check_validate(
        list.clone(),
        json!({"f": []}),
        &["spec.f: Invalid value: 0: spec.f in body should have at least 1 items"],
    );
    check_validate(
        list,
        json!({"f": [{}, {"name": 1}, {"name": "x"}]}),
        &[
            "spec.f: Too many: 3: must have at most 2 items",
            "spec.f[0].name: Required value",
            r#"spec.f[1].name: Invalid value: "integer": spec.f[1].name in body must be of type string: "integer""#,
        ],
    );
}

#[test]
fn junctors() {
    let one_of = json!({
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
    });
    check_validate(one_of.clone(), json!({"a": "x"}), &[]);
    check_validate(
        one_of.clone(),
        json!({"a": "x", "b": "y"}),
        &[
            r#"<nil>: Invalid value: "": "spec" must validate one and only one schema (oneOf). Found 2 valid alternatives"#,
        ],
    );
    check_validate(
        one_of,
        json!({}),
        &[
            r#"<nil>: Invalid value: "": "spec" must validate one and only one schema (oneOf). Found none valid"#,
            "spec.a: Required value",
        ],
    );
    let any_of = json!({
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "anyOf": [{"properties": {"a": {"maximum": 1}}}, {"properties": {"a": {"minimum": 5}}}],
    });
    check_validate(any_of.clone(), json!({"a": 6}), &[]);
    check_validate(
        any_of,
        json!({"a": 3}),
        &[
            r#"<nil>: Invalid value: "": "spec" must validate at least one schema (anyOf)"#,
            "spec.a: Invalid value: 3: spec.a in body should be less than or equal to 1",
        ],
    );
    let all_of = json!({
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "allOf": [{"properties": {"a": {"maximum": 1}}}],
    });
    check_validate(
        all_of,
        json!({"a": 3}),
        &[
            "spec.a: Invalid value: 3: spec.a in body should be less than or equal to 1",
            r#"<nil>: Invalid value: "": "spec" must validate all the schemas (allOf)"#,
        ],
    );
    check_validate(
        json!({"type": "object", "properties": {"a": {"type": "string"}}, "not": {"required": ["a"]}}),
        json!({"a": "x"}),
        &[r#"<nil>: Invalid value: "": "spec" must not validate the schema (not)"#],
    );
}

#[test]
fn uniqueness() {
    check_validate(
        field(json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"})),
        json!({"f": ["a", "b", "a"]}),
        &[r#"spec.f[2]: Duplicate value: "a""#],
    );
    let keyed = field(json!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["port", "protocol"],
        "items": {
            "type": "object",
            "required": ["port"],
            "properties": {"port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}},
        },
    }));
    check_validate(keyed.clone(), json!({"f": [{"port": 1, "protocol": "UDP"}, {"port": 1}]}), &[]);
    check_validate(
        keyed,
        json!({"f": [{"port": 1, "protocol": "TCP"}, {"port": 1}]}),
        &[r#"spec.f[1]: Duplicate value: {"port":1}"#],
    );
}

#[test]
fn embedded_resources() {
    let schema = || {
        field(json!({
            "type": "object",
            "x-kubernetes-embedded-resource": true,
            "x-kubernetes-preserve-unknown-fields": true,
        }))
    };
    check_validate(schema(), json!({"f": {"apiVersion": "v1", "kind": "Pod", "spec": {"x": 1}}}), &[]);
    check_validate(
        schema(),
        json!({"f": {"kind": ""}}),
        &["spec.f.apiVersion: Required value", "spec.f.kind: Required value"],
    );
    check_prune(
        schema(),
        json!({"f": {"kind": "Pod", "metadata": {"name": "x", "bad": 1}, "spec": {"x": 1}}}),
        json!({"f": {"kind": "Pod", "metadata": {"name": "x"}, "spec": {"x": 1}}}),
        &["spec.f.metadata.bad"],
    );
}

#[test]
fn metadata_is_always_known() {
    let schema = compiled(json!({"type": "object"}));
    let mut value = json!({
        "apiVersion": "g/v1", "kind": "K", "extra": 1,
        "metadata": {"name": "n", "labels": {"a": "b"}, "unknown": true, "ownerReferences": [{"uid": "u", "x": 1}]},
    });
    assert_eq!(schema.prune(&mut value), ["extra", "metadata.ownerReferences[0].x", "metadata.unknown"]);
    let errors = schema.validate(&json!({"metadata": {"labels": {"a": 1}}}));
    assert_eq!(
        errors[0].to_string(),
        r#"metadata.labels.a: Invalid value: "integer": metadata.labels.a in body must be of type string: "integer""#
    );
    let restricted = Schema::compile(&json!({
        "type": "object",
        "properties": {"metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}}},
    }))
    .expect("names may be restricted");
    let errors = restricted.validate(&json!({"metadata": {"name": "long", "labels": {}}}));
    assert_eq!(errors[0].to_string(), "metadata.name: Too long: may not be more than 3 bytes");
}

#[test]
fn pruning() {
    let schema = json!({
        "type": "object",
        "properties": {
            "a": {"type": "string"},
            "list": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
            "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"type": "string"}}}},
            "free": {
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"known": {"type": "object", "properties": {"x": {"type": "string"}}}},
            },
            "empty": {"type": "object"},
        },
    });
    check_prune(
        schema.clone(),
        json!({
            "a": "x", "foo": 1,
            "list": [{"name": "n", "bar": 2}, {"name": "m"}],
            "map": {"k": {"x": "y", "z": 1}},
            "free": {"anything": {"goes": 1}, "known": {"x": "y", "not": 1}},
            "empty": {"gone": 1},
        }),
        json!({
            "a": "x",
            "list": [{"name": "n"}, {"name": "m"}],
            "map": {"k": {"x": "y"}},
            "free": {"anything": {"goes": 1}, "known": {"x": "y"}},
            "empty": {},
        }),
        &["spec.empty.gone", "spec.foo", "spec.free.known.not", "spec.list[0].bar", "spec.map.k.z"],
    );
    // A value of the wrong type is not pruned away before validation can name it.
    check_prune(schema, json!({"a": {"b": 1}}), json!({"a": {"b": 1}}), &[]);
}

#[test]
fn trusted_schemas_keep_arbitrary_objects() {
    let raw = around(field(json!({"type": "object"})));
    let mut value = object(json!({"f": {"x": 1}, "g": 1}));
    assert_eq!(Schema::compile_trusted(&raw).prune(&mut value), ["spec.g"]);
    assert_eq!(value["spec"], json!({"f": {"x": 1}}));
    assert_eq!(compiled(field(json!({"type": "object"}))).prune(&mut value), ["spec.f.x"]);
}

#[test]
fn permissive_keeps_everything_but_metadata() {
    let mut value = json!({"metadata": {"name": "n", "odd": 1}, "data": {"a": [1, {"b": null}]}});
    let schema = Schema::permissive();
    schema.default(&mut value);
    assert_eq!(schema.prune(&mut value), ["metadata.odd"]);
    assert_eq!(value["data"], json!({"a": [1, {"b": null}]}));
    assert!(schema.validate(&value).is_empty());
}

#[test]
fn defaulting() {
    // The documented example: `foo` has a default, `bar` is nullable with a default, `baz` is neither.
    let documented = json!({
        "type": "object",
        "properties": {
            "foo": {"type": "string", "nullable": false, "default": "default"},
            "bar": {"type": "string", "nullable": true},
            "baz": {"type": "string"},
        },
    });
    check_default(documented, json!({"foo": null, "bar": null, "baz": null}), json!({"foo": "default", "bar": null}));
    let nested = json!({
        "type": "object",
        "properties": {
            "absent": {"type": "object", "properties": {"x": {"type": "integer", "default": 1}}},
            "present": {"type": "object", "properties": {"x": {"type": "integer", "default": 1}}},
            "whole": {"type": "object", "default": {}, "properties": {"x": {"type": "integer", "default": 1}}},
            "list": {
                "type": "array",
                "items": {"type": "object", "properties": {"protocol": {"type": "string", "default": "TCP"}}},
            },
            "map": {
                "type": "object",
                "additionalProperties": {"type": "object", "properties": {"x": {"type": "integer", "default": 1}}},
            },
        },
    });
    check_default(
        nested,
        json!({"present": {}, "list": [{}, {"protocol": "UDP"}, {"protocol": null}], "map": {"k": {}}}),
        json!({
            "present": {"x": 1},
            "whole": {"x": 1},
            "list": [{"protocol": "TCP"}, {"protocol": "UDP"}, {"protocol": "TCP"}],
            "map": {"k": {"x": 1}},
        }),
    );
}

#[test]
fn nulls_of_generated_files_are_dropped() {
    let schema = compiled(json!({"type": "object"}));
    let mut value = json!({"metadata": {"name": "n", "creationTimestamp": null}, "spec": null});
    schema.default(&mut value);
    assert_eq!(value, json!({"metadata": {"name": "n"}}));
}

#[track_caller]
fn check_structural(schema: Value, expected: &[&str]) {
    let found: Vec<String> = match Schema::compile(&schema) {
        Ok(_) => Vec::new(),
        Err(error) => error.errors.iter().map(ToString::to_string).collect(),
    };
    assert_eq!(found, expected);
}

#[test]
fn structural_rules() {
    check_structural(json!({}), &["type: Required value: must not be empty at the root"]);
    check_structural(
        json!({"type": "array", "items": {"type": "string"}}),
        &[r#"type: Invalid value: "array": must be object at the root"#],
    );
    check_structural(
        around(json!({"properties": {"a": {"type": "array"}, "b": {"type": "array", "items": {}}}})),
        &[
            "properties[spec].properties[a].items: Required value: must be specified",
            "properties[spec].properties[b].items.type: Required value: must not be empty for specified array items",
            "properties[spec].type: Required value: must not be empty for specified object fields",
        ],
    );
    check_structural(
        json!({"type": "object", "additionalProperties": {"type": "string"}}),
        &["additionalProperties: Forbidden: must not be used at the root"],
    );
    check_structural(
        around(
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
        ),
        &["properties[spec].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive"],
    );
    check_structural(
        json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
        &[
            "properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified",
        ],
    );
    check_structural(
        around(json!({
            "type": "object",
            "properties": {"a": {"type": "string"}},
            "anyOf": [{"properties": {"a": {"type": "string"}, "b": {"pattern": "x"}}}],
            "not": {"description": "no"},
        })),
        &[
            "properties[spec].anyOf[0].properties[a].type: Forbidden: must be empty to be structural",
            "properties[spec].not.description: Forbidden: must be empty to be structural",
            "properties[spec].properties[b]: Required value: because it is defined in properties[spec].anyOf[0].properties[b]",
        ],
    );
    check_structural(
        around(field(json!({"type": "string", "pattern": "a(", "uniqueItems": true}))),
        &[
            "properties[spec].properties[f].pattern: Invalid value: \"a(\": must be a valid regular expression, but isn't: unclosed group",
            "properties[spec].properties[f].uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ],
    );
    check_structural(
        around(field(json!({
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name", "other"],
            "items": {"type": "object", "properties": {"name": {"type": "string"}}},
        }))),
        &[
            "properties[spec].properties[f].items.properties[name].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            r#"properties[spec].properties[f].x-kubernetes-list-map-keys: Invalid value: "other": entries must all be names of item properties"#,
        ],
    );
    check_structural(
        around(field(json!({"type": "string", "default": 5}))),
        &[
            r#"properties[spec].properties[f].default: Invalid value: "integer":  in body must be of type string: "integer""#,
        ],
    );
    check_structural(
        around(field(json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}))),
        &[],
    );
    check_structural(
        around(field(json!({
            "x-kubernetes-int-or-string": true,
            "allOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}, {"pattern": "x"}],
        }))),
        &[],
    );
}

#[test]
fn equal_schemas_are_one() {
    let spec = json!({"type": "object", "properties": {"a": {"type": "string", "description": "one"}}});
    let mut other = spec.clone();
    other["properties"]["a"]["description"] = "two".into();
    let (one, two) = (compiled(spec), compiled(other));
    assert!(one.same(&two), "descriptions do not make a difference");
    let kinds: Vec<Schema> =
        (0..2).map(|_| compiled(json!({"type": "object", "properties": {"b": {"type": "string"}}}))).collect();
    assert!(kinds[0].same(&kinds[1]));
    assert!(!kinds[0].same(&one));
}

/// Random values against one schema that has everything: pruning and defaulting are idempotent, and what
/// was pruned and defaulted has nothing left to prune.
#[test]
fn properties_of_random_values() {
    let schema = compiled(json!({
        "type": "object",
        "properties": {
            "a": {"type": "string", "default": "x"},
            "b": {"type": "object", "default": {}, "properties": {"c": {"type": "integer", "default": 1}}},
            "d": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "boolean", "default": true}}}},
            "e": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "f": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "string", "nullable": true}}}},
        },
    }));
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..500 {
        let mut value = object(random(&mut rng, 0));
        schema.prune(&mut value);
        schema.default(&mut value);
        let settled = value.clone();
        assert_eq!(schema.prune(&mut value), Vec::<String>::new());
        schema.default(&mut value);
        assert_eq!(value, settled);
    }
}

fn random(rng: &mut fastrand::Rng, depth: usize) -> Value {
    match rng.usize(0..if depth < 4 { 7 } else { 4 }) {
        0 => Value::Null,
        1 => rng.bool().into(),
        2 => rng.i32(-3..3).into(),
        3 => "x".into(),
        4 => (0..rng.usize(0..4)).map(|_| random(rng, depth + 1)).collect(),
        _ => Value::Object(
            (0..rng.usize(0..6)).map(|_| (rng.char('a'..='g').to_string(), random(rng, depth + 1))).collect(),
        ),
    }
}

#[test]
fn an_object_may_be_wide() {
    const MANY: usize = 66_000;
    let mut properties: serde_json::Map<String, Value> =
        (0..MANY).map(|n| (format!("a{n}"), json!({"type": "string"}))).collect();
    properties.insert("a0".into(), json!({"type": "string", "default": "x"}));
    let schema = Schema::compile(&json!({"type": "object", "properties": properties})).unwrap();
    let mut object = json!({"a65999": "y", "other": 1});
    assert_eq!(schema.prune(&mut object), ["other"]);
    schema.default(&mut object);
    assert_eq!(object, json!({"a0": "x", "a65999": "y"}));
}
