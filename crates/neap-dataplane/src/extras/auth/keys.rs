//! Keys of a Secret: callers' keys as digests, secrets for HS256, and a key set that needs no fetching.
//!
//! Only Secrets of our own type are looked at. So nobody who may name a Secret can have others tried as keys, and no secret
//! that was meant for something else stays in the gateway's memory. What a value is for is said by its name and by nothing
//! else, and what is made to be published is never a secret: whoever has read it could sign tokens with it.

use std::hint::black_box;

use k8s_openapi::api::core::v1::Secret;
use neap_api::keys::neap::AUTH_KEYS_TYPE;
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use ring::hmac;

use super::jwks::Keys;
use super::jwt::{Refusal, Token};

/// Key of a Secret that holds a JSON Web Key Set.
const JWKS: &str = "jwks.json";
/// Key of a Secret that holds a secret for HS256; with `-` and anything behind it, another one.
const HS256: &str = "hs256";
/// Bytes of such a secret at least (RFC 7518, section 3.2): whoever has one token can try shorter ones at home.
const SHORTEST: usize = 32;
/// Keys of one Secret, at most: two of each caller while one is being changed for the other.
const MOST: usize = 64;

type Digest = [u8; SHA256_OUTPUT_LEN];

/// What a Secret opens.
#[derive(Debug, Default)]
pub(crate) struct SecretKeys {
    digests: Vec<Digest>,
    shared: Vec<hmac::Key>,
    set: Keys,
    /// What is wrong with one of the values.
    wrong: Option<String>,
}

impl SecretKeys {
    /// `None` for a Secret of another type.
    pub(crate) fn of(secret: &Secret) -> Option<Self> {
        if secret.type_.as_deref() != Some(AUTH_KEYS_TYPE) {
            return None;
        }
        let mut this = Self::default();
        for (name, value) in secret.data.iter().flatten().take(MOST) {
            // Files and editors end with a line; no key does.
            if let Err(why) = this.take(name, value.0.trim_ascii()) {
                let secret = secret.metadata.name.as_deref().unwrap_or_default();
                tracing::warn!(secret, key = name, "a value of the Secret is not taken as a key: it {why}");
                this.wrong = Some(format!("{name} {why}"));
            }
        }
        Some(this)
    }

    /// An error is the end of a sentence.
    fn take(&mut self, name: &str, value: &[u8]) -> Result<(), String> {
        if name == JWKS {
            // The error's own words may repeat some of the text.
            let place = |error: serde_json::Error| format!("line {}, column {}", error.line(), error.column());
            self.set = Keys::read(value).map_err(|error| format!("is no key set: see {}", place(error)))?;
            return Ok(());
        }
        if value.is_empty() {
            return Ok(());
        }
        if is_published(value) {
            return Err(format!("is PEM or JSON, no shared secret; a key set is called {JWKS}"));
        }
        match name.strip_prefix(HS256) {
            Some(rest) if rest.is_empty() || rest.starts_with('-') => {
                if value.len() < SHORTEST {
                    return Err(format!("has less than {SHORTEST} bytes"));
                }
                self.shared.push(hmac::Key::new(hmac::HMAC_SHA256, value));
            }
            _ => self.digests.push(digest_of(value)),
        }
        Ok(())
    }

    /// Whether this is one of the keys. It takes as long for one that is as for one that is not.
    pub(crate) fn opens(&self, shown: &[u8]) -> bool {
        let shown = digest_of(shown);
        self.digests.iter().fold(false, |opens, known| opens | equal(known, &shown))
    }

    /// Why no token at all can be verified; the end of a sentence.
    pub(crate) fn verifies_nothing(&self) -> Option<String> {
        let nothing = self.set.is_empty() && self.shared.is_empty();
        let why = || format!("has neither a {JWKS} with usable keys nor a key {HS256} or {HS256}-NAME");
        nothing.then(|| self.wrong.as_ref().map_or_else(why, |wrong| format!("has no usable key: {wrong}")))
    }

