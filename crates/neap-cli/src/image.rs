//! `neap image`: archives into the platform's own registry, and what is there. Speaks the registry's HTTP protocol.

use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::TryStreamExt;
use http::{Method, Request, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use indicatif::HumanBytes;
use serde_json::Value;
use tokio_util::io::ReaderStream;

use crate::connect::registry;
use crate::get::columns;
use crate::progress::Progress;
use crate::{Env, Error, Target};

#[derive(Debug, clap::Subcommand)]
pub enum Image {
    /// Load an archive of `docker save`, or an OCI archive, under the names it carries.
    Load(Load),
    /// Load an archive under a name.
    Push(Push),
    /// List images.
    Ls(Ls),
    /// Remove images.
    Rm(Rm),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct At {
    #[command(flatten)]
    target: Target,
    /// The registry [default: that of the running `neap up`]
    #[arg(long, value_name = "HOST:PORT")]
    registry: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Load {
    #[command(flatten)]
    at: At,
    /// The archive, plain or gzipped.
    archive: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct Push {
    #[command(flatten)]
    at: At,
    /// The archive, plain or gzipped.
    archive: PathBuf,
    /// Name of the image, such as hello:1.
    name: String,
}

#[derive(Debug, clap::Args)]
pub struct Ls {
    #[command(flatten)]
    at: At,
}

#[derive(Debug, clap::Args)]
pub struct Rm {
    #[command(flatten)]
    at: At,
    /// Images, such as hello:1.
    #[arg(required = true)]
    names: Vec<String>,
}

type Body = BoxBody<Bytes, std::io::Error>;

impl Image {
    pub(crate) async fn run(self, env: &Env, out: &mut (dyn Write + Send)) -> Result<(), Error> {
        match self {
            Self::Load(Load { at, archive }) => Registry::find(&at, env)?.load(&archive, None, env, out).await,
            Self::Push(Push { at, archive, name }) => {
                Registry::find(&at, env)?.load(&archive, Some(&name), env, out).await
            }
            Self::Ls(Ls { at }) => Registry::find(&at, env)?.list(out).await,
            Self::Rm(Rm { at, names }) => {
                let registry = Registry::find(&at, env)?;
                for name in names {
                    registry.remove(&name).await?;
                    writeln!(out, "image {name} removed")?;
                }
                Ok(())
            }
        }
    }
}

struct Registry {
    address: String,
}

impl Registry {
    fn find(at: &At, env: &Env) -> Result<Self, Error> {
        let address = at.registry.clone().or_else(|| registry(&at.target, env)).ok_or(Error::NoRegistry)?;
        Ok(Self { address })
    }

    /// One request; the status decides whether the answer is one.
    async fn ask(&self, method: Method, path: &str, body: Body) -> Result<(http::response::Parts, Bytes), Error> {
        let fault = |what: String| Error::Registry { address: self.address.clone(), what };
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("accept", "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, application/json")
            .body(body)
            .map_err(|e| Error::Usage(e.to_string()))?;
        let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
        let response = client.request(request).await.map_err(|e| fault(format!("does not answer: {e}")))?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|e| fault(format!("broke off: {e}")))?.to_bytes();
        if parts.status.is_success() {
            return Ok((parts, body));
        }
        let said = serde_json::from_slice::<Value>(&body).ok();
        let message = said.as_ref().and_then(|v| v["errors"][0]["message"].as_str()).map(str::to_owned);
        Err(fault(format!("refused: {}", message.unwrap_or_else(|| refusal(parts.status)))))
    }

    async fn load(
        &self,
        archive: &Path,
        name: Option<&str>,
        env: &Env,
        out: &mut (dyn Write + Send),
    ) -> Result<(), Error> {
        let file =
            tokio::fs::File::open(archive).await.map_err(|source| Error::Read { path: archive.to_owned(), source })?;
        let frames = ReaderStream::new(file).map_ok(Frame::data);
        let query = name.map(|name| format!("?name={}", escaped(name))).unwrap_or_default();
        let mut progress = Progress::new(env);
        progress.say("loading");
        let (_, answer) =
            self.ask(Method::POST, &format!("/neap/load{query}"), BodyExt::boxed(StreamBody::new(frames))).await?;
        drop(progress);
        let answer: Value = serde_json::from_slice(&answer).map_err(std::io::Error::from)?;
        for image in answer["images"].as_array().into_iter().flatten() {
            writeln!(out, "image {} loaded", image.as_str().unwrap_or_default())?;
        }
        Ok(())
    }

    async fn list(&self, out: &mut (dyn Write + Send)) -> Result<(), Error> {
        let mut lines = vec![["IMAGE", "TAG", "DIGEST", "SIZE", "FROM"].map(str::to_owned).to_vec()];
        let (_, answer) = self.ask(Method::GET, "/neap/images", empty()).await?;
        let answer: Value = serde_json::from_slice(&answer).map_err(std::io::Error::from)?;
        for image in answer["images"].as_array().into_iter().flatten() {
            let word = |key: &str| image[key].as_str().unwrap_or("-").to_owned();
            let size = image["size"].as_u64().map_or_else(String::new, |bytes| HumanBytes(bytes).to_string());
            lines.push(vec![word("name"), word("tag"), word("digest"), size, word("origin")]);
        }
        Ok(out.write_all(columns(&lines).as_bytes())?)
    }

    async fn remove(&self, name: &str) -> Result<(), Error> {
        self.ask(Method::DELETE, &format!("/neap/images?name={}", escaped(name)), empty()).await.map(drop)
    }
}

/// As a value of a query: whatever a person typed arrives as it was typed, and is judged there.
fn escaped(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~/:@".contains(byte);
    text.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn refusal(status: StatusCode) -> String {
    match status {
        StatusCode::NOT_FOUND => "there is no such image; `neap image ls` lists what there is".into(),
        other => other.to_string(),
    }
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}
