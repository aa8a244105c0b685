//! A store around a store that is asked before and after each operation.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use sandpail_store::{
    Capabilities, Condition, CopySource, Download, ETag, ListPage, ListRequest, ListedPart, ObjectAttributes,
    ObjectInfo, ObjectKey, Part, PutBody, PutOutcome, Store, StoreError, StoreResult, UploadId, UploadInProgress,
};

/// What stands between a caller and a store.
#[async_trait]
pub(crate) trait Hook: fmt::Debug + Send + Sync + 'static {
    /// Called before the operation; an error keeps it from happening.
    async fn before(&self, operation: &'static str) -> StoreResult<()>;

    /// Called when the operation has happened; an error hides that it did.
    async fn after(&self, operation: &'static str) -> StoreResult<()>;

    /// May change what a download yields.
    fn download(&self, download: Download) -> Download {
        download
    }

    /// Told how many bytes go up.
    fn upload(&self, _len: u64) {}
}

/// A store with a hook.
#[derive(Clone, Debug)]
pub(crate) struct Hooked<H> {
    pub(crate) inner: Arc<dyn Store>,
    pub(crate) hook: Arc<H>,
}

impl<H: Hook> Hooked<H> {
    async fn run<T>(&self, operation: &'static str, work: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
        self.hook.before(operation).await?;
        let result = work.await?;
        self.hook.after(operation).await?;
        Ok(result)
    }
}

#[async_trait]
impl<H: Hook> Store for Hooked<H> {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn has_directories(&self) -> bool {
        self.inner.has_directories()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    async fn check_bucket(&self, prefix: &str) -> StoreResult<()> {
        self.run("check_bucket", self.inner.check_bucket(prefix)).await
    }

    async fn head(&self, key: &ObjectKey) -> StoreResult<ObjectInfo> {
        self.run("head", self.inner.head(key)).await
    }

    async fn get(&self, key: &ObjectKey, range: Range<u64>, etag: Option<&ETag>) -> StoreResult<Download> {
        Ok(self.hook.download(self.run("get", self.inner.get(key, range, etag)).await?))
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: PutBody,
        attributes: &ObjectAttributes,
        condition: &Condition,
    ) -> StoreResult<PutOutcome> {
        self.hook.upload(body.len());
        self.run("put", self.inner.put(key, body, attributes, condition)).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        target: &ObjectKey,
        attributes: Option<&ObjectAttributes>,
        condition: &Condition,
    ) -> StoreResult<PutOutcome> {
        self.run("copy", self.inner.copy(source, target, attributes, condition)).await
    }

    async fn delete(&self, key: &ObjectKey, etag: Option<&ETag>) -> StoreResult<()> {
        self.run("delete", self.inner.delete(key, etag)).await
    }

    async fn delete_many(&self, keys: &[ObjectKey]) -> StoreResult<Vec<(ObjectKey, StoreError)>> {
        self.run("delete_many", self.inner.delete_many(keys)).await
    }

    async fn list(&self, request: &ListRequest) -> StoreResult<ListPage> {
        self.run("list", self.inner.list(request)).await
    }

    async fn create_multipart(&self, key: &ObjectKey, attributes: &ObjectAttributes) -> StoreResult<UploadId> {
        self.run("create_multipart", self.inner.create_multipart(key, attributes)).await
    }

    async fn upload_part(&self, key: &ObjectKey, id: &UploadId, number: u32, body: PutBody) -> StoreResult<Part> {
        self.hook.upload(body.len());
        self.run("upload_part", self.inner.upload_part(key, id, number, body)).await
    }

    async fn upload_part_copy(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        number: u32,
        source: &CopySource,
        range: Range<u64>,
    ) -> StoreResult<Part> {
        self.run("upload_part_copy", self.inner.upload_part_copy(key, id, number, source, range)).await
    }

    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        parts: &[Part],
        condition: &Condition,
    ) -> StoreResult<PutOutcome> {
        self.run("complete_multipart", self.inner.complete_multipart(key, id, parts, condition)).await
    }

    async fn abort_multipart(&self, key: &ObjectKey, id: &UploadId) -> StoreResult<()> {
        self.run("abort_multipart", self.inner.abort_multipart(key, id)).await
    }

    async fn list_multipart(&self, prefix: &str) -> StoreResult<Vec<UploadInProgress>> {
        self.run("list_multipart", self.inner.list_multipart(prefix)).await
    }

    async fn list_parts(&self, key: &ObjectKey, id: &UploadId) -> StoreResult<Vec<ListedPart>> {
        self.run("list_parts", self.inner.list_parts(key, id)).await
    }
}
