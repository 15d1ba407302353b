//! Values while an expression is evaluated. What comes from the object stays where it is and is looked at through its
//! schema; only what the expression makes is made.

use super::quantity::Quantity;
use super::types::{Type, format, unescape};
use crate::schema::{Additional, Kind, ListType, Schema};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::net::IpAddr;
use std::rc::Rc;

#[derive(Clone)]
pub(super) enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Str(Rc<str>),
    /// A text of the object or of the expression.
    Text(&'a str),
    Bytes(Rc<[u8]>),
    Timestamp(Timestamp),
    Duration(SignedDuration),
    Kind(&'static str),
    Quantity(Quantity),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    Url(Rc<Url>),
    List(Rc<Vec<Val<'a>>>),
    Map(Rc<Vec<(Val<'a>, Val<'a>)>>),
    /// A list of the object, with its own schema.
    Items(&'a [Value], Option<&'a Schema>),
    /// An object of the object, with its own schema.
    Fields(&'a Map<String, Value>, Option<&'a Schema>),
    Optional(Option<Rc<Val<'a>>>),
}

/// The parts of an address.
pub(super) struct Url {
    pub(super) whole: String,
    pub(super) scheme: String,
    pub(super) host: String,
    pub(super) path: String,
    pub(super) query: String,
}

impl<'a> Val<'a> {
    pub(super) fn of(value: &'a Value, schema: Option<&'a Schema>) -> Val<'a> {
        let node = schema.map(Schema::node);
        match value {
            Value::Null => Val::Null,
            Value::Bool(yes) => Val::Bool(*yes),
            Value::Number(number) => match (node.map(|node| node.kind), number.as_i64(), number.as_u64()) {
                (Some(Kind::Number), ..) => Val::Double(number.as_f64().unwrap_or_default()),
                (_, Some(int), _) => Val::Int(int),
                (_, _, Some(uint)) => Val::Uint(uint),
                // A whole number may be written with a point.
                (Some(Kind::Integer), ..) => Val::Int(number.as_f64().unwrap_or_default() as i64),
                _ => Val::Double(number.as_f64().unwrap_or_default()),
            },
            Value::String(text) => match node.map_or("", format) {
                "byte" => STANDARD.decode(text).map_or(Val::Text(text), |bytes| Val::Bytes(bytes.into())),
                "date" => {
                    match text.parse::<jiff::civil::Date>().and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC)) {
                        Ok(at) => Val::Timestamp(at.timestamp()),
                        Err(_) => Val::Text(text),
                    }
                }
                "date-time" | "datetime" => text.parse().map_or(Val::Text(text), Val::Timestamp),
                "duration" => duration(text).map_or(Val::Text(text), Val::Duration),
                _ => Val::Text(text),
            },
            Value::Array(items) => Val::Items(items, schema),
            Value::Object(fields) => Val::Fields(fields, schema),
        }
    }

    pub(super) fn text(text: impl Into<Rc<str>>) -> Val<'a> {
        Val::Str(text.into())
    }

    pub(super) fn list(items: Vec<Val<'a>>) -> Val<'a> {
        Val::List(Rc::new(items))
    }

    pub(super) fn some(value: Val<'a>) -> Val<'a> {
        Val::Optional(Some(Rc::new(value)))
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Val::Str(text) => Some(text),
            Val::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a list.
    pub(super) fn items(&self) -> Option<Vec<Val<'a>>> {
        match self {
            Val::List(items) => Some((**items).clone()),
            Val::Items(items, schema) => {
                let of = schema.and_then(|schema| schema.node().items.as_ref());
                Some(items.iter().map(|item| Val::of(item, of)).collect())
            }
            _ => None,
        }
    }

    /// The entries of a map. Fields whose value is null are as good as absent where the schema allows no null.
    pub(super) fn entries(&self) -> Option<Vec<(Val<'a>, Val<'a>)>> {
        match self {
            Val::Map(entries) => Some((**entries).clone()),
            Val::Fields(fields, schema) => {
                let of = |name: &str| field_schema(*schema, name);
                Some(fields.iter().map(|(name, value)| (Val::Text(name), Val::of(value, of(name)))).collect())
            }
            _ => None,
        }
    }

    /// How many items, entries, characters or bytes there are.
    pub(super) fn len(&self) -> Option<usize> {
        match self {
            Val::Str(text) => Some(text.chars().count()),
            Val::Text(text) => Some(text.chars().count()),
            Val::Bytes(bytes) => Some(bytes.len()),
            Val::List(items) => Some(items.len()),
            Val::Items(items, _) => Some(items.len()),
            Val::Map(entries) => Some(entries.len()),
            Val::Fields(fields, _) => Some(fields.len()),
            _ => None,
        }
    }

    /// A field, as an expression spells it; `Err` where this has no fields at all.
    pub(super) fn field(&self, name: &str) -> Result<Option<Val<'a>>, ()> {
        match self {
            Val::Fields(fields, schema) => {
                let name = match schema.is_some_and(|schema| !schema.node().properties.is_empty()) {
                    true => Cow::Owned(unescape(name)),
                    false => Cow::Borrowed(name),
                };
                let found = fields.get(&*name).map(|value| Val::of(value, field_schema(*schema, &name)));
                Ok(found)
            }
            Val::Map(entries) => {
                Ok(entries.iter().find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value.clone()))
            }
            _ => Err(()),
        }
    }

    pub(super) fn kind(&self) -> &'static str {
        match self {
            Val::Null => "null_type",
            Val::Bool(_) => "bool",
            Val::Int(_) => "int",
            Val::Uint(_) => "uint",
            Val::Double(_) => "double",
            Val::Str(_) | Val::Text(_) => "string",
            Val::Bytes(_) => "bytes",
            Val::Timestamp(_) => "google.protobuf.Timestamp",
            Val::Duration(_) => "google.protobuf.Duration",
            Val::Kind(_) => "type",
            Val::Quantity(_) => "kubernetes.Quantity",
            Val::Ip(_) => "net.IP",
            Val::Cidr(..) => "net.CIDR",
            Val::Url(_) => "kubernetes.URL",
            Val::List(_) | Val::Items(..) => "list",
            Val::Map(_) | Val::Fields(..) => "map",
            Val::Optional(_) => "optional_type",
        }
    }

    /// Equality. `spend` is told of each comparison.
    pub(super) fn equals(&self, other: &Val<'a>, spend: &mut dyn FnMut(usize) -> bool) -> bool {
        if !spend(1 + self.as_str().map_or(0, str::len) / 16) {
            return false;
        }
        if let (Some(a), Some(b)) = (self.as_str(), other.as_str()) {
            return a == b;
        }
        match (self, other) {
            (Val::Null, Val::Null) => true,
            (Val::Bool(a), Val::Bool(b)) => a == b,
            (Val::Bytes(a), Val::Bytes(b)) => a == b,
            (Val::Timestamp(a), Val::Timestamp(b)) => a == b,
            (Val::Duration(a), Val::Duration(b)) => a == b,
            (Val::Kind(a), Val::Kind(b)) => a == b,
            (Val::Quantity(a), Val::Quantity(b)) => a == b,
            (Val::Ip(a), Val::Ip(b)) => a == b,
            (Val::Cidr(a, x), Val::Cidr(b, y)) => a == b && x == y,
            (Val::Url(a), Val::Url(b)) => a.whole == b.whole,
            (Val::Optional(a), Val::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b, spend),
                (None, None) => true,
                _ => false,
            },
            (a, b) if a.is_number() && b.is_number() => a.compare(b) == Some(Ordering::Equal),
            (a, b) => {
                if let (Some(x), Some(y)) = (a.items(), b.items()) {
                    if x.len() != y.len() {
                        return false;
                    }
                    // Lists without an order of their own are equal in any.
                    return match a.is_unordered() || b.is_unordered() {
                        true => x.iter().all(|item| y.iter().any(|other| item.equals(other, spend))),
                        false => x.iter().zip(&y).all(|(item, other)| item.equals(other, spend)),
                    };
                }
                if let (Some(x), Some(y)) = (a.entries(), b.entries()) {
                    return x.len() == y.len()
                        && x.iter()
                            .all(|(key, value)| y.iter().any(|(k, v)| key.equals(k, spend) && value.equals(v, spend)));
                }
                false
            }
        }
    }

    fn is_number(&self) -> bool {
        matches!(self, Val::Int(_) | Val::Uint(_) | Val::Double(_))
    }

    /// A list whose items are a set, or are told apart by keys.
    pub(super) fn is_unordered(&self) -> bool {
        matches!(self, Val::Items(_, Some(schema)) if schema.node().list != ListType::Atomic)
    }

    /// The order of two values, if they have one.
    pub(super) fn compare(&self, other: &Val<'a>) -> Option<Ordering> {
        if let (Some(a), Some(b)) = (self.as_str(), other.as_str()) {
            return Some(a.cmp(b));
        }
        match (self, other) {
            (Val::Int(a), Val::Int(b)) => Some(a.cmp(b)),
            (Val::Uint(a), Val::Uint(b)) => Some(a.cmp(b)),
            (Val::Int(a), Val::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Val::Uint(a), Val::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Val::Double(a), b) if b.is_number() => a.partial_cmp(&b.as_double()?),
            (a, Val::Double(b)) if a.is_number() => a.as_double()?.partial_cmp(b),
            (Val::Bool(a), Val::Bool(b)) => Some(a.cmp(b)),
            (Val::Bytes(a), Val::Bytes(b)) => Some(a.cmp(b)),
            (Val::Timestamp(a), Val::Timestamp(b)) => Some(a.cmp(b)),
            (Val::Duration(a), Val::Duration(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }

    fn as_double(&self) -> Option<f64> {
        match self {
            Val::Int(n) => Some(*n as f64),
            Val::Uint(n) => Some(*n as f64),
            Val::Double(n) => Some(*n),
            _ => None,
        }
    }
}

fn field_schema<'a>(schema: Option<&'a Schema>, name: &str) -> Option<&'a Schema> {
    let node = schema?.node();
    node.property(name).or(match &node.additional {
        Some(Additional::Of(schema)) => Some(schema),
        _ => None,
    })
}

/// `1h30m`, `1.5s`, `-200ms`: a duration as Go spells it.
pub(super) fn duration(text: &str) -> Option<SignedDuration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut nanos: f64 = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        nanos += number
            * match &rest[..unit] {
                "ns" => 1.0,
                "us" | "µs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    // What Go's 64 bits of nanoseconds hold.
    if nanos > i64::MAX as f64 {
        return None;
    }
    let nanos = nanos as i64;
    Some(SignedDuration::from_nanos(if negative { -nanos } else { nanos }))
}

/// The type of a value in messages of faults.
pub(super) fn shown(schema: &Schema) -> &'static str {
    match Type::of(schema) {
        Type::Dyn if schema.node().int_or_string => "string",
        _ => match schema.node().kind {
            Kind::Any => "object",
            kind => kind.name(),
        },
    }
}
