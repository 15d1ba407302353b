//! From flags and environment to a client.

use std::path::{Path, PathBuf};

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

use crate::{Env, Error, Target};

/// A client and the namespace to work in.
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) address: String,
}

/// # Errors
/// There is no kubeconfig, or it cannot be used.
pub(crate) async fn connect(target: &Target, env: &Env) -> Result<Connection, Error> {
    let path = kubeconfig(target, env).ok_or(Error::NoPlatform)?;
    let unusable = |source| Error::Kubeconfig { path: path.clone(), source: Box::new(source) };
    let file = Kubeconfig::read_from(&path).map_err(unusable)?;
    let options = KubeConfigOptions { context: target.context.clone(), ..Default::default() };
    let config = Config::from_custom_kubeconfig(file, &options).await.map_err(unusable)?;
    let namespace = target.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let address = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|e| Error::Client(Box::new(e)))?;
    Ok(Connection { client, namespace, address })
}

impl Connection {
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

/// The first that was named or exists.
fn kubeconfig(target: &Target, env: &Env) -> Option<PathBuf> {
    if let Some(path) = &target.kubeconfig {
        return Some(path.clone());
    }
    if let Some(named) = env.vars.get("KUBECONFIG").filter(|v| !v.is_empty()) {
        return named.split(':').map(PathBuf::from).find(|path| path.exists());
    }
    let home = env.vars.get("HOME").map(|home| Path::new(home).join(".kube/config"));
    [Some(data_dir(env)?.join("kubeconfig")), home].into_iter().flatten().find(|path| path.exists())
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
    let endpoints = kubeconfig(target, env)?.with_file_name("endpoints.json");
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
        assert_eq!(kubeconfig(&target, &env), Some("/k".into()));
    }
}
