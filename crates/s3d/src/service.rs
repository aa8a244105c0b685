//! The S3 operations, one method each.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::Stream;
use http::HeaderMap;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::{self, ETagCondition, StreamingBlob, Timestamp};
use s3s::{S3, S3Error, S3Request, S3Response, S3Result, s3_error};
use sandpail_store::{
    BodyStream, Condition, CopySource, Download, ETag, ListPage, ListRequest, ListedObject, ObjectInfo, ObjectKey,
    Part, Store, StoreError, StoreResult, UploadId, token_after,
};

use crate::BucketMaker;
use crate::body::{self, Announced, Taken};
use crate::convert::{self, describe, described, precondition_failed, refusal};

/// The buckets of a server.
pub(crate) struct Buckets {
    stores: RwLock<BTreeMap<String, Bucket>>,
    maker: Option<BucketMaker>,
}

#[derive(Clone)]
struct Bucket {
    store: Arc<dyn Store>,
    created: SystemTime,
}

impl Buckets {
    pub(crate) fn new(stores: BTreeMap<String, Arc<dyn Store>>, maker: Option<BucketMaker>) -> Self {
        let created = SystemTime::now();
        let stores = stores.into_iter().map(|(name, store)| (name, Bucket { store, created })).collect();
        Self { stores: RwLock::new(stores), maker }
    }

    /// Serves one more store, or another one under a name that is taken.
    pub(crate) fn insert(&self, name: String, store: Arc<dyn Store>) {
        let mut stores = self.stores.write().unwrap_or_else(PoisonError::into_inner);
        stores.insert(name, Bucket { store, created: SystemTime::now() });
    }

    fn get(&self, name: &str) -> S3Result<Arc<dyn Store>> {
        let stores = self.stores.read().unwrap_or_else(PoisonError::into_inner);
        let bucket = stores.get(name);
        bucket
            .map(|bucket| Arc::clone(&bucket.store))
            .ok_or_else(|| s3_error!(NoSuchBucket, "The specified bucket does not exist"))
    }
}

/// Serves stores by the words of S3.
pub(crate) struct Service {
    buckets: Arc<Buckets>,
    spool_directory: PathBuf,
}

impl Service {
    pub(crate) fn new(buckets: Arc<Buckets>, spool_directory: PathBuf) -> Self {
        Self { buckets, spool_directory }
    }

    async fn take_body(
        &self,
        body: Option<StreamingBlob>,
        headers: &HeaderMap,
        trailers: Option<s3s::TrailingHeaders>,
    ) -> S3Result<Taken> {
        body::take(body, Announced::from_headers(headers)?, trailers, &self.spool_directory).await
    }

    /// Reads an object of another bucket as the body of an upload.
    async fn take_download(
        &self,
        store: &dyn Store,
        key: &ObjectKey,
        range: Range<u64>,
        etag: &ETag,
    ) -> S3Result<Taken> {
        let stream =
            if range.is_empty() { None } else { Some(store.get(key, range, Some(etag)).await.map_err(refusal)?.body) };
        body::take(stream, Announced::default(), None, &self.spool_directory).await
    }
}

/// `Store` streams can be sent to other threads but not shared; S3 wants both. No one shares them.
struct SyncStream(Mutex<BodyStream>);

impl Stream for SyncStream {
    type Item = StoreResult<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut().poll_next(cx)
    }
}

fn blob(body: BodyStream) -> StreamingBlob {
    StreamingBlob::wrap(SyncStream(Mutex::new(body)))
}

/// What a reader demands of the version it gets.
#[derive(Default)]
struct ReadConditions {
    if_match: Option<ETagCondition>,
    if_none_match: Option<ETagCondition>,
    if_modified_since: Option<Timestamp>,
    if_unmodified_since: Option<Timestamp>,
}

enum Verdict {
    Holds,
    Failed,
    NotModified,
}

impl ReadConditions {
    fn judge(&self, info: &ObjectInfo) -> Verdict {
        let modified = convert::timestamp(info.last_modified);
        let is = |condition: &ETagCondition| match condition {
            ETagCondition::Any => true,
            ETagCondition::ETag(etag) => etag.value() == info.etag.as_str(),
        };
        // RFC 9110: tags go before times.
        match &self.if_match {
            Some(tag) if !is(tag) => return Verdict::Failed,
            None if self.if_unmodified_since.as_ref().is_some_and(|since| modified > *since) => return Verdict::Failed,
            _ => {}
        }
        match &self.if_none_match {
            Some(tag) if is(tag) => Verdict::NotModified,
            None if self.if_modified_since.as_ref().is_some_and(|since| modified <= *since) => Verdict::NotModified,
            _ => Verdict::Holds,
        }
    }

    fn check_read(&self, info: &ObjectInfo) -> S3Result<()> {
        match self.judge(info) {
            Verdict::Holds => Ok(()),
            Verdict::Failed => Err(precondition_failed()),
            Verdict::NotModified => {
                let mut refusal = s3_error!(NotModified, "Not Modified");
                let mut headers = HeaderMap::new();
                if let Ok(etag) = format!("\"{}\"", info.etag.as_str()).parse() {
                    headers.insert(http::header::ETAG, etag);
                }
                refusal.set_headers(headers);
                refusal.set_status_code(http::StatusCode::NOT_MODIFIED);
                Err(refusal)
            }
        }
    }

