//! Keeps a client where it was: its cookie is sealed, so that it says nothing to anybody but us and cannot be made up.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use http::header::{self, HeaderMap};
use neap_logic::routing::extras::Affinity;
use neap_logic::routing::{PathRule, RevisionKey, Split};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

/// What a seal closes over: a version, the Revision's mark, an address, a port.
const PLAIN: usize = 1 + 8 + 16 + 2;
const VERSION: u8 = 1;
/// Nonce, content, tag.
const SEALED: usize = NONCE_LEN + PLAIN + 16;
/// Of the sealed bytes as text.
const TEXT: usize = SEALED.div_ceil(3) * 4;

/// Where a client was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    revision: u64,
    pub(crate) instance: SocketAddr,
}

impl Place {
    pub(crate) fn new(revision: Option<&RevisionKey>, instance: SocketAddr) -> Self {
        Self { revision: mark(revision), instance }
    }

    pub(crate) fn is_at(&self, revision: Option<&RevisionKey>) -> bool {
        self.revision == mark(revision)
    }
}

fn mark(revision: Option<&RevisionKey>) -> u64 {
    revision.map_or(0, |key| Affinity::score(Affinity::key(key.namespace.as_bytes()), key.name.as_bytes()))
}

/// Which instance a request would rather have.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Prefer {
    /// This one.
    Instance(SocketAddr),
    /// The one this key falls on.
    Key(u64),
    /// Any but this one.
    Other(SocketAddr),
}

impl Prefer {
    /// How well an instance that has so many requests would do; `None`: not at all.
    pub(crate) fn score(&self, instance: &SocketAddr, in_flight: u32) -> Option<u64> {
        match self {
            Self::Instance(wanted) => (wanted == instance).then_some(1),
            Self::Key(key) => Some(Affinity::score(*key, &bytes_of(*instance))),
            Self::Other(not) => (not != instance).then_some(u64::from(u32::MAX - in_flight)),
        }
    }
}

/// What is known of a client when its request comes.
#[derive(Debug)]
pub(crate) enum Sticky {
    /// It was there, or has no cookie yet.
    Cookie(Option<Place>),
    /// It is known by something of its own.
    Key(u64),
}

impl Sticky {
    pub(crate) fn of(rule: &Affinity, seal: &Seal, headers: &HeaderMap, client: IpAddr) -> Self {
        match rule {
            Affinity::Cookie { name } => Self::Cookie(cookie(headers, name).and_then(|text| seal.open(text))),
            Affinity::ClientIp => Self::Key(Affinity::key(client.to_string().as_bytes())),
            Affinity::Header(name) => match headers.get(&**name) {
                Some(value) => Self::Key(Affinity::key(value.as_bytes())),
                // Nothing tells these apart: they go anywhere.
                None => Self::Cookie(None),
            },
        }
    }

    /// The split of before, where it still gets requests.
    pub(crate) fn choose<'p>(&self, path: &'p PathRule, number: u32) -> &'p Split {
        match self {
            // A number of its own, so that the choice of a split says nothing about the choice of an instance in it.
            Self::Key(key) => path.choose((Affinity::score(*key, b"split") >> 32) as u32),
            Self::Cookie(Some(place)) => {
                let own = |split: &&Split| split.percent > 0 && place.is_at(split.backend.revision.as_ref());
                path.splits.iter().find(own).unwrap_or_else(|| path.choose(number))
            }
            Self::Cookie(None) => path.choose(number),
        }
    }

    pub(crate) fn prefer(&self, revision: Option<&RevisionKey>) -> Option<Prefer> {
        match self {
            Self::Key(key) => Some(Prefer::Key(*key)),
            Self::Cookie(place) => {
                place.filter(|place| place.is_at(revision)).map(|place| Prefer::Instance(place.instance))
            }
        }
    }
}

/// The value of a cookie of this name.
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let all = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()
}

/// The cookie for a place.
pub(crate) fn set_cookie(name: &str, seal: &Seal, place: Place, secure: bool) -> Option<HeaderValue> {
    let secure = if secure { "; Secure" } else { "" };
    let text = format!("{name}={}; Path=/; HttpOnly; SameSite=Lax{secure}", seal.close(place)?);
    HeaderValue::try_from(text).ok()
}

/// Closes and opens cookies. Made of the identity of the Ingress, which every gateway knows, also after a restart.
pub(crate) struct Seal {
    key: LessSafeKey,
    random: SystemRandom,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seal").finish_non_exhaustive()
    }
}

