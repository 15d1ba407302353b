//! The command line: every role and verb of the one binary.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Serverless HTTP containers that sleep when nobody calls.
#[derive(Debug, Parser)]
#[command(name = "neap", version, arg_required_else_help = true, max_term_width = 100)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole platform on this machine, in the foreground.
    Up(Up),
    #[command(flatten)]
    Client(neap_cli::Command),
}

#[derive(Debug, clap::Args)]
pub struct Up {
    /// Where everything is kept [default: /var/lib/neap as root, else $XDG_DATA_HOME/neap]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address to listen on.
    #[arg(long, value_name = "ADDR", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub listen: IpAddr,
    /// Port of the Kubernetes API; 0 picks a free one.
    #[arg(long, value_name = "PORT", default_value_t = 7443)]
    pub api_port: u16,
    /// Port of the gateway, plain HTTP; 0 picks a free one.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub http_port: u16,
    /// Port of the gateway, HTTPS; 0 picks a free one.
    #[arg(long, value_name = "PORT", default_value_t = 8443)]
    pub https_port: u16,
    /// Port of the image registry; 0 picks a free one.
    #[arg(long, value_name = "PORT", default_value_t = 5000)]
    pub registry_port: u16,
    /// Domain under which services get their names.
    #[arg(long, default_value = "localhost")]
    pub domain: String,
    /// How pods are kept apart.
    #[arg(long, value_enum, default_value_t = Runtime::Auto)]
    pub runtime: Runtime,
    /// Addresses for pods.
    #[arg(long, value_name = "CIDR", default_value = "198.19.0.0/16")]
    pub pod_cidr: String,
    /// Also deploy the bundled sample service.
    #[arg(long)]
    pub demo: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Runtime {
    /// The best this machine allows.
    Auto,
    /// Containers with namespaces, cgroups and a network of their own; needs root.
    Container,
    /// Containers in a user namespace, on the machine's network.
    Rootless,
    /// Plain processes: no isolation at all.
    Process,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_contract_of_up_holds() {
        let args = Args::try_parse_from(["neap", "up"]).expect("no flag is needed");
        let Command::Up(up) = args.command else { panic!("up is up") };
        assert_eq!((up.api_port, up.http_port, up.https_port, up.registry_port), (7443, 8080, 8443, 5000));
        assert_eq!((up.domain.as_str(), up.pod_cidr.as_str()), ("localhost", "198.19.0.0/16"));
        assert!(up.listen.is_loopback() && !up.demo && up.data_dir.is_none());
    }
}
