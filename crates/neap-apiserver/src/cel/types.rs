//! Types of expressions: what a schema says of a value, and what functions take and give.
//!
//! A type is only as strict as its schema: where that says nothing everything fits, and the evaluation decides.

use crate::schema::{Additional, Kind, Node, Schema};
use std::fmt;
use std::sync::Arc;

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Type {
    /// Anything.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    /// A type as a value.
    Kind,
    Quantity,
    Ip,
    Cidr,
    Url,
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    Optional(Arc<Type>),
    /// The fields that a schema names.
    Object(Schema),
    /// The metadata of a whole object, of which rules may see the names.
    Meta,
    /// Stands for any one type in the signature of a function.
    Var(u8),
}

impl Type {
    pub(crate) fn list(of: Type) -> Type {
        Type::List(Arc::new(of))
    }

    pub(crate) fn map(key: Type, value: Type) -> Type {
        Type::Map(Arc::new(key), Arc::new(value))
    }

    pub(crate) fn optional(of: Type) -> Type {
        Type::Optional(Arc::new(of))
    }

    pub(crate) fn of(schema: &Schema) -> Type {
        let node = schema.node();
        if node.int_or_string {
            return Type::Dyn;
        }
        match node.kind {
            Kind::Any => Type::Dyn,
            Kind::Boolean => Type::Bool,
            Kind::Integer => Type::Int,
            Kind::Number => Type::Double,
            Kind::String => match format(node) {
                "byte" => Type::Bytes,
                "date" | "date-time" | "datetime" => Type::Timestamp,
                "duration" => Type::Duration,
                _ => Type::String,
            },
            Kind::Array => Type::list(node.items.as_ref().map_or(Type::Dyn, Type::of)),
            Kind::Object => match &node.additional {
                Some(Additional::Of(values)) if node.properties.is_empty() => Type::map(Type::String, Type::of(values)),
                Some(Additional::Anything) if node.properties.is_empty() => Type::map(Type::String, Type::Dyn),
                _ => Type::Object(schema.clone()),
            },
        }
    }

    /// The type of a field, `None` where there is none of that name.
    pub(crate) fn field(&self, name: &str) -> Option<Type> {
        match self {
            Type::Dyn => Some(Type::Dyn),
            Type::Map(_, value) => Some((**value).clone()),
            Type::Object(schema) => {
                let node = schema.node();
                let whole = node.property("apiVersion").is_some() && node.property("kind").is_some();
                match name == "metadata" && whole {
                    true => Some(Type::Meta),
                    false => node.property(&unescape(name)).map(Type::of),
                }
            }
            Type::Meta => matches!(name, "name" | "generateName").then_some(Type::String),
            Type::Optional(of) => of.field(name).map(Type::optional),
            _ => None,
        }
    }

    /// Whether a value of the other type may stand where one of this is wanted.
    pub(crate) fn accepts(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::Dyn, _) | (_, Type::Dyn) => true,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => a.accepts(b),
            (Type::Map(a, x), Type::Map(b, y)) => a.accepts(b) && x.accepts(y),
            // Which fields an object may have is known, which it has is not.
            (Type::Object(_), Type::Map(..)) | (Type::Map(..), Type::Object(_)) => true,
            (Type::Object(a), Type::Object(b)) => a == b,
            (a, b) => a == b,
        }
    }

    /// Whether two values may be compared for equality. Null may be compared with everything.
    pub(crate) fn comparable(&self, other: &Type) -> bool {
        matches!(self, Type::Null) || matches!(other, Type::Null) || self.accepts(other)
    }

    /// The type that holds values of both.
    pub(crate) fn join(&self, other: &Type) -> Type {
        match (self, other) {
            (a, b) if a == b => a.clone(),
            // An empty list or map holds whatever the other does.
            (Type::List(a), Type::List(_)) if **a == Type::Dyn => other.clone(),
            (Type::List(_), Type::List(b)) if **b == Type::Dyn => self.clone(),
            (Type::Map(a, _), Type::Map(..)) if **a == Type::Dyn => other.clone(),
            (Type::Map(..), Type::Map(b, _)) if **b == Type::Dyn => self.clone(),
            _ => Type::Dyn,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Dyn => f.write_str("dyn"),
            Type::Null => f.write_str("null"),
            Type::Bool => f.write_str("bool"),
            Type::Int => f.write_str("int"),
            Type::Uint => f.write_str("uint"),
            Type::Double => f.write_str("double"),
            Type::String => f.write_str("string"),
            Type::Bytes => f.write_str("bytes"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::Duration => f.write_str("duration"),
            Type::Kind => f.write_str("type"),
            Type::Quantity => f.write_str("kubernetes.Quantity"),
            Type::Ip => f.write_str("net.IP"),
            Type::Cidr => f.write_str("net.CIDR"),
            Type::Url => f.write_str("kubernetes.URL"),
            Type::List(of) => write!(f, "list({of})"),
            Type::Map(key, value) => write!(f, "map({key}, {value})"),
            Type::Optional(of) => write!(f, "optional_type({of})"),
            Type::Object(_) | Type::Meta => f.write_str("object"),
            Type::Var(n) => write!(f, "{}", char::from(b'A' + n)),
        }
    }
}

pub(crate) fn format(node: &Node) -> &str {
    node.checks.as_ref().and_then(|checks| checks.format.as_deref()).unwrap_or("")
}

/// Words of the language that a field is called by with underscores around them.
const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// The name of a field as the object has it, from how an expression spells it (`__dash__` and its like).
pub(crate) fn unescape(name: &str) -> String {
    if !name.contains("__") {
        return name.to_owned();
    }
    if let Some(word) = name.strip_prefix("__").and_then(|rest| rest.strip_suffix("__"))
        && RESERVED.contains(&word)
    {
        return word.to_owned();
    }
    let (mut out, mut rest) = (String::with_capacity(name.len()), name);
    'outer: while !rest.is_empty() {
        for (spelt, meant) in [("__underscores__", "__"), ("__dot__", "."), ("__dash__", "-"), ("__slash__", "/")] {
            if let Some(after) = rest.strip_prefix(spelt) {
                out.push_str(meant);
                rest = after;
                continue 'outer;
            }
        }
        let next = rest.chars().next().map_or(1, char::len_utf8);
        out.push_str(&rest[..next]);
        rest = &rest[next..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_expressions_spell_them() {
        let check = |spelt: &str, meant: &str| assert_eq!(unescape(spelt), meant);
        check("plain", "plain");
        check("__namespace__", "namespace");
        check("my__dash__name__dot__x__slash__y", "my-name.x/y");
        check("a__underscores__b", "a__b");
        check("__other__", "__other__");
    }
}
