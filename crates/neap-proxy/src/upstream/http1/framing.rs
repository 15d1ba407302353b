//! Where the body of an HTTP/1.1 message ends, read and written (RFC 9112, sections 6 and 7). No input or output here.

use bytes::{Buf, Bytes};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};

use super::Broken;

/// Longest line of a chunk's size, with whatever else is written beside it.
const CHUNK_LINE_BYTES: usize = 4096;
/// Trailers together.
const TRAILER_BYTES: usize = 16 * 1024;
/// Fields in the trailers.
const TRAILERS: usize = 64;

/// What is left of a body that comes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoder {
    /// So many bytes, at least one.
    Length(u64),
    /// In chunks.
    Chunked(Chunk),
    /// Until the other side closes.
    UntilClose,
    /// Nothing.
    Done,
}

/// Where in a chunk we are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Before the line with its size.
    Size,
    /// So many bytes before its end.
    Data(u64),
    /// Before the line's end behind its data.
    End,
    /// Behind the last chunk.
    Trailers,
}

impl Decoder {
    pub(super) fn of_length(bytes: u64) -> Self {
        if bytes == 0 { Self::Done } else { Self::Length(bytes) }
    }

    pub(super) fn is_done(&self) -> bool {
        *self == Self::Done
    }

    /// The next piece of what has come. `None`: more is needed, or nothing follows.
    pub(super) fn decode(&mut self, input: &mut Bytes) -> Result<Option<Frame<Bytes>>, Broken> {
        while !input.is_empty() {
            match self {
                Self::Done => return Ok(None),
                Self::UntilClose => return Ok(Some(Frame::data(std::mem::take(input)))),
                Self::Length(left) => {
                    let data = take(input, left);
                    if *left == 0 {
                        *self = Self::Done;
                    }
                    return Ok(Some(Frame::data(data)));
                }
                Self::Chunked(Chunk::Size) => {
                    let Some((line, size)) = chunk_size(input)? else { return Ok(None) };
                    input.advance(line);
                    *self = Self::Chunked(if size == 0 { Chunk::Trailers } else { Chunk::Data(size) });
                }
                Self::Chunked(Chunk::Data(left)) => {
                    let data = take(input, left);
                    if *left == 0 {
                        *self = Self::Chunked(Chunk::End);
                    }
                    return Ok(Some(Frame::data(data)));
                }
                Self::Chunked(Chunk::End) => match &input[..] {
                    [b'\r', b'\n', ..] => {
                        input.advance(2);
                        *self = Self::Chunked(Chunk::Size);
                    }
                    [b'\r'] => return Ok(None),
                    _ => return Err(Broken::Malformed("a chunk does not end where its size says")),
                },
                Self::Chunked(Chunk::Trailers) => {
                    let Some(trailers) = trailers(input)? else { return Ok(None) };
                    *self = Self::Done;
                    return Ok(if trailers.is_empty() { None } else { Some(Frame::trailers(trailers)) });
                }
            }
        }
        Ok(None)
    }

    /// The other side sends no more.
    pub(super) fn end(&mut self) -> Result<(), Broken> {
        match self {
            Self::UntilClose | Self::Done => {
                *self = Self::Done;
                Ok(())
            }
            Self::Length(_) | Self::Chunked(_) => Err(Broken::Closed),
        }
    }

    /// Bytes that are certain to come.
    pub(super) fn expects(&self) -> u64 {
        match self {
            Self::Length(left) | Self::Chunked(Chunk::Data(left)) => *left,
            Self::Chunked(_) | Self::UntilClose | Self::Done => 0,
        }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Done => SizeHint::with_exact(0),
            Self::Length(left) => SizeHint::with_exact(*left),
            Self::Chunked(_) | Self::UntilClose => SizeHint::default(),
        }
    }
}

/// As much of the input as belongs here.
fn take(input: &mut Bytes, left: &mut u64) -> Bytes {
    let here = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
    *left -= here as u64;
    if here == input.len() { std::mem::take(input) } else { input.split_to(here) }
}

/// The length of the line before a chunk, and what it says. What stands behind the size means nothing here, but nobody may read
/// another line in it than we do.
fn chunk_size(input: &[u8]) -> Result<Option<(usize, u64)>, Broken> {
    const NONE: Broken = Broken::Malformed("a chunk has no size");
    if !input[0].is_ascii_hexdigit() {
        return Err(NONE);
    }
    match httparse::parse_chunk_size(input) {
        Ok(httparse::Status::Complete((line, size))) if !input[..line - 2].contains(&b'\n') => Ok(Some((line, size))),
        Ok(httparse::Status::Partial) if input.len() < CHUNK_LINE_BYTES => Ok(None),
        _ => Err(NONE),
    }
}

