//! Manifests, indexes and configurations, in OCI's and in Docker's wording.
//!
//! Read leniently (registries differ in what they leave out), written in one fixed order so that the same content
//! always has the same digest. No I/O.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

use super::{ImageConfig, Platform, StoreError};

pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(super) const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(super) const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Bytes of a manifest or index at most; distribution's registries use the same limit.
pub const MANIFEST_MAX: u64 = 4 << 20;
/// Bytes of an image configuration at most.
pub(super) const CONFIG_MAX: u64 = 8 << 20;

/// A pointer to content. Fields we do not use are not kept: manifests are stored as the bytes they came in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<DescribedPlatform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribedPlatform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) media_type: Option<String>,
    pub(super) config: Descriptor,
    #[serde(default, deserialize_with = "or_empty")]
    pub(super) layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    pub(super) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) media_type: Option<String>,
    #[serde(default, deserialize_with = "or_empty")]
    pub(super) manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

/// What a name in a registry stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Document {
    Image(Manifest),
    Index(Index),
}

impl Document {
    /// Reads by the content, not by the header: some registries send the wrong one.
    pub(super) fn parse(what: &str, bytes: &[u8]) -> Result<Self, StoreError> {
        let broken = |problem: String| StoreError::Broken { what: what.to_owned(), problem };
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|e| broken(format!("it is not JSON: {e}")))?;
        let media_type = value.get("mediaType").and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        let is_index = match media_type.as_str() {
            OCI_INDEX | DOCKER_LIST => true,
            OCI_MANIFEST | DOCKER_MANIFEST => false,
            "" if value.get("schemaVersion").and_then(|v| v.as_u64()) == Some(2) => value.get("manifests").is_some(),
            "" => {
                let problem = "it has schema version 1, which registries gave up; push it again with a newer tool";
                return Err(broken(problem.to_owned()));
            }
            _ => return Err(StoreError::MediaType { what: what.to_owned(), media_type }),
        };
        let unreadable = |e: serde_json::Error| broken(e.to_string());
        let document = if is_index {
            Self::Index(serde_json::from_value(value).map_err(unreadable)?)
        } else {
            Self::Image(serde_json::from_value(value).map_err(unreadable)?)
        };
        // A digest names a file later on.
        let bad = document.descriptors().find(|d| !super::digest::is_digest(&d.digest)).map(|d| d.digest.clone());
        match bad {
            Some(bad) => Err(broken(format!("{bad:?} is not a digest"))),
            None => Ok(document),
        }
    }

    pub(super) fn media_type(&self) -> &str {
        match self {
            Self::Image(m) => m.media_type.as_deref().unwrap_or(OCI_MANIFEST),
            Self::Index(i) => i.media_type.as_deref().unwrap_or(OCI_INDEX),
        }
    }

    pub(super) fn subject(&self) -> Option<&Descriptor> {
        match self {
            Self::Image(m) => m.subject.as_ref(),
            Self::Index(i) => i.subject.as_ref(),
        }
    }

    /// Everything this document cannot do without (a subject may be missing).
    pub(super) fn descriptors(&self) -> Box<dyn Iterator<Item = &Descriptor> + '_> {
        match self {
            Self::Image(m) => Box::new(std::iter::once(&m.config).chain(&m.layers)),
            Self::Index(i) => Box::new(i.manifests.iter()),
        }
    }
}

impl Index {
    /// The entry for a platform: same variant first, then one without variant, then any of that architecture. An
    /// index of one entry that names no platform means that entry.
    pub(super) fn choose(&self, want: &Platform) -> Option<&Descriptor> {
        let images = || self.manifests.iter().filter(|d| is_image_like(&d.media_type));
        let fits = |d: &&Descriptor| {
            d.platform.as_ref().is_some_and(|p| p.os == want.os && p.architecture == want.architecture)
        };
        let variant = |d: &Descriptor| d.platform.as_ref().and_then(|p| p.variant.clone()).filter(|v| !v.is_empty());
        images()
            .filter(fits)
            .find(|d| variant(d) == want.variant)
            .or_else(|| images().filter(fits).find(|d| variant(d).is_none()))
            .or_else(|| images().find(fits))
            .or_else(|| match images().collect::<Vec<_>>()[..] {
                [only] if only.platform.is_none() => Some(only),
                _ => None,
            })
    }

