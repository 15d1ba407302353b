//! temporary
use crate::{cgroup::Tree, launch::*, linux::LinuxMachine, machine::*, net::Network};
use std::path::PathBuf;
use std::time::*;
#[allow(clippy::all, warnings)]
pub async fn run(data: PathBuf, layer: PathBuf, n: usize, wait: u64) {
    let tree = Tree::detect(&std::fs::read_to_string("/proc/self/mountinfo").unwrap(), "neap-slice").unwrap();
    println!("{tree:?}");
    tree.prepare().unwrap();
    let network = Network::open("198.19.0.0/16", &data).unwrap();
    let m = LinuxMachine::open(Isolation::Full, Some(tree), Some(network), data.join("run")).await.unwrap();
    let mut t = vec![]; let mut t0=vec![]; let mut t1=vec![];
    for i in 0..n {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let s = Instant::now();
        let sb = m.open_sandbox().await.unwrap();
        let a = s.elapsed();
        let dir = data.join(format!("c{i}"));
        for d in ["upper","work","root"] { std::fs::create_dir_all(dir.join(d)).unwrap(); }
        let launch = Launch { version: 1, isolation: Isolation::Full, hostname: "h".into(), join: ["net","ipc","uts"].iter().map(|n| sb.dir.clone().unwrap().join(n)).collect(),
            root: Root::Overlay { lower: vec![layer.clone()], upper: dir.join("upper"), work: dir.join("work"), target: dir.join("root"), user_xattr: false },
            read_only_root: false, privileged: false, mounts: vec![], group_views: vec![],
            process: Process { argv: std::env::args().skip(4).collect(), cwd: "/".into(), capabilities: crate::capabilities::resolve(false,&[],&[]).unwrap(), ..Default::default() },
            limits: Limits { cpu_shares: 102, memory_bytes: Some(128<<20), ..Default::default() },
            log: LogFiles { path: dir.join("0.log"), max_bytes: 1<<20, keep: 2 } };
        let h = m.start(&dir, launch, None).await.unwrap();
        let b = s.elapsed();
        let h = match h { Ok(h) => h, Err(e) => { println!("{e:?}"); return; } };
        let act = crate::pod::ProbeAction::Tcp { port: 8080 };
        let mut tries = 0;
        while m.probe(sb.address, &act, Duration::from_secs(1)).await.is_err() { tries += 1; if tries > 3000 { break; } tokio::time::sleep(Duration::from_micros(500)).await; }
        let c = s.elapsed();
        t0.push(a); t1.push(b); t.push(c);
        if i == 0 && std::env::var("SHOW").is_ok() {
            let out = m.exec(&h, Process { argv: vec!["/bin/busybox".into(), "sh".into(), "-c".into(), std::env::var("SHOW").unwrap()], cwd: "/".into(), capabilities: 0, ..Default::default() }, Duration::from_secs(5)).await;
            println!("{}", out.map(|o| o.output).unwrap_or_else(|e| e.to_string()));
        }
        m.signal(&h, 9).unwrap();
        let e = m.ended(&h).await;
        if i == 0 { println!("{e:?} {:?}", std::fs::read_to_string(dir.join("0.log"))); }
        m.close_sandbox(&sb).await.unwrap();
    }
    for (n_, v) in [("sandbox", &mut t0), ("started", &mut t1), ("tcp ready", &mut t)] { v.sort(); println!("{n_}: p50 {:?} max {:?}", v[v.len()/2], v[v.len()-1]); }
    m.close().await;
}
