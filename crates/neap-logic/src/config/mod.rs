//! The config-maps of `knative-serving` as typed settings (facts, section B).
//!
//! Text becomes a value here and nowhere else; who holds a `Settings` need not check anything again.
//! Must never fall back silently: each value that cannot be used is a [`Mistake`].

use std::collections::BTreeMap;

pub mod autoscaler;
pub mod defaults;
pub mod deployment;
pub mod domain;
mod examples;
pub mod features;
pub mod gc;
pub mod go;
pub mod leader_election;
pub mod logging;
pub mod logs;
pub mod neap;
pub mod network;
pub mod observability;
pub mod quantity;
mod reader;

pub use autoscaler::Autoscaler;
pub use defaults::Defaults;
pub use deployment::Deployment;
pub use domain::Domain;
pub use examples::examples;
pub use features::{Features, Flag};
pub use gc::Gc;
pub use leader_election::LeaderElection;
pub use logging::Logging;
pub use logs::Logs;
pub use neap::Neap;
pub use network::Network;
pub use observability::Observability;
pub use reader::{Data, Mistake};

/// The block of a config-map that documents it; never read as settings.
pub const EXAMPLE_KEY: &str = "_example";
/// Annotation with the checksum of that block, so that an edit inside it is noticed.
pub const EXAMPLE_CHECKSUM: &str = "knative.dev/example-checksum";

/// Everything an administrator can set.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settings {
    /// `config-autoscaler`.
    pub autoscaler: Autoscaler,
    /// `config-defaults`.
    pub defaults: Defaults,
    /// `config-features`.
    pub features: Features,
    /// `config-deployment`.
    pub deployment: Deployment,
    /// `config-domain`.
    pub domain: Domain,
    /// `config-gc`.
    pub gc: Gc,
    /// `config-network`.
    pub network: Network,
    /// `config-observability`.
    pub observability: Observability,
    /// `config-logging`.
    pub logging: Logging,
    /// `config-leader-election`.
    pub leader_election: LeaderElection,
    /// `config-neap`.
    pub neap: Neap,
}

/// Config-maps by name.
pub type Maps = BTreeMap<String, Data>;

impl Settings {
    /// Reads all settings, or says everything that is wrong with them. A missing map or key takes its
    /// default.
    pub fn parse(maps: &Maps) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let empty = Data::new();
        let of = |name: &str| maps.get(name).unwrap_or(&empty);
        let settings = Self {
            autoscaler: autoscaler::parse(of(autoscaler::MAP), &mut mistakes),
            defaults: defaults::parse(of(defaults::MAP), &mut mistakes),
            features: features::parse(of(features::MAP), &mut mistakes),
            deployment: deployment::parse(of(deployment::MAP), &mut mistakes),
            domain: domain::parse(of(domain::MAP), &mut mistakes),
            gc: gc::parse(of(gc::MAP), &mut mistakes),
            network: network::parse(of(network::MAP), &mut mistakes),
            observability: observability::parse(of(observability::MAP), &mut mistakes),
            logging: logging::parse(of(logging::MAP), &mut mistakes),
            leader_election: leader_election::parse(of(leader_election::MAP), &mut mistakes),
            neap: neap::parse(of(neap::MAP), &mut mistakes),
        };
        if mistakes.is_empty() { Ok(settings) } else { Err(mistakes) }
    }

    /// The mistakes of one config-map; none for a map this platform does not read.
    pub fn check_map(name: &str, data: &Data) -> Vec<Mistake> {
        let maps = Maps::from([(name.to_owned(), data.clone())]);
        Self::parse(&maps).err().unwrap_or_default()
    }
}

/// The checksum of an example block: CRC-32 (IEEE) of the text without surrounding white space and with
/// trailing blanks of lines removed, in hexadecimal.
pub fn checksum(example: &str) -> String {
    let lines: Vec<&str> = example.lines().map(|line| line.trim_end_matches(' ')).collect();
    let trimmed = lines.join("\n");
    format!("{:08x}", crate::names::hash::crc32(trimmed.trim().as_bytes()))
}

#[cfg(test)]
mod facts_tests;
#[cfg(test)]
mod tests;
