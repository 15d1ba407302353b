//! Paths of the distribution specification, read once. Repository names contain slashes, so they are read from the end.

use neap_runtime::image::reference::{is_digest, is_repository};

use super::reply::{Code, Refusal};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Base,
    Catalog,
    Tags {
        name: String,
    },
    Manifest {
        name: String,
        reference: String,
    },
    Referrers {
        name: String,
        digest: String,
    },
    Blob {
        name: String,
        digest: String,
    },
    Uploads {
        name: String,
    },
    Upload {
        name: String,
        id: String,
    },
    /// Not of the specification: whole archives, see `load`.
    Load,
    /// Not of the specification: every image of this machine, see `inventory`.
    Images,
}

pub(super) fn parse(path: &str) -> Result<Route, Refusal> {
    match path {
        "/neap/load" => return Ok(Route::Load),
        "/neap/images" => return Ok(Route::Images),
        _ => {}
    }
    let unknown = || Refusal::new(Code::NotFound, format!("there is nothing at {path}"));
    let rest = path.strip_prefix("/v2").ok_or_else(unknown)?.trim_start_matches('/');
    if rest.is_empty() {
        return Ok(Route::Base);
    }
    if rest == "_catalog" {
        return Ok(Route::Catalog);
    }
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return Ok(Route::Tags { name: repository(name)? });
    }
    if let Some(name) = rest.strip_suffix("/blobs/uploads/").or_else(|| rest.strip_suffix("/blobs/uploads")) {
        return Ok(Route::Uploads { name: repository(name)? });
    }
    let (head, last) = rest.rsplit_once('/').ok_or_else(unknown)?;
    if let Some(name) = head.strip_suffix("/blobs/uploads") {
        return Ok(Route::Upload { name: repository(name)?, id: last.to_owned() });
    }
    if let Some(name) = head.strip_suffix("/blobs") {
        return Ok(Route::Blob { name: repository(name)?, digest: digest(last)? });
    }
    if let Some(name) = head.strip_suffix("/manifests") {
        return Ok(Route::Manifest { name: repository(name)?, reference: super::decode(last) });
    }
    if let Some(name) = head.strip_suffix("/referrers") {
        return Ok(Route::Referrers { name: repository(name)?, digest: digest(last)? });
    }
    Err(unknown())
}

fn repository(name: &str) -> Result<String, Refusal> {
    if is_repository(name) {
        return Ok(name.to_owned());
    }
    Err(Refusal::new(Code::NameInvalid, format!("{name:?} is not a repository name (lower case, digits, . _ - /)")))
}

pub(super) fn digest(text: &str) -> Result<String, Refusal> {
    let text = super::decode(text);
    if is_digest(&text) {
        return Ok(text);
    }
    Err(Refusal::new(
        Code::DigestInvalid,
        format!("{text:?} is not a sha256 or sha512 digest, and others are not kept here"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, want: &str) {
        let got = match parse(path) {
            Ok(route) => format!("{route:?}"),
            Err(refusal) => refusal.code.name().to_owned(),
        };
        assert_eq!(got, want, "{path}");
    }

    #[test]
    fn paths_are_read_from_their_end() {
        let digest = format!("sha256:{}", "0".repeat(64));
        check("/v2/", "Base");
        check("/v2", "Base");
        check("/v2/_catalog", "Catalog");
        check("/v2/a/b/tags/list", r#"Tags { name: "a/b" }"#);
        check("/v2/a/manifests/v1.2", r#"Manifest { name: "a", reference: "v1.2" }"#);
        check("/v2/manifests/manifests/x", r#"Manifest { name: "manifests", reference: "x" }"#);
        check("/v2/a/blobs/uploads/", r#"Uploads { name: "a" }"#);
        check("/v2/a/blobs/uploads/1f", r#"Upload { name: "a", id: "1f" }"#);
        check(&format!("/v2/a/b/c/blobs/{digest}"), &format!(r#"Blob {{ name: "a/b/c", digest: "{digest}" }}"#));
        check(&format!("/v2/a/referrers/{digest}"), &format!(r#"Referrers {{ name: "a", digest: "{digest}" }}"#));
        check("/v2/a/blobs/sha256:12", "DIGEST_INVALID");
        check("/v2/A/manifests/x", "NAME_INVALID");
        check("/v2/../x/manifests/y", "NAME_INVALID");
        check("/neap/images", "Images");
        check("/v1/x", "NOT_FOUND");
        check("/v2/x", "NOT_FOUND");
    }
}
