//! The kept output of a background process: one bounded file for each stream, in the sandbox's directory on the host.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// Newest bytes that are kept at least; the file grows to twice as much before it is cut.
const KEPT_LEN: u64 = 1024 * 1024;

/// Most bytes that one read returns.
const READ_LEN_MAX: u64 = 64 * 1024;

/// The output of one stream. Offsets count from the first byte ever written (or found, after a restart).
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    /// Bytes that were cut off before those in the file.
    cut_len: u64,
    /// Bytes in the file.
    len: u64,
}

impl Log {
    /// Opens a log, or goes on with what is there.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).read(true).append(true).open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, cut_len: 0, len })
    }

    /// Offset of the next byte.
    pub(super) fn end(&self) -> u64 {
        self.cut_len + self.len
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        if self.len > 2 * KEPT_LEN { self.cut() } else { Ok(()) }
    }

    fn cut(&mut self) -> io::Result<()> {
        let kept = self.read_from(self.end() - KEPT_LEN, KEPT_LEN)?;
        let new = self.path.with_extension("new");
        fs::write(&new, &kept)?;
        fs::rename(&new, &self.path)?;
        self.file = File::options().read(true).append(true).open(&self.path)?;
        self.cut_len = self.end() - KEPT_LEN;
        self.len = KEPT_LEN;
        Ok(())
    }

    /// Up to a chunk of bytes from `offset` on, and the offset after them. Those that were cut off are left out.
    pub(super) fn read(&self, offset: u64) -> io::Result<(Bytes, u64)> {
        let from = offset.max(self.cut_len);
        let bytes = self.read_from(from, (self.end() - from.min(self.end())).min(READ_LEN_MAX))?;
        let next = from + bytes.len() as u64;
        Ok((bytes.into(), next))
    }

    /// The newest bytes.
    pub(super) fn newest(&self) -> io::Result<Bytes> {
        let len = self.len.min(KEPT_LEN);
        self.read_from(self.end() - len, len).map(Bytes::from)
    }

    fn read_from(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, offset - self.cut_len)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_bytes_stay_and_offsets_go_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        let mut log = Log::open(&path).unwrap();
        log.append(b"first").unwrap();
        assert_eq!(log.read(0).unwrap(), (Bytes::from_static(b"first"), 5));
        assert_eq!(log.read(5).unwrap(), (Bytes::new(), 5));
        for _ in 0..5 {
            log.append(&vec![b'x'; 512 * 1024]).unwrap();
        }
        log.append(b"last").unwrap();
        assert!(fs::metadata(&path).unwrap().len() <= 2 * KEPT_LEN);
        assert_eq!(log.end(), 5 + 5 * 512 * 1024 + 4);
        assert!(log.newest().unwrap().ends_with(b"xlast"));
        assert_eq!(log.newest().unwrap().len() as u64, KEPT_LEN);
        let (bytes, next) = log.read(0).unwrap();
        assert!(!bytes.is_empty() && next > 5);
        let again = Log::open(&path).unwrap();
        assert_eq!(again.newest().unwrap(), log.newest().unwrap());
    }
}
