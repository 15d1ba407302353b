//! Evaluation of an expression that was checked, with a budget of steps: no rule and no object can make it go on for
//! long.

use super::check::namespace;
use super::functions;
use super::value::Val;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use regex::Regex;
use std::collections::HashMap;
use std::rc::Rc;

/// Why there is no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// What is wrong with the values.
    Error(Rc<str>),
    /// It took too many steps; nothing more is evaluated.
    Spent,
}

pub(super) type Outcome<'a> = Result<Val<'a>, Fault>;

pub(super) fn fault<T>(why: impl Into<Rc<str>>) -> Result<T, Fault> {
    Err(Fault::Error(why.into()))
}

/// The variable that macros collect in.
const COLLECTED: &str = "@result";
/// The most that a regular expression may take when it is compiled, in bytes.
const REGEX_SIZE: usize = 1 << 20;

pub(super) struct Eval<'a> {
    scope: Vec<(&'a str, Outcome<'a>)>,
    /// Steps that are left.
    left: usize,
    expressions: HashMap<String, Regex>,
}

impl<'a> Eval<'a> {
    pub(super) fn new(scope: Vec<(&'a str, Val<'a>)>, budget: usize) -> Self {
        let scope = scope.into_iter().map(|(name, value)| (name, Ok(value))).collect();
        Self { scope, left: budget, expressions: HashMap::new() }
    }

