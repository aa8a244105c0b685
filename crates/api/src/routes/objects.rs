//! Objects of a binding, for trusted code.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use percent_encoding::percent_decode_str;
use sandpail_daemon::{BucketListOptions, BucketObject, BucketPutOptions, DaemonError};

use super::upload;
use crate::error::{ApiError, NO_CONTENT, Operation, PARTIAL};
use crate::extract::{self, Query};
use crate::state::Api;
use crate::wire::{self, BindingList, ErrorBody, Object, ObjectKeys, ObjectPage};

/// User metadata, as JSON.
const METADATA: &str = "x-object-metadata";

/// A page's most, as S3 has it.
const LIMIT_MAX: usize = 1000;

/// The binding and the key of `/v1/bindings/{name}/objects/{key}`: all that follows, decoded once, nothing resolved.
fn target(uri: &Uri) -> Result<(String, String), ApiError> {
    let raw = uri.path().splitn(6, '/').nth(5).unwrap_or("");
    let key = percent_decode_str(raw).decode_utf8();
    let key = key.map_err(|_| ApiError::Invalid("a key must be UTF-8".to_owned()))?;
    Ok((extract::segment(uri, 3), key.into_owned()))
}

/// The names of the bindings.
#[utoipa::path(
    get, path = "/v1/bindings", operation_id = "listBindings", tag = "objects",
    responses(
        (status = 200, description = "All of them", body = BindingList),
        (status = 401, description = "No key, or another", body = ErrorBody),
    ),
)]
pub(crate) async fn list_bindings(State(api): State<Api>) -> Result<Json<BindingList>, ApiError> {
    Ok(Json(BindingList { bindings: api.daemon()?.bindings() }))
}

/// Lists a binding's bucket.
#[utoipa::path(
    get, path = "/v1/bindings/{name}/objects", operation_id = "listObjects", tag = "objects",
    params(
        ("name" = String, Path, description = "The binding"),
        ("prefix" = Option<String>, Query, description = "Only keys that begin so"),
        ("delimiter" = Option<String>, Query, description = "Fold at this"),
        ("cursor" = Option<String>, Query, description = "Where the last page ended"),
        ("limit" = Option<u16>, Query, description = "At most so many, 1 to 1000"),
    ),
    responses(
        (status = 200, description = "A page", body = ObjectPage),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 404, description = "There is no such binding", body = ErrorBody),
        (status = 502, description = "The bucket did not do it", body = ErrorBody),
    ),
)]
pub(crate) async fn list_objects(State(api): State<Api>, uri: Uri, query: Query) -> Result<Json<ObjectPage>, ApiError> {
    let limit = match query.filled("limit") {
        None => None,
        Some(text) => match text.parse() {
            Ok(limit @ 1..=LIMIT_MAX) => Some(limit),
            _ => return Err(ApiError::Invalid("limit must be a number from 1 to 1000".to_owned())),
        },
    };
    let options = BucketListOptions {
        prefix: query.first("prefix").unwrap_or_default(),
        delimiter: query.filled("delimiter"),
        cursor: query.filled("cursor"),
        limit,
    };
    let page = api.daemon()?.list_objects(&extract::segment(&uri, 3), options).await;
    Ok(Json(ObjectPage::from(page.map_err(|error| Operation::Object("list").failed(error))?)))
}

/// Reads an object, or a range of it.
#[utoipa::path(
    get, path = "/v1/bindings/{name}/objects/{*key}", operation_id = "getObject", tag = "objects",
    params(
        ("name" = String, Path, description = "The binding"),
        ("key" = String, Path, description = "The key, percent-encoded"),
        ("Range" = Option<String>, Header, description = "`bytes=a-b`, `bytes=a-`, `bytes=-n`"),
    ),
    responses(
        (status = 200, description = "Its bytes", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 206, description = "A range", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 404, description = "There is no such object or binding", body = ErrorBody),
        (status = 416, description = "The range is outside", body = ErrorBody),
        (status = 502, description = "The bucket did not do it", body = ErrorBody),
    ),
)]
pub(crate) async fn get_object(State(api): State<Api>, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    let (binding, key) = target(&uri)?;
    let failed = |error: DaemonError| Operation::Object("get").failed(error);
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    // Only who knows the size can tell which bytes a range means.
    let range = match range {
        None => None,
        Some(range) => {
            let size = api.daemon()?.head_object(&binding, &key).await.map_err(failed)?.size;
            wire::parse_range(Some(range), size)?
        }
    };
    let asked = range.map(|(offset, len)| (offset, Some(len)));
    let (object, body) = api.daemon()?.get_object(&binding, &key, asked).await.map_err(failed)?;
    let size = object.size;
    let mut response = upload::download(body).await.map_err(failed)?;
    let len = range.map_or(size, |(_, len)| len);
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(len));
    describe(&mut response, object)?;
    if let Some((offset, len)) = range {
        *response.status_mut() = PARTIAL;
        let text = format!("bytes {offset}-{}/{size}", offset + len - 1);
        response.headers_mut().insert(header::CONTENT_RANGE, header_value(&text)?);
    }
    Ok(response)
}

/// Describes an object.
#[utoipa::path(
    head, path = "/v1/bindings/{name}/objects/{*key}", operation_id = "headObject", tag = "objects",
    params(
        ("name" = String, Path, description = "The binding"),
        ("key" = String, Path, description = "The key, percent-encoded"),
    ),
    responses(
        (status = 200, description = "Its headers"),
        (status = 401, description = "No key, or another"),
        (status = 404, description = "There is no such object or binding"),
        (status = 502, description = "The bucket did not do it"),
    ),
)]
pub(crate) async fn head_object(State(api): State<Api>, uri: Uri) -> Result<Response, ApiError> {
    let (binding, key) = target(&uri)?;
    let object = api.daemon()?.head_object(&binding, &key).await;
    let object = object.map_err(|error| Operation::Object("head").failed(error))?;
    let mut response = Response::new(Body::empty());
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(object.size));
    describe(&mut response, object)?;
    Ok(response)
}

