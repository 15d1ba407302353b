//! `neap-queue`: `neap queue` as a program of its own, for the image of the sidecar. There is one beside every instance of a
//! cluster, and what the other roles bring with them would stay in its memory and in everybody's pods.

use std::process::ExitCode;

use neap::process;
use neap::roles;

fn main() -> ExitCode {
    // This is the door: nobody else reads the environment.
    let env = process::texts(std::env::vars_os());
    if let Some(word) = std::env::args_os().nth(1) {
        let word = word.to_string_lossy();
        return process::finish(Err(process::Failure::Usage(format!(
            "neap-queue takes no arguments, and was given {word:?}: it is told everything by its environment, as Knative's \
             queue-proxy is"
        ))));
    }
    if let Err(why) = process::cryptography() {
        return process::finish(Err(why));
    }
    process::finish(roles::queue(&env))
}
