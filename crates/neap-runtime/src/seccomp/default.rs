//! The profile of a container that names none: what Docker's allows, in other words.
//!
//! Every call of the table is allowed but those named here, most of which a capability opens again. What the table does
//! not know is answered as by a kernel that does not have it, so that a new call of a new kernel opens nothing.

use super::{ALLOW, Condition, Filter, Program, REFUSE, Test, UNKNOWN, names};
use crate::capabilities;

/// Never: gone from the kernel, or with a history of ways out of containers and next to no use inside.
const NEVER: &[&str] = &[
    "_sysctl",
    "add_key",
    "afs_syscall",
    "getpmsg",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "keyctl",
    "nfsservctl",
    "putpmsg",
    "request_key",
    "security",
    "sysfs",
    "tuxcall",
    "userfaultfd",
    "uselib",
    "ustat",
    "vserver",
];

/// Only with one of these capabilities.
const WITH: &[(&[&str], &[&str])] = &[
    (
        &["SYS_ADMIN"],
        &[
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "listmount",
            "lookup_dcookie",
            "lsm_set_self_attr",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "statmount",
            "swapoff",
            "swapon",
            "umount2",
            "unshare",
        ],
    ),
    (&["SYS_ADMIN", "BPF"], &["bpf"]),
    (&["SYS_ADMIN", "PERFMON"], &["perf_event_open"]),
    (&["SYS_ADMIN", "SYSLOG"], &["syslog"]),
    (&["DAC_READ_SEARCH"], &["open_by_handle_at"]),
    (&["SYS_BOOT"], &["kexec_file_load", "kexec_load", "reboot"]),
    (&["SYS_CHROOT"], &["chroot"]),
    (&["SYS_MODULE"], &["delete_module", "finit_module", "init_module"]),
    (
        &["SYS_NICE"],
        &["get_mempolicy", "mbind", "migrate_pages", "move_pages", "set_mempolicy", "set_mempolicy_home_node"],
    ),
    (&["SYS_PACCT"], &["acct"]),
    (&["SYS_PTRACE"], &["kcmp", "pidfd_getfd"]),
    (&["SYS_RAWIO"], &["ioperm", "iopl"]),
    (&["SYS_TIME"], &["clock_settime", "settimeofday"]),
    (&["SYS_TTY_CONFIG"], &["vhangup"]),
];

/// Bits of clone's flags that ask for a new namespace: cgroup, UTS, IPC, user, PID, network, mount.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// Sockets to the machine's own hypervisor know no namespace.
const AF_VSOCK: u64 = 40;
/// Linux, Linux without address randomization, and their 32-bit sisters; the last one only asks.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// `held`: bits of the container's capabilities.
pub(crate) fn default(held: u64) -> Program {
    filter(held).compile().expect("a few hundred calls make a few hundred instructions")
}

pub(super) fn filter(held: u64) -> Filter {
    let has = |all: &[&str]| all.iter().any(|name| capabilities::bit(name).is_some_and(|bit| held & bit != 0));
    let refused: Vec<&str> = NEVER
        .iter()
        .chain(WITH.iter().filter(|(capabilities, _)| !has(capabilities)).flat_map(|(_, calls)| *calls))
        .copied()
        .collect();
    let low = |value: u64| Condition { argument: 0, test: Test::Masked { mask: 0xffff_ffff, value } };
    let mut filter = Filter::new(UNKNOWN);
    for name in names::all() {
        match name {
            "personality" => {
                for value in PERSONALITIES {
                    filter.add(name, &[low(value)], ALLOW);
                }
                filter.add(name, &[], REFUSE);
            }
            "socket" => {
                filter.add(name, &[low(AF_VSOCK)], REFUSE);
                filter.add(name, &[], ALLOW);
            }
            "clone" if !has(&["SYS_ADMIN"]) => {
                let none = Condition { argument: 0, test: Test::Masked { mask: NEW_NAMESPACES, value: 0 } };
                filter.add(name, &[none], ALLOW);
                filter.add(name, &[], REFUSE);
            }
            // Its flags lie in memory, where no filter sees them; C libraries then take the older call.
            "clone3" if !has(&["SYS_ADMIN"]) => filter.add(name, &[], UNKNOWN),
            _ if refused.contains(&name) => filter.add(name, &[], REFUSE),
            _ => filter.add(name, &[], ALLOW),
        }
    }
    filter
}