/// Stores an object.
#[utoipa::path(
    put, path = "/v1/bindings/{name}/objects/{*key}", operation_id = "putObject", tag = "objects",
    params(
        ("name" = String, Path, description = "The binding"),
        ("key" = String, Path, description = "The key, percent-encoded"),
        ("X-Object-Metadata" = Option<String>, Header, description = "A JSON object of strings, ASCII"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "It is stored", body = Object),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 404, description = "There is no such binding", body = ErrorBody),
        (status = 502, description = "The bucket did not do it", body = ErrorBody),
    ),
)]
pub(crate) async fn put_object(
    State(api): State<Api>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Object>, ApiError> {
    let (binding, key) = target(&uri)?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
    let custom_metadata = match headers.get(METADATA) {
        None => std::collections::BTreeMap::new(),
        Some(value) => wire::decode_metadata(value.as_bytes())?,
    };
    let options = BucketPutOptions { content_type, custom_metadata };
    let body = Box::pin(
        body.into_data_stream()
            .map(|chunk| chunk.map_err(|_broken| DaemonError::Bucket("the request's body broke off".to_owned()))),
    );
    let object = api.daemon()?.put_object(&binding, &key, body, options).await;
    Ok(Json(Object::from(object.map_err(|error| Operation::Object("put").failed(error))?)))
}

/// Removes an object, if it is there.
#[utoipa::path(
    delete, path = "/v1/bindings/{name}/objects/{*key}", operation_id = "deleteObject", tag = "objects",
    params(
        ("name" = String, Path, description = "The binding"),
        ("key" = String, Path, description = "The key, percent-encoded"),
    ),
    responses(
        (status = 204, description = "It is not there now"),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 404, description = "There is no such binding", body = ErrorBody),
        (status = 502, description = "The bucket did not do it", body = ErrorBody),
    ),
)]
pub(crate) async fn delete_object(State(api): State<Api>, uri: Uri) -> Result<StatusCode, ApiError> {
    let (binding, key) = target(&uri)?;
    let removed = api.daemon()?.delete_objects(&binding, &[key]).await;
    removed.map_err(|error| Operation::Object("delete").failed(error))?;
    Ok(NO_CONTENT)
}

/// Removes objects; those that are not there are no error.
#[utoipa::path(
    post, path = "/v1/bindings/{name}/delete", operation_id = "deleteObjects", tag = "objects",
    params(("name" = String, Path, description = "The binding")),
    request_body = ObjectKeys,
    responses(
        (status = 204, description = "They are not there now"),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 404, description = "There is no such binding", body = ErrorBody),
        (status = 502, description = "The bucket did not do it", body = ErrorBody),
    ),
)]
pub(crate) async fn delete_objects(State(api): State<Api>, uri: Uri, body: Body) -> Result<StatusCode, ApiError> {
    let members = wire::object(&extract::small_body(body).await?)?;
    let keys = ObjectKeys::parse(&members)?;
    let removed = api.daemon()?.delete_objects(&extract::segment(&uri, 3), &keys).await;
    removed.map_err(|error| Operation::Object("delete").failed(error))?;
    Ok(NO_CONTENT)
}

fn header_value(text: &str) -> Result<HeaderValue, ApiError> {
    let bad = |_| DaemonError::Bucket("the bucket's answer cannot be a header".to_owned());
    HeaderValue::from_str(text).map_err(bad).map_err(|error| Operation::Object("get").failed(error))
}

fn describe(response: &mut Response, object: BucketObject) -> Result<(), ApiError> {
    let content_type = object.content_type.as_deref().and_then(|text| HeaderValue::from_str(text).ok());
    let content_type = content_type.unwrap_or(HeaderValue::from_static("application/octet-stream"));
    let metadata = header_value(&wire::encode_metadata(&object.custom_metadata))?;
    let modified = http_date(object.uploaded_ms);
    let object = Object::from(object);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::ETAG, header_value(&object.http_etag)?);
    headers.insert(header::LAST_MODIFIED, header_value(&modified)?);
    headers.insert("x-object-size", HeaderValue::from(object.size));
    headers.insert("x-object-uploaded", header_value(&object.uploaded)?);
    headers.insert(METADATA, metadata);
    // What a bucket holds was written by anyone: no browser may run it as a page of ours.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    Ok(())
}

fn http_date(milliseconds: u64) -> String {
    let time = i64::try_from(milliseconds).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.unwrap_or_default().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_taken_as_they_are() {
        let of = |path: &str| target(&path.parse().unwrap()).unwrap();
        let pair = |name: &str, key: &str| (name.to_owned(), key.to_owned());
        assert_eq!(of("/v1/bindings/B/objects/a/b.txt?x"), pair("B", "a/b.txt"));
        assert_eq!(of("/v1/bindings/B/objects/a%2F..%2F%2Fb%23%3F"), pair("B", "a/..//b#?"));
        assert_eq!(of("/v1/bindings/B/objects//x/"), pair("B", "/x/"));
        assert!(target(&"/v1/bindings/B/objects/%FF".parse().unwrap()).is_err());
    }

    #[test]
    fn dates() {
        assert_eq!(http_date(784_111_777_000), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
