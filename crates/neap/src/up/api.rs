//! The API server of this machine: kinds, certificates, listeners, and the client inside the process.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::UserInfo;
use kube::Client;
use neap_apiserver::auth::token::Signer;
use neap_apiserver::{ApiServer, Registry, pki};
use neap_logic::config::Settings;
use neap_store::Store;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::config::Config;
use super::data_dir::DataDir;
use super::platform::{Error, listen};
use crate::parts::Parts;
use crate::process::now;

/// Who the platform's own parts are.
const SELF: &str = "system:serviceaccount:knative-serving:controller";
/// Who the kubeconfig's user is.
const ADMIN: &str = "neap-admin";
/// Who says that a service account's token is good, and for whom it is meant unless somebody asks otherwise.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Between two attempts to write the audit log.
const AUDIT_AGAIN: Duration = Duration::from_secs(10);
/// May do everything.
const MASTERS: &str = "system:masters";

type SettingsCell = Arc<OnceLock<watch::Receiver<Arc<Settings>>>>;

pub(super) struct Api {
    server: ApiServer,
    authority: pki::Authority,
    tls: Arc<rustls::ServerConfig>,
    address: OnceLock<SocketAddr>,
    settings: SettingsCell,
    /// Until it is written by a part of its own.
    audit: Mutex<Option<Audit>>,
    stop: CancellationToken,
}

/// Who asked for what, on its way to a file.
struct Audit {
    path: PathBuf,
    file: std::fs::File,
    queue: neap_apiserver::audit::Audit,
    lines: neap_apiserver::audit::Lines,
}

impl Audit {
    fn open(path: &Path) -> Result<Self, Error> {
        let file = open_log(path).map_err(|source| Error::AuditLog { path: path.to_owned(), source })?;
        let (queue, lines) = neap_apiserver::audit::queue(neap_apiserver::audit::Policy::default());
        Ok(Self { path: path.to_owned(), file, queue, lines })
    }
}

/// The addresses of this machine's interfaces, those left out that mean something on one cable only.
fn own_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    let mut addresses: Vec<IpAddr> =
        addresses.filter(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())).collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

fn open_log(path: &Path) -> io::Result<std::fs::File> {
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Writes until `stop`. A disk that is full costs lines of the log, never the platform.
async fn write_audit(
    mut lines: neap_apiserver::audit::Lines,
    file: std::fs::File,
    open: impl Fn() -> Result<std::fs::File, Error>,
    stop: CancellationToken,
) {
    let mut file = Ok(file);
    loop {
        let why = match file {
            Ok(file) => match lines.write_to(tokio::fs::File::from_std(file), stop.clone()).await {
                Ok(()) => return,
                Err(error) => crate::process::chain(&error),
            },
            Err(error) => crate::process::chain(&error),
        };
        if stop.is_cancelled() {
            tracing::warn!(why, "the last lines of the audit log cannot be written");
            return;
        }
        tracing::warn!(why, "the audit log cannot be written: lines are lost; it is tried again");
        tokio::select! {
            () = tokio::time::sleep(AUDIT_AGAIN) => {}
            () = stop.cancelled() => {}
        }
        file = open();
    }
}

impl Api {
    pub(super) fn new(
        config: &Config,
        data: &DataDir,
        store: Store,
        bridge: Option<Ipv4Addr>,
        stop: CancellationToken,
    ) -> Result<Self, Error> {
        let settings = SettingsCell::default();
        let current = settings.clone();
        let registry = neap_kinds::registry(Arc::new(move || {
            // Until the config-maps have been read, what is admitted gets the defaults.
            current.get().map_or_else(Arc::default, |receiver| receiver.borrow().clone())
        }))?;
        let authority = pki::Authority::load_or_create(&data.pki(), now())?;
        let mut names: Vec<String> =
            ["localhost", "127.0.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
                .map(str::to_owned)
                .to_vec();
        names.push("kubernetes.default.svc.cluster.local".into());
        names.extend([Some(config.listen), bridge.map(IpAddr::V4)].into_iter().flatten().map(|ip| ip.to_string()));
        if config.listen.is_unspecified() {
            // By whatever address or name somebody reaches this machine.
            names.extend(own_addresses().iter().map(IpAddr::to_string));
            names.extend(
                nix::unistd::gethostname()
                    .ok()
                    .and_then(|name| name.into_string().ok())
                    .filter(|name| neap_logic::names::is_dns1123_subdomain(name)),
            );
        }
        names.sort();
        names.dedup();
        let tls = pki::server_config(&authority, &authority.serving(&names)?)?;
        let mut server = neap_apiserver::Config::new(Arc::new(now), fastrand::u64(..));
        server.signer = Some(Arc::new(Signer::new(&pki::signing_key(&data.pki())?, ISSUER, ISSUER)?));
        server.shutdown = stop.clone();
        let audit = config.audit_log.as_deref().map(Audit::open).transpose()?;
        server.audit = audit.as_ref().map(|audit| audit.queue.clone());
        let server = ApiServer::new(store, registry, server);
        Ok(Self { server, authority, tls, address: OnceLock::new(), settings, audit: Mutex::new(audit), stop })
    }

    /// Takes up the sockets: the users' and, where pods have a network of their own, theirs.
    pub(super) async fn serve(
        &self,
        parts: &mut Parts<Error>,
        listener: TcpListener,
        bridge: Option<Ipv4Addr>,
    ) -> Result<(), Error> {
        let address = listener.local_addr().map_err(Error::Socket)?;
        self.address.get_or_init(|| address);
        if let Some(Audit { path, file, lines, .. }) = self.audit.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            let open = move || open_log(&path).map_err(|source| Error::AuditLog { path: path.clone(), source });
            parts.spawn("audit log", write_audit(lines, file, open, self.stop.clone()));
        }
        if let Some(ip) = bridge.filter(|ip| !address.ip().is_unspecified() && address.ip() != IpAddr::V4(*ip)) {
            let inner = listen("the API for pods", ip.into(), address.port(), "--api-port").await?;
            parts.spawn(
                "API for pods",
                neap_apiserver::serve(self.server.clone(), inner, Some(self.tls.clone()), self.stop.clone()),
            );
        }
        parts.spawn(
            "API",
            neap_apiserver::serve(self.server.clone(), listener, Some(self.tls.clone()), self.stop.clone()),
        );
        Ok(())
    }

    /// Admission reads the settings from here from now on.
    pub(super) fn follow(&self, settings: watch::Receiver<Arc<Settings>>) {
        self.settings.get_or_init(|| settings);
    }

    pub(super) fn address(&self) -> SocketAddr {
        *self.address.get().expect("served before anybody asks")
    }

    pub(super) fn registry(&self) -> &Registry {
        self.server.registry()
    }

    /// PEM of the certificate authority.
    pub(super) fn authority(&self) -> &str {
        self.authority.pem()
    }

    pub(super) fn kubeconfig(&self, url: &str) -> Result<String, Error> {
        Ok(pki::kubeconfig(url, &self.authority, &self.authority.client(ADMIN, &[MASTERS])?))
    }

    /// The client of everything inside the process: no socket, and writes count as soon as they are seen.
    pub(super) fn client(&self) -> Client {
        let user = UserInfo {
            username: Some(SELF.into()),
            groups: Some(vec![MASTERS.into(), "system:authenticated".into()]),
            ..Default::default()
        };
        Client::new(self.server.client_service(user), "default")
    }
}