/// Takes the trailers off the input, with the empty line behind them, once they are all there.
fn trailers(input: &mut Bytes) -> Result<Option<HeaderMap>, Broken> {
    match &input[..] {
        [b'\r', b'\n', ..] => {
            input.advance(2);
            return Ok(Some(HeaderMap::new()));
        }
        [b'\n', ..] => return Err(Broken::Malformed("the trailers begin with a bare LF")),
        _ => {}
    }
    let mut fields = [httparse::EMPTY_HEADER; TRAILERS];
    let (length, fields) = match httparse::parse_headers(input, &mut fields) {
        Ok(httparse::Status::Complete(complete)) => complete,
        Ok(httparse::Status::Partial) if input.len() < TRAILER_BYTES => return Ok(None),
        Ok(httparse::Status::Partial) => return Err(Broken::Malformed("the trailers are too large")),
        Err(error) => return Err(error.into()),
    };
    // httparse also ends lines, and the whole, at a bare LF; somebody else may read on there.
    if input[..length].windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r') {
        return Err(Broken::Malformed("a trailer's line does not end as it should"));
    }
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let (name, value) = (HeaderName::from_bytes(field.name.as_bytes()), HeaderValue::from_bytes(field.value));
        let (Ok(name), Ok(value)) = (name, value) else { return Err(Broken::Malformed("a trailer is none")) };
        if !belongs_in_head(&name) {
            trailers.append(name, value);
        }
    }
    input.advance(length);
    Ok(Some(trailers))
}

