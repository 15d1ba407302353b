//! From rules to the kernel's packet-filter instructions.
//!
//! The numbers of calls are cut into stretches that are treated alike and searched from the lowest. The search costs
//! next to nothing: for calls that are allowed whatever their arguments, the kernel remembers the answer.

use super::{Condition, Filter, Program, Rule, Test, UNKNOWN};

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const GO: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Where things lie in the kernel's `seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The kernel's `AUDIT_ARCH_*` word for what we are built for.
const NATIVE: u32 = {
    const LITTLE_ENDIAN: u32 = 0x4000_0000;
    const WIDE: u32 = 0x8000_0000;
    let machine = if cfg!(target_arch = "x86_64") {
        62
    } else if cfg!(target_arch = "aarch64") {
        183
    } else if cfg!(target_arch = "riscv64") {
        243
    } else {
        // Elsewhere nothing matches and every call is refused: that shows at the first test.
        0
    };
    LITTLE_ENDIAN | WIDE | machine
};
/// Calls of x86-64's half-forgotten x32 flavour have this bit.
const X32: u32 = 0x4000_0000;
/// Most instructions the kernel takes.
const LONGEST: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u16,
    yes: u8,
    no: u8,
    value: u32,
}

const fn plain(code: u16, value: u32) -> Instruction {
    Instruction { code, yes: 0, no: 0, value }
}

fn pack(one: Instruction) -> u64 {
    u64::from(one.code) | u64::from(one.yes) << 16 | u64::from(one.no) << 24 | u64::from(one.value) << 32
}

/// Code, jump when true, jump when false, constant.
pub(crate) fn unpack(packed: u64) -> (u16, u8, u8, u32) {
    (packed as u16, (packed >> 16) as u8, (packed >> 24) as u8, (packed >> 32) as u32)
}

impl Filter {
    /// `Err`: there are more rules than a program can hold.
    pub(super) fn compile(&self) -> Result<Program, String> {
        let mut code = vec![
            plain(LOAD, ARCHITECTURE),
            Instruction { code: IF_EQUAL, yes: 1, no: 0, value: NATIVE },
            plain(RETURN, UNKNOWN.0),
            plain(LOAD, NUMBER),
        ];
        if cfg!(target_arch = "x86_64") {
            code.push(Instruction { code: IF_GREATER_OR_EQUAL, yes: 0, no: 1, value: X32 });
            code.push(plain(RETURN, UNKNOWN.0));
        }
        let stretches = self.stretches();
        for (at, (_, block)) in stretches.iter().enumerate() {
            if let Some((next, _)) = stretches.get(at + 1) {
                // Beyond this stretch: over the block. A jump that depends on something is short, a plain one is not.
                code.push(Instruction { code: IF_GREATER_OR_EQUAL, yes: 0, no: 1, value: *next });
                code.push(plain(GO, block.len() as u32));
            }
            code.extend_from_slice(block);
        }
        if code.len() > LONGEST {
            return Err(format!("the seccomp profile makes {} instructions, the kernel takes {LONGEST}", code.len()));
        }
        Ok(code.into_iter().map(pack).collect())
    }

    /// First number and code of each stretch of calls that are treated alike; the first begins at 0.
    fn stretches(&self) -> Vec<(u32, Vec<Instruction>)> {
        let otherwise = vec![plain(RETURN, self.otherwise.0)];
        let mut all = vec![(0, otherwise.clone())];
        for (number, rules) in &self.rules {
            all.push((*number, self.block(rules)));
            all.push((number + 1, otherwise.clone()));
        }
        // What begins at the same number replaces what was there.
        let mut merged: Vec<(u32, Vec<Instruction>)> = Vec::new();
        for (number, block) in all {
            if merged.last().is_some_and(|(last, _)| *last == number) {
                merged.pop();
            }
            if merged.last().is_none_or(|(_, last)| *last != block) {
                merged.push((number, block));
            }
        }
        merged
    }

    fn block(&self, rules: &[Rule]) -> Vec<Instruction> {
        let mut block = Vec::new();
        for rule in rules {
            block.extend(code_of(rule));
            if rule.conditions.is_empty() {
                return block;
            }
        }
        block.push(plain(RETURN, self.otherwise.0));
        block
    }
}

