//! JSON Web Key Sets (RFC 7517): the public keys of an issuer, and which algorithms each is for.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use serde::Deserialize;
use serde_json::Value;

use super::jwt::{Refusal, Token};

/// Keys of a set that are looked at. Issuers have two or three; the largest public ones some twenty.
const MOST: usize = 64;

/// The keys that can be used.
#[derive(Debug, Default, Clone)]
pub(crate) struct Keys(Vec<Key>);

#[derive(Debug, Clone)]
struct Key {
    id: Option<String>,
    /// The only algorithm it is for, if it says so.
    algorithm: Option<String>,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// A point, uncompressed.
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

/// As it is written. Fields of other kinds of key stay unread.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Written {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    crv: String,
    n: String,
    e: String,
    x: String,
    y: String,
}

impl Keys {
    /// Keys of kinds that are not known, or not for signatures, are passed over.
    pub(crate) fn read(text: &[u8]) -> Result<Self, serde_json::Error> {
        let set: Set = serde_json::from_slice(text)?;
        let written = set.keys.into_iter().take(MOST).filter_map(|key| serde_json::from_value::<Written>(key).ok());
        Ok(Self(written.filter_map(Key::of).collect()))
    }

    pub(crate) fn has(&self, id: &str) -> bool {
        self.0.iter().any(|key| key.id.as_deref() == Some(id))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of the keys has signed a token: the one it names, or any if it names none.
    pub(crate) fn verify(&self, token: &Token<'_>) -> Result<(), Refusal> {
        let named = |key: &&Key| token.key_id().is_none_or(|id| key.id.as_deref() == Some(id));
        let mut known = false;
        for key in self.0.iter().filter(named) {
            let Some(signed) = key.has_signed(token) else { continue };
            known = true;
            if signed {
                return Ok(());
            }
        }
        Err(Refusal::Token(match known {
            true => "the signature is not good",
            false => "the token is signed with a key that is not known, or in a way that key is not for",
        }))
    }
}

impl Key {
    fn of(written: Written) -> Option<Self> {
        let Written { kty, kid: id, alg: algorithm, purpose, crv, n, e, x, y } = written;
        if purpose.is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok();
        let sized = |text: &str, length: usize| bytes(text).filter(|bytes| bytes.len() == length);
        let point = |length: usize| Some([vec![4], sized(&x, length)?, sized(&y, length)?].concat());
        let kind = match (&*kty, &*crv) {
            ("RSA", _) => Kind::Rsa { n: unsigned(bytes(&n)?)?, e: unsigned(bytes(&e)?)? },
            ("EC", "P-256") => Kind::P256(point(32)?),
            ("EC", "P-384") => Kind::P384(point(48)?),
            ("OKP", "Ed25519") => Kind::Ed25519(sized(&x, 32)?),
            _ => return None,
        };
        Some(Self { id, algorithm, kind })
    }

    /// `None`: it is not for tokens of that algorithm.
    fn has_signed(&self, token: &Token<'_>) -> Option<bool> {
        let algorithm = token.algorithm();
        if self.algorithm.as_deref().is_some_and(|own| own != algorithm) {
            return None;
        }
        let (signed, signature) = (token.signed(), token.signature());
        let by = |how: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(how, key).verify(signed, signature).is_ok()
        };
        Some(match (&self.kind, algorithm) {
            (Kind::Rsa { n, e }, "RS256" | "RS384" | "RS512") => {
                let how = match algorithm {
                    "RS256" => &RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &RSA_PKCS1_2048_8192_SHA384,
                    _ => &RSA_PKCS1_2048_8192_SHA512,
                };
                RsaPublicKeyComponents { n, e }.verify(how, signed, signature).is_ok()
            }
            (Kind::P256(key), "ES256") => by(&ECDSA_P256_SHA256_FIXED, key),
            (Kind::P384(key), "ES384") => by(&ECDSA_P384_SHA384_FIXED, key),
            (Kind::Ed25519(key), "EdDSA") => by(&ED25519, key),
            _ => return None,
        })
    }
}

