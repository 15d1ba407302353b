//! The pods' network on this machine: one routed cable per pod, no bridge, and who has which address.
//!
//! Several neaps may share a machine: the pod range is cut into blocks, and each neap claims one by making an
//! interface whose alias says which block and for whom. `netlink` and `nft` speak to the kernel; this module
//! decides what to say.

pub(crate) mod addresses;
mod firewall;
mod forward;
pub(crate) mod links;
pub(crate) mod netlink;
mod nft;
pub(crate) mod own;
mod ports;

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use addresses::{Addresses, Block, choose};
use netlink::Socket;
pub use ports::{PortMap, Transport};

/// How many interfaces of other neaps are looked at. More on one machine than a range has blocks makes no sense.
const MAX_NEAPS: u32 = 64;
/// How often, two milliseconds apart, an earlier neap of this directory is asked to be gone: it may still be ending.
const LEAVING_TRIES: u32 = 100;

/// What went wrong when the network was set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("{range} must be an IPv4 range like 198.19.0.0/16, of /30 or more addresses")]
    Range { range: String },
    #[error(
        "every block of {range} is taken by another neap on this machine ({holders}); choose another with --pod-cidr"
    )]
    Full { range: String, holders: String },
    #[error("cannot {what}")]
    Kernel { what: &'static str, source: io::Error },
}

/// The network of one neap.
pub(crate) struct Network {
    /// Number of the interface that claims the block; goes into the names of the cables.
    number: u32,
    block: Block,
    free: Mutex<Addresses>,
    /// Tells other neaps that this one lives; given up with the block.
    mark: Mutex<Option<UnixDatagram>>,
    /// What the kernel holds, where that is certain.
    ports: Mutex<Option<PortMap>>,
}

impl Network {
    /// Claims a block of `range` for `owner` (or finds the one claimed by an earlier run) and sets up what pods need.
    pub(crate) fn open(range: &str, owner: &Path, bury_pods: &dyn Fn(&Path)) -> Result<Self, NetworkError> {
        let range = Block::parse(range).ok_or_else(|| NetworkError::Range { range: range.to_owned() })?;
        let kernel = |what| move |source| NetworkError::Kernel { what, source };
        let mut socket = Socket::route().map_err(kernel("open a netlink socket"))?;
        let (number, block, mark) = claim(&mut socket, range, owner, bury_pods)?;
        links::refuse_rest(&mut socket, block.parts()).map_err(kernel("set the route of the pod range"))?;
        // Without these two, pods still serve: only what they ask of others does not get through.
        if let Err(error) = nft::install(&name_of(number), block.parts()) {
            tracing::warn!(%error, "no address translation on this machine: pods cannot reach beyond it");
        }
        if let Err(error) = nft::shield(&name_of(number), block.parts()) {
            tracing::warn!(%error, "no packet filter on this machine: pods can be reached from outside past the gateway");
        }
        if let Err(error) = ports::install(&name_of(number), block.parts(), ports::HOOK_PREROUTING) {
            tracing::warn!(%error, "pods reach each other by the ports they listen on only, not by those of Services");
        }
        if let Err(error) = forward::open(block).and_then(|()| firewall::open(block)) {
            tracing::warn!(%error, "this machine's firewall drops what pods send beyond it: allow forwarding from and to {block}");
        }
        if let Err(error) = switch_on_forwarding() {
            tracing::warn!(%error, "cannot switch on IP forwarding: pods can reach neither each other nor the outside");
        }
        Ok(Self {
            number,
            block,
            free: Mutex::new(Addresses::new(block)),
            mark: Mutex::new(Some(mark)),
            ports: Mutex::new(Some(PortMap::new())),
        })
    }

