//! The immutable table a request is looked up in.

use std::sync::Arc;

use super::host::{HostBuf, HostMap, host_of};
use super::rule::{HostRoutes, PathRule, SecretRef};

/// Through which door a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// A listener for the outside: cluster-local hosts do not exist here.
    External,
    /// A listener for the inside: serves cluster-local hosts, and external ones too (F4.5).
    Local,
}

/// What the table says about a request.
#[derive(Clone, Copy, Debug)]
pub enum Lookup<'t> {
    /// It goes on.
    Found(Found<'t>),
    /// It is to be answered with 301 to the same URL under https.
    Redirect(&'t HostRoutes),
    /// Nobody serves this host. Answer 404.
    NoHost,
    /// The host is only served to the inside. Answer 404 as for `NoHost`; the difference is for `explain`.
    LocalOnly(&'t HostRoutes),
    /// The host is served, but not this path. Answer 404.
    NoPath(&'t HostRoutes),
}

/// The rule for a request.
#[derive(Clone, Copy, Debug)]
pub struct Found<'t> {
    /// The host's routes, with the Ingress they come from.
    pub host: &'t HostRoutes,
    /// The path that matched; [`PathRule::choose`] picks the backend.
    pub path: &'t PathRule,
}

/// A snapshot of all routes. Copying it is cheap.
#[derive(Clone, Debug, Default)]
pub struct Table {
    pub(super) hosts: HostMap<Arc<HostRoutes>>,
    pub(super) certificates: HostMap<Arc<SecretRef>>,
}

impl Table {
    /// Finds where a request goes.
    ///
    /// `authority` is the Host header or `:authority`, in any case, with or without port; `path` has no query, which comes
    /// beside it; `secure` says whether it came over TLS; `header` looks up the value of a header by lower-case name.
    pub fn find<'h>(
        &self,
        door: Door,
        secure: bool,
        authority: &str,
        path: &str,
        query: Option<&str>,
        header: impl Fn(&str) -> Option<&'h str>,
    ) -> Lookup<'_> {
        let mut buf: HostBuf = [0; _];
        let Some(host) = host_of(authority, &mut buf).and_then(|host| self.hosts.get(host)) else {
            return Lookup::NoHost;
        };
        let paths = match door {
            Door::External => match &host.external {
                Some(paths) if host.redirect && !secure => {
                    // An authority that makes certificates asks in the clear (F1.11), and may find none where it would be sent.
                    let found = paths.iter().find(|rule| rule.is_challenge() && matches(rule, path, query, &header));
                    return found.map_or(Lookup::Redirect(host), |path| Lookup::Found(Found { host, path }));
                }
                Some(paths) => paths,
                None => return Lookup::LocalOnly(host),
            },
            Door::Local => match host.local.as_ref().or(host.external.as_ref()) {
                Some(paths) => paths,
                None => return Lookup::NoPath(host),
            },
        };
        paths
            .iter()
            .find(|rule| matches(rule, path, query, &header))
            .map_or(Lookup::NoPath(host), |path| Lookup::Found(Found { host, path }))
    }

    /// The routes of a host, in any case, with or without port.
    pub fn host(&self, authority: &str) -> Option<&HostRoutes> {
        let mut buf: HostBuf = [0; _];
        self.hosts.get(host_of(authority, &mut buf)?).map(|routes| &**routes)
    }

    /// The Secret whose certificate is to be shown for a server name.
    pub fn certificate(&self, server_name: &str) -> Option<&SecretRef> {
        let mut buf: HostBuf = [0; _];
        self.certificates.get(host_of(server_name, &mut buf)?).map(|secret| &**secret)
    }

    /// Every certificate the table may ask for, in no order, a Secret once per host.
    pub fn certificates(&self) -> impl Iterator<Item = &SecretRef> {
        self.certificates.values().map(|secret| &**secret)
    }

    /// Every host's routes, in no order.
    pub fn hosts(&self) -> impl Iterator<Item = &HostRoutes> {
        self.hosts.values().map(|routes| &**routes)
    }

    /// How many hosts are served.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether no host is served.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }
}

fn matches<'h>(rule: &PathRule, path: &str, query: Option<&str>, header: impl Fn(&str) -> Option<&'h str>) -> bool {
    path.starts_with(&*rule.prefix)
        && rule.matches.iter().all(|wanted| header(&wanted.name) == Some(&*wanted.value))
        && rule.more.as_ref().is_none_or(|more| more.matches(&rule.prefix, path, query, &header))
}
