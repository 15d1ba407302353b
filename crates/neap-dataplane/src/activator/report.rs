//! What the autoscaler is told (E1.11): at once when a Revision without instances is asked for, and about everything once
//! a second.
//!
//! What was told at once is taken off the next regular message, so that nothing counts twice.

use std::collections::{HashMap, HashSet};

use neap_api::statistics::{RevisionStatistics, Statistics, encode_all};
use neap_logic::routing::RevisionKey;

use crate::stats::Stat;

pub(super) struct Reporter {
    pod: String,
    /// Told at once since the last regular message.
    told: HashMap<RevisionKey, u32>,
    /// Not idle in the last regular message.
    active: HashSet<RevisionKey>,
}

impl Reporter {
    pub(super) fn new(pod: String) -> Self {
        Self { pod, told: HashMap::new(), active: HashSet::new() }
    }

    /// A request waits for a Revision that has no instance.
    pub(super) fn at_once(&mut self, key: &RevisionKey) -> Vec<u8> {
        *self.told.entry(key.clone()).or_default() += 1;
        encode_all(&[self.message(key, 1.0, 1.0)])
    }

    /// The regular message; `None` when there is nothing to tell. A Revision that has become idle is told of once more.
    pub(super) fn regular(&mut self, stats: &[Stat]) -> Option<Vec<u8>> {
        let told = std::mem::take(&mut self.told);
        let mut active = HashSet::new();
        let mut messages = Vec::new();
        for stat in stats {
            let key = &stat.revision;
            let busy = stat.average_concurrency > 0.0 || stat.request_count > 0;
            if !busy && !self.active.contains(key) {
                continue;
            }
            let already = f64::from(told.get(key).copied().unwrap_or_default());
            let count = stat.rate();
            messages.push(self.message(key, (stat.average_concurrency - already).max(0.0), (count - already).max(0.0)));
            if busy {
                active.insert(key.clone());
            }
        }
        self.active = active;
        (!messages.is_empty()).then(|| encode_all(&messages))
    }

    fn message(&self, key: &RevisionKey, concurrency: f64, count: f64) -> RevisionStatistics {
        RevisionStatistics {
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            statistics: Some(Statistics {
                pod_name: self.pod.clone(),
                average_concurrent_requests: concurrency,
                request_count: count,
                ..Statistics::default()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use neap_api::statistics::decode_all;

    use super::*;

    fn read(bytes: Option<Vec<u8>>) -> Vec<(String, f64, f64)> {
        let all = bytes.map(|bytes| decode_all(&bytes).expect("is a message")).unwrap_or_default();
        all.into_iter()
            .map(|one| {
                let stat = one.statistics.expect("has statistics");
                assert_eq!(stat.pod_name, "activator-1");
                (format!("{}/{}", one.namespace, one.name), stat.average_concurrent_requests, stat.request_count)
            })
            .collect()
    }

    #[test]
    fn e1_11_nothing_counts_twice() {
        let mut reporter = Reporter::new("activator-1".into());
        let key = RevisionKey::new("ns", "r");
        let stat = |average: f64, count: u64| {
            vec![Stat {
                revision: key.clone(),
                average_concurrency: average,
                request_count: count,
                seconds: 1.0,
                concurrency: 0,
                waiting: 0,
                instances: 0,
            }]
        };
        let name = || "ns/r".to_owned();
        assert_eq!(read(reporter.regular(&stat(0.0, 0))), [], "idle from the start");
        assert_eq!(read(Some(reporter.at_once(&key))), [(name(), 1.0, 1.0)]);
        assert_eq!(read(reporter.regular(&stat(0.4, 3))), [(name(), 0.0, 2.0)], "less what was told");
        assert_eq!(read(reporter.regular(&stat(2.5, 4))), [(name(), 2.5, 4.0)]);
        assert_eq!(read(reporter.regular(&stat(0.0, 0))), [(name(), 0.0, 0.0)], "once more, that it is idle");
        assert_eq!(read(reporter.regular(&stat(0.0, 0))), []);
    }
}
