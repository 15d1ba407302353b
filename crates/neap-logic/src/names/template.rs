//! The part of Go's text templates that settings use: literal text, fields, `index`, `printf`, `print`,
//! `lower`-style escapes for logs, pipelines and `if`/`else`.
//!
//! A template is parsed once; whatever it cannot do it refuses then, not when it is filled in. The context
//! is a JSON value; a missing field of an object is an error, a missing key of `Annotations` or `Labels`
//! is empty, as in Go where the former are struct fields and the latter map entries.

use std::fmt::Write as _;
use std::str::FromStr;

use serde_json::Value;

/// A parsed template.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    source: String,
    nodes: Vec<Node>,
}

/// Why a template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A `{{` without its `}}`.
    #[error("template has an unclosed {{{{")]
    Unclosed,
    /// `if` without `end`, or the reverse.
    #[error("template has an unmatched {word:?}")]
    Unmatched {
        /// The word that lacks its counterpart.
        word: String,
    },
    /// Something Go could do and this cannot.
    #[error("template uses {what:?}, which is not supported: use fields, index, print, printf, js, if and else")]
    Unsupported {
        /// The part that is not understood.
        what: String,
    },
    /// A field the context does not have.
    #[error("template names {field:?}, which does not exist here")]
    NoField {
        /// The field's path.
        field: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Text(String),
    Put(Pipeline),
    If { condition: Pipeline, then: Vec<Node>, otherwise: Vec<Node> },
}

/// Calls, each fed the result of the one before as its last argument.
type Pipeline = Vec<Call>;

#[derive(Debug, Clone, PartialEq)]
struct Call {
    function: Function,
    arguments: Vec<Argument>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    Value,
    Index,
    Print,
    Printf,
    Js,
    Eq,
    Ne,
    Not,
}

#[derive(Debug, Clone, PartialEq)]
enum Argument {
    Field(Vec<String>),
    Literal(Value),
    Nested(Pipeline),
}

impl Template {
    /// A template that is only text.
    pub fn literal(text: &str) -> Self {
        Self { source: text.into(), nodes: vec![Node::Text(text.into())] }
    }

    /// What it was parsed from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Fills it in.
    pub fn render(&self, context: &Value) -> Result<String, TemplateError> {
        let mut out = String::new();
        render(&self.nodes, context, &mut out)?;
        Ok(out)
    }
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(source: &str) -> Result<Self, TemplateError> {
        let pieces = split(source)?;
        if depth(&pieces) > DEPTH {
            return Err(TemplateError::Unsupported { what: format!("more than {DEPTH} levels of nesting") });
        }
        let mut pieces = pieces.into_iter();
        let (nodes, end) = parse_block(&mut pieces)?;
        match end {
            BlockEnd::Source => Ok(Self { source: source.into(), nodes }),
            BlockEnd::Else => Err(TemplateError::Unmatched { word: "else".into() }),
            BlockEnd::End => Err(TemplateError::Unmatched { word: "end".into() }),
        }
    }
}

/// Levels of blocks and groups within each other: names of hosts need two or three, and each is a call on the stack.
const DEPTH: usize = 16;

/// How deep blocks and groups lie within each other at most.
fn depth(pieces: &[Piece]) -> usize {
    let (mut blocks, mut deepest) = (0usize, 0);
    for piece in pieces {
        let Piece::Action(action) = piece else { continue };
        match action.as_str() {
            "end" => blocks = blocks.saturating_sub(1),
            "else" => {}
            action if action.starts_with("if ") => blocks += 1,
            _ => {}
        }
        let mut groups = 0usize;
        for c in action.chars() {
            match c {
                '(' => groups += 1,
                ')' => groups = groups.saturating_sub(1),
                _ => {}
            }
            deepest = deepest.max(blocks + groups);
        }
    }
    deepest
}

enum Piece {
    Text(String),
    Action(String),
}

