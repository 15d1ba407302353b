//! Whether an expression can be evaluated at all: names that are there, operators and functions that take what they are
//! given. Finds the type of every part without evaluating any.

use super::signatures::{NAMESPACES, SIGNATURES};
use super::types::Type;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};

/// The variables in scope; the last of a name counts.
pub(super) type Scope = Vec<(String, Type)>;

/// The type of an expression, or why it has none.
pub(super) fn type_of(expression: &IdedExpr, scope: &mut Scope) -> Result<Type, String> {
    match &expression.expr {
        Expr::Unspecified => Err("an empty expression".into()),
        Expr::Literal(literal) => Ok(match literal {
            LiteralValue::Boolean(_) => Type::Bool,
            LiteralValue::Bytes(_) => Type::Bytes,
            LiteralValue::Double(_) => Type::Double,
            LiteralValue::Int(_) => Type::Int,
            LiteralValue::Null => Type::Null,
            LiteralValue::String(_) => Type::String,
            LiteralValue::UInt(_) => Type::Uint,
        }),
        Expr::Ident(name) => variable(name, scope).ok_or_else(|| undeclared(name)),
        Expr::List(list) => {
            let mut of: Option<Type> = None;
            for (at, element) in list.elements.iter().enumerate() {
                let mut found = type_of(element, scope)?;
                if list.optional_indices.contains(&at) {
                    found = inner(found);
                }
                of = Some(of.map_or(found.clone(), |of| of.join(&found)));
            }
            Ok(Type::list(of.unwrap_or(Type::Dyn)))
        }
        Expr::Map(map) => {
            let (mut key, mut value): (Option<Type>, Option<Type>) = (None, None);
            for entry in &map.entries {
                let EntryExpr::MapEntry(entry) = &entry.expr else { return Err("a field in a map".into()) };
                let (k, mut v) = (type_of(&entry.key, scope)?, type_of(&entry.value, scope)?);
                if entry.optional {
                    v = inner(v);
                }
                key = Some(key.map_or(k.clone(), |of| of.join(&k)));
                value = Some(value.map_or(v.clone(), |of| of.join(&v)));
            }
            Ok(Type::map(key.unwrap_or(Type::Dyn), value.unwrap_or(Type::Dyn)))
        }
        Expr::Struct(of) => Err(undeclared(&of.type_name)),
        Expr::Select(select) => {
            let operand = type_of(&select.operand, scope)?;
            let field = operand.field(&select.field).ok_or_else(|| no_field(&operand, &select.field))?;
            Ok(if select.test { Type::Bool } else { field })
        }
        Expr::Call(call) => call_type(call, scope),
        Expr::Comprehension(fold) => fold_type(fold, scope),
    }
}

fn variable(name: &str, scope: &Scope) -> Option<Type> {
    let known = scope.iter().rev().find(|(known, _)| known == name).map(|(_, of)| of.clone());
    let names_a_type = || {
        let types = ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type"];
        types.contains(&name).then_some(Type::Kind)
    };
    known.or_else(names_a_type)
}

fn undeclared(name: &str) -> String {
    format!("undeclared reference to '{name}' (in container '')")
}

fn no_field(of: &Type, name: &str) -> String {
    match of {
        Type::Object(_) | Type::Meta => format!("undefined field '{name}'"),
        other => format!("type '{other}' does not support field selection"),
    }
}

fn inner(of: Type) -> Type {
    match of {
        Type::Optional(of) => (*of).clone(),
        other => other,
    }
}

/// The namespace of a call like `sets.contains(…)`.
pub(super) fn namespace(call: &CallExpr, is_variable: impl Fn(&str) -> bool) -> Option<&str> {
    match &call.target.as_ref()?.expr {
        Expr::Ident(name) if NAMESPACES.contains(&name.as_str()) && !is_variable(name) => Some(name),
        _ => None,
    }
}

/// The name in a macro's argument.
pub(super) fn binding(expression: &IdedExpr) -> Result<&str, String> {
    match &expression.expr {
        Expr::Ident(name) => Ok(name),
        _ => Err("argument must be a simple name".into()),
    }
}

