//! gRPC echo: every message of a call comes back as it was, of whatever type, then status 0. Unary, client-streaming,
//! server-streaming and bidirectional calls all look the same to an echo.

use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};

use super::Body;

const GRPC: &str = "application/grpc";

pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(GRPC.as_bytes()))
}

pub(super) fn echo(request: Request<Incoming>) -> Response<Body> {
    // A message is passed on as the frames arrive: a streaming caller sees each before it sends the next.
    let frames = futures::stream::unfold(Some(request.into_body()), |body| async move {
        let mut body = body?;
        while let Some(Ok(frame)) = body.frame().await {
            if frame.is_data() {
                return Some((Ok(frame), Some(body)));
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Some((Ok(Frame::trailers(trailers)), None))
    });
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(GRPC));
    response
}
