//! The lines of watches, made once for all watchers. Thousands that watch one kind get the same bytes by reference, so an
//! event costs one encoding and not one for each of them.
//!
//! Only the last few lines are kept: watchers of one event wake together.

use crate::storage::Managed;
use bytes::Bytes;
use neap_store::Revision;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Lines kept: watchers are woken event by event, but not all run at once.
const LINES: usize = 64;
/// Their size together, in bytes.
const KEPT: usize = 1024 * 1024;

#[derive(Default)]
pub(crate) struct Lines(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    lines: VecDeque<(Line, Bytes)>,
    bytes: usize,
}

/// What makes two lines the same.
#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) revision: Revision,
    /// The key of the object: one revision may change several.
    pub(crate) key: Bytes,
    /// `ADDED` and so on: what an event is depends on the watcher's selection.
    pub(crate) kind: &'static str,
    /// How objects of the watcher's version begin.
    pub(crate) head: Arc<str>,
    pub(crate) managed: Managed,
}

impl PartialEq for Line {
    fn eq(&self, other: &Self) -> bool {
        self.revision == other.revision
            && self.kind == other.kind
            && self.managed == other.managed
            && Arc::ptr_eq(&self.head, &other.head)
            && self.key == other.key
    }
}

impl Lines {
    /// The line as it was made before, or as `make` makes it now.
    pub(crate) fn get(&self, line: Line, make: impl FnOnce() -> Bytes) -> Bytes {
        let find =
            |kept: &Kept| kept.lines.iter().rev().find(|(known, _)| *known == line).map(|(_, bytes)| bytes.clone());
        if let Some(known) = find(&self.lock()) {
            return known;
        }
        // Made outside the lock; two that come at once make it twice.
        let made = make();
        if made.len() <= KEPT / LINES {
            let mut kept = self.lock();
            kept.bytes += made.len();
            kept.lines.push_back((line, made.clone()));
            while kept.lines.len() > LINES || kept.bytes > KEPT {
                let Some((_, gone)) = kept.lines.pop_front() else { break };
                kept.bytes -= gone.len();
            }
        }
        made
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lines on their way to one watcher. One alone goes as it is; several go together.
#[derive(Default)]
pub(crate) struct Batch {
    alone: Option<Bytes>,
    several: Vec<u8>,
}

impl Batch {
    pub(crate) fn push(&mut self, line: Bytes) {
        if self.alone.is_none() && self.several.is_empty() {
            self.alone = Some(line);
            return;
        }
        if let Some(first) = self.alone.take() {
            self.several.extend_from_slice(&first);
        }
        self.several.extend_from_slice(&line);
    }

    pub(crate) fn len(&self) -> usize {
        self.alone.as_ref().map_or(0, Bytes::len) + self.several.len()
    }

    pub(crate) fn finish(self) -> Option<Bytes> {
        self.alone.or_else(|| (!self.several.is_empty()).then(|| self.several.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_made_once_and_kept_for_a_while() {
        let (lines, head) = (Lines::default(), Arc::<str>::from("head"));
        let line = |revision: Revision| Line {
            revision,
            key: Bytes::from_static(b"/k"),
            kind: "ADDED",
            head: head.clone(),
            managed: Managed::Shown,
        };
        let first = lines.get(line(1), || Bytes::from(vec![b'x'; 100]));
        let again = lines.get(line(1), || unreachable!("it is known"));
        assert_eq!(first.as_ptr(), again.as_ptr());
        for revision in 2..=LINES as u64 + 1 {
            lines.get(line(revision), || Bytes::from_static(b"y"));
        }
        assert_eq!(lines.get(line(1), || Bytes::from_static(b"anew")), "anew");
        let large = Bytes::from(vec![b'z'; KEPT]);
        lines.get(line(99), || large.clone());
        assert_eq!(lines.get(line(99), || Bytes::from_static(b"not kept")), "not kept");
        assert!(lines.lock().bytes <= KEPT);
    }

    #[test]
    fn one_line_is_not_copied() {
        let line = Bytes::from_static(b"one");
        let mut batch = Batch::default();
        batch.push(line.clone());
        assert_eq!(batch.finish().unwrap().as_ptr(), line.as_ptr());
        let mut batch = Batch::default();
        batch.push(line.clone());
        batch.push(line);
        assert_eq!((batch.len(), batch.finish().unwrap()), (6, Bytes::from_static(b"oneone")));
        assert!(Batch::default().finish().is_none());
    }
}
