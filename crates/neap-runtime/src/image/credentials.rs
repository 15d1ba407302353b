//! Which credentials fit which image, by the rules of Docker's and Kubernetes' credential files.

use crate::pod::Credentials;

/// The credentials to try at a host for a repository, most specific first as given.
pub(super) fn matching<'a>(host: &str, repository: &str, all: &'a [Credentials]) -> Vec<&'a Credentials> {
    let mut fitting: Vec<&Credentials> = Vec::new();
    for c in all.iter().filter(|c| fits(&c.registry, host, repository)) {
        if !fitting.contains(&c) {
            fitting.push(c);
        }
    }
    fitting
}

/// A key is a host, a URL (`https://index.docker.io/v1/`), or either with a path; labels of the host may be `*`.
fn fits(key: &str, registry: &str, repository: &str) -> bool {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    // Old files name the API's version instead of a repository.
    let path = path.trim_end_matches('/');
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    host_fits(host, registry) && path_fits(path, repository)
}

fn host_fits(pattern: &str, host: &str) -> bool {
    let canonical = |host| match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    };
    let (pattern, host) = (canonical(pattern), canonical(host));
    if !pattern.contains('*') {
        return pattern == host;
    }
    let (pattern, pattern_port) = pattern.split_once(':').unwrap_or((pattern, ""));
    let (host, port) = host.split_once(':').unwrap_or((host, ""));
    let labels: Vec<&str> = pattern.split('.').collect();
    let parts: Vec<&str> = host.split('.').collect();
    pattern_port == port && labels.len() == parts.len() && labels.iter().zip(&parts).all(|(l, p)| label_fits(l, p))
}

/// One `*` stands for any run of characters within a label.
fn label_fits(pattern: &str, label: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == label,
        Some((before, after)) => {
            label.len() >= before.len() + after.len() && label.starts_with(before) && label.ends_with(after)
        }
    }
}

fn path_fits(prefix: &str, repository: &str) -> bool {
    prefix.is_empty() || repository.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::super::Reference;
    use super::*;

    fn check(key: &str, image: &str, want: bool) {
        let reference = Reference::parse(image).unwrap();
        assert_eq!(fits(key, &reference.registry, &reference.repository), want, "{key} {image}");
    }

    #[test]
    fn keys_of_credential_files_match_as_in_kubernetes() {
        check("https://index.docker.io/v1/", "nginx", true);
        check("docker.io", "me/app", true);
        check("registry-1.docker.io", "me/app", true);
        check("ghcr.io", "ghcr.io/me/app", true);
        check("ghcr.io", "ghcr.io:443/me/app", false);
        check("ghcr.io/me", "ghcr.io/me/app", true);
        check("ghcr.io/me", "ghcr.io/meow/app", false);
        check("https://ghcr.io/v2/", "ghcr.io/me/app", true);
        check("*.dkr.ecr.eu.amazonaws.com", "1.dkr.ecr.eu.amazonaws.com/x", true);
        check("*.io", "a.b.io/x", false);
        check("reg*.io:5000", "registry.io:5000/x", true);
        check("localhost:5000", "localhost:5000/x", true);
        check("quay.io", "ghcr.io/x", false);
    }
}