    /// The machine as pods see it.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        self.block.gateway()
    }

    /// From now on pods reach these ports of the gateway's address, and nothing else of the machine.
    pub(crate) fn guard(&self, tcp: &[u16], udp: &[u16]) -> io::Result<()> {
        let tcp = tcp.iter().map(|port| (nft::Protocol::Tcp, *port));
        let open: Vec<_> = tcp.chain(udp.iter().map(|port| (nft::Protocol::Udp, *port))).collect();
        nft::guard(&name_of(self.number), self.block.parts(), self.block.gateway(), &open)
    }

    /// From now on pods reach each other (and not themselves) also by these ports, and by no others that were named before.
    pub(crate) fn map_ports(&self, wanted: PortMap) -> io::Result<()> {
        let mut known = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.take();
        if before.as_ref() != Some(&wanted) {
            ports::update(&name_of(self.number), before.as_ref(), &wanted)?;
        }
        *known = Some(wanted);
        Ok(())
    }

    pub(crate) fn block(&self) -> Block {
        self.block
    }

    pub(crate) fn take(&self) -> io::Result<Ipv4Addr> {
        self.lock().take().ok_or_else(|| io::Error::other(format!("all addresses of {} are in use", self.block)))
    }

    /// Keeps an address that a pod of an earlier run has, if it is from this block.
    pub(crate) fn keep(&self, address: Ipv4Addr) {
        self.lock().keep(address);
    }

    /// Whether this address is given out.
    pub(crate) fn owns(&self, address: Ipv4Addr) -> bool {
        self.lock().is_used(address)
    }

    pub(crate) fn release(&self, address: Ipv4Addr) {
        self.lock().release(address);
    }

    /// Name of the machine's end of a pod's cable.
    pub(crate) fn cable(&self, address: Ipv4Addr) -> String {
        format!("np{}x{:x}", self.number, self.block.offset(address))
    }

    /// What comes in over a cable with an address that is not its pod's is dropped.
    pub(crate) fn distrust(&self, cable: &str) -> io::Result<()> {
        fs::write(format!("/proc/sys/net/ipv4/conf/{cable}/rp_filter"), "1")
    }

    pub(crate) fn remove_cable(&self, name: &str) -> io::Result<()> {
        links::delete(&mut Socket::route()?, name)
    }

    /// Names of all cables of this neap that exist.
    pub(crate) fn cables(&self) -> Vec<String> {
        cables_of(self.number)
    }

    /// From now on nobody here looks after the block; what is in it stays as it is.
    pub(crate) fn leave(&self) {
        self.mark.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Gives the block back. To be called only when no pod is left.
    pub(crate) fn close(&self) -> io::Result<()> {
        let mut socket = Socket::route()?;
        nft::remove(&name_of(self.number))?;
        forward::close(self.block)?;
        firewall::close(self.block)?;
        links::forget_rest(&mut socket, self.block.parts())?;
        links::delete(&mut socket, &name_of(self.number))?;
        self.leave();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Addresses> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cables_of(number: u32) -> Vec<String> {
    let prefix = format!("np{number}x");
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.starts_with(&prefix)).collect()
}

fn switch_on_forwarding() -> io::Result<()> {
    let file = Path::new("/proc/sys/net/ipv4/ip_forward");
    if fs::read_to_string(file)?.trim() == "1" {
        return Ok(());
    }
    fs::write(file, "1")
}

fn name_of(number: u32) -> String {
    format!("neap{number}")
}

/// Held by the neap that looks after an interface, for as long as it lives. A path would not do: a neap in a container
/// that shares this network has its data directory where nobody else sees it, or under a name that others use too.
fn mark(number: u32) -> io::Result<UnixDatagram> {
    UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(format!("neap/pods/{}", name_of(number)))?)
}

/// Like [`mark`], with a moment for somebody who is just leaving.
fn mark_soon(number: u32) -> io::Result<UnixDatagram> {
    for _ in 0..LEAVING_TRIES {
        match mark(number) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => pause(),
            other => return other,
        }
    }
    mark(number)
}

/// An interface of some neap.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    number: u32,
    block: Option<Block>,
    owner: String,
}

