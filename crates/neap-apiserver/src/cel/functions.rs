//! What functions and operators do. Types that do not fit are found before, where they can be; what only the values show
//! is a fault of the evaluation.

use super::eval::{Eval, Fault, Outcome, fault};
use super::quantity::Quantity;
use super::value::{Url, Val, duration};
use cel::common::ast::operators;
use jiff::{SignedDuration, Timestamp};
use std::cmp::Ordering;
use std::net::IpAddr;
use std::rc::Rc;

const NO_OVERLOAD: &str = "no such overload";
const OVERFLOW: &str = "integer overflow";

/// Functions of a namespace.
pub(super) fn spaced<'a>(eval: &mut Eval<'a>, space: &str, name: &str, args: &[Val<'a>]) -> Outcome<'a> {
    match (space, name, args) {
        ("optional", "none", []) => Ok(Val::Optional(None)),
        ("optional", "of", [value]) => Ok(Val::some(value.clone())),
        ("optional", "ofNonZeroValue", [value]) => Ok(match is_zero(value) {
            true => Val::Optional(None),
            false => Val::some(value.clone()),
        }),
        ("sets", _, [a, b]) => {
            let (Some(a), Some(b)) = (a.items(), b.items()) else { return fault(NO_OVERLOAD) };
            Ok(Val::Bool(match name {
                "contains" => contains_all(eval, &a, &b)?,
                "equivalent" => contains_all(eval, &a, &b)? && contains_all(eval, &b, &a)?,
                "intersects" => {
                    let mut found = false;
                    for item in &a {
                        found = found || has(eval, &b, item)?;
                    }
                    found
                }
                _ => return fault(NO_OVERLOAD),
            }))
        }
        ("ip", "isCanonical", [text]) => match text.as_str().map(|text| (text, text.parse::<IpAddr>())) {
            Some((text, Ok(ip))) => Ok(Val::Bool(ip.to_string() == text)),
            _ => fault("the text is no IP address"),
        },
        _ => fault(NO_OVERLOAD),
    }
}

fn is_zero(value: &Val<'_>) -> bool {
    match value {
        Val::Null | Val::Bool(false) | Val::Int(0) | Val::Uint(0) | Val::Optional(None) => true,
        Val::Double(n) => *n == 0.0,
        Val::Duration(d) => d.is_zero(),
        other => other.len() == Some(0),
    }
}

fn has<'a>(eval: &mut Eval<'a>, list: &[Val<'a>], item: &Val<'a>) -> Result<bool, Fault> {
    for known in list {
        if eval.equal(known, item)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn contains_all<'a>(eval: &mut Eval<'a>, list: &[Val<'a>], items: &[Val<'a>]) -> Result<bool, Fault> {
    for item in items {
        if !has(eval, list, item)? {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn add<'a>(eval: &mut Eval<'a>, a: Val<'a>, b: Val<'a>) -> Outcome<'a> {
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        eval.spend((x.len() + y.len()) / 16)?;
        return Ok(Val::text(format!("{x}{y}")));
    }
    match (a, b) {
        (Val::Int(a), Val::Int(b)) => a.checked_add(b).map_or_else(|| fault(OVERFLOW), |n| Ok(Val::Int(n))),
        (Val::Uint(a), Val::Uint(b)) => a.checked_add(b).map_or_else(|| fault(OVERFLOW), |n| Ok(Val::Uint(n))),
        (Val::Double(a), Val::Double(b)) => Ok(Val::Double(a + b)),
        (Val::Bytes(a), Val::Bytes(b)) => Ok(Val::Bytes([&*a, &*b].concat().into())),
        (Val::Timestamp(at), Val::Duration(by)) | (Val::Duration(by), Val::Timestamp(at)) => {
            at.checked_add(by).map_or_else(|_| fault("timestamp overflow"), |at| Ok(Val::Timestamp(at)))
        }
        (Val::Duration(a), Val::Duration(b)) => {
            a.checked_add(b).map_or_else(|| fault("duration overflow"), |d| Ok(Val::Duration(d)))
        }
        (Val::List(list), b) if b.len().is_some() => {
            let Some(more) = b.items() else { return fault(NO_OVERLOAD) };
            eval.spend(more.len())?;
            // Alone, it is not copied.
            let mut list = match Rc::try_unwrap(list) {
                Ok(list) => list,
                Err(shared) => {
                    eval.spend(shared.len())?;
                    (*shared).clone()
                }
            };
            list.extend(more);
            Ok(Val::list(list))
        }
        (a, b) => {
            let (Some(mut list), Some(more)) = (a.items(), b.items()) else { return fault(NO_OVERLOAD) };
            eval.spend(list.len() + more.len())?;
            for item in more {
                // What is a set already stays one.
                if !a.is_unordered() || !has(eval, &list, &item)? {
                    list.push(item);
                }
            }
            Ok(Val::list(list))
        }
    }
}

/// Operators and functions; the first of `args` is the receiver where there is one.
pub(super) fn call<'a>(eval: &mut Eval<'a>, name: &str, member: bool, args: Vec<Val<'a>>) -> Outcome<'a> {
    if let [of, rest @ ..] = args.as_slice()
        && let Some(text) = of.as_str()
    {
        eval.spend(text.len() / 16)?;
        if let Some(outcome) = text_function(eval, name, member, text, rest) {
            return outcome;
        }
    }
    let checked = |n: Option<i64>| n.map_or_else(|| fault(OVERFLOW), |n| Ok(Val::Int(n)));
    match (name, args.as_slice()) {
        (operators::EQUALS, [a, b]) => eval.equal(a, b).map(Val::Bool),
        (operators::NOT_EQUALS, [a, b]) => eval.equal(a, b).map(|equal| Val::Bool(!equal)),
        (operators::LESS, [a, b]) => ordered(a, b, Ordering::is_lt),
        (operators::LESS_EQUALS, [a, b]) => ordered(a, b, Ordering::is_le),
        (operators::GREATER, [a, b]) => ordered(a, b, Ordering::is_gt),
        (operators::GREATER_EQUALS, [a, b]) => ordered(a, b, Ordering::is_ge),
        (operators::LOGICAL_NOT, [Val::Bool(yes)]) => Ok(Val::Bool(!yes)),
        (operators::NEGATE, [Val::Int(n)]) => checked(n.checked_neg()),
        (operators::NEGATE, [Val::Double(n)]) => Ok(Val::Double(-n)),
        (operators::ADD, [a, b]) => add(eval, a.clone(), b.clone()),
        (operators::SUBSTRACT, [Val::Int(a), Val::Int(b)]) => checked(a.checked_sub(*b)),
        (operators::MULTIPLY, [Val::Int(a), Val::Int(b)]) => checked(a.checked_mul(*b)),
        (operators::DIVIDE, [Val::Int(_), Val::Int(0)] | [Val::Uint(_), Val::Uint(0)]) => fault("division by zero"),
        (operators::MODULO, [Val::Int(_), Val::Int(0)] | [Val::Uint(_), Val::Uint(0)]) => fault("modulus by zero"),
        (operators::DIVIDE, [Val::Int(a), Val::Int(b)]) => checked(a.checked_div(*b)),
        (operators::MODULO, [Val::Int(a), Val::Int(b)]) => checked(a.checked_rem(*b)),
        (operators::SUBSTRACT, [Val::Uint(a), Val::Uint(b)]) => unsigned(a.checked_sub(*b)),
        (operators::MULTIPLY, [Val::Uint(a), Val::Uint(b)]) => unsigned(a.checked_mul(*b)),
        (operators::DIVIDE, [Val::Uint(a), Val::Uint(b)]) => unsigned(a.checked_div(*b)),
        (operators::MODULO, [Val::Uint(a), Val::Uint(b)]) => unsigned(a.checked_rem(*b)),
        (operators::SUBSTRACT, [Val::Double(a), Val::Double(b)]) => Ok(Val::Double(a - b)),
        (operators::MULTIPLY, [Val::Double(a), Val::Double(b)]) => Ok(Val::Double(a * b)),
        (operators::DIVIDE, [Val::Double(a), Val::Double(b)]) => Ok(Val::Double(a / b)),
        (operators::SUBSTRACT, [Val::Timestamp(a), Val::Timestamp(b)]) => Ok(Val::Duration(a.duration_since(*b))),
        (operators::SUBSTRACT, [Val::Timestamp(at), Val::Duration(by)]) => {
            at.checked_sub(*by).map_or_else(|_| fault("timestamp overflow"), |at| Ok(Val::Timestamp(at)))
        }
        (operators::SUBSTRACT, [Val::Duration(a), Val::Duration(b)]) => {
            a.checked_sub(*b).map_or_else(|| fault("duration overflow"), |d| Ok(Val::Duration(d)))
        }
        (operators::IN, [item, of]) => {
            let keys = of.entries().map(|entries| entries.into_iter().map(|(key, _)| key).collect());
            let Some(list) = of.items().or(keys) else { return fault(NO_OVERLOAD) };
            has(eval, &list, item).map(Val::Bool)
        }
        (operators::INDEX, [of, at]) => index(eval, of, at),
        (operators::OPT_INDEX, [of, at]) => match index(eval, of, at) {
            Ok(Val::Optional(held)) => Ok(Val::Optional(held)),
            Ok(found) => Ok(Val::some(found)),
            Err(Fault::Error(_)) => Ok(Val::Optional(None)),
            Err(Fault::Spent) => Err(Fault::Spent),
        },
        ("size", [of]) => of.len().map_or_else(|| fault(NO_OVERLOAD), |n| Ok(Val::Int(n as i64))),
        ("type", [of]) => Ok(Val::Kind(of.kind())),
        ("dyn", [of]) => Ok(of.clone()),
        ("hasValue", [Val::Optional(held)]) => Ok(Val::Bool(held.is_some())),
        ("value", [Val::Optional(held)]) => match held {
            Some(held) => Ok((**held).clone()),
            None => fault("optional.none() dereference"),
        },
        ("or", [Val::Optional(held), other]) => {
            Ok(if held.is_some() { Val::Optional(held.clone()) } else { other.clone() })
        }
        ("orValue", [Val::Optional(held), other]) => {
            Ok(held.as_ref().map_or_else(|| other.clone(), |held| (**held).clone()))
        }
        ("bool", [Val::Bool(yes)]) => Ok(Val::Bool(*yes)),
        ("int", [of]) => to_int(of),
        ("uint", [of]) => match to_int(of)? {
            Val::Int(n) => u64::try_from(n).map_or_else(|_| fault("unsigned integer overflow"), |n| Ok(Val::Uint(n))),
            other => Ok(other),
        },
        ("double", [Val::Double(n)]) => Ok(Val::Double(*n)),
        ("double", [Val::Int(n)]) => Ok(Val::Double(*n as f64)),
        ("double", [Val::Uint(n)]) => Ok(Val::Double(*n as f64)),
        ("string", [of]) => string(of).map_or_else(|| fault(NO_OVERLOAD), |text| Ok(Val::text(text))),
        ("bytes", [Val::Bytes(bytes)]) => Ok(Val::Bytes(bytes.clone())),
        ("timestamp", [Val::Timestamp(at)]) => Ok(Val::Timestamp(*at)),
        ("timestamp", [Val::Int(seconds)]) => {
            Timestamp::from_second(*seconds).map_or_else(|_| fault("timestamp overflow"), |at| Ok(Val::Timestamp(at)))
        }
        ("duration", [Val::Duration(d)]) => Ok(Val::Duration(*d)),
        ("duration", [Val::Int(seconds)]) => Ok(Val::Duration(SignedDuration::from_secs(*seconds))),
        (_, [Val::Timestamp(at)]) => part_of_time(name, *at),
        (_, [Val::Duration(d)]) => match name {
            "getHours" => Ok(Val::Int(d.as_hours())),
            "getMinutes" => Ok(Val::Int(d.as_mins())),
            "getSeconds" => Ok(Val::Int(d.as_secs())),
            "getMilliseconds" => Ok(Val::Int(d.as_millis() as i64)),
            _ => fault(NO_OVERLOAD),
        },
        (_, [Val::Quantity(of), rest @ ..]) => of_quantity(name, *of, rest),
        (_, [Val::Ip(of)]) => of_address(name, *of),
        (_, [Val::Cidr(of, length), rest @ ..]) => of_network(name, *of, *length, rest),
        (_, [Val::Url(of)]) => of_url(name, of),
        (_, [list, rest @ ..]) => match list.items() {
            Some(items) => of_list(eval, name, &items, rest),
            None => fault(NO_OVERLOAD),
        },
        _ => fault(NO_OVERLOAD),
    }
}

fn unsigned<'a>(n: Option<u64>) -> Outcome<'a> {
    n.map_or_else(|| fault("unsigned integer overflow"), |n| Ok(Val::Uint(n)))
}

fn ordered<'a>(a: &Val<'a>, b: &Val<'a>, holds: fn(Ordering) -> bool) -> Outcome<'a> {
    match (a, b) {
        (Val::Double(x), _) | (_, Val::Double(x)) if x.is_nan() => Ok(Val::Bool(false)),
        _ => a.compare(b).map_or_else(|| fault(NO_OVERLOAD), |order| Ok(Val::Bool(holds(order)))),
    }
}

fn index<'a>(eval: &mut Eval<'a>, of: &Val<'a>, at: &Val<'a>) -> Outcome<'a> {
    match of {
        Val::Optional(None) => return Ok(Val::Optional(None)),
        Val::Optional(Some(held)) => return index(eval, held, at).map(Val::some),
        _ => {}
    }
    if let (Val::Fields(..), Some(name)) = (of, at.as_str()) {
        return match of.field(name) {
            Ok(Some(found)) => Ok(found),
            _ => fault(format!("no such key: {name}")),
        };
    }
    if let Some(entries) = of.entries() {
        for (key, value) in entries {
            if eval.equal(&key, at)? {
                return Ok(value);
            }
        }
        return fault(format!("no such key: {}", string(at).unwrap_or_default()));
    }
    let position = match at {
        Val::Int(n) => usize::try_from(*n).ok(),
        Val::Uint(n) => usize::try_from(*n).ok(),
        _ => return fault(NO_OVERLOAD),
    };
    let found = match of {
        Val::List(items) => position.and_then(|at| items.get(at)).cloned(),
        Val::Items(items, schema) => {
            let below = schema.and_then(|schema| schema.node().items.as_ref());
            position.and_then(|at| items.get(at)).map(|item| Val::of(item, below))
        }
        _ => return fault(NO_OVERLOAD),
    };
    found.map_or_else(|| fault(format!("index out of bounds: {}", string(at).unwrap_or_default())), Ok)
}

