//! A bucket in a directory of this machine.
//!
//! ```text
//! DIR/sandpail-bucket.json    what this is, and which version of this format
//! DIR/objects/…               one file per object (`names`, `object`)
//! DIR/uploads/<id>/…          multipart uploads in progress (`uploads`)
//! DIR/tmp/                    files being written
//! DIR/locks/<shard>           locked while a key changes
//! ```
//!
//! A write goes to a file in `tmp`, is synced, and then renamed into place while its key's lock is held
//! and its condition checked. So an object is whole or absent whenever a process or the machine stops,
//! readers need no lock, and any number of processes may use one directory at once. What is acknowledged is
//! durable, also where it rests on what another process did and did not come to sync (`files::settle`);
//! `tests/power_cut` cuts the power after every system call.
//!
//! Lock order: an upload's directory, then a key's shard; never two shards.

mod files;
mod list;
mod names;
mod object;
mod uploads;

use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use serde::{Deserialize, Serialize};

use self::files::TempFile;
pub(crate) use self::files::unique_name;
use self::list::NameCache;
use crate::cursor::Cursor;
use crate::{
    BodyStream, Capabilities, Condition, CopySource, Download, ETag, ListPage, ListRequest, ListedPart,
    ObjectAttributes, ObjectInfo, ObjectKey, Part, Proof, PutBody, PutOutcome, Store, StoreError, StoreResult,
    UploadId, UploadInProgress,
};

const MARKER: &str = "sandpail-bucket.json";
const FORMAT: &str = "sandpail-bucket";
const VERSION: u32 = 1;
/// Enough that unrelated keys seldom wait for each other.
const LOCK_COUNT: u64 = 256;
/// Length of the pieces in which objects are read.
const CHUNK_LEN: u64 = 512 << 10;

/// The marker file.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    format: String,
    version: u32,
}

/// How a [`DirStore`] works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirOptions {
    /// Whether what was acknowledged survives a power cut, if all who use the directory say so. Without it, it still survives `kill -9`, and each
    /// object is still whole or absent as far as the file system keeps the order of data and rename.
    pub durable: bool,
}

impl Default for DirOptions {
    fn default() -> Self {
        Self { durable: true }
    }
}

/// A bucket in a directory. Cheap to clone; several processes may use one directory.
#[derive(Clone, Debug)]
pub struct DirStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    objects: PathBuf,
    uploads: PathBuf,
    temp: PathBuf,
    locks: PathBuf,
    options: DirOptions,
    capabilities: Capabilities,
    names: NameCache,
}

impl DirStore {
    /// Makes `directory` (which may exist and be empty) a bucket and opens it. A bucket that is already there is
    /// opened as it is.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if the directory holds something else; [`StoreError::Io`].
    pub fn create(directory: impl AsRef<Path>) -> StoreResult<Self> {
        let directory = directory.as_ref();
        let failed = |error| io_error(format!("cannot create a bucket in {}", directory.display()), error);
        fs::create_dir_all(directory).map_err(failed)?;
        if !directory.join(MARKER).exists() {
            let ours = ["objects", "uploads", "tmp", "locks"];
            for entry in fs::read_dir(directory).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name();
                if !ours.iter().any(|our| name == *our) && name != MARKER && name != "lost+found" {
                    return Err(StoreError::Invalid {
                        message: format!(
                            "{} is not empty (it holds {name:?}); choose an empty or new directory for the bucket",
                            directory.display()
                        ),
                    });
                }
            }
            // What is stored in a bucket is no more durable than the bucket's own name. Directories that were there
            // may be as new: a process that began this may have been killed.
            files::sync_ancestors(directory).map_err(failed)?;
            for name in ours {
                fs::create_dir_all(directory.join(name)).map_err(failed)?;
            }
            // The marker comes last: a directory with it is complete.
            let marker = Marker { format: FORMAT.into(), version: VERSION };
            let json = serde_json::to_vec(&marker).map_err(|error| failed(error.into()))?;
            let temp = TempFile::create(&directory.join("tmp")).map_err(failed)?;
            io::Write::write_all(&mut temp.file(), &json).map_err(failed)?;
            temp.file().sync_all().map_err(failed)?;
            temp.publish(directory, &directory.join(MARKER), true).map_err(failed)?;
        }
        Self::open(directory)
    }

    /// Opens a bucket.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`] if there is no directory; [`StoreError::Invalid`] if it is not a bucket or one
    /// of a later version; [`StoreError::Io`].
    pub fn open(directory: impl AsRef<Path>) -> StoreResult<Self> {
        Self::open_with(directory, DirOptions::default())
    }

    /// Opens a bucket with options of one's own.
    ///
    /// # Errors
    /// As [`DirStore::open`].
    pub fn open_with(directory: impl AsRef<Path>, options: DirOptions) -> StoreResult<Self> {
        let given = directory.as_ref();
        let root = fs::canonicalize(given).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => no_bucket(given),
            _ => io_error(format!("cannot open bucket directory {}", given.display()), error),
        })?;
        check_marker(&root)?;
        let inner = Inner {
            objects: root.join("objects"),
            uploads: root.join("uploads"),
            temp: root.join("tmp"),
            locks: root.join("locks"),
            root,
            options,
            capabilities: Capabilities { put_len_max: 5 << 40, copy_len_max: 5 << 40, ..Capabilities::default() },
            names: NameCache::default(),
        };
        let failed = |error| io_error(format!("cannot open bucket directory {}", given.display()), error);
        for directory in [&inner.objects, &inner.uploads, &inner.temp, &inner.locks] {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        if options.durable {
            // Whoever made these names, and the marker, may have been killed before they were durable.
            files::sync_directory(&inner.root).map_err(failed)?;
        }
        files::sweep(&inner.temp).map_err(failed)?;
        inner.sweep_uploads().map_err(failed)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The bucket's directory.
    pub fn directory(&self) -> &Path {
        &self.inner.root
    }

    /// Where files that become objects are best written: on the bucket's file system, swept when it is opened.
    pub fn temp_directory(&self) -> &Path {
        &self.inner.temp
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(&inner)).await.unwrap_or_else(|error| {
            Err(StoreError::Io { what: "the store's worker ended".into(), source: io::Error::other(error) })
        })
    }
}

