//! Image references: `registry/repository:tag@digest`, as container tools read them.

/// The registry of a reference that names none.
pub const DEFAULT_REGISTRY: &str = "index.docker.io";
/// The longest repository name a registry takes.
const MAX_REPOSITORY: usize = 255;
/// The longest tag.
const MAX_TAG: usize = 128;

/// A reference taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference<'a> {
    /// The registry, when the reference names one.
    pub registry: Option<&'a str>,
    /// Registry and repository as written.
    pub repository: &'a str,
    /// The tag, when the reference names one.
    pub tag: Option<&'a str>,
    /// The digest with its algorithm, when the reference names one.
    pub digest: Option<&'a str>,
}

impl<'a> Reference<'a> {
    /// Takes a reference apart; nothing when it is malformed.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return None;
        }
        // A colon before the last slash belongs to the registry's port.
        let name_start = rest.rfind('/').map_or(0, |at| at + 1);
        let (repository, tag) = match rest[name_start..].find(':') {
            Some(at) => (&rest[..name_start + at], Some(&rest[name_start + at + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return None;
        }
        let (registry, path) = match repository.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), path),
            _ => (None, repository),
        };
        let fits = is_path(path) && repository.len() <= MAX_REPOSITORY && registry.is_none_or(is_registry);
        fits.then_some(Self { registry, repository, tag, digest })
    }

    /// The registry it is pulled from.
    pub fn registry_or_default(&self) -> &'a str {
        self.registry.unwrap_or(DEFAULT_REGISTRY)
    }
}

fn is_path(path: &str) -> bool {
    let part = |part: &str| {
        let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.starts_with(edge) && part.ends_with(edge) && part.chars().all(|c| edge(c) || matches!(c, '-' | '_' | '.'))
    };
    !path.is_empty() && path.split('/').all(part)
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (registry, None),
    };
    let host_fits = !host.is_empty()
        && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '[' | ']' | ':'));
    host_fits && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=MAX_TAG).contains(&tag.len())
        && tag.starts_with(word)
        && tag.chars().all(|c| word(c) || matches!(c, '-' | '.'))
}

fn is_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else { return false };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return false,
    };
    hex.len() == length && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let check = |text: &str, want: Option<(&str, &str, Option<&str>)>| {
            let got = Reference::parse(text).map(|r| (r.registry_or_default(), r.repository, r.tag));
            assert_eq!(got, want, "{text}");
        };
        check("nginx", Some((DEFAULT_REGISTRY, "nginx", None)));
        check("library/nginx:1.2", Some((DEFAULT_REGISTRY, "library/nginx", Some("1.2"))));
        check("localhost:5000/a/b:v1", Some(("localhost:5000", "localhost:5000/a/b", Some("v1"))));
        check("dev.local/app", Some(("dev.local", "dev.local/app", None)));
        let digest = format!("gcr.io/a@sha256:{}", "0".repeat(64));
        assert_eq!(Reference::parse(&digest).and_then(|r| r.digest).map(str::len), Some(71));
        for bad in ["", "A", "a:", "a b", "a@sha256:00", "a//b", "a:b:c", "dev.local:x/a"] {
            check(bad, None);
        }
    }
}
