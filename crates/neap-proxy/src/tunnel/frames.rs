//! Where one WebSocket frame ends and the next begins (RFC 6455, section 5.2), so that a notice can be put between two.
//!
//! It follows lengths only: payloads are not looked at, nothing is judged.

/// A close frame as a server sends it, with status 1001, "going away" (sections 5.5.1, 7.4.1).
pub(super) const GOING_AWAY: [u8; 4] = [0x88, 0x02, 0x03, 0xE9];

const OPCODE_CLOSE: u8 = 8;

/// Follows one direction of a connection.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// As much of the present frame's head as has come.
    head: [u8; 14],
    have: usize,
    /// Bytes of payload to come.
    payload: u64,
    closed: bool,
}

impl Frames {
    pub(crate) fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let skip = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
                self.payload -= skip as u64;
                bytes = &bytes[skip..];
                continue;
            }
            self.head[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            if self.have >= 2 && self.have == self.head_length() {
                self.closed |= self.head[0] & 0x0f == OPCODE_CLOSE;
                self.payload = self.payload_length();
                self.have = 0;
            }
        }
    }

    /// Whether a frame of ours may come next: nothing is begun, and no close has been sent, which is the last frame.
    pub(crate) fn takes_notice(&self) -> bool {
        self.have == 0 && self.payload == 0 && !self.closed
    }

    fn head_length(&self) -> usize {
        let length = match self.head[1] & 0x7f {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        let masked = self.head[1] & 0x80 != 0;
        if masked { length + 4 } else { length }
    }

    fn payload_length(&self) -> u64 {
        let big_endian = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        match self.head[1] & 0x7f {
            126 => big_endian(&self.head[2..4]),
            127 => big_endian(&self.head[2..10]),
            short => short.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(opcode: u8, length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = vec![0x80 | opcode];
        match length {
            0..=125 => frame.push(mask | u8::try_from(length).expect("is short")),
            126..=0xffff => {
                frame.push(mask | 126);
                frame.extend_from_slice(&u16::try_from(length).expect("fits").to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        if masked {
            frame.extend_from_slice(&[1, 2, 3, 4]);
        }
        frame.resize(frame.len() + length, 0x88);
        frame
    }

    #[test]
    fn the_ends_of_frames_are_found() {
        for (length, masked) in [(0, false), (5, false), (125, true), (126, false), (70_000, true), (70_000, false)] {
            let bytes = frame(2, length, masked);
            for step in [1, 3, bytes.len()] {
                let mut frames = Frames::default();
                for (at, chunk) in bytes.chunks(step).enumerate() {
                    assert!(at == 0 || !frames.takes_notice(), "{length} {masked} in the middle at {}", at * step);
                    frames.follow(chunk);
                }
                assert!(frames.takes_notice(), "{length} {masked} in steps of {step}");
            }
        }
    }

    #[test]
    fn nothing_follows_a_close() {
        let mut frames = Frames::default();
        frames.follow(&frame(1, 3, false));
        frames.follow(&GOING_AWAY);
        assert!(!frames.takes_notice());
    }
}
