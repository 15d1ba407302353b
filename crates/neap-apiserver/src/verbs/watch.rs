//! Watch: the events of a range as a stream of JSON lines, from a revision on.
//!
//! The stream holds a cursor into the store's history and at most one batch of lines. It ends with its timeout, with the
//! server, or with an ERROR event when the client was too slow.

use super::lines::{Batch, Line};
use super::list::{self, Filter};
use crate::codec::{Body, BoxError, Format, View};
use crate::request;
use crate::server::Exchange;
use crate::status::{ApiError, Result, to_value};
use crate::{codec, storage, table};
use bytes::Bytes;
use futures::stream;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use neap_store::{Entry, Event, Revision, Watch};
use serde_json::{Value, json};
use std::task::Poll;
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Kubernetes ends a watch that names no timeout after 30 to 60 minutes (`--min-request-timeout`).
const TIMEOUT: Duration = Duration::from_secs(1800);
/// The longest that a watch may ask for.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often a quiet watch tells its revision; Kubernetes sends bookmarks about once a minute.
const BOOKMARK: Duration = Duration::from_secs(60);
/// Bytes after which a batch of lines is handed over.
const BATCH: usize = 64 * 1024;
/// On the bookmark that ends the initial events of a streaming list.
const INITIAL_END: &str = "k8s.io/initial-events-end";

struct Stream {
    x: Exchange,
    filter: Filter,
    initial: std::vec::IntoIter<Entry>,
    /// The bookmark after the initial events is due.
    initial_mark: bool,
    start: Revision,
    watch: Option<Watch>,
    deadline: std::pin::Pin<Box<Sleep>>,
    bookmark: std::pin::Pin<Box<Sleep>>,
    shutdown: tokio_util::sync::CancellationToken,
    /// Column definitions are sent with the first table only.
    headed: bool,
    done: bool,
}

pub(crate) fn answer(x: &Exchange) -> Result<Response<Body>> {
    let q = &x.query;
    if x.wanted.format == Format::Yaml {
        return Err(ApiError::NotAcceptable { accepted: "application/json;stream=watch" });
    }
    request::check_list(q, true)?;
    let filter = Filter::of(x)?;
    let current = x.server.store.revision();
    let asked = request::revision(&q.resource_version)?.unwrap_or(0);
    if asked > current {
        return Err(ApiError::FutureRevision { asked, current });
    }
    let wants_state = q.initial_events.unwrap_or(asked == 0);
    let (initial, start) = if wants_state {
        let unlimited = list::find(&unpaged(x), &filter, None, None)?;
        (unlimited.entries, unlimited.revision)
    } else {
        (Vec::new(), if asked == 0 { current } else { asked })
    };
    let watch = match x.server.store.watch(filter.prefix(x).as_bytes(), start) {
        Ok(watch) => watch,
        Err(neap_store::Error::Compacted { requested, compacted }) => {
            let error = ApiError::Expired(format!("too old resource version: {requested} ({compacted})"));
            return Ok(respond(stream::iter([line("ERROR", &to_value(&error.status()))])));
        }
        Err(error) => return Err(storage::store_error(&error, &x.kind().id(), "")),
    };
    let timeout =
        q.timeout_seconds.map(|s| Duration::from_secs(s).min(LONGEST)).filter(|t| !t.is_zero()).unwrap_or_else(|| {
            TIMEOUT + Duration::from_millis(x.server.chance(|r| r.u64(..TIMEOUT.as_millis() as u64)))
        });
    let now = Instant::now();
    let state = Stream {
        initial_mark: wants_state && q.initial_events == Some(true) && q.bookmarks,
        initial: initial.into_iter(),
        start,
        watch: Some(watch),
        deadline: Box::pin(tokio::time::sleep_until(now + timeout)),
        bookmark: Box::pin(tokio::time::sleep_until(now + BOOKMARK)),
        shutdown: x.server.config.shutdown.clone(),
        headed: false,
        done: false,
        filter,
        x: x.clone(),
    };
    Ok(respond(stream::unfold(state, |mut state| async move {
        let bytes = state.step().await?;
        Some((bytes, state))
    })))
}

fn unpaged(x: &Exchange) -> Exchange {
    let mut x = x.clone();
    x.query.limit = 0;
    x.query.continue_token.clear();
    x
}

fn respond(lines: impl futures::Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    use futures::StreamExt;
    let frames = lines.map(|bytes| Ok::<_, BoxError>(Frame::data(bytes)));
    codec::typed(200, "application/json", StreamBody::new(frames).boxed_unsync())
}

