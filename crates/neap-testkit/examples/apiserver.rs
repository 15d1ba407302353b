//! The API server alone, with every kind of the platform and nothing that reacts to them: what `conformance/kubernetes`
//! holds against a kube-apiserver, which has no controllers either.
//!
//! `apiserver TOKEN` serves plain HTTP on a free port of loopback, takes TOKEN for a master's, keeps everything in memory
//! and prints a line that begins with `ready`. Never for anything but tests.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use http::Request;
use http_body_util::Full;
use jiff::Timestamp;
use neap_apiserver::auth::token::Signer;
use neap_apiserver::{ApiServer, Config, auth, serve};
use neap_store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};

/// Who signs tokens of service accounts, and for whom; the script starts kube-apiserver with the same.
const ISSUER: &str = "https://kubernetes.default.svc";
/// The namespaces every cluster has.
const NAMESPACES: &[&str] = &["default", "kube-node-lease", "kube-public", "kube-system"];

#[tokio::main]
#[expect(clippy::disallowed_methods, reason = "an example is a binary: the clock is read here and passed on")]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let token = std::env::args().nth(1).ok_or_else(|| io::Error::other("usage: apiserver TOKEN"))?;
    let registry = neap_kinds::registry(Arc::new(Arc::default))?;
    let mut config = Config::new(Arc::new(Timestamp::now), u64::from(std::process::id()));
    config.tokens = HashMap::from([(token, auth::user("admin", &[auth::MASTERS]))]);
    config.signer = Some(Arc::new(Signer::new(&Signer::generate()?, ISSUER, ISSUER)?));
    let shutdown = config.shutdown.clone();
    let server = ApiServer::new(Store::memory(), registry, config);
    let mut client = server.client_service(auth::admin("system:setup"));
    for name in NAMESPACES {
        let body = Full::<bytes::Bytes>::from(format!(r#"{{"metadata": {{"name": "{name}"}}}}"#));
        let client = ServiceExt::<Request<Full<bytes::Bytes>>>::ready(&mut client).await?;
        client.call(Request::post("/api/v1/namespaces").body(body)?).await?;
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("ready http://{}", listener.local_addr()?);
    tokio::select! {
        () = serve(server, listener, None, CancellationToken::new()) => {}
        _ = tokio::signal::ctrl_c() => shutdown.cancel(),
    }
    Ok(())
}
