//! `neap-queue`, as the image of the sidecar starts it.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_neap-queue")).args(arguments).env_clear().output().expect("starts")
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let check = |arguments: &[&str], code: i32, words: &[&str]| {
        let done = run(arguments);
        let said = String::from_utf8(done.stderr).expect("text");
        assert_eq!((done.status.code(), said.lines().count()), (Some(code), 1), "{said}");
        for word in words {
            assert!(said.contains(word), "{word} is not in {said}");
        }
    };
    check(&["queue"], 2, &["takes no arguments", "queue", "environment"]);
    check(&[], 1, &["CONTAINER_CONCURRENCY"]);
}
