//! JSON decoding that notices what `serde_json` passes over in silence: names that occur twice in one object. The last
//! one counts, as everywhere; the others are reported with their path, as Kubernetes' strict decoding does.

use crate::limits;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::{Cell, RefCell};
use std::fmt;

/// Repeated names that are listed; a body may hold more than anybody wants to read.
const LISTED: usize = 100;
/// Bytes of a path that are shown.
const SHOWN: usize = 500;
/// How many times its length a YAML text may come to by its aliases: none that people write does, and one that is meant
/// to kill comes to millions.
const EXPANSION: usize = 10;

/// The value of a JSON text, and the paths of the names that occur more than once in their object.
pub(crate) fn decode(text: &[u8]) -> serde_json::Result<(Value, Vec<String>)> {
    let told = Told::new(usize::MAX);
    let mut input = serde_json::Deserializer::from_slice(text);
    let value = Place { at: &At::Root, told: &told }.deserialize(&mut input)?;
    input.end()?;
    Ok((value, told.repeated.into_inner()))
}

/// As [`decode`], for YAML, whose aliases may come to much more than its text.
pub(crate) fn decode_yaml(text: &[u8]) -> Result<(Value, Vec<String>), serde_yaml::Error> {
    let told = Told::new(EXPANSION * text.len() + SHOWN);
    let value = Place { at: &At::Root, told: &told }.deserialize(serde_yaml::Deserializer::from_slice(text))?;
    Ok((value, told.repeated.into_inner()))
}

/// What is noticed on the way.
struct Told {
    repeated: RefCell<Vec<String>>,
    /// Repetitions that may still be looked at: writing a path takes the time of its names, however short it is cut.
    listed: Cell<usize>,
    /// Bytes of values that may still come.
    room: Cell<usize>,
}

impl Told {
    fn new(room: usize) -> Self {
        Self { repeated: RefCell::default(), listed: Cell::new(LISTED), room: Cell::new(room) }
    }

    fn repeats(&self, at: &At<'_>) {
        let Some(left) = self.listed.get().checked_sub(1) else { return };
        self.listed.set(left);
        let path = limits::cut(&at.to_string(), SHOWN).into_owned();
        let mut repeated = self.repeated.borrow_mut();
        if !repeated.contains(&path) {
            repeated.push(path);
        }
    }

    fn take<E: Error>(&self, bytes: usize) -> Result<(), E> {
        match self.room.get().checked_sub(bytes + 1) {
            Some(left) => {
                self.room.set(left);
                Ok(())
            }
            None => Err(E::custom("its aliases come to much more than its text")),
        }
    }
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
    told: &'a Told,
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

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.told.take(1)?;
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.told.take(1)?;
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.told.take(1)?;
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.told.take(1)?;
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a JSON number"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.told.take(value.len())?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        self.told.take(value.len())?;
        Ok(Value::String(value))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.told.take(1)?;
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        self.told.take(1)?;
        let mut out = Vec::new();
        loop {
            let at = At::Item(self.at, out.len());
            match list.next_element_seed(Place { at: &at, told: self.told })? {
                Some(item) => out.push(item),
                None => return Ok(Value::Array(out)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.told.take(1)?;
        let mut out = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            self.told.take(name.len())?;
            let at = At::Name(self.at, &name);
            let value = map.next_value_seed(Place { at: &at, told: self.told })?;
            if out.contains_key(&name) {
                self.told.repeats(&at);
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
    fn aliases_come_to_no_more_than_a_few_times_the_text() {
        let (value, _) = decode_yaml(b"a: &x [1, 2]\nb: *x\n").unwrap();
        assert_eq!(value, serde_json::json!({"a": [1, 2], "b": [1, 2]}));
        let bomb = format!("a: &x [{}]\nb: [{}]\n", "y,".repeat(1_000), "*x,".repeat(1_000));
        assert!(decode_yaml(bomb.as_bytes()).unwrap_err().to_string().contains("aliases"));
        assert_eq!(decode_yaml(b"a: 1\nb: {c: 2, c: 3}\n").unwrap().1, ["b.c"]);
    }

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
