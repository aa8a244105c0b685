//! What mounts that died, or ended without their store, have left: looked at, put back, taken away.
//!
//! A kept file is a staging file and its record ([`Recorded`]). It becomes a [`DirtyFile`] again, as it was, and is read
//! and stored by the same code that the mount would have used.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use rustix::fs::{FlockOperation, flock};
use sandpail_store::{Condition, CopySource, ETag, ObjectAttributes, ObjectKey, PutBody, Store, StoreError};

use crate::attr::Time;
use crate::read::ObjectVersion;
use crate::write::disk;
use crate::write::kept::{is_record, kept_directory, lock_root, read_record, record_of};
use crate::write::resume::Remains;
use crate::write::{BaseReader, DirtyFile, RangeSet, RecordProblem, Recorded, StagingArea, WriteContext, WriteOptions};
use crate::{FsError, FsResult};

/// What is read and written at once, in bytes.
const CHUNK_LEN: u64 = 8 << 20;
/// Parts of one file that are uploaded at the same time.
const PARALLEL_PARTS: usize = 4;

/// The kept files of one staging directory.
#[derive(Debug)]
pub struct KeptFiles {
    root: PathBuf,
    area: Arc<StagingArea>,
}

/// How many files are kept under a staging directory.
pub fn count(root: &Path) -> usize {
    let entries = std::fs::read_dir(kept_directory(root)).into_iter().flatten().flatten();
    entries.filter(|entry| !is_record(&entry.file_name()) && !is_old_note(&entry.path())).count()
}

/// One of them.
#[derive(Debug)]
pub struct KeptFile {
    /// A short name, the same as long as it is kept.
    pub id: String,
    /// Where its bytes are.
    pub path: PathBuf,
    /// Length of the staging file, in bytes. What was not written in it is not on the disk.
    pub data_len: u64,
    /// When it was last written.
    pub modified: SystemTime,
    /// What it stands for.
    pub record: Result<Recorded, RecordProblem>,
    record_len: u64,
}

/// What became of a file that was put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutBack {
    /// It is in the bucket under its key.
    Stored {
        /// The key.
        key: ObjectKey,
    },
    /// The object had changed; both are in the bucket.
    Beside {
        /// The key of the file that was put back.
        key: ObjectKey,
    },
    /// The object is this file: its process died after it was stored and before it knew.
    WasStored {
        /// The key.
        key: ObjectKey,
    },
    /// The object is gone: its process died after it was removed and before it knew.
    WasRemoved {
        /// The key.
        key: ObjectKey,
    },
}

impl KeptFile {
    /// Bytes that were written and are here.
    pub fn staged_len(&self) -> u64 {
        match &self.record {
            Ok(recorded) => recorded.local.len().saturating_sub(recorded.missing(self.data_len)),
            Err(_) => self.data_len,
        }
    }

    /// What it stands for.
    ///
    /// # Errors
    /// [`FsError::Invalid`] if that is not known.
    pub fn recorded(&self) -> FsResult<&Recorded> {
        self.record.as_ref().map_err(|problem| FsError::Invalid { what: problem.to_string() })
    }

    /// The bytes that are not what was written, as far as their checksums were recorded. Reads them all.
    ///
    /// # Errors
    /// [`FsError::Io`].
    pub fn damaged(&self) -> FsResult<RangeSet> {
        let Ok(recorded) = &self.record else { return Ok(RangeSet::default()) };
        let damaged = File::open(&self.path).and_then(|data| recorded.damaged(&data));
        damaged.map_err(|source| FsError::Io { what: format!("cannot read {}", self.path.display()), source })
    }

    /// The attributes that it had: times that nobody chose are those of the last write.
    fn attributes(&self, recorded: &Recorded) -> ObjectAttributes {
        let mut attributes = recorded.attributes.clone();
        if !recorded.times_set {
            let modified = Time::from(self.modified).text();
            for name in ["mtime", "ctime"] {
                if let Some(value) = attributes.metadata.get_mut(name) {
                    value.clone_from(&modified);
                }
            }
        }
        attributes
    }
}

/// What is done with a file whose bytes on the disk differ from their checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It is an error.
    Refuse,
    /// It is taken as it is, and replaces no object.
    Accept,
}

/// Reads the base of a kept file from its bucket; without one, says that it is needed.
#[derive(Debug)]
struct FromStore(Option<Arc<dyn Store>>);

