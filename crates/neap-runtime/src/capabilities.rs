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

/// What Docker and Kubernetes give by default, without MKNOD: device nodes would reach past the device list that
/// those enforce and we do not need, and hardly anything in a container makes any.
const DEFAULT: [&str; 13] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SYS_CHROOT",
    "AUDIT_WRITE",
    "SETFCAP",
];

/// The bits that remain after adding to and dropping from the default set. `ALL` stands for every capability.
pub(crate) fn resolve(privileged: bool, add: &[String], drop: &[String]) -> Result<u64, String> {
    const ALL: u64 = (1 << NAMES.len()) - 1;
    let bit = |name: &str| {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        match short {
            "ALL" => Ok(ALL),
            short => NAMES
                .iter()
                .position(|known| *known == short)
                .map(|at| 1_u64 << at)
                .ok_or_else(|| format!("there is no capability {name}")),
        }
    };
    if privileged {
        return Ok(ALL);
    }
    let all = |names: &[String]| names.iter().try_fold(0, |bits, name| Ok::<u64, String>(bits | bit(name)?));
    let (add_bits, drop_bits) = (all(add)?, all(drop)?);
    let default = DEFAULT.iter().try_fold(0, |bits, name| Ok::<u64, String>(bits | bit(name)?))?;
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
        assert_eq!(resolve(false, &[], &[]).expect("fine").count_ones(), 13);
    }
}
