//! Which of the three runtimes this machine allows, and how that is said.

use std::fs;
use std::path::Path;

use nix::sched::CloneFlags;
use sha2::{Digest, Sha256};

use crate::cgroup::Tree;
use crate::launch::Isolation;
use crate::runtime::{Mode, OpenError};
use crate::sys;

pub(crate) struct Choice {
    pub isolation: Isolation,
    /// Why not a better one, when it was chosen automatically.
    because: Option<String>,
}

/// What can be found out without changing anything.
struct Facts {
    root: bool,
    /// `Err`: why an unprivileged user cannot make namespaces here.
    user_namespaces: Result<(), String>,
    /// `Err`: why root cannot make namespaces here.
    namespaces: Result<(), String>,
}

/// `against`: what has already spoken against the container runtime.
pub(crate) fn choose(mode: Mode, against: Option<String>) -> Result<Choice, OpenError> {
    let root = nix::unistd::geteuid().is_root();
    let common = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
    let attempt = |flags| sys::try_namespaces(flags).map_err(|error| error.to_string());
    let namespaces = match against {
        Some(why) => Err(why),
        None if root => attempt(common | CloneFlags::CLONE_NEWNET),
        None => Ok(()),
    };
    decide(mode, &Facts { root, namespaces, user_namespaces: attempt(common | CloneFlags::CLONE_NEWUSER) })
}

fn decide(mode: Mode, facts: &Facts) -> Result<Choice, OpenError> {
    let full = match (facts.root, &facts.namespaces) {
        (true, Ok(())) => Ok(()),
        (true, Err(error)) => Err(format!("root may not do here what it takes ({error})")),
        (false, _) => Err("it needs root".to_owned()),
    };
    let user = match &facts.user_namespaces {
        Ok(()) => Ok(()),
        Err(error) => Err(format!("user namespaces are not allowed here ({error})")),
    };
    let unfit = |mode, why| Err(OpenError::Unfit { mode, why });
    let chosen = |isolation, because| Ok(Choice { isolation, because });
    match (mode, full, user) {
        (Mode::Auto | Mode::Container, Ok(()), _) => chosen(Isolation::Full, None),
        (Mode::Container, Err(why), _) => unfit("container", why),
        (Mode::Rootless, _, Ok(())) => chosen(Isolation::User, None),
        (Mode::Rootless, _, Err(why)) => unfit("rootless", why),
        (Mode::Auto, Err(why), Ok(())) => chosen(Isolation::User, Some(why)),
        (Mode::Auto, Err(_), Err(why)) => chosen(Isolation::None, Some(why)),
        (Mode::Process, ..) => chosen(Isolation::None, None),
    }
}

impl Choice {
    /// Control groups, where there are some that we may use.
    pub(crate) fn tree(&self, data_dir: &Path) -> Option<Tree> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let tree = Tree::detect(&mountinfo, &group_name(data_dir))?;
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        match tree.prepare(cores) {
            Ok(()) => Some(tree),
            Err(error) => {
                if self.isolation == Isolation::Full {
                    tracing::warn!(%error, "control groups cannot be used here: no limits, and freezing by signals only");
                }
                None
            }
        }
    }

    /// One sentence.
    pub(crate) fn describe(&self, block: Option<String>, tree: Option<&Tree>) -> String {
        let limits = match tree {
            Some(tree) if tree.can_limit("memory") && tree.can_limit("cpu") => "CPU and memory limits",
            Some(_) => "some limits",
            None => "no CPU or memory limits",
        };
        let because = self
            .because
            .as_ref()
            .map_or(String::new(), |why| format!(" (chosen because `container` is not possible: {why})"));
        match self.isolation {
            Isolation::Full => {
                let block = block.unwrap_or_default();
                format!("container runtime: every pod in namespaces and a network of its own ({block}), {limits}")
            }
            Isolation::User => format!(
                "rootless runtime: every container in a user namespace of its own, on the machine's network with a port of its own in $PORT, {limits}{because}"
            ),
            Isolation::None => format!(
                "process runtime: NO ISOLATION, images run as plain processes of this user with a port of their own in $PORT{because}"
            ),
        }
    }
}

/// One name per data directory, so that several neaps on one machine keep apart.
fn group_name(data_dir: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let digest = Sha256::digest(data_dir.as_os_str().as_bytes());
    format!("neap-{:02x}{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2], digest[3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_that_is_possible_is_chosen_and_said() {
        let check = |mode, root, namespaces: bool, user: bool, expected: Option<Isolation>| {
            let result = |good: bool| if good { Ok(()) } else { Err("EPERM".to_owned()) };
            let facts = Facts { root, namespaces: result(namespaces), user_namespaces: result(user) };
            assert_eq!(decide(mode, &facts).ok().map(|c| c.isolation), expected);
        };
        check(Mode::Auto, true, true, true, Some(Isolation::Full));
        check(Mode::Auto, false, true, true, Some(Isolation::User));
        check(Mode::Auto, true, false, true, Some(Isolation::User));
        check(Mode::Auto, false, true, false, Some(Isolation::None));
        check(Mode::Container, false, true, true, None);
        check(Mode::Container, true, false, true, None);
        check(Mode::Rootless, true, true, true, Some(Isolation::User));
        check(Mode::Rootless, false, true, false, None);
        check(Mode::Process, true, true, true, Some(Isolation::None));
        let facts = Facts { root: false, namespaces: Ok(()), user_namespaces: Err("EPERM".into()) };
        let said = decide(Mode::Auto, &facts).expect("a choice").describe(None, None);
        assert!(said.contains("NO ISOLATION") && said.contains("EPERM"), "{said}");
    }

    #[test]
    fn every_data_directory_has_its_own_groups() {
        assert_ne!(group_name(Path::new("/a")), group_name(Path::new("/b")));
        assert!(group_name(Path::new("/a")).starts_with("neap-"));
    }
}
