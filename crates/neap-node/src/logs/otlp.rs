//! OTLP's request for logs, in protobuf and in JSON (`opentelemetry/proto/collector/logs/v1`), and what a collector
//! answers. Both by hand: of the protocol's hundreds of messages these are the seven that are used.

use serde_json::{Value, json};

use super::record::{Origin, Record};

/// Who says that these are logs.
const SCOPE: &str = "neap";

/// Attributes of the container, by OpenTelemetry's conventions for resources.
fn resource(origin: &Origin) -> Vec<(&'static str, Attribute<'_>)> {
    let mut all = vec![
        ("service.name", Attribute::Text(&origin.service)),
        ("service.namespace", Attribute::Text(&origin.namespace)),
        ("service.instance.id", Attribute::Text(&origin.uid)),
        ("k8s.namespace.name", Attribute::Text(&origin.namespace)),
        ("k8s.pod.name", Attribute::Text(&origin.pod)),
        ("k8s.pod.uid", Attribute::Text(&origin.uid)),
        ("k8s.container.name", Attribute::Text(&origin.container)),
    ];
    let known = [
        ("service.version", origin.revision.as_deref()),
        ("kn.revision.name", origin.revision.as_deref()),
        ("kn.configuration.name", origin.configuration.as_deref()),
        ("k8s.node.name", Some(origin.node.as_str()).filter(|node| !node.is_empty())),
        ("host.name", Some(origin.host.as_str()).filter(|host| !host.is_empty())),
    ];
    all.extend(known.into_iter().filter_map(|(name, value)| Some((name, Attribute::Text(value?)))));
    all.extend(origin.restarts.map(|n| ("k8s.container.restart_count", Attribute::Number(u64::from(n)))));
    all
}

/// Attributes of a line.
fn attributes(record: &Record) -> Vec<(&'static str, Attribute<'_>)> {
    let mut all = Vec::new();
    match &record.origin.file {
        Some(path) => {
            all.push(("log.file.path", Attribute::Text(path)));
            all.push(("log.file.name", Attribute::Text(path.rsplit('/').next().unwrap_or(path))));
        }
        None => all.push(("log.iostream", Attribute::Text(record.stream.name()))),
    }
    if record.partial {
        all.push(("neap.partial", Attribute::Yes));
    }
    all
}

#[derive(Clone, Copy)]
enum Attribute<'a> {
    Text(&'a str),
    Number(u64),
    Yes,
}

/// Stretches of records with the same origin, in their order.
fn by_origin(records: &[Record]) -> impl Iterator<Item = (&Origin, &[Record])> {
    // The path of a file is an attribute of the line, not of the resource; but one resource more is no harm.
    let same = |a: &Record, b: &Record| std::sync::Arc::ptr_eq(&a.origin, &b.origin) || a.origin == b.origin;
    records.chunk_by(same).filter_map(|part| Some((part.first()?.origin.as_ref(), part)))
}

pub(super) fn protobuf(records: &[Record]) -> Vec<u8> {
    let mut request = Message::default();
    for (origin, records) in by_origin(records) {
        let mut own = Message::default();
        for (name, value) in resource(origin) {
            own.message(1, key_value(name, value));
        }
        let mut scope = Message::default();
        scope.text(1, SCOPE);
        let mut scope_logs = Message::default();
        scope_logs.message(1, scope);
        for record in records {
            scope_logs.message(2, log_record(record));
        }
        let mut resource_logs = Message::default();
        resource_logs.message(1, own);
        resource_logs.message(2, scope_logs);
        request.message(1, resource_logs);
    }
    request.0
}

fn log_record(record: &Record) -> Message {
    let mut log = Message::default();
    log.fixed64(1, record.time);
    if let Some(severity) = record.severity {
        log.varint_field(2, severity as u64);
        log.text(3, severity.name());
    }
    let mut body = Message::default();
    // Told even when it is empty: a line without a word is still a line.
    body.bytes(1, record.body.as_bytes());
    log.message(5, body);
    for (name, value) in attributes(record) {
        log.message(6, key_value(name, value));
    }
    log.fixed64(11, record.observed);
    log
}

fn key_value(name: &str, value: Attribute<'_>) -> Message {
    let mut any = Message::default();
    match value {
        Attribute::Text(text) => any.bytes(1, text.as_bytes()),
        Attribute::Yes => any.varint_field(2, 1),
        Attribute::Number(number) => any.varint_field(3, number),
    }
    let mut pair = Message::default();
    pair.text(1, name);
    pair.message(2, any);
    pair
}

