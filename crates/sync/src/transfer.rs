//! Carries single files over. Each call leaves both sides whole, whenever it ends, and says what is equal then.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use sandpail_store::{
    Condition, Download, ETag, ObjectAttributes, ObjectInfo, ObjectKey, PutBody, PutOutcome, Store, StoreError, collect,
};
use tokio::io::AsyncWriteExt;

use crate::root::{Body, Content, Root, RootError, RootResult, Temp, is_racy};
use crate::snapshot::{BaseFile, Marker, RemoteFile, Stamp, conflict_path, millis};

/// Longer files are not held in memory; they go up in parts.
const WHOLE_LEN_MAX: u64 = 8 << 20;
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFLNK: u32 = 0o120_000;
/// Linux's longest target of a link.
const LINK_LEN_MAX: u64 = 4095;
/// What files and directories get whose object does not say.
const FILE_MODE: u32 = 0o644;
pub(crate) const DIR_MODE: u32 = 0o755;
/// As many second names are tried.
const CONFLICT_TRY_COUNT: i64 = 100;

/// Why a file was not carried over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    /// A side moved on: the next round decides anew.
    #[error("it is being changed")]
    Busy,
    #[error(transparent)]
    Store(StoreError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<StoreError> for TransferError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Precondition { .. } | StoreError::NotFound { .. } => Self::Busy,
            error => Self::Store(error),
        }
    }
}

impl From<RootError> for TransferError {
    fn from(error: RootError) -> Self {
        match error {
            RootError::Busy => Self::Busy,
            RootError::Io(error) => Self::Io(error),
        }
    }
}

pub(crate) type TransferResult<T> = Result<T, TransferError>;

/// Both sides.
#[derive(Debug)]
pub(crate) struct Sides {
    pub(crate) root: Arc<Root>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) prefix: String,
    pub(crate) read_only: bool,
    /// Hashes of what was sent while no answer came: it may be in the bucket, and then it is ours.
    unanswered: Mutex<HashMap<String, String>>,
}

/// What a meeting of two new versions led to.
#[derive(Debug)]
pub(crate) struct Met {
    /// What is equal now.
    pub(crate) equal: Vec<(String, BaseFile)>,
    /// Whether two versions had to be kept.
    pub(crate) is_conflict: bool,
    /// Whether something went up.
    pub(crate) is_upload: bool,
}

/// An object that came down, under a temporary name.
struct Fetched {
    temp: Temp,
    hash: String,
    info: ObjectInfo,
    is_link: bool,
}

impl Sides {
    pub(crate) fn new(root: Arc<Root>, store: Arc<dyn Store>, prefix: String, read_only: bool) -> Self {
        Self { root, store, prefix, read_only, unanswered: Mutex::default() }
    }

    fn key(&self, path: &str) -> TransferResult<ObjectKey> {
        ObjectKey::new(format!("{}{path}", self.prefix))
            .map_err(|error| TransferError::Store(StoreError::Invalid { message: error.to_string() }))
    }

