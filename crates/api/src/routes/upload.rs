//! Bodies that are streamed, both ways.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, future, stream};
use http::header;

use crate::error::broken_body;

/// The first chunk that holds something, and a stream that begins with it. `None`: the body is empty.
pub(crate) async fn non_empty(body: Body) -> Option<sandpail_sandbox::ByteStream> {
    let mut chunks = body.into_data_stream().filter(|chunk| {
        let is_kept = chunk.as_ref().map_or(true, |bytes| !bytes.is_empty());
        future::ready(is_kept)
    });
    let first = chunks.next().await?;
    Some(Box::pin(stream::once(future::ready(first)).chain(chunks).map(|chunk| chunk.map_err(broken_body))))
}

/// The body as a sandbox takes it.
pub(crate) fn byte_stream(body: Body) -> sandpail_sandbox::ByteStream {
    Box::pin(body.into_data_stream().map(|chunk| chunk.map_err(broken_body)))
}

/// An answer of raw bytes. Its first chunk is awaited, so that what fails at once gets a status; what fails later
/// aborts the connection, so that a part never looks whole.
pub(crate) async fn download<S, E>(bytes: S) -> Result<Response, E>
where
    S: Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    E: Into<axum::BoxError> + Send + 'static,
{
    // An empty one ends here, and its stream may not be asked again.
    let mut bytes = bytes.fuse();
    let first = match bytes.next().await {
        Some(Err(error)) => return Err(error),
        first => first,
    };
    let whole = stream::iter(first).chain(bytes);
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(whole)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_fails_at_once_gets_a_status_and_what_fails_later_aborts() {
        let chunk = || Ok(Bytes::from_static(b"a"));
        let fails = || Err(std::io::Error::other("broken"));
        assert!(download(stream::iter([fails(), chunk()])).await.is_err());
        let response = download(stream::iter([chunk(), fails()])).await.unwrap();
        assert!(axum::body::to_bytes(response.into_body(), 100).await.is_err());
        let response = download(stream::iter([chunk(), chunk()])).await.unwrap();
        assert_eq!(axum::body::to_bytes(response.into_body(), 100).await.unwrap(), "aa");
    }

    #[tokio::test]
    async fn an_empty_download_is_not_asked_again() {
        let empty = Box::pin(stream::unfold((), |()| async { None::<(Result<Bytes, std::io::Error>, ())> }));
        let response = download(empty).await.unwrap();
        assert!(axum::body::to_bytes(response.into_body(), 100).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_empty_body_is_none() {
        assert!(non_empty(Body::empty()).await.is_none());
        let empty_chunks = Body::from_stream(stream::iter([Ok::<_, std::io::Error>(Bytes::new())]));
        assert!(non_empty(empty_chunks).await.is_none());
        assert!(non_empty(Body::from("x")).await.is_some());
    }
}
