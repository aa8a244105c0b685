//! What was seen on either side, and what was equal when both were seen last.
//!
//! The [`Base`] is what a sync remembers: for each path the version on both sides that held the same content. It is
//! kept in the state file, replaced as a whole, and only believed by the directory and bucket it was made for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use sandpail_store::{ETag, KEY_LEN_MAX};
use serde::{Deserialize, Serialize};

/// Begins the names of files that are being made. Such names are never carried over.
pub(crate) const TEMP_PREFIX: &str = ".sandpail-sync-";
/// Linux's longest name, in bytes.
pub(crate) const NAME_LEN_MAX: usize = 255;
/// Deeper trees are left alone: a guest could otherwise make the scan hold any number of open directories.
pub(crate) const DEPTH_MAX: usize = 128;
/// Most entries of a side that are held in memory (some 200 bytes each, and their paths).
pub(crate) const ENTRY_COUNT_MAX: usize = 200_000;
/// Most bytes of all paths of a side together. A few copies of each are held, and a guest makes as many as it likes.
pub(crate) const PATH_BYTES_MAX: usize = 64 << 20;

/// One version of a local file, as `stat` tells it. The change time cannot be set by who writes in the directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub(crate) ino: u64,
    pub(crate) size: u64,
    /// Nanoseconds since 1970.
    pub(crate) mtime: i64,
    /// Nanoseconds since 1970.
    pub(crate) ctime: i64,
    /// All of `st_mode`.
    pub(crate) mode: u32,
}

impl Stamp {
    /// Whether two stamps are of the same bytes although the file was renamed between (which moves the change time).
    pub(crate) fn is_same_content(&self, other: &Self) -> bool {
        (self.ino, self.size, self.mtime, self.mode) == (other.ino, other.size, other.mtime, other.mode)
    }
}

/// A file or link in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalFile {
    pub(crate) stamp: Stamp,
    /// No write for a while: what is read now is a whole file.
    pub(crate) settled: bool,
    pub(crate) change: Change,
}

/// An object of the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    pub(crate) etag: Option<ETag>,
    pub(crate) size: u64,
    /// Milliseconds since 1970, by the server's clock.
    pub(crate) modified: i64,
    pub(crate) change: Change,
}

/// How an entry differs from the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Same,
    /// A look at its content must tell.
    Touched,
    Changed,
}

/// The directory. Paths are relative, with `/` between names.
#[derive(Clone, Debug, Default)]
pub(crate) struct LocalTree {
    pub(crate) files: BTreeMap<String, LocalFile>,
    pub(crate) dirs: BTreeSet<String>,
    /// What cannot be seen into: nothing is done at and below these. With the reason, unless it is left alone on
    /// purpose (a device, another file system).
    pub(crate) blocked: BTreeMap<String, Option<String>>,
    /// Names that cannot be carried over.
    pub(crate) skipped: u64,
}

/// The bucket below the prefix. Paths are relative.
#[derive(Clone, Debug, Default)]
pub(crate) struct RemoteTree {
    pub(crate) files: BTreeMap<String, RemoteFile>,
    /// Directories, with the tag of the marker if there is one.
    pub(crate) dirs: BTreeMap<String, Option<Marker>>,
    /// Objects under the name of a directory.
    pub(crate) hidden: BTreeSet<String>,
    /// Keys that cannot be files.
    pub(crate) skipped: u64,
}

/// The object `dir/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Marker {
    pub(crate) etag: Option<ETag>,
}

/// What was equal on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Base {
    File(BaseFile),
    Dir,
}

/// A file that was equal on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BaseFile {
    pub(crate) local: Stamp,
    /// The file was written so shortly before it was read that a later write may carry the same stamp.
    pub(crate) racy: bool,
    /// BLAKE3 of the content (of the target, for a link), in hex.
    pub(crate) hash: String,
    pub(crate) etag: String,
    /// Milliseconds since 1970; unknown until the object was seen in a listing.
    pub(crate) modified: Option<i64>,
    /// Its removal from the bucket was begun, because it was not in the directory. Whether it was done is not known
    /// until the next listing: a file that is back in the directory by then was not removed by the bucket.
    #[serde(default)]
    pub(crate) leaving: bool,
}

