//! What was pulled from registries, for whoever scrapes: read when it is asked for, counted where it happens.

use std::fmt;

use neap_runtime::image::Images;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;

pub(super) struct Pulls(pub(super) Images);

impl fmt::Debug for Pulls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pulls")
    }
}

impl Collector for Pulls {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let stats = self.0.pull_stats();
        let mut count = |name: &str, help: &str, value: f64| {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
        };
        count("neap_image_pulls", "Pulls that were begun", stats.pulls as f64)?;
        count("neap_image_pull_failures", "Pulls that failed", stats.failures as f64)?;
        count("neap_image_pull_bytes", "Bytes that came over the wire, compressed", stats.bytes as f64)?;
        count("neap_image_pull_seconds", "Time that pulls took together", stats.time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::registry::Registry;

    #[tokio::test]
    async fn pulls_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path(), neap_runtime::image::Config::default()).unwrap();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Pulls(images.clone())));
        let text = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        assert!(text().contains("neap_image_pulls_total 0"), "{}", text());
        // Nobody listens there.
        let policy = neap_runtime::pod::PullPolicy::Always;
        images.ensure("127.0.0.1:1/none:1", policy, &[]).await.unwrap_err();
        assert!(text().contains("neap_image_pull_failures_total 1"), "{}", text());
    }
}
