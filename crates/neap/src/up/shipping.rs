//! The settings of container logs, handed to those who keep them and to the one who sends them.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::utils::StreamBackoff;
use kube::runtime::watcher;
use kube::{Api, Client};
use neap_api::keys::serving;
use neap_logic::config::Settings;
use neap_logic::config::logs::{Encoding, Target as Wanted, header};
use neap_logic::plan::sidecar::{VAR_LOG_PATH, VAR_LOG_VOLUME};
use neap_node::logs::{self, FileTarget, Naming, Target, VolumeName};
use neap_runtime::shelf::{Shelf, Turnover};
use tokio::sync::watch;

/// After the first failure; later ones wait longer.
const RETRY: Duration = Duration::from_secs(1);
/// Where the platform's settings are.
const NAMESPACE: &str = "knative-serving";
/// What other pods than ours say they are part of.
const OTHERS: [&str; 2] = ["app.kubernetes.io/name", "app"];

/// Tells the shelf and the shipper what is wished, now and whenever that changes, for ever.
pub(super) async fn follow(
    mut settings: watch::Receiver<Arc<Settings>>,
    client: Client,
    shelf: Arc<Shelf>,
    shipper: watch::Sender<Arc<logs::Settings>>,
    node: String,
) {
    loop {
        let now = settings.borrow_and_update().clone();
        apply(&now, &shelf);
        let mut secrets = headers_in(&client, &now.neap.logs.headers_secret);
        let told = async {
            while let Some(headers) = secrets.next().await {
                let mut wished = translate(&now, &node);
                match headers {
                    Some(headers) => wished.headers.extend(headers),
                    // Without its header a line may come to somebody else.
                    None => wished.target = None,
                }
                shipper.send_if_modified(|known| {
                    let other = **known != wished;
                    if other {
                        *known = Arc::new(wished);
                    }
                    other
                });
            }
        };
        tokio::select! {
            () = told => {}
            changed = settings.changed() => if changed.is_err() { std::future::pending::<()>().await },
        }
    }
}

/// The headers of a Secret, whenever they change; `None` while there are none that can be sent. Never ends.
fn headers_in(client: &Client, secret: &str) -> BoxStream<'static, Option<Vec<(String, String)>>> {
    if secret.is_empty() {
        return stream::once(std::future::ready(Some(Vec::new()))).chain(stream::pending()).boxed();
    }
    let api: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let name = secret.to_owned();
    let read = move |found: Result<Option<Secret>, watcher::Error>| {
        let headers = match found {
            Ok(Some(secret)) => headers_of(&secret).map_err(|problem| format!("the Secret {name} {problem}")),
            Ok(None) => Err(format!("there is no Secret {name} in the namespace {NAMESPACE}")),
            // Looked at again before long.
            Err(error) => {
                tracing::debug!(%error, "the headers of logs cannot be read");
                return std::future::ready(None);
            }
        };
        if let Err(problem) = &headers {
            tracing::warn!("container logs are not sent: {problem}, which logs.headers-secret names in config-neap");
        }
        std::future::ready(Some(headers.ok()))
    };
    let pause = watcher::DefaultBackoff::default();
    StreamBackoff::new(watcher::watch_object(api, secret), pause).filter_map(read).chain(stream::pending()).boxed()
}

fn headers_of(secret: &Secret) -> Result<Vec<(String, String)>, String> {
    let pairs = secret.data.iter().flatten();
    let header = |(name, value): (&String, &ByteString)| {
        let value = std::str::from_utf8(&value.0).map_err(|_| format!("has no text under {name}"))?;
        header(&format!("{name}: {}", value.trim())).map_err(|problem| format!("{problem}; its keys are headers"))
    };
    pairs.map(header).collect()
}

