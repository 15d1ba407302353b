//! Who may call: a key that a Secret holds, or a token of an issuer that is trusted.
//!
//! It fails closed. A Secret that is missing, an issuer that cannot be reached, a rule nobody understands: 503, never a
//! request let through.

mod fetch;
pub(crate) mod jwks;
pub(crate) mod jwt;
mod keys;
#[cfg(test)]
pub(crate) mod testing;

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderValue;
use http::header::{self, HeaderMap, HeaderName};
use neap_logic::routing::SecretRef;
use neap_logic::routing::extras::{AuthRule, ClaimHeader, JwtRule, KeySource};
use neap_proxy::ProxyError;
use serde_json::{Map, Value};
use tokio_util::task::TaskTracker;

pub(crate) use self::fetch::{KeySet, KeySets};
use self::jwt::Refusal;
pub(crate) use self::keys::SecretKeys;
use crate::snapshot::Snapshot;

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// What the check may look at besides the request.
pub(crate) struct Door<'a> {
    pub(crate) snapshots: &'a ArcSwap<Snapshot>,
    /// For fetching keys while requests go on with those there are.
    pub(crate) tasks: &'a TaskTracker,
    /// Seconds since 1970.
    pub(crate) now: u64,
}

impl Door<'_> {
    fn secret(&self, secret: &SecretRef) -> Result<Arc<SecretKeys>, ProxyError> {
        self.snapshots.load().keys.get(secret).cloned().ok_or_else(|| ProxyError::AuthUnavailable {
            what: format!(
                "there is no Secret {}/{} of type {}",
                secret.namespace,
                secret.name,
                neap_api::keys::neap::AUTH_KEYS_TYPE
            ),
        })
    }
}

/// Lets a caller pass who shows what the rule asks for, and tells the application what it may know.
pub(crate) async fn check(
    rule: &AuthRule,
    fetched: Option<&KeySet>,
    headers: &mut HeaderMap,
    door: &Door<'_>,
) -> Result<(), ProxyError> {
    match rule {
        AuthRule::Broken => {
            Err(ProxyError::AuthUnavailable { what: "the annotations about authentication make no sense".into() })
        }
        AuthRule::Key(secret) => {
            let keys = door.secret(secret)?;
            let shown = headers.get(&API_KEY).map(HeaderValue::as_bytes).or_else(|| bearer(headers));
            match shown {
                Some(shown) if keys.opens(shown) => Ok(()),
                Some(_) => Err(stranger("the key is none of those of the service")),
                None => Err(unknown("no key was shown")),
            }
        }
        AuthRule::Jwt(rule) => {
            // It is no list (RFC 9110, section 5.3): the application might read another one than was verified.
            if headers.get_all(header::AUTHORIZATION).iter().nth(1).is_some() {
                return Err(stranger("there is more than one Authorization"));
            }
            let Some(token) = bearer(headers) else { return Err(unknown("no token was shown")) };
            let token = jwt::Token::read(token).map_err(refused)?;
            verify(rule, fetched, &token, door).await?;
            let claims = token.claims(rule, door.now).map_err(refused)?;
            tell(&rule.claims, &claims, headers);
            Ok(())
        }
    }
}

async fn verify(
    rule: &JwtRule,
    fetched: Option<&KeySet>,
    token: &jwt::Token<'_>,
    door: &Door<'_>,
) -> Result<(), ProxyError> {
    match (&rule.keys, fetched) {
        (KeySource::Secret(secret), _) => {
            let keys = door.secret(secret)?;
            if let Some(why) = keys.verifies_nothing() {
                let what = format!("the Secret {}/{} {why}", secret.namespace, secret.name);
                return Err(ProxyError::AuthUnavailable { what });
            }
            keys.verify(token).map_err(refused)
        }
        (_, Some(set)) => {
            let keys = set.keys_for(token.key_id(), door.tasks).await?;
            keys.verify(token).map_err(refused)
        }
        (_, None) => Err(ProxyError::AuthUnavailable { what: "the issuer's keys are not being fetched".into() }),
    }
}

/// Takes off what a caller says in the name of its token, also where an application would only read it so: CGI and its
/// heirs know no difference between `-` and `_`.
pub(crate) fn strip_claims(rule: &AuthRule, headers: &mut HeaderMap) {
    let AuthRule::Jwt(rule) = rule else { return };
    let reads_as = |name: &str, claim: &ClaimHeader| {
        let dashed = |text: &str| text.replace('_', "-");
        dashed(name).eq_ignore_ascii_case(&dashed(&claim.header))
    };
    let said = headers.keys().filter(|name| rule.claims.iter().any(|claim| reads_as(name.as_str(), claim)));
    for name in said.cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
}

/// A key that opens the service is not for the service to see.
pub(crate) fn strip_key(headers: &mut HeaderMap) {
    if headers.remove(&API_KEY).is_none() {
        headers.remove(header::AUTHORIZATION);
    }
}

fn tell(wanted: &[ClaimHeader], claims: &Map<String, Value>, headers: &mut HeaderMap) {
    for ClaimHeader { claim, header } in wanted {
        let text = claims.get(&**claim).and_then(jwt::text_of);
        let value = text.and_then(|text| HeaderValue::from_bytes(text.as_bytes()).ok());
        if let (Some(value), Ok(name)) = (value, HeaderName::from_bytes(header.as_bytes())) {
            headers.insert(name, value);
        }
    }
}

/// RFC 6750, section 2.1. The scheme's name is in any case (RFC 9110, section 11.1).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, rest) = value.split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then(|| rest.trim_ascii())
}

/// RFC 6750, section 3: who has shown nothing is told only how to.
fn unknown(why: &'static str) -> ProxyError {
    ProxyError::Unauthenticated { why, challenge: HeaderValue::from_static("Bearer") }
}

fn stranger(why: &'static str) -> ProxyError {
    let challenge = format!("Bearer error=\"invalid_token\", error_description=\"{why}\"");
    let challenge = HeaderValue::try_from(challenge).expect("reasons are plain text without quotes");
    ProxyError::Unauthenticated { why, challenge }
}

fn refused(refusal: Refusal) -> ProxyError {
    match refusal {
        Refusal::Token(why) => stranger(why),
        Refusal::Claims(why) => ProxyError::Forbidden { why },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_shown() {
        let check = |value: &'static str, want: Option<&str>| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
            assert_eq!(bearer(&headers), want.map(str::as_bytes), "{value}");
        };
        check("Bearer abc", Some("abc"));
        check("bEARER   abc ", Some("abc"));
        check("Bearer", None);
        check("Bearer ", Some(""));
        check("Basic abc", None);
        check("Bearerabc", None);
        check("", None);
    }
}