fn to_int<'a>(of: &Val<'a>) -> Outcome<'a> {
    match of {
        Val::Int(n) => Ok(Val::Int(*n)),
        Val::Uint(n) => i64::try_from(*n).map_or_else(|_| fault(OVERFLOW), |n| Ok(Val::Int(n))),
        Val::Double(n) if n.is_finite() && n.abs() < i64::MAX as f64 => Ok(Val::Int(*n as i64)),
        Val::Double(_) => fault(OVERFLOW),
        Val::Timestamp(at) => Ok(Val::Int(at.as_second())),
        _ => fault(NO_OVERLOAD),
    }
}

pub(super) fn string(of: &Val<'_>) -> Option<String> {
    if let Some(text) = of.as_str() {
        return Some(text.to_owned());
    }
    Some(match of {
        Val::Bool(yes) => yes.to_string(),
        Val::Int(n) => n.to_string(),
        Val::Uint(n) => n.to_string(),
        Val::Double(n) => n.to_string(),
        Val::Bytes(bytes) => String::from_utf8(bytes.to_vec()).ok()?,
        Val::Timestamp(at) => at.to_string(),
        Val::Duration(d) => format!("{}s", d.as_secs_f64()),
        Val::Quantity(q) => q.to_string(),
        Val::Ip(ip) => ip.to_string(),
        Val::Cidr(ip, length) => format!("{ip}/{length}"),
        Val::Url(url) => url.whole.clone(),
        _ => return None,
    })
}

