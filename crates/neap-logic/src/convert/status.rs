//! What was observed, in old words beside today's (fact I7): `domain` and `domainInternal`, an address's `hostname`, a
//! target's `name`, a Revision's `serviceName` and `imageDigest`.
//!
//! An old status says the same twice, so nothing needs to be remembered: what v1 says wins on the way back.

use serde_json::{Value, json};

use super::{Fields, take, traffic};

const DOMAIN: &str = "domain";
const DOMAIN_INTERNAL: &str = "domainInternal";
const HOSTNAME: &str = "hostname";
const SERVICE_NAME: &str = "serviceName";
const IMAGE_DIGEST: &str = "imageDigest";

pub(super) fn to_old(kind: &str, status: &mut Fields, name: &str) {
    match kind {
        "Service" | "Route" => {
            let url = |value: Option<&Value>| value.and_then(Value::as_str).and_then(host).map(str::to_owned);
            if let Some(domain) = url(status.get("url")) {
                status.insert(DOMAIN.into(), domain.into());
            }
            if let Some(hostname) = url(status.get("address").and_then(|a| a.get("url"))) {
                status["address"][HOSTNAME] = hostname.as_str().into();
                status.insert(DOMAIN_INTERNAL.into(), hostname.into());
            }
            for target in traffic::targets(status) {
                if let Some(tag) = target.get("tag").cloned() {
                    target.insert("name".into(), tag);
                }
            }
        }
        "Revision" => {
            let digest = status.get("containerStatuses").and_then(|list| list.get(0)?.get(IMAGE_DIGEST)).cloned();
            if let Some(digest) = digest {
                status.insert(IMAGE_DIGEST.into(), digest);
            }
            if !name.is_empty() {
                status.insert(SERVICE_NAME.into(), name.into());
            }
        }
        _ => {}
    }
}

pub(super) fn to_stored(kind: &str, status: &mut Fields) {
    match kind {
        "Service" | "Route" => {
            let text = |value: Option<Value>| value?.as_str().filter(|text| !text.is_empty()).map(http);
            let domain = text(take(status, DOMAIN));
            let internal = text(take(status, DOMAIN_INTERNAL));
            let address = status.get_mut("address").and_then(Value::as_object_mut);
            let hostname = address.and_then(|address| text(take(address, HOSTNAME)));
            if let Some(domain) = domain.filter(|_| !status.contains_key("url")) {
                status.insert("url".into(), domain);
            }
            let told = status.get("address").is_some_and(|address| address.get("url").is_some());
            if let Some(url) = hostname.or(internal).filter(|_| !told) {
                status.insert("address".into(), json!({"url": url}));
            }
            for target in traffic::targets(status) {
                if let Some(name) = take(target, "name") {
                    target.entry("tag").or_insert(name);
                }
            }
        }
        "Revision" => {
            status.remove(SERVICE_NAME);
            if let Some(digest) = take(status, IMAGE_DIGEST).filter(|_| !status.contains_key("containerStatuses")) {
                status.insert("containerStatuses".into(), json!([{IMAGE_DIGEST: digest}]));
            }
        }
        _ => {}
    }
}

/// The host of a URL, without scheme, port and path.
fn host(url: &str) -> Option<&str> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    (!host.is_empty()).then_some(host)
}

fn http(host: &str) -> Value {
    format!("http://{host}").into()
}
