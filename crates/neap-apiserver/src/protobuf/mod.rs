//! Kubernetes' protobuf bodies as JSON values, one way: clients of kubectl's kind send the objects of Kubernetes' own
//! kinds in this form and do not ask whether it is understood; answers are always JSON, which they take.
//!
//! `fields.txt` is the wire format as data, one message a line: its name, then `json name:field number:type`. Types are
//! `s` string, `i` integer, `b` boolean, `y` bytes (base64 in JSON), `d` double, `!Name` a special form, or a message;
//! before them `*` marks a list, `%` a map from strings, `=` a message whose fields lie flat in the JSON of the one around
//! it. The table holds what a client may send to create or change; a message that is not in it is refused, never guessed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::LazyLock;

const TABLE: &str = include_str!("fields.txt");
/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Messages within messages; Kubernetes' own objects stay below 20.
const DEPTH: usize = 64;

/// Go writes these fields even when they are unset, so a zero in them is none. All other numbers and booleans are
/// pointers in Go: there a zero was meant.
const ZERO_IS_UNSET: &[&str] = &[
    "active",
    "allowed",
    "authenticated",
    "collisionCount",
    "containerPort",
    "count",
    "currentReplicas",
    "denied",
    "exclusive",
    "failed",
    "failureThreshold",
    "generation",
    "healthCheckNodePort",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostPort",
    "incomplete",
    "initialDelaySeconds",
    "lun",
    "maxReplicas",
    "maxSkew",
    "minReadySeconds",
    "nodePort",
    "observedGeneration",
    "partition",
    "paused",
    "periodSeconds",
    "port",
    "publishNotReadyAddresses",
    "readOnly",
    "ready",
    "restartCount",
    "stdin",
    "stdinOnce",
    "successThreshold",
    "timeoutSeconds",
    "tty",
    "unschedulable",
    "value",
    "weight",
];

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtobufError {
    #[error("the body does not begin as a Kubernetes protobuf body does")]
    NoMagic,
    #[error("{api_version} {kind} is not known in protobuf; send JSON")]
    Unknown { api_version: String, kind: String },
    #[error("the protobuf body is broken: {why}")]
    Broken { why: &'static str },
}

type Result<T> = std::result::Result<T, ProtobufError>;

pub(crate) fn decode(body: &[u8]) -> Result<Value> {
    let body = body.strip_prefix(MAGIC).ok_or(ProtobufError::NoMagic)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Fields(body) {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in Fields(meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => api_version = string(text)?,
                        (2, Wire::Bytes(text)) => kind = string(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let name =
        if kind == "DeleteOptions" { "meta/v1.DeleteOptions".to_owned() } else { message_name(&api_version, &kind) };
    if fields_of(&name).is_none() {
        return Err(ProtobufError::Unknown { api_version, kind });
    }
    let mut object = message(&name, raw, 0)?;
    object.insert("apiVersion".into(), json!(api_version));
    object.insert("kind".into(), json!(kind));
    Ok(Value::Object(object))
}

/// `v1` Pod is `core/v1.Pod`; `rbac.authorization.k8s.io/v1` Role is `rbac/v1.Role`.
fn message_name(api_version: &str, kind: &str) -> String {
    match api_version.split_once('/') {
        None => format!("core/{api_version}.{kind}"),
        Some((group, version)) => format!("{}/{version}.{kind}", group.split('.').next().unwrap_or(group)),
    }
}

/// A field of a message: its number, name and type.
type Field = (u64, &'static str, &'static str);

/// The fields of a message, by its name.
fn fields_of(name: &str) -> Option<&'static [Field]> {
    static MESSAGES: LazyLock<HashMap<&'static str, Vec<Field>>> = LazyLock::new(|| {
        let field = |text: &'static str| {
            let mut parts = text.splitn(3, ':');
            let (name, number, kind) = (parts.next()?, parts.next()?, parts.next()?);
            Some((number.parse().ok()?, name, kind))
        };
        let message = |line: &'static str| {
            let mut words = line.split_ascii_whitespace();
            Some((words.next()?, words.filter_map(field).collect()))
        };
        TABLE.lines().filter_map(message).collect()
    });
    MESSAGES.get(name).map(Vec::as_slice)
}

