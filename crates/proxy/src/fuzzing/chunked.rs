//! Bodies in `aws-chunked`.

use bytes::Bytes;
use sandpail_s3::ChecksumKind;
use sandpail_s3::checksum::of;

use crate::Denied;
use crate::body::{BodyCheck, Checked, ChunkSigner, Payload, Streaming};

/// A body and what is promised about it.
struct Case {
    is_signed: bool,
    has_trailer: bool,
    /// Whether it is framed as it should be, so that it must be taken.
    is_good: bool,
    decoded: Option<Vec<u8>>,
    decoded_len: usize,
    wire: Vec<u8>,
}

fn signer() -> ChunkSigner {
    ChunkSigner::new([0; 32], "20260101T000000Z".into(), "s".into(), "0".into())
}

/// Style, length of pieces, length of the body, and the wire, or a program that writes one (only so are there
/// signatures that fit).
///
/// A body comes through whole only if its framing says so, the last byte waits for that, pieces change nothing, and
/// what a good client wrote is taken.
pub fn fuzz_chunked(data: &[u8]) {
    let [style, step, len, rest @ ..] = data else { return };
    let case = if style & 4 == 4 {
        Case::written(*style, usize::from(*len), rest)
    } else {
        Case {
            is_signed: style & 2 == 2,
            has_trailer: style & 1 == 1,
            is_good: false,
            decoded: None,
            decoded_len: usize::from(*len),
            wire: rest.to_vec(),
        }
    };
    let (passed, outcome) = case.run(usize::from(*step).max(1));
    let (passed_whole, outcome_whole) = case.run(case.wire.len().max(1));
    assert_eq!(outcome, outcome_whole, "pieces change the outcome");
    // When it breaks, larger pieces may hold back what smaller ones let through.
    assert!(passed.starts_with(&passed_whole) || passed_whole.starts_with(&passed));
    assert!(passed.len().max(passed_whole.len()) < case.decoded_len.max(1), "the last byte waits");
    let Ok(checked) = outcome else {
        assert!(!case.is_good, "what a good client wrote is refused: {outcome:?} {}", case.wire.escape_ascii());
        return;
    };
    assert_eq!(passed, passed_whole);
    let body = [&passed[..], &checked.last].concat();
    assert_eq!(body.len(), case.decoded_len);
    assert_eq!(reference(&case.wire), Some(body.clone()), "{}", case.wire.escape_ascii());
    let expected = case.has_trailer.then(|| (ChecksumKind::Crc32, of(ChecksumKind::Crc32, &body).unwrap_or_default()));
    assert_eq!(checked.checksum, expected);
    if case.is_good {
        assert_eq!(Some(body), case.decoded);
    }
}

impl Case {
    /// Writes a body: each byte of the program is the length of a chunk, or of raw bytes that belong to no framing.
    fn written(style: u8, len: usize, program: &[u8]) -> Self {
        let (has_trailer, is_signed) = (style & 1 == 1, style & 2 == 2);
        let mut signer = is_signed.then(signer);
        let (mut wire, mut decoded, mut is_good) = (Vec::new(), Vec::new(), style & 8 == 0);
        let chunk = |data: &[u8], wire: &mut Vec<u8>, signer: &mut Option<ChunkSigner>| {
            wire.extend_from_slice(format!("{:x}", data.len()).as_bytes());
            if let Some(signer) = signer {
                wire.extend_from_slice(format!(";chunk-signature={}", signer.sign_chunk(data)).as_bytes());
            }
            wire.extend_from_slice(b"\r\n");
        };
        let mut rest = program;
        while let Some((&op, tail)) = rest.split_first() {
            let (bytes, tail) = tail.split_at(usize::from(op & 0x7f).min(tail.len()));
            rest = tail;
            if op & 0x80 == 0x80 {
                is_good &= bytes.is_empty();
                wire.extend_from_slice(bytes);
            } else if !bytes.is_empty() {
                chunk(bytes, &mut wire, &mut signer);
                wire.extend_from_slice(bytes);
                wire.extend_from_slice(b"\r\n");
                decoded.extend_from_slice(bytes);
            }
        }
        chunk(b"", &mut wire, &mut signer);
        if has_trailer {
            let sum = of(ChecksumKind::Crc32, &decoded).unwrap_or_default();
            wire.extend_from_slice(format!("x-amz-checksum-crc32:{sum}\r\n").as_bytes());
            if let Some(signer) = &mut signer {
                let signature = signer.sign_trailer(&format!("x-amz-checksum-crc32:{sum}\n"));
                wire.extend_from_slice(format!("x-amz-trailer-signature:{signature}\r\n").as_bytes());
            }
        }
        wire.extend_from_slice(b"\r\n");
        if style & 8 == 8 {
            // Cut, or with another length than was told.
            let cut = len.min(wire.len());
            wire.truncate(wire.len() - cut);
        }
        let decoded_len = if style & 16 == 16 { len } else { decoded.len() };
        is_good &= decoded_len == decoded.len();
        Self { is_signed, has_trailer, is_good, decoded: Some(decoded), decoded_len, wire }
    }

    fn run(&self, piece_len: usize) -> (Vec<u8>, Result<Checked, Denied>) {
        let decoded_len = self.decoded_len as u64;
        let streaming = Streaming {
            decoded_len,
            trailer: self.has_trailer.then_some(ChecksumKind::Crc32),
            has_trailer: self.has_trailer,
            chunks: self.is_signed.then(signer),
        };
        let mut check = BodyCheck::new(&Payload::Streaming(streaming), decoded_len, &[]);
        let mut out = Vec::new();
        let wire = Bytes::copy_from_slice(&self.wire);
        let mut pushed = Ok(());
        for start in (0..wire.len()).step_by(piece_len) {
            pushed = check.push(wire.slice(start..wire.len().min(start + piece_len)), &mut out);
            if pushed.is_err() {
                break;
            }
        }
        (out.concat(), pushed.and_then(|()| check.finish()))
    }
}

/// The framing as its grammar says it, of a wire that is there as a whole: the bytes between sizes.
fn reference(wire: &[u8]) -> Option<Vec<u8>> {
    let (mut decoded, mut rest) = (Vec::new(), wire);
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        let digits = rest[..end].split(|byte| *byte == b';').next()?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(decoded);
        }
        decoded.extend_from_slice(rest.get(..size)?);
        rest = rest[size..].strip_prefix(b"\r\n")?;
    }
}
