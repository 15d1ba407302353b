//! IPv4 ranges, the blocks they are cut into, and which address of a block is free. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

/// What one neap takes of a larger range: 4094 pods, and sixteen neaps in a /16.
const BLOCK_PREFIX: u8 = 20;
/// The smallest range that holds a gateway and a pod.
const MAX_PREFIX: u8 = 30;

/// A range of addresses, aligned to its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    first: u32,
    prefix: u8,
}

impl Block {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix) = (address.parse::<Ipv4Addr>().ok()?, prefix.parse::<u8>().ok()?);
        if !(1..=MAX_PREFIX).contains(&prefix) {
            return None;
        }
        let first = u32::from(address);
        (first % (1 << (32 - prefix)) == 0).then_some(Self { first, prefix })
    }

    pub(crate) fn parts(self) -> (Ipv4Addr, u8) {
        (self.first.into(), self.prefix)
    }

    pub(crate) fn size(self) -> u32 {
        1 << (32 - self.prefix)
    }

    /// The first host address.
    pub(crate) fn gateway(self) -> Ipv4Addr {
        (self.first + 1).into()
    }

    pub(crate) fn offset(self, address: Ipv4Addr) -> u32 {
        u32::from(address).wrapping_sub(self.first)
    }

    pub(crate) fn contains(self, other: Block) -> bool {
        other.prefix >= self.prefix && other.first.wrapping_sub(self.first) < self.size()
    }

    fn overlaps(self, other: Block) -> bool {
        self.contains(other) || other.contains(self)
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.prefix)
    }
}

/// The first block of a range that nobody has.
pub(crate) fn choose(range: Block, taken: &[Block]) -> Option<Block> {
    let prefix = range.prefix.max(BLOCK_PREFIX);
    let size = 1_u32 << (32 - prefix);
    (0..range.size() / size)
        .map(|n| Block { first: range.first + n * size, prefix })
        .find(|block| taken.iter().all(|other| !block.overlaps(*other)))
}

/// Which addresses of a block are given out.
#[derive(Debug)]
pub(crate) struct Addresses {
    block: Block,
    used: BTreeSet<u32>,
    /// Where the next search begins: an address comes again as late as possible, so that nobody still
    /// talks to a dead pod's address when a new pod gets it.
    next: u32,
}

/// Offsets that are never given: the network's own address and the gateway's; the last one is the broadcast's.
const FIRST_POD: u32 = 2;

impl Addresses {
    pub(crate) fn new(block: Block) -> Self {
        Self { block, used: BTreeSet::new(), next: FIRST_POD }
    }

    pub(crate) fn take(&mut self) -> Option<Ipv4Addr> {
        let end = self.block.size() - 1;
        let offset = (self.next..end).chain(FIRST_POD..self.next).find(|o| !self.used.contains(o))?;
        self.used.insert(offset);
        self.next = if offset + 1 < end { offset + 1 } else { FIRST_POD };
        Some((self.block.first + offset).into())
    }

    /// Marks an address as given out. `false`: it is already, or it is not one for pods.
    pub(crate) fn keep(&mut self, address: Ipv4Addr) -> bool {
        let offset = self.block.offset(address);
        if !(FIRST_POD..self.block.size() - 1).contains(&offset) || !self.used.insert(offset) {
            return false;
        }
        self.next = self.next.max(offset + 1);
        if self.next >= self.block.size() - 1 {
            self.next = FIRST_POD;
        }
        true
    }

    pub(crate) fn is_used(&self, address: Ipv4Addr) -> bool {
        self.used.contains(&self.block.offset(address))
    }

    pub(crate) fn release(&mut self, address: Ipv4Addr) {
        self.used.remove(&self.block.offset(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> Block {
        Block::parse(text).expect("a range")
    }

    #[test]
    fn ranges_are_checked() {
        let check = |text: &str, good: bool| assert_eq!(Block::parse(text).is_some(), good, "{text}");
        check("198.19.0.0/16", true);
        check("10.0.0.0/30", true);
        check("10.0.0.0/31", false);
        check("10.0.0.1/24", false);
        check("10.0.0.0", false);
        check("fd00::/64", false);
        check("0.0.0.0/0", false);
    }

    #[test]
    fn blocks_are_given_in_order_around_what_is_taken() {
        let check = |range: &str, taken: &[&str], expected: Option<&str>| {
            let taken: Vec<_> = taken.iter().map(|t| block(t)).collect();
            assert_eq!(choose(block(range), &taken), expected.map(block));
        };
        check("198.19.0.0/16", &[], Some("198.19.0.0/20"));
        check("198.19.0.0/16", &["198.19.0.0/20", "198.19.32.0/20"], Some("198.19.16.0/20"));
        check("198.19.0.0/16", &["198.19.0.0/17"], Some("198.19.128.0/20"));
        check("198.19.0.0/16", &["198.16.0.0/12"], None);
        check("10.0.0.0/28", &["198.19.0.0/16"], Some("10.0.0.0/28"));
        check("10.0.0.0/28", &["10.0.0.8/30"], None);
    }

    #[test]
    fn addresses_come_round_late() {
        let mut addresses = Addresses::new(block("10.0.0.0/29"));
        let take = |a: &mut Addresses| a.take().map(|ip| ip.octets()[3]);
        assert_eq!(take(&mut addresses), Some(2));
        addresses.release([10, 0, 0, 2].into());
        assert_eq!(take(&mut addresses), Some(3));
        assert!(addresses.keep([10, 0, 0, 5].into()));
        assert!(!addresses.keep([10, 0, 0, 5].into()), "twice");
        assert!(!addresses.keep([10, 0, 0, 1].into()), "the gateway");
        assert!(!addresses.keep([10, 0, 0, 7].into()), "the broadcast");
        assert!(!addresses.keep([10, 0, 1, 2].into()), "elsewhere");
        assert_eq!([(); 4].map(|()| take(&mut addresses)), [Some(6), Some(2), Some(4), None]);
    }
}
