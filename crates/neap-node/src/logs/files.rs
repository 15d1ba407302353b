//! Lines sent to files: one JSON object each, in files that turn over. A file that a batch could not be written to
//! whole is as it was before. What was written is on the disk before anybody is told so: they write that down.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde_json::json;

use super::FileTarget;
use super::record::{Origin, Record};

pub(super) struct Files {
    target: FileTarget,
    /// Files that have what is theirs of a batch that could not be written whole: not again.
    written: BTreeSet<PathBuf>,
}

impl Files {
    pub(super) fn new(target: FileTarget) -> Self {
        Self { target, written: BTreeSet::new() }
    }

    /// Writes all of these. After a failure the same ones are to be given again.
    pub(super) fn write(&mut self, records: &[Record], now: SystemTime) -> io::Result<()> {
        let mut texts: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
        for record in records {
            let text = texts.entry(place(&self.target.path, &record.origin)).or_default();
            text.extend_from_slice(line(record).as_bytes());
            text.push(b'\n');
        }
        for (path, text) in texts {
            if !self.written.contains(&path) {
                let failed = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
                self.append(&path, &text, now).map_err(failed)?;
                self.written.insert(path);
            }
        }
        self.written.clear();
        Ok(())
    }

    fn append(&self, path: &Path, text: &[u8], now: SystemTime) -> io::Result<()> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        make_dirs(parent)?;
        if let Ok(meta) = fs::metadata(path)
            && meta.len() > 0
            && (meta.len() + text.len() as u64 > self.target.max_size || self.is_old(&meta, now))
        {
            self.turn_over(path)?;
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)?;
        let length = file.metadata()?.len();
        let mut last = [b'\n'];
        if length > 0 {
            file.seek(SeekFrom::Start(length - 1))?;
            file.read_exact(&mut last)?;
        }
        // Killed in the middle of a line.
        let torn: &[u8] = if last == [b'\n'] { b"" } else { b"\n" };
        let written = file.write_all(torn).and_then(|()| file.write_all(text)).and_then(|()| sync(&file));
        if written.is_err() {
            let _ = file.set_len(length);
        }
        // An empty one is new, or was left when its directory could not be written.
        if length == 0 { written.and_then(|()| sync_dir(parent)) } else { written }
    }

    fn is_old(&self, meta: &fs::Metadata, now: SystemTime) -> bool {
        let Some(most) = self.target.max_age else { return false };
        let begun = meta.created().or_else(|_| meta.modified());
        begun.is_ok_and(|begun| now.duration_since(begun).unwrap_or(Duration::ZERO) >= most)
    }

    fn turn_over(&self, path: &Path) -> io::Result<()> {
        for age in (1..self.target.max_files.saturating_sub(1)).rev() {
            // The older ones need not exist yet.
            let _ = fs::rename(numbered(path, age), numbered(path, age + 1));
        }
        if self.target.max_files > 1 { fs::rename(path, numbered(path, 1)) } else { fs::remove_file(path) }
    }
}

/// Makes a directory and those above it, each with its name on the disk.
fn make_dirs(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_dirs(parent)?;
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_dir(parent),
    }
}

