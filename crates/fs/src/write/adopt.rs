//! Going on with the staging directory of a process that died, for a mount that lives on.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use sandpail_store::ETag;

use super::dirty_file::Attempt;
use super::disk;
use super::kept::{is_record, keep_one, read_record, record_of};
use super::resume::Remains;
use super::{DirtyFile, Recorded, StagingArea, WriteContext};
use crate::{FsError, FsResult};

/// A staged file of the process that died.
#[derive(Debug)]
pub(crate) struct Adopted {
    /// The inode that it belongs to.
    pub(crate) node: u64,
    pub(crate) recorded: Recorded,
    /// When it was written last.
    pub(crate) modified: SystemTime,
    remains: Remains,
}

impl Adopted {
    /// Whether the bucket has everything.
    pub(crate) fn is_stored(&self) -> bool {
        self.recorded.is_stored
    }

    /// Whether an upload of it may have been done.
    pub(crate) fn may_be_stored(&self) -> bool {
        // Its process may have died before anybody else knew that it is stored.
        self.recorded.is_storing || self.recorded.was_stored
    }

    /// Removes it: nobody needs it, or was told of it.
    pub(crate) fn remove(self) {
        // The record last: a file without one would be taken for something that was not stored.
        for path in [self.remains.path.clone(), record_of(&self.remains.path)] {
            if let Err(error) = disk::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "a staged file is left behind");
            }
        }
    }
}

impl StagingArea {
    /// Goes on with the directory of a process that died, which `lock` is and keeps.
    ///
    /// # Errors
    /// [`FsError::Io`] if it cannot be used.
    pub(crate) fn adopt(root: &Path, lock: OwnedFd, limit: Option<u64>) -> FsResult<Arc<Self>> {
        let failed =
            |source| FsError::Io { what: "cannot use the staging directory of another process".to_owned(), source };
        let own = std::fs::read_link(format!("/proc/self/fd/{}", lock.as_raw_fd())).map_err(failed)?;
        let mut next = 0;
        for name in names(&own).map_err(failed)? {
            let name = name.to_string_lossy();
            let number = name.split(['-', '.']).next().and_then(|number| number.parse::<u64>().ok());
            next = next.max(number.map_or(0, |number| number + 1));
        }
        let area = Self::on(root, own, File::from(lock), limit).map_err(failed)?;
        area.next.store(next, Ordering::Relaxed);
        Ok(Arc::new(area))
    }
}

fn names(dir: &Path) -> std::io::Result<Vec<OsString>> {
    Ok(std::fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?.into_iter().map(|entry| entry.file_name()).collect())
}

impl WriteContext {
    /// What the process that died had staged. What cannot be used is moved to where the operator finds it.
    ///
    /// # Errors
    /// [`FsError::Io`] if the directory cannot be read.
    pub(crate) fn adopted(&self) -> FsResult<Vec<Adopted>> {
        let (root, own) = self.staging.places();
        let failed = |source| FsError::Io { what: format!("cannot read {}", own.display()), source };
        let all = names(own).map_err(failed)?;
        let mut adopted = Vec::new();
        for name in all.iter().filter(|name| !is_record(name)) {
            let path = own.join(name);
            match adopt(path.clone()) {
                Ok(Some(file)) => {
                    file.recorded.parts.iter().for_each(|part| self.staging.uploads.is_gone_on_with(&part.upload));
                    adopted.push(file);
                }
                // Nobody was told of anything in it.
                Ok(None) => {
                    let _ = disk::remove_file(&path);
                    let _ = disk::remove_file(record_of(&path));
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a staged file of the process that died cannot be gone on with");
                    if let Err(error) = keep_one(root, own, name) {
                        tracing::error!(path = %path.display(), %error, "it cannot be moved either");
                    }
                }
            }
        }
        for name in all.iter().filter(|name| is_record(name)) {
            let is_used = adopted.iter().any(|file| record_of(&file.remains.path).file_name() == Some(name));
            if !is_used {
                // Its file is gone already.
                let _ = disk::remove_file(own.join(name));
            }
        }
        Ok(adopted)
    }
}

/// A staged file; `None` for one whose record was not begun.
fn adopt(path: PathBuf) -> FsResult<Option<Adopted>> {
    let failed = |source| FsError::Io { what: format!("cannot use {}", path.display()), source };
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
    let data = open(&path).map_err(failed)?;
    let meta = data.metadata().map_err(failed)?;
    let log = match open(&record_of(&path)) {
        // It was just made.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && meta.len() == 0 => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    if log.metadata().map_err(failed)?.len() == 0 {
        return Ok(None);
    }
    let problem = |what: String| FsError::Invalid { what };
    let (recorded, log_len) = read_record(&path, meta.len()).map_err(|error| problem(error.to_string()))?;
    let node = recorded.node.ok_or_else(|| problem("its record does not say whose it is".to_owned()))?;
    let modified = meta.modified().map_err(failed)?;
    Ok(Some(Adopted { node, recorded, modified, remains: Remains { data, path, log, log_len } }))
}

impl DirtyFile {
    /// The file as it was when its process died, to be gone on with as if nothing had happened. `copying`: what its object carries
    /// if a copy of it onto itself was done, of which nobody has heard ([`Node::copying`](crate::tree::Node::copying)).
    ///
    /// # Errors
    /// [`FsError::Io`].
    pub(crate) fn adopt(context: Arc<WriteContext>, adopted: Adopted, copying: Option<ETag>) -> FsResult<Arc<Self>> {
        let recorded = adopted.recorded;
        let file = Self::resume(context, &recorded, adopted.remains)?;
        file.staged.is_kept.store(false, Ordering::Release);
        // What the limit counts; more than it allows is here already.
        let _ = file.staged.reserve(recorded.local.len());
        let mut state = file.state();
        if recorded.is_stored {
            state.is_changed = false;
            state.changed_since = None;
            state.dirty = super::RangeSet::default();
        } else {
            state.attempt = attempt(recorded, copying);
        }
        drop(state);
        Ok(file)
    }
}

/// An upload, or a copy of the base onto itself, of which the process that died had not heard.
fn attempt(recorded: Recorded, copied: Option<ETag>) -> Option<Attempt> {
    let Recorded { key, size, base, replaces, .. } = recorded;
    let (key, size, tag) = match (recorded.completing, base) {
        (Some(tag), _) => (key, size, tag),
        // What is in an upload that began since is not in it.
        (None, Some(base)) if copied.is_some() && recorded.in_upload.is_empty() => {
            (base.version.key, base.version.size, base.version.etag)
        }
        _ => return None,
    };
    Some(Attempt { key, size, part_count: 0, replaces, tag: Some(tag), is_of_the_dead: true, copied })
}
