//! JSON decoding that notices what `serde_json` passes over in silence: names that occur twice in one object. The last
//! one counts, as everywhere; the others are reported with their path, as Kubernetes' strict decoding does.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::RefCell;
use std::fmt;

/// Repeated names that are listed; a body may hold more than anybody wants to read.
const LISTED: usize = 100;

/// The value of a JSON text, and the paths of the names that occur more than once in their object.
pub(crate) fn decode(text: &[u8]) -> serde_json::Result<(Value, Vec<String>)> {
    let repeated = RefCell::default();
    let mut input = serde_json::Deserializer::from_slice(text);
    let value = Place { at: &At::Root, repeated: &repeated }.deserialize(&mut input)?;
    input.end()?;
    Ok((value, repeated.into_inner()))
}

/// The way to a value, on the stack: nothing is allocated unless there is something to report.
enum At<'a> {
    Root,
    Name(&'a At<'a>, &'a str),
    Item(&'a At<'a>, usize),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Name(Self::Root, name) => f.write_str(name),
            Self::Name(parent, name) => write!(f, "{parent}.{name}"),
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

struct Place<'a> {
    at: &'a At<'a>,
    repeated: &'a RefCell<Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any valid JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a JSON number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        loop {
            let at = At::Item(self.at, out.len());
            match list.next_element_seed(Place { at: &at, repeated: self.repeated })? {
                Some(item) => out.push(item),
                None => return Ok(Value::Array(out)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let at = At::Name(self.at, &name);
            let value = map.next_value_seed(Place { at: &at, repeated: self.repeated })?;
            if out.contains_key(&name) {
                let mut repeated = self.repeated.borrow_mut();
                let path = at.to_string();
                if repeated.len() < LISTED && !repeated.contains(&path) {
                    repeated.push(path);
                }
            }
            out.insert(name, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_names_are_told_and_the_last_counts() {
        let check = |text: &str, paths: &[&str]| {
            let (value, repeated) = decode(text.as_bytes()).unwrap();
            assert_eq!(value, serde_json::from_str::<Value>(text).unwrap(), "{text}");
            assert_eq!(repeated, paths, "{text}");
        };
        check(r#"{"a": [1, -2, 3.5, 18446744073709551615, true, null, "x\n"], "b": {}}"#, &[]);
        check(r#"{"a": 1, "a": 2}"#, &["a"]);
        check(r#"{"a": {"b": [{}, {"c": 1, "c": 2, "c": 3}]}, "d": {"e": 1, "e": {}}}"#, &["a.b[1].c", "d.e"]);
        check("[]", &[]);
        for wrong in ["", "{", "{\"a\": 1} trailing", "[1,]", "nul"] {
            assert!(decode(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
