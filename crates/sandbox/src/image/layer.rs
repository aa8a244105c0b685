//! One layer on top of the others.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use tar::Archive;

use super::Fault;
use super::manifest::{Layer, wrong_digest};
use super::source::{Checked, Source, is_gzip, peek};
use crate::unpack::{Links, Policy, Unpacker, relative, remove, remove_contents, split};

/// Names that begin so remove the name behind it from the layers below.
const WHITEOUT: &[u8] = b".wh.";
/// This one removes all that the layers below have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names that begin so are notes of a file system about itself.
const WHITEOUT_META: &[u8] = b".wh..wh.";

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

const READ_LEN: usize = 128 * 1024;

/// Unpacks a layer over `root` and verifies it. Returns the bytes of its tar, `limit` at most.
pub(super) fn apply(source: &Source, layer: &Layer, root: &Path, limit: u64) -> Result<u64, Fault> {
    let failed = |error: io::Error| Fault::new(format!("{}: {error}", layer.name));
    let mut blob = Checked::new(source.read(&layer.name)?, u64::MAX);
    let (magic, contents) = peek(BufReader::with_capacity(READ_LEN, &mut blob)).map_err(failed)?;
    let plain: Box<dyn Read + '_> = if is_gzip(&magic) {
        Box::new(MultiGzDecoder::new(BufReader::with_capacity(READ_LEN, contents)))
    } else if magic == ZSTD_MAGIC {
        return Err(Fault::new(format!(
            "{} is compressed with zstd; copy the image with gzip, for example \
             `skopeo copy --dest-compress-format gzip`",
            layer.name
        )));
    } else {
        Box::new(contents)
    };
    let mut plain = Checked::new(plain, limit);
    let unpacked = unpack(&mut plain, root, limit);
    // A wrong digest explains whatever else went wrong with it.
    let finished = plain.finish();
    let (_, blob_digest) = blob.finish().map_err(failed)?;
    if layer.blob.as_ref().is_some_and(|digest| digest.hex() != blob_digest) {
        return Err(wrong_digest(&layer.name));
    }
    let (len, diff_digest) = finished.map_err(failed)?;
    if layer.diff.hex() != diff_digest {
        return Err(wrong_digest(&layer.name));
    }
    unpacked.map_err(|why| Fault::new(format!("{}: {why}", layer.name)))?;
    Ok(len)
}

fn unpack(tar: &mut impl Read, root: &Path, limit: u64) -> Result<(), String> {
    let policy = Policy {
        // As in the sandbox later: `/var/run` may lead to `/run`, which is the image's.
        links: Links::InRoot,
        keeps_ids: true,
        // Nothing in a sandbox gains rights by set-id bits, and on the host nothing may.
        mode_mask: 0o1777,
        replaces_trees: true,
        limit,
    };
    let text = |error: io::Error| error.to_string();
    let mut merge = Merge { unpacker: Unpacker::open(root, policy).map_err(text)?, added: HashSet::new() };
    let mut archive = Archive::new(tar);
    for entry in archive.entries().map_err(text)? {
        let mut entry = entry.map_err(text)?;
        let name = entry.path_bytes().into_owned();
        let path =
            relative(&name).map_err(|_| format!("{}: the name leads outside", String::from_utf8_lossy(&name)))?;
        if !merge.whiteout(&path).map_err(|error| format!("{}: {error}", path.display()))? {
            merge.unpacker.member(&mut entry).map_err(|error| error.to_string())?;
            merge.add(path);
        }
    }
    merge.unpacker.finish().map_err(|error| error.to_string())
}

struct Merge {
    unpacker: Unpacker,
    /// What this layer has, with the directories above: whiteouts are about the layers below only, wherever in the tar
    /// they come.
    added: HashSet<PathBuf>,
}

impl Merge {
    fn add(&mut self, path: PathBuf) {
        for above in path.ancestors() {
            if !self.added.insert(above.to_owned()) && above != path {
                break;
            }
        }
    }

    /// Does what a whiteout says; `false` if the member is none.
    fn whiteout(&mut self, path: &Path) -> io::Result<bool> {
        let Some((directory, name)) = split(path) else { return Ok(false) };
        let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) else { return Ok(false) };
        if name.as_bytes().starts_with(WHITEOUT_META) && name.as_bytes() != OPAQUE {
            return Ok(true);
        }
        let beneath = self.unpacker.beneath();
        beneath.forget();
        let parent = match beneath.directory(directory) {
            Ok(parent) => parent,
            // There is nothing to hide.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        if name.as_bytes() == OPAQUE {
            // To read it, `O_PATH` is not enough.
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
            let readable = rustix::fs::openat(&parent, ".", flags, rustix::fs::Mode::empty())?;
            remove_contents(&readable, directory, &self.added)?;
            return Ok(true);
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(io::Error::other("it is a whiteout of no name"));
        }
        let hidden = OsStr::from_bytes(hidden);
        remove(&parent, hidden, &directory.join(hidden), &self.added)?;
        Ok(true)
    }
}
