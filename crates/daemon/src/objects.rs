//! Objects of bindings, for trusted code.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt};
use sandpail_spec::{BindingName, BucketPlace, S3fsOptions};
use sandpail_store::{
    Condition, ETag, ListRequest, ObjectAttributes, ObjectInfo, ObjectKey, Part, PutBody, Store, StoreError, UploadId,
};

use crate::mounts::open_store;
use crate::sandboxes::Inner;
use crate::worker::store_cause;
use crate::{BucketBody, BucketListOptions, BucketObject, BucketPage, BucketPutOptions, DaemonError};

/// A body up to this length is one PUT; longer ones go up in parts of it. No more than two of them are in memory.
const PART_LEN: usize = 16 << 20;
/// What a page holds if nobody says.
const PAGE_LEN: u16 = 1000;

fn bucket_error(error: &StoreError) -> DaemonError {
    DaemonError::Bucket(store_cause(error))
}

fn of_object(key: &str) -> impl FnOnce(StoreError) -> DaemonError {
    move |error| match error {
        StoreError::NotFound { .. } => DaemonError::NoObject { key: key.to_owned() },
        error => bucket_error(&error),
    }
}

fn object_key(key: &str) -> Result<ObjectKey, DaemonError> {
    ObjectKey::new(key).map_err(|error| DaemonError::Bucket(error.to_string()))
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn object(key: &str, info: ObjectInfo) -> BucketObject {
    BucketObject {
        key: key.to_owned(),
        size: info.size,
        etag: info.etag.as_str().to_owned(),
        uploaded_ms: milliseconds(info.last_modified),
        content_type: info.attributes.content_type,
        custom_metadata: info.attributes.metadata,
    }
}

/// The store of a binding.
async fn store(inner: &Arc<Inner>, binding: &str) -> Result<Arc<dyn Store>, DaemonError> {
    let unknown = || DaemonError::NoBinding { name: binding.to_owned() };
    let known = inner.stores.lock().unwrap_or_else(PoisonError::into_inner).get(binding).cloned();
    if let Some(store) = known {
        return Ok(store);
    }
    let name = BindingName::parse(binding).map_err(|_| unknown())?;
    let found = inner.config().binding(&name).map_err(|error| DaemonError::Bucket(error.to_string()))?;
    let found = found.ok_or_else(unknown)?;
    let place = found.remote.map_or(BucketPlace::Embedded, BucketPlace::Remote);
    let (own, bucket) = (Arc::clone(inner), found.bucket);
    let opening =
        tokio::task::spawn_blocking(move || open_store(&own, bucket.as_str(), &place, &S3fsOptions::default()));
    let store =
        opening.await.map_err(|error| error.to_string()).and_then(|opened| opened).map_err(DaemonError::Bucket)?;
    let mut stores = inner.stores.lock().unwrap_or_else(PoisonError::into_inner);
    stores.insert(binding.to_owned(), Arc::clone(&store));
    Ok(store)
}

/// Gathers the next part: shorter than [`PART_LEN`] only at the end.
async fn next_part(body: &mut BucketBody, rest: &mut Bytes) -> Result<Bytes, DaemonError> {
    let mut part = BytesMut::new();
    loop {
        let taken = rest.split_to(rest.len().min(PART_LEN - part.len()));
        part.extend_from_slice(&taken);
        if part.len() == PART_LEN {
            return Ok(part.freeze());
        }
        match body.next().await {
            Some(chunk) => *rest = chunk?,
            None => return Ok(part.freeze()),
        }
    }
}

pub(crate) async fn put(
    inner: &Arc<Inner>,
    binding: &str,
    key: &str,
    mut body: BucketBody,
    options: BucketPutOptions,
) -> Result<BucketObject, DaemonError> {
    let store = store(inner, binding).await?;
    let name = object_key(key)?;
    let attributes = ObjectAttributes {
        content_type: options.content_type,
        metadata: options.custom_metadata.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect(),
        ..ObjectAttributes::default()
    };
    attributes.check().map_err(|error| bucket_error(&error))?;
    let mut rest = Bytes::new();
    let first = next_part(&mut body, &mut rest).await?;
    let (etag, size) = if first.len() < PART_LEN {
        let size = first.len() as u64;
        let stored = store.put(&name, first.into(), &attributes, &Condition::Always).await;
        (stored.map_err(|error| bucket_error(&error))?.etag, size)
    } else {
        put_parts(&*store, &name, &attributes, first, body, rest).await?
    };
    Ok(BucketObject {
        key: key.to_owned(),
        size,
        etag: etag.as_str().to_owned(),
        uploaded_ms: crate::events::now_ms(),
        content_type: attributes.content_type,
        custom_metadata: attributes.metadata,
    })
}

/// Stores a long body; a failed upload leaves no parts behind.
async fn put_parts(
    store: &dyn Store,
    key: &ObjectKey,
    attributes: &ObjectAttributes,
    first: Bytes,
    body: BucketBody,
    rest: Bytes,
) -> Result<(ETag, u64), DaemonError> {
    let id = store.create_multipart(key, attributes).await.map_err(|error| bucket_error(&error))?;
    let uploaded = upload_parts(store, key, &id, first, body, rest).await;
    let completed = match uploaded {
        Ok((parts, size)) => match store.complete_multipart(key, &id, &parts, &Condition::Always).await {
            Ok(outcome) => return Ok((outcome.etag, size)),
            Err(error) => bucket_error(&error),
        },
        Err(error) => error,
    };
    if let Err(error) = store.abort_multipart(key, &id).await {
        tracing::warn!(%error, "parts of a failed upload stay in the bucket");
    }
    Err(completed)
}

async fn upload_parts(
    store: &dyn Store,
    key: &ObjectKey,
    id: &UploadId,
    first: Bytes,
    mut body: BucketBody,
    mut rest: Bytes,
) -> Result<(Vec<Part>, u64), DaemonError> {
    let (mut parts, mut size, mut part) = (Vec::new(), 0, first);
    while !part.is_empty() {
        size += part.len() as u64;
        let number = u32::try_from(parts.len() + 1).map_err(|error| DaemonError::Bucket(error.to_string()))?;
        // The next part is gathered while this one goes up.
        let uploading = async {
            store.upload_part(key, id, number, PutBody::from(part)).await.map_err(|error| bucket_error(&error))
        };
        let (uploaded, next) = tokio::try_join!(uploading, next_part(&mut body, &mut rest))?;
        parts.push(uploaded);
        part = next;
    }
    Ok((parts, size))
}

pub(crate) async fn get(
    inner: &Arc<Inner>,
    binding: &str,
    key: &str,
    range: Option<(u64, Option<u64>)>,
) -> Result<(BucketObject, BucketBody), DaemonError> {
    let store = store(inner, binding).await?;
    let name = object_key(key)?;
    let info = store.head(&name).await.map_err(of_object(key))?;
    let (offset, len) = range.unwrap_or((0, None));
    let end = len.map_or(info.size, |len| offset.saturating_add(len).min(info.size));
    if offset >= end {
        if offset > info.size {
            let size = info.size;
            return Err(DaemonError::Bucket(format!("the range begins at {offset}, behind the object's {size} bytes")));
        }
        let empty: BucketBody = Box::pin(futures_util::stream::empty());
        return Ok((object(key, info), empty));
    }
    let etag = info.etag.clone();
    let download = store.get(&name, offset..end, Some(&etag)).await.map_err(of_object(key))?;
    let body = download.body.map_err(|error| bucket_error(&error));
    Ok((object(key, info), Box::pin(body)))
}

pub(crate) async fn head(inner: &Arc<Inner>, binding: &str, key: &str) -> Result<BucketObject, DaemonError> {
    let store = store(inner, binding).await?;
    let info = store.head(&object_key(key)?).await.map_err(of_object(key))?;
    Ok(object(key, info))
}

pub(crate) async fn delete(inner: &Arc<Inner>, binding: &str, keys: &[String]) -> Result<(), DaemonError> {
    let store = store(inner, binding).await?;
    let names = keys.iter().map(|key| object_key(key)).collect::<Result<Vec<_>, _>>()?;
    let left = store.delete_many(&names).await.map_err(|error| bucket_error(&error))?;
    match left.first() {
        None => Ok(()),
        Some((key, error)) => Err(DaemonError::Bucket(format!(
            "{} of {} objects could not be removed, the first is {key}: {}",
            left.len(),
            names.len(),
            store_cause(error)
        ))),
    }
}

pub(crate) async fn list(
    inner: &Arc<Inner>,
    binding: &str,
    options: BucketListOptions,
) -> Result<BucketPage, DaemonError> {
    let store = store(inner, binding).await?;
    let delimited = match options.delimiter.as_deref() {
        None | Some("") => false,
        Some("/") => true,
        Some(other) => return Err(DaemonError::Bucket(format!("the delimiter can only be \"/\", not {other:?}"))),
    };
    let limit = options.limit.map_or(PAGE_LEN, |limit| u16::try_from(limit.clamp(1, 1000)).unwrap_or(PAGE_LEN));
    let request = ListRequest {
        prefix: options.prefix,
        delimited,
        continuation: options.cursor,
        max_keys: limit,
        ..ListRequest::default()
    };
    let page = store.list(&request).await.map_err(|error| bucket_error(&error))?;
    let objects = page.objects.into_iter().map(|found| BucketObject {
        key: found.key,
        size: found.size,
        etag: found.etag.map_or_else(String::new, |etag| etag.as_str().to_owned()),
        uploaded_ms: milliseconds(found.last_modified),
        content_type: None,
        custom_metadata: BTreeMap::new(),
    });
    Ok(BucketPage { objects: objects.collect(), delimited_prefixes: page.prefixes, cursor: page.next })
}