    /// For the source of a copy there is no 304.
    fn check_copy(&self, info: &ObjectInfo) -> S3Result<()> {
        match self.judge(info) {
            Verdict::Holds => Ok(()),
            Verdict::Failed | Verdict::NotModified => Err(precondition_failed()),
        }
    }
}

/// An opened object: what it is, which bytes come, and the bytes if there are any.
struct Opened {
    info: ObjectInfo,
    range: Range<u64>,
    body: Option<BodyStream>,
}

fn invalid_range() -> S3Error {
    s3_error!(InvalidRange, "The requested range is not satisfiable")
}

/// Resolves a range header against a length.
fn resolve(range: Option<&dto::Range>, size: u64) -> S3Result<Range<u64>> {
    let range = match range {
        None => return Ok(0..size),
        Some(dto::Range::Int { first, last }) => *first..last.map_or(size, |last| last.saturating_add(1)).min(size),
        Some(dto::Range::Suffix { length }) => size.saturating_sub(*length)..size,
    };
    if range.is_empty() { Err(invalid_range()) } else { Ok(range) }
}

async fn open(store: &dyn Store, key: &ObjectKey, wanted: Option<&dto::Range>) -> S3Result<Opened> {
    let guess = match wanted {
        None => Some(0..u64::MAX),
        Some(dto::Range::Int { first, last }) => Some(*first..last.map_or(u64::MAX, |last| last.saturating_add(1))),
        Some(dto::Range::Suffix { .. }) => None,
    };
    if let Some(guess) = guess.filter(|guess| !guess.is_empty()) {
        match store.get(key, guess, None).await {
            Ok(Download { info, body }) => {
                let range = resolve(wanted, info.size)?;
                return Ok(Opened { info, range, body: Some(body) });
            }
            // Empty, or shorter than the range asks.
            Err(StoreError::Invalid { .. }) => {}
            Err(error) => return Err(refusal(error)),
        }
    }
    loop {
        let info = store.head(key).await.map_err(refusal)?;
        let range = resolve(wanted, info.size)?;
        if range.is_empty() {
            return Ok(Opened { info, range, body: None });
        }
        match store.get(key, range.clone(), Some(&info.etag)).await {
            Ok(Download { info, body }) => return Ok(Opened { info, range, body: Some(body) }),
            // Replaced between the two: begin again.
            Err(StoreError::Precondition { .. } | StoreError::Invalid { .. }) => {}
            Err(error) => return Err(refusal(error)),
        }
    }
}

