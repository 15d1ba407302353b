//! Events have two faces: core/v1 and events.k8s.io/v1. One is stored, the other is this change of names.

use serde_json::{Map, Value};

/// Old name in core/v1, new name in events.k8s.io/v1.
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// An Event of one apiVersion as the other.
pub(crate) fn convert(event: Value, from: &str, to: &str) -> Result<Value, String> {
    let Value::Object(mut event) = event else { return Err("an event must be an object".into()) };
    if from != to {
        for (core, new) in NAMES {
            let (old, new) = if to == "v1" { (new, core) } else { (core, new) };
            rename(&mut event, old, new);
        }
    }
    event.insert("apiVersion".into(), to.into());
    Ok(Value::Object(event))
}

fn rename(object: &mut Map<String, Value>, old: &str, new: &str) {
    if let Some(value) = object.remove(old) {
        object.insert(new.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn there_and_back_is_the_same_event() {
        let core = json!({
            "apiVersion": "v1", "kind": "Event", "involvedObject": {"kind": "Pod", "name": "p"}, "message": "m",
            "reportingComponent": "c", "count": 2, "firstTimestamp": "2026-01-01T00:00:00Z", "type": "Normal",
        });
        let new = convert(core.clone(), "v1", "events.k8s.io/v1").expect("converts");
        assert_eq!(new["regarding"]["name"], "p");
        assert_eq!(new["note"], "m");
        assert_eq!(convert(new, "events.k8s.io/v1", "v1"), Ok(core));
    }
}
