//! Ports by which pods know each other and which are not those that they listen on: a Service says 80, its pods 8080.
//! A map in the table of one neap, from an address and the port that is asked for to the port that is meant.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;

use super::netlink::{ACK, CREATE, Message};
use super::nft::{
    DESTINATION_OFFSET, EQUAL, NETWORK_HEADER, PORT_OFFSET, Protocol, REGISTER, SOURCE_OFFSET, SUBSYSTEM,
    TRANSPORT_HEADER, chain_of, expression, flush, in_block, load_into, message, rule, speaks, transact,
};

const NEW_SET: u16 = SUBSYSTEM | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 12;
/// Without elements: all of the set.
const DELETE_ELEMENTS: u16 = SUBSYSTEM | 14;
/// Packets that arrive.
pub(super) const HOOK_PREROUTING: u32 = 0;
/// Packets that begin here.
pub(super) const HOOK_OUTPUT: u32 = 3;
/// Where destinations are translated.
const PRIORITY_DSTNAT: i32 = -100;
const IS_MAP: u32 = 8;
/// An address and a port, as the kernel's tools name the types: for them only.
const ADDRESS_AND_PORT: u32 = 7 << 6 | 13;
const PORT: u32 = 13;
/// Each part of a key takes whole registers.
const KEY_BYTES: u32 = 8;
const PORT_BYTES: u32 = 2;
const DNAT: u32 = 1;
const IPV4: u32 = 2;
/// Elements in one message, whose lists have a length of 16 bits.
const MOST_ELEMENTS: usize = 500;
/// Messages in one transaction: they must fit into the socket's buffer together.
const MOST_MESSAGES: usize = 4;

/// How a packet is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    Tcp,
    Udp,
}

/// Who is asked, how, and for which port; and the port that is meant.
pub type PortMap = BTreeMap<(Ipv4Addr, Transport, u16), u16>;

impl Transport {
    fn set(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Makes the maps, empty, and the rules that look into them for what is sent within a block, in a table that is there.
pub(crate) fn install(name: &str, block: (Ipv4Addr, u8), hook: u32) -> io::Result<()> {
    let mut all = Vec::new();
    for (id, transport) in [(1_u32, Transport::Tcp), (2, Transport::Udp)] {
        let mut set = message(NEW_SET, CREATE | ACK);
        set.text(1, name).text(2, transport.set());
        for (attribute, value) in
            [(3, IS_MAP), (4, ADDRESS_AND_PORT), (5, KEY_BYTES), (6, PORT), (7, PORT_BYTES), (10, id)]
        {
            set.attr(attribute, &value.to_be_bytes());
        }
        all.push(set);
    }
    all.push(chain_of(name, "ports", "nat", hook, PRIORITY_DSTNAT));
    all.push(flush(name, "ports"));
    for (transport, protocol) in [(Transport::Tcp, Protocol::Tcp), (Transport::Udp, Protocol::Udp)] {
        all.push(rule(name, "ports", |list| {
            in_block(list, SOURCE_OFFSET, EQUAL, block);
            in_block(list, DESTINATION_OFFSET, EQUAL, block);
            speaks(list, protocol);
            load_into(list, REGISTER, NETWORK_HEADER, DESTINATION_OFFSET, 4);
            load_into(list, REGISTER + 1, TRANSPORT_HEADER, PORT_OFFSET, 2);
            expression(list, "lookup", |data| {
                data.text(1, transport.set());
                data.attr(2, &REGISTER.to_be_bytes()).attr(3, &(REGISTER + 2).to_be_bytes());
            });
            expression(list, "nat", |data| {
                data.attr(1, &DNAT.to_be_bytes()).attr(2, &IPV4.to_be_bytes());
                data.attr(5, &(REGISTER + 2).to_be_bytes());
            });
        }));
    }
    transact(&all)
}

/// Brings the maps from what they hold to what they should. `known`: `None` where that is uncertain.
pub(crate) fn update(name: &str, known: Option<&PortMap>, wanted: &PortMap) -> io::Result<()> {
    let mut all = Vec::new();
    for transport in [Transport::Tcp, Transport::Udp] {
        let of = |map: &PortMap| -> Vec<(Ipv4Addr, u16, u16)> {
            let here = map.iter().filter(|((_, how, _), _)| *how == transport);
            here.map(|((address, _, port), meant)| (*address, *port, *meant)).collect()
        };
        let (old, new) = (known.map(of), of(wanted));
        match &old {
            None => {
                let mut everything = message(DELETE_ELEMENTS, ACK);
                everything.text(1, name).text(2, transport.set());
                all.push(everything);
            }
            Some(old) => {
                let gone: Vec<_> = old.iter().filter(|one| !new.contains(one)).copied().collect();
                all.extend(gone.chunks(MOST_ELEMENTS).map(|some| elements(name, transport, DELETE_ELEMENTS, 0, some)));
            }
        }
        let old = old.unwrap_or_default();
        let come: Vec<_> = new.iter().filter(|one| !old.contains(one)).copied().collect();
        all.extend(come.chunks(MOST_ELEMENTS).map(|some| elements(name, transport, NEW_ELEMENTS, CREATE, some)));
    }
    all.chunks(MOST_MESSAGES).try_for_each(transact)
}

fn elements(table: &str, transport: Transport, kind: u16, flags: u16, all: &[(Ipv4Addr, u16, u16)]) -> Message {
    let mut message = message(kind, flags | ACK);
    message.text(1, table).text(2, transport.set());
    message.nest(3, |list| {
        for (address, port, meant) in all {
            let mut key = address.octets().to_vec();
            key.extend(port.to_be_bytes());
            key.extend([0; 2]);
            list.nest(1, |element| {
                element.nest(1, |value| {
                    value.attr(1, &key);
                });
                if kind == NEW_ELEMENTS {
                    element.nest(2, |value| {
                        value.attr(1, &meant.to_be_bytes());
                    });
                }
            });
        }
    });
    message
}
