//! Checksums of bodies, as headers carry them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc_fast::{CrcAlgorithm, Digest};
use md5::Digest as _;
use sha2::Sha256;

/// Which checksum goes with an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksumKind {
    /// `x-amz-checksum-crc64nvme`; parts of it make the checksum of the whole object.
    Crc64Nvme,
    /// `x-amz-checksum-crc32c`.
    Crc32c,
    /// `x-amz-checksum-crc32`, what other programs store most.
    Crc32,
    /// `x-amz-checksum-sha1`.
    Sha1,
    /// `x-amz-checksum-sha256`.
    Sha256,
    /// `Content-MD5`, which every S3 knows.
    ContentMd5,
    /// None.
    None,
}

impl ChecksumKind {
    /// The header that carries it.
    pub fn header(self) -> Option<&'static str> {
        match self {
            Self::Crc64Nvme => Some("x-amz-checksum-crc64nvme"),
            Self::Crc32c => Some("x-amz-checksum-crc32c"),
            Self::Crc32 => Some("x-amz-checksum-crc32"),
            Self::Sha1 => Some("x-amz-checksum-sha1"),
            Self::Sha256 => Some("x-amz-checksum-sha256"),
            Self::ContentMd5 => Some("content-md5"),
            Self::None => None,
        }
    }

    /// The checksum that a header (of this name, in lower case) carries.
    pub fn of_header(name: &str) -> Option<Self> {
        let all = [Self::Crc64Nvme, Self::Crc32c, Self::Crc32, Self::Sha1, Self::Sha256, Self::ContentMd5];
        all.into_iter().find(|kind| kind.header() == Some(name))
    }

    /// The name that people are told: `crc64nvme`.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::ContentMd5 => Some("md5"),
            kind => kind.header()?.strip_prefix("x-amz-checksum-"),
        }
    }

    /// The name in `x-amz-checksum-algorithm`.
    pub fn algorithm(self) -> Option<&'static str> {
        match self {
            Self::Crc64Nvme => Some("CRC64NVME"),
            Self::Crc32c => Some("CRC32C"),
            Self::Crc32 => Some("CRC32"),
            Self::Sha1 => Some("SHA1"),
            Self::Sha256 => Some("SHA256"),
            Self::ContentMd5 | Self::None => None,
        }
    }
}

/// Sums up a body, chunk by chunk.
#[derive(Debug)]
pub struct Checksummer(State);

#[derive(Debug)]
enum State {
    Crc { digest: Box<Digest>, len: usize },
    Md5(Box<md5::Md5>),
    Sha1(Box<sha1::Sha1>),
    Sha256(Box<Sha256>),
    None,
}

impl Checksummer {
    /// Begins.
    pub fn new(kind: ChecksumKind) -> Self {
        Self(match kind {
            ChecksumKind::Crc64Nvme => State::Crc { digest: Box::new(Digest::new(CrcAlgorithm::Crc64Nvme)), len: 8 },
            ChecksumKind::Crc32c => State::Crc { digest: Box::new(Digest::new(CrcAlgorithm::Crc32Iscsi)), len: 4 },
            ChecksumKind::Crc32 => State::Crc { digest: Box::new(Digest::new(CrcAlgorithm::Crc32IsoHdlc)), len: 4 },
            ChecksumKind::ContentMd5 => State::Md5(Box::default()),
            ChecksumKind::Sha1 => State::Sha1(Box::default()),
            ChecksumKind::Sha256 => State::Sha256(Box::default()),
            ChecksumKind::None => State::None,
        })
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Crc { digest, .. } => digest.update(bytes),
            State::Md5(md5) => md5.update(bytes),
            State::Sha1(sha1) => sha1.update(bytes),
            State::Sha256(sha256) => sha256.update(bytes),
            State::None => {}
        }
    }

    /// The value of the header; `None` for [`ChecksumKind::None`].
    pub fn finish(self) -> Option<String> {
        match self.0 {
            State::Crc { digest, len } => Some(STANDARD.encode(&digest.finalize().to_be_bytes()[8 - len..])),
            State::Md5(md5) => Some(STANDARD.encode(md5.finalize())),
            State::Sha1(sha1) => Some(STANDARD.encode(sha1.finalize())),
            State::Sha256(sha256) => Some(STANDARD.encode(sha256.finalize())),
            State::None => None,
        }
    }
}

/// The checksum of `bytes`.
pub fn of(kind: ChecksumKind, bytes: &[u8]) -> Option<String> {
    let mut sum = Checksummer::new(kind);
    sum.update(bytes);
    sum.finish()
}

/// The SHA-256 of `bytes` in hexadecimal, as signatures have it.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex_text(&Sha256::digest(bytes).into())
}

/// 32 bytes in lower-case hexadecimal.
pub(crate) fn hex_text(hash: &[u8; 32]) -> String {
    String::from_utf8(hex_digits(hash).to_vec()).expect("hexadecimal digits are ASCII")
}

/// As [`hex_text`], without memory of its own.
pub(crate) fn hex_digits(hash: &[u8; 32]) -> [u8; 64] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut digits = [0; 64];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(hash) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_values() {
        // The catalogue's check input. CRC-64/NVME: ae8b14860a799888, CRC-32C: e3069283, CRC-32: cbf43926.
        let data = b"123456789";
        assert_eq!(
            of(ChecksumKind::Crc64Nvme, data).unwrap(),
            STANDARD.encode(0xae8b_1486_0a79_9888_u64.to_be_bytes())
        );
        assert_eq!(of(ChecksumKind::Crc32c, data).unwrap(), STANDARD.encode(0xe306_9283_u32.to_be_bytes()));
        assert_eq!(of(ChecksumKind::Crc32, data).unwrap(), STANDARD.encode(0xcbf4_3926_u32.to_be_bytes()));
        assert_eq!(of(ChecksumKind::ContentMd5, b"").unwrap(), "1B2M2Y8AsgTpgAmY7PhCfg==");
        assert_eq!(of(ChecksumKind::Sha1, b"").unwrap(), "2jmj7l5rSw0yVb/vlWAYkK/YBwk=");
        assert_eq!(of(ChecksumKind::Sha256, b"").unwrap(), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
        assert_eq!(of(ChecksumKind::None, data), None);
        assert_eq!(ChecksumKind::of_header("x-amz-checksum-sha256"), Some(ChecksumKind::Sha256));
        assert_eq!(ChecksumKind::of_header("x-amz-checksum-md4"), None);
        assert_eq!(ChecksumKind::Crc64Nvme.name(), Some("crc64nvme"));
        assert_eq!(ChecksumKind::ContentMd5.name(), Some("md5"));
    }
}
