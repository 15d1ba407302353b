//! A server with a few kinds, to be tried with kubectl: `cargo run --example server -- DIR [PORT]`.
//!
//! Keeps its store, keys and kubeconfig in DIR and prints a line that begins with `ready`.

#[path = "../tests/kinds/mod.rs"]
mod kinds;

use jiff::Timestamp;
use neap_apiserver::auth::token::Signer;
use neap_apiserver::pki::{self, Authority};
use neap_apiserver::selector::SelectableField;
use neap_apiserver::{ApiServer, Config, Registry, auth, serve};
use neap_store::{Options, Store};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};

#[tokio::main]
#[expect(clippy::disallowed_methods, reason = "an example is a binary: the clock is read here and passed on")]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("usage: server DIR [PORT]")?);
    let port: u16 = args.next().map_or(Ok(0), |p| p.parse())?;
    std::fs::create_dir_all(&dir)?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let url = format!("https://127.0.0.1:{}", listener.local_addr()?.port());

    let registry = Registry::new();
    registry.register_all(&kinds::kubernetes())?;
    registry.register(&kinds::widgets())?;
    registry.configure("", "pods", |pods| {
        pods.selectable = vec![SelectableField::plain("status.phase"), SelectableField::plain("spec.nodeName")];
    });
    let now: neap_apiserver::Now = Arc::new(Timestamp::now);
    let authority = Authority::load_or_create(&dir, now())?;
    let mut config = Config::new(now.clone(), u64::from(std::process::id()));
    config.signer = Some(Arc::new(Signer::new(&pki::signing_key(&dir)?, &url, &url)?));
    let shutdown = config.shutdown.clone();
    let server = ApiServer::new(Store::open(&dir.join("store.redb"), Options::default())?, registry, config);
    let mut client = server.client_service(auth::admin("system:setup"));
    for name in ["default", "kube-system"] {
        let namespace = json!({"metadata": {"name": name}}).to_string();
        let request = http::Request::post("/api/v1/namespaces").body(http_body_util::Full::from(namespace))?;
        ServiceExt::<http::Request<http_body_util::Full<bytes::Bytes>>>::ready(&mut client)
            .await?
            .call(request)
            .await?;
    }
    let serving = authority.serving(&["localhost".into(), "127.0.0.1".into()])?;
    let admin = authority.client("admin", &[auth::MASTERS])?;
    pki::write_private(&dir.join("kubeconfig"), pki::kubeconfig(&url, &authority, &admin).as_bytes())?;
    let tls = pki::server_config(&authority, &serving)?;
    println!("ready {url}");
    tokio::select! {
        () = serve(server, listener, Some(tls), CancellationToken::new()) => {}
        _ = tokio::signal::ctrl_c() => shutdown.cancel(),
    }
    Ok(())
}