fn no_bucket(directory: &Path) -> StoreError {
    let bucket = directory.file_name().unwrap_or(directory.as_os_str()).to_string_lossy().into_owned();
    StoreError::NoSuchBucket { bucket, endpoint: directory.display().to_string() }
}

fn check_marker(root: &Path) -> StoreResult<()> {
    let shown = root.display();
    let json = fs::read(root.join(MARKER)).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if root.exists() => StoreError::Invalid {
            message: format!(
                "{shown} is not a sandpail bucket directory; make one with: sandpail bucket create {shown}"
            ),
        },
        io::ErrorKind::NotFound => no_bucket(root),
        io::ErrorKind::NotADirectory => StoreError::Invalid { message: format!("{shown} is not a directory") },
        _ => io_error(format!("cannot read {shown}/{MARKER}"), error),
    })?;
    let marker: Marker =
        serde_json::from_slice(&json).ok().filter(|marker: &Marker| marker.format == FORMAT).ok_or_else(|| {
            StoreError::Invalid { message: format!("{shown}/{MARKER} is not a sandpail bucket's marker") }
        })?;
    if marker.version > VERSION {
        return Err(StoreError::Invalid {
            message: format!(
                "{shown} has bucket format {}, this sandpail knows up to {VERSION}; use a newer one",
                marker.version
            ),
        });
    }
    Ok(())
}

/// Tells a full disk and an impossible name from other failures.
fn io_error(what: String, error: io::Error) -> StoreError {
    use io::ErrorKind::{FileTooLarge, InvalidFilename, QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => StoreError::NoSpace { message: format!("{what}: {error}") },
        FileTooLarge | InvalidFilename => StoreError::Invalid { message: format!("{what}: {error}") },
        _ => StoreError::Io { what, source: error },
    }
}

/// The blocking side; one method per operation.
impl Inner {
    fn path_of(&self, key: &ObjectKey) -> PathBuf {
        self.objects.join(names::object_path(key.as_str()))
    }

    fn temp_file(&self) -> StoreResult<TempFile> {
        TempFile::create(&self.temp)
            .map_err(|error| io_error(format!("cannot create a file in {}", self.temp.display()), error))
    }

    /// Waits until no one else, in any process, changes `key`.
    fn lock(&self, key: &ObjectKey) -> StoreResult<File> {
        // The same in every process and version: `DefaultHasher::new` promises no such thing.
        let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
        key.as_str().hash(&mut hasher);
        let path = self.locks.join(format!("{:02x}", hasher.finish() % LOCK_COUNT));
        let failed = |error| io_error(format!("cannot lock {}", path.display()), error);
        let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(file)
    }

    fn open_object(&self, key: &ObjectKey) -> StoreResult<(File, ObjectInfo)> {
        object::open(&self.path_of(key))?.ok_or_else(|| StoreError::no_object(key))
    }

    fn open_version(&self, key: &ObjectKey, etag: Option<&ETag>) -> StoreResult<(File, ObjectInfo)> {
        let (file, info) = self.open_object(key)?;
        match etag {
            Some(etag) if *etag != info.etag => Err(StoreError::changed(key)),
            _ => Ok((file, info)),
        }
    }

