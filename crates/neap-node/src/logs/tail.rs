//! All logs of this machine being read: which pods there are, whose turn it is, what is left. Synchronous: it looks at
//! the disk and at nothing else, and is told the time.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use neap_runtime::pod::PodId;
use neap_runtime::shelf::{PodLogs, RunLog, Shelf, VOLUME_FILES};

use super::batch::{Batch, Bounds, Whose};
use super::checkpoint::{Checkpoint, LogKey, Position};
use super::reading::{Losses, Manner, Reading};
use super::record::Origin;
use super::{Naming, VolumeName};

/// Bytes read at once, and most that one log gets before it is the next one's turn.
const TURN: usize = 64 * 1024;
/// Ended pods that are read at once; the others wait. Each costs descriptors.
const ENDED_AT_ONCE: usize = 32;
/// Bytes of begun lines in all; beyond that they are sent in pieces.
const BEGUN: usize = 16 << 20;
/// Files of volumes that are open in all. Beyond that no other one is looked at.
const OPEN: usize = 4096;
/// Files of one pod that are held open for what is unread in them although they are out of sight: as many as a look tells
/// of, which may all be others at the next. Beyond that those out of sight for longest are given up.
const GONE: usize = VOLUME_FILES;
/// Bytes of those that have no name any more. Nobody else can see that they take room on the disk.
const GONE_BYTES: u64 = 256 << 20;

pub(super) struct Tail {
    shelf: Arc<Shelf>,
    file: PathBuf,
    checkpoint: Checkpoint,
    /// The checkpoint on the disk is an older one.
    dirty: bool,
    pods: BTreeMap<String, Pod>,
    /// Living pods that were seen once without a word of whose they are: it is about to be written.
    nameless: HashSet<String>,
    /// Whose turn it was last.
    last: Option<Whose>,
    /// The latest time that was given to a line of a file: no two have the same, or Loki would take them for one.
    told: u64,
    looks: u64,
    buffer: Vec<u8>,
}

struct Pod {
    pod: PodLogs,
    /// It has ended.
    over: bool,
    logs: BTreeMap<LogKey, Log>,
    crowded: bool,
}

struct Log {
    reading: Reading,
    /// What has arrived.
    arrived: Option<Position>,
    /// The look in which it was first out of sight.
    gone: Option<u64>,
}

/// What one look has at hand.
struct Looking<'a> {
    shelf: &'a Shelf,
    checkpoint: &'a mut Checkpoint,
    wishes: &'a Wishes,
    losses: &'a mut Losses,
    number: u64,
    /// Files of volumes that may still be opened.
    room: usize,
}

/// What is looked for, and how it is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    pub(super) volume: Option<VolumeName>,
    pub(super) naming: Naming,
    pub(super) json_severity: bool,
}

impl Log {
    /// Nothing of it is left to be sent, and nothing will come.
    fn is_done(&self) -> bool {
        let here = self.reading.position();
        let nothing = here.is_none_or(|at| at.offset == 0 && self.arrived.is_none());
        self.reading.over && self.reading.at_end && (nothing || here == self.arrived)
    }
}

impl Tail {
    /// Goes on where the file says.
    pub(super) fn open(shelf: Arc<Shelf>, file: &Path) -> Self {
        Self {
            shelf,
            checkpoint: Checkpoint::read(file),
            file: file.to_owned(),
            dirty: false,
            pods: BTreeMap::new(),
            nameless: HashSet::new(),
            last: None,
            told: 0,
            looks: 0,
            buffer: vec![0; TURN],
        }
    }

