//! The config-maps of `knative-serving` as typed settings (facts, section B).
//!
//! Text becomes a value here and nowhere else; who holds a `Settings` need not check anything again.
//! Must never fall back silently: each value that cannot be used is a [`Mistake`].

use std::collections::BTreeMap;

pub mod acme;
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

pub use acme::{Acme, ChallengeKind};
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
        let (settings, mistakes) = Self::read(maps, None);
        if mistakes.is_empty() { Ok(settings) } else { Err(mistakes) }
    }

    /// Reads what can be used, and says everything that cannot. A map with a mistake stays what it was in `held`, whole:
    /// half of a change may be worse than none. Where nothing was held, what cannot be used takes its default.
    pub fn read(maps: &Maps, held: Option<&Self>) -> (Self, Vec<Mistake>) {
        let mut all = Vec::new();
        let settings = Self {
            autoscaler: one_map(maps, autoscaler::MAP, autoscaler::parse, held.map(|held| &held.autoscaler), &mut all),
            defaults: one_map(maps, defaults::MAP, defaults::parse, held.map(|held| &held.defaults), &mut all),
            features: one_map(maps, features::MAP, features::parse, held.map(|held| &held.features), &mut all),
            deployment: one_map(maps, deployment::MAP, deployment::parse, held.map(|held| &held.deployment), &mut all),
            domain: one_map(maps, domain::MAP, domain::parse, held.map(|held| &held.domain), &mut all),
            gc: one_map(maps, gc::MAP, gc::parse, held.map(|held| &held.gc), &mut all),
            network: one_map(maps, network::MAP, network::parse, held.map(|held| &held.network), &mut all),
            observability: one_map(
                maps,
                observability::MAP,
                observability::parse,
                held.map(|held| &held.observability),
                &mut all,
            ),
            logging: one_map(maps, logging::MAP, logging::parse, held.map(|held| &held.logging), &mut all),
            leader_election: one_map(
                maps,
                leader_election::MAP,
                leader_election::parse,
                held.map(|held| &held.leader_election),
                &mut all,
            ),
            neap: one_map(maps, neap::MAP, neap::parse, held.map(|held| &held.neap), &mut all),
        };
        (settings, all)
    }

    /// The mistakes of one config-map; none for a map this platform does not read.
    pub fn check_map(name: &str, data: &Data) -> Vec<Mistake> {
        let maps = Maps::from([(name.to_owned(), data.clone())]);
        Self::parse(&maps).err().unwrap_or_default()
    }
}

fn one_map<T: Clone>(
    maps: &Maps,
    name: &str,
    parse: fn(&Data, &mut Vec<Mistake>) -> T,
    held: Option<&T>,
    all: &mut Vec<Mistake>,
) -> T {
    let mut mistakes = Vec::new();
    let missing = Data::new();
    let read = parse(maps.get(name).unwrap_or(&missing), &mut mistakes);
    let kept = held.filter(|_| !mistakes.is_empty()).cloned();
    all.append(&mut mistakes);
    kept.unwrap_or(read)
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
