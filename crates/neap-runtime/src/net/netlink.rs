//! Netlink by hand: enough to encode a request and to read its acknowledgement.
//!
//! Synchronous, because it runs in a freshly forked child inside a new network namespace, where no async runtime
//! exists; and shared by routes and packet filter, which are the same encoding with other numbers.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

/// Flags of a request header.
pub(crate) const REQUEST: u16 = 1;
pub(crate) const ACK: u16 = 4;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const EXCL: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;
const NESTED: u16 = 1 << 15;
const ERROR: u16 = 2;
const HEADER: usize = 16;

/// One message under construction.
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// `fixed`: the struct that follows the header for this kind of message.
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(fixed);
        let mut message = Self(bytes);
        message.pad();
        message
    }

    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.0.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
        self
    }

    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// An attribute made of attributes.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.nest_after(kind, &[], fill)
    }

    /// An attribute made of a struct and attributes.
    pub(crate) fn nest_after(&mut self, kind: u16, fixed: &[u8], fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        self.0.extend_from_slice(fixed);
        self.pad();
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(&self, sequence: u32) -> Vec<u8> {
        let mut bytes = self.0.clone();
        let length = bytes.len() as u32;
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes
    }

    fn wants_ack(&self) -> bool {
        u16::from_ne_bytes([self.0[6], self.0[7]]) & ACK != 0
    }
}

/// A socket in the network namespace in which it was opened.
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub(crate) fn route() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    pub(crate) fn netfilter() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends the messages as one datagram and waits for every acknowledgement asked for; the first refusal is the
    /// error. Answers other than acknowledgements are returned.
    pub(crate) fn talk(&mut self, messages: &[Message]) -> io::Result<Vec<Vec<u8>>> {
        self.exchange(messages.iter())
    }

    /// Messages that take effect together, between the two that mark their borders.
    pub(crate) fn talk_batch(&mut self, begin: Message, messages: &[Message], end: Message) -> io::Result<()> {
        self.exchange([&begin].into_iter().chain(messages).chain([&end])).map(drop)
    }

    fn exchange<'a>(&mut self, messages: impl Iterator<Item = &'a Message>) -> io::Result<Vec<Vec<u8>>> {
        let mut bytes = Vec::new();
        let mut awaited = 0;
        for message in messages {
            self.sequence += 1;
            bytes.extend(message.finish(self.sequence));
            awaited += usize::from(message.wants_ack());
        }
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut buffer = vec![0_u8; 16 * 1024];
        let mut answers = Vec::new();
        while awaited > 0 {
            let length = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..length];
            while rest.len() >= HEADER {
                let size = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                let Some(one) = rest.get(..size.max(HEADER)) else { break };
                if u16::from_ne_bytes([one[4], one[5]]) == ERROR && one.len() >= HEADER + 4 {
                    let code = i32::from_ne_bytes([one[16], one[17], one[18], one[19]]);
                    if code != 0 {
                        return Err(io::Error::from_raw_os_error(-code));
                    }
                    awaited -= 1;
                } else {
                    answers.push(one.to_vec());
                }
                rest = rest.get(size.next_multiple_of(4).max(HEADER)..).unwrap_or_default();
            }
        }
        Ok(answers)
    }

    pub(crate) fn ask(&mut self, message: Message) -> io::Result<Vec<Vec<u8>>> {
        self.talk(&[message])
    }
}

/// Value of an attribute in the answer to a request, after a struct of `fixed` bytes.
pub(crate) fn find_attr(answer: &[u8], fixed: usize, wanted: u16) -> Option<&[u8]> {
    let mut rest = answer.get(HEADER + fixed..)?;
    while rest.len() >= 4 {
        let size = usize::from(u16::from_ne_bytes([rest[0], rest[1]])).max(4);
        let kind = u16::from_ne_bytes([rest[2], rest[3]]) & !NESTED;
        if kind == wanted {
            return rest.get(4..size);
        }
        rest = rest.get(size.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_padded_nested_and_measured() {
        let mut message = Message::new(16, ACK, &[1, 2, 3, 4]);
        message.text(3, "ab").nest(18, |inner| {
            inner.attr(1, &[9]);
        });
        let bytes = message.finish(7);
        let expected: Vec<u8> = [
            &44_u32.to_ne_bytes()[..],
            &16_u16.to_ne_bytes(),
            &5_u16.to_ne_bytes(),
            &7_u32.to_ne_bytes(),
            &[0; 4],
            &[1, 2, 3, 4],
            &7_u16.to_ne_bytes(),
            &3_u16.to_ne_bytes(),
            b"ab\0\0",
            &12_u16.to_ne_bytes(),
            &(18_u16 | NESTED).to_ne_bytes(),
            &5_u16.to_ne_bytes(),
            &1_u16.to_ne_bytes(),
            &[9, 0, 0, 0],
            &[],
        ]
        .concat();
        assert_eq!(bytes.len(), 40);
        assert_eq!(bytes[4..], expected[4..]);
        assert_eq!(find_attr(&bytes, 4, 3), Some(&b"ab\0"[..]));
        assert_eq!(find_attr(&bytes, 4, 99), None);
    }
}