    /// Sees what is there now. Comes back with what was lost since the last look.
    pub(super) fn look(&mut self, wishes: &Wishes) -> io::Result<Losses> {
        let mut losses = Losses::default();
        let names: HashSet<String> = self.shelf.names()?.into_iter().collect();
        self.dirty |= self.checkpoint.retain(&names);
        self.pods.retain(|name, pod| {
            let stays = names.contains(name);
            if !stays {
                pod.logs.values_mut().for_each(|log| log.reading.give_up(&mut losses));
            }
            stays
        });
        let mut unread: HashSet<PodId> = HashSet::new();
        let mut ended = self.pods.values().filter(|pod| pod.over).count();
        let mut room = OPEN.saturating_sub(self.pods.values().map(Pod::files).sum());
        self.looks += 1;
        // In the order of their names, so that the same ones are read on.
        for name in names.into_iter().collect::<BTreeSet<_>>() {
            if self.checkpoint.is_done(&name) {
                continue;
            }
            if !self.pods.contains_key(&name) {
                let Some(pod) = self.shelf.pod(&name) else { continue };
                let over = !self.shelf.lives(&pod.id);
                if !over && !pod.is_described() && self.nameless.insert(name.clone()) {
                    continue;
                }
                self.nameless.remove(&name);
                if over && ended >= ENDED_AT_ONCE {
                    unread.insert(pod.id);
                    continue;
                }
                ended += usize::from(over);
                let pod = Pod { pod, over, logs: BTreeMap::new(), crowded: false };
                self.pods.insert(name.clone(), pod);
            }
            let Some(pod) = self.pods.get_mut(&name) else { continue };
            // Before its files are looked at: whoever had ended by then wrote nothing after it.
            pod.over = !self.shelf.lives(&pod.pod.id);
            let (shelf, checkpoint) = (&*self.shelf, &mut self.checkpoint);
            let mut looking = Looking { shelf, checkpoint, wishes, losses: &mut losses, number: self.looks, room };
            pod.look_at_runs(&name, &mut looking);
            match &wishes.volume {
                Some(volume) => pod.look_at_files(&name, volume, &mut looking),
                None => pod.leave_files(&mut looking),
            }
            room = looking.room;
            if pod.over {
                unread.insert(pod.pod.id.clone());
            }
        }
        self.shelf.hold(unread);
        Ok(losses)
    }

    /// Reads into the batch what has room in it. Whether there may be more.
    pub(super) fn fill(
        &mut self,
        batch: &mut Batch,
        bounds: Bounds,
        wishes: &Wishes,
        now: u64,
        losses: &mut Losses,
    ) -> bool {
        let mut turns: Vec<Whose> = Vec::new();
        for (name, pod) in &self.pods {
            turns.extend(pod.logs.keys().map(|key| (name.clone(), key.clone())));
        }
        let next = self.last.as_ref().map_or(0, |last| turns.partition_point(|turn| turn <= last));
        if next < turns.len() {
            turns.rotate_left(next);
        }
        let begun: usize = self.pods.values().flat_map(|pod| pod.logs.values()).map(|log| log.reading.waiting()).sum();
        while !turns.is_empty() && batch.room(bounds) > 0 {
            let mut more = Vec::new();
            for turn in turns {
                let room = batch.room(bounds).min(TURN);
                if room == 0 {
                    return true;
                }
                let Some(pod) = self.pods.get_mut(&turn.0) else { continue };
                if pod.waits(&turn.1) {
                    more.push(turn);
                    continue;
                }
                let Some(log) = pod.logs.get_mut(&turn.1) else { continue };
                let manner = Manner { now, json_severity: wishes.json_severity, may_wait: begun < BEGUN };
                let from = batch.records.len();
                let left = log.reading.read(&mut self.buffer, room, manner, &mut batch.records);
                for record in &mut batch.records[from..] {
                    batch.size += record.size();
                    if record.origin.file.is_some() {
                        self.told = record.time.max(self.told + 1);
                        record.time = self.told;
                    }
                }
                if let Some(at) = log.reading.position()
                    && log.arrived != Some(at)
                    && (at.offset > 0 || log.arrived.is_some())
                {
                    batch.marks.insert(turn.clone(), at);
                }
                match left {
                    Ok(true) => {
                        self.last = Some(turn.clone());
                        more.push(turn);
                    }
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(pod = turn.0, %error, "a container's log cannot be read; the rest of it is not sent");
                        log.reading.give_up(losses);
                    }
                }
            }
            turns = more;
        }
        !turns.is_empty()
    }

    /// What was sent up to here has arrived.
    pub(super) fn arrived(&mut self, marks: &BTreeMap<Whose, Position>) {
        for ((name, key), at) in marks {
            if let Some(log) = self.pods.get_mut(name).and_then(|pod| pod.logs.get_mut(key)) {
                log.arrived = Some(*at);
                self.checkpoint.set(name, key, *at);
                self.dirty = true;
            }
        }
    }

    /// Lets go of what is sent to its end.
    pub(super) fn settle(&mut self) {
        let mut done = Vec::new();
        for (name, pod) in &mut self.pods {
            if pod.over && pod.logs.values().all(Log::is_done) {
                done.push(name.clone());
            }
        }
        for name in done {
            let Some(pod) = self.pods.remove(&name) else { continue };
            if self.shelf.keeps(&pod.pod)
                && let Err(error) = self.shelf.let_go(&pod.pod)
            {
                tracing::warn!(pod = name, %error, "what an ended pod left in its volume cannot be removed");
            }
            self.checkpoint.finish(&name);
            self.dirty = true;
        }
    }

    /// Writes down how far all have come, if that is not written yet. Whether there was anything to write.
    pub(super) fn save(&mut self) -> io::Result<bool> {
        if self.dirty {
            self.checkpoint.write(&self.file)?;
        }
        Ok(std::mem::take(&mut self.dirty))
    }
}

