//! A pod's life: pull, sandbox, init containers, containers, probes, restarts, the end.
//!
//! `restart` and `status` decide and are pure; `state` holds; `pod`, `container` and `probes` act, over the
//! [`crate::machine::Machine`] trait, so that a whole life can be played in a test with a paused clock.

mod container;
pub(crate) mod pod;
mod probes;
mod restart;
pub(crate) mod state;
mod status;
pub(crate) mod storage;

use std::path::PathBuf;
use std::sync::Arc;

use crate::image::{Image, Images};
use crate::launch::Isolation;
use crate::logs::shelf::Shelf;
use crate::machine::Machine;
use crate::pod::{BoxFuture, Credentials, PullPolicy};

/// Why an image is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PullFault {
    /// Kubernetes' word for it.
    pub reason: String,
    pub message: String,
}

/// Where images come from.
pub(crate) trait ImageSource: Send + Sync + 'static {
    fn ensure<'a>(
        &'a self,
        reference: &'a str,
        policy: PullPolicy,
        credentials: &'a [Credentials],
    ) -> BoxFuture<'a, Result<Image, PullFault>>;
}

impl ImageSource for Images {
    fn ensure<'a>(
        &'a self,
        reference: &'a str,
        policy: PullPolicy,
        credentials: &'a [Credentials],
    ) -> BoxFuture<'a, Result<Image, PullFault>> {
        Box::pin(async move {
            Images::ensure(self, reference, policy, credentials)
                .await
                .map_err(|error| PullFault { reason: error.reason().to_owned(), message: error.message() })
        })
    }
}

/// What every pod's life is lived with.
pub(crate) struct World {
    pub machine: Arc<dyn Machine>,
    pub images: Arc<dyn ImageSource>,
    pub isolation: Isolation,
    /// Where all pods' logs are.
    pub logs: Arc<Shelf>,
    /// Where seccomp profiles lie that containers may name.
    pub profiles: PathBuf,
}

#[cfg(test)]
mod tests;
