//! Bodies that come in: what was promised about them, checked while they pass.
//!
//! ```text
//! wire bytes ─► push ─► decoded bytes, all but the last ─► … ─► finish ─► the last byte, and what the trailer said
//! ```
//!
//! The last byte is held back until everything promised was found true, so that a body whose hash, chunk signature,
//! trailer or length is wrong never reaches the bucket whole.

use bytes::Bytes;

use crate::Denied;

/// What the signature says of the body.
#[derive(Debug)]
pub enum Payload {
    /// Its SHA-256, in lower-case hexadecimal.
    Hash(String),
    /// Nothing.
    Unsigned,
    /// It is framed by `aws-chunked`.
    Streaming(Streaming),
}

/// A body in `aws-chunked`.
#[derive(Debug)]
pub struct Streaming {
    /// `x-amz-decoded-content-length`: bytes without the framing.
    pub decoded_len: u64,
    /// The checksum that comes behind the body: the header's name, `x-amz-checksum-crc32`.
    pub trailer: Option<&'static str>,
}

impl Payload {
    /// The hash to send upstream, if the client vouched for one.
    pub fn hash(&self) -> Option<&str> {
        match self {
            Self::Hash(hash) => Some(hash),
            Self::Unsigned | Self::Streaming(_) => None,
        }
    }
}

/// What came behind a body.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// The last byte (none if the body is empty).
    pub last: Bytes,
    /// Name and value of the trailing checksum, verified.
    pub checksum: Option<(&'static str, String)>,
}

/// Decodes and checks one body; [`crate::Forward::body_check`] makes it. Feed it with [`BodyCheck::push`] until the wire ends, then [`BodyCheck::finish`].
#[derive(Debug)]
pub struct BodyCheck {}

impl BodyCheck {
    /// A body of `payload` that has `len` decoded bytes.
    pub(crate) fn new(_payload: &Payload, _len: u64) -> Self {
        unimplemented!()
    }

    /// Takes the next bytes of the wire and appends decoded ones to `out`: all that are known but the body's last byte.
    ///
    /// # Errors
    /// [`Denied`]: framing, a chunk's signature, too many bytes. The upload must be cut.
    pub fn push(&mut self, _wire: Bytes, _out: &mut Vec<Bytes>) -> Result<(), Denied> {
        unimplemented!()
    }

    /// The wire ended: gives the last byte if everything promised is true.
    ///
    /// # Errors
    /// [`Denied`]: too short, wrong hash, wrong trailer. The upload must be cut.
    pub fn finish(self) -> Result<Checked, Denied> {
        unimplemented!()
    }
}
