//! Image references: what a user wrote, read by Docker's rules.
//!
//! Pure text. It knows no registry, no store and no network; which name means "this machine's own registry" is
//! decided by the store.

use std::fmt;

pub use super::digest::is_digest;

/// The registry that a name without a host means.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Old name of the same registry, still seen in credential files.
const LEGACY_DEFAULT_REGISTRY: &str = "index.docker.io";
/// The part before a one-word name on the default registry.
const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// Characters in a repository name at most (distribution's limit).
const NAME_MAX: usize = 255;
/// Characters in a tag at most (distribution's limit).
const TAG_MAX: usize = 128;

/// A complete reference. A tag and a digest may both be there; then the digest decides.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// Host, with a port where one was written. `docker.io` for bare names.
    pub registry: String,
    /// Path on the registry, `library/` included.
    pub repository: String,
    /// `latest` when neither tag nor digest was written.
    pub tag: Option<String>,
    /// `sha256:` and 64, or `sha512:` and 128 hexadecimal digits.
    pub digest: Option<String>,
}

/// Why a text is no reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("the image name is empty")]
    Empty,
    #[error("invalid reference format")]
    Format,
    #[error("repository name must be lowercase")]
    Uppercase,
    #[error("repository name must not be more than {NAME_MAX} characters")]
    TooLong,
    #[error("invalid tag format")]
    Tag,
    #[error("invalid digest format: want sha256: and 64 (or sha512: and 128) hexadecimal digits")]
    Digest,
    #[error("a name of 64 hexadecimal digits looks like a digest: write name@sha256:…")]
    BareDigest,
}

impl Reference {
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(ReferenceError::Digest),
            None => (text, None),
        };
        // A colon before the last slash belongs to the registry's port.
        let (name, tag) = match rest.rfind(':') {
            Some(colon) if !rest[colon..].contains('/') => {
                let tag = &rest[colon + 1..];
                if !is_tag(tag) {
                    return Err(ReferenceError::Tag);
                }
                (&rest[..colon], Some(tag.to_owned()))
            }
            _ => (rest, None),
        };
        let (registry, repository) = split_registry(name);
        if repository.len() > NAME_MAX {
            return Err(ReferenceError::TooLong);
        }
        if repository.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(ReferenceError::Uppercase);
        }
        if !is_host(&registry) || !repository.split('/').all(is_component) {
            return Err(ReferenceError::Format);
        }
        if digest.is_none() && !name.contains('/') && name.len() == 64 && name.bytes().all(is_hex) {
            return Err(ReferenceError::BareDigest);
        }
        let tag = tag.or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
        Ok(Self { registry, repository, tag, digest })
    }

    /// `registry/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// What a registry is asked for: the digest where there is one, else the tag.
    pub fn identifier(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or(DEFAULT_TAG)
    }

    /// The same repository at a digest.
    pub fn with_digest(&self, digest: &str) -> Self {
        Self { tag: None, digest: Some(digest.to_owned()), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// A host that by convention means this machine, where registries speak plain HTTP.
pub fn is_loopback(registry: &str) -> bool {
    let host = host_of(registry);
    host == "localhost" || host.ends_with(".localhost") || host == "::1" || host.starts_with("127.")
}

/// The host of `host:port` or `[v6]:port`.
pub fn host_of(registry: &str) -> &str {
    if let Some(v6) = registry.strip_prefix('[') {
        return v6.split(']').next().unwrap_or(v6);
    }
    registry.rsplit_once(':').map_or(registry, |(host, _)| host)
}

/// A tag as the distribution specification has it: `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`.
pub fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=TAG_MAX).contains(&text.len())
        && text.bytes().enumerate().all(|(i, b)| word(b) || (i > 0 && (b == b'.' || b == b'-')))
}

/// A repository path as the distribution specification has it.
pub fn is_repository(text: &str) -> bool {
    text.len() <= NAME_MAX && text.split('/').all(is_component)
}

fn is_hex(b: u8) -> bool {
    b.is_ascii_hexdigit()
}

/// The first part is a host when it could not be a repository's first word (Docker's rule).
fn split_registry(name: &str) -> (String, String) {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':', '['])
                || first == "localhost"
                || first.chars().any(|c| c.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == LEGACY_DEFAULT_REGISTRY { DEFAULT_REGISTRY } else { registry };
    if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        return (registry.to_owned(), format!("{DEFAULT_NAMESPACE}/{repository}"));
    }
    (registry.to_owned(), repository.to_owned())
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((host, rest)) => {
                let port = rest.strip_prefix(':');
                return host.parse::<std::net::Ipv6Addr>().is_ok() && (rest.is_empty() || port.is_some_and(is_port));
            }
            None => return false,
        },
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.parse::<u16>().is_ok()
}

/// `[a-z0-9]+` joined by one dot, one or two underscores, or any number of dashes.
fn is_component(text: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().is_some_and(|b| alnum(*b)) || !bytes.last().is_some_and(|b| alnum(*b)) {
        return false;
    }
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| !alnum(c as u8) || !c.is_ascii()) {
        let tail = &rest[start..];
        let end = tail.find(|c: char| c.is_ascii() && alnum(c as u8)).unwrap_or(tail.len());
        let separator = &tail[..end];
        if !(matches!(separator, "." | "_" | "__") || separator.bytes().all(|b| b == b'-')) {
            return false;
        }
        rest = &tail[end..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn check(text: &str, want: &str) {
        let got = match Reference::parse(text) {
            Ok(r) => r.to_string(),
            Err(e) => format!("{e:?}"),
        };
        assert_eq!(got, want, "{text}");
    }

    #[test]
    fn names_are_completed_by_dockers_rules() {
        check("nginx", "docker.io/library/nginx:latest");
        check("nginx:1.27", "docker.io/library/nginx:1.27");
        check("knative/hello", "docker.io/knative/hello:latest");
        check("index.docker.io/nginx", "docker.io/library/nginx:latest");
        check("docker.io/nginx", "docker.io/library/nginx:latest");
        check("ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1");
        check("localhost/x", "localhost/x:latest");
        check("localhost:5000/x", "localhost:5000/x:latest");
        check("127.0.0.1:5000/x:y", "127.0.0.1:5000/x:y");
        check("[::1]:5000/x", "[::1]:5000/x:latest");
        check("MyHost/x", "MyHost/x:latest");
        check("a__b/c-d---e.f", "docker.io/a__b/c-d---e.f:latest");
    }

    #[test]
    fn a_digest_stands_beside_a_tag_and_decides() {
        let both = format!("gcr.io/x:v1@sha256:{HEX}");
        check(&both, &both);
        check(&format!("x@sha256:{HEX}"), &format!("docker.io/library/x@sha256:{HEX}"));
        assert_eq!(Reference::parse(&both).unwrap().identifier(), format!("sha256:{HEX}"));
    }

    #[test]
    fn what_is_no_reference_is_refused_with_its_reason() {
        check("", "Empty");
        check("Nginx", "Uppercase");
        check("a//b", "Format");
        check("a..b", "Format");
        check("a_-b", "Format");
        check("-a", "Format");
        check("a b", "Format");
        check("ähm", "Format");
        check("x:", "Tag");
        check("x:-y", "Tag");
        check("x@sha256:12", "Digest");
        check("x@md5:12", "Digest");
        check(HEX, "BareDigest");
        check("gcr.io:port/x", "Format");
        check(&"a/".repeat(200), "TooLong");
    }

    #[test]
    fn loopback_hosts_are_known() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:80", "[::1]:5000", "registry.localhost:1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["example.com", "local.host:5000", "10.0.0.1:5000"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
