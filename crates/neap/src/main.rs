//! The binary: picks a role, reads the environment once, reports how it ended.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use neap::args::{Args, Command};
use neap::process::Failure;
use neap::{cluster, roles, sample, up};

/// The argument of the sample application, which is no verb of users.
const SAMPLE: &str = "sample";
/// The verb of the sidecar. There is one in every pod, and what is needed to parse all other verbs would stay in its memory.
const QUEUE: &str = "queue";
/// How a process says that it was called in a wrong way.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    // Before any thread exists: the process may have been started as a spawner of containers.
    neap_runtime::spawner::main_if_requested();
    // This is the door: nobody else reads the environment.
    let env = texts(std::env::vars_os());
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    if words.first().is_some_and(|word| word == SAMPLE) {
        return finish(sample::run(env).map_err(|e| format!("the sample cannot serve: {e}")));
    }
    // One provider of cryptography for every connection this process makes.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return finish(Err("another provider of cryptography is installed in this process".to_owned()));
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

/// What of the environment is text. Whoever starts us may have put anything there, and nothing we read is anything else.
fn texts(vars: impl Iterator<Item = (OsString, OsString)>) -> Vec<(String, String)> {
    vars.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect()
}

/// 0 done, 1 failed, 2 wrong usage; most of the latter is answered by the argument parser.
fn finish(result: Result<(), impl Into<Failure>>) -> ExitCode {
    let Err(failure) = result.map_err(Into::into) else { return ExitCode::SUCCESS };
    let (message, code) = match failure {
        Failure::Failed(message) => (message, ExitCode::FAILURE),
        Failure::Usage(message) => (message, ExitCode::from(USAGE)),
    };
    // Nobody may be listening any more.
    drop(writeln!(std::io::stderr(), "neap: {message}"));
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn what_is_no_text_is_left_out() {
        let latin = OsString::from_vec(vec![b'\xe4']);
        let vars = [("A".into(), "1".into()), ("B".into(), latin.clone()), (latin, "2".into())];
        assert_eq!(texts(vars.into_iter()), [("A".to_owned(), "1".to_owned())]);
    }

    #[test]
    fn wrong_usage_is_told_apart() {
        assert_eq!(finish(Ok::<(), String>(())), ExitCode::SUCCESS);
        assert_eq!(finish(Err("x".to_owned())), ExitCode::FAILURE);
        assert_eq!(finish(Err(Failure::Usage("x".into()))), ExitCode::from(2));
    }
}
