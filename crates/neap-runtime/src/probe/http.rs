//! One HTTP question to a pod. Any answer from 200 to 399 means well, as Kubernetes has it.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::Request;
use http::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::pod::ProbeAction;

/// What applications and proxies recognise a probe by; Knative's own tell probes by this beginning.
const AGENT: &str = "kube-probe/neap";

/// Made on first use; most pods have no certificate.
#[derive(Default)]
pub(super) struct Tls(OnceLock<Arc<ClientConfig>>);

pub(super) async fn check(
    stream: TcpStream,
    address: SocketAddr,
    action: &ProbeAction,
    tls: &Tls,
) -> Result<(), String> {
    let ProbeAction::Http { path, https, host, headers, .. } = action else {
        return Err("not an HTTP probe".to_owned());
    };
    let path = if path.starts_with('/') { path.clone() } else { format!("/{path}") };
    let mut request = Request::get(&path).header(USER_AGENT, AGENT).header(ACCEPT, "*/*").header(CONNECTION, "close");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header(HOST, host.clone().unwrap_or_else(|| address.to_string()));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| format!("the probe of {path} is not valid: {e}"))?;
    if *https {
        let name = ServerName::from(address.ip());
        let stream = tokio_rustls::TlsConnector::from(tls.config()?)
            .connect(name, stream)
            .await
            .map_err(|e| format!("TLS with {address}: {e}"))?;
        ask(stream, request, address).await
    } else {
        ask(stream, request, address).await
    }
}

async fn ask<S>(stream: S, request: Request<Empty<Bytes>>, address: SocketAddr) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let said = |error: hyper::Error| format!("ask {address}: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(said)?;
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(sender.send_request(request));
    let response = tokio::select! {
        response = &mut answer => response,
        ended = &mut connection => match ended {
            Err(error) => Err(error),
            Ok(()) => answer.await,
        },
    };
    let status = response.map_err(said)?.status();
    match status.as_u16() {
        200..=399 => Ok(()),
        code => Err(format!("HTTP probe failed with statuscode: {code}")),
    }
}

impl Tls {
    fn config(&self) -> Result<Arc<ClientConfig>, String> {
        if let Some(config) = self.0.get() {
            return Ok(config.clone());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let schemes = provider.signature_verification_algorithms.supported_schemes();
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| format!("TLS: {e}"))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone(schemes)))
            .with_no_client_auth();
        Ok(self.0.get_or_init(|| Arc::new(config)).clone())
    }
}

/// Takes any certificate: a probe asks whether a pod answers, over a cable nobody else is on; it sends no secret.
#[derive(Debug)]
struct Anyone(Vec<SignatureScheme>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
