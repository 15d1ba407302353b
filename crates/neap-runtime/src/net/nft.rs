//! The packet-filter table of one neap: what pods send outside their block leaves with the machine's address, nobody
//! outside reaches a pod past the gateway, and of the machine itself pods reach what is meant for them.
//!
//! Spoken to the kernel directly, so no `nft` and no `iptables` need be installed.

use std::io;
use std::net::Ipv4Addr;

use super::netlink::{ACK, APPEND, CREATE, Message, Socket};

pub(super) const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
/// Without a handle: all rules of the chain.
const DELETE_RULES: u16 = SUBSYSTEM | 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const FAMILY_IPV4: u8 = 2;
const HOOK_INPUT: u32 = 1;
const HOOK_FORWARD: u32 = 2;
const HOOK_POSTROUTING: u32 = 4;
const PRIORITY_FILTER: i32 = 0;
/// Where source addresses are translated.
const PRIORITY_SRCNAT: i32 = 100;
pub(super) const NETWORK_HEADER: u32 = 1;
pub(super) const TRANSPORT_HEADER: u32 = 2;
pub(super) const PORT_OFFSET: u32 = 2;
const PROTOCOL: u32 = 16;
const CONNECTION_STATE: u32 = 0;
/// Established or related, in the kernel's own byte order.
const KNOWN: u32 = 2 | 4;
const VERDICT: u32 = 0;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
pub(super) const SOURCE_OFFSET: u32 = 12;
pub(super) const DESTINATION_OFFSET: u32 = 16;
/// A four-byte register.
pub(super) const REGISTER: u32 = 8;
pub(super) const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// Makes the table anew: whatever an earlier run left under this name is replaced in one transaction.
pub(crate) fn install(name: &str, block: (Ipv4Addr, u8)) -> io::Result<()> {
    let [table, old, again] = anew(name);
    let chain = chain_of(name, "egress", "nat", HOOK_POSTROUTING, PRIORITY_SRCNAT);
    let mut rule = message(NEW_RULE, CREATE | APPEND | ACK);
    rule.text(1, name).text(2, "egress").nest(4, |list| {
        in_block(list, SOURCE_OFFSET, EQUAL, block);
        in_block(list, DESTINATION_OFFSET, NOT_EQUAL, block);
        expression(list, "masq", |_| {});
    });
    transact(&[table, old, again, chain, rule])
}

/// An empty table of this name, whatever was in one before.
pub(super) fn renew(name: &str) -> io::Result<()> {
    transact(&anew(name))
}

fn anew(name: &str) -> [Message; 3] {
    let table = || {
        let mut table = message(NEW_TABLE, CREATE | ACK);
        table.text(1, name).attr(2, &0_u32.to_be_bytes());
        table
    };
    let mut old = message(DELETE_TABLE, ACK);
    old.text(1, name);
    [table(), old, table()]
}

/// Protocols by their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Icmp = 1,
    Tcp = 6,
    Udp = 17,
}

/// Nobody but the machine and the block itself begins a connection to the block.
pub(crate) fn shield(name: &str, block: (Ipv4Addr, u8)) -> io::Result<()> {
    let drop = rule(name, "inward", |list| {
        in_block(list, DESTINATION_OFFSET, EQUAL, block);
        in_block(list, SOURCE_OFFSET, NOT_EQUAL, block);
        begins(list);
        verdict(list, DROP);
    });
    transact(&[chain(name, "inward", HOOK_FORWARD), flush(name, "inward"), drop])
}

/// Of the machine itself the block reaches these ports of `gateway`, and nothing else by a connection of its own.
pub(crate) fn guard(name: &str, block: (Ipv4Addr, u8), gateway: Ipv4Addr, open: &[(Protocol, u16)]) -> io::Result<()> {
    let mut all = vec![chain(name, "guard", HOOK_INPUT), flush(name, "guard")];
    all.extend(open.iter().map(|(protocol, port)| {
        rule(name, "guard", |list| {
            in_block(list, SOURCE_OFFSET, EQUAL, block);
            in_block(list, DESTINATION_OFFSET, EQUAL, (gateway, 32));
            speaks(list, *protocol);
            load(list, TRANSPORT_HEADER, PORT_OFFSET, 2);
            compare(list, EQUAL, &port.to_be_bytes());
            verdict(list, ACCEPT);
        })
    }));
    all.push(rule(name, "guard", |list| {
        in_block(list, SOURCE_OFFSET, EQUAL, block);
        speaks(list, Protocol::Icmp);
        verdict(list, ACCEPT);
    }));
    all.push(rule(name, "guard", |list| {
        in_block(list, SOURCE_OFFSET, EQUAL, block);
        begins(list);
        verdict(list, DROP);
    }));
    transact(&all)
}

