//! Volumes: config-maps, secrets, tokens and the pod's own fields become files; the rest become directories.
//! Values in, values out; the directory of a claim is made by the worker.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod, Volume as Declared};
use neap_runtime::pod::{Volume, VolumeFile};

use super::env::{NodeFacts, field, resource};
use super::needs::{Found, TOKEN_SECONDS, claim};
use super::secrets::credentials;
use super::spec::pull_policy_of;
use crate::quantity;

/// Kubernetes' mode of files in a volume that says none.
const FILE_MODE: u32 = 0o644;
/// Volume that carries the account's token, the way Kubernetes' admission adds it.
pub(super) const TOKEN_VOLUME: &str = "kube-api-access";

/// One volume, or why it cannot be set up (the pod then waits, with a `FailedMount` event).
pub(super) fn volume(
    declared: &Declared,
    pod: &Pod,
    found: &Found,
    node: &NodeFacts,
    claims: &Path,
) -> Result<Volume, String> {
    if let Some(empty) = &declared.empty_dir {
        let limit = empty.size_limit.as_ref().and_then(|q| quantity::parse(&q.0));
        let size_limit = limit.and_then(|a| u64::try_from(a.units()).ok()).filter(|n| *n > 0);
        return Ok(Volume::EmptyDir { memory: empty.medium.as_deref() == Some("Memory"), size_limit });
    }
    if let Some(image) = &declared.image {
        let reference = image.reference.clone().filter(|r| !r.is_empty()).ok_or("the volume names no image")?;
        let pull = pull_policy_of(image.pull_policy.as_deref(), &reference);
        let credentials = pod.spec.as_ref().map(|spec| credentials(spec, found)).unwrap_or_default();
        return Ok(Volume::Image { reference, pull, credentials });
    }
    if let Some(host) = &declared.host_path {
        return Ok(Volume::HostPath(PathBuf::from(&host.path)));
    }
    if declared.ephemeral.is_some() {
        // It lives and dies with the pod, as an empty directory does.
        return Ok(Volume::EmptyDir { memory: false, size_limit: None });
    }
    if let Some(name) = claim(declared, pod) {
        if !found.claims.contains_key(&name) {
            return Err(format!("persistentvolumeclaim {name:?} not found"));
        }
        return Ok(Volume::HostPath(claim_dir(claims, pod, &name)));
    }
    let mut files = Files::default();
    if let Some(source) = &declared.config_map {
        files.mode = mode(source.default_mode);
        files.keys(Keyed::ConfigMap(&source.name), source.items.as_deref(), source.optional, found)?;
    } else if let Some(source) = &declared.secret {
        files.mode = mode(source.default_mode);
        let name = source.secret_name.as_deref().unwrap_or_default();
        files.keys(Keyed::Secret(name), source.items.as_deref(), source.optional, found)?;
    } else if let Some(source) = &declared.downward_api {
        files.mode = mode(source.default_mode);
        files.downward(source.items.as_deref().unwrap_or_default(), pod, node)?;
    } else if let Some(projected) = &declared.projected {
        files.mode = mode(projected.default_mode);
        for source in projected.sources.iter().flatten() {
            if let Some(s) = &source.config_map {
                files.keys(Keyed::ConfigMap(&s.name), s.items.as_deref(), s.optional, found)?;
            } else if let Some(s) = &source.secret {
                files.keys(Keyed::Secret(&s.name), s.items.as_deref(), s.optional, found)?;
            } else if let Some(s) = &source.downward_api {
                files.downward(s.items.as_deref().unwrap_or_default(), pod, node)?;
            } else if let Some(s) = &source.service_account_token {
                let need = (s.audience.clone().unwrap_or_default(), s.expiration_seconds.unwrap_or(TOKEN_SECONDS));
                let token = found.tokens.get(&need).ok_or("no token was issued for the service account")?;
                files.put(&s.path, token.clone().into_bytes(), None)?;
            } else {
                return Err("a projected source of this kind is not offered here".to_owned());
            }
        }
    } else {
        return Err("a volume of this kind is not offered here".to_owned());
    }
    Ok(Volume::Files(files.files))
}

