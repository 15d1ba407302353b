//! The `log` subresource's stream, for pods that are here and for pods that were.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use neap_runtime::pod::{Error, LogOptions, LogStream, PodId};
use tokio::task::JoinSet;

use super::Kubelet;
use super::past::{Past, Remembered};

/// Names the container that is meant when none is named.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Why there is no log. The message is what `kubectl logs` prints.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    #[error("pods {name:?} not found")]
    NoSuchPod { name: String },
    #[error("a container name must be specified for pod {pod}, choose one of: [{}]", containers.join(" "))]
    WhichContainer { pod: String, containers: Vec<String> },
    #[error("container {container} is not valid for pod {pod}")]
    NoSuchContainer { pod: String, container: String },
    #[error("previous terminated container {container:?} in pod {pod:?} not found")]
    NoPrevious { pod: String, container: String },
    #[error("container {container:?} in pod {pod:?} is waiting to start")]
    NotStarted { pod: String, container: String },
    #[error("the log of container {container:?} in pod {pod:?} cannot be read")]
    Runtime { pod: String, container: String, source: Error },
}

impl Kubelet {
    /// The log of a container. `pod` is a name or a UID; a pod that was deleted is found as long as its log is kept.
    pub async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        container: Option<&str>,
        options: LogOptions,
    ) -> Result<LogStream, LogsError> {
        let found = self.shared.names.find(namespace, pod);
        let found = found.ok_or_else(|| LogsError::NoSuchPod { name: pod.to_owned() })?;
        let container = choose(&found, container)?;
        let id = PodId(found.uid.clone());
        let stream = self.shared.runtime.logs(&id, &container, options).await;
        stream.map_err(|error| {
            let (pod, live) = (found.name.clone(), self.shared.runtime.status(&id).is_some());
            match error {
                Error::NoPreviousLog { .. } => LogsError::NoPrevious { pod, container },
                Error::NoSuchContainer { .. } | Error::NoSuchPod(_) if live => LogsError::NotStarted { pod, container },
                Error::NoSuchPod(_) => LogsError::NoSuchPod { name: pod },
                Error::NoSuchContainer { .. } => LogsError::NoSuchContainer { pod, container },
                source => LogsError::Runtime { pod, container, source },
            }
        })
    }
}

impl Kubelet {
    /// UIDs of pods, gone ones first, whose names begin so.
    pub fn pods_named(&self, namespace: &str, prefix: &str) -> Vec<String> {
        let state = lock(&self.shared.names.state);
        let all = state.past.iter().chain(state.here.values());
        all.filter(|p| p.namespace == namespace && p.name.starts_with(prefix)).map(|p| p.uid.clone()).collect()
    }
}

pub(super) fn choose(pod: &Remembered, asked: Option<&str>) -> Result<String, LogsError> {
    let asked = asked.filter(|name| !name.is_empty());
    match asked.or(pod.default.as_deref()) {
        Some(name) if pod.containers.iter().any(|c| c == name) => Ok(name.to_owned()),
        Some(name) => Err(LogsError::NoSuchContainer { pod: pod.name.clone(), container: name.to_owned() }),
        None => match &pod.containers[..] {
            [only] => Ok(only.clone()),
            several => Err(LogsError::WhichContainer { pod: pod.name.clone(), containers: several.to_vec() }),
        },
    }
}

/// Who is and who was here, by name.
pub(super) struct Names {
    file: PathBuf,
    state: Arc<Mutex<State>>,
    /// Held by who writes the file: nobody who only looks waits for the disk.
    writing: Arc<Mutex<()>>,
}

struct State {
    here: HashMap<PodId, Remembered>,
    past: Past,
}

impl Names {
    pub(super) fn open(file: PathBuf) -> Self {
        let state = State { here: HashMap::new(), past: Past::read(&file) };
        Self { file, state: Arc::new(Mutex::new(state)), writing: Arc::default() }
    }

    pub(super) fn here(&self, pod: &Pod) {
        let spec = pod.spec.as_ref();
        let names = |list: Option<&Vec<k8s_openapi::api::core::v1::Container>>| -> Vec<String> {
            list.into_iter().flatten().map(|c| c.name.clone()).collect()
        };
        let mut containers = names(spec.map(|s| &s.containers));
        let first = containers.first().cloned();
        let init = names(spec.and_then(|s| s.init_containers.as_ref()));
        // With init containers beside it a single container is still what is meant.
        let only = (containers.len() == 1).then_some(first).flatten();
        containers.extend(init);
        let uid = pod.uid().unwrap_or_default();
        let remembered = Remembered {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            uid: uid.clone(),
            containers,
            default: pod.annotations().get(DEFAULT_CONTAINER).cloned().or(only),
        };
        lock(&self.state).here.insert(PodId(uid), remembered);
    }

    /// Moves a pod to the past and writes that down beside everything else.
    pub(super) fn gone<T: Default + Send + 'static>(&self, id: &PodId, tasks: &mut JoinSet<T>) {
        let mut state = lock(&self.state);
        let Some(pod) = state.here.remove(id) else { return };
        state.past.remember(pod);
        let (file, state, writing) = (self.file.clone(), self.state.clone(), self.writing.clone());
        // Whoever writes last writes the latest.
        tasks.spawn_blocking(move || {
            let _one_at_a_time = writing.lock().unwrap_or_else(PoisonError::into_inner);
            let past = lock(&state).past.clone();
            if let Err(error) = past.write(&file) {
                tracing::warn!(%error, path = %file.display(), "the names of past pods cannot be written");
            }
            T::default()
        });
    }

    pub(super) fn find(&self, namespace: &str, name_or_uid: &str) -> Option<Remembered> {
        let state = lock(&self.state);
        let fits = |p: &&Remembered| p.namespace == namespace && (p.name == name_or_uid || p.uid == name_or_uid);
        state.here.values().find(fits).or_else(|| state.past.find(namespace, name_or_uid)).cloned()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(spec: serde_json::Value, annotations: serde_json::Value, asked: Option<&str>, want: &str) {
        let dir = tempfile::tempdir().unwrap();
        let names = Names::open(dir.path().join("past.json"));
        let pod =
            json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "annotations": annotations}, "spec": spec});
        names.here(&serde_json::from_value(pod).unwrap());
        let found = names.find("n", "p").unwrap();
        let got = choose(&found, asked).unwrap_or_else(|e| e.to_string());
        assert_eq!(got, want);
    }

    #[test]
    fn the_container_that_is_meant_is_found() {
        let one = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]});
        let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let none = json!({});
        check(one.clone(), none.clone(), None, "a");
        check(one.clone(), none.clone(), Some("i"), "i");
        check(one, none.clone(), Some("x"), "container x is not valid for pod p");
        check(two.clone(), none.clone(), Some("b"), "b");
        check(two.clone(), none, None, "a container name must be specified for pod p, choose one of: [a b]");
        check(two, json!({"kubectl.kubernetes.io/default-container": "b"}), None, "b");
    }
}
