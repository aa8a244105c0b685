//! `aws-chunked`: bodies with sizes, and perhaps signatures and a checksum, between their bytes.
//!
//! ```text
//!          size line                 all bytes          CRLF
//! ─► Size ──────────► Data ─────────────────► DataEnd ──────► Size
//!      │ size 0
//!      ├── no trailer ─► LastEnd ──CRLF or end──► Done
//!      └── trailer ────► Trailer ──empty line───► Done
//! ```
//!
//! Nothing of the framing is passed on. So it may be lenient where clients differ (bare line feeds among trailers), but
//! it is not where sizes are concerned.

use std::fmt;

use bytes::{Buf, Bytes};
use sandpail_s3::ChecksumKind;
use sandpail_s3::checksum::{Checksummer, sha256_hex};
use sandpail_s3::sign::hmac;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::Denied;

/// Longest line of a chunk's size: 16 digits and a signature need 98 bytes.
const SIZE_LINE_MAX: usize = 128;
/// Most bytes of trailers.
const TRAILER_MAX: usize = 4096;
const SIGNATURE_LEN: usize = 64;
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// A body in `aws-chunked`.
#[derive(Clone, Debug)]
pub struct Streaming {
    /// `x-amz-decoded-content-length`: bytes without the framing.
    pub decoded_len: u64,
    /// The checksum that comes behind the body.
    pub trailer: Option<ChecksumKind>,
    pub(crate) has_trailer: bool,
    pub(crate) chunks: Option<ChunkSigner>,
}

/// Verifies the chain of chunk signatures that begins with the request's own.
#[derive(Clone)]
pub(crate) struct ChunkSigner {
    key: [u8; 32],
    stamp: String,
    scope: String,
    previous: String,
}

impl fmt::Debug for ChunkSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChunkSigner(..)")
    }
}

impl ChunkSigner {
    pub(crate) fn new(key: [u8; 32], stamp: String, scope: String, seed: String) -> Self {
        Self { key, stamp, scope, previous: seed }
    }

    /// The signature that the next chunk, or the trailer, must have.
    fn expected(&self, algorithm: &str, hashes: &str) -> String {
        let Self { key, stamp, scope, previous } = self;
        hex::encode(hmac(key, format!("{algorithm}\n{stamp}\n{scope}\n{previous}\n{hashes}").as_bytes()))
    }

    fn check(&mut self, algorithm: &str, hashes: &str, sent: &str) -> Result<(), Denied> {
        let expected = self.expected(algorithm, hashes);
        if !bool::from(expected.as_bytes().ct_eq(sent.as_bytes())) {
            return Err(Denied::Digest("a chunk's signature is not by this sandbox's key"));
        }
        self.previous = expected;
        Ok(())
    }

    fn check_chunk(&mut self, data_sha256: &str, sent: &str) -> Result<(), Denied> {
        self.check("AWS4-HMAC-SHA256-PAYLOAD", &format!("{EMPTY_SHA256}\n{data_sha256}"), sent)
    }

    fn check_trailer(&mut self, text: &str, sent: &str) -> Result<(), Denied> {
        self.check("AWS4-HMAC-SHA256-TRAILER", &sha256_hex(text.as_bytes()), sent)
    }