impl BaseFile {
    /// How a file in the directory differs from this.
    pub(crate) fn local_change(&self, stamp: &Stamp) -> Change {
        if *stamp == self.local && !self.racy && !self.leaving {
            return Change::Same;
        }
        if self.leaving {
            return Change::Changed;
        }
        // Without a look inside: another length, kind or other permissions.
        if stamp.size != self.local.size || stamp.mode != self.local.mode { Change::Changed } else { Change::Touched }
    }

    /// How an object differs from this.
    pub(crate) fn remote_change(&self, file: &RemoteFile) -> Change {
        let same_tag = file.etag.as_ref().map(|etag| etag.as_str() == self.etag);
        match (same_tag, self.modified) {
            (Some(false), _) => Change::Changed,
            _ if file.size != self.local.size => Change::Changed,
            // The same bytes were stored anew, maybe with another mode; or there is no tag to compare.
            (Some(true), Some(modified)) if modified != file.modified => Change::Touched,
            (Some(true), _) => Change::Same,
            (None, Some(modified)) if modified == file.modified => Change::Same,
            (None, _) => Change::Touched,
        }
    }
}

pub(crate) type BaseMap = BTreeMap<String, Base>;

/// For which directory and bucket a base holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) bucket: String,
    pub(crate) prefix: String,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// When the directory was made, where the file system knows: inode numbers are used again.
    pub(crate) born: Option<i64>,
}

#[derive(Serialize, Deserialize)]
struct State {
    version: u32,
    identity: Identity,
    entries: BaseMap,
}

const STATE_VERSION: u32 = 1;

/// Reads the state; an empty base if there is none, it is of something else, or it cannot be understood.
pub(crate) fn load(path: &Path, identity: &Identity) -> io::Result<BaseMap> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BaseMap::new()),
        Err(error) => return Err(error),
    };
    match serde_json::from_slice::<State>(&bytes) {
        Ok(state) if state.version == STATE_VERSION && state.identity == *identity => Ok(state.entries),
        Ok(_) => {
            tracing::info!(file = %path.display(), "the sync state is of another directory or bucket: both are united");
            Ok(BaseMap::new())
        }
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "the sync state is damaged: both sides are united");
            Ok(BaseMap::new())
        }
    }
}

/// Replaces the state as a whole.
pub(crate) fn save(path: &Path, identity: &Identity, entries: &BaseMap) -> io::Result<()> {
    #[derive(Serialize)]
    struct Saved<'a> {
        version: u32,
        identity: &'a Identity,
        entries: &'a BaseMap,
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    let mut temp = path.as_os_str().to_owned();
    temp.push(".new");
    let mut out = io::BufWriter::new(File::create(&temp)?);
    serde_json::to_writer(&mut out, &Saved { version: STATE_VERSION, identity, entries })?;
    out.flush()?;
    out.get_ref().sync_all()?;
    fs::rename(&temp, path)?;
    File::open(parent)?.sync_all()
}

/// Milliseconds since 1970.
pub(crate) fn millis(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
    }
}

/// Nanoseconds since 1970.
pub(crate) fn now_nanos() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// What a key below the prefix names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    File(String),
    Dir(String),
    /// The marker of the prefix itself.
    Root,
    /// Nothing that can be in a directory.
    Nothing,
}

/// Reads a key without the prefix.
pub(crate) fn named(key: &str) -> Named {
    if key.is_empty() {
        return Named::Root;
    }
    let path = key.strip_suffix('/').unwrap_or(key);
    if !is_path(path) {
        return Named::Nothing;
    }
    if path.len() < key.len() { Named::Dir(path.to_owned()) } else { Named::File(path.to_owned()) }
}

/// Whether a path can be on both sides.
pub(crate) fn is_path(path: &str) -> bool {
    path.len() < KEY_LEN_MAX
        && path.split('/').count() <= DEPTH_MAX
        && path.split('/').all(|name| {
            !matches!(name, "" | "." | "..")
                && name.len() <= NAME_LEN_MAX
                && !name.contains('\0')
                && !name.starts_with(TEMP_PREFIX)
        })
}

/// The directories above a path, nearest first.
pub(crate) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.rmatch_indices('/').map(|(at, _)| &path[..at])
}