#[async_trait]
impl BaseReader for FromStore {
    async fn read_base(&self, _handle: u64, version: &ObjectVersion, range: Range<u64>) -> FsResult<Vec<Bytes>> {
        let Some(store) = &self.0 else {
            let what =
                format!("the bytes that were not written are in the bucket, as {}; its store is needed", version.key);
            return Err(FsError::Invalid { what });
        };
        let failed = |source| match source {
            StoreError::Precondition { .. } | StoreError::NotFound { .. } => base_changed(version),
            source => FsError::Store { what: format!("cannot read {}", version.key), source },
        };
        let mut download = store.get(&version.key, range, Some(&version.etag)).await.map_err(failed)?;
        let mut chunks = Vec::new();
        while let Some(chunk) = download.body.next().await {
            chunks.push(chunk.map_err(failed)?);
        }
        Ok(chunks)
    }
}

/// The base is not there any more.
fn base_changed(version: &ObjectVersion) -> FsError {
    FsError::Changed {
        what: format!(
            "the object {} (version {}), which has the bytes that were not written,",
            version.key,
            version.etag.as_str()
        ),
    }
}

impl KeptFiles {
    /// The files kept under the staging directory `root`, with those of processes that are dead by now. `None` if there
    /// is no such directory.
    ///
    /// # Errors
    /// [`FsError::Io`] if the directory cannot be used.
    pub fn open(root: &Path) -> FsResult<Option<Self>> {
        match std::fs::metadata(root) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(FsError::Io { what: format!("cannot use staging directory {}", root.display()), source });
            }
        }
        Ok(Some(Self { root: root.to_owned(), area: StagingArea::open(root, None)? }))
    }

    /// All of them, the oldest first.
    ///
    /// # Errors
    /// [`FsError::Io`].
    pub fn list(&self) -> FsResult<Vec<KeptFile>> {
        let dir = kept_directory(&self.root);
        let failed = |source| FsError::Io { what: format!("cannot read {}", dir.display()), source };
        let _lock = lock_root(&self.root).map_err(failed)?;
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<HashSet<OsString>>>();
        let mut files = Vec::new();
        for name in names.map_err(failed)?.iter().filter(|name| !is_record(name)) {
            let path = dir.join(name);
            let meta = std::fs::symlink_metadata(&path).map_err(failed)?;
            if !meta.is_file() || is_old_note(&path) {
                continue;
            }
            let (record, record_len) = match read_record(&path, meta.len()) {
                Ok((recorded, len)) => (Ok(recorded), len),
                Err(problem) => (Err(problem), 0),
            };
            let modified = meta.modified().map_err(failed)?;
            files.push(KeptFile {
                id: id_of(name.as_bytes()),
                path,
                data_len: meta.len(),
                modified,
                record,
                record_len,
            });
        }
        files.sort_by(|a, b| (a.modified, &a.path).cmp(&(b.modified, &b.path)));
        Ok(files)
    }

    /// Makes sure that nobody else works on the file, and that it is still there.
    fn lock(&self, file: &KeptFile) -> FsResult<File> {
        let failed = |source| FsError::Io { what: format!("cannot use {}", file.path.display()), source };
        let data = File::options().read(true).write(true).open(&file.path).map_err(failed)?;
        flock(&data, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| FsError::Busy { what: format!("{} is being recovered by another process", file.id) })?;
        // Who had the lock before may have removed it.
        std::fs::symlink_metadata(&file.path).map_err(failed)?;
        Ok(data)
    }

    /// The file as it was, over what its bucket has.
    fn resume(&self, file: &KeptFile, data: File, store: Arc<dyn Store>, damage: Damage) -> FsResult<Arc<DirtyFile>> {
        let recorded = file.recorded()?;
        let missing = recorded.missing(file.data_len);
        if missing > 0 {
            let what = format!(
                "{missing} bytes that were written are lost: the machine stopped before they were on its disk, or the file \
                 was cut"
            );
            return Err(FsError::Invalid { what });
        }
        // Before anything is begun that would have to be given up.
        if damage == Damage::Refuse
            && let Some(range) = file.damaged()?.iter().next()
        {
            return Err(FsError::Damaged { key: recorded.key.to_string(), path: file.path.clone(), range });
        }
        let path = record_of(&file.path);
        let log = File::options().read(true).write(true).open(&path);
        let log = log.map_err(|source| FsError::Io { what: format!("cannot use {}", path.display()), source })?;
        let options = WriteOptions {
            part_len: recorded.part_len,
            max_parallel_parts: PARALLEL_PARTS,
            stream_threshold: u64::MAX,
            let_go_above: None,
            records_tags: false,
        };
        let runtime = tokio::runtime::Handle::current();
        let context = WriteContext::new(store, Arc::clone(&self.area), options, runtime);
        let context = context.with_origin(recorded.origin.clone());
        let remains = Remains { data, path: file.path.clone(), log, log_len: file.record_len };
        let dirty = DirtyFile::resume(Arc::new(context), recorded, remains)?;
        if damage == Damage::Accept {
            dirty.believe();
        }
        Ok(dirty)
    }

    /// Writes the whole file to `to`, what was not written over from the bucket. `store` may be missing if nothing is.
    ///
    /// # Errors
    /// [`FsError::Changed`] if the object that has the rest was replaced; [`FsError::Invalid`] if the store is needed and
    /// missing, or it is not known what the file was; [`FsError::Damaged`]; [`FsError::InUpload`]; [`FsError::Store`];
    /// [`FsError::Io`].
    pub async fn export(
        &self,
        file: &KeptFile,
        store: Option<Arc<dyn Store>>,
        to: &File,
        damage: Damage,
    ) -> FsResult<u64> {
        let data = self.lock(file)?;
        let size = file.recorded()?.size;
        let base = FromStore(store.clone());
        // Nothing is asked of this one.
        let store = store.unwrap_or_else(|| Arc::new(sandpail_store::memory::MemoryStore::new()));
        let dirty = self.resume(file, data, store, damage)?;
        let failed = |source| FsError::Io { what: "cannot write the file".to_owned(), source };
        let mut at = 0;
        while at < size {
            let end = (at + CHUNK_LEN).min(size);
            for chunk in dirty.read(0, at..end, &base).await? {
                to.write_all_at(&chunk, at).map_err(failed)?;
                at += chunk.len() as u64;
            }
        }
        Ok(size)
    }

    /// Writes the bytes of the staging file to `to` as they are, holes included.
    ///
    /// # Errors
    /// [`FsError::Io`].
    pub fn export_raw(&self, file: &KeptFile, to: &mut File) -> FsResult<u64> {
        let mut data = self.lock(file)?;
        io::copy(&mut data, to)
            .map_err(|source| FsError::Io { what: format!("cannot copy {}", file.path.display()), source })
    }

    /// Stores the file in its bucket, and then keeps it no longer. If the object is not the one that was written over any
    /// more, or the machine stopped since and nobody knows whether the file is whole, or it is damaged, both are kept: ours
    /// as `key (recovered HOST SECONDS)`.
    ///
    /// # Errors
    /// As [`KeptFiles::export`]; then the file stays kept.
    pub async fn upload(&self, file: &KeptFile, store: Arc<dyn Store>, damage: Damage) -> FsResult<PutBack> {
        let data = self.lock(file)?;
        let recorded = file.recorded()?;
        let base = FromStore(Some(Arc::clone(&store)));
        let dirty = self.resume(file, data, Arc::clone(&store), damage)?;
        let is_sure = !recorded.is_doubtful() && (damage == Damage::Refuse || file.damaged()?.is_empty());
        let put_back = put_back(file, is_sure, &store, &dirty, &base).await?;
        // Whole in the bucket: it may go.
        self.remove(file)?;
        Ok(put_back)
    }

    /// Removes the file.
    ///
    /// # Errors
    /// [`FsError::Busy`], [`FsError::Io`].
    pub fn discard(&self, file: &KeptFile) -> FsResult<()> {
        let _data = self.lock(file)?;
        self.remove(file)
    }

    fn remove(&self, file: &KeptFile) -> FsResult<()> {
        let failed = |source| FsError::Io { what: format!("cannot remove {}", file.path.display()), source };
        let _lock = lock_root(&self.root).map_err(failed)?;
        disk::remove_file(&file.path).map_err(failed)?;
        let note = file.path.with_extension("json");
        let is_old = file.record.as_ref().is_err_and(|problem| *problem == RecordProblem::Missing);
        let more = [Some(record_of(&file.path)), Some(note).filter(|note| is_old && is_old_note(note))];
        for path in more.into_iter().flatten() {
            match disk::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        Ok(())
    }
}

