//! Names and bits of Linux capabilities, and which of them a container has.

/// In the order of their numbers.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What containers have unasked: Docker's list without two. MKNOD, because nothing made with it could be opened; and
/// NET_RAW, because it lets a pod speak with others' addresses, and `ping` works without (see `ping_group_range`).
const DEFAULT: [&str; 12] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "AUDIT_WRITE",
    "SETFCAP",
];

/// The bit of a capability, with or without `CAP_` in front, in either case.
pub(crate) fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|known| *known == short).map(|at| 1 << at)
}

/// Names of the capabilities, as OCI spells them.
pub(crate) fn names(bits: u64) -> Vec<String> {
    let held = NAMES.iter().enumerate().filter(|(at, _)| bits & (1 << at) != 0);
    held.map(|(_, name)| format!("CAP_{name}")).collect()
}

/// The bits that remain after adding to and dropping from the default set. `ALL` stands for every capability.
pub(crate) fn resolve(privileged: bool, add: &[String], drop: &[String]) -> Result<u64, String> {
    const ALL: u64 = (1 << NAMES.len()) - 1;
    let bits = |name: &str| match bit(name) {
        Some(bit) => Ok(bit),
        None if ["ALL", "CAP_ALL"].contains(&name.to_ascii_uppercase().as_str()) => Ok(ALL),
        None => Err(format!("there is no capability {name}")),
    };
    if privileged {
        return Ok(ALL);
    }
    let all = |names: &[String]| names.iter().try_fold(0, |all, name| Ok::<u64, String>(all | bits(name)?));
    let (add_bits, drop_bits) = (all(add)?, all(drop)?);
    let default = DEFAULT.iter().try_fold(0, |all, name| Ok::<u64, String>(all | bits(name)?))?;
    // "drop ALL, add X" leaves X; "add ALL, drop X" leaves all but X.
    let drops_all = drop_bits == ALL;
    Ok(if drops_all { add_bits } else { (default | add_bits) & !drop_bits })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(privileged: bool, add: &[&str], drop: &[&str], expected: Result<&[&str], &str>) {
        let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let found = resolve(privileged, &own(add), &own(drop)).map(|bits| {
            NAMES.iter().enumerate().filter(|(at, _)| bits & (1 << at) != 0).map(|(_, name)| *name).collect::<Vec<_>>()
        });
        assert_eq!(found.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn adding_and_dropping() {
        check(false, &["net_admin"], &["ALL"], Ok(&["NET_ADMIN"]));
        check(false, &[], &["CAP_ALL"], Ok(&[]));
        check(true, &[], &["ALL"], Ok(&NAMES));
        check(false, &["FLY"], &[], Err("there is no capability FLY"));
        let all_but: Vec<_> = NAMES.iter().copied().filter(|n| *n != "SYS_ADMIN").collect();
        check(false, &["ALL"], &["SYS_ADMIN"], Ok(&all_but));
        assert_eq!(resolve(false, &[], &[]).expect("fine").count_ones(), 12);
    }
}
