//! The admin port: Prometheus text, and whether the process is alive.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::accept;

const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Scrapers at once.
const CONNECTIONS: usize = 32;

/// Serves until `stop`. From `leaving` on nobody new should be sent here, and health says so.
pub(crate) async fn serve(
    listener: TcpListener,
    registry: Arc<Registry>,
    leaving: CancellationToken,
    stop: CancellationToken,
) {
    accept::each(listener, CONNECTIONS, stop, |stream| {
        let (registry, leaving) = (registry.clone(), leaving.clone());
        async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(&registry, leaving.is_cancelled(), request.uri().path());
                std::future::ready(Ok::<_, Infallible>(answer))
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            // A scraper that breaks off comes again by itself.
            drop(server.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await);
        }
    })
    .await;
}

fn answer(registry: &Registry, leaving: bool, path: &str) -> Response<Full<Bytes>> {
    let (status, type_, body) = match path {
        "/metrics" => {
            let mut text = String::new();
            match encode(&mut text, registry) {
                Ok(()) => (StatusCode::OK, TYPE, text),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
            }
        }
        "/healthz" if leaving => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", "told to end\n".to_owned()),
        "/healthz" => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "/metrics and /healthz are here\n".to_owned()),
    };
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, type_)
        .body(Full::new(body.into()))
        .expect("status and type are legal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_ends_before_the_process_does() {
        let status = |leaving: bool, path: &str| answer(&Registry::default(), leaving, path).status().as_u16();
        assert_eq!((status(false, "/healthz"), status(true, "/healthz")), (200, 503));
        assert_eq!((status(true, "/metrics"), status(false, "/")), (200, 404));
    }
}
