//! Session affinity: by what a client is known, and which instance is its own.

use neap_api::keys::neap as keys;

use super::{Problem, is_header_name};
use crate::routing::rule::IngressKey;

/// By what a client is known again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// A cookie names the instance. Each route has its own, so that services that share a domain do not overwrite each
    /// other's.
    Cookie {
        /// The cookie's name.
        name: Box<str>,
    },
    /// Equal values of this header go to the same instance.
    Header(Box<str>),
    /// Requests from one address go to the same instance.
    ClientIp,
}

pub(super) fn parse(text: &str, of: &IngressKey) -> Result<Affinity, Problem> {
    match text.trim() {
        "cookie" => {
            let name = hash(of.namespace.bytes().chain([b'/']).chain(of.name.bytes()));
            Ok(Affinity::Cookie { name: format!("neap-{name:016x}").into() })
        }
        "client-ip" => Ok(Affinity::ClientIp),
        other => match other.strip_prefix("header:").map(str::trim) {
            Some(name) if is_header_name(name) => Ok(Affinity::Header(name.to_ascii_lowercase().into())),
            _ => Err(Problem::new(
                keys::SESSION_AFFINITY,
                format!("{other:?} is none of \"cookie\", \"client-ip\" and \"header:NAME\""),
            )),
        },
    }
}

impl Affinity {
    /// A number for what a client is known by. Equal on every gateway.
    pub fn key(bytes: &[u8]) -> u64 {
        hash(bytes.iter().copied())
    }

    /// How much an instance is a client's own: the one with the highest score is. When instances come or go, only the
    /// clients of those change theirs.
    pub fn score(key: u64, instance: &[u8]) -> u64 {
        mix(key ^ mix(hash(instance.iter().copied())))
    }
}

/// FNV-1a, 64 bits: short and the same everywhere.
fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Lets every bit of the input reach every bit of the output (the finaliser of MurmurHash3).
fn mix(mut value: u64) -> u64 {
    value ^= value >> 33;
    value = value.wrapping_mul(0xff51_afd7_ed55_8ccd);
    value ^= value >> 33;
    value = value.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}
