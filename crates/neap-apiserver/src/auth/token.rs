//! Service-account tokens: signed JWTs (ES256) that name an account and, where asked, the pod they are bound to.
//!
//! A token is good while its signature, its time and everything it names hold: deleting the account or the pod ends it.

use super::AUTHENTICATED;
use crate::codec::{self, Body};
use crate::metadata;
use crate::request::Verb;
use crate::server::{Exchange, Inner};
use crate::status::{ApiError, Result, invalid};
use crate::{storage, time, verbs};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Response};
use k8s_openapi::api::authentication::v1::UserInfo;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Kubernetes' default life of a requested token, in seconds.
const DEFAULT_SECONDS: i64 = 3600;
/// Kubernetes' shortest life of a requested token, in seconds.
const LEAST_SECONDS: i64 = 600;
/// Longer lives than this make no sense (Kubernetes refuses above 2^32), in seconds.
const MOST_SECONDS: i64 = 1 << 32;
const ALGORITHM: &str = "ES256";

/// Signs and checks tokens.
pub struct Signer {
    key: EcdsaKeyPair,
    random: SystemRandom,
    issuer: String,
    audience: String,
    id: String,
}

#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    #[error("the service-account key is no P-256 key in PKCS#8; remove it to have a new one made")]
    Key,
    #[error("no randomness from the system to make a service-account key")]
    Random,
}

impl Signer {
    /// A new key, as PKCS#8.
    pub fn generate() -> std::result::Result<Vec<u8>, SignerError> {
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map(|document| document.as_ref().to_vec())
            .map_err(|_| SignerError::Random)
    }

    /// `issuer` is who signs (the address of the server), `audience` whom tokens without a wish are for.
    pub fn new(pkcs8: &[u8], issuer: &str, audience: &str) -> std::result::Result<Self, SignerError> {
        let random = SystemRandom::new();
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random).map_err(|_| SignerError::Key)?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        let id = URL_SAFE_NO_PAD.encode(digest);
        Ok(Self { key, random, issuer: issuer.to_owned(), audience: audience.to_owned(), id })
    }

    fn sign(&self, claims: &Value) -> Result<String> {
        let header = json!({"alg": ALGORITHM, "kid": self.id});
        let mut text = URL_SAFE_NO_PAD.encode(header.to_string());
        text.push('.');
        text.push_str(&URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = self
            .key
            .sign(&self.random, text.as_bytes())
            .map_err(|_| ApiError::internal("the token could not be signed"))?;
        text.push('.');
        text.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(text)
    }

    fn verify(&self, token: &str) -> Option<Claims> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        (header["alg"] == ALGORITHM).then_some(())?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(signed.as_bytes(), &signature)
            .ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    }

    /// The public key as a JSON Web Key Set.
    pub fn jwks(&self) -> Value {
        // An uncompressed point: 0x04, then x and y of 32 bytes each.
        let point = self.key.public_key().as_ref();
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": ALGORITHM,
            "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..65])}]})
    }

    pub fn discovery(&self) -> Value {
        json!({"issuer": self.issuer, "jwks_uri": format!("{}/openid/v1/jwks", self.issuer),
            "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [ALGORITHM]})
    }
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: Vec<String>,
    exp: i64,
    nbf: i64,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
}

#[derive(Deserialize)]
struct Bound {
    namespace: String,
    serviceaccount: Ref,
    #[serde(default)]
    pod: Option<Ref>,
    #[serde(default)]
    secret: Option<Ref>,
}

#[derive(Deserialize)]
struct Ref {
    name: String,
    uid: String,
}

pub(crate) fn own_audiences(server: &Inner) -> Vec<String> {
    server.config.signer.iter().map(|s| s.audience.clone()).collect()
}

/// For which of the audiences that were asked about a token is good, once it is known to be good.
pub(crate) fn audiences_met(server: &Inner, token: &str, asked: Vec<String>) -> Vec<String> {
    let claims = server.config.signer.as_ref().and_then(|signer| signer.verify(token));
    let held = claims.map_or_else(|| own_audiences(server), |claims| claims.aud);
    let asked = if asked.is_empty() { own_audiences(server) } else { asked };
    asked.into_iter().filter(|a| held.contains(a)).collect()
}

/// The service account a token stands for; `audiences` empty means this server's own.
pub(crate) fn user_of(server: &Inner, token: &str, audiences: &[String]) -> Option<UserInfo> {
    let signer = server.config.signer.as_ref()?;
    let claims = signer.verify(token)?;
    let now = server.now().as_second();
    let meant = if audiences.is_empty() {
        claims.aud.contains(&signer.audience)
    } else {
        audiences.iter().any(|a| claims.aud.contains(a))
    };
    if claims.iss != signer.issuer || !meant || now >= claims.exp || now < claims.nbf {
        return None;
    }
    let bound = &claims.kubernetes;
    let ns = &bound.namespace;
    let lives = |plural: &str, r: &Ref| uid_of(server, plural, ns, &r.name).is_some_and(|uid| uid == r.uid);
    let account = &bound.serviceaccount;
    let held = lives("serviceaccounts", account)
        && bound.pod.as_ref().is_none_or(|r| lives("pods", r))
        && bound.secret.as_ref().is_none_or(|r| lives("secrets", r));
    held.then(|| {
        let mut extra = BTreeMap::new();
        extra.insert("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={}", claims.jti)]);
        if let Some(pod) = &bound.pod {
            extra.insert("authentication.kubernetes.io/pod-name".to_owned(), vec![pod.name.clone()]);
            extra.insert("authentication.kubernetes.io/pod-uid".to_owned(), vec![pod.uid.clone()]);
        }
        UserInfo {
            username: Some(format!("system:serviceaccount:{ns}:{}", account.name)),
            uid: Some(account.uid.clone()),
            groups: Some(vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{ns}"),
                AUTHENTICATED.to_owned(),
            ]),
            extra: Some(extra),
        }
    })
}

