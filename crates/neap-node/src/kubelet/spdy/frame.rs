//! SPDY/3.1's frames, from bytes and to bytes. Data passes in the pieces it comes in; only the short control frames are
//! gathered.

use bytes::{Buf, Bytes, BytesMut};

use super::Fault;
use super::headers::{self, Headers, Inflate};

const CONTROL: u16 = 0x8000;
const VERSION: u16 = 3;
const OPEN: u16 = 1;
const REPLY: u16 = 2;
const RESET: u16 = 3;
const PING: u16 = 6;
const GO_AWAY: u16 = 7;
const HEADERS: u16 = 8;
const FIN: u8 = 1;
const HEAD: usize = 8;
/// Longest control frame that is taken; the format would allow 16 MiB.
const MAX_CONTROL: usize = 16 << 10;
/// Highest number of a stream.
const STREAM: u32 = 0x7fff_ffff;

/// Why the other side took a stream back, or we do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Protocol = 1,
    Refused = 3,
    Cancel = 5,
}

/// What the other side did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Open { stream: u32, headers: Headers, last: bool },
    Data { stream: u32, bytes: Bytes, last: bool },
    Reset { stream: u32 },
    Ping { id: u32 },
    GoAway,
}

/// What we do. Streams are opened by the other side only.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    Reply { stream: u32 },
    Data { stream: u32, bytes: Bytes, last: bool },
    Reset { stream: u32, reason: Reason },
    Ping { id: u32 },
}

/// The frames in what the other side sends.
pub(super) struct Decoder {
    buffer: BytesMut,
    /// Of the data frame that is passing: its stream, how many bytes are still to come, whether it is the last.
    passing: Option<(u32, usize, bool)>,
    inflate: Inflate,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { buffer: BytesMut::new(), passing: None, inflate: Inflate::new() }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame, or piece of one; `None` when more bytes are needed.
    pub(super) fn next(&mut self) -> Result<Option<Heard>, Fault> {
        loop {
            if let Some((stream, left, last)) = self.passing {
                if left > 0 && self.buffer.is_empty() {
                    return Ok(None);
                }
                let bytes = self.buffer.split_to(left.min(self.buffer.len())).freeze();
                let left = left - bytes.len();
                self.passing = (left > 0).then_some((stream, left, last));
                return Ok(Some(Heard::Data { stream, bytes, last: last && left == 0 }));
            }
            let Some(mut head) = self.buffer.get(..HEAD) else { return Ok(None) };
            let (first, last) = (head.get_u32(), head[0] & FIN != 0);
            let length = (head.get_u32() & 0x00ff_ffff) as usize;
            if first >> 31 == 0 {
                self.buffer.advance(HEAD);
                self.passing = Some((first, length, last));
                continue;
            }
            if length > MAX_CONTROL {
                return Err(Fault::Long);
            }
            if self.buffer.len() < HEAD + length {
                return Ok(None);
            }
            self.buffer.advance(HEAD);
            let body = self.buffer.split_to(length).freeze();
            if (first >> 16) as u16 != CONTROL | VERSION {
                return Err(Fault::Version);
            }
            if let Some(heard) = self.control(first as u16, last, body)? {
                return Ok(Some(heard));
            }
        }
    }

    /// What a control frame says, if it says anything to us. Settings and windows do not: pods' streams are held back by
    /// the connection below, as kubectl's own library does it.
    fn control(&mut self, kind: u16, last: bool, mut body: Bytes) -> Result<Option<Heard>, Fault> {
        let number = |body: &mut Bytes| body.try_get_u32().map_err(|_| Fault::Short);
        Ok(match kind {
            OPEN => {
                let stream = number(&mut body)? & STREAM;
                // The stream it belongs to, its priority, and a slot for a certificate.
                body.try_get_uint(6).map_err(|_| Fault::Short)?;
                Some(Heard::Open { stream, headers: self.inflate.headers(&body)?, last })
            }
            // Nobody asked or wants to know, but the blocks after it build on this one.
            REPLY | HEADERS => {
                number(&mut body)?;
                self.inflate.headers(&body)?;
                None
            }
            RESET => Some(Heard::Reset { stream: number(&mut body)? & STREAM }),
            PING => Some(Heard::Ping { id: number(&mut body)? }),
            GO_AWAY => Some(Heard::GoAway),
            _ => None,
        })
    }
}

/// The bytes of what we do, in order.
#[derive(Default)]
pub(super) struct Encoder {
    replied: bool,
}

impl Encoder {
    pub(super) fn encode(&mut self, said: &Said) -> Bytes {
        match said {
            Said::Reply { stream } => {
                let block = headers::none(!std::mem::replace(&mut self.replied, true));
                control(REPLY, &[&stream.to_be_bytes(), &block])
            }
            Said::Data { stream, bytes, last } => frame(*stream, u8::from(*last) * FIN, &[bytes]),
            Said::Reset { stream, reason } => control(RESET, &[&stream.to_be_bytes(), &(*reason as u32).to_be_bytes()]),
            Said::Ping { id } => control(PING, &[&id.to_be_bytes()]),
        }
    }
}

fn control(kind: u16, parts: &[&[u8]]) -> Bytes {
    frame(u32::from(CONTROL | VERSION) << 16 | u32::from(kind), 0, parts)
}

fn frame(first: u32, flags: u8, parts: &[&[u8]]) -> Bytes {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    let mut bytes = Vec::with_capacity(HEAD + length);
    bytes.extend(first.to_be_bytes());
    let length = u32::try_from(length).expect("pieces are short");
    bytes.extend((u32::from(flags) << 24 | length).to_be_bytes());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes.into()
}
