//! JSON Web Tokens (RFC 7519), as far as a resource needs them: read, its claims judged. Which algorithms there are is decided
//! by the keys (`jwks`): a token cannot choose one that its key was not made for.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use neap_logic::routing::extras::JwtRule;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Longest token, bytes.
const LONGEST: usize = 16 * 1024;
/// How much clocks may differ, seconds.
const SKEW: u64 = 60;

/// Why a token does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is not good.
    Token(&'static str),
    /// It is, but does not say what is asked for.
    Claims(&'static str),
}

#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    /// Extensions that must be understood: none is.
    #[serde(default)]
    crit: Option<Value>,
}

/// A token that has not been verified yet.
#[derive(Debug)]
pub(crate) struct Token<'t> {
    header: Header,
    /// What the signature is over.
    signed: &'t [u8],
    payload: &'t [u8],
    signature: Vec<u8>,
}

impl<'t> Token<'t> {
    pub(crate) fn read(text: &'t [u8]) -> Result<Self, Refusal> {
        const WRONG: Refusal = Refusal::Token("it is no token");
        if text.len() > LONGEST {
            return Err(Refusal::Token("the token is too long"));
        }
        let mut parts = text.split(|byte| *byte == b'.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(WRONG);
        };
        let signed = &text[..header.len() + 1 + payload.len()];
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| WRONG)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| WRONG)?;
        let header: Header = serde_json::from_slice(&header).map_err(|_| WRONG)?;
        if header.crit.is_some() {
            return Err(Refusal::Token("the token has an extension that is not understood"));
        }
        Ok(Self { header, signed, payload, signature })
    }

    pub(crate) fn algorithm(&self) -> &str {
        &self.header.alg
    }

    pub(crate) fn key_id(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    pub(crate) fn is_hs256(&self) -> bool {
        self.header.alg == "HS256"
    }

    pub(crate) fn signed(&self) -> &'t [u8] {
        self.signed
    }

    pub(crate) fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// The claims of a token whose signature is good, if they are.
    pub(crate) fn claims(&self, rule: &JwtRule, now: u64) -> Result<Map<String, Value>, Refusal> {
        const WRONG: Refusal = Refusal::Token("the token's claims cannot be read");
        let payload = URL_SAFE_NO_PAD.decode(self.payload).map_err(|_| WRONG)?;
        let claims: Map<String, Value> = serde_json::from_slice(&payload).map_err(|_| WRONG)?;
        judge(rule, &claims, now)?;
        Ok(claims)
    }
}

/// RFC 7519, section 4.1.
fn judge(rule: &JwtRule, claims: &Map<String, Value>, now: u64) -> Result<(), Refusal> {
    let refuse = |why| Err(Refusal::Token(why));
    if claims.get("iss").and_then(Value::as_str) != Some(&*rule.issuer) {
        return refuse("the token is of another issuer");
    }
    if !rule.audiences.iter().any(|audience| says(claims.get("aud"), audience)) {
        return refuse("the token is for another audience");
    }
    // Seconds may have a fraction; what is no number says nothing good.
    #[expect(clippy::cast_precision_loss, reason = "a second more or less after the year 285 million")]
    let (earliest, latest) = (now.saturating_sub(SKEW) as f64, now.saturating_add(SKEW) as f64);
    let time = |name: &str| claims.get(name).map(|value| value.as_f64().unwrap_or(f64::NAN));
    match time("exp") {
        None => return refuse("the token never expires"),
        Some(end) if end > earliest => {}
        Some(_) => return refuse("the token has expired"),
    }
    for (name, why) in [("nbf", "the token is not good yet"), ("iat", "the token is of the future")] {
        if let Some(begin) = time(name)
            && (begin.is_nan() || begin > latest)
        {
            return refuse(why);
        }
    }
    for wanted in &rule.require {
        if !wanted.values.iter().any(|value| says(claims.get(&*wanted.claim), value)) {
            return Err(Refusal::Claims("the token lacks a claim that the service requires"));
        }
    }
    Ok(())
}