/// A protobuf message as it is written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint_field(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn fixed64(&mut self, field: u64, value: u64) {
        self.varint(field << 3 | 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn text(&mut self, field: u64, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    fn message(&mut self, field: u64, value: Self) {
        self.bytes(field, &value.0);
    }
}

pub(super) fn json(records: &[Record]) -> Vec<u8> {
    let pairs = |all: Vec<(&'static str, Attribute<'_>)>| -> Vec<Value> {
        let value = |attribute| match attribute {
            Attribute::Text(text) => json!({"stringValue": text}),
            Attribute::Yes => json!({"boolValue": true}),
            // 64-bit numbers are text in protobuf's JSON.
            Attribute::Number(number) => json!({"intValue": number.to_string()}),
        };
        all.into_iter().map(|(name, attribute)| json!({"key": name, "value": value(attribute)})).collect()
    };
    let line = |record: &Record| {
        let mut log = json!({
            "timeUnixNano": record.time.to_string(),
            "observedTimeUnixNano": record.observed.to_string(),
            "body": {"stringValue": record.body},
            "attributes": pairs(attributes(record)),
        });
        if let Some(severity) = record.severity {
            log["severityNumber"] = json!(severity as u64);
            log["severityText"] = json!(severity.name());
        }
        log
    };
    let logs: Vec<Value> = by_origin(records)
        .map(|(origin, records)| {
            json!({
                "resource": {"attributes": pairs(resource(origin))},
                "scopeLogs": [{"scope": {"name": SCOPE}, "logRecords": records.iter().map(line).collect::<Vec<_>>()}],
            })
        })
        .collect();
    json!({"resourceLogs": logs}).to_string().into_bytes()
}

/// How many records a collector that took the request did not take, and why: `ExportLogsPartialSuccess`.
pub(super) fn rejected(body: &[u8], is_json: bool) -> Option<(u64, String)> {
    let (count, why) = if is_json {
        let answer: Value = serde_json::from_slice(body).ok()?;
        let partial = answer.get("partialSuccess")?;
        let count = partial.get("rejectedLogRecords")?;
        let count = count.as_u64().or_else(|| count.as_str()?.parse().ok())?;
        (count, partial.get("errorMessage").and_then(Value::as_str).unwrap_or_default().to_owned())
    } else {
        let partial = fields(body).find_map(|(field, value)| match (field, value) {
            (1, Field::Bytes(bytes)) => Some(bytes),
            _ => None,
        })?;
        let (mut count, mut why) = (0, String::new());
        for (field, value) in fields(partial) {
            match (field, value) {
                (1, Field::Number(number)) => count = number,
                (2, Field::Bytes(bytes)) => why = String::from_utf8_lossy(bytes).into_owned(),
                _ => {}
            }
        }
        (count, why)
    };
    (count > 0).then_some((count, why))
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of a message, as far as they can be read.
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = (u64, Field<'_>)> {
    fn varint(bytes: &mut &[u8]) -> Option<u64> {
        let mut value = 0;
        for at in 0..10 {
            let (first, rest) = bytes.split_first()?;
            *bytes = rest;
            value |= u64::from(first & 0x7f).checked_shl(7 * at)?;
            if first & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
    std::iter::from_fn(move || {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Field::Number(varint(&mut bytes)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Field::Bytes(value)
            }
            kind => {
                bytes = bytes.get(
                    match kind {
                        1 => 8,
                        5 => 4,
                        _ => return None,
                    }..,
                )?;
                Field::Other
            }
        };
        Some((key >> 3, value))
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::logs::record::{Severity, Stream};
    use std::sync::Arc;

    fn records() -> Vec<Record> {
        let origin = Origin {
            namespace: "default".into(),
            pod: "hello-00001-x".into(),
            uid: "u-1".into(),
            container: "user-container".into(),
            restarts: Some(2),
            service: "hello".into(),
            configuration: Some("hello".into()),
            revision: Some("hello-00001".into()),
            ..Origin::default()
        };
        let file = Origin { file: Some("/var/log/app/a.log".into()), restarts: None, ..origin.clone() };
        let record = |origin: Origin, stream, body: &str| Record {
            origin: Arc::new(origin),
            time: 1_700_000_000_000_000_001,
            observed: 1_700_000_000_000_000_002,
            stream,
            severity: None,
            body: body.into(),
            partial: false,
        };
        let grave = Record { severity: Some(Severity::Error), ..record(origin.clone(), Stream::Stderr, "{\"a\":1}") };
        let cut = Record { partial: true, ..record(file, Stream::File, "") };
        vec![record(origin, Stream::Stdout, "héllo"), grave, cut]
    }

    /// The request, read back into the form that JSON has.
    pub(in crate::logs) fn decode(bytes: &[u8]) -> Value {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
        let any = |bytes: &[u8]| match fields(bytes).next().expect("a value") {
            (1, Field::Bytes(bytes)) => json!({"stringValue": text(bytes)}),
            (2, Field::Number(n)) => json!({"boolValue": n == 1}),
            (3, Field::Number(n)) => json!({"intValue": n.to_string()}),
            (field, _) => panic!("field {field} of a value"),
        };
        let pair = |bytes: &[u8]| {
            let mut out = json!({});
            for field in fields(bytes) {
                match field {
                    (1, Field::Bytes(bytes)) => out["key"] = json!(text(bytes)),
                    (2, Field::Bytes(bytes)) => out["value"] = any(bytes),
                    (field, _) => panic!("field {field} of a pair"),
                }
            }
            out
        };
        let log = |bytes: &[u8]| {
            // Fixed numbers are skipped by `fields`: they stand where they are written.
            let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight")).to_string();
            assert_eq!((bytes[0], bytes[bytes.len() - 9]), (1 << 3 | 1, 11 << 3 | 1));
            let mut out =
                json!({"timeUnixNano": number(1), "observedTimeUnixNano": number(bytes.len() - 8), "attributes": []});
            for field in fields(bytes) {
                match field {
                    (2, Field::Number(n)) => out["severityNumber"] = json!(n),
                    (3, Field::Bytes(bytes)) => out["severityText"] = json!(text(bytes)),
                    (5, Field::Bytes(bytes)) => out["body"] = any(bytes),
                    (6, Field::Bytes(bytes)) => out["attributes"].as_array_mut().expect("a list").push(pair(bytes)),
                    (1 | 11, Field::Other) => {}
                    (field, _) => panic!("field {field} of a record"),
                }
            }
            out
        };
        let inner = |bytes: &[u8]| {
            fields(bytes)
                .map(|(f, v)| {
                    (
                        f,
                        match v {
                            Field::Bytes(bytes) => bytes.to_vec(),
                            _ => panic!("field {f} is no message"),
                        },
                    )
                })
                .collect::<Vec<_>>()
        };
        let resource_logs = |bytes: &[u8]| {
            let mut out = json!({});
            for (field, bytes) in inner(bytes) {
                if field == 1 {
                    let pairs: Vec<Value> = inner(&bytes).iter().map(|(_, bytes)| pair(bytes)).collect();
                    out["resource"] = json!({"attributes": pairs});
                } else {
                    let parts = inner(&bytes);
                    let scope = text(&inner(&parts[0].1)[0].1);
                    let logs: Vec<Value> = parts[1..].iter().map(|(_, bytes)| log(bytes)).collect();
                    out["scopeLogs"] = json!([{"scope": {"name": scope}, "logRecords": logs}]);
                }
            }
            out
        };
        json!({"resourceLogs": inner(bytes).iter().map(|(_, bytes)| resource_logs(bytes)).collect::<Vec<_>>()})
    }

    #[test]
    fn both_encodings_say_the_same() {
        let records = records();
        let told: Value = serde_json::from_slice(&json(&records)).expect("JSON");
        assert_eq!(decode(&protobuf(&records)), told);
        let first = &told["resourceLogs"][0];
        let logs = &first["scopeLogs"][0]["logRecords"];
        assert_eq!(logs[0]["body"]["stringValue"], "héllo");
        assert_eq!(logs[0]["timeUnixNano"], "1700000000000000001");
        assert_eq!(logs[1]["severityNumber"], 17);
        assert_eq!(logs[1]["attributes"], json!([{"key": "log.iostream", "value": {"stringValue": "stderr"}}]));
        let names: Vec<&str> = first["resource"]["attributes"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|pair| pair["key"].as_str())
            .collect();
        for name in ["service.name", "k8s.pod.name", "kn.revision.name", "k8s.container.restart_count"] {
            assert!(names.contains(&name), "{names:?}");
        }
        let file = &told["resourceLogs"][1]["scopeLogs"][0]["logRecords"][0];
        assert_eq!(file["attributes"][0]["value"]["stringValue"], "/var/log/app/a.log");
        assert_eq!(file["attributes"][2], json!({"key": "neap.partial", "value": {"boolValue": true}}));
    }

    #[test]
    fn partial_success_is_understood() {
        let check = |body: &[u8], is_json, want: Option<(u64, &str)>| {
            let got = rejected(body, is_json);
            assert_eq!(got.as_ref().map(|(n, why)| (*n, why.as_str())), want, "{body:?}");
        };
        check(b"{}", true, None);
        check(b"", true, None);
        check(br#"{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"too old"}}"#, true, Some((3, "too old")));
        check(br#"{"partialSuccess":{"rejectedLogRecords":0,"errorMessage":"a hint"}}"#, true, None);
        check(b"", false, None);
        check(b"\x0a\x09\x08\x03\x12\x05wrong", false, Some((3, "wrong")));
        check(b"\x0a\x04\x12\x02hi", false, None);
        check(b"\x0a\xff", false, None);
        check(b"garbage", false, None);
    }
}
