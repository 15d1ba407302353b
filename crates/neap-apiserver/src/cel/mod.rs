//! Rules in the Common Expression Language, as definitions of custom resources carry them (`x-kubernetes-validations`).
//!
//! The grammar is the `cel` crate's; types, functions and the evaluation are ours, because a rule has to be held against
//! its schema before it is accepted (`check`), has Kubernetes' functions and values (`functions`, `value`), and must not
//! be able to hold up the server (`eval` counts steps).
//!
//! What Kubernetes has beyond this: the estimate of a rule's cost when a definition is made (here a rule is stopped when
//! it runs), `format.named`, `semver`, time zones as arguments, and `%e` in formats.

mod check;
mod eval;
mod functions;
mod quantity;
pub(crate) mod rules;
mod signatures;
#[cfg(test)]
mod tests;
mod types;
mod value;

use crate::schema::Schema;
use ::cel::common::ast::{EntryExpr, Expr, IdedExpr};
use ::cel::parser::PrattParser;
use serde_json::Value;
use std::hash::{Hash, Hasher};
use std::sync::OnceLock;
use types::Type;

/// How deep an expression may be nested.
const DEPTH: u16 = 64;
/// How deep what was parsed may be: chains of operators are deep without being nested.
const LEVELS: usize = 200;
/// How many parts an expression may have.
const PARTS: usize = 5_000;
/// Bytes and operators that an expression may have. Each link of a chain (`1+1+1`, `a.b.c`, `a in b in c`) is a level of
/// what is parsed, which even to be thrown away takes room on the stack.
const TEXT: usize = 10_000;
const SIGNS: usize = 1_000;
const SELF: &str = "self";
const OLD: &str = "oldSelf";

/// One rule of a schema, compiled when it is first needed.
pub(crate) struct Rule {
    pub(crate) source: String,
    pub(crate) message: String,
    pub(crate) message_expression: String,
    pub(crate) reason: String,
    pub(crate) field_path: String,
    pub(crate) optional_old: bool,
    program: OnceLock<Option<Program>>,
}

/// What a rule comes to.
struct Program {
    rule: IdedExpr,
    message: Option<IdedExpr>,
    /// It speaks of the value before, so it holds for changes only.
    of_changes: bool,
}

/// What is wrong with a rule: the field of it, and why.
struct Misfit {
    field: &'static str,
    why: String,
}

impl Rule {
    /// As a schema writes it.
    pub(crate) fn read(value: &Value) -> Rule {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
        Rule {
            source: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old: value.get("optionalOldSelf") == Some(&Value::Bool(true)),
            program: OnceLock::new(),
        }
    }

    fn identity(&self) -> (&str, &str, &str, &str, &str, bool) {
        let Rule { source, message, message_expression, reason, field_path, optional_old, program: _ } = self;
        (source, message, message_expression, reason, field_path, *optional_old)
    }

    /// The program for values of this schema; none where it does not compile, which was refused before.
    fn program(&self, schema: &Schema) -> Option<&Program> {
        self.program.get_or_init(|| self.compile(schema).ok()).as_ref()
    }

    fn compile(&self, schema: &Schema) -> Result<Program, Misfit> {
        let of = Type::of(schema);
        let old = if self.optional_old { Type::optional(of.clone()) } else { of.clone() };
        let compile = |field: &'static str, source: &str, wanted: Type| {
            let misfit = |why: String| Misfit { field, why: format!("compilation failed: {why}") };
            if is_long(source) {
                let why = format!("the expression has more than {TEXT} bytes or {SIGNS} operators");
                return Err(misfit(why));
            }
            let parser = PrattParser::new().enable_optional_syntax(true).max_recursion_depth(DEPTH);
            let parsed =
                parser.max_expression_node_count(PARTS).parse(source).map_err(|error| misfit(error.to_string()))?;
            if !is_within(&parsed, LEVELS) {
                return Err(misfit(format!("the expression has more than {LEVELS} levels")));
            }
            let mut scope = vec![(SELF.to_owned(), of.clone()), (OLD.to_owned(), old.clone())];
            let found = check::type_of(&parsed, &mut scope).map_err(|why| misfit(format!("ERROR: <input>: {why}")))?;
            match wanted.accepts(&found) {
                true => Ok(parsed),
                false => Err(Misfit { field, why: format!("must evaluate to a {wanted}, and not to {found}") }),
            }
        };
        let rule = compile("rule", &self.source, Type::Bool)?;
        let message = match self.message_expression.trim() {
            "" => None,
            source => Some(compile("messageExpression", source, Type::String)?),
        };
        let of_changes = mentions(&rule, OLD);
        if self.optional_old && !of_changes {
            return Err(Misfit {
                field: "optionalOldSelf",
                why: "may not be set if oldSelf is not used in rule".into(),
            });
        }
        Ok(Program { rule, message, of_changes })
    }
}

/// Whether a text may come to a tree that is too deep. What stands in its strings is counted as well: whoever looks
/// for their ends would have to read them as the parser does.
fn is_long(source: &str) -> bool {
    let signs = source.bytes().filter(|byte| b"+-*/%.[&|?!<>=".contains(byte)).count();
    source.len() > TEXT || signs + source.matches("in").count() > SIGNS
}

/// Whether an expression names a variable.
fn mentions(expression: &IdedExpr, name: &str) -> bool {
    matches!(&expression.expr, Expr::Ident(known) if known == name)
        || parts(expression).into_iter().any(|part| mentions(part, name))
}

/// Whether an expression has no more than so many levels; looks no deeper.
fn is_within(expression: &IdedExpr, levels: usize) -> bool {
    levels > 0 && parts(expression).into_iter().all(|part| is_within(part, levels - 1))
}

/// What an expression consists of.
fn parts(expression: &IdedExpr) -> Vec<&IdedExpr> {
    match &expression.expr {
        Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) | Expr::Struct(_) => Vec::new(),
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Map(map) => {
            let mut out = Vec::new();
            for entry in &map.entries {
                match &entry.expr {
                    EntryExpr::MapEntry(entry) => out.extend([&entry.key, &entry.value]),
                    EntryExpr::StructField(field) => out.push(&field.value),
                }
            }
            out
        }
        Expr::Select(select) => vec![&*select.operand],
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::Comprehension(fold) => {
            vec![&fold.iter_range, &fold.accu_init, &fold.loop_cond, &fold.loop_step, &fold.result]
        }
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Rule {}

impl Hash for Rule {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.source.fmt(f)
    }
}
