//! Which multipart uploads are under way, so that those of processes that died can be told from everybody else's.
//!
//! A store keeps the parts of an upload until somebody completes or aborts it, and says of one that it lists neither who
//! began it nor why. So each process writes down what it begins, as soon as it knows the upload's name, in
//! `uploads/PROCESS` under the staging directory: a line of JSON for each that begins or ends. An upload is aborted only if
//!
//! - it stands there,
//! - its process is dead: nobody holds the lock of its directory (a mount that goes on in another process keeps it),
//! - it is of this mount's bucket and below its prefix,
//! - no kept file has parts in it.
//!
//! Killed between the store's answer and the line, a process leaves an upload that nobody here knows; a lifecycle rule of the
//! bucket (`AbortIncompleteMultipartUpload`) ends those, and those of hosts that do not come back.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use rustix::fs::{FlockOperation, flock};
use sandpail_store::{ObjectKey, Store, StoreError, UploadId};
use serde::{Deserialize, Serialize};

use super::Origin;
use super::kept::{PROCESS, is_record, kept_directory, read_record};
use crate::guard;

const DIRECTORY: &str = "uploads";

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Begun(Begun),
    Ended(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Begun {
    id: String,
    key: String,
    origin: Origin,
}

/// The uploads of this process.
#[derive(Debug)]
pub(crate) struct Uploads {
    root: PathBuf,
    /// The name of this process's directory.
    process: OsString,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Made with the first upload.
    file: Option<File>,
    open: HashMap<String, Begun>,
    /// Those of them that nobody goes on with.
    left: HashSet<String>,
}

impl Uploads {
    /// Those of the process whose directory is `own`. Goes on with what another process has written that was killed.
    pub(crate) fn open(root: &Path, own: &Path) -> Self {
        let process = own.file_name().unwrap_or_default().to_owned();
        let open = match std::fs::read(log_of(root, &process)) {
            Ok(text) => open_in(&text),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, "the uploads of the process before are not known");
                }
                HashMap::new()
            }
        };
        let left = open.keys().cloned().collect();
        Self { root: root.to_owned(), process, state: Mutex::new(State { file: None, open, left }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        guard(&self.state)
    }

    /// An upload was begun.
    pub(crate) fn begun(&self, origin: &Origin, key: &ObjectKey, id: &UploadId) {
        let begun = Begun { id: id.0.clone(), key: key.to_string(), origin: origin.clone() };
        let mut state = self.state();
        self.append(&mut state, &Line::Begun(begun.clone()));
        state.open.insert(begun.id.clone(), begun);
    }

    /// It is completed or aborted.
    pub(crate) fn ended(&self, id: &UploadId) {
        let mut state = self.state();
        state.left.remove(&id.0);
        if state.open.remove(&id.0).is_none() {
            return;
        }
        match &state.file {
            Some(file) if state.open.is_empty() => {
                if let Err(error) = file.set_len(0) {
                    tracing::warn!(%error, "the list of uploads cannot be shortened");
                }
            }
            _ => self.append(&mut state, &Line::Ended(id.0.clone())),
        }
    }

    /// It could not be aborted: that is tried again.
    pub(crate) fn left_behind(&self, id: &UploadId) {
        let mut state = self.state();
        if state.open.contains_key(&id.0) {
            state.left.insert(id.0.clone());
        }
    }

    /// A file of the process before is gone on with, which has parts there.
    pub(crate) fn is_gone_on_with(&self, id: &str) {
        self.state().left.remove(id);
    }

    /// The process ends.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        if state.open.is_empty() && state.file.take().is_some() {
            // One that is left is empty, and removed by the next mount.
            let _ = std::fs::remove_file(log_of(&self.root, &self.process));
            // Those of others are in there.
            let _ = std::fs::remove_dir(self.root.join(DIRECTORY));
        }
    }

    fn append(&self, state: &mut State, line: &Line) {
        if let Err(error) = self.try_append(state, line) {
            tracing::warn!(%error, "the list of uploads cannot be written; one may be left behind if this process is killed");
        }
    }

    fn try_append(&self, state: &mut State, line: &Line) -> io::Result<()> {
        let file = match &mut state.file {
            Some(file) => file,
            none => {
                let path = log_of(&self.root, &self.process);
                let dir = path.parent().unwrap_or(&self.root);
                std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
                none.insert(OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?)
            }
        };
        // A line that was cut short before must not spoil this one.
        let mut text = b"\n".to_vec();
        serde_json::to_writer(&mut text, line)?;
        text.push(b'\n');
        file.write_all(&text)
    }

    /// Aborts what nobody goes on with, of this process and of dead ones, below `origin`. Says how many there were.
    pub(crate) async fn abort_left(&self, store: &dyn Store, origin: &Origin) -> usize {
        let mut count = self.abort_own(store).await;
        let Ok(entries) = std::fs::read_dir(self.root.join(DIRECTORY)) else { return count };
        for entry in entries.flatten() {
            let process = entry.file_name();
            if process == self.process || !process.as_encoded_bytes().starts_with(PROCESS.as_bytes()) {
                continue;
            }
            match self.abort_of(&process, store, origin).await {
                Ok(aborted) => count += aborted,
                Err(error) => {
                    tracing::warn!(?process, %error, "the uploads of a process that died cannot be looked at");
                }
            }
        }
        count
    }

    async fn abort_own(&self, store: &dyn Store) -> usize {
        let left: Vec<Begun> = {
            let state = self.state();
            state.left.iter().filter_map(|id| state.open.get(id).cloned()).collect()
        };
        if left.is_empty() {
            return 0;
        }
        let needed = Needed::look(&self.root);
        let mut count = 0;
        for begun in left {
            let is_needed = needed.by_files.contains(&begun.id) || needed.unknown.contains(&self.process);
            if !is_needed && abort(store, &begun).await {
                self.ended(&UploadId(begun.id));
                count += 1;
            }
        }
        count
    }

    async fn abort_of(&self, process: &OsStr, store: &dyn Store, origin: &Origin) -> io::Result<usize> {
        let path = log_of(&self.root, process);
        let mut file = OpenOptions::new().read(true).append(true).open(&path)?;
        // Another mount is at it.
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(0);
        }
        // The directory of a process stays until what it staged is kept.
        if self.root.join(process).try_exists()? {
            return Ok(0);
        }
        let needed = Needed::look(&self.root);
        if needed.unknown.contains(process) {
            return Ok(0);
        }
        let mut open = open_in(&std::fs::read(&path)?);
        let is_ours = |begun: &Begun| {
            let is_here = begun.origin.is_same_bucket(origin) && begun.key.starts_with(&origin.prefix);
            is_here && !needed.by_files.contains(&begun.id)
        };
        let left: Vec<Begun> = open.values().filter(|begun| is_ours(begun)).cloned().collect();
        let mut count = 0;
        for begun in left {
            if abort(store, &begun).await {
                open.remove(&begun.id);
                let mut text = serde_json::to_vec(&Line::Ended(begun.id))?;
                text.push(b'\n');
                file.write_all(&text)?;
                count += 1;
            }
        }
        if open.is_empty() {
            std::fs::remove_file(&path)?;
        }
        Ok(count)
    }
}

