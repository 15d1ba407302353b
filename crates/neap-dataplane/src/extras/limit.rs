//! Counts requests by key, in bounded memory, for all workers.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use neap_logic::routing::extras::Rate;
use neap_proxy::ProxyError;
use tokio::time::Instant;

/// Parts that are locked apart.
const SHARDS: usize = 16;
/// Keys remembered in each part: 16,384 of a route in all, at some 20 bytes. Those beyond share one allowance.
const KEYS_PER_SHARD: usize = 1024;
/// The key of all that found no room.
const CROWD: u64 = 0;

/// Who has come how often of late.
#[derive(Debug)]
pub(crate) struct Limiter {
    pub(crate) rate: Rate,
    began: Instant,
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    /// Up to when each key's requests have been paid for, nanoseconds since `began`.
    booked: HashMap<u64, u64>,
    /// When those that owe nothing were last forgotten.
    swept: u64,
}

impl Limiter {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, began: Instant::now(), hasher: RandomState::new(), shards: Default::default() }
    }

    /// Counts a request, or says when the next may come.
    pub(crate) fn admit(&self, key: &impl Hash) -> Result<(), ProxyError> {
        // Keys are the callers' to choose: the hash is one they cannot foresee.
        let hash = self.hasher.hash_one(key).max(CROWD + 1);
        let now = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let shard = &self.shards[(hash >> 60) as usize % SHARDS];
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let key = if shard.has_room_for(hash, now, self.rate.interval) { hash } else { CROWD };
        let booked = shard.booked.entry(key).or_default();
        *booked = self.rate.admit(*booked, now).map_err(|after| ProxyError::RateLimited { after })?;
        Ok(())
    }
}

impl Shard {
    fn has_room_for(&mut self, key: u64, now: u64, interval: u64) -> bool {
        if self.booked.len() < KEYS_PER_SHARD || self.booked.contains_key(&key) {
            return true;
        }
        // Not for each stranger: looking through all takes longer than answering one.
        if now.saturating_sub(self.swept) < interval {
            return false;
        }
        self.swept = now;
        self.booked.retain(|_, booked| *booked > now);
        self.booked.len() < KEYS_PER_SHARD
    }
}

/// What one client can be expected to have: an IPv4 address, or the 64 bits of an IPv6 network.
pub(crate) fn block(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[tokio::test(start_paused = true)]
    async fn each_key_has_its_own_allowance() {
        let limiter = Limiter::new(Rate { interval: SECOND, burst: 2 });
        assert!(limiter.admit(&"a").is_ok() && limiter.admit(&"a").is_ok() && limiter.admit(&"b").is_ok());
        let error = limiter.admit(&"a").expect_err("the third at once");
        assert!(matches!(error, ProxyError::RateLimited { after } if after == Duration::from_secs(1)), "{error}");
        advance(Duration::from_secs(1)).await;
        assert!(limiter.admit(&"a").is_ok() && limiter.admit(&"a").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_cannot_take_more_memory_than_there_is() {
        let limiter = Limiter::new(Rate { interval: SECOND, burst: 1 });
        let served = (0..100_000).filter(|n| limiter.admit(n).is_ok()).count();
        let kept = || limiter.shards.iter().map(|s| s.lock().expect("is whole").booked.len()).sum::<usize>();
        assert!(kept() <= SHARDS * (KEYS_PER_SHARD + 1), "{}", kept());
        assert!(served <= kept(), "beyond it all share one allowance: {served}");
        advance(Duration::from_secs(2)).await;
        assert!((0..1_000).filter(|n| limiter.admit(&(n, "new")).is_ok()).count() > 900, "the old ones are forgotten");
    }

    #[test]
    fn a_network_is_one_client() {
        let check = |one: &str, other: &str, same: bool| {
            let (one, other): (IpAddr, IpAddr) = (one.parse().expect("an address"), other.parse().expect("an address"));
            assert_eq!(block(one) == block(other), same, "{one} {other}");
        };
        check("192.0.2.1", "192.0.2.2", false);
        check("2001:db8::1", "2001:db8::ffff:1", true);
        check("2001:db8::1", "2001:db8:0:1::1", false);
        check("::ffff:192.0.2.1", "192.0.2.1", true);
    }
}
