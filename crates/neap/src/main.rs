//! The binary: picks a role, reads the environment once, reports how it ended.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use neap::args::{Args, Command};
use neap::process::{Failure, cryptography, finish, texts};
use neap::{cluster, roles, sample, up};

/// The argument of the sample application, which is no verb of users.
const SAMPLE: &str = "sample";
/// The verb of the sidecar. There is one in every pod, and what is needed to parse all other verbs would stay in its memory.
const QUEUE: &str = "queue";

fn main() -> ExitCode {
    // Before any thread exists: the process may have been started as a spawner of containers.
    neap_runtime::spawner::main_if_requested();
    // This is the door: nobody else reads the environment.
    let env: Vec<(String, String)> = texts(std::env::vars_os());
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    if words.first().is_some_and(|word| word == SAMPLE) {
        return finish(sample::run(env).map_err(|e| format!("the sample cannot serve: {e}")));
    }
    if let Err(why) = cryptography() {
        return finish(Err(why));
    }
    let env: BTreeMap<String, String> = env.into_iter().collect();
    if words == [QUEUE] {
        return finish(roles::queue(&env));
    }
    let args = Args::parse();
    match args.command {
        Command::Up(flags) => finish(up::main(flags, &env)),
        Command::Install(flags) => finish(cluster::install(flags, &env)),
        Command::Role(role) => finish(cluster::main(role, &env)),
        Command::Activator(flags) => finish(roles::activator(&flags, &env)),
        Command::Queue => finish(roles::queue(&env)),
        Command::Client(verb) => client(verb, env),
    }
}

fn client(verb: neap_cli::Command, vars: BTreeMap<String, String>) -> ExitCode {
    let env = neap_cli::Env { vars, terminal: std::io::stderr().is_terminal(), root: nix::unistd::geteuid().is_root() };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return finish(Err::<(), _>(format!("the machine gives no threads: {error}"))),
    };
    let mut out = std::io::stdout();
    let result = runtime.block_on(neap_cli::run(verb, Args::command(), &env, &mut out));
    match result {
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        other => finish(other.map_err(|error| match error.is_usage() {
            true => Failure::Usage(neap_cli::report(&error)),
            false => Failure::Failed(neap_cli::report(&error)),
        })),
    }
}
