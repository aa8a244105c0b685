//! Where an image's files are: in a directory or in a tar, by name.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tar::{Archive, EntryType};

use super::Fault;
use crate::unpack::relative;

/// Manifests and configurations are some KiB.
const DOCUMENT_LEN_MAX: u64 = 8 * 1024 * 1024;

/// As many links as `docker save` could have put one after the other.
const LINK_COUNT_MAX: usize = 8;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The files of an image.
#[derive(Debug)]
pub(super) enum Source {
    /// An OCI image layout.
    Directory(PathBuf),
    /// One in a tar, or what `docker save` wrote.
    Tar { file: File, members: HashMap<PathBuf, Member> },
}

/// Where a member of a tar is.
#[derive(Clone, Debug)]
pub(super) enum Member {
    File {
        offset: u64,
        len: u64,
    },
    /// `docker save` of old packed a layer that two images share once.
    Link(PathBuf),
}

impl Source {
    /// Opens a directory or a tar; one that is compressed as a whole is unpacked into a file without a name in
    /// `scratch`, of at most `limit` bytes.
    pub(super) fn open(path: &Path, scratch: &Path, limit: u64) -> Result<Self, Fault> {
        let mut file = File::open(path).map_err(Fault::io("it cannot be opened"))?;
        if file.metadata().map_err(Fault::io("it cannot be read"))?.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        if starts_with_gzip(&mut file).map_err(Fault::io("it cannot be read"))? {
            file = decompressed(file, scratch, limit)?;
        }
        let members = members(&file).map_err(|error| {
            Fault::new(format!(
                "it is neither a directory nor a tar ({error}); give an OCI image layout or a file from `docker save`"
            ))
        })?;
        Ok(Self::Tar { file, members })
    }

    /// Whether a file is there.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(root) => root.join(name).is_file(),
            Self::Tar { members, .. } => members.contains_key(Path::new(name)),
        }
    }

    /// Opens a file.
    pub(super) fn read(&self, name: &str) -> Result<Box<dyn Read + '_>, Fault> {
        let path = relative(name.as_bytes()).map_err(|_| Fault::new(format!("it names a file outside: {name}")))?;
        match self {
            Self::Directory(root) => {
                let file = File::open(root.join(path)).map_err(Fault::io(name))?;
                Ok(Box::new(file))
            }
            Self::Tar { file, members } => {
                let mut path = path;
                for _ in 0..LINK_COUNT_MAX {
                    match members.get(&path) {
                        Some(Member::Link(target)) => path.clone_from(target),
                        Some(Member::File { offset, len }) => {
                            return Ok(Box::new(Part { file, offset: *offset, left: *len }));
                        }
                        None => break,
                    }
                }
                Err(Fault::new(format!("{name} is missing; save or copy the image again")))
            }
        }
    }

    /// Reads a small file whole.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, Fault> {
        let mut document = Vec::new();
        self.read(name)?.take(DOCUMENT_LEN_MAX + 1).read_to_end(&mut document).map_err(Fault::io(name))?;
        if document.len() as u64 > DOCUMENT_LEN_MAX {
            return Err(Fault::new(format!("{name} is larger than {DOCUMENT_LEN_MAX} bytes")));
        }
        Ok(document)
    }
}

fn starts_with_gzip(file: &mut File) -> io::Result<bool> {
    let mut magic = Vec::new();
    file.take(GZIP_MAGIC.len() as u64).read_to_end(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(magic == GZIP_MAGIC)
}

fn decompressed(file: File, scratch: &Path, limit: u64) -> Result<File, Fault> {
    let failed = "it cannot be decompressed";
    let mut plain = tempfile::tempfile_in(scratch).map_err(Fault::io(failed))?;
    let mut contents = MultiGzDecoder::new(BufReader::new(file)).take(limit.saturating_add(1));
    let len = io::copy(&mut contents, &mut plain).map_err(Fault::io(failed))?;
    if len > limit {
        return Err(Fault::new(format!("it is larger than {limit} bytes without its compression")));
    }
    plain.seek(SeekFrom::Start(0)).map_err(Fault::io(failed))?;
    Ok(plain)
}

fn members(file: &File) -> io::Result<HashMap<PathBuf, Member>> {
    let mut members = HashMap::new();
    let mut archive = Archive::new(file);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let Ok(path) = relative(&entry.path_bytes()) else { continue };
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                members.insert(path, Member::File { offset: entry.raw_file_position(), len: entry.size() });
            }
            EntryType::Symlink | EntryType::Link => {
                let is_symbolic = entry.header().entry_type() == EntryType::Symlink;
                let target = entry.link_name_bytes().unwrap_or_default();
                if let Some(target) = link_target(&path, &target, is_symbolic) {
                    members.insert(path, Member::Link(target));
                }
            }
            _ => {}
        }
    }
    Ok(members)
}

/// Which member a link means: `../<layer>/layer.tar` is beside its directory.
fn link_target(path: &Path, target: &[u8], is_symbolic: bool) -> Option<PathBuf> {
    if !is_symbolic {
        return relative(target).ok();
    }
    let mut directory = path.parent()?;
    let mut rest = target;
    while let Some(after) = rest.strip_prefix(b"../") {
        directory = directory.parent()?;
        rest = after;
    }
    Some(directory.join(relative(rest).ok()?))
}

/// A part of a file, read by position: a tar's members may be read in any order.
#[derive(Debug)]
struct Part<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let read = self.file.read_at(&mut into[..want], self.offset)?;
        if read == 0 && want > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the tar ends in the middle of it"));
        }
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// Counts and hashes what is read, up to a limit.
#[derive(Debug)]
pub(super) struct Checked<R> {
    from: R,
    hash: Sha256,
    len: u64,
    limit: u64,
}

impl<R: Read> Checked<R> {
    pub(super) fn new(from: R, limit: u64) -> Self {
        Self { from, hash: Sha256::new(), len: 0, limit }
    }

    /// Reads to the end; returns the length in bytes and the digest in hexadecimal.
    pub(super) fn finish(mut self) -> io::Result<(u64, String)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((self.len, hex::encode(self.hash.finalize())))
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(into)?;
        self.hash.update(&into[..read]);
        self.len += read as u64;
        if self.len > self.limit {
            return Err(io::Error::other(format!("it is larger than the {} bytes that an image may have", self.limit)));
        }
        Ok(read)
    }
}

/// The SHA-256 of a document in hexadecimal.
pub(super) fn sha256(document: &[u8]) -> String {
    hex::encode(Sha256::digest(document))
}

/// A reader over what begins with `magic`, and that.
pub(super) fn peek<R: Read>(mut from: R) -> io::Result<(Vec<u8>, impl Read)> {
    let mut magic = Vec::new();
    (&mut from).take(4).read_to_end(&mut magic)?;
    Ok((magic.clone(), io::Cursor::new(magic).chain(from)))
}

/// Whether a stream that begins so is compressed with gzip.
pub(super) fn is_gzip(magic: &[u8]) -> bool {
    magic.starts_with(&GZIP_MAGIC)
}