/// Functions of a text; `None` where the name is none of them.
fn text_function<'a>(
    eval: &mut Eval<'a>,
    name: &str,
    member: bool,
    text: &str,
    rest: &[Val<'a>],
) -> Option<Outcome<'a>> {
    let words: Vec<&str> = rest.iter().map_while(Val::as_str).collect();
    let number = |at: usize| match rest.get(at) {
        Some(Val::Int(n)) => Some(*n),
        _ => None,
    };
    let bool = |yes: bool| Some(Ok(Val::Bool(yes)));
    let position = |at: Option<usize>| Some(Ok(Val::Int(at.map_or(-1, |at| at as i64))));
    let chars = || text.chars().collect::<Vec<char>>();
    let out_of_range = |n: i64| Some(fault(format!("index out of range: {n}")));
    let bad = |what: &str| Some(fault(format!("{what}: {text}")));
    match (member, name, words.as_slice(), rest.len()) {
        (true, "contains", [part], 1) => bool(text.contains(part)),
        (true, "startsWith", [part], 1) => bool(text.starts_with(part)),
        (true, "endsWith", [part], 1) => bool(text.ends_with(part)),
        (_, "matches", [pattern], 1) => Some(eval.regex(pattern, text).map(|regex| Val::Bool(regex.is_match(text)))),
        (true, "find", [pattern], 1) => {
            Some(eval.regex(pattern, text).map(|regex| Val::text(regex.find(text).map_or("", |found| found.as_str()))))
        }
        (true, "findAll", [pattern], _) => {
            let most = number(1).and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
            Some(eval.regex(pattern, text).map(|regex| {
                Val::list(regex.find_iter(text).take(most).map(|found| Val::text(found.as_str())).collect())
            }))
        }
        (true, "charAt", _, 1) => {
            let at = number(0)?;
            let chars = chars();
            match usize::try_from(at).ok().filter(|at| *at <= chars.len()) {
                Some(at) => Some(Ok(Val::text(chars.get(at).map(char::to_string).unwrap_or_default()))),
                None => out_of_range(at),
            }
        }
        (true, "indexOf" | "lastIndexOf", [part], 1 | 2) => {
            let (all, part) = (chars(), part.chars().collect::<Vec<char>>());
            eval.spend(all.len()).err().map(Err).or_else(|| {
                let fits = |at: &usize| all[*at..].starts_with(&part);
                let last = all.len().saturating_sub(part.len());
                let limit = number(1).map_or(if name == "indexOf" { 0 } else { last }, |n| n.max(0) as usize);
                if part.len() > all.len() {
                    return position(None);
                }
                match name {
                    "indexOf" => position((limit..=last).find(fits)),
                    _ => position((0..=limit.min(last)).rev().find(fits)),
                }
            })
        }
        (true, "lowerAscii", _, 0) => Some(Ok(Val::text(text.to_ascii_lowercase()))),
        (true, "upperAscii", _, 0) => Some(Ok(Val::text(text.to_ascii_uppercase()))),
        (true, "trim", _, 0) => Some(Ok(Val::text(text.trim()))),
        (true, "reverse", _, 0) => Some(Ok(Val::text(text.chars().rev().collect::<String>()))),
        (true, "replace", [from, to], 2 | 3) => {
            let most = number(2).map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
            let many = if from.is_empty() { text.len() + 1 } else { text.matches(from).count() };
            eval.spend((text.len() + many.min(most).saturating_mul(to.len())) / 16)
                .err()
                .map(Err)
                .or_else(|| Some(Ok(Val::text(text.replacen(from, to, most)))))
        }
        (true, "split", [by], 1 | 2) => {
            let most = number(1).unwrap_or(-1);
            eval.spend(text.len()).err().map(Err).or_else(|| {
                let part = |part: &str| Val::text(part);
                Some(Ok(Val::list(match (most, by.is_empty()) {
                    (0, _) => Vec::new(),
                    (..0, true) => text.chars().map(|c| Val::text(c.to_string())).collect(),
                    (..0, false) => text.split(by).map(part).collect(),
                    (most, false) => text.splitn(most as usize, by).map(part).collect(),
                    (most, true) => {
                        let mut parts: Vec<String> = text.chars().map(String::from).collect();
                        let tail = parts.split_off(parts.len().min(most as usize - 1)).concat();
                        parts.push(tail);
                        parts.into_iter().map(Val::text).collect()
                    }
                })))
            })
        }
        (true, "substring", _, 1 | 2) => {
            let all = chars();
            let (from, to) = (number(0)?, number(1).unwrap_or(all.len() as i64));
            match (usize::try_from(from), usize::try_from(to)) {
                (Ok(from), Ok(to)) if from <= to && to <= all.len() => {
                    Some(Ok(Val::text(all[from..to].iter().collect::<String>())))
                }
                _ => out_of_range(if from > all.len() as i64 || from < 0 { from } else { to }),
            }
        }
        (true, "format", _, 1) => {
            let values = rest[0].items()?;
            Some(formatted(text, &values))
        }
        (false, "bool", _, 0) => match text {
            "true" | "True" | "TRUE" | "t" | "1" => bool(true),
            "false" | "False" | "FALSE" | "f" | "0" => bool(false),
            _ => bad("type conversion error to bool"),
        },
        (false, "int", _, 0) => Some(
            text.parse().map_or_else(|_| fault(format!("type conversion error to int: {text}")), |n| Ok(Val::Int(n))),
        ),
        (false, "uint", _, 0) => Some(
            text.parse().map_or_else(|_| fault(format!("type conversion error to uint: {text}")), |n| Ok(Val::Uint(n))),
        ),
        (false, "double", _, 0) => Some(
            text.parse()
                .map_or_else(|_| fault(format!("type conversion error to double: {text}")), |n| Ok(Val::Double(n))),
        ),
        (false, "bytes", _, 0) => Some(Ok(Val::Bytes(text.as_bytes().into()))),
        (false, "timestamp", _, 0) => match text.parse() {
            Ok(at) => Some(Ok(Val::Timestamp(at))),
            Err(_) => bad("the text is no timestamp"),
        },
        (false, "duration", _, 0) => match duration(text) {
            Some(d) => Some(Ok(Val::Duration(d))),
            None => bad("the text is no duration"),
        },
        (false, "isQuantity", _, 0) => bool(Quantity::parse(text).is_some()),
        (false, "quantity", _, 0) => match Quantity::parse(text) {
            Some(q) => Some(Ok(Val::Quantity(q))),
            None => bad("the text is no quantity"),
        },
        (false, "isIP", _, 0) => bool(address(text).is_some()),
        (false, "ip", _, 0) => match address(text) {
            Some(ip) => Some(Ok(Val::Ip(ip))),
            None => bad("the text is no IP address"),
        },
        (false, "isCIDR", _, 0) => bool(network(text).is_some()),
        (false, "cidr", _, 0) => match network(text) {
            Some((ip, length)) => Some(Ok(Val::Cidr(ip, length))),
            None => bad("the text is no network"),
        },
        (false, "isURL", _, 0) => bool(url(text).is_some()),
        (false, "url", _, 0) => match url(text) {
            Some(url) => Some(Ok(Val::Url(Rc::new(url)))),
            None => bad("the text is no URL"),
        },
        _ => None,
    }
}

