//! Programs are run as the kernel runs them, call by call.

use super::bpf::run;
use super::*;

const ANSWERS: [(&str, Action); 3] = [("allow", ALLOW), ("refuse", REFUSE), ("unknown", UNKNOWN)];

fn answer(program: &[u64], call: &str, arguments: &[u64]) -> &'static str {
    let number = names::number(call).unwrap_or_else(|| panic!("there is no {call}"));
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    let answer = run(program, None, number, all);
    ANSWERS.iter().find(|(_, action)| *action == answer).map_or("other", |(name, _)| name)
}

fn held(names: &[&str]) -> u64 {
    names.iter().map(|n| crate::capabilities::bit(n).expect("a capability")).sum()
}

#[test]
fn the_default_allows_programs_and_refuses_the_machine() {
    let check = |capabilities: &[&str], call: &str, arguments: &[u64], expected: &str| {
        let found = answer(&default(held(capabilities)), call, arguments);
        assert_eq!(found, expected, "{call} {arguments:x?} with {capabilities:?}");
    };
    for call in ["read", "openat", "execve", "futex", "epoll_pwait", "setresuid", "ptrace", "fchmodat2", "rseq"] {
        check(&[], call, &[], "allow");
    }
    for call in ["mount", "unshare", "setns", "bpf", "keyctl", "io_uring_setup", "reboot", "init_module", "swapon"] {
        check(&[], call, &[], "refuse");
    }
    check(&["SYS_ADMIN"], "mount", &[], "allow");
    check(&["BPF"], "bpf", &[], "allow");
    check(&["BPF"], "mount", &[], "refuse");
    check(&["SYS_ADMIN"], "keyctl", &[], "refuse");
    check(&[], "clone", &[0x11], "allow");
    check(&[], "clone", &[0x1000_0011], "refuse");
    check(&["SYS_ADMIN"], "clone", &[0x1000_0011], "allow");
    check(&[], "clone3", &[], "unknown");
    check(&[], "socket", &[2], "allow");
    check(&[], "socket", &[40], "refuse");
    // The kernel reads 32 bits of it.
    check(&[], "socket", &[0x1_0000_0028], "refuse");
    check(&[], "personality", &[0xffff_ffff], "allow");
    check(&[], "personality", &[4], "refuse");
    let program = default(0);
    assert_eq!(run(&program, None, 100_000, [0; 6]), UNKNOWN);
    assert_eq!(run(&program, Some(0x4000_0003), 1, [0; 6]), UNKNOWN, "calls of another kind of machine");
}

#[test]
fn every_call_named_by_the_default_exists() {
    // On this kind of machine or, for the ancient ones, on x86-64.
    if cfg!(target_arch = "x86_64") {
        let program = default(0);
        assert_eq!(answer(&program, "uselib", &[]), "refuse");
        assert!(program.len() < 400, "{}", program.len());
    }
    assert!(names::all().count() > 300);
}

#[test]
fn tests_of_arguments_are_of_64_bits() {
    let big = 0x1_0000_0005;
    for (test, holds, fails) in [
        (Test::Equal(big), vec![big], vec![5, 0x2_0000_0005, 0]),
        (Test::NotEqual(big), vec![5, 0x2_0000_0005, 0x1_0000_0004], vec![big]),
        (Test::Greater(big), vec![big + 1, 0x2_0000_0000], vec![big, 5, 0x1_0000_0004]),
        (Test::GreaterOrEqual(big), vec![big, 0x2_0000_0000], vec![6, 0x1_0000_0004]),
        (Test::Less(big), vec![6, 0x1_0000_0004], vec![big, 0x2_0000_0000]),
        (Test::LessOrEqual(big), vec![big, 6], vec![big + 1, 0x2_0000_0000]),
        (Test::Masked { mask: 0xf_0000_000f, value: big }, vec![big, 0xf1_0000_ff05], vec![0x1_0000_0004, 5]),
    ] {
        let mut filter = Filter::new(REFUSE);
        let second = Condition { argument: 1, test };
        filter.add("read", &[second, Condition { argument: 0, test: Test::Equal(7) }], ALLOW);
        filter.add("read", &[Condition { argument: 0, test: Test::Equal(8) }], UNKNOWN);
        let program = filter.compile().expect("small");
        for value in holds {
            assert_eq!(answer(&program, "read", &[7, value]), "allow", "{test:x?} {value:x}");
            assert_eq!(answer(&program, "read", &[8, value]), "unknown", "{test:x?} {value:x}");
        }
        for value in fails {
            assert_eq!(answer(&program, "read", &[7, value]), "refuse", "{test:x?} {value:x}");
        }
        assert_eq!(answer(&program, "write", &[]), "refuse");
    }
}

#[test]
fn profiles_are_read_as_docker_writes_them() {
    let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [
        {"names": ["read", "write", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["chroot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "excludes": {"caps": ["CAP_SYS_CHROOT"]}},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}]}]}"#;
    let check = |capabilities: &[&str], call: &str, arguments: &[u64], expected: &str| {
        let program = parse(text, held(capabilities)).expect("a profile");
        assert_eq!(answer(&program, call, arguments), expected, "{call} with {capabilities:?}");
    };
    check(&[], "read", &[], "allow");
    check(&[], "close", &[], "unknown");
    check(&[], "mount", &[], "unknown");
    check(&["SYS_ADMIN"], "mount", &[], "allow");
    check(&[], "chroot", &[], "refuse");
    check(&["SYS_CHROOT"], "chroot", &[], "unknown");
    check(&[], "socket", &[2], "allow");
    check(&[], "socket", &[40], "refuse");
    for bad in ["", "{}", r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#] {
        assert!(parse(bad, 0).is_err(), "{bad}");
    }
}