    /// Steps that are left.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    pub(super) fn spend(&mut self, steps: usize) -> Result<(), Fault> {
        match self.left.checked_sub(steps) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(Fault::Spent)
            }
        }
    }

    pub(super) fn equal(&mut self, a: &Val<'a>, b: &Val<'a>) -> Result<bool, Fault> {
        let mut left = Some(self.left);
        let equal = a.equals(b, &mut |steps| {
            left = left.and_then(|left| left.checked_sub(steps));
            left.is_some()
        });
        self.left = left.unwrap_or(0);
        if left.is_some() { Ok(equal) } else { Err(Fault::Spent) }
    }

    pub(super) fn regex(&mut self, source: &str, text: &str) -> Result<Regex, Fault> {
        self.spend(source.len() / 4 + text.len() / 4)?;
        if let Some(known) = self.expressions.get(source) {
            return Ok(known.clone());
        }
        self.spend(source.len())?;
        let made = regex::RegexBuilder::new(source).size_limit(REGEX_SIZE).dfa_size_limit(REGEX_SIZE).build();
        let made = made.or_else(|error| fault(format!("error parsing regexp: {error}")))?;
        self.expressions.insert(source.to_owned(), made.clone());
        Ok(made)
    }

    pub(super) fn value(&mut self, expression: &'a IdedExpr) -> Outcome<'a> {
        self.spend(1)?;
        match &expression.expr {
            Expr::Unspecified | Expr::Struct(_) => fault("an expression that cannot be evaluated"),
            Expr::Literal(literal) => Ok(match literal {
                LiteralValue::Boolean(value) => Val::Bool(*value.inner()),
                LiteralValue::Bytes(value) => Val::Bytes(value.inner().into()),
                LiteralValue::Double(value) => Val::Double(*value.inner()),
                LiteralValue::Int(value) => Val::Int(*value.inner()),
                LiteralValue::Null => Val::Null,
                LiteralValue::String(value) => Val::Text(value.inner()),
                LiteralValue::UInt(value) => Val::Uint(*value.inner()),
            }),
            Expr::Ident(name) => self.variable(name),
            Expr::List(list) => {
                let mut out = Vec::with_capacity(list.elements.len());
                for (at, element) in list.elements.iter().enumerate() {
                    match self.value(element)? {
                        Val::Optional(held) if list.optional_indices.contains(&at) => {
                            out.extend(held.map(|held| (*held).clone()));
                        }
                        value => out.push(value),
                    }
                }
                Ok(Val::list(out))
            }
            Expr::Map(map) => {
                let mut out: Vec<(Val<'a>, Val<'a>)> = Vec::with_capacity(map.entries.len());
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { return fault("a field in a map") };
                    let key = self.value(&entry.key)?;
                    let value = match self.value(&entry.value)? {
                        Val::Optional(None) if entry.optional => continue,
                        Val::Optional(Some(held)) if entry.optional => (*held).clone(),
                        value => value,
                    };
                    self.put(&mut out, key, value)?;
                }
                Ok(Val::Map(Rc::new(out)))
            }
            Expr::Select(select) => {
                let operand = self.value(&select.operand)?;
                if select.test {
                    return Ok(Val::Bool(match &operand {
                        Val::Optional(None) => false,
                        Val::Optional(Some(held)) => matches!(held.field(&select.field), Ok(Some(_))),
                        operand => match operand.field(&select.field) {
                            // A field that is null is not set.
                            Ok(found) => found.is_some_and(|found| !matches!(found, Val::Null)),
                            Err(()) => return fault("no such overload"),
                        },
                    }));
                }
                select_field(&operand, &select.field)
            }
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(fold) => self.fold(fold),
        }
    }

    fn variable(&mut self, name: &str) -> Outcome<'a> {
        if let Some((_, known)) = self.scope.iter().rev().find(|(known, _)| *known == name) {
            return known.clone();
        }
        match name {
            "bool" => Ok(Val::Kind("bool")),
            "int" => Ok(Val::Kind("int")),
            "uint" => Ok(Val::Kind("uint")),
            "double" => Ok(Val::Kind("double")),
            "string" => Ok(Val::Kind("string")),
            "bytes" => Ok(Val::Kind("bytes")),
            "list" => Ok(Val::Kind("list")),
            "map" => Ok(Val::Kind("map")),
            "null_type" => Ok(Val::Kind("null_type")),
            "type" => Ok(Val::Kind("type")),
            _ => fault(format!("undeclared reference to '{name}'")),
        }
    }

    fn put(&mut self, map: &mut Vec<(Val<'a>, Val<'a>)>, key: Val<'a>, value: Val<'a>) -> Result<(), Fault> {
        for (known, _) in map.iter() {
            if self.equal(known, &key)? {
                return fault("Failed with repeated key");
            }
        }
        map.push((key, value));
        Ok(())
    }

    fn truth(&mut self, expression: &'a IdedExpr) -> Result<bool, Fault> {
        match self.value(expression)? {
            Val::Bool(yes) => Ok(yes),
            _ => fault("no such overload"),
        }
    }

    fn call(&mut self, call: &'a CallExpr) -> Outcome<'a> {
        let name = call.func_name.as_str();
        let args = call.args.as_slice();
        if let Some(space) = namespace(call, |name| self.scope.iter().any(|(known, _)| *known == name)) {
            let args = args.iter().map(|arg| self.value(arg)).collect::<Result<Vec<_>, _>>()?;
            return functions::spaced(self, space, name, &args);
        }
        match (name, call.target.as_deref(), args) {
            // What decides alone decides, whatever is wrong with the other side.
            (operators::LOGICAL_AND, None, [a, b]) => self.junction(a, b, false),
            (operators::LOGICAL_OR, None, [a, b]) => self.junction(a, b, true),
            (operators::NOT_STRICTLY_FALSE, None, [of]) => match self.value(of) {
                Err(Fault::Spent) => Err(Fault::Spent),
                Err(Fault::Error(_)) => Ok(Val::Bool(true)),
                Ok(value) => Ok(Val::Bool(!matches!(value, Val::Bool(false)))),
            },
            (operators::CONDITIONAL, None, [condition, yes, no]) => match self.truth(condition)? {
                true => self.value(yes),
                false => self.value(no),
            },
            (operators::ADD, None, [to, more]) if matches!(&to.expr, Expr::Ident(name) if name == COLLECTED) => {
                // What is collected is given up and put back, so that a list of it is not copied at each step.
                let at = self.scope.iter().rposition(|(name, _)| *name == COLLECTED);
                let collected = match at {
                    Some(at) => std::mem::replace(&mut self.scope[at].1, Ok(Val::Null))?,
                    None => return fault("nothing is collected here"),
                };
                let more = self.value(more)?;
                functions::add(self, collected, more)
            }
            (operators::OPT_SELECT, None, [of, field]) => {
                let operand = self.value(of)?;
                let Expr::Literal(LiteralValue::String(field)) = &field.expr else { return fault("no such overload") };
                let held = match operand {
                    Val::Optional(None) => return Ok(Val::Optional(None)),
                    Val::Optional(Some(held)) => (*held).clone(),
                    value => value,
                };
                Ok(match held.field(field.inner()) {
                    Ok(Some(found)) => Val::some(found),
                    _ => Val::Optional(None),
                })
            }
            ("optMap" | "optFlatMap", Some(of), [var, body]) => {
                let Val::Optional(held) = self.value(of)? else { return fault("no such overload") };
                let Some(held) = held else { return Ok(Val::Optional(None)) };
                let found = self.with(&[(var, (*held).clone())], body)?;
                Ok(if name == "optMap" { Val::some(found) } else { found })
            }
            ("all" | "exists" | "existsOne" | "exists_one", Some(range), [key, item, body]) => {
                self.quantify(name, range, key, item, body)
            }
            ("transformList" | "transformMap", Some(range), [key, item, rest @ .., body]) if rest.len() <= 1 => {
                self.transform(name == "transformMap", range, (key, item), rest.first(), body)
            }
            (_, target, args) => {
                let mut with = Vec::with_capacity(args.len() + 1);
                if let Some(target) = target {
                    with.push(self.value(target)?);
                }
                for arg in args {
                    with.push(self.value(arg)?);
                }
                functions::call(self, name, target.is_some(), with)
            }
        }
    }

    fn junction(&mut self, a: &'a IdedExpr, b: &'a IdedExpr, decides: bool) -> Outcome<'a> {
        let first = self.truth(a);
        match first {
            Err(Fault::Spent) => return Err(Fault::Spent),
            Ok(value) if value == decides => return Ok(Val::Bool(value)),
            _ => {}
        }
        match self.truth(b) {
            Err(Fault::Spent) => Err(Fault::Spent),
            Ok(value) if value == decides => Ok(Val::Bool(value)),
            second => first.and(second).map(Val::Bool),
        }
    }

    /// The value of an expression with more variables.
    fn with(&mut self, more: &[(&'a IdedExpr, Val<'a>)], body: &'a IdedExpr) -> Outcome<'a> {
        let from = self.scope.len();
        for (name, value) in more {
            let Expr::Ident(name) = &name.expr else { return fault("argument must be a simple name") };
            self.scope.push((name, Ok(value.clone())));
        }
        let found = self.value(body);
        self.scope.truncate(from);
        found
    }

    /// Positions and items, or keys and values.
    fn pairs(&mut self, range: &'a IdedExpr) -> Result<Vec<(Val<'a>, Val<'a>)>, Fault> {
        let range = self.value(range)?;
        self.spend(range.len().unwrap_or(0))?;
        if let Some(items) = range.items() {
            return Ok(items.into_iter().enumerate().map(|(at, item)| (Val::Int(at as i64), item)).collect());
        }
        range.entries().map_or_else(|| fault("no such overload"), Ok)
    }

    fn quantify(
        &mut self,
        name: &str,
        range: &'a IdedExpr,
        key: &'a IdedExpr,
        item: &'a IdedExpr,
        body: &'a IdedExpr,
    ) -> Outcome<'a> {
        let (mut found, mut broken) = (0, None);
        for (k, v) in self.pairs(range)? {
            match (self.with(&[(key, k), (item, v)], body), name) {
                (Err(Fault::Spent), _) => return Err(Fault::Spent),
                (Err(error), "all" | "exists") => broken = Some(error),
                (Err(error), _) => return Err(error),
                (Ok(Val::Bool(false)), "all") => return Ok(Val::Bool(false)),
                (Ok(Val::Bool(true)), "exists") => return Ok(Val::Bool(true)),
                (Ok(Val::Bool(yes)), _) => found += usize::from(yes),
                (Ok(_), _) => return fault("no such overload"),
            }
        }
        match (broken, name) {
            (Some(error), _) => Err(error),
            (None, "all") => Ok(Val::Bool(true)),
            (None, "exists") => Ok(Val::Bool(false)),
            (None, _) => Ok(Val::Bool(found == 1)),
        }
    }

    fn transform(
        &mut self,
        to_map: bool,
        range: &'a IdedExpr,
        names: (&'a IdedExpr, &'a IdedExpr),
        filter: Option<&'a IdedExpr>,
        body: &'a IdedExpr,
    ) -> Outcome<'a> {
        let mut out = Vec::new();
        for (key, item) in self.pairs(range)? {
            let scope = [(names.0, key.clone()), (names.1, item)];
            if let Some(filter) = filter
                && !matches!(self.with(&scope, filter)?, Val::Bool(true))
            {
                continue;
            }
            out.push((key, self.with(&scope, body)?));
        }
        Ok(match to_map {
            true => Val::Map(Rc::new(out)),
            false => Val::list(out.into_iter().map(|(_, value)| value).collect()),
        })
    }

    /// What the macros of one variable come to.
    fn fold(&mut self, fold: &'a ComprehensionExpr) -> Outcome<'a> {
        let range = self.value(&fold.iter_range)?;
        self.spend(range.len().unwrap_or(0))?;
        let items = match (range.items(), range.entries()) {
            (Some(items), _) => items,
            (None, Some(entries)) => entries.into_iter().map(|(key, _)| key).collect(),
            (None, None) => return fault("no such overload"),
        };
        let start = self.value(&fold.accu_init);
        let from = self.scope.len();
        self.scope.push((&fold.accu_var, start));
        let outcome = self.run(fold, items, from);
        self.scope.truncate(from);
        outcome
    }

    fn run(&mut self, fold: &'a ComprehensionExpr, items: Vec<Val<'a>>, at: usize) -> Outcome<'a> {
        for item in items {
            if !self.truth(&fold.loop_cond)? {
                break;
            }
            self.scope.push((&fold.iter_var, Ok(item)));
            let step = self.value(&fold.loop_step);
            self.scope.truncate(at + 1);
            if matches!(step, Err(Fault::Spent)) {
                return step;
            }
            self.scope[at].1 = step;
        }
        self.value(&fold.result)
    }
}

pub(super) fn select_field<'a>(of: &Val<'a>, name: &str) -> Outcome<'a> {
    match of {
        Val::Optional(None) => Ok(Val::Optional(None)),
        Val::Optional(Some(held)) => Ok(match held.field(name) {
            Ok(Some(found)) => Val::some(found),
            _ => Val::Optional(None),
        }),
        of => match of.field(name) {
            Ok(Some(found)) => Ok(found),
            Ok(None) => fault(format!("no such key: {name}")),
            Err(()) => fault("no such overload"),
        },
    }
}
