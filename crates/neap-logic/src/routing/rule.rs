//! The compiled parts of a routing table: plain immutable data, shared by reference count between snapshots.

use std::fmt;
use std::sync::Arc;

use super::extras::{Extras, PathMore};

/// Names one Ingress object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IngressKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl IngressKey {
    /// The key of the Ingress of that name.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for IngressKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Names one Revision: the unit that is scaled, throttled and measured.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RevisionKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl RevisionKey {
    /// The key of the Revision of that name.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for RevisionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A port of a Kubernetes Service, as the Ingress names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Port {
    /// By number.
    Number(u16),
    /// By name.
    Name(Arc<str>),
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(n) => write!(f, "{n}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Where a split leads: a port of a Kubernetes Service, and the Revision behind it where the Ingress names one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// Namespace of the Service.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub service: Arc<str>,
    /// Its port.
    pub port: Port,
    /// The Revision, when the split or its path appends `Knative-Serving-Revision` (C4.1).
    pub revision: Option<RevisionKey>,
}

/// A header to match or to set. Names are lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Lower-case name.
    pub name: Box<str>,
    /// Exact value.
    pub value: Box<str>,
}

/// One backend of a path and its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Where it leads.
    pub backend: Backend,
    /// Its share of the path's requests, in percent. A split with 0 is never chosen, but stays visible.
    pub percent: u8,
    /// Headers to set (replacing what the request carries): the path's, overridden by the split's.
    pub headers: Box<[Header]>,
}

/// One path of a host. Paths are kept in the order in which they are tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathRule {
    /// Literal prefix; empty matches everything.
    pub prefix: Box<str>,
    /// Headers the request must carry with exactly these values; several must all match.
    pub matches: Box<[Header]>,
    /// What else is asked of a request, and what becomes of its path; few have any of it.
    pub more: Option<Box<PathMore>>,
    /// The Host header the backend gets instead of the request's.
    pub rewrite_host: Option<Arc<str>>,
    /// The backends. Never empty, and their percents sum to 100.
    pub splits: Box<[Split]>,
}

impl PathRule {
    /// How soon it is tried: longest prefix first; of equal prefixes a whole path before a beginning, then what asks for more.
    pub(super) fn rank(&self) -> (usize, bool, usize) {
        let more = self.more.as_deref();
        let weight = self.matches.len() + more.map_or(0, PathMore::weight);
        (self.prefix.len(), more.is_some_and(|more| more.exact), weight)
    }

    /// The path a request goes on with; `None` when it keeps its own.
    pub fn rewritten(&self, path: &str) -> Option<String> {
        self.more.as_ref()?.rewritten(&self.prefix, path)
    }

    /// Whether it is there to answer a certificate authority, which comes without TLS and shows no key (F1.11).
    pub fn is_challenge(&self) -> bool {
        self.prefix.starts_with(neap_api::acme::CHALLENGE_PATH)
    }

    /// The split a number falls on. Equally spread numbers give the splits their percents; what counts are the upper
    /// bits, so that a sequence of evenly spread numbers is as good as chance, and keeps the shares closer.
    pub fn choose(&self, number: u32) -> &Split {
        if let [only] = &*self.splits {
            return only;
        }
        let mut left = u32::try_from((u64::from(number) * 100) >> 32).expect("below 100");
        for split in &self.splits {
            let share = u32::from(split.percent);
            if left < share {
                return split;
            }
            left -= share;
        }
        self.splits.last().expect("a compiled path has a split")
    }
}

/// Everything one Ingress says about one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoutes {
    /// The Ingress.
    pub ingress: IngressKey,
    /// Its K-Network-Hash (F2.1): to be set on a request that carries `K-Network-Hash: override`.
    pub hash: Arc<str>,
    /// Whether a plain request from outside is answered with 301 to https (F1.5).
    pub redirect: bool,
    /// Paths for requests from outside; `None` for a cluster-local host.
    pub external: Option<Arc<[PathRule]>>,
    /// Paths for requests from inside, where they differ from `external`.
    pub local: Option<Arc<[PathRule]>>,
    /// What its Ingress asks for beyond Knative; few do.
    pub extras: Option<Arc<Extras>>,
}

/// A Secret that holds a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretRef {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}
