//! Registry credentials out of pull secrets, in both of Docker's file formats.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PodSpec, Secret};
use neap_runtime::pod::Credentials;
use serde::Deserialize;

use super::needs::Found;

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    /// base64 of `username:password`; used when the two are not given apart.
    #[serde(default)]
    auth: String,
    /// An OAuth refresh token, given as the password of the user `<token>`.
    #[serde(default)]
    identitytoken: String,
}

/// Credentials of the pod's own pull secrets, then of its account's, most specific registry first.
pub(super) fn credentials(spec: &PodSpec, found: &Found) -> Vec<Credentials> {
    let own = spec.image_pull_secrets.iter().flatten();
    let accounts = found.account.iter().flat_map(|a| a.image_pull_secrets.iter().flatten());
    let secrets = own.chain(accounts).filter_map(|r| found.secrets.get(&r.name));
    let mut list: Vec<Credentials> = secrets.flat_map(|secret| of_secret(secret)).collect();
    // Stable: among equally specific ones the pod's own come first.
    list.sort_by_key(|c| std::cmp::Reverse(c.registry.len()));
    list
}

/// Credentials out of a docker configuration, `{"auths": {…}}`.
///
/// # Errors
/// It is no such configuration.
pub fn docker_credentials(config: &[u8]) -> Result<Vec<Credentials>, serde_json::Error> {
    serde_json::from_slice::<ConfigFile>(config).map(|file| credentials_of(file.auths))
}

fn of_secret(secret: &Secret) -> Vec<Credentials> {
    let data = |key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map(|v| v.0.as_slice());
    let read = if let Some(bytes) = data(".dockerconfigjson") {
        docker_credentials(bytes)
    } else if let Some(bytes) = data(".dockercfg") {
        serde_json::from_slice(bytes).map(credentials_of)
    } else {
        return Vec::new();
    };
    read.unwrap_or_else(|error| {
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        tracing::warn!(secret = name, %error, "a pull secret is not a docker configuration and is not used");
        Vec::new()
    })
}

fn credentials_of(entries: BTreeMap<String, Entry>) -> Vec<Credentials> {
    entries.into_iter().filter_map(|(registry, entry)| entry.credentials(registry)).collect()
}

impl Entry {
    fn credentials(self, registry: String) -> Option<Credentials> {
        let (username, password) = if !self.identitytoken.is_empty() {
            ("<token>".to_owned(), self.identitytoken)
        } else if !self.username.is_empty() {
            (self.username, self.password)
        } else {
            let text = String::from_utf8(decode(&self.auth)?).ok()?;
            let (username, password) = text.split_once(':')?;
            (username.to_owned(), password.trim_end_matches('\0').to_owned())
        };
        Some(Credentials { registry, username, password })
    }
}

/// Padded or not: people paste both.
fn decode(text: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&base64::alphabet::STANDARD, config).decode(text.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn secret(name: &str, key: &str, content: serde_json::Value) -> (String, Arc<Secret>) {
        let data = BTreeMap::from([(key.to_owned(), k8s_openapi::ByteString(content.to_string().into_bytes()))]);
        (name.to_owned(), Arc::new(Secret { data: Some(data), ..Default::default() }))
    }

    #[test]
    fn both_formats_are_read_and_the_specific_comes_first() {
        let mut found = Found::default();
        found.secrets.extend([
            secret(
                "own",
                ".dockerconfigjson",
                json!({"auths": {
                    "ghcr.io": {"username": "a", "password": "b"},
                    "ghcr.io/team": {"auth": "YzpkOmU="},
                }}),
            ),
            secret("old", ".dockercfg", json!({"https://index.docker.io/v1/": {"username": "x", "password": "y"}})),
            secret("broken", ".dockerconfigjson", json!([1])),
            secret("token", ".dockerconfigjson", json!({"auths": {"az.io": {"identitytoken": "t"}}})),
        ]);
        let account = json!({"imagePullSecrets": [{"name": "old"}, {"name": "token"}]});
        found.account = Some(Arc::new(serde_json::from_value(account).unwrap()));
        let spec =
            json!({"imagePullSecrets": [{"name": "own"}, {"name": "absent"}, {"name": "broken"}], "containers": []});
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let got: Vec<String> = credentials(&spec, &found)
            .iter()
            .map(|c| format!("{} {} {}", c.registry, c.username, c.password))
            .collect();
        assert_eq!(got, ["https://index.docker.io/v1/ x y", "ghcr.io/team c d:e", "ghcr.io a b", "az.io <token> t"]);
    }
}
