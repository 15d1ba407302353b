//! The binary: picks a role, reads the environment once, reports how it ended.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use neap::args::{Args, Command};
use neap::{cluster, roles, sample, up};

/// The argument of the sample application, which is no verb of users.
const SAMPLE: &str = "sample";

fn main() -> ExitCode {
    // Before any thread exists: the process may have been started as a spawner of containers.
    neap_runtime::spawner::main_if_requested();
    #[expect(clippy::disallowed_methods, reason = "this is the door: nobody else reads the environment")]
    let env: Vec<(String, String)> = std::env::vars().collect();
    let mut words = std::env::args();
    if words.nth(1).as_deref() == Some(SAMPLE) {
        return finish(sample::run(env).map_err(|e| format!("the sample cannot serve: {e}")));
    }
    // One provider of cryptography for every connection this process makes.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return finish(Err("another provider of cryptography is installed in this process".into()));
    }
    let args = Args::parse();
    let env: BTreeMap<String, String> = env.into_iter().collect();
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
        Err(error) => return finish(Err(format!("the machine gives no threads: {error}"))),
    };
    let mut out = std::io::stdout();
    let result = runtime.block_on(neap_cli::run(verb, Args::command(), &env, &mut out));
    match result {
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        other => finish(other.map_err(|e| neap_cli::report(&e))),
    }
}

/// 0 done, 1 failed; wrong usage (2) is answered by the argument parser.
fn finish(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Nobody may be listening any more.
            drop(writeln!(std::io::stderr(), "neap: {message}"));
            ExitCode::FAILURE
        }
    }
}