    fn check_condition(&self, key: &ObjectKey, condition: &Condition) -> StoreResult<()> {
        let holds = match condition {
            Condition::Always => true,
            Condition::Absent => match object::open(&self.path_of(key)) {
                Ok(found) => found.is_none(),
                // Damaged, but there.
                Err(StoreError::Integrity { .. }) => false,
                Err(error) => return Err(error),
            },
            Condition::Matches(etag) => object::open(&self.path_of(key))?.is_some_and(|(_, info)| info.etag == *etag),
        };
        if holds { Ok(()) } else { Err(StoreError::changed(key)) }
    }

    /// Makes a finished file the object `key`, if `condition` holds.
    fn publish(
        &self,
        key: &ObjectKey,
        temp: TempFile,
        info: &ObjectInfo,
        condition: &Condition,
    ) -> StoreResult<PutOutcome> {
        let failed = |error| io_error(format!("cannot store {key:?}"), error);
        if self.options.durable {
            temp.file().sync_all().map_err(failed)?;
        }
        let _lock = self.lock(key)?;
        self.check_condition(key, condition)?;
        temp.publish(&self.objects, &self.path_of(key), self.options.durable).map_err(failed)?;
        let proof = Proof::of_md5_tag(&info.etag);
        Ok(PutOutcome { etag: info.etag.clone(), last_modified: Some(info.last_modified), proof })
    }

    fn put(
        &self,
        key: &ObjectKey,
        body: &PutBody,
        attributes: &ObjectAttributes,
        condition: &Condition,
    ) -> StoreResult<PutOutcome> {
        self.check_condition(key, condition)?;
        let temp = self.temp_file()?;
        let info = object::write_body(temp.file(), body, attributes)
            .map_err(|error| io_error(format!("cannot write {key:?}"), error))?;
        self.publish(key, temp, &info, condition)
    }

    fn copy(
        &self,
        source: &CopySource,
        target: &ObjectKey,
        attributes: Option<&ObjectAttributes>,
        condition: &Condition,
    ) -> StoreResult<PutOutcome> {
        if source.key == *target && attributes.is_none() {
            return Err(StoreError::Invalid {
                message: format!("copying {target:?} onto itself without new attributes changes nothing"),
            });
        }
        let (file, info) = self.open_version(&source.key, source.etag.as_ref())?;
        self.check_condition(target, condition)?;
        let attributes = attributes.cloned().unwrap_or(info.attributes);
        let info = ObjectInfo { size: info.size, etag: info.etag, last_modified: object::now(), attributes };
        let mut temp = self.temp_file()?;
        object::append_range(temp.file_mut(), &file, 0, info.size)
            .and_then(|()| object::write_trailer(temp.file_mut(), &info))
            .map_err(|error| io_error(format!("cannot copy {:?}", source.key), error))?;
        self.publish(target, temp, &info, condition)
    }

    fn delete(&self, key: &ObjectKey, etag: Option<&ETag>) -> StoreResult<()> {
        let path = self.path_of(key);
        let failed = |error| io_error(format!("cannot remove {key:?}"), error);
        let parent = path.parent().unwrap_or(&self.objects);
        {
            let _lock = self.lock(key)?;
            if let Some(etag) = etag
                && let Some((_, info)) = object::open(&path)?
                && info.etag != *etag
            {
                return Err(StoreError::changed(key));
            }
            // Durable before the lock goes: the next one who finds nothing there says so.
            files::remove(&self.objects, &path, self.options.durable).map_err(failed)?;
        }
        files::prune(&self.objects, parent);
        Ok(())
    }
}

/// FNV-1a.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Reads `range` of an open file piece by piece, `first` being its beginning.
fn read_stream(file: File, first: Bytes, range: Range<u64>) -> BodyStream {
    let file = Arc::new(file);
    Box::pin(stream::try_unfold((Some(first), range), move |(first, range)| {
        let file = Arc::clone(&file);
        async move {
            let start = range.start;
            let piece = match first {
                Some(first) => first,
                None if range.is_empty() => return Ok(None),
                None => tokio::task::spawn_blocking(move || read_piece(&file, range.start, range.end))
                    .await
                    .map_err(io::Error::other)
                    .flatten()
                    .map_err(|error| io_error("cannot read an object".into(), error))?,
            };
            let next = start + piece.len() as u64;
            Ok(Some((piece, (None, next..range.end))))
        }
    }))
}

fn read_piece(file: &File, start: u64, end: u64) -> io::Result<Bytes> {
    let mut piece = vec![0; usize::try_from((end - start).min(CHUNK_LEN)).unwrap_or_default()];
    file.read_exact_at(&mut piece, start)?;
    Ok(piece.into())
}

#[async_trait]
impl Store for DirStore {
    fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    fn describe(&self) -> String {
        format!("bucket directory {}", self.inner.root.display())
    }

    async fn check_bucket(&self, _prefix: &str) -> StoreResult<()> {
        self.run(|inner| check_marker(&inner.root)).await
    }

