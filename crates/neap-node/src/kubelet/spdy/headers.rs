//! SPDY's header blocks (SPDY/3, 2.6.10): one zlib stream per connection and direction, with a dictionary that both
//! sides know. What we say has no headers and is sent uncompressed, which is a zlib stream, too.

use std::collections::BTreeMap;

use flate2::{Decompress, FlushDecompress, Status};

use super::Fault;

/// By lower-case name.
pub(crate) type Headers = BTreeMap<String, String>;

/// Most that a block of headers may unfold to. Streams of pods name their kind and a number.
const MAX_BLOCK: usize = 16 << 10;
const MAX_HEADERS: u32 = 64;

/// Words that the dictionary begins with, each behind its length.
const WORDS: [&str; 65] = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];
/// And what it ends with.
const PHRASES: &str = concat!(
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505",
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized",
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable",
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT",
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,",
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.",
);
/// Adler-32 of the dictionary, by which the other side names it.
const DICTIONARY_ID: u32 = 0xe3c6_a7c2;

pub(super) fn dictionary() -> Vec<u8> {
    let mut all = Vec::with_capacity(1423);
    for word in WORDS {
        all.extend(u32::try_from(word.len()).expect("words are short").to_be_bytes());
        all.extend(word.as_bytes());
    }
    all.extend(PHRASES.as_bytes());
    all
}

/// Reads the blocks of one direction, in order.
pub(super) struct Inflate {
    raw: Decompress,
    begun: bool,
}

impl Inflate {
    pub(super) fn new() -> Self {
        Self { raw: Decompress::new(false), begun: false }
    }

    pub(super) fn headers(&mut self, mut block: &[u8]) -> Result<Headers, Fault> {
        if !self.begun {
            block = self.begin(block)?;
        }
        let (mut text, before) = (vec![0; MAX_BLOCK], self.raw.total_out());
        let end = self.raw.total_in() + block.len() as u64;
        let done = self.raw.decompress(block, &mut text, FlushDecompress::Sync).map_err(|_| Fault::Headers)?;
        if matches!(done, Status::StreamEnd) || self.raw.total_in() != end {
            return Err(Fault::Headers);
        }
        let length = usize::try_from(self.raw.total_out() - before).map_err(|_| Fault::Headers)?;
        pairs(&text[..length]).ok_or(Fault::Headers)
    }

    /// Takes the zlib stream's own head off the first block, and the dictionary to heart.
    fn begin<'a>(&mut self, block: &'a [u8]) -> Result<&'a [u8], Fault> {
        const DEFLATE: u8 = 8;
        const HAS_DICTIONARY: u8 = 0x20;
        let [method, flags, rest @ ..] = block else { return Err(Fault::Headers) };
        if method & 0x0f != DEFLATE {
            return Err(Fault::Headers);
        }
        let rest = if flags & HAS_DICTIONARY == 0 {
            rest
        } else {
            let (id, rest) = rest.split_first_chunk().ok_or(Fault::Headers)?;
            if u32::from_be_bytes(*id) != DICTIONARY_ID {
                return Err(Fault::Headers);
            }
            rest
        };
        // What was unfolded before is what later blocks refer to: so the dictionary comes first, as a stored block.
        let words = dictionary();
        let primer = stored(&words);
        let mut nowhere = vec![0; words.len() + 1];
        self.raw.decompress(&primer, &mut nowhere, FlushDecompress::Sync).map_err(|_| Fault::Headers)?;
        self.begun = true;
        Ok(rest)
    }
}

/// A block without headers, for our direction; `first` of the connection or not.
pub(super) fn none(first: bool) -> Vec<u8> {
    const ZLIB_HEAD: [u8; 2] = [0x78, 0x01];
    let mut block = if first { ZLIB_HEAD.to_vec() } else { Vec::new() };
    block.extend(stored(&0_u32.to_be_bytes()));
    // Readers wait for the empty block that ends a flush.
    block.extend(stored(&[]));
    block
}

/// One block of a deflate stream that holds the bytes as they are (RFC 1951, 3.2.4).
fn stored(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("stored blocks are short");
    let mut block = vec![0];
    block.extend(length.to_le_bytes());
    block.extend((!length).to_le_bytes());
    block.extend(bytes);
    block
}

fn pairs(mut text: &[u8]) -> Option<Headers> {
    let number = |text: &mut &[u8]| -> Option<u32> {
        let (bytes, rest) = text.split_first_chunk()?;
        *text = rest;
        Some(u32::from_be_bytes(*bytes))
    };
    let word = |text: &mut &[u8]| -> Option<String> {
        let length = usize::try_from(number(text)?).ok()?;
        let (word, rest) = text.split_at_checked(length)?;
        *text = rest;
        Some(String::from_utf8_lossy(word).into_owned())
    };
    let count = number(&mut text).filter(|count| *count <= MAX_HEADERS)?;
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = word(&mut text)?.to_ascii_lowercase();
        headers.insert(name, word(&mut text)?);
    }
    text.is_empty().then_some(headers)
}