    /// Whether one of the keys has signed a token.
    pub(crate) fn verify(&self, token: &Token<'_>) -> Result<(), Refusal> {
        if token.is_hs256() {
            let signed = self.shared.iter().any(|key| hmac::verify(key, token.signed(), token.signature()).is_ok());
            return if signed { Ok(()) } else { Err(Refusal::Token("the signature is not good")) };
        }
        self.set.verify(token)
    }
}

/// Certificates, public keys, key sets. No secret for HMAC has such a beginning but by a mistake.
fn is_published(value: &[u8]) -> bool {
    value.starts_with(b"-----BEGIN") || value.starts_with(b"{") || value.starts_with(b"[")
}

fn digest_of(bytes: &[u8]) -> Digest {
    digest(&SHA256, bytes).as_ref().try_into().expect("a digest has its length")
}

/// Looks at every byte, whatever it has seen; and of what it compares a caller can choose no byte.
fn equal(one: &Digest, other: &Digest) -> bool {
    black_box(one.iter().zip(other).fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn keys(type_: &str, data: serde_json::Value) -> Option<SecretKeys> {
        let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s", "namespace": "ns" },
                             "type": type_, "data": data });
        SecretKeys::of(&serde_json::from_value(secret).expect("a Secret"))
    }

    #[test]
    fn any_of_the_keys_opens() {
        // "first\n", "second", and nothing.
        let data = json!({ "a": "Zmlyc3QK", "b": "c2Vjb25k", "c": "", "d": "Cg==" });
        let keys = keys(AUTH_KEYS_TYPE, data).expect("of our type");
        for (shown, opens) in [("first", true), ("second", true), ("", false), ("firs", false), ("firstsecond", false)]
        {
            assert_eq!(keys.opens(shown.as_bytes()), opens, "{shown}");
        }
    }

    #[test]
    fn other_secrets_are_none_of_ours() {
        assert!(keys("Opaque", json!({ "a": "Zmlyc3QK" })).is_none());
        assert!(!keys(AUTH_KEYS_TYPE, json!({})).expect("of our type").opens(b""));
        assert!(!keys(AUTH_KEYS_TYPE, json!({ "jwks.json": "e30=" })).expect("of our type").opens(b"{}"));
    }

    #[test]
    fn secrets_for_tokens_are_named_so() {
        use base64::Engine;
        use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

        const LONG: &str = "0123456789abcdef0123456789abcdef";
        const PEM: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----";
        const SET: &str = r#"{"keys": [{"kty": "oct", "k": "AAAA"}]}"#;
        let check = |name: &str, value: &str, signs: bool, opens: bool, says: Option<&str>| {
            let keys = keys(AUTH_KEYS_TYPE, json!({ name: STANDARD.encode(value) })).expect("of our type");
            let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#), URL_SAFE_NO_PAD.encode("{}"));
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, value.as_bytes()), signed.as_bytes());
            let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag));
            let token = Token::read(token.as_bytes()).expect("a token");
            assert_eq!((keys.verify(&token).is_ok(), keys.opens(value.as_bytes())), (signs, opens), "{name}: {value}");
            match (keys.verifies_nothing(), says) {
                (None, None) => {}
                (Some(why), Some(part)) => assert!(why.contains(part), "{why}"),
                (got, want) => panic!("{name}: {got:?} instead of {want:?}"),
            }
        };
        check("hs256", LONG, true, false, None);
        check("hs256-next", LONG, true, false, None);
        check("hs256", &LONG[1..], false, false, Some("hs256 has less than 32 bytes"));
        check("hs256", PEM, false, false, Some("hs256 is PEM or JSON"));
        check("hs256", SET, false, false, Some("hs256 is PEM or JSON"));
        // Named otherwise they are callers' keys, and what is published is not even that.
        check("hs2567", LONG, false, true, Some("neither"));
        check("shared", LONG, false, true, Some("neither"));
        check("public.pem", PEM, false, false, Some("public.pem is PEM"));
        check("keys.json", SET, false, false, Some("called jwks.json"));
        check("jwks.json", SET, false, false, Some("neither"));
        check("jwks.json", LONG, false, false, Some("jwks.json is no key set"));
    }
}
