//! The way of one proxied request, from the client's head to the upstream's.

use std::future::Future;
use std::time::Duration;

use http::Version;
use tokio::time::Instant;

use crate::body::OnEnd;
use crate::config::Limits;
use crate::error::ProxyError;
use crate::handler::{Request, Response};
use crate::headers;
use crate::tunnel;
use crate::upstream::{Deadline, Target, Upstream};

/// Decides where a request goes, waiting for room if need be.
pub trait Picker {
    /// Holds the place taken at the target, until the answer has ended.
    type Hold: OnEnd + 'static;

    /// Takes a place. The wait must end by `deadline`, with [`Deadline::wait_error`].
    fn pick(&mut self, deadline: Option<Deadline>) -> impl Future<Output = Result<Picked<Self::Hold>, ProxyError>>;

    /// The target is known: what the request has to say there, and nowhere else, can be put in.
    fn bound(&mut self, _picked: &Picked<Self::Hold>, _request: &mut Request) {}

    /// A connection had to be made for the request.
    fn connected(&mut self, _took: Duration) {}

    /// The answer begins.
    fn answered(&mut self, _hold: &mut Self::Hold, _answer: &Response) {}

    /// The request failed at the target, for good.
    fn failed(&mut self, _picked: Picked<Self::Hold>, _error: &ProxyError) {}

    /// The target closed the connection without a word, for the `closed`th time (from 1) that this request was sent; it
    /// changes nothing, so it may be sent once more. Says where: at the same target unless somebody knows better; `None`
    /// asks to pick again, `Err` gives up.
    fn unheard(
        &mut self,
        picked: Picked<Self::Hold>,
        error: ProxyError,
        closed: u32,
    ) -> Result<Option<Picked<Self::Hold>>, ProxyError> {
        if closed == 1 {
            return Ok(Some(picked));
        }
        self.failed(picked, &error);
        Err(error)
    }

    /// The target did not take the request, and no application saw it. `Ok` asks to pick again, `Err` gives up.
    fn refused(&mut self, picked: Picked<Self::Hold>, error: ProxyError) -> Result<(), ProxyError>;
}

/// A place taken at a target.
#[derive(Debug)]
pub struct Picked<H> {
    /// Where.
    pub target: Target,
    /// The place.
    pub hold: H,
}

/// Sends a request where the picker says and returns the answer, which is streamed. `arrived` is when the
/// request's head was complete: all limits run from there. The request is taken out of its place.
///
/// The request must be in canonical form ([`headers::canonical`]) and its headers final; the answer's hop-by-hop fields
/// are taken off here.
pub async fn forward<P: Picker>(
    upstream: &Upstream,
    picker: &mut P,
    request: &mut Option<Request>,
    limits: &Limits,
    arrived: Instant,
) -> Result<Response, ProxyError> {
    let upgrade = headers::take_upgrade(request.as_mut().expect("a request to forward"));
    let deadline = limits.deadline(arrived);
    let (mut kept, mut closed) = (None, 0);
    loop {
        let mut picked = match kept.take() {
            Some(picked) => picked,
            None => picker.pick(deadline).await?,
        };
        picker.bound(&picked, request.as_mut().expect("a request to forward"));
        match upstream.exchange(picked.target, request, deadline, limits.idle).await {
            Ok(answered) => {
                let mut response = answered.response;
                // The version is that of our own message (RFC 9110, section 2.5), not of what came from further on.
                *response.version_mut() = Version::HTTP_11;
                if let Some(took) = answered.connect {
                    picker.connected(took);
                }
                picker.answered(&mut picked.hold, &response);
                return match (answered.switched, upgrade) {
                    (Some(switched), Some(client)) => {
                        headers::strip_switching(response.headers_mut());
                        let websocket = headers::is_websocket(response.headers());
                        tunnel::spawn(upstream, client, switched, websocket, limits.idle, picked.hold);
                        Ok(response)
                    }
                    (Some(_unasked), None) => Err(ProxyError::Internal {
                        what: "the application switched protocols without being asked".into(),
                    }),
                    (None, _) => {
                        headers::strip_hop_by_hop(response.headers_mut());
                        Ok(response.map(|body| body.on_end(picked.hold)))
                    }
                };
            }
            // It is in its place again: no application saw it, or one closed without a word and it may be repeated. Anything
            // else that failed before it was sent, as a limit that passed, would fail again.
            Err(error) if request.is_some() && error.unstarted() => picker.refused(picked, error)?,
            Err(error @ ProxyError::UpstreamClosed { .. }) if request.is_some() => {
                closed += 1;
                kept = picker.unheard(picked, error, closed)?;
            }
            Err(error) => {
                picker.failed(picked, &error);
                return Err(error);
            }
        }
    }
}
