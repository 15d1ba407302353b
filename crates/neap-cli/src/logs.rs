//! `neap logs`: the log of a service's instances, those that sleep included.

use std::io::Write;

use futures::io::AsyncBufReadExt;
use futures::{StreamExt, TryStreamExt};
use http::Request;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use neap_api::keys::serving;
use neap_api::serving::Revision;

use crate::connect::connect;
use crate::{Env, Error, Target};

#[derive(Debug, clap::Args)]
pub struct Logs {
    #[command(flatten)]
    target: Target,
    /// The service.
    name: String,
    /// Only this revision.
    #[arg(long, value_name = "NAME")]
    revision: Option<String>,
    /// Go on with what is written from now.
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines of each instance.
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// Only this container.
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Each line with its time.
    #[arg(long)]
    timestamps: bool,
}

impl Logs {
    pub(crate) async fn run(self, env: &Env, out: &mut (dyn Write + Send)) -> Result<(), Error> {
        let connection = connect(&self.target, env).await?;
        let revisions: Api<Revision> = Api::namespaced(connection.client.clone(), &connection.namespace);
        let of_service = ListParams::default().labels(&format!("{}={}", serving::SERVICE, self.name));
        let found = revisions.list(&of_service).await.map_err(|e| connection.explain(e))?;
        let mut names: Vec<String> = found.iter().map(ResourceExt::name_any).collect();
        if names.is_empty() {
            return Err(Error::NotFound { kind: "service", name: self.name, namespace: connection.namespace });
        }
        if let Some(wanted) = &self.revision {
            names.retain(|name| name == wanted);
            if names.is_empty() {
                return Err(Error::NotFound {
                    kind: "revision",
                    name: wanted.clone(),
                    namespace: connection.namespace,
                });
            }
        }
        let mut streams = Vec::new();
        for name in &names {
            let path = format!(
                "/apis/{}/v1/namespaces/{}/revisions/{name}/log?{}",
                neap_api::serving::GROUP,
                connection.namespace,
                self.query()
            );
            let request = Request::get(path).body(Vec::new()).map_err(|e| Error::Usage(e.to_string()))?;
            let stream = connection.client.request_stream(request).await.map_err(|e| connection.explain(e))?;
            streams.push(stream.lines().boxed());
        }
        let mut lines = futures::stream::select_all(streams);
        while let Some(line) = lines.try_next().await? {
            writeln!(out, "{line}")?;
            out.flush()?;
        }
        Ok(())
    }

    fn query(&self) -> String {
        let mut words = vec![format!("follow={}", self.follow), format!("timestamps={}", self.timestamps)];
        words.extend(self.tail.map(|n| format!("tailLines={n}")));
        words.extend(self.container.as_ref().map(|c| format!("container={c}")));
        words.join("&")
    }
}
