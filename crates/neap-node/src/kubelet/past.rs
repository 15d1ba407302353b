//! Names of pods that were here, so that their kept logs can still be asked for. A plain list with a bound, written
//! aside and renamed; losing it costs nothing but names.

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Pods remembered. The runtime keeps logs for fewer.
const KEPT: usize = 1000;
const FORMAT: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// Regular containers first, init containers after them.
    pub(super) containers: Vec<String>,
    /// Container whose log is meant when none is named.
    pub(super) default: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Past {
    format: u32,
    /// Latest last.
    pods: VecDeque<Remembered>,
}

impl Past {
    /// What is unreadable is forgotten.
    pub(super) fn read(path: &Path) -> Self {
        let read = || serde_json::from_slice::<Self>(&std::fs::read(path).ok()?).ok();
        read().filter(|past| past.format == FORMAT).unwrap_or_default()
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let aside = path.with_extension("new");
        std::fs::write(&aside, serde_json::to_vec(self)?)?;
        std::fs::rename(&aside, path)
    }

    pub(super) fn remember(&mut self, pod: Remembered) {
        self.format = FORMAT;
        self.pods.retain(|p| p.uid != pod.uid);
        self.pods.push_back(pod);
        while self.pods.len() > KEPT {
            self.pods.pop_front();
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Remembered> {
        self.pods.iter()
    }

    /// The latest pod of that name, or the one with that UID.
    pub(super) fn find(&self, namespace: &str, name_or_uid: &str) -> Option<&Remembered> {
        let fits = |p: &&Remembered| p.namespace == namespace && (p.name == name_or_uid || p.uid == name_or_uid);
        self.pods.iter().rev().find(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, uid: &str) -> Remembered {
        let namespace = "n".to_owned();
        Remembered { namespace, name: name.into(), uid: uid.into(), containers: vec!["c".into()], default: None }
    }

    #[test]
    fn the_latest_of_a_name_is_found_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("past.json");
        let mut past = Past::read(&path);
        for (name, uid) in [("a", "1"), ("a", "2"), ("b", "3")] {
            past.remember(pod(name, uid));
        }
        past.write(&path).unwrap();
        let past = Past::read(&path);
        let uid = |who: &str| past.find("n", who).map(|p| p.uid.clone());
        assert_eq!((uid("a").as_deref(), uid("1").as_deref(), uid("none")), (Some("2"), Some("1"), None));
        assert_eq!(past.find("other", "a"), None);
    }

    #[test]
    fn the_oldest_is_forgotten_and_garbage_is_nothing() {
        let mut past = Past::default();
        for i in 0..=KEPT {
            past.remember(pod("a", &i.to_string()));
        }
        assert_eq!((past.pods.len(), past.find("n", "0")), (KEPT, None));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("past.json");
        std::fs::write(&path, "garbage").unwrap();
        assert_eq!(Past::read(&path), Past::default());
    }
}
