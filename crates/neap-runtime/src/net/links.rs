//! Interfaces, addresses, routes and neighbours as netlink messages, and the few sequences of them that we need.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::netlink::{ACK, CREATE, EXCL, Message, REPLACE, Socket, find_attr};

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const NEW_NEIGHBOUR: u16 = 28;

const IFLA_ADDRESS: u16 = 1;
const IFLA_NAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_ALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// No automatic IPv6 address: pods speak IPv4 only, and duplicate detection would keep the machine busy.
const ADDR_GEN_NONE: u8 = 1;

const UP: u32 = 1;
const AF_INET: u8 = libc::AF_INET as u8;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const TABLE_MAIN: u8 = 254;
/// "Set up by hand" in the table of route origins.
const PROTOCOL_STATIC: u8 = 4;
const UNICAST: u8 = 1;
const UNREACHABLE: u8 = 7;
const PERMANENT: u16 = 0x80;
const LINK_STRUCT: usize = 16;

/// Hardware address, fixed per role: two ends of a cable see nobody else.
pub(crate) type Mac = [u8; 6];
pub(crate) const HOST_MAC: Mac = [0x02, 0x6e, 0x65, 0x61, 0x70, 0x00];
pub(crate) const POD_MAC: Mac = [0x02, 0x6e, 0x65, 0x61, 0x70, 0x01];

fn link(kind: u16, flags: u16, index: u32, up: bool) -> Message {
    Message::new(kind, flags | ACK, &link_struct(index, up))
}

fn link_struct(index: u32, up: bool) -> [u8; LINK_STRUCT] {
    let flags = if up { UP } else { 0 };
    let mut bytes = [0; LINK_STRUCT];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

fn quiet_ipv6(message: &mut Message) {
    message.nest(IFLA_AF_SPEC, |families| {
        families.nest(libc::AF_INET6 as u16, |inet6| {
            inet6.attr(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_NONE]);
        });
    });
}

/// Index that the pod's interface gets; 1 is the loopback's.
const POD_INDEX: u32 = 2;

/// Brings a link up without an automatic IPv6 address: a wish that only an existing link that is still down takes.
fn up_quietly(index: u32) -> [Message; 2] {
    let mut quiet = link(NEW_LINK, 0, index, false);
    quiet_ipv6(&mut quiet);
    [quiet, link(NEW_LINK, 0, index, true)]
}

/// A cable: `eth0`, up, in the namespace of the socket; `host_name`, down, in the namespace `host`.
fn cable(host_name: &str, host: BorrowedFd<'_>) -> Message {
    let mut message = link(NEW_LINK, CREATE | EXCL, POD_INDEX, true);
    message.text(IFLA_NAME, "eth0").attr(IFLA_ADDRESS, &POD_MAC);
    message.nest(IFLA_LINKINFO, |info| {
        info.text(INFO_KIND, "veth").nest(INFO_DATA, |data| {
            data.nest_after(VETH_PEER, &link_struct(0, false), |peer| {
                peer.text(IFLA_NAME, host_name)
                    .attr(IFLA_ADDRESS, &HOST_MAC)
                    .attr(IFLA_NET_NS_FD, &host.as_raw_fd().to_ne_bytes());
            });
        });
    });
    message
}

fn address(index: u32, ip: Ipv4Addr) -> Message {
    let mut fixed = [AF_INET, 32, 0, SCOPE_UNIVERSE, 0, 0, 0, 0];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(NEW_ADDRESS, CREATE | REPLACE | ACK, &fixed);
    message.attr(2, &ip.octets()).attr(1, &ip.octets());
    message
}

struct Route {
    to: (Ipv4Addr, u8),
    via: Option<Ipv4Addr>,
    device: Option<u32>,
    from: Option<Ipv4Addr>,
}

fn route(kind: u16, flags: u16, route: &Route) -> Message {
    let scope = if route.device.is_some() && route.via.is_none() { SCOPE_LINK } else { SCOPE_UNIVERSE };
    let class = if route.device.is_none() && route.via.is_none() { UNREACHABLE } else { UNICAST };
    let fixed = [AF_INET, route.to.1, 0, 0, TABLE_MAIN, PROTOCOL_STATIC, scope, class, 0, 0, 0, 0];
    let mut message = Message::new(kind, flags | ACK, &fixed);
    if route.to.1 > 0 {
        message.attr(1, &route.to.0.octets());
    }
    if let Some(device) = route.device {
        message.attr(4, &device.to_ne_bytes());
    }
    if let Some(via) = route.via {
        message.attr(5, &via.octets());
    }
    if let Some(from) = route.from {
        message.attr(7, &from.octets());
    }
    message
}