fn call_type(call: &CallExpr, scope: &mut Scope) -> Result<Type, String> {
    let name = call.func_name.as_str();
    if let Some(space) = namespace(call, |name| scope.iter().any(|(known, _)| known == name)) {
        let args = all(&call.args, scope)?;
        return overload(&format!("{space}.{name}"), false, &args);
    }
    match (name, call.target.as_deref(), call.args.as_slice()) {
        (operators::CONDITIONAL, None, [condition, yes, no]) => {
            let condition = type_of(condition, scope)?;
            let (yes, no) = (type_of(yes, scope)?, type_of(no, scope)?);
            if !Type::Bool.accepts(&condition) || !yes.comparable(&no) {
                return Err(no_overload("_?_:_", &[condition, yes, no], false));
            }
            Ok(yes.join(&no))
        }
        (operators::EQUALS | operators::NOT_EQUALS, None, [a, b]) => {
            let (a, b) = (type_of(a, scope)?, type_of(b, scope)?);
            if a.comparable(&b) { Ok(Type::Bool) } else { Err(no_overload(name, &[a, b], false)) }
        }
        (operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS, None, [a, b]) => {
            let (a, b) = (type_of(a, scope)?, type_of(b, scope)?);
            let number = |of: &Type| matches!(of, Type::Int | Type::Uint | Type::Double | Type::Dyn);
            let ordered = |of: &Type| {
                number(of) || matches!(of, Type::String | Type::Bytes | Type::Bool | Type::Timestamp | Type::Duration)
            };
            let fits = (number(&a) && number(&b)) || (ordered(&a) && ordered(&b) && a.accepts(&b));
            if fits { Ok(Type::Bool) } else { Err(no_overload(name, &[a, b], false)) }
        }
        (operators::INDEX | operators::OPT_INDEX, None, [of, at]) => {
            let (of, at) = (type_of(of, scope)?, type_of(at, scope)?);
            let (held, optional) = match &of {
                Type::Optional(held) => ((**held).clone(), true),
                held => (held.clone(), false),
            };
            let found = match &held {
                Type::Dyn => Type::Dyn,
                Type::List(items) if Type::Int.accepts(&at) => (**items).clone(),
                Type::Map(key, value) if key.accepts(&at) => (**value).clone(),
                _ => return Err(no_overload("_[_]", &[of, at], false)),
            };
            Ok(if optional || name == operators::OPT_INDEX { Type::optional(found) } else { found })
        }
        (operators::OPT_SELECT, None, [of, field]) => {
            let operand = type_of(of, scope)?;
            let Expr::Literal(LiteralValue::String(field)) = &field.expr else {
                return Err("an optional selection needs the name of a field".into());
            };
            let found = operand.field(field.inner()).ok_or_else(|| no_field(&operand, field.inner()))?;
            Ok(if matches!(found, Type::Optional(_)) { found } else { Type::optional(found) })
        }
        ("optMap" | "optFlatMap", Some(of), [var, body]) => {
            let held = inner(type_of(of, scope)?);
            scope.push((binding(var)?.to_owned(), held));
            let found = type_of(body, scope);
            scope.pop();
            found.map(|found| Type::optional(inner(found)))
        }
        ("all" | "exists" | "existsOne" | "exists_one", Some(range), [key, value, body]) => {
            two(range, key, value, scope, |scope| {
                let found = type_of(body, scope)?;
                if Type::Bool.accepts(&found) { Ok(Type::Bool) } else { Err(no_overload(name, &[found], true)) }
            })
        }
        ("transformList" | "transformMap", Some(range), [key, value, rest @ ..]) if (1..=2).contains(&rest.len()) => {
            let keys = keys(&type_of(range, scope)?);
            let found = two(range, key, value, scope, |scope| {
                if let [filter, _] = rest {
                    let found = type_of(filter, scope)?;
                    if !Type::Bool.accepts(&found) {
                        return Err(no_overload(name, &[found], true));
                    }
                }
                type_of(&rest[rest.len() - 1], scope)
            })?;
            Ok(if name == "transformList" { Type::list(found) } else { Type::map(keys, found) })
        }
        ("format", Some(text), [values]) => {
            let (text, values) = (type_of(text, scope)?, type_of(values, scope)?);
            match Type::String.accepts(&text) && Type::list(Type::Dyn).accepts(&values) {
                true => Ok(Type::String),
                false => Err(no_overload("format", &[text, values], true)),
            }
        }
        (_, target, args) => {
            let mut with = Vec::new();
            if let Some(target) = target {
                with.push(type_of(target, scope)?);
            }
            with.extend(all(args, scope)?);
            overload(name, target.is_some(), &with)
        }
    }
}