fn uid_of(server: &Inner, plural: &str, namespace: &str, name: &str) -> Option<String> {
    let key = format!("{}{namespace}/{name}", storage::root("", plural));
    let entry = server.store.get(key.as_bytes())?;
    let object: Value = serde_json::from_slice(&entry.value).ok()?;
    Some(metadata::text(&object, "uid").to_owned())
}

/// `POST …/serviceaccounts/NAME/token`
pub(crate) async fn answer(x: &mut Exchange, verb: Verb, request: &Request<Bytes>) -> Result<Response<Body>> {
    if verb != Verb::Create {
        return Err(ApiError::MethodNotAllowed);
    }
    let account = verbs::get::decode_served(x, &verbs::get::find(x)?)?;
    let mut wish = codec::parse(request.headers(), request.body())?;
    if !wish.is_object() || wish.get("spec").is_some_and(|spec| !spec.is_object() && !spec.is_null()) {
        return Err(ApiError::bad_request("the body is no TokenRequest"));
    }
    let signer = x
        .server
        .config
        .signer
        .clone()
        .ok_or_else(|| ApiError::Unavailable("this server has no key to sign tokens with".into()))?;
    let seconds = wish.pointer("/spec/expirationSeconds").and_then(Value::as_i64).unwrap_or(DEFAULT_SECONDS);
    let why = match seconds {
        s if s < LEAST_SECONDS => Some("may not specify a duration less than 10 minutes"),
        s if s > MOST_SECONDS => Some("may not specify a duration larger than 2^32 seconds"),
        _ => None,
    };
    if let Some(why) = why {
        return Err(ApiError::Invalid {
            group: "authentication.k8s.io".into(),
            kind: "TokenRequest".into(),
            name: String::new(),
            causes: vec![invalid("spec.expirationSeconds", &json!(seconds), why)],
        });
    }
    let mut audiences: Vec<String> = wish
        .pointer("/spec/audiences")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if audiences.is_empty() {
        audiences.push(signer.audience.clone());
    }
    let namespace = x.namespace().unwrap_or("").to_owned();
    let mut bound = json!({"namespace": namespace,
        "serviceaccount": {"name": x.name(), "uid": metadata::text(&account, "uid")}});
    if let Some(object) = wish.pointer("/spec/boundObjectRef").filter(|o| !o.is_null()) {
        let (name, part) = bind(x, object, &namespace)?;
        bound[name] = part;
    }
    let now = x.now.as_second();
    let jti = x.server.chance(metadata::random_uid);
    let claims = json!({"iss": signer.issuer, "sub": format!("system:serviceaccount:{namespace}:{}", x.name()),
        "aud": audiences, "exp": now + seconds, "iat": now, "nbf": now, "jti": jti, "kubernetes.io": bound});
    let token = signer.sign(&claims)?;
    let expires = jiff::Timestamp::from_second(now + seconds).map_err(ApiError::internal)?;
    wish["apiVersion"] = json!("authentication.k8s.io/v1");
    wish["kind"] = json!("TokenRequest");
    wish["spec"]["audiences"] = json!(audiences);
    wish["spec"]["expirationSeconds"] = json!(seconds);
    if wish.pointer("/spec/boundObjectRef").is_none() {
        wish["spec"]["boundObjectRef"] = Value::Null;
    }
    wish["status"] = json!({"token": token, "expirationTimestamp": time::rfc3339(expires)});
    let meta = metadata::of_mut(&mut wish);
    meta.insert("name".into(), json!(x.name()));
    meta.insert("namespace".into(), json!(namespace));
    meta.insert("uid".into(), json!(metadata::text(&account, "uid")));
    meta.insert("creationTimestamp".into(), json!(time::rfc3339(x.now)));
    Ok(codec::respond(201, &wish, x.wanted))
}

