//! Machines whose own nftables rules forward nothing unless somebody says so: a chain whose policy is to drop, or whose
//! last rule drops or refuses all. As with the old FORWARD chain (`forward`) no table of ours can overrule that; there, and
//! only there, two rules are put into the chain, by the program with which such rules are written. It never touches a rule
//! that it did not make.

use std::io;
use std::process::{Command, Output, Stdio};

use serde::Deserialize;

use super::addresses::Block;
use super::forward::PATH;

/// By it a rule is known as one of ours.
const COMMENT: &str = "neap";
/// Packets from the block, and packets to it.
const ENDS: [&str; 2] = ["saddr", "daddr"];

/// A chain through which forwarded packets go.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
}

/// Lets packets from and to the block through, where they would be dropped.
///
/// # Errors
/// They are dropped, and the rules that would let them through cannot be made: what to do, in words.
pub(crate) fn open(block: Block) -> io::Result<()> {
    for chain in forwarding()? {
        let listed = text(&ask(&chain.command(&["list", "chain"], &[]))?);
        if !chain.drops(&listed) {
            continue;
        }
        for end in ENDS.into_iter().filter(|end| !lets_through(&listed, end, block)) {
            let rule =
                ["ip", end, &block.to_string(), "accept", "comment", &format!("\"{COMMENT}\"")].map(str::to_owned);
            let words = chain.command(&["insert", "rule"], &rule);
            let done = ask(&words)?;
            if !done.status.success() {
                let why = String::from_utf8_lossy(&done.stderr).lines().next().unwrap_or_default().to_owned();
                return Err(io::Error::other(format!("nft {} is refused: {why}", words.join(" "))));
            }
        }
    }
    Ok(())
}

/// Takes the rules of a block away.
pub(crate) fn close(block: Block) -> io::Result<()> {
    for chain in forwarding()? {
        for handle in ours(&text(&ask(&chain.command(&["-a", "list", "chain"], &[]))?), block) {
            ask(&chain.command(&["delete", "rule"], &["handle".to_owned(), handle]))?;
        }
    }
    Ok(())
}

impl Chain {
    fn command(&self, before: &[&str], after: &[String]) -> Vec<String> {
        let own = [&self.family, &self.table, &self.name].map(Clone::clone);
        before.iter().map(|word| (*word).to_owned()).chain(own).chain(after.iter().cloned()).collect()
    }

    /// By policy, or by a last rule for all. `listed`: its rules, one a line.
    fn drops(&self, listed: &str) -> bool {
        let last = listed.lines().map(str::trim).rfind(|line| !line.is_empty() && *line != "}").unwrap_or_default();
        self.policy.as_deref() == Some("drop") || matches!(verdict(last), Some("drop" | "reject"))
    }
}

fn lets_through(listed: &str, end: &str, block: Block) -> bool {
    let from_here = format!("ip {end} {block} ");
    listed.lines().filter_map(|line| line.trim().strip_prefix(&from_here)).any(|rest| verdict(rest) == Some("accept"))
}

/// The first word of a rule that is no count, as in "counter packets 1 bytes 2 accept".
fn verdict(rule: &str) -> Option<&str> {
    let mut words = rule.split(' ');
    match words.next() {
        Some("counter") => words.nth(4),
        first => first,
    }
}

/// Numbers of the rules that are ours.
fn ours(listed: &str, block: Block) -> Vec<String> {
    let block = format!(" {block} accept comment \"{COMMENT}\"");
    let rules = listed.lines().filter(|line| line.contains(&block));
    rules.filter_map(|line| Some(line.rsplit_once("# handle ")?.1.trim().to_owned())).collect()
}

/// Chains for forwarded packets of IPv4 that others made. None without the program: then nobody wrote such rules, or
/// somebody who does not use it.
fn forwarding() -> io::Result<Vec<Chain>> {
    #[derive(Deserialize)]
    struct Listed {
        #[serde(default)]
        nftables: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        chain: Option<Chain>,
    }
    let done = match ask(&["-j", "list", "chains"].map(str::to_owned)) {
        Ok(done) if done.status.success() => done,
        Ok(done) => return Err(io::Error::other(String::from_utf8_lossy(&done.stderr).trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let listed: Listed = serde_json::from_slice(&done.stdout)?;
    let chains = listed.nftables.into_iter().filter_map(|entry| entry.chain);
    Ok(chains.filter(|c| c.hook.as_deref() == Some("forward") && ["ip", "inet"].contains(&&*c.family)).collect())
}

fn text(done: &Output) -> String {
    String::from_utf8_lossy(&done.stdout).into_owned()
}

fn ask(words: &[String]) -> io::Result<Output> {
    Command::new("nft").env("PATH", PATH).args(words).stdin(Stdio::null()).output()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(policy: &str) -> Chain {
        let [family, table, name] = ["inet", "filter", "forward"].map(str::to_owned);
        Chain { family, table, name, hook: Some("forward".into()), policy: Some(policy.into()) }
    }

    #[test]
    fn only_a_closed_chain_is_opened() {
        let check = |policy: &str, rules: &str, want: bool| {
            let head = format!("type filter hook forward priority filter; policy {policy};");
            let listed = format!("table inet filter {{\n\tchain forward {{\n\t\t{head}\n{rules}\t}}\n}}\n");
            assert_eq!(chain(policy).drops(&listed), want, "{listed}");
        };
        check("accept", "", false);
        check("drop", "", true);
        check("drop", "\t\tct state established accept\n", true);
        check("accept", "\t\tct state established accept\n\t\treject with icmpx admin-prohibited\n", true);
        check("accept", "\t\tcounter packets 1 bytes 2 drop\n", true);
        check("accept", "\t\tiifname \"eth0\" drop\n", false);
        check("accept", "\t\tdrop\n\t\tcounter packets 1 bytes 2 accept\n", false);
    }

    #[test]
    fn our_rules_are_known_again() {
        let block = Block::parse("198.19.16.0/20").expect("a block");
        let listed = "\t\tip saddr 198.19.16.0/20 accept comment \"neap\" # handle 7\n\
                      \t\tip daddr 198.19.32.0/20 accept comment \"neap\" # handle 8\n\
                      \t\tip daddr 198.19.16.0/20 accept # handle 9\n";
        assert_eq!(ours(listed, block), ["7"]);
        assert!(lets_through(listed, "saddr", block) && lets_through(listed, "daddr", block));
        assert!(!lets_through(listed, "saddr", Block::parse("198.19.32.0/20").expect("a block")));
        let check = |rule: &str, want: bool| assert_eq!(lets_through(rule, "saddr", block), want, "{rule}");
        check("\t\tip saddr 198.19.16.0/20 counter packets 3 bytes 9 accept # handle 1\n", true);
        check("\t\tip saddr 198.19.16.0/20 tcp dport 443 accept # handle 1\n", false);
        check("\t\tip saddr 198.19.16.0/20 drop comment \"not accept\" # handle 1\n", false);
    }
}
