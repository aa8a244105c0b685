//! What dead processes staged and did not store: found, and moved to `kept/` with the records.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::disk;
use super::journal::Journal;
use super::record::{self, RecordProblem, Recorded};

/// Ends the name of a record.
const RECORD_END: &str = ".record";
/// Begins the names of processes' directories, and of what is kept.
pub(super) const PROCESS: &str = "process-";
const KEPT: &str = "kept";

/// Where kept files are, under a staging directory.
pub(crate) fn kept_directory(root: &Path) -> PathBuf {
    root.join(KEPT)
}

/// The same, made if it is not there.
pub(super) fn make_kept_directory(root: &Path) -> io::Result<PathBuf> {
    let dir = kept_directory(root);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    Ok(dir)
}

/// The record of a staging file: `0.record` for `0-key`, `process-1-2-0.record` for `process-1-2-0-key`. No staging file
/// has such a name, whatever its key.
pub(crate) fn record_of(data: &Path) -> PathBuf {
    let name = data.file_name().unwrap_or_default().as_encoded_bytes();
    let dashes = if name.starts_with(PROCESS.as_bytes()) { 4 } else { 1 };
    let number: Vec<&[u8]> = name.splitn(dashes + 1, |byte| *byte == b'-').take(dashes).collect();
    let mut record = number.join(&b'-');
    record.extend(RECORD_END.as_bytes());
    data.with_file_name(OsStr::from_bytes(&record))
}

/// Whether a name is that of a record.
pub(crate) fn is_record(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let dashes = name.iter().filter(|byte| **byte == b'-').count();
    name.ends_with(RECORD_END.as_bytes()) && dashes == if name.starts_with(PROCESS.as_bytes()) { 3 } else { 0 }
}

/// What a staging file is called in `kept/`: unlike any other's, and the same for its record, whenever it moves.
pub(super) fn kept_name(process: &OsStr, file: &OsStr) -> OsString {
    let mut name = process.to_owned();
    name.push("-");
    name.push(file);
    name
}

/// Held while files move between directories, so that nobody takes a record for one without a file.
pub(crate) fn lock_root(root: &Path) -> io::Result<File> {
    let lock = File::open(root)?;
    flock(&lock, FlockOperation::LockExclusive)?;
    Ok(lock)
}

/// Reads the record of a staging file. Also says how many of its bytes are whole.
pub(crate) fn read_record(data: &Path, data_len: u64) -> Result<(Recorded, u64), RecordProblem> {
    match std::fs::read(record_of(data)) {
        Ok(log) => record::read(&log, data_len),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(RecordProblem::Missing),
        Err(error) => Err(RecordProblem::Unreadable(error.to_string())),
    }
}

/// Moves what dead processes staged and did not store to `kept/`. Says how many files.
pub(super) fn keep_leftovers(root: &Path) -> usize {
    let _lock = match lock_root(root) {
        Ok(lock) => lock,
        Err(error) => {
            tracing::warn!(dir = %root.display(), %error, "staged files of processes that died could not be looked for");
            return 0;
        }
    };
    let Ok(entries) = std::fs::read_dir(root) else { return 0 };
    let mut count = 0;
    for entry in entries.flatten() {
        let dir = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PROCESS) {
            continue;
        }
        let Ok(lock) = File::open(&dir) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue; // alive
        }
        if let Err(error) = keep_of(root, &dir, &mut count) {
            tracing::warn!(dir = %dir.display(), %error, "staged files of a process that died could not be moved");
        }
    }
    count
}

fn keep_of(root: &Path, dir: &Path, count: &mut usize) -> io::Result<()> {
    let names: Vec<OsString> = std::fs::read_dir(dir)?.flatten().map(|entry| entry.file_name()).collect();
    for name in names.iter().filter(|name| !is_record(name)) {
        let data = dir.join(name);
        // Its record is in `kept/` already: whoever moved both died in between.
        let moved = kept_directory(root).join(kept_name(dir.file_name().unwrap_or_default(), name));
        if !record_of(&data).exists() && record_of(&moved).exists() {
            disk::rename(&data, &moved)?;
            *count += 1;
            continue;
        }
        if !is_wanted(&data)? {
            disk::remove_file(&data)?;
            continue;
        }
        keep_one(root, dir, name)?;
        *count += 1;
    }
    // Records of what was not wanted, or was removed already.
    for name in names.iter().filter(|name| is_record(name)) {
        match disk::remove_file(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    disk::remove_dir(dir)
}

/// Moves one staging file with its record to `kept/`.
pub(super) fn keep_one(root: &Path, dir: &Path, name: &OsStr) -> io::Result<()> {
    let data = dir.join(name);
    if let Err(error) = settle(&data) {
        tracing::warn!(path = %data.display(), %error, "the record of a staged file cannot be completed");
    }
    let to = make_kept_directory(root)?.join(kept_name(dir.file_name().unwrap_or_default(), name));
    // The record first: without a file it is nothing, but a file without it is less.
    match disk::rename(record_of(&data), record_of(&to)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    disk::rename(&data, &to)?;
    tracing::error!(path = %to.display(), "a mount died before this was stored; its staged bytes are kept here");
    Ok(())
}

/// Puts a staging file and its record on the disk, so that they are exact also after the machine stops.
fn settle(data: &Path) -> io::Result<()> {
    let file = File::open(data)?;
    let len = file.metadata()?.len();
    let Ok((recorded, record_len)) = read_record(data, len) else { return file.sync_all() };
    if recorded.is_doubtful() {
        return Ok(());
    }
    let log = File::options().read(true).write(true).open(record_of(data))?;
    Journal::resume(log, record_len, len, &recorded)?.kept("", &file)
}

/// Whether a staging file holds something that is not in the bucket.
fn is_wanted(data: &Path) -> io::Result<bool> {
    let len = std::fs::symlink_metadata(data)?.len();
    Ok(match read_record(data, len) {
        Ok((recorded, _)) if recorded.is_unlinked => false,
        // After the machine stopped, the record may be older than the bytes.
        Ok((recorded, _)) if recorded.is_stored => len > 0 && recorded.is_doubtful(),
        Ok(_) => true,
        // Nothing was changed yet, or nobody knows what it was.
        Err(_) => len > 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(data: &str, record: &str) {
        assert_eq!(record_of(Path::new("dir").join(data).as_path()), Path::new("dir").join(record));
        assert!(is_record(record.as_ref()), "{record}");
        assert!(!is_record(data.as_ref()), "{data}");
    }

    #[test]
    fn records_and_files_are_told_apart_by_name() {
        check("0-key", "0.record");
        check("17-a-b.record", "17.record");
        check("3-.record", "3.record");
        check("process-1-22-0-key", "process-1-22-0.record");
        check("process-1-22-0-5.record", "process-1-22-0.record");
        check("process-1-22-7-process-1-2-3.record", "process-1-22-7.record");
    }
}
