//! A bucket in memory: for tests, and as the plainest statement of what a store does.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;

use crate::cursor::{Cursor, PageBuilder, just_after_prefix};
use crate::digest::{TagHasher, multipart_tag};
use crate::{
    Capabilities, Condition, CopySource, Download, ETag, ListPage, ListRequest, ListedObject, ListedPart,
    ObjectAttributes, ObjectInfo, ObjectKey, Part, Proof, PutBody, PutOutcome, Store, StoreError, StoreResult,
    UploadId, UploadInProgress,
};

/// Downloads come in pieces, as from every other store.
const CHUNK_LEN: usize = 256 << 10;

/// A bucket in memory. Clones share it.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    capabilities: Capabilities,
}

impl MemoryStore {
    /// A copy of the bucket as it is now, which goes its own way.
    pub fn snapshot(&self) -> Self {
        Self { state: Arc::new(Mutex::new(self.state().clone())), capabilities: self.capabilities.clone() }
    }

    /// From now on the bucket's clock goes wrong by so many seconds.
    pub fn set_clock_skew(&self, secs: i64) {
        self.state().skew_secs = secs;
    }

    /// From now on copies of objects have the tag that one PUT of the same bytes has, and not that of their source, and objects
    /// that are stored without a type have one, as on AWS.
    pub fn behave_as_aws(&self) {
        self.state().is_like_aws = true;
    }
}

#[derive(Clone, Debug, Default)]
struct State {
    // Ordered by bytes, as `str` is.
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    upload_count: u64,
    skew_secs: i64,
    is_like_aws: bool,
}

#[derive(Clone, Debug)]
struct Object {
    data: Bytes,
    info: ObjectInfo,
}

#[derive(Clone, Debug)]
struct Upload {
    key: ObjectKey,
    attributes: ObjectAttributes,
    initiated: SystemTime,
    parts: BTreeMap<u32, Object>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty bucket that can do everything.
    pub fn new() -> Self {
        Self::with_capabilities(Capabilities::default())
    }

    /// An empty bucket that says it can do `capabilities`. Sizes of parts and `part_copy` are enforced; for tests of
    /// what the engine does with poorer stores.
    pub fn with_capabilities(capabilities: Capabilities) -> Self {
        Self { state: Arc::default(), capabilities }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn object(&self, key: &ObjectKey) -> StoreResult<&Object> {
        self.objects.get(key.as_str()).ok_or_else(|| StoreError::no_object(key))
    }

    fn version(&self, key: &ObjectKey, etag: Option<&ETag>) -> StoreResult<&Object> {
        let object = self.object(key)?;
        match etag {
            Some(etag) if *etag != object.info.etag => Err(StoreError::changed(key)),
            _ => Ok(object),
        }
    }

    fn store(&mut self, key: &ObjectKey, mut object: Object, condition: &Condition) -> StoreResult<PutOutcome> {
        let present = self.objects.get(key.as_str()).map(|object| &object.info.etag);
        let holds = match condition {
            Condition::Always => true,
            Condition::Absent => present.is_none(),
            Condition::Matches(etag) => present == Some(etag),
        };
        if !holds {
            return Err(StoreError::changed(key));
        }
        let ObjectInfo { etag, last_modified, attributes, .. } = &mut object.info;
        if self.is_like_aws {
            attributes.content_type.get_or_insert_with(|| "binary/octet-stream".to_owned());
        }
        let outcome =
            PutOutcome { etag: etag.clone(), last_modified: Some(*last_modified), proof: Proof::of_md5_tag(etag) };
        self.objects.insert(key.as_str().to_owned(), object);
        Ok(outcome)
    }

    /// Milliseconds, as the directory store keeps them.
    fn now(&self) -> SystemTime {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = i64::try_from(since.as_millis()).unwrap_or_default() + self.skew_secs * 1000;
        UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or_default())
    }

    fn upload(&mut self, key: &ObjectKey, id: &UploadId) -> StoreResult<&mut Upload> {
        self.uploads
            .get_mut(&id.0)
            .filter(|upload| upload.key == *key)
            .ok_or_else(|| StoreError::NotFound { what: format!("upload {:?} of {key:?}", id.0) })
    }

    fn add_part(&mut self, key: &ObjectKey, id: &UploadId, number: u32, part: Object) -> StoreResult<Part> {
        if !(1..=10_000).contains(&number) {
            return Err(StoreError::Invalid { message: format!("part number {number} is not between 1 and 10000") });
        }
        let etag = part.info.etag.clone();
        self.upload(key, id)?.parts.insert(number, part);
        Ok(Part { number, etag, checksum: None })
    }
}

fn new_object(data: Bytes, attributes: ObjectAttributes, last_modified: SystemTime) -> Object {
    let mut hasher = TagHasher::default();
    hasher.update(&data);
    let info = ObjectInfo { size: data.len() as u64, etag: hasher.finish(), last_modified, attributes };
    Object { data, info }
}

