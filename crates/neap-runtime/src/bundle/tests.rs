//! Tables: command lines, users, limits, mounts.

use std::time::Duration;

use super::*;
use crate::pod::{Dns, Mount, PodId, PullPolicy, RestartPolicy};

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|i| (*i).to_owned()).collect()
}

fn container() -> ContainerSpec {
    ContainerSpec {
        name: "user".into(),
        image: "app".into(),
        pull: PullPolicy::IfNotPresent,
        credentials: vec![],
        command: vec![],
        args: vec![],
        env: vec![],
        working_dir: None,
        user: None,
        group: None,
        run_as_non_root: false,
        read_only_root: false,
        privileged: false,
        add_capabilities: vec![],
        drop_capabilities: vec![],
        no_new_privileges: false,
        resources: Resources::default(),
        mounts: vec![],
        ports: vec![],
        startup: None,
        readiness: None,
        liveness: None,
        pre_stop: None,
        termination_message_path: "/dev/termination-log".into(),
        termination_message_from_logs: false,
    }
}

fn image() -> ImageConfig {
    ImageConfig {
        entrypoint: strings(&["/entry"]),
        cmd: strings(&["serve", "now"]),
        env: vec![("A".into(), "image".into())],
        user: "web:www".into(),
        ..ImageConfig::default()
    }
}

#[test]
fn command_lines_mix_specification_and_image() {
    let check = |command: &[&str], args: &[&str], expected: &[&str]| {
        let container = ContainerSpec { command: strings(command), args: strings(args), ..container() };
        let process = process(&container, &image(), Isolation::Full, None, "h").expect("fine");
        assert_eq!(process.argv, expected);
    };
    check(&[], &[], &["/entry", "serve", "now"]);
    check(&[], &["x"], &["/entry", "x"]);
    check(&["/other"], &[], &["/other"]);
    check(&["/other"], &["x"], &["/other", "x"]);
    assert!(process(&container(), &ImageConfig::default(), Isolation::Full, None, "h").is_err());
}

#[test]
fn users_come_from_the_specification_before_the_image() {
    let check = |uid, gid, image: &str, expected: &str| assert_eq!(user(uid, gid, image), expected);
    check(None, None, "web:www", "web:www");
    check(None, None, "web", "web");
    check(None, None, "", "");
    check(Some(5), None, "web:www", "5");
    check(Some(5), Some(6), "web:www", "5:6");
    check(None, Some(6), "web:www", "web:6");
}

#[test]
fn the_environment_is_the_images_then_ours_then_the_specifications() {
    let container =
        ContainerSpec { env: vec![("A".into(), "pod".into()), ("PORT".into(), "8080".into())], ..container() };
    let env = process(&container, &image(), Isolation::User, Some(4000), "h").expect("fine").env;
    let last = |name: &str| env.iter().rfind(|(n, _)| n == name).map(|(_, v)| v.as_str());
    assert_eq!((last("A"), last("HOSTNAME"), last("PORT")), (Some("pod"), Some("h"), Some("4000")));
    let env = process(&container, &image(), Isolation::Full, None, "h").expect("fine").env;
    assert_eq!(env.iter().rfind(|(n, _)| n == "PORT").map(|(_, v)| v.as_str()), Some("8080"));
}

#[test]
fn limits_are_kubernetes_arithmetic() {
    let check = |request, limit, shares, quota| {
        let limits = limits(&Resources { cpu_request_milli: request, cpu_limit_milli: limit, ..Resources::default() });
        assert_eq!((limits.cpu_shares, limits.cpu_quota_us), (shares, quota));
    };
    check(None, None, 2, None);
    check(Some(125), Some(1000), 128, Some(100_000));
    check(None, Some(500), 512, Some(50_000));
    check(Some(1), Some(5), 2, Some(1000));
}

#[test]
fn mounts_are_ordered_and_a_volume_may_cover_our_files() {
    let mount =
        |volume: &str, path: &str| Mount { volume: volume.into(), path: path.into(), sub_path: None, read_only: false };
    let volumes = BTreeMap::from([("v".to_owned(), PathBuf::from("/vol"))]);
    let targets = |mounts: Vec<Mount>| {
        let container = ContainerSpec { mounts, ..container() };
        let pod_dir = Path::new("/pod");
        super::mounts(&container, pod_dir, Path::new("/run"), &volumes)
            .map(|all| all.iter().map(|b| b.target.display().to_string()).collect::<Vec<_>>())
    };
    let ours = ["/etc/resolv.conf", "/etc/hosts", "/etc/hostname"];
    assert_eq!(
        targets(vec![mount("v", "/data/deep"), mount("v", "/data")]),
        Ok([&ours[..], &["/data", "/data/deep", "/dev/termination-log"]]
            .concat()
            .iter()
            .map(|s| (*s).to_owned())
            .collect())
    );
    assert_eq!(targets(vec![mount("v", "/etc")]), Ok(strings(&["/etc", "/dev/termination-log"])));
    assert!(targets(vec![mount("none", "/data")]).is_err());
    assert!(targets(vec![mount("v", "data")]).is_err());
}

#[test]
fn without_isolation_there_are_no_mounts_and_no_layers() {
    let pod = PodSpec {
        id: PodId("u".into()),
        name: "p".into(),
        namespace: "n".into(),
        hostname: "p".into(),
        init_containers: vec![],
        containers: vec![],
        volumes: BTreeMap::new(),
        restart: RestartPolicy::Always,
        dns: Dns::default(),
        share_process_namespace: false,
        host_network: false,
        grace: Duration::ZERO,
        labels: BTreeMap::new(),
    };
    let image = Image {
        reference: "app".into(),
        digest: "sha256:0".into(),
        id: "app@sha256:0".into(),
        config: image(),
        layers: vec!["/layers/a".into()],
    };
    let volumes = BTreeMap::new();
    let run = |container: &ContainerSpec, merged: Option<&str>| {
        let places = Places {
            dir: Path::new("/run"),
            pod_dir: Path::new("/pod"),
            volumes: &volumes,
            log: "/log/0.log".into(),
            join: vec![],
            merged: merged.map(PathBuf::from),
        };
        launch(&pod, container, &image, Isolation::None, Some(1), places).map(|l| l.root)
    };
    assert_eq!(run(&container(), Some("/merged")), Ok(Root::None("/merged".into())));
    assert!(run(&container(), None).is_err());
    let mount = Mount { volume: "v".into(), path: "/d".into(), sub_path: None, read_only: false };
    let error = run(&ContainerSpec { mounts: vec![mount], ..container() }, Some("/merged")).expect_err("no mounts");
    assert!(error.contains("volumes"), "{error}");
}