impl Stream {
    /// The next batch of lines; `None` ends the watch.
    async fn step(&mut self) -> Option<Bytes> {
        loop {
            if self.done {
                return None;
            }
            if let Some(bytes) = self.initial_batch() {
                return Some(bytes);
            }
            // A busy watch ends in time too.
            if Instant::now() >= self.deadline.deadline() {
                self.done = true;
                return self.x.query.bookmarks.then(|| self.mark(false));
            }
            let watch = self.watch.as_mut()?;
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return None,
                event = watch.next() => {
                    let mut out = Batch::default();
                    let mut next = event;
                    loop {
                        match next {
                            Some(Ok(event)) => self.event(&mut out, &event),
                            Some(Err(lagged)) => {
                                let why = format!("too old resource version: {} (the client reads too slowly)", lagged.seen);
                                out.push(line("ERROR", &to_value(&ApiError::Expired(why).status())));
                                self.done = true;
                            }
                            None => self.done = true,
                        }
                        if self.done || out.len() >= BATCH {
                            break;
                        }
                        match self.watch.as_mut().map(Watch::try_next) {
                            Some(Poll::Ready(more)) => next = more,
                            _ => break,
                        }
                    }
                    if let Some(bytes) = out.finish() {
                        return Some(bytes);
                    }
                }
                () = self.bookmark.as_mut() => {
                    self.bookmark.as_mut().reset(Instant::now() + BOOKMARK);
                    if !self.is_served() {
                        return None;
                    }
                    if self.x.query.bookmarks {
                        return Some(self.mark(false));
                    }
                }
                () = self.deadline.as_mut() => {
                    self.done = true;
                    if self.x.query.bookmarks {
                        return Some(self.mark(false));
                    }
                }
            }
        }
    }

    /// Whether the kind is still there, and has the shape that this watch shows.
    fn is_served(&self) -> bool {
        let (kind, version) = (self.x.kind(), self.x.served.version());
        let kinds = self.x.server.registry.kinds();
        let now = kinds.get(&kind.group, &kind.plural);
        now.is_some_and(|now| {
            now.namespaced == kind.namespaced
                && now.version(&version.name).is_some_and(|v| v.served && v.head == version.head)
        })
    }

    fn initial_batch(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while out.len() < BATCH {
            let Some(entry) = self.initial.next() else {
                if std::mem::take(&mut self.initial_mark) {
                    out.extend_from_slice(&self.mark(true));
                }
                break;
            };
            self.put(&mut out, "ADDED", &entry.value, entry.modified);
        }
        (!out.is_empty()).then(|| out.into())
    }

    fn event(&mut self, out: &mut Batch, event: &Event) {
        let holds = |v: &Option<Bytes>| v.as_ref().is_some_and(|v| self.filter.matches(&self.x, &event.key, v));
        let (before, after) = (holds(&event.previous), holds(&event.value));
        let (kind, stored) = match (before, after) {
            (false, true) => ("ADDED", &event.value),
            (true, true) => ("MODIFIED", &event.value),
            // An object that left the selection is, for this watcher, deleted; as it was when it still matched.
            (true, false) => ("DELETED", &event.previous),
            (false, false) => return,
        };
        let Some(stored) = stored else { return };
        let make = |this: &mut Self| {
            let mut line = Vec::new();
            this.put(&mut line, kind, stored, event.revision);
            Bytes::from(line)
        };
        if self.x.wanted.view != View::Whole || !super::same_version(&self.x) {
            return out.push(make(self));
        }
        let line = Line {
            revision: event.revision,
            key: event.key.clone(),
            kind,
            head: self.x.served.version().head.clone(),
            managed: self.x.managed,
        };
        let server = self.x.server.clone();
        out.push(server.lines.get(line, || make(self)));
    }

    fn put(&mut self, out: &mut Vec<u8>, kind: &str, stored: &[u8], revision: Revision) {
        let from = out.len();
        out.extend_from_slice(format!(r#"{{"type":"{kind}","object":"#).as_bytes());
        if let Err(error) = self.object(out, stored, revision) {
            out.truncate(from);
            out.extend_from_slice(&line("ERROR", &to_value(&error.status())));
            self.done = true;
            return;
        }
        out.extend_from_slice(b"}\n");
    }

    fn object(&mut self, out: &mut Vec<u8>, stored: &[u8], revision: Revision) -> Result<()> {
        if self.x.wanted.view == View::Whole {
            return super::served_bytes(&self.x, out, stored, revision);
        }
        let mut bytes = Vec::new();
        super::served_bytes(&self.x, &mut bytes, stored, revision)?;
        let object: Value = serde_json::from_slice(&bytes).map_err(ApiError::internal)?;
        let shown = match self.x.wanted.view {
            View::Partial | View::PartialList => table::partial(&self.x, object),
            _ => {
                let head = !std::mem::replace(&mut self.headed, true);
                table::table(&self.x, &[object], json!({"resourceVersion": revision.to_string()}), head)
            }
        };
        serde_json::to_writer(out, &shown).map_err(ApiError::internal)
    }

    fn mark(&mut self, ends_initial: bool) -> Bytes {
        let revision = match &mut self.watch {
            Some(watch) if !ends_initial => watch.progress(),
            _ => self.start,
        };
        let mut meta = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if ends_initial {
            meta["annotations"] = json!({INITIAL_END: "true"});
        }
        let version = self.x.served.version();
        let object = match self.x.wanted.view {
            View::Partial | View::PartialList => {
                json!({"apiVersion": table::api_version(&self.x), "kind": "PartialObjectMetadata", "metadata": meta})
            }
            View::Whole => json!({"apiVersion": version.api_version, "kind": self.x.kind().kind, "metadata": meta}),
            View::Table => {
                let inner = json!({"apiVersion": version.api_version, "kind": self.x.kind().kind, "metadata": meta});
                let head = !std::mem::replace(&mut self.headed, true);
                let mut t = table::table(&self.x, &[], json!({"resourceVersion": revision.to_string()}), head);
                // A bookmark's table has one empty row that carries the annotation.
                t["rows"] = json!([{"cells": [], "object": inner}]);
                t
            }
        };
        line("BOOKMARK", &object)
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").into()
}