fn read_body(body: PutBody) -> StoreResult<Bytes> {
    match body {
        PutBody::Chunks(chunks) => Ok(match <[Bytes; 1]>::try_from(chunks) {
            Ok([only]) => only,
            Err(chunks) => chunks.concat().into(),
        }),
        PutBody::File { file, range } => {
            let mut data = vec![0; usize::try_from(range.end - range.start).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut data, range.start)
                .map_err(|source| StoreError::Io { what: "cannot read the upload's file".into(), source })?;
            Ok(data.into())
        }
    }
}

/// The bytes `start..end`; the caller knows that they are there.
fn slice(data: &Bytes, start: u64, end: u64) -> Bytes {
    let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
    data.slice(at(start)..at(end))
}

#[async_trait]
impl Store for MemoryStore {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn describe(&self) -> String {
        "bucket in memory".into()
    }

    async fn check_bucket(&self, _prefix: &str) -> StoreResult<()> {
        Ok(())
    }

    async fn head(&self, key: &ObjectKey) -> StoreResult<ObjectInfo> {
        Ok(self.state().object(key)?.info.clone())
    }

    async fn get(&self, key: &ObjectKey, range: Range<u64>, etag: Option<&ETag>) -> StoreResult<Download> {
        let Object { data, info } = self.state().version(key, etag)?.clone();
        let end = range.end.min(info.size);
        if range.start >= end {
            let message = format!("{key:?} of {} bytes has no byte {}", info.size, range.start);
            return Err(StoreError::Invalid { message });
        }
        let data = slice(&data, range.start, end);
        let body = Box::pin(stream::unfold(data, |mut rest| async move {
            if rest.is_empty() {
                return None;
            }
            let piece = rest.split_to(rest.len().min(CHUNK_LEN));
            Some((Ok(piece), rest))
        }));
        Ok(Download { info, body })
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: PutBody,
        attributes: &ObjectAttributes,
        condition: &Condition,
    ) -> StoreResult<PutOutcome> {
        attributes.check()?;
        let data = read_body(body)?;
        let mut state = self.state();
        let object = new_object(data, attributes.clone(), state.now());
        state.store(key, object, condition)
    }

    async fn copy(
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
        let mut state = self.state();
        let mut object = state.version(&source.key, source.etag.as_ref())?.clone();
        if object.info.size > self.capabilities.copy_len_max {
            return Err(StoreError::Invalid { message: format!("{:?} is too large to copy at once", source.key) });
        }
        if let Some(attributes) = attributes {
            attributes.check()?;
            object.info.attributes = attributes.clone();
        }
        object.info.last_modified = state.now();
        if state.is_like_aws {
            object = new_object(object.data, object.info.attributes, object.info.last_modified);
        }
        state.store(target, object, condition)
    }

