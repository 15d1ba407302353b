//! Host names: how a request's authority becomes a key, and a map over hosts that is cheap to change and to copy.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;

/// Longest host name that can be looked up, in bytes (a DNS name has at most 253; a wildcard adds two).
pub const HOST_LIMIT: usize = 255;

/// Room on the caller's stack for a host name that has to be lower-cased.
pub type HostBuf = [u8; HOST_LIMIT];

/// Parts a [`HostMap`] is copied by. With 10,000 hosts a change copies about 40 entries instead of all, and a snapshot
/// 256 counted references.
const SHARDS: usize = 256;

/// The host of an authority: without port, without a trailing dot, in lower case. `None` when it is empty or too
/// long. Writes to `buf` only when there is an upper-case letter.
pub fn host_of<'a>(authority: &'a str, buf: &'a mut HostBuf) -> Option<&'a str> {
    let host = without_port(authority);
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() || host.len() > HOST_LIMIT {
        return None;
    }
    // Each byte is looked at, which is quicker than to stop at the first: many are compared at once.
    if !host.bytes().fold(false, |upper, b| upper | b.is_ascii_uppercase()) {
        return Some(host);
    }
    let copy = &mut buf[..host.len()];
    copy.copy_from_slice(host.as_bytes());
    copy.make_ascii_lowercase();
    std::str::from_utf8(copy).ok()
}

/// `[::1]:80` → `[::1]`, `a.b:80` → `a.b`; a bare IPv6 address (several colons) stays whole.
fn without_port(authority: &str) -> &str {
    if authority.starts_with('[') {
        return authority.find(']').map_or(authority, |end| &authority[..=end]);
    }
    match authority.split_once(':') {
        Some((host, port)) if !port.contains(':') => host,
        _ => authority,
    }
}

/// A map from host names, exact and wildcard (`*.example.com`, `*`), to values.
///
/// Copying it copies one counted reference per shard; changing a copy copies only the part that holds the host, so a snapshot
/// taken earlier stays as it was.
#[derive(Clone, Debug)]
pub struct HostMap<V> {
    exact: Vec<Arc<Shard<V>>>,
    /// By the part after `*`, with its dot; `*` alone has an empty key.
    wild: Arc<Shard<V>>,
}

type Shard<V> = HashMap<Arc<str>, V, BuildHasherDefault<HostHasher>>;

impl<V: Clone> Default for HostMap<V> {
    fn default() -> Self {
        Self { exact: vec![Arc::default(); SHARDS], wild: Arc::default() }
    }
}

impl<V: Clone> HostMap<V> {
    /// The value for a host as [`host_of`] returns it: the exact one, else that of the longest wildcard.
    pub fn get(&self, host: &str) -> Option<&V> {
        self.exact[shard_of(host)].get(host).or_else(|| self.get_wild(host))
    }

    /// The value set for exactly this pattern.
    pub fn get_pattern(&self, pattern: &str) -> Option<&V> {
        match pattern.strip_prefix('*') {
            Some(suffix) => self.wild.get(suffix),
            None => self.exact[shard_of(pattern)].get(pattern),
        }
    }

    /// Sets the value of a pattern: a lower-case host, or `*.` and a lower-case domain, or `*`.
    pub fn insert(&mut self, pattern: &Arc<str>, value: V) {
        match pattern.strip_prefix('*') {
            Some(suffix) => Arc::make_mut(&mut self.wild).insert(suffix.into(), value),
            None => Arc::make_mut(&mut self.exact[shard_of(pattern)]).insert(pattern.clone(), value),
        };
    }

    /// Removes the value of a pattern.
    pub fn remove(&mut self, pattern: &str) {
        match pattern.strip_prefix('*') {
            Some(suffix) => Arc::make_mut(&mut self.wild).remove(suffix),
            None => Arc::make_mut(&mut self.exact[shard_of(pattern)]).remove(pattern),
        };
    }

    /// How many patterns have a value.
    pub fn len(&self) -> usize {
        self.exact.iter().map(|shard| shard.len()).sum::<usize>() + self.wild.len()
    }

    /// Whether no pattern has a value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every value, in no order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.exact.iter().flat_map(|shard| shard.values()).chain(self.wild.values())
    }

    fn get_wild(&self, host: &str) -> Option<&V> {
        if self.wild.is_empty() {
            return None;
        }
        // Longest suffix first: after the first dot, then the second, …, then the empty one of `*`.
        host.match_indices('.').find_map(|(dot, _)| self.wild.get(&host[dot..])).or_else(|| self.wild.get(""))
    }
}

/// Spreads hosts over the shards.
fn shard_of(host: &str) -> usize {
    let mut hasher = HostHasher::default();
    host.hash(&mut hasher);
    // Bits the maps inside the shards do not look at.
    (hasher.finish() >> 24) as usize % SHARDS
}

/// A quick hash of short strings. Hosts that are looked up never enter a map, and those in the maps were written by
/// whoever may write Ingresses: nobody else can make them collide.
#[derive(Clone, Copy, Debug, Default)]
struct HostHasher(u64);

impl Hasher for HostHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.mix(u64::from_le_bytes(last));
        }
    }

    /// The end of a string; it adds nothing here, since a map holds strings only.
    fn write_u8(&mut self, _: u8) {}

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

impl HostHasher {
    fn mix(&mut self, word: u64) {
        // An odd multiplier from the golden ratio; the rotation brings the high bits, which every input bit has
        // reached, down to where the next word meets them.
        self.0 = (self.0 ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    }
}