/// Text and actions in turn; `{{-` and `-}}` eat the white space beside them, comments vanish.
fn split(source: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut rest = source;
    let mut trim_next = false;
    while let Some(start) = rest.find("{{") {
        let mut text = &rest[..start];
        if trim_next {
            text = text.trim_start();
        }
        let inner = &rest[start + 2..];
        let end = inner.find("}}").ok_or(TemplateError::Unclosed)?;
        let mut action = &inner[..end];
        if let Some(trimmed) = action.strip_prefix("- ") {
            text = text.trim_end();
            action = trimmed;
        }
        trim_next = action.ends_with(" -");
        if trim_next {
            action = &action[..action.len() - 2];
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text.into()));
        }
        let action = action.trim();
        if !(action.starts_with("/*") && action.ends_with("*/")) {
            pieces.push(Piece::Action(action.into()));
        }
        rest = &inner[end + 2..];
    }
    let text = if trim_next { rest.trim_start() } else { rest };
    if !text.is_empty() {
        pieces.push(Piece::Text(text.into()));
    }
    Ok(pieces)
}

enum BlockEnd {
    Source,
    Else,
    End,
}

fn parse_block(pieces: &mut std::vec::IntoIter<Piece>) -> Result<(Vec<Node>, BlockEnd), TemplateError> {
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let action = match piece {
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action(action) => action,
        };
        if action == "end" {
            return Ok((nodes, BlockEnd::End));
        }
        if action == "else" {
            return Ok((nodes, BlockEnd::Else));
        }
        match action.strip_prefix("if ") {
            None => nodes.push(Node::Put(pipeline(&action)?)),
            Some(condition) => {
                let condition = pipeline(condition)?;
                let (then, end) = parse_block(pieces)?;
                let (otherwise, end) = match end {
                    BlockEnd::Else => parse_block(pieces)?,
                    end => (Vec::new(), end),
                };
                if !matches!(end, BlockEnd::End) {
                    return Err(TemplateError::Unmatched { word: "if".into() });
                }
                nodes.push(Node::If { condition, then, otherwise });
            }
        }
    }
    Ok((nodes, BlockEnd::Source))
}

fn pipeline(text: &str) -> Result<Pipeline, TemplateError> {
    let mut calls = Vec::new();
    let mut words: Vec<Word> = Vec::new();
    for word in words_of(text)? {
        match word {
            Word::Pipe => calls.push(call(std::mem::take(&mut words), text)?),
            word => words.push(word),
        }
    }
    calls.push(call(words, text)?);
    Ok(calls)
}

enum Word {
    Bare(String),
    Quoted(String),
    Group(String),
    Pipe,
}

fn words_of(text: &str) -> Result<Vec<Word>, TemplateError> {
    let unsupported = || TemplateError::Unsupported { what: text.to_owned() };
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let used = match first {
            '|' => {
                words.push(Word::Pipe);
                1
            }
            '"' => {
                let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<String>();
                words.push(Word::Quoted(stream.next().and_then(Result::ok).ok_or_else(unsupported)?));
                stream.byte_offset()
            }
            '`' => {
                let end = rest[1..].find('`').ok_or_else(unsupported)?;
                words.push(Word::Quoted(rest[1..=end].to_owned()));
                end + 2
            }
            '(' => {
                let end = closing(rest).ok_or_else(unsupported)?;
                words.push(Word::Group(rest[1..end].to_owned()));
                end + 1
            }
            _ => {
                let end = rest.find([' ', '\t', '\n', '|', '(', ')', '"']).unwrap_or(rest.len());
                if end == 0 {
                    return Err(unsupported());
                }
                words.push(Word::Bare(rest[..end].to_owned()));
                end
            }
        };
        rest = rest[used..].trim_start();
    }
    Ok(words)
}

fn closing(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => {
                depth -= 1;
                if depth == 0 {
                    return Some(i);
                }
            }
            _ => {}
        }
    }
    None
}

