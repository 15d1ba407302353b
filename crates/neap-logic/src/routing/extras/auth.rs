//! Who may call: the annotations about keys and tokens, as one rule.

use neap_api::keys::neap as keys;

use super::{Problem, is_header_name};
use crate::routing::rule::{IngressKey, SecretRef};

/// Names, values and claims in one annotation, at most.
const MOST: usize = 16;
/// Headers of claims begin so, and so none of them can be one that HTTP or the platform relies on.
const HEADER_PREFIX: &str = "x-";
/// Headers that begin like that but are the platform's.
const RESERVED: [&str; 3] = ["x-forwarded-", "x-neap-", "x-real-ip"];

/// What a caller has to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthRule {
    /// A key that the Secret holds.
    Key(SecretRef),
    /// A token.
    Jwt(Box<JwtRule>),
    /// Something, but it is not said well what: nobody is let in.
    Broken,
}

/// Which tokens are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtRule {
    /// Who made them.
    pub issuer: Box<str>,
    /// For whom; one of these is enough.
    pub audiences: Box<[Box<str>]>,
    /// Where the keys are.
    pub keys: KeySource,
    /// What of them the application is told.
    pub claims: Box<[ClaimHeader]>,
    /// What else they must say.
    pub require: Box<[Requirement]>,
}

/// Where keys come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// Of a Secret: a `jwks.json`, and secrets for HS256 in `hs256` and `hs256-NAME`.
    Secret(SecretRef),
    /// A JSON Web Key Set at this address.
    Url(Box<str>),
    /// Where the configuration of this issuer says.
    Discovery(Box<str>),
}

/// A claim passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimHeader {
    /// The claim.
    pub claim: Box<str>,
    /// The header, lower case.
    pub header: Box<str>,
}

/// A claim that must have one of these values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The claim.
    pub claim: Box<str>,
    /// The values.
    pub values: Box<[Box<str>]>,
}

pub(super) fn parse<'a>(
    of: &IngressKey,
    get: &impl Fn(&str) -> Option<&'a str>,
    take: &mut impl FnMut(Problem),
) -> Option<AuthRule> {
    const OTHERS: [&str; 6] = [
        keys::AUTH_SECRET,
        keys::AUTH_ISSUER,
        keys::AUTH_AUDIENCE,
        keys::AUTH_JWKS,
        keys::AUTH_CLAIMS,
        keys::AUTH_REQUIRE,
    ];
    let given = |key: &str| get(key).map(str::trim).filter(|text| !text.is_empty());
    let parsed = match get(keys::AUTH).map(str::trim) {
        None => match OTHERS.into_iter().find(|key| get(key).is_some()) {
            // Who writes one of these means to be protected.
            Some(key) => Err(Problem::new(key, format!("needs {} to be \"key\" or \"jwt\"", keys::AUTH))),
            None => return None,
        },
        Some("key") => match OTHERS[1..].iter().find(|key| get(key).is_some()) {
            Some(key) => Err(Problem::new(key, format!("belongs to {}: jwt", keys::AUTH))),
            None => given(keys::AUTH_SECRET)
                .ok_or_else(|| Problem::new(keys::AUTH_SECRET, "must name the Secret that holds the keys"))
                .and_then(|name| secret(of, name))
                .map(AuthRule::Key),
        },
        Some("jwt") => jwt(of, &given).map(|rule| AuthRule::Jwt(Box::new(rule))),
        Some(other) => Err(Problem::new(keys::AUTH, format!("{other:?} is neither \"key\" nor \"jwt\""))),
    };
    Some(parsed.unwrap_or_else(|problem| {
        take(problem);
        AuthRule::Broken
    }))
}

fn secret(of: &IngressKey, name: &str) -> Result<SecretRef, Problem> {
    if !crate::names::is_dns1123_subdomain(name) {
        return Err(Problem::new(keys::AUTH_SECRET, format!("{name:?} is no name of a Secret")));
    }
    Ok(SecretRef { namespace: of.namespace.clone(), name: name.into() })
}

