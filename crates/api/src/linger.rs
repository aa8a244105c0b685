//! Request bodies: a client that stops sending is given up, and one that is refused can read why.
//!
//! When an answer is complete while its request is still being sent, the socket is closed with bytes unread, and the
//! client's kernel may throw the answer away (a reset overtakes it). So a refusal's body ends only when the request's
//! body was read to its end, or the client paused or stopped.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderValue, header};
use http_body::Frame;
use tokio::time::{Instant, Sleep};

/// A body may pause so long: a client that is gone without a word must not hold a connection and a half-written file.
const BODY_PAUSE_MAX: Duration = Duration::from_secs(120);

/// A client that was refused may pause so long before the answer ends: one that read it sends no more.
const REFUSED_PAUSE_MAX: Duration = Duration::from_millis(500);

/// And go on sending so long.
const REFUSED_MAX: Duration = Duration::from_secs(30);

/// The layer.
pub(crate) async fn linger(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let shared = SharedBody(Arc::new(Mutex::new(Timed::new(body))));
    let response = next.run(Request::from_parts(parts, Body::new(shared.clone()))).await;
    let is_refusal = response.status().is_client_error() || response.status().is_server_error();
    if !is_refusal || shared.is_end_stream() {
        return response;
    }
    let mut response = response.map(|answer| after(answer, shared));
    // What is still unread then, hyper could take for the next request's beginning, or that for the rest of this one.
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// `answer`, and then silence until `request` has been read.
fn after(answer: Body, request: SharedBody) -> Body {
    let drained = stream::once(async move {
        let mut rest = Body::new(request).into_data_stream();
        let deadline = Instant::now() + REFUSED_MAX;
        while let Ok(Some(Ok(_unread))) = tokio::time::timeout(REFUSED_PAUSE_MAX, rest.next()).await {
            if Instant::now() > deadline {
                break;
            }
        }
        Ok(Bytes::new())
    });
    Body::from_stream(answer.into_data_stream().chain(drained))
}

/// A body that its reader may drop without dropping what is still to come.
#[derive(Clone, Debug)]
struct SharedBody(Arc<Mutex<Timed>>);

#[derive(Debug)]
struct Timed {
    body: Body,
    /// Runs while the reader waits, not while it is busy with what it has.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    fn new(body: Body) -> Self {
        Self { body, pause: None }
    }
}

impl HttpBody for SharedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // A panic while polling would poison it; what is left is still a body.
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &mut *shared;
        match Pin::new(&mut shared.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                shared.pause = None;
                Poll::Ready(frame)
            }
            Poll::Pending => {
                let pause = shared.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(BODY_PAUSE_MAX)));
                let gave_up = || Some(Err(axum::Error::new("the client stopped sending")));
                pause.as_mut().poll(cx).map(|()| gave_up())
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_sending_is_given_up_and_a_busy_reader_is_not() {
        let endless = stream::once(async { Ok::<_, axum::Error>(Bytes::from_static(b"a")) }).chain(stream::pending());
        let body = SharedBody(Arc::new(Mutex::new(Timed::new(Body::from_stream(endless)))));
        let mut body = Body::new(body).into_data_stream();
        tokio::time::sleep(BODY_PAUSE_MAX * 2).await;
        assert_eq!(body.next().await.unwrap().unwrap(), "a");
        tokio::time::sleep(BODY_PAUSE_MAX * 2).await;
        let before = Instant::now();
        assert!(body.next().await.unwrap().is_err());
        assert_eq!(before.elapsed(), BODY_PAUSE_MAX);
    }
}