/// The service account that a pod runs as.
fn account_of(server: &Inner, namespace: &str, pod: &str) -> String {
    let key = format!("{}{namespace}/{pod}", storage::root("", "pods"));
    let entry = server.store.get(key.as_bytes());
    let pod: Value = entry.and_then(|entry| serde_json::from_slice(&entry.value).ok()).unwrap_or_default();
    let named = ["serviceAccountName", "serviceAccount"].iter().find_map(|key| pod["spec"][*key].as_str());
    named.filter(|name| !name.is_empty()).unwrap_or("default").to_owned()
}

fn bind(x: &Exchange, object: &Value, namespace: &str) -> Result<(&'static str, Value)> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or("");
    let (part, plural) = match text("kind") {
        "Pod" => ("pod", "pods"),
        "Secret" => ("secret", "secrets"),
        other => {
            let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
            return Err(ApiError::bad_request(format!(
                "cannot bind token to object of type {group}/{version}, Kind={other}"
            )));
        }
    };
    let uid = uid_of(&x.server, plural, namespace, text("name")).ok_or_else(|| ApiError::NotFound {
        resource: crate::status::ResourceId::new("", plural),
        name: text("name").to_owned(),
    })?;
    if !text("uid").is_empty() && text("uid") != uid {
        return Err(ApiError::Conflict {
            resource: crate::status::ResourceId::new("", plural),
            name: text("name").to_owned(),
            why: format!("the UID in the bound object reference ({}) does not match the UID in record", text("uid")),
        });
    }
    if part == "pod" && account_of(&x.server, namespace, text("name")) != x.name() {
        let why = format!(
            "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name",
            x.name()
        );
        return Err(ApiError::Forbidden {
            resource: x.kind().id(),
            name: x.name().to_owned(),
            why,
            causes: Vec::new(),
        });
    }
    Ok((part, json!({"name": text("name"), "uid": uid})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_untouched_token_verifies() {
        let signer = Signer::new(&Signer::generate().unwrap(), "https://here", "here").unwrap();
        let claims = json!({"iss": "https://here", "aud": ["here"], "exp": 2, "nbf": 1, "jti": "j",
            "kubernetes.io": {"namespace": "n", "serviceaccount": {"name": "s", "uid": "u"}}});
        let token = signer.sign(&claims).unwrap();
        assert_eq!(signer.verify(&token).unwrap().kubernetes.serviceaccount.name, "s");
        let other = Signer::new(&Signer::generate().unwrap(), "https://here", "here").unwrap();
        assert!(other.verify(&token).is_none());
        let forged = token.replacen('.', ".e30", 1);
        assert!(signer.verify(&forged).is_none());
        assert!(signer.verify("a.b").is_none());
    }
}