fn jwt<'a>(of: &IngressKey, given: &impl Fn(&str) -> Option<&'a str>) -> Result<JwtRule, Problem> {
    let issuer =
        given(keys::AUTH_ISSUER).ok_or_else(|| Problem::new(keys::AUTH_ISSUER, "must say whose tokens are good"))?;
    let audiences: Box<[Box<str>]> = list(keys::AUTH_AUDIENCE, given(keys::AUTH_AUDIENCE))?;
    if audiences.is_empty() {
        let why = "must say for whom a token is made, or tokens for other services would open this one";
        return Err(Problem::new(keys::AUTH_AUDIENCE, why));
    }
    let keys = match (given(keys::AUTH_SECRET), given(keys::AUTH_JWKS)) {
        (Some(_), Some(_)) => {
            return Err(Problem::new(keys::AUTH_JWKS, format!("excludes {}: give one", keys::AUTH_SECRET)));
        }
        (Some(name), None) => KeySource::Secret(secret(of, name)?),
        (None, Some(url)) => KeySource::Url(fetchable(keys::AUTH_JWKS, url)?),
        (None, None) => KeySource::Discovery(fetchable(keys::AUTH_ISSUER, issuer)?),
    };
    let mut claims = Vec::new();
    for pair in list(keys::AUTH_CLAIMS, given(keys::AUTH_CLAIMS))? {
        let (claim, header) =
            pair.split_once('=').map(|(claim, header)| (claim.trim(), header.trim())).unwrap_or_default();
        let header = header.to_ascii_lowercase();
        let free = header.starts_with(HEADER_PREFIX) && !RESERVED.iter().any(|taken| header.starts_with(taken));
        if claim.is_empty() || !is_header_name(&header) || !free {
            let example = "write \"sub=X-Auth-Subject\", with a header that begins with X- and is not the platform's";
            return Err(Problem::new(keys::AUTH_CLAIMS, format!("{pair:?} is no claim and header: {example}")));
        }
        claims.push(ClaimHeader { claim: claim.into(), header: header.into() });
    }
    let mut require = Vec::new();
    for pair in list(keys::AUTH_REQUIRE, given(keys::AUTH_REQUIRE))? {
        let (claim, values) = pair.split_once('=').unwrap_or_default();
        let values: Box<[Box<str>]> = values.split('|').map(|value| value.trim().into()).collect();
        if claim.trim().is_empty() || values.iter().any(|value| value.is_empty()) {
            let message = format!("{pair:?} is no claim and values: write \"email=ann@example.org|bob@example.org\"");
            return Err(Problem::new(keys::AUTH_REQUIRE, message));
        }
        require.push(Requirement { claim: claim.trim().into(), values });
    }
    Ok(JwtRule { issuer: issuer.into(), audiences, keys, claims: claims.into(), require: require.into() })
}

fn list(key: &'static str, text: Option<&str>) -> Result<Box<[Box<str>]>, Problem> {
    let parts = text.unwrap_or_default().split(',').map(str::trim).filter(|part| !part.is_empty());
    let parts: Box<[Box<str>]> = parts.map(Into::into).collect();
    if parts.len() > MOST {
        return Err(Problem::new(key, format!("has {} entries, at most {MOST} are allowed", parts.len())));
    }
    Ok(parts)
}

fn fetchable(key: &'static str, url: &str) -> Result<Box<str>, Problem> {
    is_key_address(url).map(|()| url.into()).map_err(|why| Problem::new(key, format!("{url:?} {why}")))
}

/// Whether keys may be fetched from an address: over TLS, for whoever can change the answer can open the door. What stays on
/// this machine needs none. An error is the end of a sentence.
pub fn is_key_address(url: &str) -> Result<(), &'static str> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", ""));
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = &rest[..end];
    let host = match authority.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    if host.is_empty() || authority.contains('@') || url.contains('#') || url.bytes().any(|b| !b.is_ascii_graphic()) {
        return Err("is no address keys could be fetched from");
    }
    let near = host == "localhost" || host.ends_with(".localhost") || host == "127.0.0.1" || host == "::1";
    match scheme {
        "https" => Ok(()),
        "http" if near => Ok(()),
        _ => Err("must begin with https://"),
    }
}
