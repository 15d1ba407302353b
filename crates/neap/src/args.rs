//! The command line: every role and verb of the one binary.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
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
    /// Put what Neap needs onto a Kubernetes cluster.
    Install(Install),
    #[command(flatten)]
    Role(Role),
    /// Run the activator of a Kubernetes cluster, in the place of Knative's; its environment says the rest.
    Activator(Activator),
    /// Run the sidecar of a pod, in the place of Knative's queue-proxy; its environment says everything.
    Queue,
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
    /// Believe what callers say in X-Forwarded-For, -Proto and -Host: for a balancer of yours in front, which nobody can get
    /// around.
    #[arg(long)]
    pub trust_forwarded: bool,
    /// Domain under which services get their names [default: what the settings say, at first localhost].
    #[arg(long)]
    pub domain: Option<String>,
    /// How pods are kept apart.
    #[arg(long, value_enum, default_value_t = Runtime::Auto)]
    pub runtime: Runtime,
    /// Addresses for pods.
    #[arg(long, value_name = "CIDR", default_value = "198.19.0.0/16")]
    pub pod_cidr: String,
    /// Keep a record of who asked the API for what, one line of JSON each (audit.k8s.io/v1).
    #[arg(long, value_name = "FILE")]
    pub audit_log: Option<PathBuf>,
    /// Also deploy the bundled sample service.
    #[arg(long)]
    pub demo: bool,
}

/// Which cluster.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Cluster {
    /// Kubeconfig of the cluster [default: $KUBECONFIG, else the cluster this runs in, else ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// The parts of the platform that run on a cluster, one process each.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Run the controllers, and the autoscaler, of a Kubernetes cluster.
    Controller(Controller),
    /// Run the autoscaler of a Kubernetes cluster alone.
    Autoscaler(Autoscaler),
    /// Run the gateway of a Kubernetes cluster.
    Gateway(Gateway),
    /// Run the admission webhook of a Kubernetes cluster.
    Webhook(Webhook),
}

#[derive(Debug, clap::Args)]
pub struct Activator {
    #[command(flatten)]
    pub cluster: Cluster,
    /// Where metrics are served [default: port 9090 of all addresses]
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
}

#[derive(Debug, clap::Args)]
pub struct Controller {
    #[command(flatten)]
    pub cluster: Cluster,
    /// Leave scaling to a `neap autoscaler` of its own.
    #[arg(long)]
    pub no_autoscaler: bool,
    #[command(flatten)]
    pub autoscaling: Autoscaling,
    /// Where metrics and health are served.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:9090")]
    pub metrics: SocketAddr,
}

#[derive(Debug, clap::Args)]
pub struct Autoscaler {
    #[command(flatten)]
    pub cluster: Cluster,
    #[command(flatten)]
    pub autoscaling: Autoscaling,
    /// Where metrics and health are served.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:9090")]
    pub metrics: SocketAddr,
}

#[derive(Debug, clap::Args)]
pub struct Autoscaling {
    /// Where activators send their statistics.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:8080")]
    pub statistics: SocketAddr,
    /// Every request comes through a Neap gateway, which activates by itself: nothing is asked before a
    /// revision goes to sleep.
    #[arg(long)]
    pub always_in_path: bool,
}

#[derive(Debug, clap::Args)]
pub struct Gateway {
    #[command(flatten)]
    pub cluster: Cluster,
    /// Address to listen on.
    #[arg(long, value_name = "ADDR", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    pub listen: IpAddr,
    /// Port for public hosts, plain HTTP.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub http_port: u16,
    /// Port for public hosts, HTTPS.
    #[arg(long, value_name = "PORT", default_value_t = 8443)]
    pub https_port: u16,
    /// Port for hosts of the cluster alone.
    #[arg(long, value_name = "PORT", default_value_t = 8081)]
    pub internal_port: u16,
    /// Port for hosts of the cluster alone, HTTPS; needed where `cluster-local-domain-tls` is on.
    #[arg(long, value_name = "PORT")]
    pub internal_https_port: Option<u16>,
    /// Believe what callers of the public ports say in X-Forwarded-For, -Proto and -Host: for a balancer of yours in front,
    /// which nobody can get around.
    #[arg(long)]
    pub trust_forwarded: bool,
    /// Where metrics and health are served.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:9090")]
    pub metrics: SocketAddr,
    /// Where statistics go [default: the Service `autoscaler` of knative-serving, port 8080]
    #[arg(long, value_name = "HOST:PORT")]
    pub autoscaler: Option<String>,
    /// Longest wait for requests in flight at the end, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub drain_seconds: u64,
}

#[derive(Debug, clap::Args)]
pub struct Webhook {
    #[command(flatten)]
    pub cluster: Cluster,
    /// Where the API server's questions are answered.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:8443")]
    pub listen: SocketAddr,
    /// Where the API server finds this process, if not by the Service `webhook`: https://HOST:PORT
    #[arg(long)]
    pub url: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Install {
    #[command(flatten)]
    pub cluster: Cluster,
    /// Definitions of the kinds, roles, accounts and config-maps: what the roles need, wherever they run.
    #[arg(long, required = true)]
    pub crds: bool,
    /// Default domain of services [default: none, so that services are seen inside the cluster only]
    #[arg(long)]
    pub domain: Option<String>,
    /// Print the objects instead, for `kubectl apply --server-side -f -`.
    #[arg(long)]
    pub print: bool,
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
        assert_eq!((up.domain, up.pod_cidr.as_str()), (None, "198.19.0.0/16"));
        assert!(up.listen.is_loopback() && !up.demo && up.data_dir.is_none());
    }
}