/// What a writer demands of the object that is there.
async fn write_condition(
    store: &dyn Store,
    key: &ObjectKey,
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> S3Result<Condition> {
    match (if_match, if_none_match) {
        (None, None) => Ok(Condition::Always),
        (None, Some(ETagCondition::Any)) => Ok(Condition::Absent),
        (Some(ETagCondition::ETag(etag)), None) => Ok(Condition::Matches(ETag::new(etag.value()))),
        // "There is one", whichever.
        (Some(ETagCondition::Any), None) => match store.head(key).await {
            Ok(info) => Ok(Condition::Matches(info.etag)),
            Err(error) if error.is_not_found() => Err(precondition_failed()),
            Err(error) => Err(refusal(error)),
        },
        _ => Err(s3_error!(NotImplemented, "This combination of conditions is not supported")),
    }
}

fn refuse_encryption(sse: Option<&dto::ServerSideEncryption>, customer_key: Option<&String>) -> S3Result<()> {
    if sse.is_some() || customer_key.is_some() {
        return Err(s3_error!(NotImplemented, "This server does not encrypt objects"));
    }
    Ok(())
}

fn number(number: i32) -> S3Result<u32> {
    u32::try_from(number)
        .ok()
        .filter(|number| (1..=10_000).contains(number))
        .ok_or_else(|| s3_error!(InvalidArgument, "Part number must be an integer between 1 and 10000, inclusive"))
}

/// `encoding-type=url`: as S3 does it, `/` and the unreserved characters stay.
const URL_ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/').remove(b'*');

#[derive(Clone, Copy)]
struct Spelling {
    url: bool,
}

impl Spelling {
    fn new(encoding: Option<&dto::EncodingType>) -> S3Result<Self> {
        match encoding.map(dto::EncodingType::as_str) {
            None => Ok(Self { url: false }),
            Some("url") => Ok(Self { url: true }),
            Some(_) => Err(s3_error!(InvalidArgument, "Invalid Encoding Method specified in Request")),
        }
    }

    fn spell(self, text: &str) -> String {
        if self.url { utf8_percent_encode(text, URL_ENCODED).to_string() } else { text.to_owned() }
    }

    fn spell_opt(self, text: Option<&String>) -> Option<String> {
        text.map(|text| self.spell(text))
    }

    fn objects(self, objects: Vec<ListedObject>) -> Vec<dto::Object> {
        let object = |object: ListedObject| dto::Object {
            key: Some(self.spell(&object.key)),
            size: Some(convert::len(object.size)),
            e_tag: object.etag.as_ref().map(convert::etag),
            last_modified: Some(convert::timestamp(object.last_modified)),
            storage_class: Some(object.storage_class.unwrap_or_else(|| "STANDARD".into()).into()),
            ..dto::Object::default()
        };
        objects.into_iter().map(object).collect()
    }

    fn prefixes(self, prefixes: Vec<String>) -> Vec<dto::CommonPrefix> {
        prefixes.into_iter().map(|prefix| dto::CommonPrefix { prefix: Some(self.spell(&prefix)) }).collect()
    }
}

/// One page of a listing as a client asked for it.
async fn list_page(
    store: &dyn Store,
    prefix: Option<&String>,
    delimiter: Option<&String>,
    start_after: Option<String>,
    continuation: Option<String>,
    max_keys: i32,
) -> S3Result<ListPage> {
    if max_keys < 0 {
        return Err(s3_error!(InvalidArgument, "Argument maxKeys must be an integer between 0 and 2147483647"));
    }
    let max_keys = u16::try_from(max_keys.min(1000)).unwrap_or(1000);
    if max_keys == 0 {
        // Zero means "as many as there may be" to the store.
        return Ok(ListPage::default());
    }
    let prefix = prefix.cloned().unwrap_or_default();
    let delimiter = delimiter.map(String::as_str).filter(|delimiter| !delimiter.is_empty());
    let request = ListRequest { prefix, delimited: delimiter == Some("/"), start_after, continuation, max_keys };
    match delimiter {
        None | Some("/") => store.list(&request).await.map_err(refusal),
        Some(other) => roll_up(store, request, other).await.map_err(refusal),
    }
}

/// Rolls keys up at a delimiter that the store does not know, by reading them all.
async fn roll_up(store: &dyn Store, mut request: ListRequest, delimiter: &str) -> StoreResult<ListPage> {
    let limit = usize::from(std::mem::replace(&mut request.max_keys, 0));
    let mut rolled = ListPage::default();
    let mut last = String::new();
    // A rolled-up prefix continues with a token of ours: the prefix itself, as no store's token looks.
    let skipped = request.continuation.take_if(|token| token.starts_with("rolled:"));
    let skipped = skipped.map(|token| token["rolled:".len()..].to_owned());
    request.start_after = request.start_after.max(skipped.clone());
    loop {
        let page = store.list(&request).await?;
        for object in page.objects {
            let rest = &object.key[request.prefix.len()..];
            let group =
                rest.find(delimiter).map(|at| object.key[..request.prefix.len() + at + delimiter.len()].to_owned());
            if let Some(group) = &group
                && (rolled.prefixes.last() == Some(group) || skipped.as_ref() == Some(group))
            {
                continue;
            }
            if rolled.objects.len() + rolled.prefixes.len() == limit {
                rolled.next = Some(last);
                return Ok(rolled);
            }
            match group {
                Some(group) => {
                    last = format!("rolled:{group}");
                    rolled.prefixes.push(group);
                }
                None => {
                    last = token_after(&object.key, false);
                    rolled.objects.push(object);
                }
            }
        }
        match page.next {
            Some(next) => request.continuation = Some(next),
            None => return Ok(rolled),
        }
    }
}

fn page_len(page: &ListPage) -> i32 {
    i32::try_from(page.objects.len() + page.prefixes.len()).unwrap_or(i32::MAX)
}

type Answer<T> = S3Result<S3Response<T>>;

fn answer<T>(output: T) -> Answer<T> {
    Ok(S3Response::new(output))
}

#[async_trait::async_trait]
impl S3 for Service {
    async fn list_buckets(&self, _: S3Request<dto::ListBucketsInput>) -> Answer<dto::ListBucketsOutput> {
        let stores = self.buckets.stores.read().unwrap_or_else(PoisonError::into_inner);
        let buckets = stores
            .iter()
            .map(|(name, bucket)| dto::Bucket {
                name: Some(name.clone()),
                creation_date: Some(convert::timestamp(bucket.created)),
                ..dto::Bucket::default()
            })
            .collect();
        let owner = dto::Owner { display_name: Some("sandpail".into()), id: Some("sandpail".into()) };
        answer(dto::ListBucketsOutput { buckets: Some(buckets), owner: Some(owner), ..Default::default() })
    }

    async fn create_bucket(&self, req: S3Request<dto::CreateBucketInput>) -> Answer<dto::CreateBucketOutput> {
        let name = req.input.bucket;
        let mut stores = self.buckets.stores.write().unwrap_or_else(PoisonError::into_inner);
        if stores.contains_key(&name) {
            return Err(s3_error!(
                BucketAlreadyOwnedByYou,
                "Your previous request to create the named bucket succeeded"
            ));
        }
        let Some(maker) = &self.buckets.maker else {
            return Err(s3_error!(AccessDenied, "This server's buckets are given when it is started"));
        };
        let store = maker(&name).map_err(refusal)?;
        let location = Some(format!("/{name}"));
        stores.insert(name, Bucket { store, created: SystemTime::now() });
        answer(dto::CreateBucketOutput { location })
    }

    async fn delete_bucket(&self, req: S3Request<dto::DeleteBucketInput>) -> Answer<dto::DeleteBucketOutput> {
        self.buckets.get(&req.input.bucket)?;
        Err(s3_error!(AccessDenied, "This server's buckets are given when it is started"))
    }

    async fn head_bucket(&self, req: S3Request<dto::HeadBucketInput>) -> Answer<dto::HeadBucketOutput> {
        self.buckets.get(&req.input.bucket)?.check_bucket("").await.map_err(refusal)?;
        answer(dto::HeadBucketOutput { bucket_region: Some("us-east-1".into()), ..Default::default() })
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<dto::GetBucketLocationInput>,
    ) -> Answer<dto::GetBucketLocationOutput> {
        self.buckets.get(&req.input.bucket)?;
        answer(dto::GetBucketLocationOutput::default())
    }

    async fn get_bucket_versioning(
        &self,
        req: S3Request<dto::GetBucketVersioningInput>,
    ) -> Answer<dto::GetBucketVersioningOutput> {
        self.buckets.get(&req.input.bucket)?;
        answer(dto::GetBucketVersioningOutput::default())
    }

    async fn get_object_tagging(
        &self,
        req: S3Request<dto::GetObjectTaggingInput>,
    ) -> Answer<dto::GetObjectTaggingOutput> {
        let store = self.buckets.get(&req.input.bucket)?;
        store.head(&convert::key(&req.input.key)?).await.map_err(refusal)?;
        answer(dto::GetObjectTaggingOutput { tag_set: Vec::new(), version_id: None })
    }

    async fn head_object(&self, req: S3Request<dto::HeadObjectInput>) -> Answer<dto::HeadObjectOutput> {
        let input = req.input;
        let store = self.buckets.get(&input.bucket)?;
        let info = store.head(&convert::key(&input.key)?).await.map_err(refusal)?;
        let conditions = ReadConditions {
            if_match: input.if_match,
            if_none_match: input.if_none_match,
            if_modified_since: input.if_modified_since,
            if_unmodified_since: input.if_unmodified_since,
        };
        conditions.check_read(&info)?;
        let range = resolve(input.range.as_ref(), info.size)?;
        let mut output = dto::HeadObjectOutput::default();
        describe!(output, info);
        output.content_length = Some(convert::len(range.end - range.start));
        answer(output)
    }

    async fn get_object(&self, req: S3Request<dto::GetObjectInput>) -> Answer<dto::GetObjectOutput> {
        let input = req.input;
        let store = self.buckets.get(&input.bucket)?;
        let key = convert::key(&input.key)?;
        if input.part_number.is_some_and(|number| number != 1) {
            return Err(invalid_range());
        }
        let opened = open(&*store, &key, input.range.as_ref()).await?;
        let conditions = ReadConditions {
            if_match: input.if_match,
            if_none_match: input.if_none_match,
            if_modified_since: input.if_modified_since,
            if_unmodified_since: input.if_unmodified_since,
        };
        conditions.check_read(&opened.info)?;
        let (info, range) = (opened.info, opened.range);
        let mut output = dto::GetObjectOutput::default();
        describe!(output, info);
        output.content_length = Some(convert::len(range.end - range.start));
        if input.range.is_some() {
            output.content_range = Some(format!("bytes {}-{}/{}", range.start, range.end - 1, info.size));
        }
        output.body = opened.body.map(blob);
        answer(output)
    }

    async fn put_object(&self, mut req: S3Request<dto::PutObjectInput>) -> Answer<dto::PutObjectOutput> {
        let input = &mut req.input;
        let store = self.buckets.get(&input.bucket)?;
        let key = convert::key(&input.key)?;
        refuse_encryption(input.server_side_encryption.as_ref(), input.sse_customer_key.as_ref())?;
        if input.tagging.is_some() {
            return Err(s3_error!(NotImplemented, "This server does not keep tags"));
        }
        let attributes = described!(input).attributes()?;
        let condition = write_condition(&*store, &key, input.if_match.as_ref(), input.if_none_match.as_ref()).await?;
        let Taken { body, sums } = self.take_body(input.body.take(), &req.headers, req.trailing_headers).await?;
        let size = convert::len(body.len());
        let outcome = store.put(&key, body, &attributes, &condition).await.map_err(refusal)?;
        answer(dto::PutObjectOutput {
            e_tag: Some(convert::etag(&outcome.etag)),
            checksum_crc32: sums.checksum_crc32,
            checksum_crc32c: sums.checksum_crc32c,
            checksum_crc64nvme: sums.checksum_crc64nvme,
            checksum_sha1: sums.checksum_sha1,
            checksum_sha256: sums.checksum_sha256,
            size: Some(size),
            ..Default::default()
        })
    }

    async fn copy_object(&self, mut req: S3Request<dto::CopyObjectInput>) -> Answer<dto::CopyObjectOutput> {
        let input = &mut req.input;
        refuse_encryption(input.server_side_encryption.as_ref(), input.sse_customer_key.as_ref())?;
        let target_store = self.buckets.get(&input.bucket)?;
        let target = convert::key(&input.key)?;
        let (source_bucket, source_key) = copy_source(&input.copy_source)?;
        let source_store = self.buckets.get(&source_bucket)?;
        let replaces = match input.metadata_directive.as_ref().map(dto::MetadataDirective::as_str) {
            None | Some("COPY") => false,
            Some("REPLACE") => true,
            Some(_) => return Err(s3_error!(InvalidArgument, "Unknown metadata directive.")),
        };
        let info = source_store.head(&source_key).await.map_err(refusal)?;
        let conditions = ReadConditions {
            if_match: input.copy_source_if_match.take(),
            if_none_match: input.copy_source_if_none_match.take(),
            if_modified_since: input.copy_source_if_modified_since.take(),
            if_unmodified_since: input.copy_source_if_unmodified_since.take(),
        };
        conditions.check_copy(&info)?;
        let same_bucket = source_bucket == *input.bucket;
        let attributes = if replaces {
            Some(described!(input).attributes()?)
        } else if let Some(class) = input.storage_class.take() {
            let mut attributes = info.attributes.clone();
            attributes.storage_class = Some(class.as_str().to_owned()).filter(|class| class != "STANDARD");
            Some(attributes)
        } else if same_bucket && source_key == target {
            return Err(s3_error!(
                InvalidRequest,
                "This copy request is illegal because it is trying to copy an object to itself without changing the \
                 object's metadata, storage class, website redirect location or encryption attributes."
            ));
        } else {
            None
        };
        let condition = copy_condition(&*target_store, &target, &req.headers).await?;
        let outcome = if same_bucket {
            let source = CopySource { key: source_key, etag: Some(info.etag) };
            target_store.copy(&source, &target, attributes.as_ref(), &condition).await
        } else {
            let taken = self.take_download(&*source_store, &source_key, 0..info.size, &info.etag).await?;
            let attributes = attributes.unwrap_or(info.attributes);
            target_store.put(&target, taken.body, &attributes, &condition).await
        };
        let outcome = outcome.map_err(refusal)?;
        let result = dto::CopyObjectResult {
            e_tag: Some(convert::etag(&outcome.etag)),
            last_modified: Some(convert::timestamp(outcome.last_modified.unwrap_or_else(SystemTime::now))),
            ..Default::default()
        };
        answer(dto::CopyObjectOutput { copy_object_result: Some(result), ..Default::default() })
    }

    async fn delete_object(&self, req: S3Request<dto::DeleteObjectInput>) -> Answer<dto::DeleteObjectOutput> {
        let input = req.input;
        let store = self.buckets.get(&input.bucket)?;
        let key = convert::key(&input.key)?;
        let etag = match &input.if_match {
            Some(ETagCondition::ETag(etag)) => Some(ETag::new(etag.value())),
            Some(ETagCondition::Any) | None => None,
        };
        store.delete(&key, etag.as_ref()).await.map_err(refusal)?;
        answer(dto::DeleteObjectOutput::default())
    }

    async fn delete_objects(&self, req: S3Request<dto::DeleteObjectsInput>) -> Answer<dto::DeleteObjectsOutput> {
        let input = req.input;
        let store = self.buckets.get(&input.bucket)?;
        let objects = input.delete.objects;
        if objects.is_empty() || objects.len() > 1000 {
            return Err(s3_error!(MalformedXML, "A request removes 1 to 1000 objects"));
        }
        let mut failed: Vec<(String, S3Error)> = Vec::new();
        let mut keys = Vec::with_capacity(objects.len());
        for object in objects {
            match (convert::key(&object.key), &object.e_tag) {
                (Ok(key), None) => keys.push(key),
                (Ok(key), Some(etag)) => match store.delete(&key, Some(&ETag::new(etag.value()))).await {
                    // Removing it once more does nothing, and reports it.
                    Ok(()) => keys.push(key),
                    Err(error) => failed.push((object.key, refusal(error))),
                },
                (Err(error), _) => failed.push((object.key, error)),
            }
        }
        let removed = store.delete_many(&keys).await.map_err(refusal)?;
        failed.extend(removed.into_iter().map(|(key, error)| (key.as_str().to_owned(), refusal(error))));
        let deleted = if input.delete.quiet == Some(true) {
            Vec::new()
        } else {
            keys.iter()
                .filter(|key| !failed.iter().any(|(failed, _)| failed == key.as_str()))
                .map(|key| dto::DeletedObject { key: Some(key.as_str().to_owned()), ..Default::default() })
                .collect()
        };
        let errors = failed
            .into_iter()
            .map(|(key, error)| dto::Error {
                key: Some(key),
                code: Some(error.code().as_str().to_owned()),
                message: error.message().map(str::to_owned),
                version_id: None,
            })
            .collect();
        answer(dto::DeleteObjectsOutput { deleted: Some(deleted), errors: Some(errors), ..Default::default() })
    }

    async fn list_objects_v2(&self, req: S3Request<dto::ListObjectsV2Input>) -> Answer<dto::ListObjectsV2Output> {
        let input = req.input;
        let store = self.buckets.get(&input.bucket)?;
        let spelling = Spelling::new(input.encoding_type.as_ref())?;
        let max_keys = input.max_keys.unwrap_or(1000);
        let page = list_page(
            &*store,
            input.prefix.as_ref(),
            input.delimiter.as_ref(),
            input.start_after.clone(),
            input.continuation_token.clone(),
            max_keys,
        )
        .await?;
        answer(dto::ListObjectsV2Output {
            key_count: Some(page_len(&page)),
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next,
            contents: Some(spelling.objects(page.objects)),
            common_prefixes: Some(spelling.prefixes(page.prefixes)),
            name: Some(input.bucket),
            prefix: Some(spelling.spell(input.prefix.as_deref().unwrap_or_default())),
            delimiter: spelling.spell_opt(input.delimiter.as_ref()),
            start_after: spelling.spell_opt(input.start_after.as_ref()),
            continuation_token: input.continuation_token,
            max_keys: Some(max_keys.min(1000)),
            encoding_type: input.encoding_type,
            ..Default::default()
        })
    }

    async fn list_objects(&self, req: S3Request<dto::ListObjectsInput>) -> Answer<dto::ListObjectsOutput> {
        let input = req.input;
        let store = self.buckets.get(&input.bucket)?;
        let spelling = Spelling::new(input.encoding_type.as_ref())?;
        let max_keys = input.max_keys.unwrap_or(1000);
        let delimited = input.delimiter.as_deref() == Some("/");
        let marker = input.marker.clone().filter(|marker| !marker.is_empty());
        // A marker that is a rolled-up prefix means "behind all of it".
        let rolled = marker.as_ref().is_some_and(|marker| {
            let prefix = input.prefix.as_deref().unwrap_or_default();
            delimited && marker.strip_prefix(prefix).is_some_and(|rest| rest.find('/') == rest.len().checked_sub(1))
        });
        let (start_after, continuation) = match marker {
            Some(marker) if rolled => (None, Some(token_after(&marker, true))),
            Some(marker) if input.delimiter.as_ref().is_some_and(|delimiter| !delimiter.is_empty()) && !delimited => {
                (None, Some(format!("rolled:{marker}")))
            }
            marker => (marker, None),
        };
        let page =
            list_page(&*store, input.prefix.as_ref(), input.delimiter.as_ref(), start_after, continuation, max_keys)
                .await?;
        let last_key = page.objects.last().map(|object| &object.key);
        let last = last_key.max(page.prefixes.last()).map(|last| spelling.spell(last));
        answer(dto::ListObjectsOutput {
            is_truncated: Some(page.next.is_some()),
            next_marker: page.next.is_some().then_some(last).flatten(),
            contents: Some(spelling.objects(page.objects)),
            common_prefixes: Some(spelling.prefixes(page.prefixes)),
            name: Some(input.bucket),
            prefix: Some(spelling.spell(input.prefix.as_deref().unwrap_or_default())),
            delimiter: spelling.spell_opt(input.delimiter.as_ref()),
            marker: Some(spelling.spell(input.marker.as_deref().unwrap_or_default())),
            max_keys: Some(max_keys.min(1000)),
            encoding_type: input.encoding_type,
            ..Default::default()
        })
    }

    async fn create_multipart_upload(
        &self,
        mut req: S3Request<dto::CreateMultipartUploadInput>,
    ) -> Answer<dto::CreateMultipartUploadOutput> {
        let input = &mut req.input;
        let store = self.buckets.get(&input.bucket)?;
        let key = convert::key(&input.key)?;
        refuse_encryption(input.server_side_encryption.as_ref(), input.sse_customer_key.as_ref())?;
        if input.tagging.is_some() {
            return Err(s3_error!(NotImplemented, "This server does not keep tags"));
        }
        let attributes = described!(input).attributes()?;
        let id = store.create_multipart(&key, &attributes).await.map_err(refusal)?;
        answer(dto::CreateMultipartUploadOutput {
            bucket: Some(req.input.bucket),
            key: Some(req.input.key),
            upload_id: Some(id.0),
            checksum_algorithm: req.input.checksum_algorithm,
            checksum_type: req.input.checksum_type,
            ..Default::default()
        })
    }

    async fn upload_part(&self, mut req: S3Request<dto::UploadPartInput>) -> Answer<dto::UploadPartOutput> {
        let input = &mut req.input;
        let store = self.buckets.get(&input.bucket)?;
        let key = convert::key(&input.key)?;
        refuse_encryption(None, input.sse_customer_key.as_ref())?;
        let number = number(input.part_number)?;
        let id = UploadId(std::mem::take(&mut input.upload_id));
        let Taken { body, sums } = self.take_body(input.body.take(), &req.headers, req.trailing_headers).await?;
        let part = store.upload_part(&key, &id, number, body).await.map_err(refusal)?;
        answer(dto::UploadPartOutput {
            e_tag: Some(convert::etag(&part.etag)),
            checksum_crc32: sums.checksum_crc32,
            checksum_crc32c: sums.checksum_crc32c,
            checksum_crc64nvme: sums.checksum_crc64nvme,
            checksum_sha1: sums.checksum_sha1,
            checksum_sha256: sums.checksum_sha256,
            ..Default::default()
        })
    }

    async fn upload_part_copy(&self, req: S3Request<dto::UploadPartCopyInput>) -> Answer<dto::UploadPartCopyOutput> {
        let input = req.input;
        let store = self.buckets.get(&input.bucket)?;
        let key = convert::key(&input.key)?;
        let number = number(input.part_number)?;
        let id = UploadId(input.upload_id);
        let (source_bucket, source_key) = copy_source(&input.copy_source)?;
        let source_store = self.buckets.get(&source_bucket)?;
        let info = source_store.head(&source_key).await.map_err(refusal)?;
        let conditions = ReadConditions {
            if_match: input.copy_source_if_match,
            if_none_match: input.copy_source_if_none_match,
            if_modified_since: input.copy_source_if_modified_since,
            if_unmodified_since: input.copy_source_if_unmodified_since,
        };
        conditions.check_copy(&info)?;
        let range = match &input.copy_source_range {
            None => 0..info.size,
            Some(range) => part_range(range, info.size)?,
        };
        let part = if source_bucket == input.bucket && !range.is_empty() {
            let source = CopySource { key: source_key, etag: Some(info.etag) };
            store.upload_part_copy(&key, &id, number, &source, range).await
        } else {
            let taken = self.take_download(&*source_store, &source_key, range, &info.etag).await?;
            store.upload_part(&key, &id, number, taken.body).await
        };
        let part = part.map_err(refusal)?;
        let result = dto::CopyPartResult {
            e_tag: Some(convert::etag(&part.etag)),
            last_modified: Some(convert::timestamp(SystemTime::now())),
            ..Default::default()
        };
        answer(dto::UploadPartCopyOutput { copy_part_result: Some(result), ..Default::default() })
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<dto::CompleteMultipartUploadInput>,
    ) -> Answer<dto::CompleteMultipartUploadOutput> {
        let input = req.input;
        let store = self.buckets.get(&input.bucket)?;
        let key = convert::key(&input.key)?;
        let id = UploadId(input.upload_id);
        let mut parts = Vec::new();
        for part in input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default() {
            let (Some(part_number), Some(etag)) = (part.part_number, part.e_tag) else {
                return Err(s3_error!(MalformedXML, "A part has no number or no ETag"));
            };
            parts.push(Part { number: number(part_number)?, etag: ETag::new(etag.value()), checksum: None });
        }
        if parts.is_empty() {
            return Err(s3_error!(MalformedXML, "The upload is completed with at least one part"));
        }
        if !parts.is_sorted_by(|a, b| a.number < b.number) {
            return Err(s3_error!(InvalidPartOrder, "The list of parts was not in ascending order."));
        }
        let condition = write_condition(&*store, &key, input.if_match.as_ref(), input.if_none_match.as_ref()).await?;
        let outcome = match store.complete_multipart(&key, &id, &parts, &condition).await {
            Ok(outcome) => outcome,
            Err(StoreError::Invalid { message }) => {
                return Err(invalid_parts(&*store, &key, &id, &parts, message).await);
            }
            Err(error) => return Err(refusal(error)),
        };
        answer(dto::CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, input.key)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(convert::etag(&outcome.etag)),
            ..Default::default()
        })
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<dto::AbortMultipartUploadInput>,
    ) -> Answer<dto::AbortMultipartUploadOutput> {
        let store = self.buckets.get(&req.input.bucket)?;
        let key = convert::key(&req.input.key)?;
        store.abort_multipart(&key, &UploadId(req.input.upload_id)).await.map_err(refusal)?;
        answer(dto::AbortMultipartUploadOutput::default())
    }

    async fn list_parts(&self, req: S3Request<dto::ListPartsInput>) -> Answer<dto::ListPartsOutput> {
        let input = req.input;
        let store = self.buckets.get(&input.bucket)?;
        let key = convert::key(&input.key)?;
        let id = UploadId(input.upload_id);
        let parts = store.list_parts(&key, &id).await.map_err(refusal)?;
        let limit = usize::try_from(input.max_parts.unwrap_or(1000)).unwrap_or(0).min(1000);
        let marker = input.part_number_marker.and_then(|marker| u32::try_from(marker).ok()).unwrap_or(0);
        let mut parts = parts.into_iter().filter(|part| part.number > marker);
        let page: Vec<_> = parts
            .by_ref()
            .take(limit)
            .map(|part| dto::Part {
                part_number: i32::try_from(part.number).ok(),
                e_tag: Some(convert::etag(&part.etag)),
                size: Some(convert::len(part.size)),
                last_modified: Some(convert::timestamp(part.last_modified)),
                ..Default::default()
            })
            .collect();
        answer(dto::ListPartsOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id.0),
            max_parts: i32::try_from(limit).ok(),
            part_number_marker: input.part_number_marker,
            next_part_number_marker: page.last().and_then(|part| part.part_number),
            is_truncated: Some(parts.next().is_some()),
            parts: Some(page),
            storage_class: Some("STANDARD".to_owned().into()),
            ..Default::default()
        })
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<dto::ListMultipartUploadsInput>,
    ) -> Answer<dto::ListMultipartUploadsOutput> {
        let input = req.input;
        let store = self.buckets.get(&input.bucket)?;
        let spelling = Spelling::new(input.encoding_type.as_ref())?;
        let prefix = input.prefix.as_deref().unwrap_or_default();
        let uploads = store.list_multipart(prefix).await.map_err(refusal)?;
        let limit = usize::try_from(input.max_uploads.unwrap_or(1000)).unwrap_or(0).min(1000);
        let key_marker = input.key_marker.clone().unwrap_or_default();
        let id_marker = input.upload_id_marker.clone().unwrap_or_default();
        // Uploads of one key come in order of their beginning, so its marker is looked up, not compared.
        let start = match uploads.iter().position(|upload| upload.key == key_marker && upload.id.0 == id_marker) {
            Some(at) => at + 1,
            None => uploads.partition_point(|upload| upload.key <= key_marker),
        };
        let mut rest = uploads.into_iter().skip(start);
        let page: Vec<_> = rest.by_ref().take(limit).collect();
        let is_truncated = rest.next().is_some();
        let last = page.last().filter(|_| is_truncated);
        answer(dto::ListMultipartUploadsOutput {
            next_key_marker: last.map(|upload| spelling.spell(&upload.key)),
            next_upload_id_marker: last.map(|upload| upload.id.0.clone()),
            is_truncated: Some(is_truncated),
            uploads: Some(
                page.iter()
                    .map(|upload| dto::MultipartUpload {
                        key: Some(spelling.spell(&upload.key)),
                        upload_id: Some(upload.id.0.clone()),
                        initiated: Some(convert::timestamp(upload.initiated)),
                        storage_class: Some("STANDARD".to_owned().into()),
                        ..Default::default()
                    })
                    .collect(),
            ),
            bucket: Some(input.bucket),
            prefix: Some(spelling.spell(prefix)),
            key_marker: Some(spelling.spell(&key_marker)),
            upload_id_marker: Some(id_marker),
            max_uploads: i32::try_from(limit).ok(),
            encoding_type: input.encoding_type,
            ..Default::default()
        })
    }
}