    /// `linux/amd64, linux/arm64`, for a message. Attestations (`unknown/unknown`) are no platforms.
    pub(super) fn platforms(&self) -> String {
        let mut seen: Vec<String> = Vec::new();
        for p in self.manifests.iter().filter_map(|d| d.platform.as_ref()).filter(|p| p.os != "unknown") {
            let text = describe(&p.os, &p.architecture, p.variant.as_deref());
            if !seen.contains(&text) {
                seen.push(text);
            }
        }
        if seen.is_empty() { "no platform".to_owned() } else { seen.join(", ") }
    }
}

impl Platform {
    pub fn describe(&self) -> String {
        describe(&self.os, &self.architecture, self.variant.as_deref())
    }
}

fn describe(os: &str, architecture: &str, variant: Option<&str>) -> String {
    match variant {
        Some(v) if !v.is_empty() => format!("{os}/{architecture}/{v}"),
        _ => format!("{os}/{architecture}"),
    }
}

fn is_image_like(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST | OCI_INDEX | DOCKER_LIST)
}

/// The configuration blob.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ConfigFile {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(default, deserialize_with = "or_empty")]
    pub(super) config: RunConfig,
    #[serde(default, deserialize_with = "or_empty")]
    pub(super) rootfs: RootFs,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RootFs {
    #[serde(rename = "type", default)]
    pub(super) kind: String,
    #[serde(default, deserialize_with = "or_empty")]
    pub(super) diff_ids: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RunConfig {
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "String::is_empty")]
    user: String,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "BTreeMap::is_empty")]
    exposed_ports: BTreeMap<String, serde_json::Value>,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    cmd: Vec<String>,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "BTreeMap::is_empty")]
    volumes: BTreeMap<String, serde_json::Value>,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "String::is_empty")]
    working_dir: String,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "String::is_empty")]
    stop_signal: String,
}

impl RunConfig {
    pub(super) fn to_image_config(&self) -> ImageConfig {
        let pair = |text: &String| match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (text.clone(), String::new()),
        };
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        ImageConfig {
            entrypoint: self.entrypoint.clone(),
            cmd: self.cmd.clone(),
            env: self.env.iter().map(pair).collect(),
            working_dir: given(&self.working_dir).map(PathBuf::from),
            user: self.user.clone(),
            exposed_ports: self.exposed_ports.keys().cloned().collect(),
            stop_signal: given(&self.stop_signal),
            volumes: self.volumes.keys().map(PathBuf::from).collect(),
        }
    }

    pub(super) fn from_image_config(config: &ImageConfig) -> Self {
        let nothing = || serde_json::Value::Object(serde_json::Map::new());
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        Self {
            user: config.user.clone(),
            exposed_ports: config.exposed_ports.iter().map(|p| (p.clone(), nothing())).collect(),
            env: config.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            entrypoint: config.entrypoint.clone(),
            cmd: config.cmd.clone(),
            volumes: config.volumes.iter().map(|v| (text(v), nothing())).collect(),
            working_dir: config.working_dir.as_ref().map(text).unwrap_or_default(),
            stop_signal: config.stop_signal.clone().unwrap_or_default(),
        }
    }
}