fn apply(settings: &Settings, shelf: &Shelf) {
    let own = &settings.neap.logs;
    shelf.set_turnover(Turnover { max_bytes: own.container_max_size, max_files: own.container_max_files });
    // What nobody will fetch is not kept.
    let kept = own.ship_to.is_some() && settings.observability.enable_var_log_collection;
    shelf.keep_volume(kept.then(|| VAR_LOG_VOLUME.to_owned()));
}

pub(super) fn translate(settings: &Settings, node: &str) -> logs::Settings {
    let own = &settings.neap.logs;
    let target = own.ship_to.as_ref().map(|wanted| match wanted {
        Wanted::Files(path) => Target::Files(FileTarget {
            path: path.clone(),
            max_size: own.file_max_size,
            max_files: own.file_max_files,
            max_age: own.file_max_age,
        }),
        Wanted::Otlp(url) => Target::Otlp { url: url.clone(), json: own.otlp_encoding == Encoding::Json },
        Wanted::Loki(url) => Target::Loki { url: url.clone(), structured_metadata: own.loki_structured_metadata },
    });
    let ours = [serving::SERVICE, serving::CONFIGURATION];
    logs::Settings {
        target,
        headers: own.headers.clone(),
        ca: own.ca.clone(),
        gzip: own.gzip,
        batch_size: usize::try_from(own.batch_size).unwrap_or(usize::MAX),
        batch_age: own.batch_age,
        timeout: own.timeout,
        retry: RETRY,
        json_severity: own.json_severity,
        volume: settings
            .observability
            .enable_var_log_collection
            .then(|| VolumeName { name: VAR_LOG_VOLUME.into(), path: VAR_LOG_PATH.into() }),
        naming: Naming {
            service: ours.into_iter().chain(OTHERS).map(str::to_owned).collect(),
            configuration: Some(serving::CONFIGURATION.into()),
            revision: Some(serving::REVISION.into()),
            node: node.to_owned(),
            host: nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_logic::config::Maps;

    #[test]
    fn a_secret_is_headers() {
        let check = |pairs: &[(&str, &[u8])], want: Result<&[(&str, &str)], &str>| {
            let data = pairs.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.to_vec()))).collect();
            match (headers_of(&Secret { data: Some(data), ..Secret::default() }), want) {
                (Ok(got), Ok(want)) => {
                    let got: Vec<_> = got.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                    assert_eq!(got, want);
                }
                (Err(said), Err(part)) => assert!(said.contains(part) && !said.contains("hidden"), "{said}"),
                (got, want) => panic!("{got:?} instead of {want:?}"),
            }
        };
        check(&[], Ok(&[]));
        check(&[("Authorization", b"Bearer x\n")], Ok(&[("authorization", "Bearer x")]));
        check(&[("host", b"hidden")], Err("sets host"));
        check(&[("token", b"hidden\x01")], Err("gives token"));
        check(&[("token", b"\xff")], Err("no text under token"));
    }

    #[test]
    fn settings_reach_the_shipper() {
        let check = |pairs: &[(&str, &str)], collected: &str, want: Option<&str>| {
            let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
            let maps = Maps::from([
                ("config-neap".to_owned(), map(pairs)),
                ("config-observability".to_owned(), map(&[("logging.enable-var-log-collection", collected)])),
            ]);
            let wished = translate(&Settings::parse(&maps).expect("fine"), "neap");
            let url = wished.target.as_ref().map(|target| match target {
                Target::Files(files) => files.path.clone(),
                Target::Otlp { url, .. } | Target::Loki { url, .. } => url.clone(),
            });
            assert_eq!(url.as_deref(), want);
            assert_eq!(wished.volume.is_some(), collected == "true");
            assert_eq!(wished.naming.service[0], "serving.knative.dev/service");
        };
        check(&[], "false", None);
        check(&[("logs.ship-to", "loki+http://host:3100")], "true", Some("http://host:3100/loki/api/v1/push"));
        check(&[("logs.ship-to", "file:///logs/{service}.jsonl")], "false", Some("/logs/{service}.jsonl"));
    }
}
