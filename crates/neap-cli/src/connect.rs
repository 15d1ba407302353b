//! From flags and environment to a client.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

use crate::{Env, Error, Target};

/// How long a platform may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long it may say nothing in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(60);

/// A client and the namespace to work in.
pub(crate) struct Connection {
    pub(crate) client: Client,
    /// For watches and logs, which may be quiet for as long as they like.
    pub(crate) patient: Client,
    pub(crate) namespace: String,
    pub(crate) address: String,
}

/// # Errors
/// There is no kubeconfig, or it cannot be used.
pub(crate) async fn connect(target: &Target, env: &Env) -> Result<Connection, Error> {
    let (path, is_fallback) = kubeconfig(target, env).ok_or(Error::NoPlatform)?;
    let unusable = |source| Error::Kubeconfig { path: path.clone(), source: Box::new(source) };
    let file = Kubeconfig::read_from(&path).map_err(unusable)?;
    let options = KubeConfigOptions { context: target.context.clone(), ..Default::default() };
    let context = options.context.clone().or_else(|| file.current_context.clone()).unwrap_or_default();
    let mut config = Config::from_custom_kubeconfig(file, &options).await.map_err(unusable)?;
    config.connect_timeout = Some(CONNECT);
    let namespace = target.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let address = config.cluster_url.to_string();
    if is_fallback {
        // It may be some production cluster: nobody shall work on it without knowing.
        eprintln!(
            "no `neap up` of this user is here: working on context {context:?} of {} at {address}",
            path.display()
        );
    }
    let client = |config: Config| Client::try_from(config).map_err(|e| Error::Client(Box::new(e)));
    let patient = client(config.clone())?;
    config.read_timeout = Some(SILENCE);
    Ok(Connection { client: client(config)?, patient, namespace, address })
}

impl Connection {
    /// The same in another namespace, where one is named.
    pub(crate) fn within(&self, namespace: Option<&str>) -> Self {
        Self {
            client: self.client.clone(),
            patient: self.patient.clone(),
            namespace: namespace.unwrap_or(&self.namespace).to_owned(),
            address: self.address.clone(),
        }
    }

    /// A failed request, told apart: nobody there, or a refusal.
    pub(crate) fn explain(&self, error: kube::Error) -> Error {
        match error {
            kube::Error::HyperError(_) | kube::Error::Service(_) => {
                Error::Unreachable { address: self.address.clone(), source: Box::new(error) }
            }
            other => other.into(),
        }
    }
}

/// The first that was named or exists; and whether it is the user's own, which nobody named.
fn kubeconfig(target: &Target, env: &Env) -> Option<(PathBuf, bool)> {
    if let Some(path) = &target.kubeconfig {
        return Some((path.clone(), false));
    }
    if let Some(named) = env.vars.get("KUBECONFIG").filter(|v| !v.is_empty()) {
        let named: Vec<PathBuf> = named.split(':').map(PathBuf::from).collect();
        // Where none of them exists, the first is the one to say so of.
        return named.iter().find(|path| path.exists()).or(named.first()).map(|path| (path.clone(), false));
    }
    let own = data_dir(env).map(|dir| (dir.join("kubeconfig"), false));
    let home = env.vars.get("HOME").map(|home| (Path::new(home).join(".kube/config"), target.context.is_none()));
    [own, home].into_iter().flatten().find(|(path, _)| path.exists())
}

/// Where `neap up` keeps its data unless told otherwise; `None` when there is no home.
pub(crate) fn data_dir(env: &Env) -> Option<PathBuf> {
    if env.root {
        return Some(PathBuf::from("/var/lib/neap"));
    }
    let named = env.vars.get("XDG_DATA_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let base = named.or_else(|| env.vars.get("HOME").map(|home| Path::new(home).join(".local/share")))?;
    Some(base.join("neap"))
}

/// Beside the kubeconfig in use lies `endpoints.json`, where it is that of a `neap up`.
pub(crate) fn registry(target: &Target, env: &Env) -> Option<String> {
    let endpoints = kubeconfig(target, env)?.0.with_file_name("endpoints.json");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(endpoints).ok()?).ok()?;
    json["registry"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_dir_follows_the_user() {
        let env = |vars: &[(&str, &str)], root| Env {
            vars: vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            terminal: false,
            root,
        };
        assert_eq!(data_dir(&env(&[("HOME", "/h")], true)), Some("/var/lib/neap".into()));
        assert_eq!(data_dir(&env(&[("HOME", "/h")], false)), Some("/h/.local/share/neap".into()));
        assert_eq!(data_dir(&env(&[("HOME", "/h"), ("XDG_DATA_HOME", "/x")], false)), Some("/x/neap".into()));
        assert_eq!(data_dir(&env(&[], false)), None);
    }

    #[test]
    fn a_named_kubeconfig_wins() {
        let target = Target { kubeconfig: Some("/k".into()), ..Default::default() };
        let env = Env { vars: [("KUBECONFIG".to_owned(), "/other".to_owned())].into(), ..Default::default() };
        assert_eq!(kubeconfig(&target, &env), Some(("/k".into(), false)));
        // One that is missing is named, not passed over.
        let gone = Env { vars: [("KUBECONFIG".to_owned(), "/gone/1:/gone/2".to_owned())].into(), ..Default::default() };
        assert_eq!(kubeconfig(&Target::default(), &gone), Some(("/gone/1".into(), false)));
    }
}
