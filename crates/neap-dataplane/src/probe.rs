//! Answers to Knative's own probes (E1.2, F2), which must neither wake nor reach the application.

use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use neap_api::keys::headers as names;
use neap_proxy::{Body, ProxyError, Request, Response};

use crate::gate::GateName;
use crate::request::OVERRIDE;

const PROBE: HeaderName = HeaderName::from_static(names::PROBE);

/// `None`: not a probe, or one for a plain Service, which has to answer it itself.
pub(crate) fn answer(request: &Request, hash: Option<&str>, gate: &GateName) -> Option<Result<Response, ProxyError>> {
    let probe = request.headers().get(&PROBE)?;
    if !matches!(gate, GateName::Revision(_)) {
        return None;
    }
    let mut response = http::Response::new(Body::empty());
    match probe.as_bytes() {
        b"probe" => {
            let brought = request.headers().get(names::HASH).filter(|hash| *hash != OVERRIDE).cloned();
            if let Some(hash) = brought.or_else(|| HeaderValue::from_str(hash?).ok()) {
                response.headers_mut().insert(names::HASH, hash);
            }
        }
        b"activator" => *response.body_mut() = Body::full("activator"),
        _ => {
            *response.status_mut() = StatusCode::BAD_REQUEST;
            *response.body_mut() = Body::full("unexpected probe header value");
        }
    }
    Some(Ok(response))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use neap_logic::routing::{Port, RevisionKey};

    use super::*;

    async fn check(probe: &str, gate: &GateName, want: Option<(u16, Option<&str>, &str)>) {
        let request = http::Request::builder()
            .header(names::PROBE, probe)
            .header(names::HASH, "override")
            .body(Body::empty())
            .expect("a request");
        let got = answer(&request, Some("abc"), gate);
        let Some((status, hash, text)) = want else {
            assert!(got.is_none());
            return;
        };
        let response = got.expect("an answer").expect("no error");
        assert_eq!(response.status(), status);
        assert_eq!(response.headers().get(names::HASH).map(|hash| hash.to_str().expect("text")), hash);
        let body = response.into_body().collect().await.expect("collects").to_bytes();
        assert_eq!(body, text);
    }

    #[tokio::test]
    async fn each_probe_has_its_answer() {
        let revision = GateName::Revision(RevisionKey::new("ns", "r"));
        let service = GateName::Service { namespace: "ns".into(), name: "s".into(), port: Port::Number(80) };
        check("probe", &revision, Some((200, Some("abc"), ""))).await;
        check("activator", &revision, Some((200, None, "activator"))).await;
        check("nonsense", &revision, Some((400, None, "unexpected probe header value"))).await;
        check("probe", &service, None).await;
    }
}