/// `%s`, `%d`, `%f`, `%x`, `%X`, `%b`, `%o` and `%%`.
fn formatted<'a>(text: &str, values: &[Val<'a>]) -> Outcome<'a> {
    let (mut out, mut values, mut chars) = (String::new(), values.iter(), text.chars());
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut digits = None;
        let mut verb = chars.next();
        if verb == Some('.') {
            let mut number = String::new();
            verb = chars.next();
            while let Some(digit) = verb.filter(char::is_ascii_digit) {
                number.push(digit);
                verb = chars.next();
            }
            digits = number.parse::<usize>().ok().filter(|n| *n <= 100);
        }
        if verb == Some('%') {
            out.push('%');
            continue;
        }
        let Some(value) = values.next() else { return fault("too few values to format") };
        let number = match value {
            Val::Int(n) => Some(i128::from(*n)),
            Val::Uint(n) => Some(i128::from(*n)),
            _ => None,
        };
        let piece = match (verb, value, number) {
            (Some('s'), value, _) => string(value),
            (Some('d'), _, Some(n)) => Some(n.to_string()),
            (Some('f'), Val::Double(n), _) => Some(format!("{n:.*}", digits.unwrap_or(6))),
            (Some('f'), _, Some(n)) => Some(format!("{:.*}", digits.unwrap_or(6), n as f64)),
            (Some('x'), _, Some(n)) => Some(format!("{n:x}")),
            (Some('X'), _, Some(n)) => Some(format!("{n:X}")),
            (Some('b'), _, Some(n)) => Some(format!("{n:b}")),
            (Some('o'), _, Some(n)) => Some(format!("{n:o}")),
            _ => None,
        };
        match piece {
            Some(piece) => out.push_str(&piece),
            None => return fault("could not parse formatting clause"),
        }
    }
    Ok(Val::text(out))
}

