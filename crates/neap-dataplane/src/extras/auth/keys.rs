//! Keys of a Secret: shared keys as digests, secrets for HS256, and a key set that needs no fetching.
//!
//! Only Secrets of our own type are looked at. So nobody who may name a Secret can have others tried as keys, and no secret
//! that was meant for something else stays in the gateway's memory.

use std::hint::black_box;

use k8s_openapi::api::core::v1::Secret;
use neap_api::keys::neap::AUTH_KEYS_TYPE;
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use ring::hmac;

use super::jwks::Keys;
use super::jwt::{Refusal, Token};

/// Key of a Secret that holds a JSON Web Key Set.
const JWKS: &str = "jwks.json";
/// Keys of one Secret, at most: two of each caller while one is being changed for the other.
const MOST: usize = 64;

type Digest = [u8; SHA256_OUTPUT_LEN];

/// What a Secret opens.
#[derive(Debug, Default)]
pub(crate) struct SecretKeys {
    digests: Vec<Digest>,
    shared: Vec<hmac::Key>,
    set: Keys,
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
            let value = value.0.trim_ascii();
            if name == JWKS {
                this.set = Keys::read(value).unwrap_or_else(|error| {
                    tracing::warn!(
                        secret = secret.metadata.name.as_deref().unwrap_or_default(),
                        error = &error as &dyn std::error::Error,
                        "the Secret's key set cannot be read"
                    );
                    Keys::default()
                });
            } else if !value.is_empty() {
                this.digests.push(digest_of(value));
                this.shared.push(hmac::Key::new(hmac::HMAC_SHA256, value));
            }
        }
        Some(this)
    }

    /// Whether this is one of the keys. It takes as long for one that is as for one that is not.
    pub(crate) fn opens(&self, shown: &[u8]) -> bool {
        let shown = digest_of(shown);
        self.digests.iter().fold(false, |opens, known| opens | equal(known, &shown))
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
}