impl Pod {
    /// Files of its volume that are open.
    fn files(&self) -> usize {
        self.logs.keys().filter(|key| key.is_file()).count()
    }

    /// Whether it is the log of a run before which another one has something unread: Loki takes what lies long before the
    /// newest line of a stream for lost, and all runs of a container are one.
    fn waits(&self, key: &LogKey) -> bool {
        let LogKey::Run { container, .. } = key else { return false };
        let first = LogKey::Run { container: container.clone(), number: 0 };
        self.logs.range(&first..key).any(|(_, log)| !(log.reading.over && log.reading.at_end))
    }

    fn look_at_runs(&mut self, name: &str, looking: &mut Looking<'_>) {
        let Looking { shelf, checkpoint, wishes, losses, .. } = looking;
        let naming = &wishes.naming;
        let runs = shelf.runs(&self.pod);
        let newest: BTreeMap<&str, u32> = runs.iter().map(|run| (run.container.as_str(), run.number)).collect();
        for run in &runs {
            let key = LogKey::Run { container: run.container.clone(), number: run.number };
            let over = self.over || newest.get(run.container.as_str()) != Some(&run.number);
            let log = match self.logs.get_mut(&key) {
                Some(log) => {
                    // The end of an ended run was seen; nobody writes to it.
                    if !(log.reading.over && log.reading.at_end) {
                        log.reading.look_at_run(run, losses);
                    }
                    log
                }
                None => {
                    let arrived = checkpoint.at(name, &key);
                    let reading = Reading::of_run(self.origin(naming, run), run, arrived, losses);
                    self.logs.entry(key).or_insert(Log { reading, arrived, gone: None })
                }
            };
            if over && !log.reading.over {
                log.reading.over = true;
                // What came between the last reading and the end is read once more.
                log.reading.at_end = false;
            }
        }
        let here = |key: &LogKey| match key {
            LogKey::Run { container, number } => {
                runs.iter().any(|run| run.container == *container && run.number == *number)
            }
            LogKey::File { .. } => true,
        };
        self.logs.retain(|key, log| {
            let stays = here(key);
            if !stays {
                log.reading.give_up(losses);
            }
            stays
        });
        if let Some(progress) = checkpoint.pods.get_mut(name) {
            progress.logs.retain(|key, _| here(key));
        }
    }

