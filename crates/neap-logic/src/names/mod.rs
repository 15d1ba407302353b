//! Names: of child objects, of hosts, and the rules names must follow.
//!
//! A name computed here must come out the same forever, since it is how a child is found again.

pub mod hash;
pub mod hosts;
pub mod image;
pub mod template;

/// The longest name of a Kubernetes Service, and of anything that may become one.
pub const MAX_NAME: usize = 63;
/// Length of an MD5 sum in hexadecimal.
const MD5_LEN: usize = 32;

/// The name of a child: parent and suffix, or, where that is too long, the parent cut short, its MD5 sum and
/// the suffix.
pub fn child_name(parent: &str, suffix: &str) -> String {
    if parent.len() + suffix.len() <= MAX_NAME {
        return format!("{parent}{suffix}");
    }
    let sum = hash::md5_hex(parent.as_bytes());
    if suffix.len() >= MAX_NAME - MD5_LEN {
        // No room for parent and suffix beside a sum: the sum of both must do.
        let both = hash::md5_hex(format!("{parent}{suffix}").as_bytes());
        let room = MAX_NAME - MD5_LEN;
        return format!("{}{both}", prefix(parent, room));
    }
    let room = MAX_NAME - MD5_LEN - suffix.len();
    format!("{}{sum}{suffix}", prefix(parent, room))
}

fn prefix(text: &str, room: usize) -> &str {
    let mut end = room.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The Revision a Configuration makes at a generation when the template names none.
pub fn revision(configuration: &str, generation: i64) -> String {
    child_name(configuration, &format!("-{generation:05}"))
}

/// The Deployment of a Revision.
pub fn deployment(revision: &str) -> String {
    child_name(revision, "-deployment")
}

/// The Image that asks for a container's image to be kept near.
pub fn image_cache(revision: &str, container: &str) -> String {
    child_name(revision, &format!("-cache-{container}"))
}

/// The Kubernetes Service that selects exactly a revision's pods.
pub fn private_service(serverless_service: &str) -> String {
    child_name(serverless_service, "-private")
}

/// The Ingress of a Route or a DomainMapping.
pub fn ingress(parent: &str) -> String {
    child_name(parent, "")
}

/// A DNS-1035 label: lower-case letters, digits and dashes, beginning with a letter.
pub fn is_dns1035_label(text: &str) -> bool {
    is_dns1123_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase())
}

/// A DNS-1123 label: lower-case letters, digits and dashes, beginning and ending with a letter or digit.
pub fn is_dns1123_label(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=MAX_NAME).contains(&text.len())
        && text.starts_with(edge)
        && text.ends_with(edge)
        && text.chars().all(|c| edge(c) || c == '-')
}

/// The longest DNS name.
const MAX_SUBDOMAIN: usize = 253;

/// A DNS-1123 subdomain: labels joined by dots.
pub fn is_dns1123_subdomain(text: &str) -> bool {
    (1..=MAX_SUBDOMAIN).contains(&text.len()) && text.split('.').all(is_subdomain_part)
}

fn is_subdomain_part(part: &str) -> bool {
    // Parts of a subdomain have no length limit of their own in Kubernetes.
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(edge) && part.ends_with(edge) && part.chars().all(|c| edge(c) || c == '-')
}

/// A fully qualified domain name: a subdomain of at least two labels, each no longer than a label may be.
pub fn is_fqdn(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    is_dns1123_subdomain(text) && text.contains('.') && text.split('.').all(|label| label.len() <= MAX_NAME)
}

/// A qualified name as label and annotation keys are: an optional DNS prefix and `/`, then a short name.
pub fn is_qualified_name(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    prefix.is_none_or(is_dns1123_subdomain) && is_label_word(name)
}

/// What a label's value may be: empty or a short word.
pub fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_label_word(text)
}

fn is_label_word(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    (1..=MAX_NAME).contains(&text.len())
        && text.starts_with(edge)
        && text.ends_with(edge)
        && text.chars().all(|c| edge(c) || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a1_10_child_names_fit() {
        assert_eq!(child_name("hello", "-deployment"), "hello-deployment");
        assert_eq!(revision("hello", 1), "hello-00001");
        let long = "x".repeat(60);
        let name = child_name(&long, "-deployment");
        assert_eq!(name, format!("{}{}-deployment", "x".repeat(20), hash::md5_hex(long.as_bytes())));
        assert_eq!(name.len(), MAX_NAME);
        assert_eq!(child_name("p", &"s".repeat(70)).len(), 1 + MD5_LEN);
    }

    #[test]
    fn name_rules() {
        let check = |rule: fn(&str) -> bool, good: &[&str], bad: &[&str]| {
            good.iter().for_each(|name| assert!(rule(name), "{name:?}"));
            bad.iter().for_each(|name| assert!(!rule(name), "{name:?}"));
        };
        check(is_dns1035_label, &["a", "a-1"], &["", "1a", "a-", "A", "a.b"]);
        check(is_dns1123_label, &["1a"], &["-a", "a_b"]);
        check(is_dns1123_subdomain, &["a.b", "1"], &["a..b", ".a", "a."]);
        check(is_fqdn, &["a.example.com"], &["a", "a..b"]);
        check(is_qualified_name, &["app", "a.b/c_d"], &["/a", "a/", "a/b/c", "-a"]);
    }
}