/// `false`: it is tried again another time.
async fn abort(store: &dyn Store, begun: &Begun) -> bool {
    let Ok(key) = ObjectKey::new(&begun.key) else { return true };
    match store.abort_multipart(&key, &UploadId(begun.id.clone())).await {
        Ok(()) => {
            tracing::info!(?key, "an upload that a process left unfinished is aborted");
            true
        }
        // Completed, or aborted by somebody else.
        Err(StoreError::NotFound { .. }) => true,
        Err(error) => {
            tracing::warn!(?key, %error, "an upload that was left behind cannot be aborted");
            false
        }
    }
}

/// What kept files need.
#[derive(Debug, Default)]
struct Needed {
    /// Uploads that have the only copy of some bytes.
    by_files: HashSet<String>,
    /// Processes of which a file is kept that does not say what it needs.
    unknown: HashSet<OsString>,
}

impl Needed {
    fn look(root: &Path) -> Self {
        let mut needed = Self::default();
        for entry in std::fs::read_dir(kept_directory(root)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if is_record(&name) {
                continue;
            }
            let len = entry.metadata().map_or(0, |meta| meta.len());
            match read_record(&entry.path(), len) {
                Ok((recorded, _)) => needed.by_files.extend(recorded.parts.into_iter().map(|part| part.upload)),
                Err(_) => drop(needed.unknown.insert(process_of(&name))),
            }
        }
        needed
    }
}

/// The process whose staging file has this name in `kept/`: its three first parts.
fn process_of(name: &OsStr) -> OsString {
    let name = name.to_string_lossy();
    name.splitn(4, '-').take(3).collect::<Vec<_>>().join("-").into()
}

fn log_of(root: &Path, process: &OsStr) -> PathBuf {
    root.join(DIRECTORY).join(process)
}

fn open_in(text: &[u8]) -> HashMap<String, Begun> {
    let mut open = HashMap::new();
    // A line that was cut short names an upload that nobody can know.
    for line in text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()) {
        match line {
            Line::Begun(begun) => drop(open.insert(begun.id.clone(), begun)),
            Line::Ended(id) => drop(open.remove(&id)),
        }
    }
    open
}

#[cfg(test)]
mod tests {
    use sandpail_store::ObjectAttributes;
    use sandpail_store::memory::MemoryStore;