/// Whether a claim is this text, or a list with it.
fn says(claim: Option<&Value>, wanted: &str) -> bool {
    match claim {
        Some(Value::Array(list)) => list.iter().any(|one| one.as_str() == Some(wanted)),
        Some(one) => text_of(one).is_some_and(|text| text == wanted),
        None => false,
    }
}

/// A claim as a header has it: lists of texts with commas, anything deeper not at all.
pub(crate) fn text_of(claim: &Value) -> Option<String> {
    match claim {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Array(list) => {
            let texts: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
            texts.map(|texts| texts.join(","))
        }
        Value::Null | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use neap_logic::routing::extras::{KeySource, Requirement};
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_000_000;

    fn rule() -> JwtRule {
        JwtRule {
            issuer: "https://id".into(),
            audiences: ["a".into(), "b".into()].into(),
            keys: KeySource::Url("https://id/keys".into()),
            claims: Box::default(),
            require: Box::default(),
        }
    }

    #[test]
    fn claims_are_judged() {
        let check = |changes: Value, want: Result<(), &str>| {
            let mut claims = json!({ "iss": "https://id", "aud": "a", "exp": NOW + 100 });
            for (key, value) in changes.as_object().expect("fields") {
                claims[key] = value.clone();
            }
            let claims: Map<_, _> = claims.as_object().expect("fields").clone();
            let got = judge(&rule(), &claims, NOW);
            assert_eq!(got.map_err(|(Refusal::Token(why) | Refusal::Claims(why))| why), want, "{claims:?}");
        };
        check(json!({}), Ok(()));
        check(json!({ "aud": ["x", "b"] }), Ok(()));
        check(json!({ "aud": ["x"] }), Err("the token is for another audience"));
        check(json!({ "aud": {"a": 1} }), Err("the token is for another audience"));
        check(json!({ "aud": null }), Err("the token is for another audience"));
        check(json!({ "iss": "https://id/" }), Err("the token is of another issuer"));
        check(json!({ "iss": ["https://id"] }), Err("the token is of another issuer"));
        check(json!({ "exp": NOW - 59 }), Ok(()));
        check(json!({ "exp": NOW - 60 }), Err("the token has expired"));
        check(json!({ "exp": "never" }), Err("the token has expired"));
        check(json!({ "exp": null }), Err("the token has expired"));
        check(json!({ "nbf": NOW + 60 }), Ok(()));
        check(json!({ "nbf": NOW + 61 }), Err("the token is not good yet"));
        check(json!({ "nbf": "soon" }), Err("the token is not good yet"));
        check(json!({ "iat": NOW as f64 + 60.5 }), Err("the token is of the future"));
        let mut without = json!({ "iss": "https://id", "aud": "a" });
        let claims = without.as_object_mut().expect("fields");
        assert_eq!(judge(&rule(), claims, NOW), Err(Refusal::Token("the token never expires")));
    }

    #[test]
    fn required_claims() {
        let mut rule = rule();
        rule.require = [Requirement { claim: "group".into(), values: ["ops".into(), "dev".into()].into() }].into();
        let check = |group: Value, want: bool| {
            let claims = json!({ "iss": "https://id", "aud": "a", "exp": NOW + 100, "group": group });
            let got = judge(&rule, claims.as_object().expect("fields"), NOW);
            assert_eq!(got.is_ok(), want, "{group}");
        };
        check(json!("ops"), true);
        check(json!(["x", "dev"]), true);
        check(json!("op"), false);
        check(json!(["ops,dev"]), false);
        check(json!({ "ops": true }), false);
        check(Value::Null, false);
    }

    #[test]
    fn what_is_no_token() {
        let check = |text: &str, want: &str| {
            let got = Token::read(text.as_bytes()).map_err(|(Refusal::Token(why) | Refusal::Claims(why))| why);
            assert_eq!(got.map(|_| ()), Err(want), "{text}");
        };
        for text in ["", ".", "..", "...", "a.b.c", "e30.e30.", "eyJhbGciOiJub25lIn0=.e30."] {
            check(text, "it is no token");
        }
        check(&"a".repeat(20_000), "the token is too long");
        // {"alg":"x","crit":["y"]}
        check("eyJhbGciOiJ4IiwiY3JpdCI6WyJ5Il19.e30.", "the token has an extension that is not understood");
    }
}