fn message(name: &str, bytes: &[u8], depth: usize) -> Result<Map<String, Value>> {
    if depth > DEPTH {
        return Err(ProtobufError::Broken { why: "too deep" });
    }
    let fields = fields_of(name).ok_or(ProtobufError::Broken { why: "a message that the table lacks" })?;
    let mut out = Map::new();
    for field in Fields(bytes) {
        let (number, wire) = field?;
        // A field that is younger than the table is dropped, as Kubernetes drops it.
        let Some((_, name, kind)) = fields.iter().find(|(n, ..)| *n == number) else { continue };
        if let Some(kind) = kind.strip_prefix('*') {
            let item = value(kind, wire, depth)?;
            if let Value::Array(list) = out.entry(*name).or_insert_with(|| json!([])) {
                list.push(item);
            }
        } else if let Some(kind) = kind.strip_prefix('%') {
            let (key, item) = entry(kind, wire, depth)?;
            if let Value::Object(map) = out.entry(*name).or_insert_with(|| json!({})) {
                map.insert(key, item);
            }
        } else if let Some(kind) = kind.strip_prefix('=') {
            if let Value::Object(flat) = value(kind, wire, depth)? {
                out.extend(flat);
            }
        } else {
            let item = value(kind, wire, depth)?;
            if !is_unset(name, &item) {
                out.insert((*name).to_owned(), item);
            }
        }
    }
    Ok(out)
}

fn is_unset(name: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Number(n) => n.as_i64() == Some(0) && ZERO_IS_UNSET.contains(&name),
        Value::Bool(b) => !b && ZERO_IS_UNSET.contains(&name),
        _ => false,
    }
}

fn entry(kind: &str, wire: Wire<'_>, depth: usize) -> Result<(String, Value)> {
    let Wire::Bytes(bytes) = wire else { return Err(ProtobufError::Broken { why: "a map entry is no message" }) };
    let (mut key, mut item) = (String::new(), None);
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Bytes(text)) => key = string(text)?,
            (2, wire) => item = Some(value(kind, wire, depth)?),
            _ => {}
        }
    }
    let item = match item {
        Some(item) => item,
        None if kind == "s" || kind == "y" => json!(""),
        None => value(kind, Wire::Bytes(&[]), depth)?,
    };
    Ok((key, item))
}

fn value(kind: &str, wire: Wire<'_>, depth: usize) -> Result<Value> {
    match (kind, wire) {
        ("s", Wire::Bytes(b)) => string(b).map(Value::String),
        ("y", Wire::Bytes(b)) => Ok(Value::String(STANDARD.encode(b))),
        // Negative numbers travel as their two's complement.
        ("i", Wire::Number(n)) => Ok(json!(n.cast_signed())),
        ("b", Wire::Number(n)) => Ok(json!(n != 0)),
        ("d", Wire::Fixed64(n)) => Ok(json!(f64::from_bits(n))),
        (special, Wire::Bytes(b)) if special.starts_with('!') => special_form(&special[1..], b),
        ("s" | "y" | "i" | "b" | "d", _) => {
            Err(ProtobufError::Broken { why: "a field has another type than it should" })
        }
        // Lists of strings that Go names as types of their own.
        (name, Wire::Bytes(b)) if name.ends_with(".ExtraValue") => {
            Ok(message(name, b, depth + 1)?.remove("items").unwrap_or_else(|| json!([])))
        }
        (name, Wire::Bytes(b)) => message(name, b, depth + 1).map(Value::Object),
        _ => Err(ProtobufError::Broken { why: "a message is no message" }),
    }
}