fn all(args: &[IdedExpr], scope: &mut Scope) -> Result<Vec<Type>, String> {
    args.iter().map(|arg| type_of(arg, scope)).collect()
}

fn overload(name: &str, member: bool, with: &[Type]) -> Result<Type, String> {
    let known = SIGNATURES.get(&(name, member)).map(Vec::as_slice).unwrap_or_default();
    if known.is_empty() && !SIGNATURES.contains_key(&(name, !member)) {
        return Err(undeclared(name));
    }
    let found: Vec<Type> = known.iter().filter_map(|signature| signature.gives(with)).collect();
    match found.split_first() {
        None => Err(no_overload(name, with, member)),
        // Where more than one fits, because nothing is known of an argument, they may give different things.
        Some((first, rest)) => Ok(rest.iter().fold(first.clone(), |all, one| all.join(one))),
    }
}

fn no_overload(name: &str, with: &[Type], member: bool) -> String {
    let texts: Vec<String> = with.iter().map(ToString::to_string).collect();
    let shown = match texts.split_first().filter(|_| member) {
        Some((receiver, rest)) => format!("{receiver}.({})", rest.join(", ")),
        None => format!("({})", texts.join(", ")),
    };
    format!("found no matching overload for '{name}' applied to '{shown}'")
}

/// What one passes through when one walks over a value, by position or key.
fn keys(of: &Type) -> Type {
    match of {
        Type::List(_) => Type::Int,
        Type::Map(key, _) => (**key).clone(),
        Type::Object(_) => Type::String,
        _ => Type::Dyn,
    }
}

fn range_type(range: &IdedExpr, scope: &mut Scope) -> Result<Type, String> {
    let of = type_of(range, scope)?;
    match of {
        Type::List(_) | Type::Map(..) | Type::Object(_) | Type::Dyn => Ok(of),
        other => Err(format!(
            "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
        )),
    }
}

fn two(
    range: &IdedExpr,
    key: &IdedExpr,
    value: &IdedExpr,
    scope: &mut Scope,
    body: impl FnOnce(&mut Scope) -> Result<Type, String>,
) -> Result<Type, String> {
    let of = range_type(range, scope)?;
    let values = match &of {
        Type::List(items) => (**items).clone(),
        Type::Map(_, value) => (**value).clone(),
        _ => Type::Dyn,
    };
    scope.push((binding(key)?.to_owned(), keys(&of)));
    scope.push((binding(value)?.to_owned(), values));
    let found = body(scope);
    scope.truncate(scope.len() - 2);
    found
}

fn fold_type(fold: &ComprehensionExpr, scope: &mut Scope) -> Result<Type, String> {
    let of = range_type(&fold.iter_range, scope)?;
    // One variable walks over the items of a list, and over the keys of a map.
    let item = match &of {
        Type::List(items) => (**items).clone(),
        other => keys(other),
    };
    let start = type_of(&fold.accu_init, scope)?;
    let from = scope.len();
    scope.push((fold.accu_var.clone(), start.clone()));
    scope.push((fold.iter_var.clone(), item));
    let found = (|| {
        let goes_on = type_of(&fold.loop_cond, scope)?;
        if !Type::Bool.accepts(&goes_on) {
            return Err(format!("expected type 'bool' but found '{goes_on}'"));
        }
        let step = type_of(&fold.loop_step, scope)?;
        // An empty list to begin with holds whatever comes into it.
        let kept = if start == Type::list(Type::Dyn) { step } else { start };
        scope.truncate(from);
        scope.push((fold.accu_var.clone(), kept));
        type_of(&fold.result, scope)
    })();
    scope.truncate(from);
    found
}