fn copy_source(source: &dto::CopySource) -> S3Result<(String, ObjectKey)> {
    match source {
        dto::CopySource::Bucket { bucket, key, version_id: None } => Ok((bucket.to_string(), convert::key(key)?)),
        _ => Err(s3_error!(NotImplemented, "A copy's source is a bucket and a key, without a version")),
    }
}

/// CopyObject's conditions on the target, which the protocol crate does not know yet.
async fn copy_condition(store: &dyn Store, key: &ObjectKey, headers: &HeaderMap) -> S3Result<Condition> {
    let condition = |name: &str| {
        headers
            .get(name)
            .map(|value| ETagCondition::parse_http_header(value.as_bytes()))
            .transpose()
            .map_err(|error| s3_error!(InvalidArgument, "{}: {}", name, error))
    };
    write_condition(store, key, condition("if-match")?.as_ref(), condition("if-none-match")?.as_ref()).await
}

/// `bytes=first-last`, both given, both inside.
fn part_range(text: &str, size: u64) -> S3Result<Range<u64>> {
    let invalid = || {
        s3_error!(
            InvalidArgument,
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the \
             zero-based offsets of the first and last bytes to copy"
        )
    };
    let dto::Range::Int { first, last: Some(last) } = dto::Range::parse(text).map_err(|_| invalid())? else {
        return Err(invalid());
    };
    if first > last {
        return Err(invalid());
    }
    if last >= size {
        return Err(s3_error!(InvalidArgument, "Range specified is not valid for source object of size: {}", size));
    }
    Ok(first..last + 1)
}

