//! Tables: command lines, users, limits, mounts.

use super::*;
use crate::pod::Mount;

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|i| (*i).to_owned()).collect()
}

fn container() -> ContainerSpec {
    ContainerSpec {
        name: "user".into(),
        image: "app".into(),
        termination_message_path: "/dev/termination-log".into(),
        ..ContainerSpec::default()
    }
}

fn pod() -> PodSpec {
    PodSpec { hostname: "h".into(), ..PodSpec::default() }
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
        let process = process(&pod(), &container, &image(), Isolation::Full, None).expect("fine");
        assert_eq!(process.argv, expected);
    };
    check(&[], &[], &["/entry", "serve", "now"]);
    check(&[], &["x"], &["/entry", "x"]);
    check(&["/other"], &[], &["/other"]);
    check(&["/other"], &["x"], &["/other", "x"]);
    assert!(process(&pod(), &container(), &ImageConfig::default(), Isolation::Full, None).is_err());
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
    let env = process(&pod(), &container, &image(), Isolation::User, Some(4000)).expect("fine").env;
    let last = |name: &str| env.iter().rfind(|(n, _)| n == name).map(|(_, v)| v.as_str());
    assert_eq!((last("A"), last("HOSTNAME"), last("PORT")), (Some("pod"), Some("h"), Some("4000")));
    let env = process(&pod(), &container, &image(), Isolation::Full, None).expect("fine").env;
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
        super::mounts(&pod(), &container, pod_dir, Path::new("/run"), &volumes, &BTreeMap::new())
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
    let pod = pod();
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
            turnover: Turnover::default(),
            join: vec![],
            address: Ipv4Addr::LOCALHOST,
            profile: None,
            users: None,
            images: BTreeMap::new(),
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

#[test]
fn the_pods_address_is_put_where_it_is_asked_for() {
    let text = format!("at {POD_IP}, {POD_IP}");
    let wanted = ContainerSpec {
        command: strings(&["run", &text]),
        args: strings(&[POD_IP]),
        env: vec![("IP".into(), POD_IP.into()), ("OTHER".into(), "$(x)".into())],
        mounts: vec![Mount { volume: "v".into(), path: "/v".into(), sub_path: Some(POD_IP.into()), read_only: false }],
        ..container()
    };
    let made = with_address(&wanted, Ipv4Addr::new(198, 19, 0, 7));
    assert_eq!(made.command[1], "at 198.19.0.7, 198.19.0.7");
    assert_eq!(
        (made.args[0].as_str(), made.env[0].1.as_str(), made.env[1].1.as_str()),
        ("198.19.0.7", "198.19.0.7", "$(x)")
    );
    assert_eq!(made.mounts[0].sub_path, Some(PathBuf::from("198.19.0.7")));
}

#[test]
fn what_we_write_files_into_is_never_writable_inside() {
    let mut pod = pod();
    pod.volumes.insert("files".into(), Volume::Files(BTreeMap::new()));
    pod.volumes.insert("disk".into(), Volume::EmptyDir { memory: false, size_limit: None });
    let volumes = ["files", "disk"].map(|name| (name.to_owned(), PathBuf::from("/vol").join(name))).into();
    let mount = |volume: &str| Mount { volume: volume.into(), path: "/v".into(), sub_path: None, read_only: false };
    let read_only = |volume: &str| {
        let container = ContainerSpec { mounts: vec![mount(volume)], ..container() };
        let all =
            mounts(&pod, &container, Path::new("/pod"), Path::new("/run"), &volumes, &BTreeMap::new()).expect("fine");
        all.iter().find(|b| b.target == Path::new("/v")).expect("mounted").read_only
    };
    assert!(read_only("files") && !read_only("disk"));
}

#[test]
fn system_calls_are_filtered_unless_somebody_says_otherwise() {
    let check = |seccomp: Seccomp, privileged: bool, isolation, filtered: Result<bool, ()>| {
        let container = ContainerSpec { seccomp, privileged, ..container() };
        let program = system_calls(&container, isolation, 0, None).map(|p| !p.is_empty()).map_err(drop);
        assert_eq!(program, filtered, "{container:?}");
    };
    check(Seccomp::Default, false, Isolation::Full, Ok(true));
    check(Seccomp::Default, false, Isolation::User, Ok(true));
    check(Seccomp::Default, true, Isolation::Full, Ok(false));
    check(Seccomp::Default, false, Isolation::None, Ok(false));
    check(Seccomp::Unconfined, false, Isolation::Full, Ok(false));
    check(Seccomp::Local("none.json".into()), false, Isolation::Full, Err(()));
}

#[test]
fn every_process_is_in_the_pods_groups() {
    let pod = PodSpec { supplemental_groups: vec![5, 6], fs_group: Some(7), ..pod() };
    let process = process(&pod, &container(), &image(), Isolation::Full, None).expect("fine");
    assert_eq!(process.groups, [5, 6, 7]);
}