/// Token, authority and namespace, where every Kubernetes client looks for them.
pub(super) fn token_volume(token: &str, authority: &[u8], namespace: &str) -> Volume {
    let file = |content: &[u8]| VolumeFile { content: content.to_owned(), mode: FILE_MODE };
    Volume::Files(BTreeMap::from([
        (PathBuf::from("token"), file(token.as_bytes())),
        (PathBuf::from("ca.crt"), file(authority)),
        (PathBuf::from("namespace"), file(namespace.as_bytes())),
    ]))
}

/// The directory that is a claim on this machine.
pub(super) fn claim_dir(claims: &Path, pod: &Pod, name: &str) -> PathBuf {
    claims.join(pod.metadata.namespace.as_deref().unwrap_or_default()).join(name)
}

fn mode(mode: Option<i32>) -> u32 {
    mode.and_then(|m| u32::try_from(m).ok()).map_or(FILE_MODE, |m| m & 0o777)
}

#[derive(Default)]
struct Files {
    files: BTreeMap<PathBuf, VolumeFile>,
    mode: u32,
}

/// What has keys, by its name.
#[derive(Clone, Copy)]
enum Keyed<'a> {
    ConfigMap(&'a str),
    Secret(&'a str),
}

impl Keyed<'_> {
    /// `Err`: the sentence for an object that does not exist.
    fn content(self, found: &Found) -> Result<BTreeMap<String, Vec<u8>>, String> {
        match self {
            Self::ConfigMap(name) => {
                let map = found.config_maps.get(name).ok_or_else(|| format!("configmap {name:?} not found"))?;
                let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
                let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
                Ok(text.chain(binary).collect())
            }
            Self::Secret(name) => {
                let secret = found.secrets.get(name).ok_or_else(|| format!("secret {name:?} not found"))?;
                Ok(secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect())
            }
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::ConfigMap(_) => "configmap",
            Self::Secret(_) => "secret",
        }
    }
}