/// Where a test of half a value leads.
#[derive(Clone, Copy)]
enum To {
    Next,
    /// This condition holds: to the next one.
    Holds,
    /// To the next rule.
    Fails,
}

fn code_of(rule: &Rule) -> Vec<Instruction> {
    let conditions: Vec<_> = rule.conditions.iter().map(steps).collect();
    let length: usize = conditions.iter().map(Vec::len).sum::<usize>() + 1;
    let mut code = Vec::with_capacity(length);
    for steps in conditions {
        let end = code.len() + steps.len();
        for (instruction, yes, no) in steps {
            let after = code.len() + 1;
            // A condition has five steps and a call six arguments: never as far as 255.
            let far = |to| match to {
                To::Next => 0,
                To::Holds => (end - after) as u8,
                To::Fails => (length - after) as u8,
            };
            code.push(Instruction { yes: far(yes), no: far(no), ..instruction });
        }
    }
    code.push(plain(RETURN, rule.action.0));
    code
}

fn steps(condition: &Condition) -> Vec<(Instruction, To, To)> {
    use To::{Fails, Holds, Next};
    let base = ARGUMENTS + 8 * condition.argument;
    let (low, high) = if cfg!(target_endian = "little") { (base, base + 4) } else { (base + 4, base) };
    let step = |code, value| (plain(code, value), Next, Next);
    let test = |code, value, yes, no| (plain(code, value), yes, no);
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let compare = |value: u64, code: u16, holds: To, fails: To| {
        let (top, bottom) = halves(value);
        vec![
            step(LOAD, high),
            test(IF_GREATER, top, holds, Next),
            test(IF_EQUAL, top, Next, fails),
            step(LOAD, low),
            test(code, bottom, holds, fails),
        ]
    };
    match condition.test {
        Test::Equal(value) => {
            let (top, bottom) = halves(value);
            vec![
                step(LOAD, high),
                test(IF_EQUAL, top, Next, Fails),
                step(LOAD, low),
                test(IF_EQUAL, bottom, Next, Fails),
            ]
        }
        Test::NotEqual(value) => {
            let (top, bottom) = halves(value);
            vec![
                step(LOAD, high),
                test(IF_EQUAL, top, Next, Holds),
                step(LOAD, low),
                test(IF_EQUAL, bottom, Fails, Next),
            ]
        }
        Test::Masked { mask, value } => {
            let ((mask_top, mask_bottom), (top, bottom)) = (halves(mask), halves(value & mask));
            vec![
                step(LOAD, high),
                step(AND, mask_top),
                test(IF_EQUAL, top, Next, Fails),
                step(LOAD, low),
                step(AND, mask_bottom),
                test(IF_EQUAL, bottom, Next, Fails),
            ]
        }
        Test::Greater(value) => compare(value, IF_GREATER, Holds, Fails),
        Test::GreaterOrEqual(value) => compare(value, IF_GREATER_OR_EQUAL, Holds, Fails),
        Test::Less(value) => compare(value, IF_GREATER_OR_EQUAL, Fails, Holds),
        Test::LessOrEqual(value) => compare(value, IF_GREATER, Fails, Holds),
    }
}

/// What the kernel would answer. For tests: it runs the program as the kernel does.
#[cfg(test)]
pub(super) fn run(program: &[u64], architecture: Option<u32>, number: u32, arguments: [u64; 6]) -> super::Action {
    let mut data = number.to_ne_bytes().to_vec();
    data.extend(architecture.unwrap_or(NATIVE).to_ne_bytes());
    data.extend([0; 8]);
    data.extend(arguments.iter().flat_map(|a| a.to_ne_bytes()));
    let (mut at, mut register) = (0_usize, 0_u32);
    loop {
        let (code, yes, no, value) = unpack(program[at]);
        at += 1;
        let jump = |truth: bool| usize::from(if truth { yes } else { no });
        match code {
            LOAD => {
                let from = value as usize;
                register = u32::from_ne_bytes(data[from..from + 4].try_into().expect("four bytes"));
            }
            AND => register &= value,
            GO => at += value as usize,
            IF_EQUAL => at += jump(register == value),
            IF_GREATER => at += jump(register > value),
            IF_GREATER_OR_EQUAL => at += jump(register >= value),
            RETURN => return super::Action(value),
            other => panic!("no such instruction: {other:#x}"),
        }
    }
}
