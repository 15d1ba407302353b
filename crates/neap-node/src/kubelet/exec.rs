//! The `exec` subresource's command and the `attach` subresource's container, which must run. How their streams are
//! carried is told in `talk`.

use neap_runtime::pod::{CommandOptions, CommandSession, Error, PodId};

use super::Kubelet;
use super::logs::{LogsError, choose};
use super::past::Remembered;

/// Why there is no command. The message is what `kubectl exec` prints.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error(transparent)]
    NotFound(LogsError),
    #[error("you must specify at least one command for the container")]
    NoCommand,
    #[error("container not found ({container:?}): it does not run")]
    NotRunning { container: String },
    #[error("container {container:?} of pod {pod:?} cannot be talked with")]
    Runtime { pod: String, container: String, source: Error },
}

impl Kubelet {
    /// Begins a command in a container of a pod that is here. Without a container's name the same one is meant as for
    /// logs.
    ///
    /// # Errors
    /// There is no such container, it does not run, or the machine does not let the command in.
    pub async fn exec(
        &self,
        namespace: &str,
        pod: &str,
        container: Option<&str>,
        command: CommandOptions,
    ) -> Result<CommandSession, ExecError> {
        if command.argv.is_empty() {
            return Err(ExecError::NoCommand);
        }
        let (found, container) = self.find_container(namespace, pod, container)?;
        let begun = self.shared.runtime.exec(&PodId(found.uid.clone()), &container, command).await;
        begun.map_err(|error| failed(error, found.name, container))
    }

    /// The streams of a container's own process.
    ///
    /// # Errors
    /// There is no such container, or it does not run.
    pub async fn attach(
        &self,
        namespace: &str,
        pod: &str,
        container: Option<&str>,
        stdin: bool,
    ) -> Result<CommandSession, ExecError> {
        let (found, container) = self.find_container(namespace, pod, container)?;
        let begun = self.shared.runtime.attach(&PodId(found.uid.clone()), &container, stdin).await;
        begun.map_err(|error| failed(error, found.name, container))
    }

    /// The pod and the container that are meant.
    pub(super) fn find_container(
        &self,
        namespace: &str,
        pod: &str,
        container: Option<&str>,
    ) -> Result<(Remembered, String), ExecError> {
        let missing = || ExecError::NotFound(LogsError::NoSuchPod { name: pod.to_owned() });
        let found = self.shared.names.find(namespace, pod).ok_or_else(missing)?;
        let container = choose(&found, container).map_err(ExecError::NotFound)?;
        Ok((found, container))
    }
}

fn failed(error: Error, pod: String, container: String) -> ExecError {
    match error {
        Error::NoSuchPod(_) => ExecError::NotFound(LogsError::NoSuchPod { name: pod }),
        Error::NoSuchContainer { .. } | Error::NotRunning { .. } => ExecError::NotRunning { container },
        source => ExecError::Runtime { pod, container, source },
    }
}
