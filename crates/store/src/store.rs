//! The [`Store`] trait.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;

use crate::{
    Capabilities, Condition, CopySource, ETag, ListPage, ListRequest, ListedPart, ObjectAttributes, ObjectInfo,
    ObjectKey, Part, Proof, PutBody, PutOutcome, StoreError, StoreResult, UploadId, UploadInProgress,
};

/// The bytes of a download, chunk by chunk. An `Err` is the last item.
pub type BodyStream = Pin<Box<dyn Stream<Item = StoreResult<Bytes>> + Send>>;

/// A download that has begun.
pub struct Download {
    /// The version that is read; `size` is that of the whole object.
    pub info: ObjectInfo,
    /// Yields exactly the bytes asked for, or ends with an error.
    pub body: BodyStream,
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download").field("info", &self.info).finish_non_exhaustive()
    }
}

/// One bucket.
///
/// Shared rules: a write is whole or has not happened; what returned `Ok` is durable and seen by
/// the next call; a failed write may still have happened (the answer was lost) unless the error is
/// one of the refusals. Retries of transient failures happen inside.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// What this store can do.
    fn capabilities(&self) -> &Capabilities;

    /// Whether keys are paths of directories here (SeaweedFS): one that ends in `/` is a directory, which is lost as an object if
    /// something below it is stored at the same time.
    fn has_directories(&self) -> bool {
        false
    }

    /// A name for people: `s3://bucket at https://…`. Never holds a credential.
    fn describe(&self) -> String;

    /// Checks whether this store keeps an object under this very key. Asks nobody.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if it would be stored under another key.
    fn check_key(&self, _key: &ObjectKey) -> StoreResult<()> {
        Ok(())
    }

    /// Asks whether the bucket is there and may be listed below `prefix` (keys may be good for one prefix only).
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::Denied`], [`StoreError::Credentials`], [`StoreError::Unreachable`].
    async fn check_bucket(&self, prefix: &str) -> StoreResult<()>;

    /// Describes an object.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if there is none.
    async fn head(&self, key: &ObjectKey) -> StoreResult<ObjectInfo>;

    /// What the store says of the version `etag` of an object besides its tag, where it says something. A store that does
    /// not say has tags that are MD5s.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if there is no such object, [`StoreError::Precondition`] if it is another version.
    async fn proof(&self, key: &ObjectKey, etag: &ETag) -> StoreResult<Proof> {
        let info = self.head(key).await?;
        if info.etag == *etag { Ok(Proof::of_md5_tag(etag)) } else { Err(StoreError::changed(key)) }
    }

    /// The tags of an object, in the form of [`ObjectAttributes::tagging`]; `None` if it has none.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if there is no object; [`StoreError::Denied`].
    async fn tagging(&self, _key: &ObjectKey) -> StoreResult<Option<String>> {
        Ok(None)
    }

    /// Reads `range` (byte offsets, half-open, not empty, `start` inside the object; the end is cut at the object's
    /// length) of the version `etag`, or of the present one.
    ///
    /// # Errors
    /// [`StoreError::Precondition`] if the object no longer has `etag`; [`StoreError::NotFound`] if it is gone;
    /// [`StoreError::Invalid`] if `range` starts at or behind the end.
    async fn get(&self, key: &ObjectKey, range: Range<u64>, etag: Option<&ETag>) -> StoreResult<Download>;

    /// Stores an object whole.
    ///
    /// # Errors
    /// [`StoreError::Precondition`] if `condition` does not hold.
    async fn put(
        &self,
        key: &ObjectKey,
        body: PutBody,
        attributes: &ObjectAttributes,
        condition: &Condition,
    ) -> StoreResult<PutOutcome>;

    /// Copies an object inside the store. With `attributes` they replace the source's, else they are kept; tags are
    /// kept in both cases. Source and target may be the same key if `attributes` are given.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if there is no source; [`StoreError::Precondition`] if the source has another version
    /// or `condition` does not hold of the target (only where [`Capabilities::conditional_put`]; not every provider
    /// has conditions on copies, then it is not checked); [`StoreError::Invalid`] over [`Capabilities::copy_len_max`].
    async fn copy(
        &self,
        source: &CopySource,
        target: &ObjectKey,
        attributes: Option<&ObjectAttributes>,
        condition: &Condition,
    ) -> StoreResult<PutOutcome>;

    /// Removes an object. Removing what is not there succeeds.
    ///
    /// # Errors
    /// [`StoreError::Precondition`] if `etag` is given, the store can check it, and the object has another.
    async fn delete(&self, key: &ObjectKey, etag: Option<&ETag>) -> StoreResult<()>;

    /// Removes many objects (any number; sent in batches). Returns those that could not be removed.
    ///
    /// # Errors
    /// When a whole batch failed.
    async fn delete_many(&self, keys: &[ObjectKey]) -> StoreResult<Vec<(ObjectKey, StoreError)>>;

    /// Lists one page.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::Denied`].
    async fn list(&self, request: &ListRequest) -> StoreResult<ListPage>;

    /// Begins a multipart upload.
    ///
    /// # Errors
    /// As [`Store::put`].
    async fn create_multipart(&self, key: &ObjectKey, attributes: &ObjectAttributes) -> StoreResult<UploadId>;

    /// Uploads part `number` (1 to 10,000); a part of the same number is replaced.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if there is no such upload.
    async fn upload_part(&self, key: &ObjectKey, id: &UploadId, number: u32, body: PutBody) -> StoreResult<Part>;

    /// Makes part `number` from `range` (byte offsets, half-open) of `source`.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] without [`Capabilities::part_copy`]; as [`Store::copy`] for the source.
    async fn upload_part_copy(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        number: u32,
        source: &CopySource,
        range: Range<u64>,
    ) -> StoreResult<Part>;

    /// Makes the parts, in ascending order of number, the object.
    ///
    /// # Errors
    /// [`StoreError::Precondition`] if `condition` does not hold; [`StoreError::Invalid`] if a part is missing, has
    /// another tag or is too small; [`StoreError::NotFound`] if there is no such upload.
    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        parts: &[Part],
        condition: &Condition,
    ) -> StoreResult<PutOutcome>;

    /// Ends an upload and drops its parts. Aborting what is not there succeeds.
    ///
    /// # Errors
    /// When the store could not be asked.
    async fn abort_multipart(&self, key: &ObjectKey, id: &UploadId) -> StoreResult<()>;

    /// Lists uploads in progress whose keys begin with `prefix`, all of them.
    ///
    /// # Errors
    /// When the store could not be asked.
    async fn list_multipart(&self, prefix: &str) -> StoreResult<Vec<UploadInProgress>>;

    /// Lists the parts of an upload in progress, in ascending order of number, all of them.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if there is no such upload; [`StoreError::Unsupported`] if the store cannot tell.
    async fn list_parts(&self, _key: &ObjectKey, _id: &UploadId) -> StoreResult<Vec<ListedPart>> {
        Err(StoreError::Unsupported { what: "list the parts of an upload".into() })
    }
}

/// Gathers a whole download; for small objects.
///
/// # Errors
/// The stream's own, or [`StoreError::Invalid`] if there are more than `len_max` bytes.
pub async fn collect(mut download: Download, len_max: usize) -> StoreResult<Bytes> {
    use futures_util::StreamExt;
    let mut all = bytes::BytesMut::new();
    while let Some(chunk) = download.body.next().await {
        let chunk = chunk?;
        if all.len() + chunk.len() > len_max {
            return Err(StoreError::Invalid { message: format!("object is larger than {len_max} bytes") });
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}
