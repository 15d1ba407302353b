//! temporary
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::oci_spec::runtime::*;
use std::time::*;
use std::io::Read;
#[allow(clippy::all, warnings, unsafe_code)]
fn main() {
    let n: usize = 20;
    let mut t1 = vec![]; let mut t2 = vec![]; let mut t3=vec![];
    for i in 0..n {
        let id = format!("lcb{}-{i}", std::process::id());
        let bundle = std::path::PathBuf::from(format!("/tmp/lcbench/b{i}"));
        std::fs::create_dir_all(&bundle).unwrap();
        let mut spec = Spec::default();
        let mut root = Root::default(); root.set_path("/tmp/lcbench/rootfs".into()); spec.set_root(Some(root));
        let mut p = spec.process().clone().unwrap();
        p.set_args(Some(vec!["/bin/busybox".into(),"echo".into(),"hi".into()])); p.set_terminal(Some(false));
        spec.set_process(Some(p));
        let mut linux = spec.linux().clone().unwrap();
        linux.set_cgroups_path(Some(format!("/lcb/{id}").into()));
        let ns = linux.namespaces().clone().unwrap().into_iter().filter(|n| n.typ()!=LinuxNamespaceType::Network).collect::<Vec<_>>();
        linux.set_namespaces(Some(ns));
        spec.set_linux(Some(linux));
        let s0 = Instant::now();
        spec.save(bundle.join("config.json")).unwrap();
        let (mut r, w) = std::io::pipe().unwrap();
        let mut c = ContainerBuilder::new(id.clone(), SyscallType::default())
            .with_root_path("/tmp/lcbench/state").unwrap()
            .with_stdout(std::os::fd::OwnedFd::from(w))
            .validate_id().unwrap()
            .as_init(&bundle).with_systemd(false).with_detach(true).build().unwrap();
        let a = s0.elapsed();
        c.start().unwrap();
        let b = s0.elapsed();
        drop(c.pid());
        let mut buf=[0;16]; r.read(&mut buf).unwrap();
        let d = s0.elapsed();
        t1.push(a); t2.push(b); t3.push(d);
        unsafe { libc::waitpid(c.pid().unwrap().as_raw(), std::ptr::null_mut(), 0); }
        c.delete(true).unwrap();
    }
    t1.sort(); t2.sort(); t3.sort();
    println!("create p50 {:?} start p50 {:?} firstbyte p50 {:?} max {:?}", t1[n/2], t2[n/2], t3[n/2], t3[n-1]);
}
