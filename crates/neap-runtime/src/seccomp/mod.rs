//! Which system calls a container may make, as a program for the kernel's filter.
//!
//! Three steps, all pure: rules per system call (`default`, or `profile` from a file), a [`Filter`] of them, its program
//! (`bpf`). The program is made before the container and only handed to the kernel in its first process.

mod bpf;
mod default;
mod names;
mod oci;
mod profile;

use std::collections::BTreeMap;

pub(crate) use default::default;
pub(crate) use oci::default_as_oci;
pub(crate) use profile::parse;

/// What the kernel does with a call: one of its `SECCOMP_RET_*` words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Action(u32);

const ALLOW: Action = Action(libc::SECCOMP_RET_ALLOW);
/// Programs take this for "a kernel that does not have it" and do without.
const UNKNOWN: Action = errno(libc::ENOSYS);
const REFUSE: Action = errno(libc::EPERM);

const fn errno(number: i32) -> Action {
    Action(libc::SECCOMP_RET_ERRNO | (number as u32 & libc::SECCOMP_RET_DATA))
}

/// What an argument of a call must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition {
    /// 0 to 5.
    argument: u32,
    test: Test,
}

/// Of 64-bit values. What the kernel reads as 32 bits must be tested under a mask: the rest may hold anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Equal(u64),
    NotEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Masked { mask: u64, value: u64 },
}

/// Applies when every condition holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    conditions: Vec<Condition>,
    action: Action,
}

/// Rules by the number of the call; the first that applies decides.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Filter {
    rules: BTreeMap<u32, Vec<Rule>>,
    /// Where no rule applies.
    otherwise: Action,
}

impl Filter {
    fn new(otherwise: Action) -> Self {
        Self { rules: BTreeMap::new(), otherwise }
    }

    /// Adds a rule for a call, if this kind of machine has one of that name.
    fn add(&mut self, name: &str, conditions: &[Condition], action: Action) {
        if let Some(number) = names::number(name) {
            self.rules.entry(number).or_default().push(Rule { conditions: conditions.to_vec(), action });
        }
    }
}

/// A program as the kernel takes it; each instruction as code, jumps and constant in one number (see [`bpf::unpack`]).
pub(crate) type Program = Vec<u64>;

pub(crate) use bpf::unpack;

#[cfg(test)]
mod tests;
