//! What was asked for, checked and complete. Reads no file and opens nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use crate::args::{Runtime, Up};

#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    pub listen: IpAddr,
    pub api_port: u16,
    pub http_port: u16,
    pub https_port: u16,
    pub registry_port: u16,
    pub trust_forwarded: bool,
    /// `None`: what the settings say, and `localhost` where they say nothing yet.
    pub domain: Option<String>,
    pub runtime: Runtime,
    pub pod_cidr: String,
    pub audit_log: Option<PathBuf>,
    pub demo: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Mistake {
    #[error("there is no home directory to keep data in: give --data-dir")]
    NoHome,
    #[error("--domain {0:?} is no domain name: give one such as localhost or apps.example.com")]
    Domain(String),
    #[error("--pod-cidr {0:?} is no network: give one such as 198.19.0.0/16, between /12 and /28")]
    PodCidr(String),
    #[error("{0} and {1} name the same port {2}: give each its own, or 0 for a free one")]
    SamePort(&'static str, &'static str, u16),
}

impl Config {
    /// # Errors
    /// The first flag that cannot be used.
    pub fn resolve(flags: Up, env: &BTreeMap<String, String>) -> Result<Self, Mistake> {
        let Up {
            data_dir,
            listen,
            api_port,
            http_port,
            https_port,
            registry_port,
            trust_forwarded,
            domain,
            runtime,
            pod_cidr,
            audit_log,
            demo,
        } = flags;
        let data_dir = match data_dir {
            Some(dir) => dir,
            None => default_data_dir(nix::unistd::geteuid().is_root(), env).ok_or(Mistake::NoHome)?,
        };
        if let Some(domain) = domain.as_ref().filter(|domain| !neap_logic::names::is_dns1123_subdomain(domain)) {
            return Err(Mistake::Domain(domain.clone()));
        }
        if !is_network(&pod_cidr) {
            return Err(Mistake::PodCidr(pod_cidr));
        }
        let ports = [
            ("--api-port", api_port),
            ("--http-port", http_port),
            ("--https-port", https_port),
            ("--registry-port", registry_port),
        ];
        for (at, (name, port)) in ports.iter().enumerate() {
            if let Some((other, _)) = ports[..at].iter().find(|(_, p)| p == port && *port != 0) {
                return Err(Mistake::SamePort(other, name, *port));
            }
        }
        Ok(Self {
            data_dir,
            listen,
            api_port,
            http_port,
            https_port,
            registry_port,
            trust_forwarded,
            domain,
            runtime,
            pod_cidr,
            audit_log,
            demo,
        })
    }
}

fn default_data_dir(root: bool, env: &BTreeMap<String, String>) -> Option<PathBuf> {
    if root {
        return Some("/var/lib/neap".into());
    }
    let named = env.get("XDG_DATA_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let base = named.or_else(|| env.get("HOME").map(|home| PathBuf::from(home).join(".local/share")))?;
    Some(base.join("neap"))
}

/// Room for pods, and not half of the Internet.
fn is_network(cidr: &str) -> bool {
    let Some((address, bits)) = cidr.split_once('/') else { return false };
    let (Ok(address), Ok(bits)) = (address.parse::<Ipv4Addr>(), bits.parse::<u32>()) else { return false };
    (12..=28).contains(&bits) && u32::from(address) & (u32::MAX >> bits) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Command};
    use clap::Parser;

    fn check(words: &str, want: Result<(), &str>) {
        let words = ["neap", "up", "--data-dir", "/d"].into_iter().chain(words.split_whitespace());
        let Command::Up(up) = Args::try_parse_from(words).expect("it parses").command else { panic!("up is up") };
        match (Config::resolve(up, &BTreeMap::new()), want) {
            (Ok(_), Ok(())) => {}
            (Err(mistake), Err(flag)) => assert!(mistake.to_string().contains(flag), "{mistake}"),
            (got, want) => panic!("{got:?} instead of {want:?}"),
        }
    }

    #[test]
    fn flags_are_checked_before_anything_is_opened() {
        check("", Ok(()));
        check("--api-port 0 --http-port 0", Ok(()));
        check("--api-port 8080", Err("--api-port and --http-port"));
        check("--domain under_score", Err("--domain"));
        for cidr in ["198.19.0.0", "198.19.0.1/16", "10.0.0.0/8", "198.19.0.0/30", "x/16"] {
            check(&format!("--pod-cidr {cidr}"), Err("--pod-cidr"));
        }
    }
}
