//! The hash under which a version of an Ingress is known to network probes (F2.1).

use std::fmt::Write;

use neap_api::keys::neap;
use neap_api::networking::Ingress;
use sha2::{Digest, Sha256};

use super::extras;

/// SHA-256, in hex, of the spec's JSON, the namespace and the name, and of those annotations by which our gateway routes.
/// It changes with everything that is routed on and with nothing else.
pub fn network_hash(ingress: &Ingress) -> String {
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(&ingress.spec).expect("an Ingress spec holds nothing JSON cannot say"));
    hash.update(ingress.metadata.namespace.as_deref().unwrap_or_default());
    hash.update(ingress.metadata.name.as_deref().unwrap_or_default());
    for (key, value) in ingress.metadata.annotations.iter().flatten() {
        if extras::ALL.contains(&key.as_str()) || key == neap::PATHS {
            hash.update(key);
            hash.update([0]);
            hash.update(value);
            hash.update([0]);
        }
    }
    let mut hex = String::with_capacity(64);
    for byte in hash.finalize() {
        write!(hex, "{byte:02x}").expect("writing to a string succeeds");
    }
    hex
}
