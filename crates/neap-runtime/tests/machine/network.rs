//! What pods reach, and by which ports.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use neap_runtime::pod::*;
use neap_runtime::{Mode, PortMap, Transport};

use crate::words::{pod, web};
use crate::{World, open_at, world};

/// What a pod hears at an address.
async fn fetch(world: &World, name: &str, url: &str) -> String {
    let script = format!("/bin/busybox timeout 3 /bin/busybox wget -q -O - {url} 2>/dev/null || echo nothing");
    world.script(name, &script, |_| {}).await.0
}

pub(crate) async fn is_reached_by_the_ports_of_services() {
    let world = world(Mode::Container).await;
    let server = world.run(web("server")).await;
    let status = world.wait(&server, "readiness", |s| s.ready).await;
    let Some(std::net::IpAddr::V4(ip)) = status.ip else { panic!("it has an address") };
    let map = |ports: &[(u16, u16)]| -> PortMap {
        ports.iter().map(|(asked, meant)| ((ip, Transport::Tcp, *asked), *meant)).collect()
    };
    assert_eq!(fetch(&world, "before", &format!("http://{ip}/")).await, "nothing\n");
    // Several ports of one pod, and one that another pod's map has under the same number.
    let mut all = map(&[(80, 8080), (81, 8080)]);
    all.insert((ip, Transport::Udp, 80), 53);
    world.runtime.map_ports(all, &PortMap::new()).expect("mapped");
    for (name, port) in [("eighty", 80), ("eighty-one", 81), ("own", 8080)] {
        assert_eq!(fetch(&world, name, &format!("http://{ip}:{port}/")).await, "hello\n", "{port}");
    }
    // One leads elsewhere now, one is gone.
    world.runtime.map_ports(map(&[(80, 9)]), &PortMap::new()).expect("mapped");
    for (name, port) in [("changed", 80), ("gone", 81)] {
        assert_eq!(fetch(&world, name, &format!("http://{ip}:{port}/")).await, "nothing\n", "{port}");
    }
    let many: Vec<(u16, u16)> = (1000..4000).map(|port| (port, 8080)).collect();
    world.runtime.map_ports(map(&many), &PortMap::new()).expect("mapped");
    assert_eq!(fetch(&world, "last", &format!("http://{ip}:3999/")).await, "hello\n");
    world.runtime.map_ports(PortMap::new(), &PortMap::new()).expect("emptied");
    assert_eq!(fetch(&world, "after", &format!("http://{ip}:3999/")).await, "nothing\n");
    world.end().await;
}

/// What a pod sends to its own address does not leave it.
pub(crate) async fn reaches_itself_by_the_ports_of_services() {
    let mut world = world(Mode::Container).await;
    let script = r#"/bin/busybox httpd -p 8080 -h /www
        while :; do
            for port in 80 8080; do
                echo "$port $(/bin/busybox timeout 2 /bin/busybox wget -q -O - http://$(/bin/busybox hostname -i):$port/ 2>/dev/null || echo nothing)"
            done > /tmp/now
            /bin/busybox mv /tmp/now /tmp/said
            /bin/busybox sleep 0.1
        done"#;
    let mut spec = pod("alone", &["/bin/busybox", "sh", "-c", script]);
    spec.restart = RestartPolicy::Never;
    let id = world.run(spec).await;
    let status = world.wait(&id, "an address", |s| s.ip.is_some() && s.started.is_some()).await;
    let Some(std::net::IpAddr::V4(ip)) = status.ip else { panic!("it has an address") };
    let dir = world.dir.path().to_owned();
    let said = || std::fs::read_to_string(dir.join("pods/uid-alone/c/user/0/upper/tmp/said")).unwrap_or_default();
    let hears = async |what: &str| crate::until(what, || said() == what).await;
    hears("80 nothing\n8080 hello\n").await;
    let eighty: PortMap = [((ip, Transport::Tcp, 80), 8080)].into();
    world.runtime.map_ports(eighty.clone(), &eighty).expect("mapped");
    hears("80 hello\n8080 hello\n").await;
    let elsewhere: PortMap = [((ip, Transport::Tcp, 80), 9)].into();
    world.runtime.map_ports(elsewhere.clone(), &elsewhere).expect("mapped");
    hears("80 nothing\n8080 hello\n").await;
    world.runtime.map_ports(eighty.clone(), &eighty).expect("mapped");
    hears("80 hello\n8080 hello\n").await;
    // The next runtime knows nothing of what this one set.
    world.runtime.shutdown().await;
    world.runtime = open_at(&dir, Mode::Container).await;
    hears("80 hello\n8080 hello\n").await;
    world.runtime.map_ports(eighty, &PortMap::new()).expect("emptied");
    hears("80 nothing\n8080 hello\n").await;
    world.end().await;
}