/// A number without leading zeros, as the verifier wants it; some issuers write one.
fn unsigned(bytes: Vec<u8>) -> Option<Vec<u8>> {
    let first = bytes.iter().position(|byte| *byte != 0)?;
    Some(bytes[first..].to_vec())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::Signer;
    use super::*;

    fn keys(list: &[Value]) -> Keys {
        Keys::read(json!({ "keys": list }).to_string().as_bytes()).expect("a set")
    }

    fn check(keys: &Keys, text: &str, want: Result<(), &str>) {
        let got = Token::read(text.as_bytes()).and_then(|token| keys.verify(&token));
        assert_eq!(got.map_err(|(Refusal::Token(why) | Refusal::Claims(why))| why), want, "{text}");
    }

    const UNKNOWN: &str = "the token is signed with a key that is not known, or in a way that key is not for";
    const BAD: &str = "the signature is not good";

    #[test]
    fn each_kind_of_key_signs() {
        let all = [Signer::ed25519("e"), Signer::p256("p"), Signer::p384("q"), Signer::rsa("r")];
        let set = keys(&all.iter().map(Signer::public).collect::<Vec<_>>());
        for signer in &all {
            let good = signer.sign(&json!({ "a": 1 }));
            check(&set, &good, Ok(()));
            check(&keys(&[]), &good, Err(UNKNOWN));
            let (head, signature) = good.rsplit_once('.').expect("three parts");
            check(&set, &format!("{head}.{}", &signature[4..]), Err(BAD));
            let other = signer.sign(&json!({ "a": 2 }));
            check(&set, &format!("{head}.{}", other.rsplit_once('.').expect("three parts").1), Err(BAD));
        }
    }

    #[test]
    fn a_token_cannot_choose_how_it_is_verified() {
        let signer = Signer::rsa("r");
        let set = keys(&[signer.public()]);
        for algorithm in ["none", "HS256", "ES256", "EdDSA", "rs256", "PS256", ""] {
            check(&set, &signer.sign_as(&json!({ "alg": algorithm, "kid": "r" }), &json!({})), Err(UNKNOWN));
        }
        check(&set, &signer.sign_as(&json!({ "alg": "RS512", "kid": "r" }), &json!({})), Err(BAD));
        let mut only = signer.public();
        only["alg"] = "RS512".into();
        check(&keys(&[only]), &signer.sign(&json!({})), Err(UNKNOWN));
        let mut other = signer.public();
        other["use"] = "enc".into();
        assert!(keys(&[other]).is_empty());
    }

    #[test]
    fn keys_go_by_their_names() {
        let (one, two) = (Signer::ed25519("1"), Signer::ed25519("2"));
        let set = keys(&[one.public(), two.public()]);
        assert!(set.has("1") && !set.has("3"));
        check(&set, &two.sign_as(&json!({ "alg": "EdDSA" }), &json!({})), Ok(()));
        check(&set, &two.sign_as(&json!({ "alg": "EdDSA", "kid": "1" }), &json!({})), Err(BAD));
        check(&set, &two.sign_as(&json!({ "alg": "EdDSA", "kid": "3" }), &json!({})), Err(UNKNOWN));
    }

    #[test]
    fn sets_with_strange_keys() {
        let good = Signer::ed25519("1").public();
        let strange = [
            json!(null),
            json!({}),
            json!({ "kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA" }),
            json!({ "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA" }),
            json!({ "kty": "RSA", "n": "", "e": "AQAB" }),
            json!({ "kty": "RSA", "n": "AAAA", "e": "AQAB" }),
            json!({ "kty": "oct", "k": "AAAA" }),
            json!({ "kty": 5 }),
            good,
        ];
        assert_eq!(keys(&strange).0.len(), 1);
        assert!(Keys::read(b"[]").is_err() && Keys::read(b"{}").is_err() && Keys::read(b"").is_err());
    }
}