fn sync(file: &File) -> io::Result<()> {
    match file.sync_data() {
        // A pipe or a terminal: no disk is behind it.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn numbered(path: &Path, age: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{age}"));
    name.into()
}

/// The path with a line's own words in it. What is not there is a line; nothing leads to another directory.
fn place(template: &str, origin: &Origin) -> PathBuf {
    let Origin { namespace, pod, container, service, configuration, revision, .. } = origin;
    let known = [
        ("{namespace}", Some(namespace)),
        ("{service}", Some(service)),
        ("{configuration}", configuration.as_ref()),
        ("{revision}", revision.as_ref()),
        ("{pod}", Some(pod)),
        ("{container}", Some(container)),
    ];
    let mut path = template.to_owned();
    for (name, value) in known {
        if path.contains(name) {
            let value = value.map_or("-", String::as_str);
            let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
            let value: String = value.chars().map(plain).collect();
            let value = if value.trim_matches('.').is_empty() { "-".to_owned() } else { value };
            path = path.replace(name, &value);
        }
    }
    path.into()
}

fn line(record: &Record) -> String {
    let Origin { namespace, pod, container, service, configuration, revision, file, host, .. } = record.origin.as_ref();
    let time = Timestamp::from_nanosecond(i128::from(record.time)).map(|time| format!("{time:.9}")).unwrap_or_default();
    let mut object = json!({
        "time": time,
        "namespace": namespace,
        "service": service,
        "pod": pod,
        "container": container,
        "stream": record.stream.name(),
        "message": record.body,
    });
    let known = [
        ("configuration", configuration.as_deref()),
        ("revision", revision.as_deref()),
        ("file", file.as_deref()),
        ("host", Some(host.as_str()).filter(|host| !host.is_empty())),
        ("severity", record.severity.map(super::record::Severity::name)),
    ];
    for (name, value) in known {
        if let Some(value) = value {
            object[name] = json!(value);
        }
    }
    if record.partial {
        object["partial"] = json!(true);
    }
    object.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::record::Stream;

    fn record(service: &str, body: &str) -> Record {
        let origin = Origin { namespace: "n".into(), service: service.into(), ..Origin::default() };
        Record {
            origin: origin.into(),
            time: 1_000_000_001,
            observed: 0,
            stream: Stream::Stderr,
            severity: None,
            body: body.into(),
            partial: false,
        }
    }

    fn files(dir: &Path, max_size: u64, max_files: u32, max_age: Option<Duration>) -> Files {
        let path = format!("{}/{{namespace}}/{{service}}.jsonl", dir.display());
        Files::new(FileTarget { path, max_size, max_files, max_age })
    }

    fn messages(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let read = |line| serde_json::from_str(line).map(|line: serde_json::Value| line["message"].to_string());
        text.lines().map(|line| read(line).unwrap_or_else(|_| format!("torn {line}"))).collect()
    }

    #[test]
    fn each_service_has_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = files(dir.path(), 1 << 20, 3, None);
        files.write(&[record("a", "1"), record("b", "2"), record("a", "3")], SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(messages(&dir.path().join("n/a.jsonl")), [r#""1""#, r#""3""#]);
        assert_eq!(messages(&dir.path().join("n/b.jsonl")), [r#""2""#]);
        let text = fs::read_to_string(dir.path().join("n/b.jsonl")).unwrap();
        assert!(text.contains(r#""time":"1970-01-01T00:00:01.000000001Z""#) && text.contains("stderr"), "{text}");
        fs::write(dir.path().join("n/b.jsonl"), "{\"message\":\"half").unwrap();
        files.write(&[record("b", "4")], SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(messages(&dir.path().join("n/b.jsonl")), ["torn {\"message\":\"half", r#""4""#]);
    }

    #[test]
    fn files_turn_over_by_size_and_age_and_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n/a.jsonl");
        let mut small = files(dir.path(), 200, 3, None);
        for n in 0..5 {
            small.write(&[record("a", &format!("{n}{}", "x".repeat(100)))], SystemTime::UNIX_EPOCH).unwrap();
        }
        let first = |path: &Path| messages(path).first().map(|m| m[1..2].to_owned());
        let all: Vec<_> = [path.clone(), numbered(&path, 1), numbered(&path, 2), numbered(&path, 3)]
            .iter()
            .map(|path| first(path))
            .collect();
        assert_eq!(all, [Some("4".into()), Some("3".into()), Some("2".into()), None]);
        let mut daily = files(dir.path(), 1 << 20, 2, Some(Duration::from_secs(3600)));
        let born = fs::metadata(&path).unwrap().modified().unwrap();
        daily.write(&[record("a", "5")], born + Duration::from_secs(60)).unwrap();
        daily.write(&[record("a", "6")], born + Duration::from_secs(7200)).unwrap();
        assert_eq!((messages(&path), messages(&numbered(&path, 1)).len()), (vec![r#""6""#.to_owned()], 2));
        let mut only = files(dir.path(), 10, 1, None);
        only.write(&[record("a", "7")], born).unwrap();
        assert_eq!(messages(&path), [r#""7""#]);
    }

    #[test]
    fn what_was_written_of_a_batch_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = files(dir.path(), 1 << 20, 3, None);
        let blocked = dir.path().join("n/b.jsonl");
        fs::create_dir_all(&blocked).unwrap();
        let batch = [record("a", "1"), record("b", "2")];
        for _ in 0..3 {
            let error = files.write(&batch, SystemTime::UNIX_EPOCH).unwrap_err();
            assert!(error.to_string().contains("b.jsonl"), "{error}");
        }
        fs::remove_dir(&blocked).unwrap();
        files.write(&batch, SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!((messages(&dir.path().join("n/a.jsonl")).len(), messages(&blocked).len()), (1, 1));
    }

    #[test]
    fn no_word_leads_to_another_directory() {
        let check = |service: &str, revision: Option<&str>, want: &str| {
            let revision = revision.map(str::to_owned);
            let origin = Origin { namespace: "n".into(), service: service.into(), revision, ..Origin::default() };
            assert_eq!(place("/logs/{namespace}/{service}/{revision}.log", &origin), Path::new(want));
        };
        check("s", Some("r-1"), "/logs/n/s/r-1.log");
        check("s", None, "/logs/n/s/-.log");
        check("..", Some("../../etc"), "/logs/n/-/.._.._etc.log");
        check("a/b", Some("{pod}"), "/logs/n/a_b/_pod_.log");
        check("", Some("ü"), "/logs/n/-/_.log");
    }
}