    async fn head(&self, key: &ObjectKey) -> StoreResult<ObjectInfo> {
        let key = key.clone();
        self.run(move |inner| Ok(inner.open_object(&key)?.1)).await
    }

    async fn get(&self, key: &ObjectKey, range: Range<u64>, etag: Option<&ETag>) -> StoreResult<Download> {
        let (key, etag) = (key.clone(), etag.cloned());
        self.run(move |inner| {
            let (file, info) = inner.open_version(&key, etag.as_ref())?;
            let range = range.start..range.end.min(info.size);
            if range.is_empty() {
                let message = format!("{key:?} of {} bytes has no byte {}", info.size, range.start);
                return Err(StoreError::Invalid { message });
            }
            let first = read_piece(&file, range.start, range.end)
                .map_err(|error| io_error(format!("cannot read {key:?}"), error))?;
            Ok(Download { info, body: read_stream(file, first, range) })
        })
        .await
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: PutBody,
        attributes: &ObjectAttributes,
        condition: &Condition,
    ) -> StoreResult<PutOutcome> {
        attributes.check()?;
        let (key, attributes, condition) = (key.clone(), attributes.clone(), condition.clone());
        self.run(move |inner| inner.put(&key, &body, &attributes, &condition)).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        target: &ObjectKey,
        attributes: Option<&ObjectAttributes>,
        condition: &Condition,
    ) -> StoreResult<PutOutcome> {
        if let Some(attributes) = attributes {
            attributes.check()?;
        }
        let (source, target) = (source.clone(), target.clone());
        let (attributes, condition) = (attributes.cloned(), condition.clone());
        self.run(move |inner| inner.copy(&source, &target, attributes.as_ref(), &condition)).await
    }

    async fn delete(&self, key: &ObjectKey, etag: Option<&ETag>) -> StoreResult<()> {
        let (key, etag) = (key.clone(), etag.cloned());
        self.run(move |inner| inner.delete(&key, etag.as_ref())).await
    }

    async fn delete_many(&self, keys: &[ObjectKey]) -> StoreResult<Vec<(ObjectKey, StoreError)>> {
        let keys = keys.to_vec();
        self.run(move |inner| {
            Ok(keys
                .into_iter()
                .filter_map(|key| {
                    let error = inner.delete(&key, None).err()?;
                    Some((key, error))
                })
                .collect())
        })
        .await
    }

    async fn list(&self, request: &ListRequest) -> StoreResult<ListPage> {
        let cursor = Cursor::new(request)?;
        self.run(move |inner| list::list(&inner.objects, &inner.names, &cursor)).await
    }

    async fn create_multipart(&self, key: &ObjectKey, attributes: &ObjectAttributes) -> StoreResult<UploadId> {
        attributes.check()?;
        let (key, attributes) = (key.clone(), attributes.clone());
        self.run(move |inner| inner.create_multipart(&key, &attributes)).await
    }

    async fn upload_part(&self, key: &ObjectKey, id: &UploadId, number: u32, body: PutBody) -> StoreResult<Part> {
        let (key, id) = (key.clone(), id.clone());
        self.run(move |inner| inner.upload_part(&key, &id, number, &body)).await
    }

    async fn upload_part_copy(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        number: u32,
        source: &CopySource,
        range: Range<u64>,
    ) -> StoreResult<Part> {
        let (key, id, source) = (key.clone(), id.clone(), source.clone());
        self.run(move |inner| inner.upload_part_copy(&key, &id, number, &source, range)).await
    }

    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        parts: &[Part],
        condition: &Condition,
    ) -> StoreResult<PutOutcome> {
        let (key, id, parts, condition) = (key.clone(), id.clone(), parts.to_vec(), condition.clone());
        self.run(move |inner| inner.complete_multipart(&key, &id, &parts, &condition)).await
    }

    async fn abort_multipart(&self, key: &ObjectKey, id: &UploadId) -> StoreResult<()> {
        let (key, id) = (key.clone(), id.clone());
        self.run(move |inner| inner.abort_multipart(&key, &id)).await
    }

    async fn list_multipart(&self, prefix: &str) -> StoreResult<Vec<UploadInProgress>> {
        let prefix = prefix.to_owned();
        self.run(move |inner| inner.list_multipart(&prefix)).await
    }

    async fn list_parts(&self, key: &ObjectKey, id: &UploadId) -> StoreResult<Vec<ListedPart>> {
        let (key, id) = (key.clone(), id.clone());
        self.run(move |inner| inner.list_parts(&key, &id)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart() {
        for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT] {
            let error = io_error("cannot write \"k\"".into(), errno.into());
            assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
        }
        let error = io_error("cannot write".into(), rustix::io::Errno::IO.into());
        assert!(matches!(error, StoreError::Io { .. }), "{error}");
    }
}