/// `null` means the default: Docker writes it for every list it has nothing for.
fn or_empty<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(de: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(de)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> String {
        format!("sha256:{}", format!("{n:02x}").repeat(32))
    }

    fn index(platforms: &[&str]) -> Index {
        let entry = |(i, text): (usize, &&str)| {
            let mut parts = text.split('/').map(str::to_owned);
            let os = parts.next().unwrap_or_default();
            let platform = (!os.is_empty()).then(|| DescribedPlatform {
                os,
                architecture: parts.next().unwrap_or_default(),
                variant: parts.next(),
            });
            Descriptor { media_type: OCI_MANIFEST.into(), digest: digest(i as u8), platform, ..Default::default() }
        };
        let manifests = platforms.iter().enumerate().map(entry).collect();
        Index {
            schema_version: 2,
            media_type: None,
            manifests,
            artifact_type: None,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    fn check_choice(platforms: &[&str], want: &str, chosen: Option<usize>) {
        let mut parts = want.split('/').map(str::to_owned);
        let want = Platform { os: parts.next().unwrap(), architecture: parts.next().unwrap(), variant: parts.next() };
        let index = index(platforms);
        let got = index.choose(&want).map(|d| d.digest.clone());
        assert_eq!(got, chosen.map(|i| digest(i as u8)), "{platforms:?} {want:?}");
    }

    #[test]
    fn the_platform_is_chosen_by_variant_then_without_then_any() {
        check_choice(&["linux/arm64", "linux/amd64"], "linux/amd64", Some(1));
        check_choice(&["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7", Some(1));
        check_choice(&["linux/arm/v6", "linux/arm"], "linux/arm/v7", Some(1));
        check_choice(&["linux/amd64/v3", "linux/amd64"], "linux/amd64", Some(1));
        check_choice(&["linux/arm64/v8"], "linux/arm64", Some(0));
        check_choice(&["windows/amd64", "unknown/unknown"], "linux/amd64", None);
        check_choice(&[""], "linux/amd64", Some(0));
        check_choice(&["", ""], "linux/amd64", None);
    }

    #[test]
    fn documents_are_told_apart_by_their_content() {
        let image = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{}","size":1}},"layers":null}}"#,
            digest(1)
        );
        assert!(matches!(Document::parse("m", image.as_bytes()), Ok(Document::Image(_))));
        let list = format!(r#"{{"schemaVersion":2,"mediaType":"{DOCKER_LIST}","manifests":[]}}"#);
        assert!(matches!(Document::parse("m", list.as_bytes()), Ok(Document::Index(_))));
        for (bytes, problem) in [
            (
                r#"{"schemaVersion":1}"#,
                "m is broken: it has schema version 1, which registries gave up; push it again with a newer tool",
            ),
            (
                r#"{"schemaVersion":2,"mediaType":"text/plain"}"#,
                "m has the media type \"text/plain\", which is not an image's",
            ),
            (
                r#"{"schemaVersion":2,"config":{"mediaType":"c","digest":"sha256:../../etc","size":1},"layers":[]}"#,
                "m is broken: \"sha256:../../etc\" is not a digest",
            ),
        ] {
            assert_eq!(Document::parse("m", bytes.as_bytes()).unwrap_err().to_string(), problem);
        }
    }

    #[test]
    fn a_configuration_of_nulls_is_an_empty_one() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Env":["A=1","B"],"Cmd":null,"Entrypoint":["/x"],
            "ExposedPorts":{"80/tcp":{}},"WorkingDir":"","Volumes":null,"User":"1:2"},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let file: ConfigFile = serde_json::from_str(text).unwrap();
        let want = ImageConfig {
            entrypoint: vec!["/x".into()],
            env: vec![("A".into(), "1".into()), ("B".into(), String::new())],
            user: "1:2".into(),
            exposed_ports: vec!["80/tcp".into()],
            ..Default::default()
        };
        assert_eq!(file.config.to_image_config(), want);
        let round = RunConfig::from_image_config(&want).to_image_config();
        assert_eq!(round, want);
        let nothing: ConfigFile = serde_json::from_str(r#"{"config":null}"#).unwrap();
        assert_eq!(nothing.config.to_image_config(), ImageConfig::default());
    }
}
