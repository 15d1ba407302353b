//! What is told of a machine's logs, and what a container cannot make of that.

use std::os::unix::fs::symlink;

use super::*;

struct Place {
    dir: tempfile::TempDir,
    shelf: Shelf,
    spec: PodSpec,
}

fn place() -> Place {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (logs, pods) = (dir.path().join("logs"), dir.path().join("pods"));
    fs::create_dir_all(&logs).expect("made");
    let volumes = BTreeMap::from([("var-log".to_owned(), Volume::EmptyDir { memory: false, size_limit: None })]);
    let labels = BTreeMap::from([("app".to_owned(), "x".to_owned())]);
    let id = PodId("u-1".into());
    let spec = PodSpec { id, name: "p".into(), namespace: "n".into(), labels, volumes, ..PodSpec::default() };
    Place { shelf: Shelf::new(logs, pods), dir, spec }
}

impl Place {
    /// The container's part of the volume, made.
    fn part(&self) -> PathBuf {
        let part = self.pod_dir().join("volumes/var-log/n_p_c");
        fs::create_dir_all(&part).expect("made");
        part
    }

    fn pod_dir(&self) -> PathBuf {
        self.dir.path().join("pods/u-1")
    }

    fn pod(&self) -> PodLogs {
        self.shelf.pod("n_p_u-1").expect("it has a directory")
    }

    fn found(&self) -> Vec<String> {
        let (files, _) = self.shelf.volume_files(&self.pod(), "var-log");
        files.iter().map(|f| format!("{}:{}", f.container, f.path.display())).collect()
    }
}

#[test]
fn logs_know_whose_they_are() {
    let place = place();
    place.shelf.describe(&place.spec).expect("written");
    let pod = place.pod();
    assert_eq!((pod.id.0.as_str(), pod.namespace.as_str(), pod.name.as_str()), ("u-1", "n", "p"));
    assert_eq!(pod.labels["app"], "x");
    let dir = place.dir.path().join("logs/n_p_u-1");
    for file in ["c/1.log", "c/0.log", "c/0.log.1", "c/other", "b/0.log"] {
        fs::create_dir_all(dir.join(file).parent().expect("within")).expect("made");
        fs::write(dir.join(file), "x").expect("written");
    }
    let runs: Vec<_> = place.shelf.runs(&pod).into_iter().map(|r| (r.container, r.number)).collect();
    assert_eq!(runs, [("b".to_owned(), 0), ("c".to_owned(), 0), ("c".to_owned(), 1)]);
    // What an older version left without a description.
    fs::remove_file(dir.join(DESCRIPTION)).expect("removed");
    let pod = place.pod();
    assert_eq!((pod.id.0.as_str(), pod.namespace.as_str(), pod.name.as_str()), ("u-1", "n", "p"));
}

#[test]
fn only_plain_files_of_a_volume_are_told_of() {
    let place = place();
    place.shelf.describe(&place.spec).expect("written");
    let part = place.part();
    let secret = place.dir.path().join("secret");
    fs::create_dir_all(secret.join("inside")).expect("made");
    fs::write(secret.join("key"), "secret").expect("written");
    fs::create_dir_all(part.join("sub/1/2/3/4/5")).expect("made");
    for file in ["app.log", "sub/more.log", "sub/1/2/3/deep.log", "sub/1/2/3/4/too-deep.log", "old.log.1.gz"] {
        fs::write(part.join(file), "line\n").expect("written");
    }
    symlink(secret.join("key"), part.join("link.log")).expect("linked");
    symlink(&secret, part.join("linked")).expect("linked");
    nix::unistd::mkfifo(&part.join("pipe"), Mode::S_IRWXU).expect("made");
    fs::create_dir_all(part.parent().expect("within").join("n_other_c")).expect("made");
    assert_eq!(place.found(), ["c:app.log", "c:sub/1/2/3/deep.log", "c:sub/more.log"]);
    assert!(place.shelf.volume_files(&place.pod(), "var-log").1, "something is too deep");
    // Between the look and the opening another thing is put there.
    let (files, _) = place.shelf.volume_files(&place.pod(), "var-log");
    place.shelf.open(&place.pod(), "var-log", &files[0]).expect("it opens");
    fs::remove_file(part.join("app.log")).expect("removed");
    symlink(secret.join("key"), part.join("app.log")).expect("linked");
    assert!(place.shelf.open(&place.pod(), "var-log", &files[0]).is_err());
    fs::rename(part.join("sub"), part.join("was")).expect("moved");
    symlink(&secret, part.join("sub")).expect("linked");
    fs::write(secret.join("more.log"), "secret").expect("written");
    assert!(place.shelf.open(&place.pod(), "var-log", &files[2]).is_err());
}

#[test]
fn of_many_files_those_written_last_are_told_of() {
    let place = place();
    place.shelf.describe(&place.spec).expect("written");
    let part = place.part();
    for n in 0..VOLUME_FILES + 5 {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(n as u64);
        let file = File::create(part.join(format!("{n:03}"))).expect("made");
        file.set_modified(time).expect("dated");
    }
    let (files, more) = place.shelf.volume_files(&place.pod(), "var-log");
    assert!(more && files.len() == VOLUME_FILES);
    assert_eq!(files[0].path, Path::new("005"));
}

#[test]
fn a_volume_outlives_its_pod_until_it_is_read() {
    let check = |kept: Option<&str>, memory: bool, want: bool| {
        let mut place = place();
        place.spec.volumes.insert("var-log".into(), Volume::EmptyDir { memory, size_limit: None });
        place.shelf.describe(&place.spec).expect("written");
        fs::write(place.part().join("app.log"), "last words\n").expect("written");
        place.shelf.keep_volume(kept.map(str::to_owned));
        place.shelf.keep(&place.pod_dir(), &place.spec);
        trees::remove(&place.pod_dir()).expect("removed");
        assert_eq!(place.shelf.keeps(&place.pod()), want);
        assert_eq!(place.found().len(), usize::from(want));
        place.shelf.let_go(&place.pod()).expect("removed");
        assert!(place.found().is_empty());
    };
    check(Some("var-log"), false, true);
    check(Some("var-log"), true, false);
    check(Some("other"), false, false);
    check(None, false, false);
}