    fn look_at_files(&mut self, name: &str, volume: &VolumeName, looking: &mut Looking<'_>) {
        let Looking { shelf, checkpoint, wishes, losses, number, room } = looking;
        let (found, mut more) = shelf.volume_files(&self.pod, &volume.name);
        let mut here = HashSet::new();
        for file in &found {
            let key = LogKey::File { container: file.container.clone(), inode: file.inode };
            here.insert(key.clone());
            if self.logs.contains_key(&key) {
                continue;
            }
            if *room == 0 {
                more = true;
                continue;
            }
            // Between the look and this it may have gone, or become another: then the next look tells.
            let Ok(opened) = shelf.open(&self.pod, &volume.name, file) else { continue };
            let arrived = checkpoint.at(name, &key).filter(|at| at.is_in(&opened));
            let same = |key: &&LogKey| matches!(key, LogKey::File { container, .. } if *container == file.container);
            let copied = || {
                let others = self.logs.iter().filter(|(key, _)| same(key));
                others.filter_map(|(_, log)| log.reading.is_copied_by(&opened)).max()
            };
            let from = arrived.map(|at| at.offset).or_else(copied).unwrap_or(0);
            let path = Path::new(&volume.path).join(&file.path).to_string_lossy().into_owned();
            let origin = Origin { file: Some(path), restarts: None, ..self.common(&wishes.naming, &file.container) };
            if let Ok(mut reading) = Reading::of_file(origin, opened, from) {
                reading.over = self.over;
                self.logs.insert(key, Log { reading, arrived, gone: None });
                *room -= 1;
            }
        }
        if more && !std::mem::replace(&mut self.crowded, true) {
            let (pod, path) = (name, &volume.path);
            tracing::warn!(
                pod,
                "there is more in {path} of this pod than is collected: files or directories too many or too deep"
            );
        }
        // Copies were looked for first: they are of what a file was before it was cut.
        let over = self.over;
        self.logs.retain(|key, log| {
            if !key.is_file() {
                return true;
            }
            log.reading.look_at_file();
            let gone = !here.contains(key);
            log.gone = gone.then(|| log.gone.unwrap_or(*number));
            if (over || gone) && !log.reading.over {
                log.reading.over = true;
                log.reading.at_end = false;
            } else if !over && !gone {
                log.reading.over = false;
            }
            let stays = !(gone && log.is_done());
            if !stays && log.reading.is_removed() {
                checkpoint.forget(name, key);
            }
            *room += usize::from(!stays);
            stays
        });
        let held = self.logs.iter().filter_map(|(key, log)| Some((log.gone?, log.reading.held_bytes(), key.clone())));
        for key in surplus(held.collect()) {
            let Some(mut log) = self.logs.remove(&key) else { continue };
            if log.reading.is_removed() {
                checkpoint.forget(name, &key);
            }
            log.reading.give_up(losses);
            *room += 1;
        }
    }

    /// Files are collected no more. How far they were sent stays known, if they should be again.
    fn leave_files(&mut self, looking: &mut Looking<'_>) {
        let before = self.files();
        self.logs.retain(|key, log| {
            if key.is_file() {
                log.reading.give_up(looking.losses);
            }
            !key.is_file()
        });
        looking.room += before;
    }

    fn origin(&self, naming: &Naming, run: &RunLog) -> Origin {
        Origin { restarts: Some(run.number), ..self.common(naming, &run.container) }
    }

    fn common(&self, naming: &Naming, container: &str) -> Origin {
        let label = |key: &String| self.pod.labels.get(key).filter(|value| !value.is_empty()).cloned();
        Origin {
            namespace: self.pod.namespace.clone(),
            pod: self.pod.name.clone(),
            uid: self.pod.id.0.clone(),
            container: container.to_owned(),
            restarts: None,
            service: naming.service.iter().find_map(label).unwrap_or_else(|| self.pod.name.clone()),
            configuration: naming.configuration.as_ref().and_then(label),
            revision: naming.revision.as_ref().and_then(label),
            file: None,
            node: naming.node.clone(),
            host: naming.host.clone(),
        }
    }
}

/// Which files out of sight are too many: given since when, and with how many bytes, each is held.
fn surplus(mut held: Vec<(u64, u64, LogKey)>) -> Vec<LogKey> {
    held.sort_by_key(|(since, ..)| std::cmp::Reverse(*since));
    let (mut files, mut bytes) = (0, 0);
    let mut fit = |size: u64| {
        let fits = files < GONE && bytes + size <= GONE_BYTES;
        if fits {
            files += 1;
            bytes += size;
        }
        fits
    };
    held.into_iter().filter(|(_, size, _)| !fit(*size)).map(|(.., key)| key).collect()
}

impl Drop for Tail {
    /// What has arrived since it was last written down is not sent again.
    fn drop(&mut self) {
        if let Err(error) = self.save() {
            tracing::debug!(%error, "how far container logs are sent could not be written down at the end");
        }
    }
}

#[cfg(test)]
mod tests;