/// `bury_pods` is told the directories of neaps that are no more, before their claims are taken away: without those nobody
/// would look for their pods again.
fn claim(
    socket: &mut Socket,
    range: Block,
    owner: &Path,
    bury_pods: &dyn Fn(&Path),
) -> Result<(u32, Block, UnixDatagram), NetworkError> {
    let owner = owner.to_string_lossy().into_owned();
    let kernel = |what| move |source| NetworkError::Kernel { what, source };
    // Another neap may start at this moment: whoever makes the lowest free name first has it, the other looks again.
    for _ in 0..MAX_NEAPS {
        let claims = settled(socket).map_err(kernel("look for other neaps' interfaces"))?;
        // Two that share this network and not their files may have directories of one name: then it is the other's.
        let mine = claims.iter().filter(|c| c.owner == owner).find_map(|c| Some((c, mark_soon(c.number).ok()?)));
        if let Some((mine, mark)) = mine {
            match mine.block {
                Some(block) if range.contains(block) => return Ok((mine.number, block, mark)),
                _ => links::delete(socket, &name_of(mine.number)).map_err(kernel("remove the old pod network"))?,
            }
            continue;
        }
        // Of two with directories of one name one may live.
        let unmarked = |owner: &str| claims.iter().filter(|c| c.owner == owner).all(|c| mark(c.number).is_ok());
        let stale = claims.iter().filter(|c| is_abandoned(&c.owner) && unmarked(&c.owner));
        if let Some((stale, block)) = stale.filter_map(|c| Some((c, c.block?))).next() {
            bury_pods(Path::new(&stale.owner));
            bury(socket, stale.number, block)?;
            continue;
        }
        let taken: Vec<Block> = claims.iter().filter_map(|c| c.block).collect();
        let Some(block) = choose(range, &taken) else {
            let holders = claims.iter().map(|c| c.owner.clone()).collect::<Vec<_>>().join(", ");
            return Err(NetworkError::Full { range: range.to_string(), holders });
        };
        let free = (0..MAX_NEAPS).filter(|n| claims.iter().all(|c| c.number != *n));
        let Some((number, mark)) = free.into_iter().find_map(|n| Some((n, mark(n).ok()?))) else { break };
        let alias = format!("{block} {owner}");
        if links::claim(socket, &name_of(number), &alias, block.gateway())
            .map_err(kernel("make the interface of the pod network"))?
        {
            return Ok((number, block, mark));
        }
    }
    Err(NetworkError::Full { range: range.to_string(), holders: "too many neaps".to_owned() })
}

/// Whoever removes a data directory removes the records of its pods before all; what was mounted in it may have kept the
/// rest of it. Nobody can ever look after those pods again. A directory that cannot be read is not gone.
fn is_abandoned(owner: &str) -> bool {
    matches!(Path::new(owner).join("pods").try_exists(), Ok(false))
}

/// Takes away what a neap that is no more has left of its network.
fn bury(socket: &mut Socket, number: u32, block: Block) -> Result<(), NetworkError> {
    let kernel = |what| move |source| NetworkError::Kernel { what, source };
    let name = name_of(number);
    if let Err(error) = nft::remove(&name) {
        tracing::debug!(%block, %error, "a dead neap's packet filter cannot be removed");
    }
    if let Err(error) = forward::close(block).and_then(|()| firewall::close(block)) {
        tracing::debug!(%block, %error, "a dead neap's rules for forwarding cannot be removed");
    }
    for cable in cables_of(number) {
        if let Err(error) = links::delete(socket, &cable) {
            tracing::warn!(cable, %error, "a dead neap's cable cannot be removed");
        }
    }
    links::forget_rest(socket, block.parts()).map_err(kernel("remove a dead neap's route"))?;
    links::delete(socket, &name).map_err(kernel("remove a dead neap's interface"))
}

#[expect(clippy::disallowed_methods, reason = "at start, a fraction of a second at most, and only beside other neaps")]
fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(2));
}

/// An interface gets its alias a moment after its name: one that has none yet is given that moment.
fn settled(socket: &mut Socket) -> io::Result<Vec<Claim>> {
    let mut claims = existing(socket)?;
    for _ in 0..10 {
        if claims.iter().all(|c| c.block.is_some()) {
            break;
        }
        pause();
        claims = existing(socket)?;
    }
    Ok(claims)
}

fn existing(socket: &mut Socket) -> io::Result<Vec<Claim>> {
    let mut claims = Vec::new();
    for number in 0..MAX_NEAPS {
        let Some((_, alias)) = links::find(socket, &name_of(number))? else { continue };
        let (block, owner) = match alias.as_deref().and_then(|a| a.split_once(' ')) {
            Some((block, owner)) => (Block::parse(block), owner.to_owned()),
            None => (None, "something else".to_owned()),
        };
        claims.push(Claim { number, block, owner });
    }
    Ok(claims)
}
