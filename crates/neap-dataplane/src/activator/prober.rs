//! Asks instances whether they take requests (E1.8), again and again until they do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http::header;
use neap_api::keys::headers as names;
use neap_proxy::probe;
use tokio::time::{Instant, sleep_until};

use super::backends::Backends;

/// Instances asked at the same time.
const AT_ONCE: usize = 64;
const PATH: &str = "/healthz";
const AGENT: &str = "Knative-Activator-Probe";
/// What a sidecar is asked for, and answers.
const QUEUE: &str = "queue";

/// Runs for ever.
pub(super) async fn run(backends: Arc<Backends>, timeout: Duration, interval: Duration) {
    loop {
        let next = Instant::now() + interval;
        let unproven = backends.unproven();
        if unproven.is_empty() {
            backends.news().await;
            continue;
        }
        let asked = unproven.into_iter().map(|(key, addr)| {
            let backends = &backends;
            async move {
                if takes_requests(addr, timeout).await {
                    backends.proved(&key, addr, Instant::now());
                }
            }
        });
        futures::stream::iter(asked).buffer_unordered(AT_ONCE).collect::<()>().await;
        tokio::select! {
            () = sleep_until(next) => {}
            () = backends.news() => {}
        }
    }
}

async fn takes_requests(addr: SocketAddr, timeout: Duration) -> bool {
    let request = http::Request::get(PATH)
        .header(header::HOST, addr.to_string())
        .header(header::USER_AGENT, AGENT)
        .header(names::PROBE, QUEUE)
        .body(())
        .expect("made of constants");
    match probe::probe(addr, request, timeout).await {
        Ok(answer) => answer.status.is_success() && answer.body == QUEUE,
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "an instance does not take requests yet");
            false
        }
    }
}