/// Messages that are not objects in JSON.
fn special_form(name: &str, bytes: &[u8]) -> Result<Value> {
    let (mut numbers, mut texts) = ([0i64; 4], [None; 4]);
    let mut seen = false;
    for field in Fields(bytes) {
        let (number, wire) = field?;
        seen = true;
        let at = (number as usize).min(4) - 1;
        match wire {
            Wire::Number(n) => numbers[at] = n.cast_signed(),
            Wire::Bytes(b) => texts[at] = Some(b),
            Wire::Fixed64(_) => {}
        }
    }
    let text = |at: usize| texts[at].map(string).transpose().map(Option::unwrap_or_default);
    match name {
        // Seconds and nanoseconds; the zero time is an empty message.
        "Time" | "MicroTime" if !seen => Ok(Value::Null),
        "Time" | "MicroTime" => {
            let nanos = i32::try_from(numbers[1]).unwrap_or(0);
            let at = jiff::Timestamp::new(numbers[0], if name == "Time" { 0 } else { nanos })
                .map_err(|_| ProtobufError::Broken { why: "a time out of range" })?;
            Ok(json!(if name == "Time" { at.to_string() } else { format!("{at:.6}") }))
        }
        "Quantity" => Ok(json!(text(0)?)),
        // Kind 1 is the string.
        "IntOrString" if numbers[0] == 1 => Ok(json!(text(2)?)),
        "IntOrString" => Ok(json!(numbers[1])),
        "RawExtension" | "FieldsV1" => match texts[0] {
            None | Some([]) => Ok(Value::Null),
            Some(raw) => {
                serde_json::from_slice(raw).map_err(|_| ProtobufError::Broken { why: "embedded JSON is none" })
            }
        },
        _ => Err(ProtobufError::Broken { why: "a form that the table lacks" }),
    }
}

fn string(bytes: &[u8]) -> Result<String> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| ProtobufError::Broken { why: "a string is not UTF-8" })
}

enum Wire<'a> {
    Number(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message in the order of the wire.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut out = 0u64;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first()?;
            self.0 = rest;
            out |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Some(out);
            }
        }
        None
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let key = self.varint()?;
        let number = key >> 3;
        let wire = match key & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Number(u64::from(u32::from_le_bytes(self.take(4)?.try_into().ok()?))),
            _ => return None,
        };
        (number > 0).then_some((number, wire))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(ProtobufError::Broken { why: "it ends in the middle of a field" }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
        out.extend([number << 3 | 2, bytes.len() as u8]);
        out.extend(bytes);
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let mut meta = Vec::new();
        put(&mut meta, 1, api_version.as_bytes());
        put(&mut meta, 2, kind.as_bytes());
        let mut out = MAGIC.to_vec();
        put(&mut out, 1, &meta);
        put(&mut out, 2, raw);
        out
    }

    #[test]
    fn a_config_map() {
        let (mut meta, mut entry, mut raw) = (Vec::new(), Vec::new(), Vec::new());
        put(&mut meta, 1, b"a");
        put(&mut meta, 2, b"");
        put(&mut meta, 8, b"");
        put(&mut entry, 1, b"k");
        put(&mut entry, 2, b"v");
        put(&mut raw, 1, &meta);
        put(&mut raw, 2, &entry);
        raw.extend([4 << 3, 0]);
        assert_eq!(
            decode(&body("v1", "ConfigMap", &raw)).unwrap(),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}, "immutable": false})
        );
    }

    #[test]
    fn special_forms() {
        let check = |name: &str, bytes: &[u8], want: Value| assert_eq!(special_form(name, bytes).unwrap(), want);
        check("IntOrString", &[8, 0, 16, 80], json!(80));
        check("IntOrString", &[8, 1, 26, 2, b'h', b'p'], json!("hp"));
        check("Quantity", &[10, 3, b'1', b'G', b'i'], json!("1Gi"));
        check("Time", &[8, 60], json!("1970-01-01T00:01:00Z"));
        check("Time", &[], Value::Null);
        check("FieldsV1", b"\x0a\x02{}", json!({}));
    }

    #[test]
    fn what_is_not_known_or_broken_is_refused() {
        assert_eq!(decode(b"{}"), Err(ProtobufError::NoMagic));
        assert!(matches!(decode(&body("ex.dev/v1", "Widget", b"")), Err(ProtobufError::Unknown { .. })));
        assert!(matches!(decode(&body("v1", "ConfigMap", &[10, 200])), Err(ProtobufError::Broken { .. })));
    }

    #[test]
    fn every_message_of_the_table_has_its_parts() {
        for line in TABLE.lines() {
            for field in line.split_ascii_whitespace().skip(1) {
                let kind = field.splitn(3, ':').nth(2).unwrap().trim_start_matches(['*', '%', '=']);
                let known =
                    matches!(kind, "s" | "i" | "b" | "y" | "d") || kind.starts_with('!') || fields_of(kind).is_some();
                assert!(known, "{field} of {line}");
            }
        }
    }
}
