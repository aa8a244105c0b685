//! Terminals over a WebSocket.

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use axum::extract::{FromRequestParts, Request, State, WebSocketUpgrade};
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, header};
use sandpail_sandbox::{Pty, PtyEvent, PtyInput, PtySpec, SessionId};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Duration, MissedTickBehavior, interval};

use crate::error::{ApiError, Operation};
use crate::extract::{self, Id, Query};
use crate::state::Api;
use crate::wire::ErrorBody;

/// Nobody types more at once; a paste is split by terminals.
const MESSAGE_LEN_MAX: usize = 1 << 20;

/// How often a silent client is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long a client that was told to close may take.
const CLOSING_TIME: Duration = Duration::from_secs(5);

const COLS: u16 = 80;
const ROWS: u16 = 24;

/// Opens a terminal, or connects to the session's.
///
/// Binary frames are terminal bytes. Text frames are JSON: the server sends `{"type":"ready"}` once, then
/// `{"type":"exit","code":n}` or `{"type":"error","message":"…"}`; the client sends
/// `{"type":"resize","cols":120,"rows":30}`.
#[utoipa::path(
    get, path = "/v1/sandbox/{id}/pty", operation_id = "ptyTerminal", tag = "terminals",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("cols" = Option<u16>, Query, description = "Width in characters, 80 if it is missing"),
        ("rows" = Option<u16>, Query, description = "Height in lines, 24 if it is missing"),
        ("shell" = Option<String>, Query, description = "The shell; bash if it is missing"),
        ("session" = Option<String>, Query, description = "The session, whose terminal outlives the connection"),
        ("Session-Id" = Option<String>, Header, description = "The same, and wins"),
    ),
    responses(
        (status = 101, description = "A WebSocket"),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 502, description = "The terminal could not be opened", body = ErrorBody),
    ),
)]
pub(crate) async fn pty_terminal(
    State(api): State<Api>,
    Id(id): Id,
    query: Query,
    request: Request,
) -> Result<Response, ApiError> {
    let (mut parts, _body) = request.into_parts();
    let spec = parse(&query, &parts.headers)?;
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &())
        .await
        .map_err(|_| ApiError::Invalid("WebSocket upgrade required".to_owned()))?;
    let sandbox = api.sandbox(&id).await?;
    // Opened before the answer, so that a failure is one.
    let pty = sandbox.open_pty(spec).await.map_err(|error| Operation::Terminal.failed(error))?;
    Ok(upgrade.max_message_size(MESSAGE_LEN_MAX).on_upgrade(|socket| run(socket, pty)))
}

/// The checks, in the contract's order.
fn parse(query: &Query, headers: &HeaderMap) -> Result<PtySpec, ApiError> {
    let upgrade = headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if !upgrade {
        return Err(ApiError::Invalid("WebSocket upgrade required".to_owned()));
    }
    let size = |name: &str, default: u16| match query.filled(name) {
        None => Ok(default),
        Some(text) => dimension(text.trim().parse().ok())
            .ok_or_else(|| ApiError::Invalid("cols and rows must be valid numbers".to_owned())),
    };
    let (cols, rows) = (size("cols", COLS)?, size("rows", ROWS)?);
    let session: Option<SessionId> = match extract::session_header(headers)? {
        Some(session) => Some(session),
        None => query.filled("session").map(|session| extract::session_id(&session)).transpose()?,
    };
    let shell = query.filled("shell");
    if shell.as_deref().is_some_and(|shell| shell.contains('\0')) {
        return Err(ApiError::Invalid("shell must not contain NUL".to_owned()));
    }
    Ok(PtySpec { cols, rows, shell, session })
}

/// A width or height: at least 1, and no more than the kernel counts.
fn dimension(number: Option<f64>) -> Option<u16> {
    let number = number.filter(|number| *number >= 1.0)?.trunc().min(f64::from(u16::MAX));
    // In range, and whole.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Some(number as u16)
}

/// Both directions side by side: a client that types while the terminal is full must not stop its own output.
async fn run(socket: WebSocket, pty: Pty) {
    let (to_client, from_client) = socket.split();
    let (complaints, complained) = mpsc::channel(16);
    let mut typing = std::pin::pin!(type_in(from_client, pty.input, complaints));
    tokio::select! {
        is_told = show(to_client, pty.output, complained) => {
            if is_told {
                // The client closes, too (RFC 6455, 7.1.1): a connection that is cut before it has read everything may
                // cost it the last frames. If it does not, that is its loss.
                let _ = tokio::time::timeout(CLOSING_TIME, typing).await;
            }
        }
        () = &mut typing => {}
    }
}

/// From the terminal to the client, until the shell ends (then it is told, and asked to close) or the client is gone.
async fn show(
    mut client: SplitSink<WebSocket, Message>,
    mut output: mpsc::Receiver<PtyEvent>,
    mut complained: mpsc::Receiver<&'static str>,
) -> bool {
    let mut ping = interval(PING_INTERVAL);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (message, last) = tokio::select! {
            event = output.recv() => frame(event),
            Some(text) = complained.recv() => (error_frame(text), None),
            _ = ping.tick() => (Message::Ping(bytes::Bytes::new()), None),
        };
        if client.send(message).await.is_err() {
            return false;
        }
        if let Some(code) = last {
            return client.send(Message::Close(Some(CloseFrame { code, reason: "".into() }))).await.is_ok();
        }
    }
}

