//! What goes beyond Knative, at work: the rules of `neap_logic::routing::extras` with what they need to remember.
//!
//! A route without such rules has no [`RouteState`] and pays for none. The state of a route outlives the requests and most
//! changes of its Ingress; it never outlives the route.

pub(crate) mod affinity;
pub(crate) mod auth;
pub(crate) mod hedge;
pub(crate) mod limit;

use std::sync::Arc;

use neap_logic::routing::extras::{Affinity, AuthRule, Extras, KeySource, RateBy};
use neap_proxy::{Connection, ProxyError, Request};

use self::affinity::Seal;
use self::auth::{KeySet, KeySets};
use self::hedge::Hedger;
use self::limit::Limiter;
use crate::request;

/// One Ingress' rules, and what is remembered for them.
#[derive(Debug)]
pub(crate) struct RouteState {
    pub(crate) rules: Arc<Extras>,
    pub(crate) seal: Arc<Seal>,
    limiter: Option<Arc<Limiter>>,
    pub(crate) hedger: Arc<Hedger>,
    /// The issuer's keys, where they have to be fetched.
    key_set: Option<Arc<KeySet>>,
}

impl RouteState {
    /// `before` is the state under the rules of before: what still fits is kept.
    pub(crate) fn new(rules: &Arc<Extras>, identity: &str, before: Option<&Self>, sets: &mut KeySets) -> Self {
        let limiter = rules.rate.as_ref().map(|rule| {
            let known = before.and_then(|before| before.limiter.clone());
            known.filter(|limiter| limiter.rate == rule.rate).unwrap_or_else(|| Arc::new(Limiter::new(rule.rate)))
        });
        let key_set = match &rules.auth {
            Some(AuthRule::Jwt(rule)) => match &rule.keys {
                KeySource::Secret(_) => None,
                source => Some(sets.of(source)),
            },
            _ => None,
        };
        Self {
            rules: rules.clone(),
            seal: before.map_or_else(|| Arc::new(Seal::new(identity)), |before| before.seal.clone()),
            limiter,
            hedger: before.map(|before| before.hedger.clone()).unwrap_or_default(),
            key_set,
        }
    }
}

/// The rules a request comes under, in the order of its routes.
pub(crate) struct Applied {
    pub(crate) states: Vec<Arc<RouteState>>,
    pub(crate) sticky: Option<affinity::Sticky>,
}

impl Applied {
    /// Lets the request pass, or says why not. Limits come first: whoever guesses keys is slowed down by them.
    pub(crate) async fn guard(
        &self,
        request: &mut Request,
        connection: &Connection,
        trusted: bool,
        door: &auth::Door<'_>,
    ) -> Result<(), ProxyError> {
        for state in &self.states {
            if let (Some(limiter), Some(rule)) = (&state.limiter, &state.rules.rate) {
                let headers = request.headers();
                match &rule.by {
                    RateBy::All => limiter.admit(&())?,
                    RateBy::Client => limiter.admit(&limit::block(request::client(headers, connection, trusted)))?,
                    RateBy::Header(name) => limiter.admit(&headers.get(&**name).map(http::HeaderValue::as_bytes))?,
                }
            }
        }
        let rules = || self.states.iter().filter_map(|state| Some((state, state.rules.auth.as_ref()?)));
        // What callers say in the place of claims is taken off before anything is put there.
        for (_, rule) in rules() {
            auth::strip_claims(rule, request.headers_mut());
        }
        let mut spent = false;
        for (state, rule) in rules() {
            spent |= matches!(rule, AuthRule::Key(_));
            auth::check(rule, state.key_set.as_deref(), request.headers_mut(), door).await?;
        }
        if spent {
            auth::strip_key(request.headers_mut());
        }
        Ok(())
    }

    /// The name of the cookie, and what closes it: those of the first route that has one.
    pub(crate) fn cookie(&self) -> Option<(&str, &Seal)> {
        let first = self.states.iter().find(|state| state.rules.affinity.is_some())?;
        match &first.rules.affinity {
            Some(Affinity::Cookie { name }) => Some((name, &first.seal)),
            _ => None,
        }
    }

    pub(crate) fn hedged(&self) -> Option<&Arc<RouteState>> {
        self.states.iter().find(|state| state.rules.hedge.is_some())
    }
}
