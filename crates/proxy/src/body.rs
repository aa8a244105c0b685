//! Bodies that come in: what was promised about them, checked while they pass.
//!
//! ```text
//! wire bytes ─► push ─► decoded bytes, all but the last ─► … ─► finish ─► the last byte, and what the trailer said
//! ```
//!
//! The last byte is held back until everything promised was found true, so that a body whose hash, chunk signature,
//! trailer or length is wrong never reaches the bucket whole.

use bytes::Bytes;
use sandpail_s3::ChecksumKind;
use sandpail_s3::checksum::Checksummer;
use sha2::{Digest, Sha256};

use crate::Denied;
pub(crate) use crate::chunked::ChunkSigner;
use crate::chunked::Decoder;
pub use crate::chunked::Streaming;

/// What the signature says of the body.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Its SHA-256, in lower-case hexadecimal.
    Hash(String),
    /// Nothing.
    Unsigned,
    /// It is framed by `aws-chunked`.
    Streaming(Streaming),
}

impl Payload {
    /// The hash to send upstream, if the client vouched for one.
    pub fn hash(&self) -> Option<&str> {
        match self {
            Self::Hash(hash) => Some(hash),
            Self::Unsigned | Self::Streaming(_) => None,
        }
    }

    /// The checksum that comes behind the body, if one does: [`Checked::checksum`] will have its value.
    pub fn trailer(&self) -> Option<ChecksumKind> {
        match self {
            Self::Streaming(streaming) => streaming.trailer,
            Self::Hash(_) | Self::Unsigned => None,
        }
    }
}

/// What came at the end of a body.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// The last byte (none if the body is empty).
    pub last: Bytes,
    /// The trailing checksum, verified.
    pub checksum: Option<(ChecksumKind, String)>,
}

/// Decodes and checks one body; [`crate::Forward::body_check`] makes it. Feed it with [`BodyCheck::push`] until the
/// wire ends, then [`BodyCheck::finish`].
#[derive(Debug)]
pub struct BodyCheck {
    decoder: Option<Decoder>,
    plain: Plain,
}

/// What is looked at in decoded bytes.
#[derive(Debug)]
struct Plain {
    len: u64,
    seen: u64,
    last: Bytes,
    hash: Option<(Sha256, String)>,
    sums: Vec<(Checksummer, String)>,
}

impl BodyCheck {
    /// A body of `payload` that has `len` decoded bytes and these checksums.
    pub(crate) fn new(payload: &Payload, len: u64, sums: &[(ChecksumKind, String)]) -> Self {
        let decoder = match payload {
            Payload::Streaming(streaming) => Some(Decoder::new(streaming.clone())),
            Payload::Hash(_) | Payload::Unsigned => None,
        };
        let hash = payload.hash().map(|hash| (Sha256::new(), hash.to_owned()));
        let sums = sums.iter().map(|(kind, sent)| (Checksummer::new(*kind), sent.clone())).collect();
        Self { decoder, plain: Plain { len, seen: 0, last: Bytes::new(), hash, sums } }
    }

    /// Takes the next bytes of the wire and appends decoded ones to `out`: all that are known but the body's last byte.
    ///
    /// # Errors
    /// [`Denied`]: framing, a chunk's signature, too many bytes. The upload must be cut.
    pub fn push(&mut self, wire: Bytes, out: &mut Vec<Bytes>) -> Result<(), Denied> {
        let plain = &mut self.plain;
        match &mut self.decoder {
            Some(decoder) => decoder.push(wire, &mut |data| plain.take(data, out)),
            None => plain.take(wire, out),
        }
    }

    /// The wire ended: gives the last byte if everything promised is true.
    ///
    /// # Errors
    /// [`Denied`]: too short, wrong hash, wrong trailer. The upload must be cut.
    pub fn finish(self) -> Result<Checked, Denied> {
        let checksum = self.decoder.map(Decoder::finish).transpose()?.flatten();
        Ok(Checked { last: self.plain.finish()?, checksum })
    }
}

impl Plain {
    fn take(&mut self, mut data: Bytes, out: &mut Vec<Bytes>) -> Result<(), Denied> {
        if data.is_empty() {
            return Ok(());
        }
        self.seen = self.seen.saturating_add(data.len() as u64);
        if self.seen > self.len {
            return Err(Denied::Digest("the body is longer than was told"));
        }
        if let Some((hash, _)) = &mut self.hash {
            hash.update(&data);
        }
        for (sum, _) in &mut self.sums {
            sum.update(&data);
        }
        if self.seen == self.len {
            self.last = data.split_off(data.len() - 1);
        }
        if !data.is_empty() {
            out.push(data);
        }
        Ok(())
    }

    fn finish(self) -> Result<Bytes, Denied> {
        if self.seen != self.len {
            return Err(Denied::Digest("the body ended early"));
        }
        if let Some((hash, sent)) = self.hash
            && hex::encode(hash.finalize()) != sent
        {
            return Err(Denied::Digest("the body does not have the hash that was signed"));
        }
        for (sum, sent) in self.sums {
            if sum.finish().as_deref() != Some(&*sent) {
                return Err(Denied::Digest("the body does not have the checksum that its headers say"));
            }
        }
        Ok(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(
        payload: &Payload,
        len: u64,
        sums: &[(ChecksumKind, String)],
        body: &[u8],
    ) -> Result<(usize, Bytes), Denied> {
        let mut check = BodyCheck::new(payload, len, sums);
        let mut out = Vec::new();
        for piece in body.chunks(2) {
            check.push(Bytes::copy_from_slice(piece), &mut out)?;
        }
        Ok((out.iter().map(Bytes::len).sum(), check.finish()?.last))
    }

    #[test]
    fn the_last_byte_waits_for_the_truth() {
        let hash = Payload::Hash(sandpail_s3::checksum::sha256_hex(b"abc"));
        assert_eq!(run(&hash, 3, &[], b"abc"), Ok((2, Bytes::from("c"))));
        assert_eq!(run(&hash, 3, &[], b"abd").unwrap_err().rule(), "digest");
        assert_eq!(run(&hash, 3, &[], b"ab").unwrap_err().rule(), "digest");
        assert_eq!(run(&Payload::Unsigned, 3, &[], b"abcd").unwrap_err().rule(), "digest");
        assert_eq!(run(&Payload::Unsigned, 0, &[], b""), Ok((0, Bytes::new())));
        let md5 = (ChecksumKind::ContentMd5, "kAFQmDzST7DWlj99KOF/cg==".to_owned());
        let crc = (ChecksumKind::Crc32, "NSRBwg==".to_owned());
        assert_eq!(run(&Payload::Unsigned, 3, &[md5.clone(), crc], b"abc"), Ok((2, Bytes::from("c"))));
        assert_eq!(run(&Payload::Unsigned, 3, &[md5], b"abd").unwrap_err().rule(), "digest");
    }
}
