//! Streams of events (server-sent events).

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::header;
use sandpail_sandbox::{ExecEvent, ExecEvents};
use serde_json::json;

/// Proxies close a stream on which nothing comes for a minute, some sooner.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// What is said into the silence: a comment, which every client skips.
const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// One event.
pub(crate) fn event(name: &str, data: &str) -> Bytes {
    let mut text = format!("event: {name}\n");
    // A line break inside the data would end the event.
    for line in data.split('\n') {
        text.push_str("data: ");
        text.push_str(line);
        text.push('\n');
    }
    text.push('\n');
    text.into()
}

/// One event with JSON as its data.
pub(crate) fn json_event(name: &str, data: &impl serde::Serialize) -> Bytes {
    // A value of ours always serializes: it has string keys and finite numbers.
    event(name, &serde_json::to_string(data).unwrap_or_else(|_| "{}".to_owned()))
}

/// The answer that carries `events`, each sent as it comes, with comments into silence.
pub(crate) fn response(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let events = stream::unfold(Box::pin(events), |mut events| async move {
        let next = tokio::time::timeout(SILENCE_MAX, events.next()).await;
        let bytes = next.unwrap_or(Some(Bytes::from_static(KEEP_ALIVE)))?;
        Some((Ok::<_, Infallible>(bytes), events))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        // nginx would collect the events otherwise.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(events)).into_response()
}

/// The events of a command. There is exactly one last event, and the command runs on if nobody listens any more.
pub(crate) fn exec(events: ExecEvents) -> Response {
    response(stream::unfold(Some(events), |events| async move {
        let mut events = events?;
        let event = events.recv().await;
        let is_last = !matches!(event, Some(ExecEvent::Stdout(_) | ExecEvent::Stderr(_)));
        Some((exec_event(event), if is_last { None } else { Some(events) }))
    }))
}

/// A command that could not be started, as its stream's only event.
pub(crate) fn exec_failed(text: &str, code: &str) -> Response {
    let event = json_event("error", &json!({ "error": text, "code": code }));
    response(stream::once(async { event }))
}

/// `None`: the sandbox stopped telling without saying how the command ended.
fn exec_event(said: Option<ExecEvent>) -> Bytes {
    match said {
        Some(ExecEvent::Stdout(chunk)) => event("stdout", &STANDARD.encode(chunk)),
        Some(ExecEvent::Stderr(chunk)) => event("stderr", &STANDARD.encode(chunk)),
        Some(ExecEvent::Exit { code }) => json_event("exit", &json!({ "exit_code": code })),
        Some(ExecEvent::Failed { message }) => json_event("error", &json!({ "error": message, "code": "exec_error" })),
        None => json_event(
            "error",
            &json!({ "error": "exec failed: the sandbox has ended", "code": "exec_transport_error" }),
        ),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    async fn text(response: Response) -> String {
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    async fn said(events: Vec<ExecEvent>) -> String {
        let (sender, receiver) = mpsc::channel(16);
        for event in events {
            sender.send(event).await.unwrap();
        }
        // Kept open beyond the last event: the stream must end all the same.
        let whole = tokio::select! {
            whole = text(exec(receiver)) => whole,
            () = tokio::time::sleep(Duration::from_secs(5)) => panic!("the stream did not end"),
        };
        drop(sender);
        whole
    }

    #[tokio::test]
    async fn a_command_as_the_contract_writes_it() {
        let events = vec![
            ExecEvent::Stdout(Bytes::from_static(b"hello\n")),
            ExecEvent::Stderr(Bytes::from_static(b"oh no\n")),
            ExecEvent::Exit { code: 0 },
            ExecEvent::Stdout(Bytes::from_static(b"late")),
        ];
        assert_eq!(
            said(events).await,
            "event: stdout\ndata: aGVsbG8K\n\nevent: stderr\ndata: b2ggbm8K\n\nevent: exit\ndata: {\"exit_code\":0}\n\n"
        );
    }

    #[tokio::test]
    async fn there_is_exactly_one_last_event() {
        assert_eq!(
            said(vec![ExecEvent::Failed { message: "no\nshell".to_owned() }]).await,
            "event: error\ndata: {\"code\":\"exec_error\",\"error\":\"no\\nshell\"}\n\n"
        );
        let (sender, receiver) = mpsc::channel(1);
        drop(sender);
        assert_eq!(
            text(exec(receiver)).await,
            "event: error\ndata: {\"code\":\"exec_transport_error\",\"error\":\"exec failed: the sandbox has ended\"}\n\n"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_with_comments() {
        let (sender, receiver) = mpsc::channel(1);
        let mut body = exec(receiver).into_body().into_data_stream();
        let before = tokio::time::Instant::now();
        assert_eq!(body.next().await.unwrap().unwrap(), KEEP_ALIVE);
        assert_eq!(before.elapsed(), SILENCE_MAX);
        sender.send(ExecEvent::Exit { code: 124 }).await.unwrap();
        assert_eq!(body.next().await.unwrap().unwrap(), "event: exit\ndata: {\"exit_code\":124}\n\n");
        assert!(body.next().await.is_none());
    }

    #[test]
    fn line_breaks_do_not_end_an_event() {
        assert_eq!(event("x", "a\nb"), "event: x\ndata: a\ndata: b\n\n");
    }
}