impl Files {
    /// The files of an object's keys: those named, or all.
    fn keys(
        &mut self,
        source: Keyed<'_>,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
        found: &Found,
    ) -> Result<(), String> {
        let content = match source.content(found) {
            Ok(content) => content,
            Err(_) if optional == Some(true) => return Ok(()),
            Err(missing) => return Err(missing),
        };
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            return content.into_iter().try_for_each(|(key, bytes)| self.put(&key, bytes, None));
        };
        for item in items {
            match content.get(&item.key) {
                // Two items may show one key.
                Some(bytes) => self.put(&item.path, bytes.clone(), item.mode)?,
                None if optional == Some(true) => {}
                None => return Err(format!("{} references non-existent config key: {}", source.kind(), item.key)),
            }
        }
        Ok(())
    }

    fn downward(&mut self, items: &[DownwardAPIVolumeFile], pod: &Pod, node: &NodeFacts) -> Result<(), String> {
        for item in items {
            let text = if let Some(r) = &item.field_ref {
                field(pod, &r.field_path, node)?
            } else if let Some(r) = &item.resource_field_ref {
                let first = pod.spec.as_ref().and_then(|s| s.containers.first()).ok_or("the pod has no container")?;
                resource(pod, first, r, node)?
            } else {
                continue;
            };
            self.put(&item.path, text.into_bytes(), item.mode)?;
        }
        Ok(())
    }

    fn put(&mut self, path: &str, content: Vec<u8>, own_mode: Option<i32>) -> Result<(), String> {
        let path = Path::new(path);
        let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
        if !plain || path.as_os_str().is_empty() {
            return Err(format!("{} is not a path inside the volume", path.display()));
        }
        let mode = own_mode.map_or(self.mode, |m| mode(Some(m)));
        self.files.insert(path.to_owned(), VolumeFile { content, mode });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn check(declared: serde_json::Value, want: &str) {
        let map = json!({"metadata": {"name": "m"}, "data": {"a": "1", "b": "2"}, "binaryData": {"c": "Mw=="}});
        let secret = json!({"metadata": {"name": "s"}, "data": {"p": "cGFzcw=="}});
        let mut found = Found::default();
        found.config_maps.insert("m".into(), Arc::new(serde_json::from_value(map).unwrap()));
        found.secrets.insert("s".into(), Arc::new(serde_json::from_value(secret).unwrap()));
        found.claims.insert("data".into(), "u".into());
        found.tokens.insert(("vault".into(), 600), "ticket".into());
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "labels": {"app": "x", "b": "y"}}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let node = NodeFacts::example();
        let declared: Declared = serde_json::from_value(declared).unwrap();
        let got = match volume(&declared, &pod, &found, &node, Path::new("/claims")) {
            Ok(Volume::Files(files)) => files
                .iter()
                .map(|(path, f)| format!("{}:{:o}={}", path.display(), f.mode, String::from_utf8_lossy(&f.content)))
                .collect::<Vec<_>>()
                .join(" "),
            Ok(other) => format!("{other:?}"),
            Err(problem) => problem,
        };
        assert_eq!(got, want);
    }

    #[test]
    fn keys_become_files() {
        check(json!({"name": "v", "configMap": {"name": "m"}}), "a:644=1 b:644=2 c:644=3");
        check(
            json!({"name": "v", "configMap": {"name": "m", "defaultMode": 256, "items": [{"key": "a", "path": "x/y", "mode": 448}, {"key": "b", "path": "z"}]}}),
            "x/y:700=1 z:400=2",
        );
        check(json!({"name": "v", "secret": {"secretName": "s"}}), "p:644=pass");
        check(
            json!({"name": "v", "projected": {"sources": [
                {"configMap": {"name": "m", "items": [{"key": "a", "path": "a"}]}},
                {"secret": {"name": "s"}},
                {"serviceAccountToken": {"path": "t", "audience": "vault", "expirationSeconds": 600}},
                {"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}}),
            "a:644=1 l:644=app=\"x\"\nb=\"y\" p:644=pass t:644=ticket",
        );
    }

    #[test]
    fn directories_are_told_apart() {
        check(json!({"name": "v", "emptyDir": {}}), "EmptyDir { memory: false, size_limit: None }");
        check(
            json!({"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}),
            "EmptyDir { memory: true, size_limit: Some(1048576) }",
        );
        let image = |rest: &str| format!("Image {{ reference: \"r/data{rest}, credentials: [] }}");
        check(json!({"name": "v", "image": {"reference": "r/data:1"}}), &image(":1\", pull: IfNotPresent"));
        check(json!({"name": "v", "image": {"reference": "r/data"}}), &image("\", pull: Always"));
        check(json!({"name": "v", "image": {"reference": "r/data", "pullPolicy": "Never"}}), &image("\", pull: Never"));
        check(json!({"name": "v", "hostPath": {"path": "/x"}}), "HostPath(\"/x\")");
        check(json!({"name": "v", "persistentVolumeClaim": {"claimName": "data"}}), "HostPath(\"/claims/n/data\")");
    }

    #[test]
    fn what_is_missing_or_odd_is_said() {
        check(json!({"name": "v", "configMap": {"name": "no"}}), "configmap \"no\" not found");
        check(json!({"name": "v", "configMap": {"name": "no", "optional": true}}), "");
        check(json!({"name": "v", "secret": {"secretName": "no"}}), "secret \"no\" not found");
        check(
            json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "no", "path": "x"}]}}),
            "configmap references non-existent config key: no",
        );
        check(
            json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "a", "path": "../x"}]}}),
            "../x is not a path inside the volume",
        );
        check(
            json!({"name": "v", "persistentVolumeClaim": {"claimName": "no"}}),
            "persistentvolumeclaim \"no\" not found",
        );
        check(json!({"name": "v", "image": {}}), "the volume names no image");
        check(json!({"name": "v", "nfs": {"server": "a", "path": "b"}}), "a volume of this kind is not offered here");
    }
}