    /// Signs as a client does, for tests.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn sign_chunk(&mut self, data: &[u8]) -> String {
        self.previous = self.expected("AWS4-HMAC-SHA256-PAYLOAD", &format!("{EMPTY_SHA256}\n{}", sha256_hex(data)));
        self.previous.clone()
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn sign_trailer(&mut self, text: &str) -> String {
        self.expected("AWS4-HMAC-SHA256-TRAILER", &sha256_hex(text.as_bytes()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Data { left: u64 },
    DataEnd,
    LastEnd,
    Trailer,
    Done,
}

/// Decodes one body.
#[derive(Debug)]
pub(crate) struct Decoder {
    spec: Streaming,
    state: State,
    line: Vec<u8>,
    decoded: u64,
    /// Of the chunk that is being read, if chunks are signed.
    hash: Sha256,
    signature: String,
    trailer_len: usize,
    /// What the trailer said.
    checksum: Option<String>,
    is_trailer_signed: bool,
    sum: Checksummer,
}

impl Decoder {
    pub(crate) fn new(spec: Streaming) -> Self {
        let sum = Checksummer::new(spec.trailer.unwrap_or(ChecksumKind::None));
        Self {
            spec,
            state: State::Size,
            line: Vec::new(),
            decoded: 0,
            hash: Sha256::new(),
            signature: String::new(),
            trailer_len: 0,
            checksum: None,
            is_trailer_signed: false,
            sum,
        }
    }

    /// Takes the next bytes of the wire; gives decoded ones to `emit`.
    pub(crate) fn push(
        &mut self,
        mut wire: Bytes,
        emit: &mut dyn FnMut(Bytes) -> Result<(), Denied>,
    ) -> Result<(), Denied> {
        while !wire.is_empty() {
            match self.state {
                State::Size => {
                    if let Some(line) = self.line(&mut wire, SIZE_LINE_MAX)? {
                        self.size_line(&line)?;
                    }
                }
                State::Data { left } => {
                    let len = usize::try_from(left).unwrap_or(usize::MAX).min(wire.len());
                    let data = wire.split_to(len);
                    self.sum.update(&data);
                    if self.spec.chunks.is_some() {
                        self.hash.update(&data);
                    }
                    self.decoded += len as u64;
                    let left = left - len as u64;
                    self.state = if left == 0 { State::DataEnd } else { State::Data { left } };
                    if left == 0 {
                        self.end_chunk()?;
                    }
                    emit(data)?;
                }
                State::DataEnd | State::LastEnd => {
                    if let Some(line) = self.line(&mut wire, 2)? {
                        if !line.is_empty() {
                            return Err(FRAMING);
                        }
                        self.state = if self.state == State::DataEnd { State::Size } else { State::Done };
                    }
                }
                State::Trailer => self.trailer(&mut wire)?,
                State::Done => return Err(Denied::Malformed("there are bytes behind the last chunk")),
            }
        }
        Ok(())
    }

    /// The wire ended: gives the trailing checksum, verified.
    pub(crate) fn finish(self) -> Result<Option<(ChecksumKind, String)>, Denied> {
        let is_ended = self.state == State::Done || (self.state == State::LastEnd && self.line.is_empty());
        if !is_ended {
            return Err(Denied::Digest("the body ended before its last chunk"));
        }
        if self.decoded != self.spec.decoded_len {
            return Err(Denied::Digest("the body is shorter than x-amz-decoded-content-length"));
        }
        let Some(kind) = self.spec.trailer else { return Ok(None) };
        let sent = self.checksum.ok_or(Denied::Digest("the trailing checksum is missing"))?;
        if self.sum.finish().as_deref() != Some(&*sent) {
            return Err(Denied::Digest("the body does not have the trailing checksum"));
        }
        Ok(Some((kind, sent)))
    }

    /// Takes the rest of a line that ends in CRLF; none if it is not complete.
    fn line(&mut self, wire: &mut Bytes, len_max: usize) -> Result<Option<Vec<u8>>, Denied> {
        let end = memchr::memchr(b'\n', wire);
        let len = end.map_or(wire.len(), |end| end + 1);
        if self.line.len() + len > len_max {
            return Err(FRAMING);
        }
        self.line.extend_from_slice(&wire[..len]);
        wire.advance(len);
        if end.is_none() {
            return Ok(None);
        }
        let mut line = std::mem::take(&mut self.line);
        if line.ends_with(b"\r\n") {
            line.truncate(line.len() - 2);
            Ok(Some(line))
        } else {
            Err(FRAMING)
        }
    }

    fn size_line(&mut self, line: &[u8]) -> Result<(), Denied> {
        let line = std::str::from_utf8(line).map_err(|_| FRAMING)?;
        let digits = match (line.split_once(';'), &self.spec.chunks) {
            (None, None) => line,
            (Some((digits, extension)), Some(_)) => {
                let signature = extension.strip_prefix("chunk-signature=").ok_or(FRAMING)?;
                if signature.len() != SIGNATURE_LEN {
                    return Err(FRAMING);
                }
                signature.clone_into(&mut self.signature);
                digits
            }
            _ => return Err(FRAMING),
        };
        let is_hex = (1..=16).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let size = u64::from_str_radix(digits, 16).ok().filter(|_| is_hex).ok_or(FRAMING)?;
        if size > self.spec.decoded_len - self.decoded {
            return Err(Denied::Digest("the body is longer than x-amz-decoded-content-length"));
        }
        if size > 0 {
            self.state = State::Data { left: size };
            return Ok(());
        }
        self.end_chunk()?;
        self.state = if self.spec.has_trailer { State::Trailer } else { State::LastEnd };
        Ok(())
    }

    fn end_chunk(&mut self) -> Result<(), Denied> {
        match &mut self.spec.chunks {
            Some(signer) => signer.check_chunk(&hex::encode(self.hash.finalize_reset()), &self.signature),
            None => Ok(()),
        }
    }

    fn trailer(&mut self, wire: &mut Bytes) -> Result<(), Denied> {
        const BAD: Denied = Denied::Malformed("the trailer of the body cannot be read");
        let end = memchr::memchr(b'\n', wire);
        let len = end.map_or(wire.len(), |end| end + 1);
        self.trailer_len += len;
        if self.trailer_len > TRAILER_MAX {
            return Err(BAD);
        }
        self.line.extend_from_slice(&wire[..len]);
        wire.advance(len);
        if end.is_none() {
            return Ok(());
        }
        let line = String::from_utf8(std::mem::take(&mut self.line)).map_err(|_| BAD)?;
        let line = line.trim_end_matches(['\r', '\n']);
        if line.is_empty() {
            // minio-go writes an empty line before the trailer's signature, too.
            if self.spec.chunks.is_none() || self.is_trailer_signed {
                self.state = State::Done;
            }
            return Ok(());
        }
        if self.is_trailer_signed {
            return Err(BAD);
        }
        let (name, value) = line.split_once(':').ok_or(BAD)?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        let declared = self.spec.trailer.and_then(ChecksumKind::header);
        if let (Some(signer), "x-amz-trailer-signature") = (&mut self.spec.chunks, &*name) {
            let text = match (declared, &self.checksum) {
                (Some(name), Some(value)) => format!("{name}:{value}\n"),
                _ => String::new(),
            };
            signer.check_trailer(&text, value)?;
            self.is_trailer_signed = true;
        } else if declared == Some(&*name) && self.checksum.is_none() {
            self.checksum = Some(value.to_owned());
        } else {
            return Err(Denied::Malformed("the body has a trailer that x-amz-trailer does not name"));
        }
        Ok(())
    }
}

const FRAMING: Denied = Denied::Malformed("the aws-chunked framing of the body cannot be read");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::body::{BodyCheck, Payload};

    fn signer() -> ChunkSigner {
        ChunkSigner::new([7; 32], "20260101T000000Z".into(), "20260101/auto/s3/aws4_request".into(), "seed".into())
    }

    /// How a client frames a body.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Style {
        signed: bool,
        trailer: Option<ChecksumKind>,
    }

    const STYLES: [Style; 5] = [
        Style { signed: true, trailer: None },
        Style { signed: true, trailer: Some(ChecksumKind::Crc32c) },
        Style { signed: false, trailer: Some(ChecksumKind::Crc32) },
        Style { signed: false, trailer: Some(ChecksumKind::Sha256) },
        Style { signed: false, trailer: Some(ChecksumKind::Crc64Nvme) },
    ];

    fn encode(chunks: &[&[u8]], style: Style) -> Vec<u8> {
        let mut signer = signer();
        let mut wire = Vec::new();
        for chunk in chunks.iter().copied().chain([&b""[..]]) {
            wire.extend(format!("{:x}", chunk.len()).bytes());
            if style.signed {
                wire.extend(format!(";chunk-signature={}", signer.sign_chunk(chunk)).bytes());
            }
            wire.extend(b"\r\n");
            if !chunk.is_empty() {
                wire.extend(chunk);
                wire.extend(b"\r\n");
            }
        }
        if let Some(kind) = style.trailer {
            let sum = sandpail_s3::checksum::of(kind, &chunks.concat()).unwrap();
            let name = kind.header().unwrap();
            wire.extend(format!("{name}:{sum}\r\n").bytes());
            if style.signed {
                let signature = signer.sign_trailer(&format!("{name}:{sum}\n"));
                wire.extend(format!("x-amz-trailer-signature:{signature}\r\n").bytes());
            }
        }
        wire.extend(b"\r\n");
        wire
    }

    fn decode(wire: &[u8], len: u64, style: Style, step: usize) -> Result<Vec<u8>, (Vec<u8>, Denied)> {
        let streaming = Streaming {
            decoded_len: len,
            trailer: style.trailer,
            has_trailer: style.trailer.is_some(),
            chunks: style.signed.then(signer),
        };
        let mut check = BodyCheck::new(&Payload::Streaming(streaming), len, &[]);
        let mut out = Vec::new();
        for piece in wire.chunks(step.max(1)) {
            if let Err(denied) = check.push(Bytes::copy_from_slice(piece), &mut out) {
                return Err((out.concat(), denied));
            }
        }
        match check.finish() {
            Ok(checked) => {
                assert_eq!(checked.checksum.map(|(kind, _)| kind), style.trailer);
                out.push(checked.last);
                Ok(out.concat())
            }
            Err(denied) => Err((out.concat(), denied)),
        }
    }

    #[test]
    fn the_published_example() {
        // Amazon S3 API Reference, "Signature Calculations for the Authorization Header: Transferring Payload in
        // Multiple Chunks": 66,560 bytes in chunks of 64 KiB, 1 KiB and 0.
        let secret = sandpail_spec::SecretKey::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
        let key = sandpail_s3::sign::signing_key(&sandpail_s3::sign::sigv4::SIGV4, &secret, "20130524", "us-east-1");
        let seed = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";
        let scope = "20130524/us-east-1/s3/aws4_request";
        let mut signer = ChunkSigner::new(key, "20130524T000000Z".into(), scope.into(), seed.into());
        let first = signer.sign_chunk(&[b'a'; 65536]);
        assert_eq!(first, "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648");
        let second = signer.sign_chunk(&[b'a'; 1024]);
        assert_eq!(second, "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497");
        assert_eq!(signer.sign_chunk(b""), "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9");
    }

    #[test]
    fn bodies_come_through() {
        for style in STYLES {
            for chunks in [&[][..], &[&b"a"[..]], &[b"hello ", b"world", b"\r\n0\r\n\r\n"]] {
                let wire = encode(chunks, style);
                let data = chunks.concat();
                for step in [1, 2, 3, 7, 1000] {
                    assert_eq!(decode(&wire, data.len() as u64, style, step).unwrap(), data, "{style:?} {step}");
                }
            }
        }
        // Without the last CRLF, and as minio-go writes trailers.
        let style = STYLES[0];
        let wire = encode(&[b"abc"], style);
        assert_eq!(decode(&wire[..wire.len() - 2], 3, style, 1).unwrap(), b"abc");
        let style = STYLES[1];
        let wire = String::from_utf8(encode(&[b"abc"], style)).unwrap();
        let wire = wire.replace("\r\nx-amz-trailer-signature", "\n\r\nx-amz-trailer-signature");
        assert_eq!(decode(wire.as_bytes(), 3, style, 5).unwrap(), b"abc");
    }

    #[test]
    fn whatever_is_changed_the_body_does_not_come_through_whole() {
        for style in STYLES {
            let data = b"hello world";
            let wire = encode(&[&data[..5], &data[5..]], style);
            for index in 0..wire.len() {
                let mut changed = wire.clone();
                changed[index] ^= 1;
                match decode(&changed, 11, style, 4) {
                    // `5` or `a` in another case, `\r` among trailers: the same body.
                    Ok(body) => assert_eq!(body, data, "{style:?} {index}"),
                    Err((body, _)) => assert!(body.len() < data.len(), "{style:?} {index}"),
                }
            }
            for len in 0..wire.len() - 2 {
                let (body, _) = decode(&wire[..len], 11, style, 4).unwrap_err();
                assert!(body.len() < data.len(), "{style:?} cut at {len}");
            }
            for len in [10, 12] {
                assert!(decode(&wire, len, style, 4).is_err(), "{style:?} {len}");
            }
            let longer = [&wire[..], b"x"].concat();
            assert!(decode(&longer, 11, style, 4).is_err(), "{style:?}");
        }
    }

    #[test]
    fn odd_framing() {
        let style = STYLES[2];
        let good = "0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n";
        assert_eq!(decode(good.as_bytes(), 0, style, 9).unwrap(), b"");
        for bad in [
            "",
            "0\r\n\r\n",
            "0\n\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n",
            "0x0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n",
            "+0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n",
            " 0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n",
            "00000000000000000\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n",
            "0;a=b\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n",
            "0\r\nx-amz-checksum-crc32:AAAAAB==\r\n\r\n",
            "0\r\nx-amz-checksum-crc32c:AAAAAA==\r\n\r\n",
            "0\r\nhost:evil\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n",
            "0\r\nx-amz-checksum-crc32:AAAAAA==\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n",
            "ffffffffffffffff\r\n",
        ] {
            assert!(decode(bad.as_bytes(), 0, style, 9).is_err(), "{bad:?}");
        }
        let long = format!("0\r\nx-amz-checksum-crc32:{}", "A".repeat(5000));
        assert!(decode(long.as_bytes(), 0, style, 100).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces(
            wire in proptest::collection::vec(any::<u8>(), 0..300),
            step in 1..40_usize,
            len in 0..50_u64,
        ) {
            for style in STYLES {
                let whole = decode(&wire, len, style, usize::MAX).is_ok();
                prop_assert_eq!(decode(&wire, len, style, step).is_ok(), whole);
            }
        }

        #[test]
        fn any_body_comes_through(
            data in proptest::collection::vec(any::<u8>(), 0..2000),
            size in 1..500_usize,
            step in 1..700_usize,
        ) {
            let chunks: Vec<&[u8]> = data.chunks(size).collect();
            for style in STYLES {
                let wire = encode(&chunks, style);
                prop_assert_eq!(decode(&wire, data.len() as u64, style, step).unwrap(), data.clone());
            }
        }
    }
}