fn part_of_time<'a>(name: &str, at: Timestamp) -> Outcome<'a> {
    let at = at.to_zoned(jiff::tz::TimeZone::UTC);
    Ok(Val::Int(match name {
        "getFullYear" => i64::from(at.year()),
        // Months and days of the month count from 0, `getDate` from 1.
        "getMonth" => i64::from(at.month()) - 1,
        "getDate" => i64::from(at.day()),
        "getDayOfMonth" => i64::from(at.day()) - 1,
        "getDayOfWeek" => i64::from(at.weekday().to_sunday_zero_offset()),
        "getDayOfYear" => i64::from(at.day_of_year()) - 1,
        "getHours" => i64::from(at.hour()),
        "getMinutes" => i64::from(at.minute()),
        "getSeconds" => i64::from(at.second()),
        "getMilliseconds" => i64::from(at.millisecond()),
        _ => return fault(NO_OVERLOAD),
    }))
}

fn of_list<'a>(eval: &mut Eval<'a>, name: &str, items: &[Val<'a>], rest: &[Val<'a>]) -> Outcome<'a> {
    eval.spend(items.len())?;
    let position = |at: Option<usize>| Ok(Val::Int(at.map_or(-1, |at| at as i64)));
    match (name, rest) {
        ("isSorted", []) => {
            let in_order = |pair: &[Val<'a>]| pair[0].compare(&pair[1]).is_some_and(Ordering::is_le);
            Ok(Val::Bool(items.windows(2).all(in_order)))
        }
        ("sum", []) => match items.split_first() {
            None => Ok(Val::Int(0)),
            Some((first, rest)) => rest.iter().try_fold(first.clone(), |sum, item| add(eval, sum, item.clone())),
        },
        ("min" | "max", []) => {
            let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
            let mut best: Option<&Val<'a>> = None;
            for item in items {
                if best.is_none_or(|best| item.compare(best) == Some(wanted)) {
                    best = Some(item);
                }
            }
            best.map_or_else(|| fault(format!("{name} called on empty list")), |best| Ok(best.clone()))
        }
        ("indexOf" | "lastIndexOf", [wanted]) => {
            let mut found = None;
            for (at, item) in items.iter().enumerate() {
                if (found.is_none() || name == "lastIndexOf") && eval.equal(item, wanted)? {
                    found = Some(at);
                }
            }
            position(found)
        }
        ("join", [] | [_]) => {
            let between = rest.first().and_then(Val::as_str).unwrap_or("");
            let texts: Option<Vec<&str>> = items.iter().map(Val::as_str).collect();
            let Some(texts) = texts else { return fault(NO_OVERLOAD) };
            eval.spend(texts.iter().map(|text| text.len() + between.len()).sum::<usize>() / 16)?;
            Ok(Val::text(texts.join(between)))
        }
        _ => fault(NO_OVERLOAD),
    }
}

