//! Unpacking a tar over a directory.

use std::io::{self, Read};
use std::path::Path;

use tar::Archive;

use super::body::BodyReader;
use super::protocol::Failure;
use crate::unpack::{Links, Policy, UnpackError, Unpacker};

/// Unpacks `body` over `root`, whose files that the archive does not name stay; `limit` bounds the files' bytes together.
/// Members of the archive that came before one that fails stay, as with `tar`.
pub(super) fn hydrate<R: Read>(root: &Path, limit: u64, body: &mut BodyReader<R>) -> Result<(), Failure> {
    // No set-id bits: what comes from outside gets no rights of others.
    let policy = Policy { links: Links::Beneath, keeps_ids: false, mode_mask: 0o1777, replaces_trees: false, limit };
    let mut unpacker =
        Unpacker::open(root, policy).map_err(|error| Failure::archive(format!("{}: {error}", root.display())))?;
    let mut counted = Counted { from: &mut *body, len: 0 };
    let mut archive = Archive::new(&mut counted);
    let mut member_count = 0_u64;
    let unpacked = archive.entries().map_err(Fault::Format).and_then(|mut entries| {
        entries.try_for_each(|entry| {
            let mut entry = entry.map_err(Fault::Format)?;
            unpacker.member(&mut entry).map_err(Fault::Unpack)?;
            member_count += 1;
            Ok(())
        })
    });
    let len = counted.len;
    match unpacked {
        Ok(()) if len == 0 => return Err(Failure::archive("Empty tar payload")),
        Ok(()) => {}
        Err(Fault::Format(error)) if member_count == 0 => {
            return Err(Failure::archive(format!("This does not look like an uncompressed tar archive: {error}")));
        }
        Err(Fault::Format(error)) => return Err(Failure::archive(format!("the archive is damaged: {error}"))),
        Err(Fault::Unpack(UnpackError::TooLarge { len })) => return Err(Failure::TooLarge { len, limit }),
        Err(Fault::Unpack(error)) => return Err(Failure::archive(error.to_string())),
    }
    unpacker.finish().map_err(|error| Failure::archive(error.to_string()))?;
    // What comes after the archive's end is only padding, but the end of the transfer must be seen: it may be broken.
    io::copy(body, &mut io::sink()).map(drop).map_err(|error| Failure::archive(error.to_string()))
}

enum Fault {
    Format(io::Error),
    Unpack(UnpackError),
}

struct Counted<R> {
    from: R,
    len: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(into)?;
        self.len += read as u64;
        Ok(read)
    }
}
