//! The settings of container logs, handed to those who keep them and to the one who sends them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use neap_api::keys::serving;
use neap_logic::config::Settings;
use neap_logic::config::logs::{Encoding, Target as Wanted};
use neap_logic::plan::sidecar::{VAR_LOG_PATH, VAR_LOG_VOLUME};
use neap_node::logs::{self, FileTarget, Naming, Target, VolumeName};
use neap_runtime::shelf::{Shelf, Turnover};
use tokio::sync::watch;

/// After the first failure; later ones wait longer.
const RETRY: Duration = Duration::from_secs(1);
/// What other pods than ours say they are part of.
const OTHERS: [&str; 2] = ["app.kubernetes.io/name", "app"];

/// Tells the shelf and the shipper what is wished, now and whenever that changes, for ever.
pub(super) async fn follow(
    mut settings: watch::Receiver<Arc<Settings>>,
    shelf: Arc<Shelf>,
    shipper: watch::Sender<Arc<logs::Settings>>,
    node: String,
) {
    loop {
        let wished = translate(&settings.borrow_and_update(), &node);
        apply(&settings.borrow(), &wished, &shelf);
        shipper.send_if_modified(|known| {
            let other = **known != wished;
            if other {
                *known = Arc::new(wished);
            }
            other
        });
        if settings.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn apply(settings: &Settings, wished: &logs::Settings, shelf: &Shelf) {
    let own = &settings.neap.logs;
    shelf.set_turnover(Turnover { max_bytes: own.container_max_size, max_files: own.container_max_files });
    // What nobody will fetch is not kept.
    let volume = wished.volume.as_ref().filter(|_| wished.target.is_some());
    shelf.keep_volume(volume.map(|volume| volume.name.clone()));
    if wished.target.is_none() {
        shelf.hold(HashSet::new());
    }
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