fn of_quantity<'a>(name: &str, of: Quantity, rest: &[Val<'a>]) -> Outcome<'a> {
    let other = match rest {
        [Val::Quantity(other)] => Some(*other),
        [Val::Int(n)] => Some(Quantity::of(*n)),
        _ => None,
    };
    let made = |q: Option<Quantity>| q.map_or_else(|| fault("quantity overflow"), |q| Ok(Val::Quantity(q)));
    match (name, other) {
        ("sign", None) => Ok(Val::Int(of.sign())),
        ("isInteger", None) => Ok(Val::Bool(of.as_integer().is_some())),
        ("asInteger", None) => {
            of.as_integer().map_or_else(|| fault("cannot convert value to integer"), |n| Ok(Val::Int(n)))
        }
        ("asApproximateFloat", None) => Ok(Val::Double(of.as_float())),
        ("string", None) => Ok(Val::text(of.to_string())),
        ("add", Some(other)) => made(of.add(other)),
        ("sub", Some(other)) => made(of.sub(other)),
        ("isLessThan", Some(other)) => Ok(Val::Bool(of.compare(other).is_lt())),
        ("isGreaterThan", Some(other)) => Ok(Val::Bool(of.compare(other).is_gt())),
        ("compareTo", Some(other)) => Ok(Val::Int(of.compare(other) as i64)),
        _ => fault(NO_OVERLOAD),
    }
}