fn call(words: Vec<Word>, whole: &str) -> Result<Call, TemplateError> {
    let mut words = words.into_iter().peekable();
    let function = match words.peek() {
        None => return Err(TemplateError::Unsupported { what: whole.to_owned() }),
        Some(Word::Bare(name)) => match name.as_str() {
            "index" => Function::Index,
            "print" => Function::Print,
            "printf" => Function::Printf,
            "js" => Function::Js,
            "eq" => Function::Eq,
            "ne" => Function::Ne,
            "not" => Function::Not,
            _ => Function::Value,
        },
        Some(_) => Function::Value,
    };
    if function != Function::Value {
        words.next();
    }
    let arguments = words.map(argument).collect::<Result<Vec<_>, _>>()?;
    if function == Function::Value && arguments.len() != 1 {
        return Err(TemplateError::Unsupported { what: whole.to_owned() });
    }
    Ok(Call { function, arguments })
}

fn argument(word: Word) -> Result<Argument, TemplateError> {
    match word {
        Word::Quoted(text) => Ok(Argument::Literal(Value::String(text))),
        Word::Group(inner) => Ok(Argument::Nested(pipeline(&inner)?)),
        Word::Pipe => Err(TemplateError::Unsupported { what: "|".into() }),
        Word::Bare(text) => {
            if let Some(path) = text.strip_prefix('.') {
                let fields: Vec<String> = path.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect();
                let plain = fields.iter().all(|f| f.chars().all(|c| c.is_alphanumeric() || c == '_'));
                return if plain {
                    Ok(Argument::Field(fields))
                } else {
                    Err(TemplateError::Unsupported { what: text })
                };
            }
            match serde_json::from_str(&text) {
                Ok(literal @ (Value::Number(_) | Value::Bool(_))) => Ok(Argument::Literal(literal)),
                _ => Err(TemplateError::Unsupported { what: text }),
            }
        }
    }
}

fn render(nodes: &[Node], context: &Value, out: &mut String) -> Result<(), TemplateError> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Put(pipeline) => out.push_str(&text_of(&evaluate(pipeline, context)?)),
            Node::If { condition, then, otherwise } => {
                let branch = if is_true(&evaluate(condition, context)?) { then } else { otherwise };
                render(branch, context, out)?;
            }
        }
    }
    Ok(())
}

fn evaluate(pipeline: &Pipeline, context: &Value) -> Result<Value, TemplateError> {
    let mut piped: Option<Value> = None;
    for call in pipeline {
        let mut values = call.arguments.iter().map(|a| value_of(a, context)).collect::<Result<Vec<_>, _>>()?;
        values.extend(piped.take());
        piped = Some(apply(call.function, values)?);
    }
    Ok(piped.unwrap_or(Value::Null))
}

fn value_of(argument: &Argument, context: &Value) -> Result<Value, TemplateError> {
    match argument {
        Argument::Literal(value) => Ok(value.clone()),
        Argument::Nested(pipeline) => evaluate(pipeline, context),
        Argument::Field(path) => {
            let mut at = context;
            for (depth, field) in path.iter().enumerate() {
                at = match at.get(field) {
                    Some(next) => next,
                    // Below the first level come maps, whose missing entries are empty.
                    None if depth > 0 && at.is_object() => return Ok(Value::String(String::new())),
                    None => return Err(TemplateError::NoField { field: format!(".{}", path.join(".")) }),
                };
            }
            Ok(at.clone())
        }
    }
}

