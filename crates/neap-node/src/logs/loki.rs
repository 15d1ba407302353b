//! Loki's push request in JSON. Labels name a stream and each costs Loki an index entry: they are few; all else is
//! structured metadata of the line. The pod is one, as with Loki's own agents: Loki refuses lines that lie an hour before
//! the newest of their stream, and pods are read one after the other when there is much to catch up with.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::record::{Origin, Record};

type Labels<'a> = BTreeMap<&'static str, &'a str>;

fn labels(record: &Record) -> Labels<'_> {
    let origin = &record.origin;
    let mut labels = Labels::from([
        ("namespace", origin.namespace.as_str()),
        ("service", origin.service.as_str()),
        ("pod", origin.pod.as_str()),
        ("container", origin.container.as_str()),
        ("stream", record.stream.name()),
    ]);
    labels.extend(origin.revision.as_deref().map(|revision| ("revision", revision)));
    labels
}

fn metadata(record: &Record) -> Map<String, Value> {
    let Origin { uid, configuration, file, node, host, .. } = record.origin.as_ref();
    let known = [
        ("pod_uid", Some(uid.as_str())),
        ("configuration", configuration.as_deref()),
        ("filename", file.as_deref()),
        ("node", Some(node.as_str())),
        ("host", Some(host.as_str())),
        ("level", record.severity.map(super::record::Severity::name)),
        ("partial", record.partial.then_some("true")),
    ];
    let told = known.into_iter().filter_map(|(name, value)| Some((name, value.filter(|v| !v.is_empty())?)));
    told.map(|(name, value)| (name.to_owned(), json!(value))).collect()
}

pub(super) fn json(records: &[Record], with_metadata: bool) -> Vec<u8> {
    let mut streams: BTreeMap<Labels<'_>, Vec<Value>> = BTreeMap::new();
    for record in records {
        let mut value = vec![json!(record.time.to_string()), json!(record.body)];
        if with_metadata {
            value.push(Value::Object(metadata(record)));
        }
        streams.entry(labels(record)).or_default().push(Value::Array(value));
    }
    let streams: Vec<Value> =
        streams.into_iter().map(|(labels, values)| json!({"stream": labels, "values": values})).collect();
    json!({"streams": streams}).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::record::{Severity, Stream};
    use std::sync::Arc;

    #[test]
    fn lines_are_grouped_by_few_labels() {
        let origin = |revision: &str, file: Option<&str>| {
            Arc::new(Origin {
                namespace: "n".into(),
                pod: "p".into(),
                container: "c".into(),
                service: "s".into(),
                revision: Some(revision.into()),
                file: file.map(str::to_owned),
                ..Origin::default()
            })
        };
        let record = |origin: &Arc<Origin>, time, stream, body: &str| Record {
            origin: origin.clone(),
            time,
            observed: 0,
            stream,
            severity: None,
            body: body.into(),
            partial: false,
        };
        let (one, two, file) = (origin("r1", None), origin("r2", None), origin("r1", Some("/var/log/x")));
        let records = [
            record(&one, 1, Stream::Stdout, "a"),
            record(&two, 2, Stream::Stdout, "b"),
            Record { severity: Some(Severity::Warn), ..record(&one, 3, Stream::Stdout, "c") },
            record(&file, 4, Stream::File, "d"),
        ];
        let told: Value = serde_json::from_slice(&json(&records, true)).expect("JSON");
        let label = |revision: &str, stream: &str| json!({"namespace": "n", "service": "s", "pod": "p", "container": "c", "stream": stream, "revision": revision});
        let want = json!({"streams": [
            {"stream": label("r1", "file"), "values": [["4", "d", {"filename": "/var/log/x"}]]},
            {"stream": label("r1", "stdout"), "values": [["1", "a", {}], ["3", "c", {"level": "warn"}]]},
            {"stream": label("r2", "stdout"), "values": [["2", "b", {}]]},
        ]});
        assert_eq!(told, want);
        let told: Value = serde_json::from_slice(&json(&records, false)).expect("JSON");
        assert_eq!(told["streams"][0]["values"][0], json!(["4", "d"]));
    }
}
