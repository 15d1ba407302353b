//! The packet-filter table of one neap: what pods send outside their block leaves with the machine's address.
//!
//! Spoken to the kernel directly, so no `nft` and no `iptables` need be installed. One table, one chain, one rule.

use std::io;
use std::net::Ipv4Addr;

use super::netlink::{ACK, APPEND, CREATE, Message, Socket};

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const FAMILY_IPV4: u8 = 2;
const HOOK_POSTROUTING: u32 = 4;
/// Where source addresses are translated.
const PRIORITY_SRCNAT: i32 = 100;
const NETWORK_HEADER: u32 = 1;
const SOURCE_OFFSET: u32 = 12;
const DESTINATION_OFFSET: u32 = 16;
/// A four-byte register.
const REGISTER: u32 = 8;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// Makes the table anew: whatever an earlier run left under this name is replaced in one transaction.
pub(crate) fn install(name: &str, block: (Ipv4Addr, u8)) -> io::Result<()> {
    let mut table = message(NEW_TABLE, CREATE | ACK);
    table.text(1, name).attr(2, &0_u32.to_be_bytes());
    let mut old = message(DELETE_TABLE, ACK);
    old.text(1, name);
    let mut again = message(NEW_TABLE, CREATE | ACK);
    again.text(1, name).attr(2, &0_u32.to_be_bytes());
    let mut chain = message(NEW_CHAIN, CREATE | ACK);
    chain.text(1, name).text(3, "egress");
    chain.nest(4, |hook| {
        hook.attr(1, &HOOK_POSTROUTING.to_be_bytes()).attr(2, &PRIORITY_SRCNAT.to_be_bytes());
    });
    chain.text(7, "nat");
    let mut rule = message(NEW_RULE, CREATE | APPEND | ACK);
    rule.text(1, name).text(2, "egress").nest(4, |list| {
        in_block(list, SOURCE_OFFSET, EQUAL, block);
        in_block(list, DESTINATION_OFFSET, NOT_EQUAL, block);
        expression(list, "masq", |_| {});
    });
    transact(&[table, old, again, chain, rule])
}

pub(crate) fn remove(name: &str) -> io::Result<()> {
    let mut old = message(DELETE_TABLE, ACK);
    old.text(1, name);
    match transact(&[old]) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn message(kind: u16, flags: u16) -> Message {
    Message::new(kind, flags, &[FAMILY_IPV4, 0, 0, 0])
}

fn transact(messages: &[Message]) -> io::Result<()> {
    let border =
        |kind| Message::new(kind, 0, &[0, 0, (SUBSYSTEM >> 8).to_be_bytes()[0], (SUBSYSTEM >> 8).to_be_bytes()[1]]);
    let mut socket = Socket::netfilter()?;
    socket.talk_batch(border(BATCH_BEGIN), messages, border(BATCH_END))
}

fn expression(list: &mut Message, name: &str, data: impl FnOnce(&mut Message)) {
    list.nest(1, |one| {
        one.text(1, name).nest(2, data);
    });
}

/// Goes on with the rule only if the address at `offset` is (or is not) in the block.
fn in_block(list: &mut Message, offset: u32, comparison: u32, block: (Ipv4Addr, u8)) {
    let mask = u32::MAX.checked_shl(32 - u32::from(block.1)).unwrap_or(0);
    let wanted = u32::from(block.0) & mask;
    expression(list, "payload", |data| {
        data.attr(1, &REGISTER.to_be_bytes())
            .attr(2, &NETWORK_HEADER.to_be_bytes())
            .attr(3, &offset.to_be_bytes())
            .attr(4, &4_u32.to_be_bytes());
    });
    expression(list, "bitwise", |data| {
        data.attr(1, &REGISTER.to_be_bytes()).attr(2, &REGISTER.to_be_bytes()).attr(3, &4_u32.to_be_bytes());
        data.nest(4, |value| {
            value.attr(1, &mask.to_be_bytes());
        });
        data.nest(5, |value| {
            value.attr(1, &0_u32.to_be_bytes());
        });
    });
    expression(list, "cmp", |data| {
        data.attr(1, &REGISTER.to_be_bytes()).attr(2, &comparison.to_be_bytes()).nest(3, |value| {
            value.attr(1, &wanted.to_be_bytes());
        });
    });
}
