//! What goes beyond Knative: the `neap.dev/` annotations of a Service, Route or DomainMapping, compiled.
//!
//! They travel to the Ingress as all annotations do. Admission and the gateway read them with the same function: what
//! one lets in, the other understands. A mistake that got past admission switches its feature off, but for one: who asked
//! for authentication and spelled it wrongly is served to nobody.

mod affinity;
mod auth;
mod hedge;
mod matching;
mod rate;
mod rules;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use affinity::Affinity;
pub use auth::{AuthRule, ClaimHeader, JwtRule, KeySource, Requirement, is_key_address};
pub use hedge::{Budget, HedgeAfter, Quantile};
pub use matching::{FieldTest, PathMore, Test};
use neap_api::keys::neap as keys;
pub use rate::{Rate, RateBy, RateRule};
pub use rules::{PathExtra, Rule, RuleTarget, read_paths, rules, write_paths};

use super::rule::IngressKey;

/// Every annotation of this module.
pub const ALL: [&str; 13] = [
    keys::SESSION_AFFINITY,
    keys::RATE_LIMIT,
    keys::RATE_LIMIT_BY,
    keys::HEDGE_AFTER,
    keys::AUTH,
    keys::AUTH_SECRET,
    keys::AUTH_ISSUER,
    keys::AUTH_AUDIENCE,
    keys::AUTH_JWKS,
    keys::AUTH_CLAIMS,
    keys::AUTH_REQUIRE,
    keys::ROUTES,
    keys::WILDCARD,
];

/// What one object asks for beyond Knative.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// Clients stay where they were.
    pub affinity: Option<Affinity>,
    /// So many requests and no more.
    pub rate: Option<RateRule>,
    /// A slow instance is not waited for alone.
    pub hedge: Option<HedgeAfter>,
    /// Callers have to say who they are.
    pub auth: Option<AuthRule>,
    /// The application behind a wildcard is told the name it was called by.
    pub keeps_host: bool,
}

impl Extras {
    /// Nothing of it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// As a route carries it: nothing where there is nothing.
    pub(super) fn into_part(self) -> Option<Arc<Self>> {
        (!self.is_empty()).then(|| Arc::new(self))
    }
}

/// One annotation that says nothing sensible, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The annotation.
    pub key: &'static str,
    /// What is wrong with it, as the end of a sentence.
    pub message: String,
}

impl Problem {
    fn new(key: &'static str, message: impl Into<String>) -> Self {
        Self { key, message: message.into() }
    }
}

/// Reads all annotations but those that make paths (see [`rules`]). `of` names the object that carries them.
pub fn extras<'a>(of: &IngressKey, get: impl Fn(&str) -> Option<&'a str>) -> (Extras, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut take = |problem: Problem| problems.push(problem);
    let affinity = get(keys::SESSION_AFFINITY).and_then(|text| keep(affinity::parse(text, of), &mut take));
    let rate = get(keys::RATE_LIMIT).and_then(|text| keep(rate::parse(text, get(keys::RATE_LIMIT_BY)), &mut take));
    if rate.is_none() && get(keys::RATE_LIMIT).is_none() && get(keys::RATE_LIMIT_BY).is_some() {
        take(Problem::new(keys::RATE_LIMIT_BY, format!("says nothing without {}", keys::RATE_LIMIT)));
    }
    let hedge = get(keys::HEDGE_AFTER).and_then(|text| keep(hedge::parse(text), &mut take));
    let auth = auth::parse(of, &get, &mut take);
    let keeps_host = match get(keys::WILDCARD) {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            take(Problem::new(keys::WILDCARD, format!("{other:?} is neither \"true\" nor \"false\"")));
            false
        }
    };
    (Extras { affinity, rate, hedge, auth, keeps_host }, problems)
}

fn keep<T>(parsed: Result<T, Problem>, take: &mut impl FnMut(Problem)) -> Option<T> {
    parsed.map_err(take).ok()
}

/// Whether a text can be the name of a header that a rule of ours reads or sets.
fn is_header_name(name: &str) -> bool {
    const LONGEST: usize = 128;
    !name.is_empty() && name.len() <= LONGEST && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}
