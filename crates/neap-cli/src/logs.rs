//! `neap logs`: the log of a service's instances, those that sleep included where the platform keeps it.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use futures::io::AsyncBufReadExt;
use futures::stream::{BoxStream, SelectAll};
use futures::{StreamExt, stream};
use http::Request;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use neap_api::keys::serving;
use neap_api::serving::Revision;

use crate::connect::{Connection, connect};
use crate::{Env, Error, Target};

/// How often new revisions and instances are looked for while their log is followed.
const LOOK: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub struct Logs {
    #[command(flatten)]
    target: Target,
    /// The service.
    name: String,
    /// Only this revision.
    #[arg(long, value_name = "NAME")]
    revision: Option<String>,
    /// Go on with what is written from now, until Ctrl-C.
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

/// Lines as they were written; not every application writes text.
type Lines = BoxStream<'static, Result<Vec<u8>, Error>>;

/// What has been found to read.
struct Found {
    /// The platform keeps a log for each revision; a cluster has one for each pod.
    by_revision: bool,
    seen: BTreeSet<String>,
}

impl Logs {
    pub(crate) async fn run(self, env: &Env, out: &mut (dyn Write + Send)) -> Result<(), Error> {
        let connection = connect(&self.target, env).await?;
        let mut found = Found { by_revision: true, seen: BTreeSet::new() };
        let mut logs: SelectAll<Lines> = stream::select_all(self.look(&connection, &mut found).await?);
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        look.reset();
        loop {
            let line = tokio::select! {
                line = logs.next(), if !logs.is_empty() => line,
                _ = look.tick(), if self.follow => {
                    // One look that fails is made up for by the next.
                    logs.extend(self.look(&connection, &mut found).await.unwrap_or_default());
                    continue;
                }
                else => return Ok(()),
            };
            match line {
                Some(line) => {
                    out.write_all(&line?)?;
                    out.flush()?;
                }
                None if self.follow => {}
                None => return Ok(()),
            }
        }
    }

    /// Opens the logs that are there and have not been seen.
    async fn look(&self, connection: &Connection, found: &mut Found) -> Result<Vec<Lines>, Error> {
        let revisions: Api<Revision> = Api::namespaced(connection.client.clone(), &connection.namespace);
        let of_service = ListParams::default().labels(&format!("{}={}", serving::SERVICE, self.name));
        let mut revisions = revisions.list(&of_service).await.map_err(|e| connection.explain(e))?.items;
        let missing = |kind, name: &str| {
            Err(Error::NotFound { kind, name: name.to_owned(), namespace: connection.namespace.clone() })
        };
        if revisions.is_empty() && found.seen.is_empty() {
            return missing("service", &self.name);
        }
        if let Some(wanted) = &self.revision {
            revisions.retain(|revision| revision.name_any() == *wanted);
            if revisions.is_empty() && found.seen.is_empty() {
                return missing("revision", wanted);
            }
        }
        let mut logs = Vec::new();
        for revision in &revisions {
            if found.by_revision {
                let path =
                    format!("/apis/{}/v1/namespaces/{}/revisions", neap_api::serving::GROUP, connection.namespace);
                match self.open(connection, &path, &revision.name_any(), self.container.as_deref(), found).await {
                    Err(Error::NoLog) => found.by_revision = false,
                    opened => {
                        logs.extend(opened?);
                        continue;
                    }
                }
            }
            logs.extend(self.of_pods(connection, revision, found).await?);
        }
        Ok(logs)
    }

    async fn of_pods(
        &self,
        connection: &Connection,
        revision: &Revision,
        found: &mut Found,
    ) -> Result<Vec<Lines>, Error> {
        let pods: Api<Pod> = Api::namespaced(connection.client.clone(), &connection.namespace);
        let ours = ListParams::default().labels(&format!("{}={}", serving::REVISION, revision.name_any()));
        let container = self.container.clone().or_else(|| serving_container(revision));
        let mut logs = Vec::new();
        for pod in pods.list(&ours).await.map_err(|e| connection.explain(e))? {
            let path = format!("/api/v1/namespaces/{}/pods", connection.namespace);
            match self.open(connection, &path, &pod.name_any(), container.as_deref(), found).await {
                // It went, or has not begun: a later look finds out.
                Err(Error::NoLog | Error::Refused { .. }) => {}
                opened => logs.extend(opened?),
            }
        }
        Ok(logs)
    }

    /// One log, unless it has been opened before.
    async fn open(
        &self,
        connection: &Connection,
        path: &str,
        name: &str,
        container: Option<&str>,
        found: &mut Found,
    ) -> Result<Option<Lines>, Error> {
        if found.seen.contains(name) {
            return Ok(None);
        }
        let path = format!("{path}/{name}/log?{}", self.query(container));
        let request = Request::get(path).body(Vec::new()).map_err(|e| Error::Usage(e.to_string()))?;
        match connection.patient.request_stream(request).await {
            Ok(log) => {
                found.seen.insert(name.to_owned());
                Ok(Some(lines(log)))
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Err(Error::NoLog),
            Err(error) => Err(connection.explain(error)),
        }
    }

    fn query(&self, container: Option<&str>) -> String {
        let mut words = vec![format!("follow={}", self.follow), format!("timestamps={}", self.timestamps)];
        words.extend(self.tail.map(|n| format!("tailLines={n}")));
        words.extend(container.map(|c| format!("container={c}")));
        words.join("&")
    }
}

/// Beside it there may be the platform's own.
fn serving_container(revision: &Revision) -> Option<String> {
    let containers = &revision.spec.pod.containers;
    let with_port = containers.iter().find(|c| c.ports.as_ref().is_some_and(|ports| !ports.is_empty()));
    with_port.or(containers.first()).map(|c| c.name.clone()).filter(|name| !name.is_empty())
}

fn lines(log: impl futures::AsyncBufRead + Send + 'static) -> Lines {
    stream::unfold(Some(Box::pin(log)), |log| async {
        let mut log = log?;
        let mut line = Vec::new();
        match log.read_until(b'\n', &mut line).await {
            Ok(0) => None,
            Ok(_) => {
                // The last one may lack its end; the next of another log must not be glued to it.
                if line.last() != Some(&b'\n') {
                    line.push(b'\n');
                }
                Some((Ok(line), Some(log)))
            }
            Err(source) => Some((Err(Error::Log(source)), None)),
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_need_not_be_text_and_a_break_is_told() {
        let whole = lines(futures::io::Cursor::new(b"a\n\xff\xfe\nend".to_vec()));
        let got: Vec<_> = whole.map(|line| line.expect("whole")).collect().await;
        assert_eq!(got, [b"a\n".to_vec(), b"\xff\xfe\n".to_vec(), b"end\n".to_vec()]);

        let broken = stream::iter([Ok(b"a\n".to_vec()), Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe))]);
        let got: Vec<_> = lines(futures::TryStreamExt::into_async_read(broken)).collect().await;
        let [Ok(_), Err(error)] = &got[..] else { panic!("{got:?}") };
        assert!(!error.is_closed_pipe(), "nobody has seen enough");
    }
}