    /// Whether a path's key is one that the bucket keeps as it is.
    pub(crate) fn check_path(&self, path: &str) -> Result<(), String> {
        if !crate::snapshot::is_path(path) {
            return Err("the name cannot be in a bucket".to_owned());
        }
        let key = ObjectKey::new(format!("{}{path}", self.prefix)).map_err(|error| error.to_string())?;
        self.store.check_key(&key).map_err(|error| error.to_string())
    }

    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Root) -> RootResult<T> + Send + 'static,
    ) -> TransferResult<T> {
        let root = Arc::clone(&self.root);
        match tokio::task::spawn_blocking(move || work(&root)).await {
            Ok(result) => Ok(result?),
            Err(error) => Err(TransferError::Io(io::Error::other(error))),
        }
    }

    pub(crate) async fn read(&self, path: &str) -> TransferResult<Content> {
        let path = path.to_owned();
        self.blocking(move |root| root.read(&path, WHOLE_LEN_MAX)).await
    }

    fn unanswered(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the file, over the version `over` or where there is none.
    pub(crate) async fn upload(&self, path: &str, over: Option<&ETag>) -> TransferResult<BaseFile> {
        let content = self.read(path).await?;
        self.upload_content(path, content, over).await
    }

    async fn upload_content(&self, path: &str, content: Content, over: Option<&ETag>) -> TransferResult<BaseFile> {
        let key = self.key(path)?;
        // What the object carries beside its bytes stays; and where conditions are not obeyed, this is the check.
        let mut attributes = match self.store.head(&key).await {
            Ok(info) if Some(&info.etag) == over => self.attributes(&key, info).await?,
            Ok(_) => return Err(TransferError::Busy),
            Err(error) if error.is_not_found() && over.is_none() => ObjectAttributes::default(),
            Err(error) => return Err(error.into()),
        };
        let Content { stamp, racy, hash, body } = content;
        attributes.metadata.insert("mode".into(), stamp.mode.to_string());
        attributes.metadata.insert("mtime".into(), time_text(stamp.mtime));
        let condition = match over {
            _ if !self.store.capabilities().conditional_put => Condition::Always,
            Some(etag) => Condition::Matches(etag.clone()),
            None => Condition::Absent,
        };
        let sent = match body {
            Body::Bytes(bytes) => {
                let body = PutBody::from(Bytes::from(bytes));
                self.store.put(&key, body, &attributes, &condition).await.map_err(TransferError::from)
            }
            Body::File(file) => self.upload_parts(path, &key, file, &stamp, &attributes, &condition).await,
        };
        match sent {
            Ok(PutOutcome { etag, last_modified, .. }) => {
                self.unanswered().remove(path);
                let modified = last_modified.map(millis);
                Ok(BaseFile { local: stamp, racy, hash, etag: etag.as_str().to_owned(), modified, leaving: false })
            }
            Err(error) => {
                self.unanswered().insert(path.to_owned(), hash);
                Err(error)
            }
        }
    }

    async fn attributes(&self, key: &ObjectKey, info: ObjectInfo) -> TransferResult<ObjectAttributes> {
        let mut attributes = info.attributes;
        if attributes.tag_count > 0 {
            attributes.tagging = self.store.tagging(key).await?;
        }
        Ok(attributes)
    }

    async fn upload_parts(
        &self,
        path: &str,
        key: &ObjectKey,
        file: Arc<std::fs::File>,
        stamp: &Stamp,
        attributes: &ObjectAttributes,
        condition: &Condition,
    ) -> TransferResult<PutOutcome> {
        let limits = self.store.capabilities();
        let part_len = WHOLE_LEN_MAX.max(limits.part_len_min).max(stamp.size.div_ceil(limits.part_count_max.into()));
        let id = self.store.create_multipart(key, attributes).await?;
        let sent = async {
            let mut parts = Vec::new();
            for (number, start) in (1..).zip((0..stamp.size).step_by(usize::try_from(part_len).unwrap_or(usize::MAX))) {
                let range = start..(start + part_len).min(stamp.size);
                let body = PutBody::File { file: Arc::clone(&file), range };
                parts.push(self.store.upload_part(key, &id, number, body).await?);
            }
            // The parts are read while they are sent: only if nobody wrote meanwhile they are one version.
            let named = path.to_owned();
            if self.blocking(move |root| root.stamp(&named)).await? != Some(*stamp) {
                return Err(TransferError::Busy);
            }
            Ok(self.store.complete_multipart(key, &id, &parts, condition).await?)
        }
        .await;
        if sent.is_err()
            && let Err(error) = self.store.abort_multipart(key, &id).await
        {
            tracing::warn!(%error, ?key, "an upload that failed could not be ended; its parts stay in the bucket");
        }
        sent
    }

    /// Brings an object down, over the version `over` or where there is nothing.
    pub(crate) async fn download(
        &self,
        path: &str,
        file: &RemoteFile,
        over: Option<Stamp>,
    ) -> TransferResult<BaseFile> {
        let fetched = self.fetch(path, file).await?;
        self.settle(path, fetched, over).await
    }

    async fn settle(&self, path: &str, fetched: Fetched, over: Option<Stamp>) -> TransferResult<BaseFile> {
        let Fetched { temp, hash, info, is_link: _ } = fetched;
        let mode = mode_of(&info.attributes).unwrap_or(FILE_MODE);
        let mtime = mtime_of(&info);
        let path = path.to_owned();
        let local = self.blocking(move |root| root.give_name(temp, &path, over.as_ref(), mode, mtime)).await?;
        let racy = is_racy(local.mtime, local.ctime);
        let (etag, modified) = (info.etag.as_str().to_owned(), Some(millis(info.last_modified)));
        Ok(BaseFile { local, racy, hash, etag, modified, leaving: false })
    }

    async fn fetch(&self, path: &str, file: &RemoteFile) -> TransferResult<Fetched> {
        let key = self.key(path)?;
        let (info, body) = if file.size == 0 {
            (self.store.head(&key).await?, None)
        } else {
            let download = self.store.get(&key, 0..file.size, file.etag.as_ref()).await?;
            (download.info.clone(), Some(download))
        };
        if info.size != file.size || file.etag.as_ref().is_some_and(|etag| *etag != info.etag) {
            return Err(TransferError::Busy);
        }
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
        self.blocking(move |root| root.make_dirs(&parent, DIR_MODE)).await?;
        let is_link = mode_of(&info.attributes).is_some_and(|mode| mode & S_IFMT == S_IFLNK);
        match body {
            Some(download) if is_link && info.size <= LINK_LEN_MAX => self.fetch_link(path, info, download).await,
            body => self.fetch_file(path, info, body).await,
        }
    }

    async fn fetch_link(&self, path: &str, info: ObjectInfo, download: Download) -> TransferResult<Fetched> {
        let target = collect(download, usize::try_from(LINK_LEN_MAX).unwrap_or(usize::MAX)).await?;
        if target.contains(&0) {
            // No link has such a target: it is a file with odd metadata.
            let body = Box::pin(stream::once(async move { Ok(target) }));
            return self.fetch_file(path, info.clone(), Some(Download { info, body })).await;
        }
        let hash = blake3::hash(&target).to_hex().to_string();
        let named = path.to_owned();
        let temp = self.blocking(move |root| root.temp_link(&named, &target)).await?;
        Ok(Fetched { temp, hash, info, is_link: true })
    }

    async fn fetch_file(&self, path: &str, info: ObjectInfo, body: Option<Download>) -> TransferResult<Fetched> {
        let named = path.to_owned();
        let (temp, file) = self.blocking(move |root| root.temp_file(&named)).await?;
        let mut file = tokio::fs::File::from_std(file);
        let mut hasher = blake3::Hasher::new();
        let mut len = 0;
        if let Some(mut download) = body {
            while let Some(chunk) = download.body.next().await {
                let chunk = chunk?;
                hasher.update(&chunk);
                len += chunk.len() as u64;
                file.write_all(&chunk).await?;
            }
        }
        file.flush().await?;
        if len != info.size {
            let message = format!("{len} of {} bytes came", info.size);
            return Err(TransferError::Store(StoreError::Integrity { message }));
        }
        Ok(Fetched { temp, hash: hasher.finalize().to_hex().to_string(), info, is_link: false })
    }

    /// Both sides have something new: equal, or both kept.
    pub(crate) async fn meet(&self, path: &str, local: &Stamp, file: &RemoteFile) -> TransferResult<Met> {
        let fetched = self.fetch(path, file).await?;
        let content = self.read(path).await?;
        let (etag, modified) = (fetched.info.etag.clone(), millis(fetched.info.last_modified));
        let is_local_link = content.stamp.mode & S_IFMT == S_IFLNK;
        if content.hash == fetched.hash && is_local_link == fetched.is_link {
            let Content { stamp, racy, hash, .. } = content;
            let etag = etag.as_str().to_owned();
            let equal = BaseFile { local: stamp, racy, hash, etag, modified: Some(modified), leaving: false };
            self.unanswered().remove(path);
            return Ok(Met { equal: vec![(path.to_owned(), equal)], is_conflict: false, is_upload: false });
        }
        if self.read_only {
            // The bucket's version has the name; what was here before keeps a second one, here only.
            self.set_aside(path, local.mtime / 1_000_000_000).await?;
            let equal = self.settle(path, fetched, None).await?;
            return Ok(Met { equal: vec![(path.to_owned(), equal)], is_conflict: true, is_upload: false });
        }
        let is_ours = self.unanswered().get(path) == Some(&fetched.hash);
        let mut equal = Vec::new();
        if !is_ours {
            equal.extend(self.keep_beside(path, fetched, modified / 1000).await?);
        }
        let stored = self.upload_content(path, content, Some(&etag)).await?;
        equal.push((path.to_owned(), stored));
        Ok(Met { equal, is_conflict: !is_ours, is_upload: true })
    }

    /// Keeps the bucket's version under a second name on both sides, before the local one takes its place.
    ///
    /// The name is made of the version's time, so that a second try after a failure finds what the first one left.
    async fn keep_beside(&self, path: &str, fetched: Fetched, secs: i64) -> TransferResult<Option<(String, BaseFile)>> {
        for secs in secs..secs + CONFLICT_TRY_COUNT {
            let name = conflict_path(path, secs);
            let named = name.clone();
            if self.blocking(move |root| root.is_absent(&named)).await? {
                let kept = self.settle(&name, fetched, None).await?;
                tracing::info!(path, beside = name, "both sides had changed: the bucket's version is kept beside");
                let uploaded = self.upload(&name, None).await?;
                debug_assert_eq!(kept.hash, uploaded.hash);
                return Ok(Some((name, uploaded)));
            }
            let there = match self.read(&name).await {
                Ok(there) => there,
                // Neither a file nor a link.
                Err(TransferError::Busy) => continue,
                Err(error) => return Err(error),
            };
            if there.hash == fetched.hash {
                return match self.upload(&name, None).await {
                    Ok(uploaded) => Ok(Some((name, uploaded))),
                    // It is there already; if it is another, the next round keeps that one too.
                    Err(TransferError::Busy) => Ok(None),
                    Err(error) => Err(error),
                };
            }
        }
        Err(TransferError::Io(io::Error::other("there is no second name left to keep the bucket's version")))
    }

    /// Gives a local file a second name, and its own to something else. Returns the new name.
    pub(crate) async fn set_aside(&self, path: &str, secs: i64) -> TransferResult<String> {
        for secs in secs..secs + CONFLICT_TRY_COUNT {
            let name = conflict_path(path, secs);
            let (from, to) = (path.to_owned(), name.clone());
            if self.blocking(move |root| root.rename(&from, &to)).await? {
                tracing::info!(path, beside = name, "the file gave its name to what is in the bucket");
                return Ok(name);
            }
        }
        Err(TransferError::Io(io::Error::other("there is no second name left for the file")))
    }

    /// Removes a file from the directory, after the bucket has said once more that it has no such object.
    pub(crate) async fn delete_local(&self, path: &str, stamp: Stamp) -> TransferResult<()> {
        match self.store.head(&self.key(path)?).await {
            Err(error) if error.is_not_found() => {}
            Ok(_) => return Err(TransferError::Busy),
            Err(error) => return Err(error.into()),
        }
        let path = path.to_owned();
        self.blocking(move |root| root.remove_file(&path, &stamp)).await
    }

    /// Removes an object, after a last look that there still is no such file.
    pub(crate) async fn delete_remote(&self, path: &str, etag: &ETag) -> TransferResult<()> {
        let named = path.to_owned();
        let is_file = self.blocking(move |root| Ok(root.stamp(&named)?.is_some() || !is_gone(root, &named)?)).await?;
        if is_file {
            return Err(TransferError::Busy);
        }
        self.delete_object(&self.key(path)?, Some(etag)).await
    }

    async fn delete_object(&self, key: &ObjectKey, etag: Option<&ETag>) -> TransferResult<()> {
        if let Some(etag) = etag.filter(|_| !self.store.capabilities().conditional_delete) {
            match self.store.head(key).await {
                Ok(info) if info.etag == *etag => {}
                Ok(_) => return Err(TransferError::Busy),
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.store.delete(key, etag).await?)
    }

    /// Stores the marker of an empty directory.
    pub(crate) async fn put_marker(&self, path: &str) -> TransferResult<()> {
        let key = self.key(&format!("{path}/"))?;
        let named = path.to_owned();
        let mode = self.blocking(move |root| root.dir_mode(&named)).await?;
        let mut attributes =
            ObjectAttributes { content_type: Some("application/x-directory".into()), ..ObjectAttributes::default() };
        attributes.metadata.insert("mode".into(), (S_IFDIR | mode & 0o7777).to_string());
        match self.store.put(&key, PutBody::empty(), &attributes, &Condition::Absent).await {
            Ok(_) | Err(StoreError::Precondition { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the marker of a directory that is gone.
    pub(crate) async fn delete_marker(&self, path: &str, marker: &Marker) -> TransferResult<()> {
        let named = path.to_owned();
        if self.blocking(move |root| root.is_dir(&named)).await? {
            return Err(TransferError::Busy);
        }
        self.delete_object(&self.key(&format!("{path}/"))?, marker.etag.as_ref()).await
    }

    /// Describes the object as it is now.
    pub(crate) async fn head(&self, path: &str) -> TransferResult<ObjectInfo> {
        Ok(self.store.head(&self.key(path)?).await?)
    }
}

/// Whether nothing, or a directory, stands at `path`.
fn is_gone(root: &Root, path: &str) -> RootResult<bool> {
    Ok(root.is_absent(path)? || root.is_dir(path)?)
}

/// The permissions and kind that an object carries: s3fs writes them in decimal, rclone in octal.
fn mode_of(attributes: &ObjectAttributes) -> Option<u32> {
    let text = attributes.metadata.get("mode")?.trim();
    let has_kind = |mode: &u32| *mode <= 0o177_777 && matches!(mode & S_IFMT, S_IFREG | S_IFDIR | S_IFLNK);
    let decimal = text.parse::<u32>().ok();
    let octal = u32::from_str_radix(text.trim_start_matches("0o"), 8).ok();
    decimal
        .filter(has_kind)
        .or_else(|| octal.filter(|mode| has_kind(mode) || *mode <= 0o7777))
        .or_else(|| decimal.filter(|mode| *mode <= 0o7777))
}

/// The permissions of an object, if it carries any.
pub(crate) fn permissions_of(info: &ObjectInfo) -> Option<u32> {
    Some(mode_of(&info.attributes)? & 0o777)
}

/// When the content was written, in nanoseconds since 1970.
fn mtime_of(info: &ObjectInfo) -> i64 {
    info.attributes
        .metadata
        .get("mtime")
        .and_then(|text| nanos_of_text(text))
        .unwrap_or_else(|| info.last_modified.duration_since(UNIX_EPOCH).map_or(0, nanos_of_duration))
}

fn nanos_of_duration(since: Duration) -> i64 {
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn time_text(nanos: i64) -> String {
    if nanos < 0 {
        return (nanos / 1_000_000_000).to_string();
    }
    format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
}

fn nanos_of_text(text: &str) -> Option<i64> {
    let (secs, fraction) = text.trim().split_once('.').unwrap_or((text.trim(), ""));
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    secs.parse::<i64>().ok()?.checked_mul(1_000_000_000)?.checked_add(digits.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_and_times_of_other_tools() {
        for (text, mode) in [
            ("33261", Some(0o100_755)),
            ("41471", Some(0o120_777)),
            ("0100644", Some(0o100_644)),
            ("100755", Some(0o100_755)),
            ("493", Some(0o755)),
            ("x", None),
        ] {
            let mut attributes = ObjectAttributes::default();
            attributes.metadata.insert("mode".into(), text.into());
            assert_eq!(mode_of(&attributes), mode, "{text}");
        }
        for nanos in [0, 1, 1_700_000_000_123_456_789] {
            assert_eq!(nanos_of_text(&time_text(nanos)), Some(nanos));
        }
        assert_eq!(nanos_of_text("12"), Some(12_000_000_000));
        assert_eq!(nanos_of_text("soon"), None);
    }
}
