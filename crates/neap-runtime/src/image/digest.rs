//! Digests: what names content. `sha256:` is what this store computes by itself; `sha512:`, the other algorithm of the
//! OCI image specification, is kept and checked where somebody names content so.
//!
//! Pure: it reads what it is handed.

use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256, Sha512};

use super::error::StoreError;

/// The algorithms of the OCI image specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    pub(super) const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Hexadecimal digits of a digest.
    const fn digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }

    /// The algorithm of a digest, and its digits; `None` when the text is no digest.
    pub(super) fn read(text: &str) -> Option<(Self, &str)> {
        let (name, digits) = text.split_once(':')?;
        let algorithm = Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)?;
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (digits.len() == algorithm.digits() && digits.bytes().all(is_digit)).then_some((algorithm, digits))
    }

    /// The algorithm of a digest that was checked before.
    pub(super) fn of(digest: &str) -> Self {
        Self::read(digest).map_or(Self::Sha256, |(algorithm, _)| algorithm)
    }

    pub(super) fn digest(self, bytes: &[u8]) -> String {
        match self {
            Self::Sha256 => self.named(&Sha256::digest(bytes)),
            Self::Sha512 => self.named(&Sha512::digest(bytes)),
        }
    }

    pub(super) fn digest_from(self, from: &mut impl Read) -> io::Result<String> {
        fn hashed<H: sha2::Digest>(from: &mut impl Read) -> io::Result<Vec<u8>> {
            let mut hash = H::new();
            copy_hashed(from, &mut io::sink(), &mut hash)?;
            Ok(hash.finalize().to_vec())
        }
        Ok(match self {
            Self::Sha256 => self.named(&hashed::<Sha256>(from)?),
            Self::Sha512 => self.named(&hashed::<Sha512>(from)?),
        })
    }

    fn named(self, sum: &[u8]) -> String {
        format!("{}:{}", self.name(), hex(sum))
    }
}

/// `sha256:` and 64, or `sha512:` and 128 lower-case hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    Algorithm::read(text).is_some()
}

/// A digest that the layers of an image may be told apart by: runtimes compare the sums of unpacked layers, and these
/// are computed as SHA-256.
pub(super) fn is_sha256(text: &str) -> bool {
    Algorithm::read(text).is_some_and(|(algorithm, _)| algorithm == Algorithm::Sha256)
}

/// What this store calls content of which nobody said a digest.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    Algorithm::Sha256.digest(bytes)
}

pub(super) fn check_digest(what: &str, want: &str, got: &str) -> Result<(), StoreError> {
    if want == got {
        return Ok(());
    }
    Err(StoreError::Digest { what: what.to_owned(), want: want.to_owned(), got: got.to_owned() })
}

/// Whether bytes are what a digest says, by the digest's own algorithm.
pub(super) fn check_bytes(what: &str, want: &str, bytes: &[u8]) -> Result<(), StoreError> {
    check_digest(what, want, &Algorithm::of(want).digest(bytes))
}

/// The digits of a digest. Callers hold digests that were checked by `is_digest`.
pub(super) fn hex_of(digest: &str) -> &str {
    digest.split_once(':').map_or(digest, |(_, digits)| digits)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, b| {
        use std::fmt::Write;
        write!(text, "{b:02x}").expect("a String takes everything");
        text
    })
}

pub(super) fn copy_hashed(from: &mut impl Read, to: &mut impl Write, hash: &mut impl sha2::Digest) -> io::Result<u64> {
    let mut buffer = vec![0; 128 << 10];
    let mut len = 0;
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(len),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hash.update(&buffer[..n]);
        to.write_all(&buffer[..n])?;
        len += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The sums of FIPS 180-2's example "abc".
    const ABC: [&str; 2] = [
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
    ];

    #[test]
    fn both_algorithms_compute_what_the_standard_says() {
        for (algorithm, want) in Algorithm::ALL.into_iter().zip(ABC) {
            assert_eq!(algorithm.digest(b"abc"), want);
            assert_eq!(algorithm.digest_from(&mut &b"abc"[..]).unwrap(), want);
            assert_eq!(Algorithm::of(want), algorithm);
            assert!(is_digest(want));
        }
    }

    #[test]
    fn only_whole_lower_case_sums_of_known_algorithms_are_digests() {
        let [short, long] = ABC;
        for bad in [
            "",
            "sha256",
            "sha256:",
            "sha256:12",
            "md5:900150983cd24fb0d6963f7d28e17f72",
            "sha256:../../../../../../../../../../../../../../../../../../etc/passwd",
            &short.to_uppercase(),
            &short.replace("ad", "AD"),
            &short.replace("sha256", "sha512"),
            &long.replace("sha512", "sha256"),
            &format!("{short} "),
        ] {
            assert!(!is_digest(bad), "{bad}");
        }
        assert!(is_sha256(short) && !is_sha256(long));
    }
}
