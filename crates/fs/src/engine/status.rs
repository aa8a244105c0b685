//! `.sandpail/status`: a file that is in no bucket, and says what is not stored yet.
//!
//! It stands at the mount's root, in no listing of it, and cannot be changed. An object or directory of the bucket that
//! has its name comes first. The directory's inode numbers are outside of those of [`Tree`](crate::tree::Tree), so that
//! whatever knows nothing of this finds nothing under them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::{Engine, Listed, OpenMode, Opened, Stat, guard, not_found};
use crate::attr::{Attr, Kind};
use crate::tree::{Name, ROOT};
use crate::{FsError, FsResult};

/// The directory's name.
pub const STATUS_DIRECTORY: &str = ".sandpail";
/// The file's name in it.
pub const STATUS_FILE: &str = "status";

/// Above all numbers that the tree gives.
const DIRECTORY_INO: u64 = 1 << 63;
const FILE_INO: u64 = DIRECTORY_INO + 1;
/// How long the bucket may take to say whether it has a directory of that name. The file is wanted most when it does
/// not answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is remembered of the bucket's own `.sandpail`.
#[derive(Debug, Default)]
pub(super) struct StatusFiles {
    is_shadowed: AtomicBool,
    /// Open status files, with what they said when they were opened.
    open: std::sync::Mutex<std::collections::HashMap<u64, Bytes>>,
}

/// Whether a number is one of these files'.
pub(super) fn is_status(ino: u64) -> bool {
    matches!(ino, DIRECTORY_INO | FILE_INO)
}

/// Refuses to change these files, and what would stand in their directory.
pub(super) fn check_real(ino: u64) -> FsResult<()> {
    if is_status(ino) { Err(refused()) } else { Ok(()) }
}

pub(super) fn refused() -> FsError {
    FsError::NotPermitted { what: format!("/{STATUS_DIRECTORY} is the mount's own and cannot be changed") }
}

impl Engine {
    /// Whether a name is the status directory's, unless the bucket has one.
    pub(super) fn is_status_name(&self, parent: u64, name: &[u8]) -> bool {
        self.options.status && parent == ROOT && name == STATUS_DIRECTORY.as_bytes()
    }

    /// Finds `name` as [`Engine::lookup`] does, if it may be one of these; `None` if it is an ordinary name.
    pub(super) async fn lookup_status(&self, parent: u64, name: &[u8]) -> Option<FsResult<Stat>> {
        if parent == DIRECTORY_INO {
            let is_file = name == STATUS_FILE.as_bytes();
            return Some(if is_file { Ok(self.status_stat(FILE_INO)) } else { Err(not_found(name)) });
        }
        if !self.is_status_name(parent, name) {
            return None;
        }
        let status = &self.status_files;
        Some(match tokio::time::timeout(PATIENCE, self.resolve(parent, name, true)).await {
            Ok(Err(FsError::NotFound { .. })) => {
                status.is_shadowed.store(false, Ordering::Relaxed);
                Ok(self.status_stat(DIRECTORY_INO))
            }
            Ok(Ok(stat)) => {
                status.is_shadowed.store(true, Ordering::Relaxed);
                Ok(stat)
            }
            Ok(Err(_)) | Err(_) if !status.is_shadowed.load(Ordering::Relaxed) => Ok(self.status_stat(DIRECTORY_INO)),
            Ok(Err(error)) => Err(error),
            Err(_) => self.resolve(parent, name, true).await,
        })
    }

    /// What `stat` shows of one of these. The file's length is 0, as those of `/proc` are: it is known when it is read.
    pub(super) fn status_stat(&self, ino: u64) -> Stat {
        let kind = if ino == DIRECTORY_INO { Kind::Directory } else { Kind::File };
        let mut attr = Attr::plain(kind, 0, SystemTime::now(), &self.options.defaults);
        // Names of files may not be everybody's to know.
        attr.perm = if ino == DIRECTORY_INO { 0o555 } else { 0o440 };
        Stat { ino, attr, is_linked: true, is_local: false }
    }

    /// Opens the status file; what it says is what is true now.
    pub(super) fn open_status(&self, ino: u64, mode: OpenMode) -> FsResult<Opened> {
        if ino == DIRECTORY_INO {
            return Err(FsError::IsADirectory);
        }
        if mode.write || mode.truncate {
            return Err(refused());
        }
        let mut text = serde_json::to_vec_pretty(&self.status_json())
            .map_err(|error| FsError::Invalid { what: format!("the status cannot be written: {error}") })?;
        text.push(b'\n');
        let handle = self.new_handle();
        guard(&self.status_files.open).insert(handle, text.into());
        // So that no other process gives the number to another file.
        self.note_opened(handle, ino, None);
        Ok(Opened { handle, stat: self.status_stat(ino), keep_cache: false, direct_io: true })
    }

    /// What an open status file says; `None` for a handle of another file.
    pub(super) fn status_text(&self, handle: u64) -> Option<Bytes> {
        guard(&self.status_files.open).get(&handle).cloned()
    }

    /// Closes an open status file.
    pub(super) fn close_status(&self, handle: u64) {
        guard(&self.status_files.open).remove(&handle);
    }

    /// What stands in the status directory, from `position` on.
    pub(super) fn list_status(&self, position: u64) -> Vec<Listed> {
        let entries = [(".", DIRECTORY_INO), ("..", ROOT), (STATUS_FILE, FILE_INO)];
        let first = usize::try_from(position).unwrap_or(usize::MAX);
        let listed = |(next, (name, ino)): (u64, (&str, u64))| {
            let stat = Stat { ino, ..self.status_stat(if ino == FILE_INO { FILE_INO } else { DIRECTORY_INO }) };
            // References to these are not counted, so one may be given back that never was.
            Listed { next, name: Name::from(name.as_bytes()), stat, is_known: ino == FILE_INO }
        };
        (1..).zip(entries).skip(first).map(listed).collect()
    }
}