/// Says which rule the parts of an upload broke.
async fn invalid_parts(store: &dyn Store, key: &ObjectKey, id: &UploadId, parts: &[Part], message: String) -> S3Error {
    let len_min = store.capabilities().part_len_min;
    let last_number = parts.last().map_or(0, |part| part.number);
    let uploaded = match store.list_parts(key, id).await {
        Ok(uploaded) => uploaded,
        Err(StoreError::Unsupported { .. }) => return s3_error!(InvalidPart, "{}", message),
        Err(error) => return refusal(error),
    };
    let all_there = parts
        .iter()
        .all(|part| uploaded.iter().any(|uploaded| uploaded.number == part.number && uploaded.etag == part.etag));
    let too_small = uploaded.iter().any(|uploaded| {
        uploaded.number != last_number
            && uploaded.size < len_min
            && parts.iter().any(|part| part.number == uploaded.number)
    });
    if all_there && too_small {
        s3_error!(EntityTooSmall, "Your proposed upload is smaller than the minimum allowed size")
    } else if all_there {
        s3_error!(InvalidRequest, "{}", message)
    } else {
        s3_error!(
            InvalidPart,
            "One or more of the specified parts could not be found.  The part may not have been uploaded, or the \
             specified entity tag may not match the part's entity tag."
        )
    }
}