impl Seal {
    pub(crate) fn new(identity: &str) -> Self {
        let key = digest(&SHA256, format!("neap session affinity\0{identity}").as_bytes());
        let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_ref()).expect("a digest has the length of a key");
        Self { key: LessSafeKey::new(key), random: SystemRandom::new() }
    }

    fn close(&self, place: Place) -> Option<String> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let mut sealed = [0; SEALED];
        sealed[..NONCE_LEN].copy_from_slice(&nonce);
        let content = &mut sealed[NONCE_LEN..NONCE_LEN + PLAIN];
        content[0] = VERSION;
        content[1..9].copy_from_slice(&place.revision.to_be_bytes());
        content[9..].copy_from_slice(&bytes_of(place.instance));
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::empty(), content).ok()?;
        sealed[NONCE_LEN + PLAIN..].copy_from_slice(tag.as_ref());
        Some(URL_SAFE_NO_PAD.encode(sealed))
    }

    fn open(&self, text: &str) -> Option<Place> {
        let mut room = [0; TEXT];
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut room).ok()?;
        let sealed = room.get_mut(..length).filter(|sealed| sealed.len() == SEALED)?;
        let (nonce, sealed) = sealed.split_at_mut(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let content = self.key.open_in_place(nonce, Aad::empty(), sealed).ok()?;
        let (&version, content) = content.split_first()?;
        let (revision, content) = content.split_first_chunk::<8>()?;
        let (address, content) = content.split_first_chunk::<16>()?;
        let (port, []) = content.split_first_chunk::<2>()? else { return None };
        let address = IpAddr::V6(Ipv6Addr::from(*address)).to_canonical();
        let instance = SocketAddr::new(address, u16::from_be_bytes(*port));
        (version == VERSION).then_some(Place { revision: u64::from_be_bytes(*revision), instance })
    }
}

fn bytes_of(instance: SocketAddr) -> [u8; 18] {
    let address = match instance.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&address.octets());
    bytes[16..].copy_from_slice(&instance.port().to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(instance: &str) -> Place {
        Place::new(Some(&RevisionKey::new("ns", "r")), instance.parse().expect("an address"))
    }

    #[test]
    fn a_seal_opens_what_it_closed_and_nothing_else() {
        let (seal, again, other) = (Seal::new("a"), Seal::new("a"), Seal::new("b"));
        for instance in ["198.19.0.7:8080", "[2001:db8::1]:1", "127.0.0.1:65535"] {
            let text = seal.close(place(instance)).expect("closes");
            assert_ne!(seal.close(place(instance)).as_deref(), Some(&*text), "no two are alike");
            assert_eq!((seal.open(&text), again.open(&text)), (Some(place(instance)), Some(place(instance))));
            assert_eq!(other.open(&text), None);
            for at in 0..text.len() {
                let mut bent = text.clone().into_bytes();
                bent[at] = if bent[at] == b'A' { b'B' } else { b'A' };
                assert_eq!(seal.open(std::str::from_utf8(&bent).expect("text")), None);
            }
            assert_eq!(seal.open(&text[1..]), None);
            assert_eq!(seal.open(&format!("{text}AAAA")), None);
        }
        for nonsense in ["", "=", "é", "AAAA", &"A".repeat(76), &"A".repeat(10_000)] {
            assert_eq!(seal.open(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn cookies_among_others() {
        let check = |values: &[&'static str], want: Option<&str>| {
            let values = values.iter().map(|value| (header::COOKIE, HeaderValue::from_static(value)));
            assert_eq!(cookie(&values.collect(), "neap-1"), want);
        };
        check(&[], None);
        check(&["neap-1=x"], Some("x"));
        check(&["a=b; neap-1=x=y;c"], Some("x=y"));
        check(&["neap-10=a", "xneap-1=b", "neap-1=c"], Some("c"));
        check(&["neap-1"], None);
    }

    #[test]
    fn attributes() {
        let seal = Seal::new("a");
        let text = |secure| {
            let value = set_cookie("n", &seal, place("1.2.3.4:5"), secure).expect("a cookie");
            value.to_str().expect("text").to_owned()
        };
        assert!(text(false).ends_with("; Path=/; HttpOnly; SameSite=Lax"));
        assert!(text(true).ends_with("; SameSite=Lax; Secure"));
    }
}