fn apply(function: Function, values: Vec<Value>) -> Result<Value, TemplateError> {
    let words = |values: &[Value]| values.iter().map(text_of).collect::<Vec<_>>();
    Ok(match function {
        Function::Value => values.into_iter().last().unwrap_or(Value::Null),
        Function::Index => {
            let mut values = values.into_iter();
            let mut at = values.next().unwrap_or(Value::Null);
            for key in values {
                at = match &key {
                    Value::Number(n) => n.as_u64().and_then(|n| at.get(n as usize).cloned()),
                    key => at.get(text_of(key)).cloned(),
                }
                .unwrap_or(Value::String(String::new()));
            }
            at
        }
        Function::Print => Value::String(words(&values).concat()),
        Function::Printf => Value::String(printf(&words(&values))?),
        Function::Js => Value::String(js(&words(&values).concat())),
        Function::Eq => Value::Bool(values.len() > 1 && values[1..].contains(&values[0])),
        Function::Ne => Value::Bool(values.len() > 1 && values[0] != values[1]),
        Function::Not => Value::Bool(!values.first().is_some_and(is_true)),
    })
}

fn printf(words: &[String]) -> Result<String, TemplateError> {
    let Some((format, arguments)) = words.split_first() else { return Ok(String::new()) };
    let mut arguments = arguments.iter();
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('%') => out.push('%'),
            Some('s' | 'v' | 'd') => out.push_str(arguments.next().map_or("", String::as_str)),
            Some('q') => {
                let _ = write!(out, "{:?}", arguments.next().map_or("", String::as_str));
            }
            other => {
                return Err(TemplateError::Unsupported {
                    what: format!("%{}", other.map(String::from).unwrap_or_default()),
                });
            }
        }
    }
    Ok(out)
}

fn js(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\'' => out.push_str("\\'"),
            '"' => out.push_str("\\\""),
            '<' | '>' | '&' | '=' => {
                let _ = write!(out, "\\u{:04X}", c as u32);
            }
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04X}", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render_it(template: &str) -> Result<String, TemplateError> {
        template.parse::<Template>()?.render(&json!({
            "Name": "hello", "Namespace": "ns", "Domain": "example.com", "Tag": "v2",
            "Annotations": {"sub.dom": "x", "sub": "y"}, "Labels": {},
        }))
    }

    #[test]
    fn templates_fill_in() {
        let check = |template: &str, want: &str| assert_eq!(render_it(template), Ok(want.to_owned()), "{template}");
        check("{{.Name}}.{{.Namespace}}.{{.Domain}}", "hello.ns.example.com");
        check("{{ .Tag }}-{{ .Name }}", "v2-hello");
        check(r#"{{index .Annotations "sub.dom"}}"#, "x");
        check("{{.Annotations.sub}}", "y");
        check(r#"{{index .Labels "none"}}{{.Labels.none}}"#, "");
        check(r#"{{if .Labels.none}}a{{else}}b{{end}}"#, "b");
        check(r#"{{if eq .Namespace "ns"}}{{.Name}}{{end}}"#, "hello");
        check(r#"{{.Name | printf "%s-%s" "a"}}"#, "a-hello");
        check(r#"{{print .Name (index .Annotations "sub")}}"#, "helloy");
        check("a {{- /* gone */ -}} b", "ab");
        check("{{- .Name -}}", "hello");
        check(r#"{{js "a\"b"}}"#, r#"a\"b"#);
    }

    #[test]
    fn what_cannot_be_filled_in_is_refused() {
        let check = |template: &str, want: &str| {
            let error = render_it(template).expect_err(template).to_string();
            assert!(error.contains(want), "{error}");
        };
        check("{{.Nme}}", ".Nme");
        check("{{.Name", "unclosed");
        check("{{range .Labels}}{{end}}", "range");
        check("{{if .Name}}", "if");
        check("{{end}}", "end");
        check("{{ toUpper .Name }}", "toUpper");
        let groups = |n: usize| format!("{{{{print {}.Name{}}}}}", "(".repeat(n), ")".repeat(n));
        assert_eq!(render_it(&groups(DEPTH)).expect("deep enough"), "hello");
        check(&groups(100_000), "nesting");
        check(&"{{if .Name}}".repeat(100_000), "nesting");
    }
}