    async fn delete(&self, key: &ObjectKey, etag: Option<&ETag>) -> StoreResult<()> {
        let mut state = self.state();
        match state.version(key, etag) {
            Ok(_) => {
                state.objects.remove(key.as_str());
                Ok(())
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn delete_many(&self, keys: &[ObjectKey]) -> StoreResult<Vec<(ObjectKey, StoreError)>> {
        let mut state = self.state();
        for key in keys {
            state.objects.remove(key.as_str());
        }
        Ok(Vec::new())
    }

    async fn list(&self, request: &ListRequest) -> StoreResult<ListPage> {
        let cursor = Cursor::new(request)?;
        let state = self.state();
        let mut page = PageBuilder::new(cursor.limit);
        let mut lower = cursor.lower;
        loop {
            // A bound may be cut inside a character, so keys are compared as bytes.
            let lower_str = String::from_utf8_lossy(&lower);
            let from: &str = match &lower_str {
                std::borrow::Cow::Borrowed(exact) => exact,
                std::borrow::Cow::Owned(_) => return Ok(page.done()),
            };
            let mut after = state.objects.range::<str, _>((Bound::Included(from), Bound::Unbounded));
            let Some((key, object)) = after.next().filter(|(key, _)| key.starts_with(&cursor.prefix)) else {
                return Ok(page.done());
            };
            if page.is_full() {
                return Ok(page.more());
            }
            let rest = &key[cursor.prefix.len()..];
            match rest.find('/').filter(|_| cursor.delimited) {
                Some(slash) => {
                    let prefix = &key[..=cursor.prefix.len() + slash];
                    page.prefix(prefix.to_owned());
                    lower = just_after_prefix(prefix);
                }
                None => {
                    page.object(ListedObject {
                        key: key.clone(),
                        size: object.info.size,
                        etag: Some(object.info.etag.clone()),
                        last_modified: object.info.last_modified,
                        storage_class: object.info.attributes.storage_class.clone(),
                    });
                    lower = [key.as_bytes(), b"\0"].concat();
                }
            }
        }
    }

    async fn create_multipart(&self, key: &ObjectKey, attributes: &ObjectAttributes) -> StoreResult<UploadId> {
        attributes.check()?;
        let mut state = self.state();
        state.upload_count += 1;
        let id = format!("upload-{}", state.upload_count);
        let upload =
            Upload { key: key.clone(), attributes: attributes.clone(), initiated: state.now(), parts: BTreeMap::new() };
        state.uploads.insert(id.clone(), upload);
        Ok(UploadId(id))
    }

    async fn upload_part(&self, key: &ObjectKey, id: &UploadId, number: u32, body: PutBody) -> StoreResult<Part> {
        let data = read_body(body)?;
        let mut state = self.state();
        let part = new_object(data, ObjectAttributes::default(), state.now());
        state.add_part(key, id, number, part)
    }

    async fn upload_part_copy(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        number: u32,
        source: &CopySource,
        range: Range<u64>,
    ) -> StoreResult<Part> {
        if !self.capabilities.part_copy {
            return Err(StoreError::Unsupported { what: "copy a part".into() });
        }
        let mut state = self.state();
        let Object { data, info } = state.version(&source.key, source.etag.as_ref())?;
        if range.is_empty() || range.end > info.size {
            return Err(StoreError::Invalid {
                message: format!("bytes {range:?} are not inside {:?} of {} bytes", source.key, info.size),
            });
        }
        let part = new_object(slice(data, range.start, range.end), ObjectAttributes::default(), state.now());
        state.add_part(key, id, number, part)
    }

    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        parts: &[Part],
        condition: &Condition,
    ) -> StoreResult<PutOutcome> {
        let mut state = self.state();
        let last_modified = state.now();
        let upload = state.upload(key, id)?;
        if parts.is_empty() {
            return Err(StoreError::Invalid { message: "an upload is completed with at least one part".into() });
        }
        if !parts.is_sorted_by(|a, b| a.number < b.number) {
            return Err(StoreError::Invalid { message: "parts are not in ascending order".into() });
        }
        let mut data = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let object = upload.parts.get(&part.number).filter(|object| object.info.etag == part.etag);
            let object = object.ok_or_else(|| StoreError::Invalid {
                message: format!("part {} was not uploaded or has another tag", part.number),
            })?;
            let is_last = index + 1 == parts.len();
            if !is_last && object.info.size < self.capabilities.part_len_min {
                let message = format!("part {} of {} bytes is too small", part.number, object.info.size);
                return Err(StoreError::Invalid { message });
            }
            if self.capabilities.equal_parts && !is_last && object.info.size != first_len(upload, parts) {
                return Err(StoreError::Invalid { message: "all parts but the last must have one length".into() });
            }
            data.extend_from_slice(&object.data);
        }
        let info = ObjectInfo {
            size: data.len() as u64,
            etag: multipart_tag(parts.iter().map(|part| &part.etag))?,
            last_modified,
            attributes: upload.attributes.clone(),
        };
        let outcome = state.store(key, Object { data: data.into(), info }, condition)?;
        state.uploads.remove(&id.0);
        Ok(outcome)
    }

    async fn abort_multipart(&self, key: &ObjectKey, id: &UploadId) -> StoreResult<()> {
        let mut state = self.state();
        if state.upload(key, id).is_ok() {
            state.uploads.remove(&id.0);
        }
        Ok(())
    }

    async fn list_multipart(&self, prefix: &str) -> StoreResult<Vec<UploadInProgress>> {
        let state = self.state();
        let mut uploads: Vec<_> = state
            .uploads
            .iter()
            .filter(|(_, upload)| upload.key.as_str().starts_with(prefix))
            .map(|(id, upload)| UploadInProgress {
                key: upload.key.as_str().to_owned(),
                id: UploadId(id.clone()),
                initiated: upload.initiated,
            })
            .collect();
        uploads.sort_by(|a, b| (&a.key, a.initiated, &a.id.0).cmp(&(&b.key, b.initiated, &b.id.0)));
        Ok(uploads)
    }

    async fn list_parts(&self, key: &ObjectKey, id: &UploadId) -> StoreResult<Vec<ListedPart>> {
        let mut state = self.state();
        let parts = &state.upload(key, id)?.parts;
        Ok(parts
            .iter()
            .map(|(&number, Object { info, .. })| ListedPart {
                number,
                etag: info.etag.clone(),
                size: info.size,
                last_modified: info.last_modified,
            })
            .collect())
    }
}

fn first_len(upload: &Upload, parts: &[Part]) -> u64 {
    parts.first().and_then(|part| upload.parts.get(&part.number)).map_or(0, |object| object.info.size)
}
