//! Which of the three runtimes this machine allows, and how that is said.

use std::fs;
use std::path::Path;

use nix::sched::CloneFlags;
use sha2::{Digest, Sha256};

use crate::cgroup::Tree;
use crate::launch::Isolation;
use crate::pod::{ContainerSpec, PodSpec, Seccomp};
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
        let tree = tree_of(data_dir)?;
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

    /// What a pod asks for and does not get here, in one sentence.
    pub(crate) fn unkept(&self, pod: &PodSpec, limits: bool) -> Option<String> {
        unkept(self.isolation, limits, pod)
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
                "rootless runtime: every container in a user namespace of its own, on the machine's network with a port of its own in $PORT, {limits}; a pod has no users but root, no shared processes, and of each container one port{because}"
            ),
            Isolation::None => format!(
                "process runtime: NO ISOLATION, images run as plain processes of this user with a port of their own in $PORT; a pod has no volumes, users, read-only root, seccomp profile or shared processes, {limits}, and of each container one port{because}"
            ),
        }
    }
}

/// With `limits` the machine can hold containers to theirs.
fn unkept(isolation: Isolation, limits: bool, pod: &PodSpec) -> Option<String> {
    let (mode, none) = match isolation {
        Isolation::Full => ("container", false),
        Isolation::User => ("rootless", false),
        Isolation::None => ("process", true),
    };
    let shared_network = isolation != Isolation::Full;
    let any = |asks: fn(&ContainerSpec) -> bool| pod.init_containers.iter().chain(&pod.containers).any(asks);
    let bounded = |c: &ContainerSpec| {
        let of = &c.resources;
        [of.cpu_limit_milli, of.memory_limit, of.pids_limit].iter().any(Option::is_some)
    };
    let strangers = |c: &ContainerSpec| c.user.is_some_and(|user| user != 0) || c.group.is_some_and(|group| group != 0);
    let groups = pod.fs_group.is_some() || !pod.supplemental_groups.is_empty();
    let table = [
        (none && any(|c| !c.mounts.is_empty()), "volumes"),
        (!limits && any(bounded), "limits of CPU, memory and processes"),
        (shared_network && (any(strangers) || groups), "users and groups"),
        (none && any(|c| c.run_as_non_root), "runAsNonRoot"),
        (shared_network && pod.own_users, "hostUsers: false"),
        (none && any(|c| c.read_only_root), "a read-only root"),
        (none && any(|c| matches!(c.seccomp, Seccomp::Local(_))), "a seccomp profile"),
        (
            none && any(|c| c.privileged || !c.add_capabilities.is_empty() || !c.drop_capabilities.is_empty()),
            "capabilities",
        ),
        (shared_network && pod.share_process_namespace, "shared processes"),
        (none && !pod.host_aliases.is_empty(), "host aliases"),
        (shared_network && any(|c| c.ports.len() > 1), "more than the first port of a container"),
    ];
    let missing: Vec<&str> = table.into_iter().filter_map(|(asked, what)| asked.then_some(what)).collect();
    let list = missing.join(", ");
    (!missing.is_empty())
        .then(|| format!("the {mode} runtime of this machine cannot give the pod what it asks for: {list}"))
}

/// Where the control groups of this directory's neap are, if there are any.
pub(crate) fn tree_of(data_dir: &Path) -> Option<Tree> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").ok()?;
    Tree::detect(&mountinfo, &group_name(data_dir))
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
    fn what_a_pod_does_not_get_is_said_in_one_line() {
        use crate::pod::{Mount, Port, Resources};
        let plain = ContainerSpec { ports: vec![Port::default()], ..ContainerSpec::default() };
        let rich = ContainerSpec {
            user: Some(1000),
            run_as_non_root: true,
            read_only_root: true,
            drop_capabilities: vec!["ALL".into()],
            seccomp: Seccomp::Local("a".into()),
            resources: Resources { memory_limit: Some(1), ..Resources::default() },
            mounts: vec![Mount { volume: "v".into(), path: "/v".into(), sub_path: None, read_only: false }],
            ports: vec![Port::default(), Port::default()],
            ..ContainerSpec::default()
        };
        let check = |isolation, limits, container: &ContainerSpec, share, want: Option<&str>| {
            let containers = vec![container.clone()];
            let pod = PodSpec { containers, share_process_namespace: share, ..PodSpec::default() };
            let got = unkept(isolation, limits, &pod);
            let list = got.as_ref().and_then(|text| text.split_once("asks for: ")).map(|(_, list)| list);
            assert_eq!(list, want, "{isolation:?}");
        };
        check(Isolation::None, false, &plain, false, None);
        check(Isolation::Full, true, &rich, true, None);
        check(Isolation::Full, false, &rich, true, Some("limits of CPU, memory and processes"));
        let most = "users and groups, shared processes, more than the first port of a container";
        check(Isolation::User, true, &rich, true, Some(most));
        let all = "volumes, limits of CPU, memory and processes, users and groups, runAsNonRoot, a read-only root, a seccomp \
                   profile, capabilities, shared processes, more than the first port of a container";
        check(Isolation::None, false, &rich, true, Some(all));
    }

    #[test]
    fn every_data_directory_has_its_own_groups() {
        assert_ne!(group_name(Path::new("/a")), group_name(Path::new("/b")));
        assert!(group_name(Path::new("/a")).starts_with("neap-"));
    }
}