pub(crate) async fn reaches_out_where_forwarding_is_dropped() {
    let done = behind_firewall("iptables", "iptables -P FORWARD DROP", "iptables -S FORWARD").await;
    assert!(done.is_none_or(|said| said == "outside\n-P FORWARD DROP\n"), "nothing is left of our rules");
}

/// The same, where the rules are those of nftables.
pub(crate) async fn reaches_out_where_others_tables_drop() {
    for (policy, rule) in [("drop", "ct state established,related accept"), ("accept", "counter drop")] {
        let close = format!(
            "nft 'add table inet own; add chain inet own f {{ type filter hook forward priority 0; policy {policy}; }}; add rule inet own f {rule}'"
        );
        let list = "nft list chain inet own f | grep -c accept";
        let Some(said) = behind_firewall("nft", &close, list).await else { return };
        // In one it is the first rule's, in the other the policy's.
        assert_eq!(said, "outside\n1\n", "nothing is left of our rules: {policy}");
    }
}

/// In a network of its own, whose firewall forwards nothing: there a pod still reaches what is beyond.
async fn behind_firewall(program: &str, close: &str, list: &str) -> Option<String> {
    for tool in ["unshare", "nsenter", "ip", program] {
        let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|dir| Path::new(dir).join(tool).exists());
        if !found {
            println!("skipped: needs {tool}");
            return None;
        }
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir_all(dir.path().join("www")).expect("made");
    std::fs::write(dir.path().join("www/index.html"), "outside\n").expect("written");
    let script = r#"set -e
        D=$1; TEST=$2
        mkdir $D/cg; mount --rbind /sys/fs/cgroup $D/cg; mount -t sysfs none /sys; mount --rbind $D/cg /sys/fs/cgroup
        ip link set lo up
        unshare -n sleep 120 >/dev/null 2>&1 & OUT=$!
        trap 'kill $OUT $WEB' EXIT
        while [ "$(readlink /proc/$OUT/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
        ip link add out type veth peer name eth0 netns $OUT
        ip addr add 192.0.2.1/24 dev out; ip link set out up
        nsenter -t $OUT -n ip addr add 192.0.2.2/24 dev eth0; nsenter -t $OUT -n ip link set eth0 up
        nsenter -t $OUT -n busybox httpd -f -p 192.0.2.2:80 -h $D/www >/dev/null 2>&1 & WEB=$!
        eval "$3"
        $TEST --forward $D/data
        eval "$4""#;
    let test = std::env::current_exe().expect("this program");
    let asked = tokio::process::Command::new("unshare")
        .args(["-n", "-m", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(test)
        .args([close, list])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let done = tokio::time::timeout(Duration::from_secs(60), asked).await.expect("in time").expect("runs");
    let (said, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    if !errors.is_empty() {
        println!("{errors}");
    }
    Some(said.into_owned())
}

/// The part of that which runs in there.
pub(crate) async fn forward(dir: &Path) {
    let runtime = open_at(dir, Mode::Container).await;
    let mut spec =
        pod("out", &["/bin/busybox", "timeout", "5", "/bin/busybox", "wget", "-q", "-O", "-", "http://192.0.2.2/"]);
    spec.restart = RestartPolicy::Never;
    let id = spec.id.clone();
    runtime.ensure(spec).await.expect("taken");
    crate::wait(&runtime, &id, "its end", |s| matches!(s.phase, PodPhase::Succeeded | PodPhase::Failed)).await;
    let log = dir.join("logs/test_out_uid-out/user/0.log");
    let text = std::fs::read_to_string(log).unwrap_or_default();
    println!("{}", text.rsplit(' ').next().unwrap_or_default().trim());
    runtime.remove(&id, Duration::ZERO).await.expect("removed");
    runtime.shutdown().await;
}
