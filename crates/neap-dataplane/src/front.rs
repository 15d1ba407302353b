//! What the fronts of all roles do alike: their way to instances, and their answer when there is none.

use std::rc::Rc;
use std::sync::Arc;

use neap_proxy::{Fault, Metrics, ProxyError, Response, Upstream, UpstreamConfig, Worker};
use tokio::time::Instant;

use crate::plane::DataPlane;

/// A worker's connections to instances. When the worker is told to end, tunnels are closed at once: their clients come back
/// through whoever is there next.
pub(crate) fn upstream(worker: &Worker, config: UpstreamConfig, metrics: &Metrics) -> Rc<Upstream> {
    let upstream = Rc::new(Upstream::new(config, metrics.clone(), worker.tasks().clone()));
    let (swept, stopping) = (upstream.clone(), worker.shutdown().clone());
    worker.on_sweep(move || {
        swept.sweep();
        if stopping.is_cancelled() {
            swept.close_tunnels();
        }
    });
    upstream
}

/// Has the first worker look after instances that refused connections.
pub(crate) fn readmit(worker: &Worker, plane: &Arc<DataPlane>) {
    if worker.index() == 0 {
        let plane = plane.clone();
        worker.on_sweep(move || plane.readmit(Instant::now()));
    }
}

/// Counts and notes a failure, and answers it. The application's faults are the user's to see.
pub(crate) fn failed(metrics: &Metrics, error: &ProxyError, grpc: bool) -> Response {
    metrics.error(error);
    let answer = error.answer();
    if answer.fault == Fault::App {
        tracing::info!(code = answer.code, error = error as &dyn std::error::Error, "request failed");
    } else {
        tracing::debug!(code = answer.code, error = error as &dyn std::error::Error, "request failed");
    }
    error.respond(grpc)
}