/// An address; one of version 4 in the clothes of version 6 is none.
fn address(text: &str) -> Option<IpAddr> {
    match text.parse().ok()? {
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => None,
        ip => Some(ip),
    }
}

fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, length) = text.split_once('/')?;
    let (ip, length) = (address(ip)?, length.parse().ok()?);
    (length <= bits(ip)).then_some((ip, length))
}

fn bits(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// The address of the network that an address is in.
fn masked(ip: IpAddr, length: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            IpAddr::from((u32::from(ip) & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)).to_be_bytes())
        }
        IpAddr::V6(ip) => {
            IpAddr::from((u128::from(ip) & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)).to_be_bytes())
        }
    }
}

fn of_address<'a>(name: &str, ip: IpAddr) -> Outcome<'a> {
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let local_multicast = match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    };
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    Ok(match name {
        "family" => Val::Int(if ip.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Val::Bool(ip.is_unspecified()),
        "isLoopback" => Val::Bool(ip.is_loopback()),
        "isLinkLocalMulticast" => Val::Bool(local_multicast),
        "isLinkLocalUnicast" => Val::Bool(local),
        "isGlobalUnicast" => {
            Val::Bool(!(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || local || broadcast))
        }
        _ => return fault(NO_OVERLOAD),
    })
}

