//! The v2 document in protobuf: the message kubectl's discovery client insists on, written by hand.
//!
//! Field numbers are those of the `openapi.v2.Document` schema. Only the words this server's documents use
//! are written.

use serde_json::{Map, Value};

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

/// Wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn tag(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.tag(field, LENGTH);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u64, message: Message) {
        self.bytes(field, &message.0);
    }

    fn text(&mut self, field: u64, value: Option<&Value>) {
        if let Some(text) = value.and_then(Value::as_str).filter(|text| !text.is_empty()) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u64, value: Option<&Value>) {
        for text in value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn flag(&mut self, field: u64, value: Option<&Value>) {
        if value == Some(&Value::Bool(true)) {
            self.tag(field, VARINT);
            self.varint(1);
        }
    }

    fn integer(&mut self, field: u64, value: Option<&Value>) {
        if let Some(number) = value.and_then(Value::as_u64) {
            self.tag(field, VARINT);
            self.varint(number);
        }
    }

    fn double(&mut self, field: u64, value: Option<&Value>) {
        if let Some(number) = value.and_then(Value::as_f64) {
            self.tag(field, FIXED64);
            self.0.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// Any value, as YAML, of which JSON is a part.
    fn any(&mut self, field: u64, value: Option<&Value>) {
        if let Some(value) = value {
            let mut any = Message::default();
            any.bytes(2, value.to_string().as_bytes());
            self.message(field, any);
        }
    }

    /// A map, as a list of named values.
    fn named(&mut self, field: u64, map: &Map<String, Value>, value: fn(&Value) -> Message) {
        for (name, one) in map {
            let mut entry = Message::default();
            entry.bytes(1, name.as_bytes());
            entry.message(2, value(one));
            self.message(field, entry);
        }
    }

    fn extensions(&mut self, field: u64, map: &Map<String, Value>) {
        for (name, value) in map.iter().filter(|(name, _)| name.starts_with("x-")) {
            let mut entry = Message::default();
            entry.bytes(1, name.as_bytes());
            entry.any(2, Some(value));
            self.message(field, entry);
        }
    }
}

fn object(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

/// Encodes a v2 document.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, document.get("swagger"));
    let mut info = Message::default();
    info.text(1, document.pointer("/info/title"));
    info.text(2, document.pointer("/info/version"));
    out.message(2, info);
    if let Some(paths) = object(document.get("paths")) {
        let mut message = Message::default();
        message.named(2, paths, path_item);
        out.message(8, message);
    }
    if let Some(definitions) = object(document.get("definitions")) {
        let mut message = Message::default();
        message.named(1, definitions, schema);
        out.message(9, message);
    }
    out.0
}

fn path_item(value: &Value) -> Message {
    let mut out = Message::default();
    for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(map) = object(value.get(method)) {
            out.message(field, operation(map));
        }
    }
    parameters(&mut out, 9, value.get("parameters"));
    out
}

fn operation(map: &Map<String, Value>) -> Message {
    let mut out = Message::default();
    out.text(3, map.get("description"));
    out.text(5, map.get("operationId"));
    out.texts(6, map.get("produces"));
    out.texts(7, map.get("consumes"));
    parameters(&mut out, 8, map.get("parameters"));
    if let Some(responses) = object(map.get("responses")) {
        let mut message = Message::default();
        message.named(1, responses, response);
        out.message(9, message);
    }
    out.texts(10, map.get("schemes"));
    out.extensions(13, map);
    out
}

fn response(value: &Value) -> Message {
    let mut inner = Message::default();
    inner.text(1, value.get("description"));
    if let Some(of) = value.get("schema") {
        let mut item = Message::default();
        item.message(1, schema(of));
        inner.message(2, item);
    }
    let mut out = Message::default();
    out.message(1, inner);
    out
}

fn parameters(out: &mut Message, field: u64, list: Option<&Value>) {
    for value in list.and_then(Value::as_array).into_iter().flatten() {
        let place = value.get("in").and_then(Value::as_str).unwrap_or_default();
        let mut inner = Message::default();
        let mut parameter = Message::default();
        if place == "body" {
            inner.text(2, value.get("name"));
            inner.text(3, value.get("in"));
            inner.flag(4, value.get("required"));
            if let Some(of) = value.get("schema") {
                inner.message(5, schema(of));
            }
            parameter.message(1, inner);
        } else {
            inner.flag(1, value.get("required"));
            inner.text(2, value.get("in"));
            inner.text(3, value.get("description"));
            inner.text(4, value.get("name"));
            // From the type on, a query parameter's numbers are one higher than a path parameter's.
            let (kind, unique, choice) = if place == "query" { (6, 20, 3) } else { (5, 19, 4) };
            inner.text(kind, value.get("type"));
            inner.flag(unique, value.get("uniqueItems"));
            let mut other = Message::default();
            other.message(choice, inner);
            parameter.message(2, other);
        }
        let mut item = Message::default();
        item.message(1, parameter);
        out.message(field, item);
    }
}

fn schema(value: &Value) -> Message {
    let mut out = Message::default();
    let Some(map) = value.as_object() else { return out };
    out.text(1, map.get("$ref"));
    out.text(2, map.get("format"));
    out.text(3, map.get("title"));
    out.text(4, map.get("description"));
    out.any(5, map.get("default"));
    out.double(6, map.get("multipleOf"));
    out.double(7, map.get("maximum"));
    out.flag(8, map.get("exclusiveMaximum"));
    out.double(9, map.get("minimum"));
    out.flag(10, map.get("exclusiveMinimum"));
    out.integer(11, map.get("maxLength"));
    out.integer(12, map.get("minLength"));
    out.text(13, map.get("pattern"));
    out.integer(14, map.get("maxItems"));
    out.integer(15, map.get("minItems"));
    out.flag(16, map.get("uniqueItems"));
    out.integer(17, map.get("maxProperties"));
    out.integer(18, map.get("minProperties"));
    out.texts(19, map.get("required"));
    for one in map.get("enum").and_then(Value::as_array).into_iter().flatten() {
        out.any(20, Some(one));
    }
    match map.get("additionalProperties") {
        Some(Value::Bool(allowed)) => {
            let mut item = Message::default();
            item.tag(2, VARINT);
            item.varint(u64::from(*allowed));
            out.message(21, item);
        }
        Some(of) => {
            let mut item = Message::default();
            item.message(1, schema(of));
            out.message(21, item);
        }
        None => {}
    }
    if let Some(kind) = map.get("type").and_then(Value::as_str) {
        let mut item = Message::default();
        item.bytes(1, kind.as_bytes());
        out.message(22, item);
    }
    if let Some(items) = map.get("items") {
        let mut item = Message::default();
        item.message(1, schema(items));
        out.message(23, item);
    }
    if let Some(properties) = object(map.get("properties")) {
        let mut message = Message::default();
        message.named(1, properties, schema);
        out.message(25, message);
    }
    out.extensions(31, map);
    out
}
