//! Watches as one kind of change, for loops that keep a plain index. The loop owns the index; this module only turns
//! a watch (with its reconnects and relists) into apply, delete and reset.

use std::fmt::Debug;
use std::hash::Hash;

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

/// What happened to a kind.
pub(crate) enum Change<K> {
    Apply(K),
    Delete(K),
    /// Everything there is; what the index holds beside it is gone.
    Reset(Vec<K>),
}

/// Follows a kind for ever. A watch that breaks is resumed with back-off and logged once per break.
pub(crate) fn changes<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = Change<K>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Eq + Hash + Clone + Default,
{
    let plural = K::plural(&K::DynamicType::default()).into_owned();
    gather(watcher(api, config).default_backoff(), plural)
}

/// The same for any stream of watch events.
pub(crate) fn gather<K: Send + 'static>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send,
    plural: String,
) -> impl Stream<Item = Change<K>> + Send {
    let mut listed = Vec::new();
    events.filter_map(move |event| {
        let change = match event {
            Ok(watcher::Event::Init) => {
                listed.clear();
                None
            }
            Ok(watcher::Event::InitApply(object)) => {
                listed.push(object);
                None
            }
            Ok(watcher::Event::InitDone) => Some(Change::Reset(std::mem::take(&mut listed))),
            Ok(watcher::Event::Apply(object)) => Some(Change::Apply(object)),
            Ok(watcher::Event::Delete(object)) => Some(Change::Delete(object)),
            Err(error) => {
                tracing::warn!(%plural, error = %error, "the watch broke and is made again");
                None
            }
        };
        std::future::ready(change)
    })
}

/// Several feeds as one.
pub(crate) fn merged<T: Send + 'static>(feeds: Vec<BoxStream<'static, T>>) -> impl Stream<Item = T> + Send + Unpin {
    stream::select_all(feeds)
}
