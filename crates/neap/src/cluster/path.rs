//! Whether requests for a Revision would meet the activator: asks through the Revision's public Service, as a caller
//! inside the cluster would (facts E4.11, E4.12).

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::Request;
use neap_api::keys::headers;
use neap_controllers::autoscaler::{ActivationProbe, ProbeTarget};
use neap_logic::config::Settings;
use neap_logic::names::hosts;
use neap_logic::scale::InPath;
use neap_logic::traffic::Protocol;
use tokio::sync::watch;

/// One look; the autoscaler takes another a second later.
const PATIENCE: Duration = Duration::from_millis(800);
/// By which a queue-proxy knows that it is a probe.
const AGENT: &str = "Knative-Autoscaling-Probe";
/// What an activator answers.
const ACTIVATOR: &[u8] = b"activator";

pub(super) struct PathProbe {
    settings: watch::Receiver<Arc<Settings>>,
}

impl PathProbe {
    pub(super) fn new(settings: watch::Receiver<Arc<Settings>>) -> Self {
        Self { settings }
    }
}

impl ActivationProbe for PathProbe {
    fn probe(&self, target: ProbeTarget) -> BoxFuture<'static, InPath> {
        let host = hosts::service_host(&target.service, &target.revision.namespace, &self.settings.borrow());
        let port = port(&target.protocol);
        async move {
            match tokio::time::timeout(PATIENCE, is_activator(&host, port)).await {
                Ok(true) => InPath::Seen,
                _ => InPath::NotYet,
            }
        }
        .boxed()
    }
}

/// The one port of a public Service that takes requests (D6.2). Whoever stands behind it speaks HTTP/1.1 there too.
fn port(protocol: &str) -> u16 {
    u16::try_from(Protocol::parse(protocol).service_port()).expect("a constant of two digits")
}

async fn is_activator(host: &str, port: u16) -> bool {
    let request = Request::get("/healthz")
        .header(http::header::HOST, host)
        .header(http::header::USER_AGENT, AGENT)
        .header(headers::PROBE, "activator")
        .body(());
    let (Ok(request), Ok(mut addresses)) = (request, tokio::net::lookup_host((host, port)).await) else { return false };
    let Some(address) = addresses.next() else { return false };
    let answer = neap_proxy::probe::probe(address, request, PATIENCE).await;
    answer.is_ok_and(|answer| answer.status == http::StatusCode::OK && *answer.body == *ACTIVATOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d6_2_the_port_goes_by_the_protocol() {
        assert_eq!((port("http1"), port("h2c"), port("")), (80, 81, 80));
    }
}