async fn put_back(
    file: &KeptFile,
    is_sure: bool,
    store: &Arc<dyn Store>,
    dirty: &Arc<DirtyFile>,
    base: &FromStore,
) -> FsResult<PutBack> {
    let recorded = file.recorded()?;
    let key = recorded.key.clone();
    let mut attributes = file.attributes(recorded);
    let present = match store.head(&key).await {
        Ok(info) => Some(info),
        Err(StoreError::NotFound { .. }) => None,
        Err(source) => return Err(FsError::Store { what: format!("cannot look up {key}"), source }),
    };
    if present.as_ref().is_some_and(|info| info.attributes.tag_count > 0) {
        // A new version has only the tags that come with it.
        let tagging = store.tagging(&key).await;
        attributes.tagging =
            tagging.map_err(|source| FsError::Store { what: format!("cannot read the tags of {key}"), source })?;
    }
    if present.is_none() && recorded.is_removing {
        return Ok(PutBack::WasRemoved { key });
    }
    let present = present.map(|info| (info.etag, info.size));
    if let Some((etag, size)) = &present
        && recorded.completing.as_ref() == Some(etag)
        && is_sure
        && dirty.stand_on(ObjectVersion { key: key.clone(), etag: etag.clone(), size: *size })
    {
        // Its process died when its upload was done and before it knew. What was written after that goes over it.
        let has_conditions = store.capabilities().conditional_put;
        let condition = if has_conditions { Condition::Matches(etag.clone()) } else { Condition::Always };
        return commit(store, dirty, &attributes, &condition, base).await.map(|()| PutBack::Stored { key });
    }
    mark_directory(store.as_ref(), &key, &attributes).await?;
    // What may lack bytes replaces nothing.
    let may_be_whole = present.is_none() || is_sure;
    let found = present.as_ref().map(|(etag, _)| etag);
    // That it is gone may be the file's own doing.
    let is_unchanged =
        may_be_whole && (found == recorded.replaces.as_ref() || found.is_none() && recorded.may_be_removed);
    if is_unchanged {
        let condition = match found {
            _ if !store.capabilities().conditional_put => Condition::Always,
            Some(etag) => Condition::Matches(etag.clone()),
            None => Condition::Absent,
        };
        match commit(store, dirty, &attributes, &condition, base).await {
            Ok(()) => return Ok(PutBack::Stored { key }),
            // Changed between the look and the writing; or the request came twice, and this is the second answer.
            Err(FsError::Store { source: StoreError::Precondition { .. }, .. }) => {
                if is_there(store, &key, recorded, dirty).await? {
                    return Ok(PutBack::Stored { key });
                }
            }
            Err(error) => return Err(error),
        }
    } else if let Some((etag, size)) = present
        && size == recorded.size
        && recorded.in_upload.is_empty()
        && (recorded.is_storing() || recorded.in_base() == 0)
        && holds(store, &key, &etag, recorded, dirty).await?
    {
        return Ok(PutBack::WasStored { key });
    }
    if !recorded.in_upload.is_empty() {
        let what = format!(
            "part of the file is in an unfinished upload of {key}, so it cannot have another name; and an object of that name"
        );
        return Err(FsError::Exists { what });
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let beside = ObjectKey::new(format!("{key} (recovered {host} {seconds})"))
        .map_err(|error| FsError::NameTooLong { what: error.to_string() })?;
    dirty.materialise(base).await?;
    dirty.retarget(beside.clone());
    let condition = if store.capabilities().conditional_put { Condition::Absent } else { Condition::Always };
    match dirty.commit(&attributes, &condition, base).await {
        Ok(_) => Ok(PutBack::Beside { key: beside }),
        Err(FsError::Store { source: StoreError::Precondition { .. }, .. })
            if is_there(store, &beside, recorded, dirty).await? =>
        {
            Ok(PutBack::Beside { key: beside })
        }
        Err(error) => {
            // It is still to be put back where it was.
            dirty.retarget(key);
            Err(error)
        }
    }
}

/// Stores a file with these attributes, also if its upload had begun with others.
async fn commit(
    store: &Arc<dyn Store>,
    dirty: &Arc<DirtyFile>,
    attributes: &ObjectAttributes,
    condition: &Condition,
    base: &FromStore,
) -> FsResult<()> {
    let key = dirty.key();
    let committed = dirty.commit(attributes, condition, base).await?;
    if committed.attributes_stored == *attributes {
        return Ok(());
    }
    if committed.size > store.capabilities().copy_len_max {
        tracing::warn!(%key, "what was put back is too large to be given its mode, owner and times");
        return Ok(());
    }
    let source = CopySource { key: key.clone(), etag: Some(committed.outcome.etag) };
    let copied = store.copy(&source, &key, Some(attributes), &Condition::Always).await;
    copied.map(drop).map_err(|source| FsError::Store { what: format!("cannot give {key} its attributes"), source })
}

/// What carries attributes is stored beside a marker: without one its directory's listing would be believed
/// ([`Metadata::Auto`](crate::engine::Metadata::Auto)).
async fn mark_directory(store: &dyn Store, key: &ObjectKey, attributes: &ObjectAttributes) -> FsResult<()> {
    let directory =
        key.as_str().rsplit_once('/').and_then(|(directory, _)| ObjectKey::new(format!("{directory}/")).ok());
    let Some(marker) = directory.filter(|_| attributes.metadata.contains_key("mode")) else { return Ok(()) };
    let what = || format!("cannot mark the directory {marker}");
    match store.head(&marker).await {
        Ok(_) => return Ok(()),
        Err(StoreError::NotFound { .. }) => {}
        Err(source) => return Err(FsError::Store { what: what(), source }),
    }
    let condition = if store.capabilities().conditional_put { Condition::Absent } else { Condition::Always };
    match store.put(&marker, PutBody::empty(), &ObjectAttributes::default(), &condition).await {
        Ok(_) | Err(StoreError::Precondition { .. }) => Ok(()),
        Err(source) => Err(FsError::Store { what: what(), source }),
    }
}

/// Whether there is an object with all bytes of the file.
async fn is_there(
    store: &Arc<dyn Store>,
    key: &ObjectKey,
    recorded: &Recorded,
    dirty: &Arc<DirtyFile>,
) -> FsResult<bool> {
    match store.head(key).await {
        Ok(info) if info.size == recorded.size && recorded.in_upload.is_empty() => {
            holds(store, key, &info.etag, recorded, dirty).await
        }
        Ok(_) | Err(StoreError::NotFound { .. }) => Ok(false),
        Err(source) => Err(FsError::Store { what: format!("cannot look up {key}"), source }),
    }
}

/// Whether an object has all bytes of the file that are here.
async fn holds(
    store: &Arc<dyn Store>,
    key: &ObjectKey,
    etag: &ETag,
    recorded: &Recorded,
    dirty: &Arc<DirtyFile>,
) -> FsResult<bool> {
    let version = ObjectVersion { key: key.clone(), etag: etag.clone(), size: recorded.size };
    let object = FromStore(Some(Arc::clone(store)));
    let limit = recorded.base.as_ref().map_or(0, |base| base.limit);
    let mut ours = recorded.local.clone();
    ours.insert(limit..recorded.size);
    for range in ours.iter() {
        let mut at = range.start;
        while at < range.end {
            let end = (at + CHUNK_LEN).min(range.end);
            // All of it is here, or zeros.
            let here = dirty.read(0, at..end, &FromStore(None)).await?.concat();
            if object.read_base(0, &version, at..end).await?.concat() != here {
                return Ok(false);
            }
            at = end;
        }
    }
    Ok(true)
}

/// The note beside a kept file of an older version.
fn is_old_note(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
        && std::fs::read(path).is_ok_and(|text| {
            serde_json::from_slice::<serde_json::Value>(&text)
                .is_ok_and(|note| note.get("not_here").is_some() && note.get("key").is_some())
        })
}

/// Eight letters and digits for a file's name.
fn id_of(name: &[u8]) -> String {
    format!("{:08x}", crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::DirBuilderExt;

    use sandpail_store::memory::MemoryStore;
    use sandpail_store::{PutBody, collect};

    use super::*;
    use crate::write::{Base, Origin};

    const KEY: &str = "dir/key";

    struct World {
        runtime: tokio::runtime::Runtime,
        store: Arc<dyn Store>,
        root: tempfile::TempDir,
        base: ETag,
    }

    impl World {
        /// A bucket whose object is "the old text", edited to "the OLD text, and more" by a process that died.
        fn new() -> Self {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
            let base = runtime.block_on(put(&*store, KEY, b"the old text"));
            let world = Self { runtime, store, root: tempfile::tempdir().unwrap(), base };
            world.die_with(|file| {
                file.write(4, b"OLD").unwrap();
                file.write(12, b", and more").unwrap();
            });
            world
        }

        fn die_with(&self, change: impl FnOnce(&Arc<DirtyFile>)) {
            let elsewhere = tempfile::tempdir().unwrap();
            let staging = StagingArea::open(elsewhere.path(), None).unwrap();
            let options = WriteOptions {
                part_len: 5 << 20,
                max_parallel_parts: 2,
                stream_threshold: 1 << 30,
                let_go_above: None,
                records_tags: false,
            };
            let context = WriteContext::new(Arc::clone(&self.store), staging, options, self.runtime.handle().clone());
            let context = context.with_origin(Origin { bucket: Some("b".to_owned()), ..Origin::default() });
            let version = ObjectVersion { key: key(KEY), etag: self.base.clone(), size: 12 };
            let file = DirtyFile::new(Arc::new(context), key(KEY), Some(Base { version, limit: 12 }), 12).unwrap();
            change(&file);
            // As it lies on the disk now.
            let own = std::fs::read_dir(elsewhere.path()).unwrap().flatten().next().unwrap();
            let dead = self.root.path().join(own.file_name());
            std::fs::DirBuilder::new().mode(0o700).create(&dead).unwrap();
            for entry in std::fs::read_dir(own.path()).unwrap().flatten() {
                std::fs::copy(entry.path(), dead.join(entry.file_name())).unwrap();
            }
        }

        fn kept(&self) -> KeptFiles {
            KeptFiles::open(self.root.path()).unwrap().unwrap()
        }

        fn only(&self) -> KeptFile {
            let mut files = self.kept().list().unwrap();
            assert_eq!(files.len(), 1, "{files:?}");
            files.remove(0)
        }

        fn upload(&self) -> FsResult<PutBack> {
            self.upload_with(Damage::Refuse)
        }

        fn upload_with(&self, damage: Damage) -> FsResult<PutBack> {
            self.runtime.block_on(self.kept().upload(&self.only(), Arc::clone(&self.store), damage))
        }

        fn export(&self, store: Option<Arc<dyn Store>>) -> FsResult<Vec<u8>> {
            let out = tempfile::NamedTempFile::new().unwrap();
            self.runtime.block_on(self.kept().export(&self.only(), store, out.as_file(), Damage::Refuse))?;
            Ok(std::fs::read(out.path()).unwrap())
        }

        fn put(&self, name: &str, bytes: &'static [u8]) -> ETag {
            self.runtime.block_on(put(&*self.store, name, bytes))
        }

        fn object(&self, key: &ObjectKey) -> Vec<u8> {
            let get = async { collect(self.store.get(key, 0..1000, None).await.unwrap(), 1000).await.unwrap() };
            self.runtime.block_on(get).to_vec()
        }

        fn is_empty(&self) -> bool {
            self.kept().list().unwrap().is_empty()
                && std::fs::read_dir(kept_directory(self.root.path())).unwrap().count() == 0
        }

        fn change_log(&self, change: impl FnOnce(&mut Vec<u8>)) {
            let path = record_of(&self.only().path);
            let mut log = std::fs::read(&path).unwrap();
            change(&mut log);
            std::fs::write(path, log).unwrap();
        }
    }

    fn key(text: &str) -> ObjectKey {
        ObjectKey::new(text).unwrap()
    }

    async fn put(store: &dyn Store, name: &str, bytes: &'static [u8]) -> ETag {
        let body = PutBody::from(Bytes::from_static(bytes));
        store.put(&key(name), body, &ObjectAttributes::default(), &Condition::Always).await.unwrap().etag
    }

    #[test]
    fn a_damaged_file_is_named_and_replaces_nothing() {
        let world = World::new();
        world.kept().discard(&world.only()).unwrap();
        world.die_with(|file| {
            file.write(4, b"OLD").unwrap();
            file.write(12, b", and more").unwrap();
            file.note_sums();
        });
        assert!(world.only().damaged().unwrap().is_empty());
        let path = world.only().path;
        File::options().write(true).open(&path).unwrap().write_all_at(b"o", 4).unwrap();
        assert_eq!(world.only().damaged().unwrap().iter().collect::<Vec<_>>(), [Range { start: 4, end: 7 }]);
        for refused in [world.upload().map(drop), world.export(Some(Arc::clone(&world.store))).map(drop)] {
            let error = refused.unwrap_err();
            assert!(matches!(&error, FsError::Damaged { key, .. } if key == KEY), "{error}");
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        }
        assert_eq!(world.object(&key(KEY)), b"the old text");
        let PutBack::Beside { key: beside } = world.upload_with(Damage::Accept).unwrap() else { panic!("not beside") };
        assert_eq!(world.object(&key(KEY)), b"the old text");
        assert_eq!(world.object(&beside), b"the oLD text, and more");
        assert!(world.is_empty());
    }

    const EDITED: &[u8] = b"the OLD text, and more";

    #[test]
    fn an_edit_is_shown_exported_and_put_back() {
        let world = World::new();
        assert_eq!(count(world.root.path()), 0);
        let file = world.only();
        assert_eq!(count(world.root.path()), 1);
        let recorded = file.recorded().unwrap();
        assert_eq!((recorded.key.as_str(), recorded.size, file.staged_len(), recorded.in_base()), (KEY, 22, 13, 9));
        assert_eq!(recorded.origin.to_string(), "s3://b");
        assert_eq!(world.export(Some(Arc::clone(&world.store))).unwrap(), EDITED);
        assert_eq!(world.upload().unwrap(), PutBack::Stored { key: key(KEY) });
        assert_eq!(world.object(&key(KEY)), EDITED);
        assert!(world.is_empty());
    }

    #[test]
    fn without_its_store_an_edit_is_no_whole_file() {
        let world = World::new();
        let error = world.export(None).unwrap_err();
        assert!(matches!(&error, FsError::Invalid { what } if what.contains("store is needed")), "{error}");
    }

    #[test]
    fn a_base_that_was_replaced_is_never_mixed() {
        let world = World::new();
        world.put(KEY, b"another text");
        for error in [world.export(Some(Arc::clone(&world.store))).unwrap_err(), world.upload().unwrap_err()] {
            assert!(matches!(&error, FsError::Changed { what } if what.contains(world.base.as_str())), "{error}");
        }
        assert_eq!(world.object(&key(KEY)), b"another text");
        // The bytes that were written can be had all the same.
        let mut out = tempfile::tempfile().unwrap();
        assert_eq!(world.kept().export_raw(&world.only(), &mut out).unwrap(), 22);
    }

    #[test]
    fn a_whole_file_goes_beside_an_object_that_was_changed() {
        let world = World::new();
        world.kept().discard(&world.only()).unwrap();
        world.die_with(|file| {
            file.truncate(0).unwrap();
            file.write(0, b"all of it").unwrap();
        });
        world.put(KEY, b"another text");
        let Ok(PutBack::Beside { key: beside }) = world.upload() else { panic!() };
        assert!(beside.as_str().starts_with("dir/key (recovered "), "{beside}");
        assert_eq!((world.object(&key(KEY)), world.object(&beside)), (b"another text".to_vec(), b"all of it".to_vec()));
        assert!(world.is_empty());
    }

    #[test]
    fn what_was_removed_already_does_not_come_back() {
        let remove = |world: &World| {
            world.runtime.block_on(world.store.delete(&key(KEY), None)).unwrap();
        };
        let world = World::new();
        world.kept().discard(&world.only()).unwrap();
        let die = |is_written_after: bool| {
            world.die_with(|file| {
                file.truncate(0).unwrap();
                file.write(0, b"all of it").unwrap();
                file.note_removing();
                if is_written_after {
                    file.truncate(3).unwrap();
                }
            });
        };
        die(false);
        remove(&world);
        assert_eq!(world.upload().unwrap(), PutBack::WasRemoved { key: key(KEY) });
        assert!(world.is_empty());
        // Nobody heard of the removal, and the file was gone on with, as its mount would have done.
        die(true);
        assert_eq!(world.upload().unwrap(), PutBack::Stored { key: key(KEY) });
        assert_eq!(world.object(&key(KEY)), b"all");
        assert!(world.is_empty());
    }

    #[test]
    fn what_was_stored_already_is_not_stored_twice() {
        let world = World::new();
        world.kept().discard(&world.only()).unwrap();
        world.die_with(|file| {
            file.truncate(0).unwrap();
            file.write(0, b"all of it").unwrap();
        });
        world.put(KEY, b"all of it");
        assert_eq!(world.upload().unwrap(), PutBack::WasStored { key: key(KEY) });
        assert!(world.is_empty());
    }

    #[test]
    fn after_the_machine_stopped_no_object_is_replaced() {
        let world = World::new();
        let dead = std::fs::read_dir(world.root.path()).unwrap().flatten().next().unwrap().path();
        let path = dead.join("0.record");
        let log = std::fs::read(&path).unwrap();
        std::fs::write(&path, crate::write::of_another_boot(&log)).unwrap();
        assert!(world.only().recorded().unwrap().is_doubtful());
        let Ok(PutBack::Beside { key: beside }) = world.upload() else { panic!() };
        assert_eq!((world.object(&key(KEY)), world.object(&beside)), (b"the old text".to_vec(), EDITED.to_vec()));
    }

    #[test]
    fn bytes_that_the_disk_never_got_are_missed() {
        let world = World::new();
        let file = world.only();
        File::options().write(true).open(&file.path).unwrap().set_len(9).unwrap();
        let error = world.upload().unwrap_err();
        assert!(error.to_string().contains("10 bytes that were written are lost"), "{error}");
        assert_eq!(world.object(&key(KEY)), b"the old text");
    }

    #[test]
    fn files_without_a_record_are_listed_exported_raw_and_discarded() {
        for (change, problem) in [
            (Box::new(|log: &mut Vec<u8>| log[15] = 9) as Box<dyn FnOnce(&mut Vec<u8>)>, RecordProblem::Version(9)),
            (Box::new(|log: &mut Vec<u8>| log.truncate(20)), RecordProblem::Damaged),
        ] {
            let world = World::new();
            world.change_log(change);
            assert_eq!(world.only().record, Err(problem));
            assert!(matches!(world.upload(), Err(FsError::Invalid { .. })));
            let mut out = tempfile::tempfile().unwrap();
            assert_eq!(world.kept().export_raw(&world.only(), &mut out).unwrap(), 22);
            world.kept().discard(&world.only()).unwrap();
            assert!(world.is_empty());
        }
        // Of an older version, with its note.
        let world = World::new();
        world.kept().discard(&world.only()).unwrap();
        let dir = kept_directory(world.root.path());
        std::fs::write(dir.join("1700000000-7-0-a.txt"), "bytes").unwrap();
        std::fs::write(dir.join("1700000000-7-0-a.json"), r#"{"key": "a.txt", "size": 5, "not_here": []}"#).unwrap();
        assert_eq!(world.only().record, Err(RecordProblem::Missing));
        world.kept().discard(&world.only()).unwrap();
        assert!(world.is_empty());
    }

    #[test]
    fn only_one_process_works_on_a_file() {
        let world = World::new();
        let file = world.only();
        let _other = world.kept().lock(&file).unwrap();
        assert!(matches!(world.kept().discard(&file), Err(FsError::Busy { .. })));
        assert!(matches!(world.upload(), Err(FsError::Busy { .. })));
    }

    #[test]
    fn stored_and_removed_files_are_not_kept() {
        let world = World::new();
        world.kept().discard(&world.only()).unwrap();
        world.die_with(|file| {
            file.write(0, b"x").unwrap();
            file.note_unlinked();
        });
        assert!(world.is_empty());
        world.die_with(|file| {
            file.write(0, b"x").unwrap();
            let base = FromStore(Some(Arc::clone(&world.store)));
            world.runtime.block_on(file.commit(&ObjectAttributes::default(), &Condition::Always, &base)).unwrap();
        });
        assert!(world.is_empty());
        // Written again after it was stored.
        assert_eq!(world.put(KEY, b"the old text"), world.base);
        world.die_with(|file| {
            file.write(0, b"x").unwrap();
            let base = FromStore(Some(Arc::clone(&world.store)));
            world.runtime.block_on(file.commit(&ObjectAttributes::default(), &Condition::Always, &base)).unwrap();
            file.write(0, b"y").unwrap();
        });
        assert_eq!(world.export(Some(Arc::clone(&world.store))).unwrap(), b"yhe old text");
    }

    #[test]
    fn a_new_empty_file_is_kept() {
        let world = World::new();
        world.kept().discard(&world.only()).unwrap();
        world.die_with(|file| file.truncate(0).unwrap());
        assert_eq!(world.upload().unwrap(), PutBack::Stored { key: key(KEY) });
        assert_eq!(world.runtime.block_on(world.store.head(&key(KEY))).unwrap().size, 0);
    }

    #[test]
    fn times_that_nobody_chose_are_those_of_the_last_write() {
        for (times_set, expected) in [(true, Some("5")), (false, None)] {
            let world = World::new();
            world.kept().discard(&world.only()).unwrap();
            world.die_with(|file| {
                let metadata =
                    [("mode", "33188"), ("mtime", "5")].map(|(name, value)| (name.to_owned(), value.to_owned()));
                file.write(0, b"T").unwrap();
                let attributes = ObjectAttributes { metadata: metadata.into(), ..ObjectAttributes::default() };
                file.describe(attributes, times_set).unwrap();
            });
            let modified = Time::from(world.only().modified).text();
            world.upload().unwrap();
            let stored = world.runtime.block_on(world.store.head(&key(KEY))).unwrap().attributes.metadata;
            assert_eq!(stored["mode"], "33188");
            assert_eq!(stored["mtime"], expected.unwrap_or(&modified));
        }
    }
}
