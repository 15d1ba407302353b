//! Machines that forward nothing unless somebody says so: Docker and ufw set the policy of the old FORWARD chain to DROP,
//! and no table of ours can overrule another's no. There, and only there, two rules are put into that chain, by the
//! program with which those others speak. It never touches a rule that it did not make.

use std::io;
use std::process::{Command, Output, Stdio};

use super::addresses::Block;

/// The chain is held by whoever changes it; that takes milliseconds.
const PATIENCE_S: &str = "5";
/// Where administrators' programs are, for those who start neap without them in the path.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Packets from the block, and packets to it.
const ENDS: [&str; 2] = ["-s", "-d"];

/// Lets packets from and to the block through, where they would be dropped. Who may begin a connection to the block is
/// another question, which `nft::shield` answers.
///
/// # Errors
/// They are dropped, and the rules that would let them through cannot be made.
pub(crate) fn open(block: Block) -> io::Result<()> {
    let Some(listed) = list()? else { return Ok(()) };
    if !drops(&listed) {
        return Ok(());
    }
    for end in ENDS {
        if !ask(&rule("-C", end, block))?.status.success() {
            let done = ask(&rule("-I", end, block))?;
            if !done.status.success() {
                return Err(io::Error::other(String::from_utf8_lossy(&done.stderr).trim().to_owned()));
            }
        }
    }
    Ok(())
}

/// Takes the rules of a block away, however often they are there.
pub(crate) fn close(block: Block) -> io::Result<()> {
    if list()?.is_none_or(|listed| !listed.contains(&block.to_string())) {
        return Ok(());
    }
    for end in ENDS {
        // Each call takes one, until none is left.
        while ask(&rule("-D", end, block))?.status.success() {}
    }
    Ok(())
}

fn rule(verb: &str, end: &str, block: Block) -> Vec<String> {
    [verb, "FORWARD", end, &block.to_string(), "-j", "ACCEPT"].map(str::to_owned).to_vec()
}

/// What `iptables -S FORWARD` says; `None` without that program, or where the kernel has no such chain.
fn list() -> io::Result<Option<String>> {
    match ask(&["-S".to_owned(), "FORWARD".to_owned()]) {
        Ok(done) if done.status.success() => Ok(Some(String::from_utf8_lossy(&done.stdout).into_owned())),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// By policy, or by a last rule for all (as firewalld and old distributions have it).
fn drops(listed: &str) -> bool {
    listed.lines().map(str::trim).any(|line| {
        line == "-P FORWARD DROP" || line == "-A FORWARD -j DROP" || line.starts_with("-A FORWARD -j REJECT")
    })
}

fn ask(words: &[String]) -> io::Result<Output> {
    let mut command = Command::new("iptables");
    command.env("PATH", PATH).args(["-w", PATIENCE_S]).args(words).stdin(Stdio::null());
    command.output()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_closed_chain_is_opened() {
        let check = |listed: &str, want: bool| assert_eq!(drops(listed), want, "{listed}");
        check("-P FORWARD ACCEPT\n", false);
        check("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n", true);
        check("-P FORWARD ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n", true);
        check("-P FORWARD ACCEPT\n-A FORWARD -i eth0 -j DROP\n", false);
    }
}