fn of_network<'a>(name: &str, ip: IpAddr, length: u8, rest: &[Val<'a>]) -> Outcome<'a> {
    let within = |other: IpAddr, bits: u8| {
        ip.is_ipv4() == other.is_ipv4() && bits >= length && masked(other, length) == masked(ip, length)
    };
    match (name, rest) {
        ("ip", []) => Ok(Val::Ip(ip)),
        ("masked", []) => Ok(Val::Cidr(masked(ip, length), length)),
        ("prefixLength", []) => Ok(Val::Int(i64::from(length))),
        ("containsIP", [Val::Ip(other)]) => Ok(Val::Bool(within(*other, bits(*other)))),
        ("containsCIDR", [Val::Cidr(other, bits)]) => Ok(Val::Bool(within(*other, *bits))),
        ("containsIP", [text]) => match text.as_str().and_then(address) {
            Some(other) => Ok(Val::Bool(within(other, bits(other)))),
            None => fault("the text is no IP address"),
        },
        ("containsCIDR", [text]) => match text.as_str().and_then(network) {
            Some((other, bits)) => Ok(Val::Bool(within(other, bits))),
            None => fault("the text is no network"),
        },
        _ => fault(NO_OVERLOAD),
    }
}

/// An absolute address or an absolute path.
fn url(text: &str) -> Option<Url> {
    let uri: http::Uri = text.parse().ok()?;
    let absolute = uri.scheme().is_some() || (uri.authority().is_none() && text.starts_with('/'));
    absolute.then(|| Url {
        whole: text.to_owned(),
        scheme: uri.scheme_str().unwrap_or("").to_owned(),
        host: uri.authority().map_or("", |a| a.as_str().rsplit('@').next().unwrap_or("")).to_owned(),
        path: if uri.path() == "/" && !text.contains("/?") && !text.ends_with('/') {
            String::new()
        } else {
            uri.path().to_owned()
        },
        query: uri.query().unwrap_or("").to_owned(),
    })
}

fn of_url<'a>(name: &str, url: &Url) -> Outcome<'a> {
    let (host, port) = match url.host.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
        Some((host, port)) => (host, port),
        None => (url.host.as_str(), ""),
    };
    Ok(match name {
        "getScheme" => Val::text(url.scheme.as_str()),
        "getHost" => Val::text(url.host.as_str()),
        "getHostname" => Val::text(host.trim_start_matches('[').trim_end_matches(']')),
        "getPort" => Val::text(port),
        "getEscapedPath" => Val::text(url.path.as_str()),
        "getQuery" => {
            let mut out: Vec<(Val<'a>, Vec<Val<'a>>)> = Vec::new();
            for (key, value) in crate::request::query(&url.query).pairs {
                match out.iter_mut().find(|(known, _)| known.as_str() == Some(&key)) {
                    Some((_, values)) => values.push(Val::text(value)),
                    None => out.push((Val::text(key), vec![Val::text(value)])),
                }
            }
            Val::Map(Rc::new(out.into_iter().map(|(key, values)| (key, Val::list(values))).collect()))
        }
        _ => return fault(NO_OVERLOAD),
    })
}
