//! Profiles from files, in the JSON format of Docker and of the OCI runtime specification.

use serde::Deserialize;

use super::{ALLOW, Action, Condition, Filter, Program, Test, errno};
use crate::capabilities;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    syscalls: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    names: Vec<String>,
    /// The old way to name one.
    name: Option<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Bounds,
    #[serde(default)]
    excludes: Bounds,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// Where an entry applies, in Docker's own extension of the format.
#[derive(Default, Deserialize)]
struct Bounds {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

/// `held`: bits of the container's capabilities. `Err` says what is wrong with the profile.
pub(crate) fn parse(text: &str, held: u64) -> Result<Program, String> {
    let profile: Profile = serde_json::from_str(text).map_err(|e| format!("the seccomp profile is not valid: {e}"))?;
    let mut filter = Filter::new(action(&profile.default_action, profile.default_errno_ret)?);
    let applies = |entry: &&Entry| {
        let has = |name: &String| capabilities::bit(name).is_some_and(|bit| held & bit != 0);
        let here = |arches: &[String]| arches.iter().any(|a| ARCHITECTURES.contains(&a.as_str()));
        let included = (entry.includes.caps.is_empty() || entry.includes.caps.iter().all(has))
            && (entry.includes.arches.is_empty() || here(&entry.includes.arches));
        included && !entry.excludes.caps.iter().any(has) && !here(&entry.excludes.arches)
    };
    let entries: Vec<&Entry> = profile.syscalls.iter().filter(applies).collect();
    // What looks at arguments is more specific, wherever it stands.
    let (specific, general): (Vec<&Entry>, Vec<&Entry>) =
        entries.into_iter().partition(|e| e.args.as_ref().is_some_and(|args| !args.is_empty()));
    for entry in specific.into_iter().chain(general) {
        let conditions = entry.args.iter().flatten().map(condition).collect::<Result<Vec<_>, _>>()?;
        let action = action(&entry.action, entry.errno_ret)?;
        for name in entry.names.iter().chain(&entry.name) {
            filter.add(name, &conditions, action);
        }
    }
    filter.compile()
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: &[&str] = &["amd64", "SCMP_ARCH_X86_64"];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: &[&str] = &["arm64", "SCMP_ARCH_AARCH64"];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCHITECTURES: &[&str] = &["riscv64", "SCMP_ARCH_RISCV64"];

fn action(name: &str, number: Option<u16>) -> Result<Action, String> {
    let refusal = || errno(number.map_or(libc::EPERM, i32::from));
    Ok(match name {
        "SCMP_ACT_ALLOW" => ALLOW,
        "SCMP_ACT_ERRNO" => refusal(),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action(libc::SECCOMP_RET_KILL_THREAD),
        "SCMP_ACT_KILL_PROCESS" => Action(libc::SECCOMP_RET_KILL_PROCESS),
        "SCMP_ACT_TRAP" => Action(libc::SECCOMP_RET_TRAP),
        "SCMP_ACT_LOG" => Action(libc::SECCOMP_RET_LOG),
        other => return Err(format!("the seccomp profile's action {other:?} is not offered here")),
    })
}

fn condition(argument: &Argument) -> Result<Condition, String> {
    let Argument { index, value, value_two, op } = argument;
    if *index > 5 {
        return Err(format!("the seccomp profile names argument {index}; a call has arguments 0 to 5"));
    }
    let test = match op.as_str() {
        "SCMP_CMP_EQ" => Test::Equal(*value),
        "SCMP_CMP_NE" => Test::NotEqual(*value),
        "SCMP_CMP_LT" => Test::Less(*value),
        "SCMP_CMP_LE" => Test::LessOrEqual(*value),
        "SCMP_CMP_GE" => Test::GreaterOrEqual(*value),
        "SCMP_CMP_GT" => Test::Greater(*value),
        "SCMP_CMP_MASKED_EQ" => Test::Masked { mask: *value, value: *value_two },
        other => return Err(format!("the seccomp profile's comparison {other:?} is not known")),
    };
    Ok(Condition { argument: *index, test })
}
