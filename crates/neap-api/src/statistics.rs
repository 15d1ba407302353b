//! The statistics message: what queue-proxies answer when they are scraped, and what activators send to the autoscaler
//! (facts E1.11, E2.9, E3.1). Knative's protobuf messages, field by field, so that either side may be Knative's own.
//!
//! The codec knows these three messages and skips fields it does not know. It allocates no more than what it is given.

/// What one pod measured since its last message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// The pod.
    pub pod_name: String,
    /// Requests in flight, averaged over the time.
    pub average_concurrent_requests: f64,
    /// The part of them that came through an activator, which reports them itself.
    pub average_proxied_concurrent_requests: f64,
    /// Requests that came in.
    pub request_count: f64,
    /// The part of them that came through an activator.
    pub proxied_request_count: f64,
    /// Seconds since the process began.
    pub process_uptime: f64,
    /// Seconds since 1970.
    pub timestamp: i64,
}

/// Statistics of a Revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RevisionStatistics {
    /// The Revision's namespace.
    pub namespace: String,
    /// The Revision's name.
    pub name: String,
    /// What was measured.
    pub statistics: Option<Statistics>,
}

/// Why bytes are no statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They end in the middle of a field.
    #[error("the statistics end in the middle of a field")]
    Truncated,
    /// A number of more than 64 bits, or a field numbered 0.
    #[error("the statistics hold an impossible field")]
    Field,
    /// Text that is none.
    #[error("a name in the statistics is no UTF-8")]
    Text,
}

/// The content type of a scrape's answer.
pub const CONTENT_TYPE: &str = "application/protobuf";
/// A scrape's answer is never longer than this, in bytes: names have at most 253 characters.
pub const LENGTH_MAX: usize = 336;

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

impl Statistics {
    /// As bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.pod_name.len());
        put_bytes(&mut out, 1, self.pod_name.as_bytes());
        let numbers = [
            self.average_concurrent_requests,
            self.average_proxied_concurrent_requests,
            self.request_count,
            self.proxied_request_count,
            self.process_uptime,
        ];
        for (number, field) in numbers.into_iter().zip(2..) {
            put_double(&mut out, field, number);
        }
        if self.timestamp != 0 {
            put_tag(&mut out, 7, VARINT);
            put_varint(&mut out, self.timestamp.cast_unsigned());
        }
        out
    }

    /// From bytes on the wire.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut it = Self::default();
        let mut fields = Fields(bytes);
        while let Some((field, value)) = fields.next_field()? {
            match (field, value) {
                (1, Value::Bytes(name)) => it.pod_name = text(name)?,
                (2, Value::Fixed64(bits)) => it.average_concurrent_requests = f64::from_bits(bits),
                (3, Value::Fixed64(bits)) => it.average_proxied_concurrent_requests = f64::from_bits(bits),
                (4, Value::Fixed64(bits)) => it.request_count = f64::from_bits(bits),
                (5, Value::Fixed64(bits)) => it.proxied_request_count = f64::from_bits(bits),
                (6, Value::Fixed64(bits)) => it.process_uptime = f64::from_bits(bits),
                (7, Value::Varint(seconds)) => it.timestamp = seconds.cast_signed(),
                _ => {}
            }
        }
        Ok(it)
    }
}

impl RevisionStatistics {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, 1, self.namespace.as_bytes());
        put_bytes(&mut out, 2, self.name.as_bytes());
        if let Some(statistics) = &self.statistics {
            let inner = statistics.encode();
            put_tag(&mut out, 3, BYTES);
            put_varint(&mut out, inner.len() as u64);
            out.extend_from_slice(&inner);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut it = Self::default();
        let mut fields = Fields(bytes);
        while let Some((field, value)) = fields.next_field()? {
            match (field, value) {
                (1, Value::Bytes(name)) => it.namespace = text(name)?,
                (2, Value::Bytes(name)) => it.name = text(name)?,
                (3, Value::Bytes(inner)) => it.statistics = Some(Statistics::decode(inner)?),
                _ => {}
            }
        }
        Ok(it)
    }
}

/// One message of an activator.
pub fn encode_all(messages: &[RevisionStatistics]) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        let inner = message.encode();
        put_tag(&mut out, 1, BYTES);
        put_varint(&mut out, inner.len() as u64);
        out.extend_from_slice(&inner);
    }
    out
}