/// What the client is told, and with which code the connection closes after it.
fn frame(event: Option<PtyEvent>) -> (Message, Option<u16>) {
    match event {
        Some(PtyEvent::Output(bytes)) => (Message::Binary(bytes), None),
        Some(PtyEvent::Ready) => (text_frame(&json!({ "type": "ready" })), None),
        Some(PtyEvent::Exit { code, signal }) => {
            let mut exit = json!({ "type": "exit", "code": code });
            if let Some(signal) = signal {
                exit["signal"] = Value::String(signal);
            }
            (text_frame(&exit), Some(close_code::NORMAL))
        }
        None => (error_frame("the terminal is gone"), Some(close_code::ERROR)),
    }
}

fn text_frame(value: &Value) -> Message {
    Message::Text(value.to_string().into())
}

fn error_frame(text: &str) -> Message {
    text_frame(&json!({ "type": "error", "message": text }))
}

/// From the client to the terminal, until either is gone.
async fn type_in(
    mut client: SplitStream<WebSocket>,
    terminal: mpsc::Sender<PtyInput>,
    complaints: mpsc::Sender<&'static str>,
) {
    while let Some(Ok(message)) = client.next().await {
        let input = match message {
            Message::Binary(bytes) => Ok(PtyInput::Bytes(bytes)),
            Message::Text(text) => control(&text),
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return,
        };
        let is_gone = match input {
            Ok(input) => terminal.send(input).await.is_err(),
            Err(complaint) => complaints.send(complaint).await.is_err(),
        };
        if is_gone {
            // `show` has the last word: the exit code.
            while let Some(Ok(message)) = client.next().await {
                if matches!(message, Message::Close(_)) {
                    return;
                }
            }
            return;
        }
    }
}

fn control(text: &str) -> Result<PtyInput, &'static str> {
    const INVALID: &str = "Invalid control message";
    let message: Value = serde_json::from_str(text).map_err(|_| INVALID)?;
    if message.get("type").and_then(Value::as_str) != Some("resize") {
        return Err(INVALID);
    }
    let number = |name: &str| message.get(name).and_then(Value::as_f64).ok_or(INVALID);
    let (cols, rows) = (number("cols")?, number("rows")?);
    match (dimension(Some(cols)), dimension(Some(rows))) {
        (Some(cols), Some(rows)) => Ok(PtyInput::Resize { cols, rows }),
        _ => Err("Invalid dimensions: cols and rows must be positive"),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn checked(query: &str, headers: &[(&'static str, &str)]) -> Result<PtySpec, String> {
        let query = Query::of(&format!("/x?{query}").parse().unwrap());
        let headers = headers
            .iter()
            .map(|(name, value)| (header::HeaderName::from_static(name), value.parse::<http::HeaderValue>().unwrap()));
        parse(&query, &headers.collect()).map_err(|error| match error {
            ApiError::Invalid(text) => text,
            other => format!("{other:?}"),
        })
    }

    #[test]
    fn the_order_of_the_checks() {
        let refused = |query: &str, headers: &[(&'static str, &str)]| checked(query, headers).unwrap_err();
        let upgrade = ("upgrade", "WebSocket");
        assert_eq!(refused("cols=x", &[("session-id", "a/b")]), "WebSocket upgrade required");
        assert_eq!(refused("", &[("upgrade", "h2c")]), "WebSocket upgrade required");
        for bad in ["cols=abc", "rows=x", "cols=NaN", "cols=0", "rows=-1"] {
            assert_eq!(refused(bad, &[upgrade, ("session-id", "a/b")]), "cols and rows must be valid numbers", "{bad}");
        }
        assert_eq!(refused("session=a..b", &[upgrade]), "Invalid session ID format");
        assert_eq!(refused("session=ok", &[upgrade, ("session-id", "a/b")]), "Invalid session ID format");
    }

    #[test]
    fn what_is_opened() {
        let spec = checked("", &[("upgrade", "websocket")]).unwrap();
        assert_eq!((spec.cols, spec.rows, spec.shell, spec.session), (80, 24, None, None));
        let spec =
            checked("cols=120&rows=99999&shell=/bin/sh&session=a", &[("upgrade", "websocket"), ("session-id", "b")])
                .unwrap();
        assert_eq!((spec.cols, spec.rows, spec.shell.as_deref()), (120, u16::MAX, Some("/bin/sh")));
        assert_eq!(spec.session.unwrap().as_str(), "b");
    }

    #[test]
    fn control_messages() {
        assert_eq!(control(r#"{"type":"resize","cols":120,"rows":30}"#), Ok(PtyInput::Resize { cols: 120, rows: 30 }));
        for bad in ["", "x", "[]", "{}", r#"{"type":"y"}"#, r#"{"type":"resize"}"#] {
            assert_eq!(control(bad), Err("Invalid control message"), "{bad}");
        }
        for bad in [r#"{"type":"resize","cols":0,"rows":1}"#, r#"{"type":"resize","cols":1,"rows":-5}"#] {
            assert_eq!(control(bad), Err("Invalid dimensions: cols and rows must be positive"), "{bad}");
        }
    }

    #[test]
    fn frames() {
        let text = |event| match frame(event) {
            (Message::Text(text), last) => (text.to_string(), last),
            other => panic!("{other:?}"),
        };
        assert_eq!(text(Some(PtyEvent::Ready)), (r#"{"type":"ready"}"#.to_owned(), None));
        let exit = text(Some(PtyEvent::Exit { code: 3, signal: None }));
        assert_eq!(exit, (r#"{"code":3,"type":"exit"}"#.to_owned(), Some(1000)));
        let exit = text(Some(PtyEvent::Exit { code: 137, signal: Some("SIGKILL".to_owned()) }));
        assert_eq!(exit, (r#"{"code":137,"signal":"SIGKILL","type":"exit"}"#.to_owned(), Some(1000)));
        assert_eq!(text(None).1, Some(1011));
        assert_eq!(frame(Some(PtyEvent::Output(Bytes::from_static(b"x")))).1, None);
    }
}