/// What is meant for whoever reads the head, and would be believed too late (RFC 9110, section 6.5.1), or what only a proxy may
/// say.
fn belongs_in_head(name: &HeaderName) -> bool {
    const NAMES: [HeaderName; 15] = [
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONNECTION,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::COOKIE,
        header::HOST,
        header::MAX_FORWARDS,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    const OTHERS: [&str; 3] = ["forwarded", "keep-alive", "proxy-connection"];
    NAMES.contains(name) || OTHERS.contains(&name.as_str()) || name.as_str().starts_with("x-forwarded-")
}

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoder {
    /// So many bytes are left to write.
    Length(u64),
    /// In chunks.
    Chunked,
}

impl Encoder {
    /// What stands before such a piece of data is written, what stands behind it returned. An error: the body has more than was
    /// announced.
    pub(super) fn data(&mut self, data: &Bytes, to: &mut Vec<u8>) -> Result<&'static [u8], Broken> {
        match self {
            Self::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(Broken::Length)?;
                Ok(b"")
            }
            Self::Chunked => {
                to.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
                Ok(b"\r\n")
            }
        }
    }

    /// What stands behind the last piece of data, when it is known to be the last and no trailers come.
    pub(super) fn after_last(self) -> Result<&'static [u8], Broken> {
        match self {
            Self::Length(0) => Ok(b""),
            Self::Length(_) => Err(Broken::Length),
            Self::Chunked => Ok(b"\r\n0\r\n\r\n"),
        }
    }

    /// What stands at the end. An error: the body has less than was announced.
    pub(super) fn end(self, trailers: &HeaderMap, to: &mut Vec<u8>) -> Result<(), Broken> {
        match self {
            Self::Length(0) => Ok(()),
            Self::Length(_) => Err(Broken::Length),
            Self::Chunked => {
                to.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.iter().filter(|(name, _)| !belongs_in_head(name)) {
                    super::head::write_field(name, value, to);
                }
                to.extend_from_slice(b"\r\n");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds the input in pieces of each size; returns the data, the trailers and what is left, or the broken.
    fn read(mut decoder: Decoder, input: &str, piece: usize) -> Result<(String, Option<HeaderMap>, String), String> {
        let (mut data, mut trailers) = (Vec::new(), None);
        let mut rest = Bytes::copy_from_slice(input.as_bytes());
        let mut ahead = Bytes::new();
        loop {
            match decoder.decode(&mut ahead).map_err(|broken| broken.to_string())? {
                Some(frame) => match frame.into_data() {
                    Ok(piece) => data.extend_from_slice(&piece),
                    Err(frame) => trailers = frame.into_trailers().ok(),
                },
                None if decoder.is_done() => break,
                None if rest.is_empty() => {
                    decoder.end().map_err(|broken| broken.to_string())?;
                    break;
                }
                None => {
                    let more = rest.split_to(piece.min(rest.len()));
                    ahead = Bytes::from([&ahead[..], &more[..]].concat());
                }
            }
        }
        let left = [&ahead[..], &rest[..]].concat();
        Ok((String::from_utf8(data).expect("text"), trailers, String::from_utf8(left).expect("text")))
    }

    fn check(decoder: impl Fn() -> Decoder, input: &str, expected: Result<(&str, &str), &str>) {
        for piece in [1, 2, 3, 7, 10_000] {
            let read = read(decoder(), input, piece);
            let read = read.as_ref().map(|(data, _, left)| (data.as_str(), left.as_str())).map_err(String::as_str);
            assert_eq!(read, expected, "{input:?} in pieces of {piece}");
        }
    }

    #[test]
    fn a_body_ends_where_its_framing_says() {
        check(|| Decoder::of_length(5), "helloNEXT", Ok(("hello", "NEXT")));
        check(|| Decoder::of_length(0), "NEXT", Ok(("", "NEXT")));
        check(|| Decoder::of_length(5), "hell", Err("the connection was closed too early"));
        check(|| Decoder::UntilClose, "hello", Ok(("hello", "")));
        check(|| Decoder::UntilClose, "", Ok(("", "")));
    }

    #[test]
    fn chunks_are_taken_apart() {
        let check = |input: &str, expected| check(|| Decoder::Chunked(Chunk::Size), input, expected);
        check("5\r\nhello\r\n1\r\n!\r\n0\r\n\r\nNEXT", Ok(("hello!", "NEXT")));
        check("A;name=\"v\"\r\n0123456789\r\n0\r\n\r\n", Ok(("0123456789", "")));
        check("5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\nNEXT", Ok(("hello", "NEXT")));
        check("5\r\nhello\r\n0\r\n", Err("the connection was closed too early"));
        check("5\r\nhel", Err("the connection was closed too early"));
        check("5\r\nhelloX\r\n", Err("a chunk does not end where its size says"));
        check("5\r\nhello\n0\r\n\r\n", Err("a chunk does not end where its size says"));
        check("x\r\nhello\r\n", Err("a chunk has no size"));
        check("-5\r\nhello\r\n", Err("a chunk has no size"));
        check("\r\nhello\r\n", Err("a chunk has no size"));
        check(";x\r\nhello\r\n", Err("a chunk has no size"));
        check("5;x\n\r\nhello\r\n", Err("a chunk has no size"));
        check("5\nhello\r\n", Err("a chunk has no size"));
        check("11111111111111111\r\n", Err("a chunk has no size"));
        check("0\r\n\n", Err("the trailers begin with a bare LF"));
        check("0\r\nx: 1\n\r\n", Err("a trailer's line does not end as it should"));
        check("0\r\nx: 1\r\n\n", Err("a trailer's line does not end as it should"));
        check("0\r\nx sum: 1\r\n\r\n", Err("this is no HTTP: invalid header name"));
    }

    #[test]
    fn what_never_ends_is_given_up() {
        let line = format!("5;{}", "x".repeat(CHUNK_LINE_BYTES));
        let trailers = format!("0\r\nx: {}", "x".repeat(TRAILER_BYTES));
        let read = |input: &str| read(Decoder::Chunked(Chunk::Size), input, 512).expect_err("is too long");
        assert_eq!(read(&line), "a chunk has no size");
        assert_eq!(read(&trailers), "the trailers are too large");
    }

    #[test]
    fn trailers_are_passed_on_unless_they_belong_in_the_head() {
        let input = "0\r\nX-Sum: 1\r\nContent-Length: 7\r\nX-Forwarded-For: x\r\nKeep-Alive: 1\r\nX-Sum: 2\r\n\r\n";
        let (_, trailers, _) = read(Decoder::Chunked(Chunk::Size), input, 10_000).expect("reads");
        let trailers = trailers.expect("trailers");
        assert_eq!(trailers.get_all("x-sum").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(trailers.len(), 2);
        let mut written = Vec::new();
        let mut all = trailers;
        all.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        Encoder::Chunked.end(&all, &mut written).expect("ends");
        assert_eq!(String::from_utf8_lossy(&written), "0\r\nx-sum: 1\r\nx-sum: 2\r\n\r\n");
    }

    #[test]
    fn a_body_is_as_long_as_was_announced() {
        let mut to = Vec::new();
        let mut encoder = Encoder::Length(5);
        assert!(encoder.end(&HeaderMap::new(), &mut to).is_err(), "too short");
        encoder.data(&Bytes::from_static(b"hello"), &mut to).expect("fits");
        encoder.end(&HeaderMap::new(), &mut to).expect("ends");
        assert!(encoder.data(&Bytes::from_static(b"!"), &mut to).is_err(), "too long");
        assert!(to.is_empty());
        let behind = Encoder::Chunked.data(&Bytes::from(vec![b'x'; 26]), &mut to).expect("has no length");
        assert_eq!((&to[..], behind), (&b"1a\r\n"[..], &b"\r\n"[..]));
    }
}
