//! How large and how deep a value may be: what a few bytes of a request can be blown up to (aliases, copies, nesting)
//! has to end somewhere, and before it is stored.

use crate::status::{ApiError, Result};
use serde_json::Value;
use std::borrow::Cow;

/// Levels of containers that a stored object may have, with its record of managers. What is stored is read back by
/// parsers that stop at 127, also as an item of a list or a watch event.
pub(crate) const DEPTH: usize = 110;
/// The deepest that can be read back at all.
const DEEPEST: usize = 127;
/// Faults that are told of one object; whoever has so many reads no further. Whoever collects faults stops here, or a
/// request of some megabytes comes to gigabytes of complaints.
pub(crate) const FAULTS: usize = 250;
/// Bytes of one name or value that the path of a fault shows.
pub(crate) const NAME: usize = 300;
/// Bytes of a value that a fault shows.
pub(crate) const VALUE: usize = 4 * 1024;
/// Bytes of one fault.
pub(crate) const FAULT: usize = 2 * VALUE;

/// Levels of containers; looks no deeper than `most + 1`.
pub(crate) fn depth(value: &Value, most: usize) -> usize {
    let below = |items: &mut dyn Iterator<Item = &Value>| match most {
        0 => 1,
        _ => 1 + items.map(|item| depth(item, most - 1)).max().unwrap_or(0),
    };
    match value {
        Value::Array(items) => below(&mut items.iter()),
        Value::Object(map) => below(&mut map.values()),
        _ => 0,
    }
}

/// `old` may be deeper than is allowed today: it can still be changed, as long as it does not grow deeper.
pub(crate) fn check_depth(object: &Value, old: Option<&Value>) -> Result<()> {
    let deep = depth(object, DEEPEST);
    if deep <= DEPTH || old.is_some_and(|old| deep <= depth(old, DEEPEST)) {
        return Ok(());
    }
    Err(ApiError::bad_request(format!("the object is nested deeper than {DEPTH} levels; store it as text")))
}

/// The beginning of a text, as much of it as a message shows.
pub(crate) fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}...", &text[..text.floor_char_boundary(most)]))
}

/// About how many bytes a value takes as JSON.
pub(crate) fn weight(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| weight(item) + 1).sum::<usize>(),
        Value::Object(map) => 2 + map.iter().map(|(key, item)| key.len() + 4 + weight(item)).sum::<usize>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn measures() {
        let value = json!({"a": [1, {"b": []}], "c": "x"});
        assert_eq!((depth(&value, 100), depth(&value, 1), depth(&json!(1), 5)), (4, 2, 0));
        let deep = (0..DEPTH).fold(json!(1), |inner, _| json!({"a": inner}));
        assert!(check_depth(&deep, None).is_ok());
        let (deeper, deepest) = (json!([deep]), json!([[deep]]));
        assert!(check_depth(&deeper, None).is_err());
        assert!(check_depth(&deeper, Some(&deep)).is_err());
        assert!(check_depth(&deeper, Some(&deeper)).is_ok(), "what was stored before can be changed");
        assert!(check_depth(&deepest, Some(&deeper)).is_err());
        assert_eq!((cut("abc", 3), cut("aéé", 4)), ("abc".into(), "aé...".into()));
    }
}
