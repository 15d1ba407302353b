//! The verbs: a pure client of the API. Flags become requests, objects become text; nothing here knows how the platform
//! works inside, so the same verbs work against one machine and against a Kubernetes cluster.

mod authority;
mod connect;
mod delete;
mod deploy;
mod describe;
mod error;
mod explain;
mod export;
mod get;
mod image;
mod logs;
mod manifest;
mod progress;
mod status;
mod traffic;
mod tree;
mod wait;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};

pub use error::{Error, report};

/// What the verbs may know of the process they run in; read once, at the door.
#[derive(Clone, Debug, Default)]
pub struct Env {
    pub vars: BTreeMap<String, String>,
    /// Whether standard error is a terminal: only then is progress drawn.
    pub terminal: bool,
    pub root: bool,
}

/// Where to find the platform, and in which namespace to work.
#[derive(Clone, Debug, Default, Args)]
pub struct Target {
    /// Kubeconfig of the platform [default: $KUBECONFIG, else that of `neap up`, else ~/.kube/config]
    #[arg(long, value_name = "FILE", global = true, help_heading = "Platform")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, value_name = "NAME", global = true, help_heading = "Platform")]
    pub context: Option<String>,
    /// Namespace [default: that of the context]
    #[arg(short, long, value_name = "NAME", global = true, help_heading = "Platform")]
    pub namespace: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a service or change one, and wait until it is ready.
    Deploy(deploy::Deploy),
    /// List services, or revisions and routes.
    Get(get::Get),
    /// Show a service on one page: addresses, traffic, revisions, events.
    Describe(describe::Describe),
    /// Say why a service is as it is: not ready, asleep, failing.
    Explain(explain::Explain),
    /// Print services as files that make them again elsewhere.
    Export(export::Export),
    /// Show what a service writes, also what it wrote before it went to sleep.
    Logs(logs::Logs),
    /// Show or change how a service's requests are spread over its revisions.
    Traffic(traffic::Traffic),
    /// Delete services.
    Delete(delete::Delete),
    /// Images in the platform's own registry.
    #[command(subcommand)]
    Image(image::Image),
    /// Whether the platform is well, in a few lines.
    Status(status::Status),
    /// Print the authority that local certificates come from, for browsers and tools to trust.
    Ca(authority::Authority),
    /// Print the completions of a shell.
    Completions(Completions),
}

#[derive(Debug, Args)]
pub struct Completions {
    pub shell: clap_complete::Shell,
}

/// Runs a verb. `root` is the whole command line, for completions; what a user asked to see goes to `out`.
///
/// # Errors
/// One sentence that says what to do; the verb has said everything else.
pub async fn run(
    command: Command,
    mut root: clap::Command,
    env: &Env,
    out: &mut (dyn Write + Send),
) -> Result<(), Error> {
    match command {
        Command::Deploy(verb) => verb.run(env, out).await,
        Command::Get(verb) => verb.run(env, out).await,
        Command::Describe(verb) => verb.run(env, out).await,
        Command::Explain(verb) => verb.run(env, out).await,
        Command::Export(verb) => verb.run(env, out).await,
        Command::Logs(verb) => verb.run(env, out).await,
        Command::Traffic(verb) => verb.run(env, out).await,
        Command::Delete(verb) => verb.run(env, out).await,
        Command::Image(verb) => verb.run(env, out).await,
        Command::Status(verb) => verb.run(env, out).await,
        Command::Ca(verb) => verb.run(env, out).await,
        Command::Completions(Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut root, "neap", &mut script);
            Ok(out.write_all(&script)?)
        }
    }
}