/// What an activator sent.
///
/// # Errors
/// The first thing that is wrong; then nothing of the message counts.
pub fn decode_all(bytes: &[u8]) -> Result<Vec<RevisionStatistics>, DecodeError> {
    let mut messages = Vec::new();
    let mut fields = Fields(bytes);
    while let Some((field, value)) = fields.next_field()? {
        if let (1, Value::Bytes(inner)) = (field, value) {
            messages.push(RevisionStatistics::decode(inner)?);
        }
    }
    Ok(messages)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn put_tag(out: &mut Vec<u8>, field: u8, wire: u8) {
    out.push(field << 3 | wire);
}

fn put_double(out: &mut Vec<u8>, field: u8, value: f64) {
    // As in every proto3 encoder: what is zero is left out, but not minus zero.
    if value.to_bits() != 0 {
        put_tag(out, field, FIXED64);
        out.extend_from_slice(&value.to_bits().to_le_bytes());
    }
}

fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_tag(out, field, BYTES);
        put_varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
}

fn text(bytes: &[u8]) -> Result<String, DecodeError> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| DecodeError::Text)
}

enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    /// Of a field nobody here knows.
    Other,
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next_field(&mut self) -> Result<Option<(u64, Value<'a>)>, DecodeError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let field = tag >> 3;
        if field == 0 {
            return Err(DecodeError::Field);
        }
        let value = match tag.to_le_bytes()[0] & 7 {
            VARINT => Value::Varint(self.varint()?),
            FIXED64 => {
                let bytes = self.take(8)?;
                Value::Fixed64(u64::from_le_bytes(bytes.try_into().expect("eight were taken")))
            }
            BYTES => {
                let length = usize::try_from(self.varint()?).map_err(|_| DecodeError::Truncated)?;
                Value::Bytes(self.take(length)?)
            }
            FIXED32 => {
                self.take(4)?;
                Value::Other
            }
            // Groups are long gone from the format, and these messages never had any.
            _ => return Err(DecodeError::Field),
        };
        Ok(Some((field, value)))
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::Field);
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::Field)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Statistics {
        Statistics {
            pod_name: "hello-00001-deployment-abc".into(),
            average_concurrent_requests: 3.25,
            average_proxied_concurrent_requests: 1.0,
            request_count: 40.0,
            proxied_request_count: 0.0,
            process_uptime: 12.5,
            timestamp: 1_700_000_000,
        }
    }

    #[test]
    fn the_bytes_are_protobuf() {
        let one = Statistics { pod_name: "p".into(), request_count: 1.0, timestamp: 300, ..Default::default() };
        assert_eq!(one.encode(), b"\x0a\x01p\x21\0\0\0\0\0\0\xf0\x3f\x38\xac\x02");
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Statistics::decode(&some().encode()), Ok(some()));
        let sent = vec![
            RevisionStatistics { namespace: "ns".into(), name: "rev".into(), statistics: Some(some()) },
            RevisionStatistics { namespace: "ns".into(), name: "asleep".into(), statistics: None },
        ];
        assert_eq!(decode_all(&encode_all(&sent)), Ok(sent));
        assert_eq!(decode_all(b""), Ok(Vec::new()));
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let mut bytes = b"\x42\x03new\x4d\x01\x02\x03\x04\x50\x07".to_vec();
        bytes.extend(some().encode());
        assert_eq!(Statistics::decode(&bytes), Ok(some()));
    }

    #[test]
    fn bent_bytes_are_refused_whole() {
        let check = |bytes: &[u8], want: DecodeError| assert_eq!(decode_all(bytes), Err(want), "{bytes:?}");
        check(b"\x0a", DecodeError::Truncated);
        check(b"\x0a\x05\x0a", DecodeError::Truncated);
        check(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", DecodeError::Truncated);
        check(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", DecodeError::Field);
        check(b"\x00\x00", DecodeError::Field);
        check(b"\x0b", DecodeError::Field);
        check(b"\x0a\x03\x0a\x01\xff", DecodeError::Text);
        let whole =
            encode_all(&[RevisionStatistics { namespace: "ns".into(), name: "rev".into(), statistics: Some(some()) }]);
        for end in 1..whole.len() {
            assert!(decode_all(&whole[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn the_longest_answer_fits() {
        let longest = Statistics {
            pod_name: "p".repeat(253),
            average_proxied_concurrent_requests: 1.0,
            proxied_request_count: 1.0,
            timestamp: i64::MAX,
            ..some()
        };
        assert!(longest.encode().len() <= LENGTH_MAX);
    }
}