/// Who answers for `ip` on a device, so that nobody need ask.
fn neighbour(device: u32, ip: Ipv4Addr, mac: Mac) -> Message {
    let mut fixed = [0; 12];
    fixed[0] = AF_INET;
    fixed[4..8].copy_from_slice(&device.to_ne_bytes());
    fixed[8..10].copy_from_slice(&PERMANENT.to_ne_bytes());
    let mut message = Message::new(NEW_NEIGHBOUR, CREATE | REPLACE | ACK, &fixed);
    message.attr(1, &ip.octets()).attr(2, &mac);
    message
}

/// A link's index and alias, by name.
pub(crate) fn find(socket: &mut Socket, name: &str) -> io::Result<Option<(u32, Option<String>)>> {
    let mut message = link(GET_LINK, 0, 0, false);
    message.text(IFLA_NAME, name);
    match socket.ask(message) {
        Ok(answers) => Ok(answers.first().filter(|a| a.len() >= 24).map(|answer| {
            let index = u32::from_ne_bytes([answer[20], answer[21], answer[22], answer[23]]);
            let alias = find_attr(answer, LINK_STRUCT, IFLA_ALIAS);
            (index, alias.map(|a| String::from_utf8_lossy(a).trim_end_matches('\0').to_owned()))
        })),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Connects the namespace of `inside` with the one of `outside` (whose descriptor is `host`): the pod's address here,
/// a route to it there. `gateway` is the machine as the pod sees it.
pub(crate) fn connect(
    inside: &mut Socket,
    outside: &mut Socket,
    host: BorrowedFd<'_>,
    host_name: &str,
    pod: Ipv4Addr,
    gateway: Ipv4Addr,
) -> io::Result<()> {
    inside.talk(&[link(NEW_LINK, 0, 1, true), cable(host_name, host)])?;
    let gateway_route = Route { to: (gateway, 32), via: None, device: Some(POD_INDEX), from: None };
    let default_route =
        Route { to: (Ipv4Addr::UNSPECIFIED, 0), via: Some(gateway), device: Some(POD_INDEX), from: None };
    inside.talk(&[
        address(POD_INDEX, pod),
        neighbour(POD_INDEX, gateway, HOST_MAC),
        route(NEW_ROUTE, CREATE | REPLACE, &gateway_route),
        route(NEW_ROUTE, CREATE | REPLACE, &default_route),
    ])?;
    let (device, _) = find(outside, host_name)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    let pod_route = Route { to: (pod, 32), via: None, device: Some(device), from: Some(gateway) };
    let [quiet, up] = up_quietly(device);
    let neighbour = neighbour(device, pod, POD_MAC);
    outside.talk(&[quiet, up, neighbour, route(NEW_ROUTE, CREATE | REPLACE, &pod_route)])?;
    Ok(())
}

/// Takes a cable away, with the route over it. Succeeds when it is gone already.
pub(crate) fn delete(socket: &mut Socket, name: &str) -> io::Result<()> {
    let mut message = link(DELETE_LINK, 0, 0, false);
    message.text(IFLA_NAME, name);
    match socket.ask(message) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other.map(drop),
    }
}

/// The interface that holds the machine's own address among the pods: a bridge without ports, which every kernel that
/// runs containers has. `false`: that name is taken.
pub(crate) fn claim(socket: &mut Socket, name: &str, alias: &str, gateway: Ipv4Addr) -> io::Result<bool> {
    let mut message = link(NEW_LINK, CREATE | EXCL, 0, false);
    message.text(IFLA_NAME, name);
    message.nest(IFLA_LINKINFO, |info| {
        info.text(INFO_KIND, "bridge");
    });
    match socket.ask(message) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        other => other?,
    };
    let (index, _) = find(socket, name)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    let mut named = link(NEW_LINK, 0, index, false);
    named.attr(IFLA_ALIAS, alias.as_bytes());
    let [quiet, up] = up_quietly(index);
    socket.talk(&[named, quiet, up, address(index, gateway)])?;
    Ok(true)
}

/// Addresses of a block that no pod has are refused at once instead of being searched for elsewhere.
pub(crate) fn refuse_rest(socket: &mut Socket, block: (Ipv4Addr, u8)) -> io::Result<()> {
    let rest = Route { to: block, via: None, device: None, from: None };
    socket.ask(route(NEW_ROUTE, CREATE | REPLACE, &rest)).map(drop)
}

pub(crate) fn forget_rest(socket: &mut Socket, block: (Ipv4Addr, u8)) -> io::Result<()> {
    let rest = Route { to: block, via: None, device: None, from: None };
    match socket.ask(route(DELETE_ROUTE, 0, &rest)) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map(drop),
    }
}