/// The name under which a second version of `path` is kept.
pub(crate) fn conflict_path(path: &str, secs: i64) -> String {
    let suffix = format!(" (conflict {secs})");
    let (parent, name) = path.rsplit_once('/').map_or(("", path), |(parent, name)| (&path[..=parent.len()], name));
    let mut end = name.len().min(NAME_LEN_MAX - suffix.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{parent}{}{suffix}", &name[..end])
}

impl RemoteTree {
    /// Takes one object of a listing; `key` is without the prefix.
    pub(crate) fn add(&mut self, key: &str, etag: Option<ETag>, size: u64, modified: SystemTime) {
        match named(key) {
            Named::Root => {}
            Named::Nothing => self.skipped += 1,
            Named::Dir(path) => {
                for above in ancestors(&path) {
                    self.dirs.entry(above.to_owned()).or_default();
                }
                if size > 0 {
                    // Data under the name of a directory: there is no place for it.
                    self.skipped += 1;
                }
                self.dirs.insert(path, Some(Marker { etag }));
            }
            Named::File(path) => {
                for above in ancestors(&path) {
                    self.dirs.entry(above.to_owned()).or_default();
                }
                let file = RemoteFile { etag, size, modified: millis(modified), change: Change::Changed };
                self.files.insert(path, file);
            }
        }
    }

    /// After the last object: a directory takes its name.
    pub(crate) fn finish(&mut self) {
        let dirs = &self.dirs;
        let hidden = self.files.extract_if(.., |path, _| dirs.contains_key(path)).map(|(path, _)| path);
        self.hidden.extend(hidden);
        self.skipped += self.hidden.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_cannot_be_files_are_skipped() {
        let long = "x".repeat(256);
        for key in ["a//b", "/a", "..", "a/../b", "./a", "a/.", "//", "/", "a\0b", &long, ".sandpail-sync-1/x"] {
            assert_eq!(named(key), Named::Nothing, "{key:?}");
        }
        for key in ["a", "a/b", "ä +%20/ b", "a\\b", "...", "-", "a\nb"] {
            assert_eq!(named(key), Named::File(key.to_owned()));
            assert_eq!(named(&format!("{key}/")), Named::Dir(key.to_owned()));
        }
        assert_eq!(named(""), Named::Root);
        assert_eq!(named(&vec!["d"; DEPTH_MAX + 1].join("/")), Named::Nothing);
    }

    #[test]
    fn a_directory_takes_its_name() {
        let mut tree = RemoteTree::default();
        for key in ["a", "a/b/c", "d", "d/", "e/..", "f"] {
            tree.add(key, None, 0, UNIX_EPOCH);
        }
        tree.finish();
        assert_eq!(tree.files.keys().collect::<Vec<_>>(), ["a/b/c", "f"]);
        assert_eq!(tree.dirs.keys().collect::<Vec<_>>(), ["a", "a/b", "d"]);
        assert_eq!(tree.hidden.iter().collect::<Vec<_>>(), ["a", "d"]);
        assert_eq!(tree.skipped, 3);
    }

    #[test]
    fn conflict_names_fit() {
        assert_eq!(conflict_path("a/b.txt", 17), "a/b.txt (conflict 17)");
        assert_eq!(conflict_path("b", 17), "b (conflict 17)");
        let long = conflict_path(&format!("d/{}", "ä".repeat(127)), 1_700_000_000);
        assert!(is_path(&long) && long.ends_with(" (conflict 1700000000)"), "{long}");
    }

    #[test]
    fn the_state_is_believed_only_by_whom_it_was_made_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/state.json");
        let identity = Identity { bucket: "b".into(), prefix: "p/".into(), device: 1, inode: 2, born: Some(3) };
        assert_eq!(load(&path, &identity).unwrap(), BaseMap::new());
        let local = Stamp { ino: 1, size: 2, mtime: -3, ctime: 1_700_000_000_000_000_000, mode: 0o100_644 };
        let file =
            BaseFile { local, racy: true, hash: "h".into(), etag: "e".into(), modified: Some(5), leaving: false };
        let entries = BaseMap::from([("d".into(), Base::Dir), ("d/f \"1".into(), Base::File(file))]);
        save(&path, &identity, &entries).unwrap();
        assert_eq!(load(&path, &identity).unwrap(), entries);
        assert_eq!(load(&path, &Identity { born: Some(4), ..identity.clone() }).unwrap(), BaseMap::new());
        fs::write(&path, "{").unwrap();
        assert_eq!(load(&path, &identity).unwrap(), BaseMap::new());
    }
}