    use super::*;
    use crate::write::StagingArea;

    fn origin(bucket: &str, prefix: &str) -> Origin {
        Origin { bucket: Some(bucket.to_owned()), prefix: prefix.to_owned(), ..Origin::default() }
    }

    async fn begin(store: &MemoryStore, uploads: &Uploads, origin: &Origin, key: &str) -> UploadId {
        let key = ObjectKey::new(key).unwrap();
        let id = store.create_multipart(&key, &ObjectAttributes::default()).await.unwrap();
        uploads.begun(origin, &key, &id);
        id
    }

    async fn keys(store: &MemoryStore) -> Vec<String> {
        let mut keys: Vec<_> = store.list_multipart("").await.unwrap().into_iter().map(|upload| upload.key).collect();
        keys.sort();
        keys
    }

    fn of(area: &StagingArea) -> Uploads {
        let (root, own) = area.places();
        Uploads::open(root, own)
    }

    #[tokio::test]
    async fn only_what_is_ours_and_dead_is_aborted() {
        let dir = tempfile::tempdir().unwrap();
        let store = MemoryStore::new();
        let (here, elsewhere) = (origin("b", "data/"), origin("other", ""));
        let dead = StagingArea::open(dir.path(), None).unwrap();
        let uploads = of(&dead);
        begin(&store, &uploads, &here, "data/left").await;
        begin(&store, &uploads, &here, "other/prefix").await;
        begin(&store, &uploads, &elsewhere, "data/other bucket").await;
        let ended = begin(&store, &uploads, &here, "data/ended").await;
        uploads.ended(&ended);
        store
            .create_multipart(&ObjectKey::new("data/of somebody else").unwrap(), &ObjectAttributes::default())
            .await
            .unwrap();
        let living = StagingArea::open(dir.path(), None).unwrap();
        let of_living = of(&living);
        begin(&store, &of_living, &here, "data/living").await;
        let area = StagingArea::open(dir.path(), None).unwrap();
        let mine = of(&area);
        begin(&store, &mine, &here, "data/mine").await;

        assert_eq!(mine.abort_left(&store, &here).await, 0, "the first one lives");
        let before = keys(&store).await;
        drop(uploads);
        drop(dead);
        assert_eq!(mine.abort_left(&store, &here).await, 1);
        let expected: Vec<_> = before.into_iter().filter(|key| key != "data/left").collect();
        assert_eq!(keys(&store).await, expected);
        // Those of another bucket are found by its mounts, and then nothing is left to be known.
        assert_eq!(mine.abort_left(&store, &elsewhere).await, 1);
        assert_eq!(mine.abort_left(&store, &origin("b", "")).await, 1);
        assert_eq!(std::fs::read_dir(dir.path().join(DIRECTORY)).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn the_next_process_of_a_mount_aborts_what_it_does_not_go_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let store = MemoryStore::new();
        let here = origin("b", "");
        let area = StagingArea::open(dir.path(), None).unwrap();
        let first = of(&area);
        let needed = begin(&store, &first, &here, "needed").await;
        begin(&store, &first, &here, "left").await;
        drop(first);
        // Cut short.
        let log = log_of(dir.path(), area.places().1.file_name().unwrap());
        File::options().append(true).open(&log).unwrap().write_all(b"{\"begun\":{\"id\":\"to").unwrap();
        let next = of(&area);
        next.is_gone_on_with(&needed.0);
        begin(&store, &next, &here, "new").await;
        assert_eq!(next.abort_left(&store, &here).await, 1);
        assert_eq!(keys(&store).await, ["needed", "new"]);
        next.left_behind(&needed);
        assert_eq!(next.abort_left(&store, &here).await, 1);
        assert_eq!(keys(&store).await, ["new"]);
        assert_eq!(
            open_in(&std::fs::read(&log).unwrap()).into_values().map(|begun| begun.key).collect::<Vec<_>>(),
            ["new"]
        );
    }

    #[tokio::test]
    async fn nothing_of_a_process_is_aborted_while_a_kept_file_of_it_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = MemoryStore::new();
        let here = origin("b", "");
        let dead = StagingArea::open(dir.path(), None).unwrap();
        let uploads = of(&dead);
        begin(&store, &uploads, &here, "left").await;
        let process = dead.places().1.file_name().unwrap().to_string_lossy().into_owned();
        drop((uploads, dead));
        let kept = kept_directory(dir.path()).join(format!("{process}-0-key"));
        std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
        std::fs::write(&kept, "bytes").unwrap();
        let area = StagingArea::open(dir.path(), None).unwrap();
        let mine = of(&area);
        assert_eq!(mine.abort_left(&store, &here).await, 0);
        std::fs::remove_file(&kept).unwrap();
        assert_eq!(mine.abort_left(&store, &here).await, 1);
        mine.end();
    }
}