pub(crate) fn remove(name: &str) -> io::Result<()> {
    let mut old = message(DELETE_TABLE, ACK);
    old.text(1, name);
    match transact(&[old]) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(super) fn message(kind: u16, flags: u16) -> Message {
    Message::new(kind, flags, &[FAMILY_IPV4, 0, 0, 0])
}

pub(super) fn transact(messages: &[Message]) -> io::Result<()> {
    let border =
        |kind| Message::new(kind, 0, &[0, 0, (SUBSYSTEM >> 8).to_be_bytes()[0], (SUBSYSTEM >> 8).to_be_bytes()[1]]);
    let mut socket = Socket::netfilter()?;
    socket.talk_batch(border(BATCH_BEGIN), messages, border(BATCH_END))
}

pub(super) fn expression(list: &mut Message, name: &str, data: impl FnOnce(&mut Message)) {
    list.nest(1, |one| {
        one.text(1, name).nest(2, data);
    });
}

/// Goes on with the rule only if the address at `offset` is (or is not) in the block.
pub(super) fn in_block(list: &mut Message, offset: u32, comparison: u32, block: (Ipv4Addr, u8)) {
    let mask = u32::MAX.checked_shl(32 - u32::from(block.1)).unwrap_or(0);
    let wanted = u32::from(block.0) & mask;
    load(list, NETWORK_HEADER, offset, 4);
    self::mask(list, &mask.to_be_bytes());
    compare(list, comparison, &wanted.to_be_bytes());
}

fn chain(table: &str, name: &str, hook: u32) -> Message {
    chain_of(table, name, "filter", hook, PRIORITY_FILTER)
}

pub(super) fn chain_of(table: &str, name: &str, kind: &str, hook: u32, priority: i32) -> Message {
    let mut chain = message(NEW_CHAIN, CREATE | ACK);
    chain.text(1, table).text(3, name);
    chain.nest(4, |at| {
        at.attr(1, &hook.to_be_bytes()).attr(2, &priority.to_be_bytes());
    });
    chain.text(7, kind);
    chain
}

pub(super) fn flush(table: &str, chain: &str) -> Message {
    let mut all = message(DELETE_RULES, ACK);
    all.text(1, table).text(2, chain);
    all
}

pub(super) fn rule(table: &str, chain: &str, expressions: impl FnOnce(&mut Message)) -> Message {
    let mut rule = message(NEW_RULE, CREATE | APPEND | ACK);
    rule.text(1, table).text(2, chain).nest(4, expressions);
    rule
}

/// Goes on only for a packet that belongs to no connection that is known.
fn begins(list: &mut Message) {
    expression(list, "ct", |data| {
        data.attr(1, &REGISTER.to_be_bytes()).attr(2, &CONNECTION_STATE.to_be_bytes());
    });
    mask(list, &KNOWN.to_ne_bytes());
    compare(list, EQUAL, &0_u32.to_be_bytes());
}

pub(super) fn speaks(list: &mut Message, protocol: Protocol) {
    expression(list, "meta", |data| {
        data.attr(1, &REGISTER.to_be_bytes()).attr(2, &PROTOCOL.to_be_bytes());
    });
    compare(list, EQUAL, &[protocol as u8]);
}

fn verdict(list: &mut Message, code: u32) {
    expression(list, "immediate", |data| {
        data.attr(1, &VERDICT.to_be_bytes()).nest(2, |value| {
            value.nest(2, |verdict| {
                verdict.attr(1, &code.to_be_bytes());
            });
        });
    });
}

fn load(list: &mut Message, header: u32, offset: u32, length: u32) {
    load_into(list, REGISTER, header, offset, length);
}

pub(super) fn load_into(list: &mut Message, register: u32, header: u32, offset: u32, length: u32) {
    expression(list, "payload", |data| {
        data.attr(1, &register.to_be_bytes())
            .attr(2, &header.to_be_bytes())
            .attr(3, &offset.to_be_bytes())
            .attr(4, &length.to_be_bytes());
    });
}

fn mask(list: &mut Message, mask: &[u8; 4]) {
    expression(list, "bitwise", |data| {
        data.attr(1, &REGISTER.to_be_bytes()).attr(2, &REGISTER.to_be_bytes()).attr(3, &4_u32.to_be_bytes());
        data.nest(4, |value| {
            value.attr(1, mask);
        });
        data.nest(5, |value| {
            value.attr(1, &0_u32.to_be_bytes());
        });
    });
}

fn compare(list: &mut Message, comparison: u32, wanted: &[u8]) {
    expression(list, "cmp", |data| {
        data.attr(1, &REGISTER.to_be_bytes()).attr(2, &comparison.to_be_bytes()).nest(3, |value| {
            value.attr(1, wanted);
        });
    });
}
