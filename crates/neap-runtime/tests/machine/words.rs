//! Pods and probes that the cases start from.

use std::collections::BTreeMap;
use std::time::Duration;

use neap_runtime::pod::*;

use crate::IMAGE;

pub(crate) fn pod(name: &str, argv: &[&str]) -> PodSpec {
    PodSpec {
        id: PodId(format!("uid-{name}")),
        name: name.to_owned(),
        namespace: "test".to_owned(),
        hostname: format!("{name}-host"),
        containers: vec![container("user", argv)],
        dns: Dns {
            nameservers: vec!["198.19.0.1".parse().expect("an address")],
            searches: vec!["svc".into()],
            options: vec![],
        },
        grace: Duration::from_secs(2),
        labels: BTreeMap::from([("l".to_owned(), "v".to_owned())]),
        ..PodSpec::default()
    }
}

pub(crate) fn container(name: &str, argv: &[&str]) -> ContainerSpec {
    ContainerSpec {
        name: name.to_owned(),
        image: IMAGE.to_owned(),
        command: argv.iter().map(|a| (*a).to_owned()).collect(),
        env: vec![("GIVEN".into(), "value".into())],
        ports: vec![Port { name: "user-port".into(), container_port: 8080 }],
        termination_message_path: "/dev/termination-log".into(),
        ..ContainerSpec::default()
    }
}

pub(crate) fn probe(action: ProbeAction) -> Probe {
    Probe {
        action,
        initial_delay: Duration::ZERO,
        period: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        success_threshold: 1,
        failure_threshold: 1,
        grace: None,
    }
}

pub(crate) fn web(name: &str) -> PodSpec {
    let mut spec = pod(name, &["/bin/busybox", "httpd", "-f", "-v", "-p", "8080", "-h", "/www"]);
    spec.containers[0].readiness = Some(probe(http()));
    spec
}

pub(crate) fn http() -> ProbeAction {
    ProbeAction::Http { port: 8080, path: "/".into(), https: false, host: None, headers: vec![] }
}
