//! Regular expressions in the dialect schemas are written for (RE2, as Go has it), translated into the one
//! our engine speaks. The two differ in a few spellings only.

use regex::Regex;

/// Compiles an RE2 expression.
pub(super) fn compile(source: &str) -> Result<Regex, regex::Error> {
    Regex::new(&translate(source))
}

/// RE2 to `regex`: `\d`, `\w`, `\s` and `\b` are ASCII there; `[` inside a class, a brace that is no
/// repetition and doubled set operators are literal there; `\<` and `\>` are literal there.
fn translate(source: &str) -> String {
    let mut out = String::with_capacity(source.len() + 16);
    let mut chars = source.char_indices().peekable();
    let mut in_class = false;
    let mut class_starts = false;
    while let Some((at, c)) = chars.next() {
        let first_in_class = std::mem::take(&mut class_starts);
        match c {
            '\\' => match chars.next() {
                None => out.push('\\'),
                Some((_, escaped)) => out.push_str(&match escaped {
                    'd' => "[0-9]".to_owned(),
                    'D' => "[^0-9]".to_owned(),
                    'w' => "[0-9A-Za-z_]".to_owned(),
                    'W' => "[^0-9A-Za-z_]".to_owned(),
                    's' => r"[\t\n\f\r ]".to_owned(),
                    'S' => r"[^\t\n\f\r ]".to_owned(),
                    'b' if !in_class => r"(?-u:\b)".to_owned(),
                    'B' if !in_class => r"(?-u:\B)".to_owned(),
                    '<' | '>' => escaped.to_string(),
                    other => format!("\\{other}"),
                }),
            },
            '[' if !in_class => {
                in_class = true;
                class_starts = true;
                out.push('[');
                if let Some((_, '^')) = chars.peek() {
                    chars.next();
                    out.push('^');
                }
            }
            '[' if source[at..].starts_with("[:") && source[at + 2..].contains(":]") => {
                let end = at + 2 + source[at + 2..].find(":]").expect("just seen") + 2;
                out.push_str(&source[at..end]);
                while chars.peek().is_some_and(|(next, _)| *next < end) {
                    chars.next();
                }
            }
            '[' => out.push_str(r"\["),
            ']' if in_class && first_in_class => out.push_str(r"\]"),
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
            }
            '-' if in_class && source[at + 1..].starts_with('-') => out.push_str(r"\-"),
            '{' if !in_class && !is_repetition(&source[at..]) && !opens_name(&source[..at]) => out.push_str(r"\{"),
            '}' if !in_class && !closes_repetition(&source[..at]) && !closes_name(&source[..at]) => out.push_str(r"\}"),
            other => out.push(other),
        }
    }
    out
}

/// Whether the text begins with `{n}`, `{n,}` or `{n,m}`.
fn is_repetition(text: &str) -> bool {
    let Some(inner) = text[1..].split_once('}').map(|(inner, _)| inner) else { return false };
    let (low, high) = inner.split_once(',').unwrap_or((inner, ""));
    !low.is_empty() && low.bytes().chain(high.bytes()).all(|b| b.is_ascii_digit())
}

fn closes_repetition(before: &str) -> bool {
    before.rfind('{').is_some_and(|open| is_repetition(&format!("{}}}", &before[open..])))
}

/// Whether a brace opened by `\p`, `\P` or `\x` is still open.
fn closes_name(before: &str) -> bool {
    before.rfind('{').is_some_and(|open| !before[open..].contains('}') && opens_name(&before[..open]))
}

fn opens_name(before: &str) -> bool {
    [r"\p", r"\P", r"\x"].iter().any(|name| before.ends_with(name))
}

#[cfg(test)]
mod tests {
    use super::compile;

    #[track_caller]
    fn check(pattern: &str, matching: &[&str], other: &[&str]) {
        let regex = compile(pattern).expect(pattern);
        for text in matching {
            assert!(regex.is_match(text), "{pattern} must match {text}");
        }
        for text in other {
            assert!(!regex.is_match(text), "{pattern} must not match {text}");
        }
    }

    #[test]
    fn re2_spellings() {
        check(r"^\d+$", &["12"], &["١٢", "x"]);
        check(r"^[\d.]+$", &["1.2"], &["a"]);
        check(r"^[[a]$", &["[", "a"], &["b"]);
        check(r"^[a&&b]$", &["&", "a", "b"], &["c"]);
        check(r"^{x}$", &["{x}"], &["x"]);
        check(r"^a{2,3}$", &["aa", "aaa"], &["a", "a{2,3}"]);
        check(r"^[]a]$", &["]", "a"], &["b"]);
        check(r"^[[:alpha:]_]+$", &["ab_"], &["1"]);
        check(r"^\p{Lu}x$", &["Ax"], &["ax"]);
        check(r"^\pL$", &["é"], &["1"]);
        check(r"^a\/b\-c$", &["a/b-c"], &[]);
        check(r"^[A-Za-z0-9+/-]*={0,2}$", &["aGk=", "a-b"], &["===a"]);
        check(
            r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
            &["1", "100m", "1.5Gi", "1e3"],
            &["Gi", "1x"],
        );
    }

    #[test]
    fn a_broken_expression_is_refused() {
        assert!(compile("a(").is_err());
    }
}
