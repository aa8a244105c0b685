//! `sandpail sandbox shell`: a terminal in a sandbox, in this terminal.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use rustix::termios::{self, OptionalActions, Termios};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::arguments::ShellArgs;
use super::http::{self, Client};

/// The size of a terminal that is none.
const SIZE: (u16, u16) = (80, 24);

/// Gives the terminal back as it was.
struct Raw(Termios);

impl Raw {
    /// Every key goes through as it is; `None` if standard input is no terminal.
    fn enter() -> Option<Self> {
        let stdin = rustix::stdio::stdin();
        let before = termios::tcgetattr(stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nothing to be done about a terminal that is gone.
        let _ = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

pub(crate) fn run(client: &Client, arguments: &ShellArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(connect(client, arguments));
    // A read of standard input may still be waiting for a key.
    runtime.shutdown_background();
    result
}

fn size() -> (u16, u16) {
    match termios::tcgetwinsize(rustix::stdio::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => SIZE,
    }
}

async fn connect(client: &Client, arguments: &ShellArgs) -> anyhow::Result<ExitCode> {
    let (cols, rows) = size();
    let mut path = format!("/v1/sandbox/{}/pty?cols={cols}&rows={rows}", arguments.id);
    for (name, value) in [("shell", &arguments.shell), ("session", &arguments.session)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", http::value(value)));
        }
    }
    let mut request = client.websocket_url(&path).into_client_request().context("--url is no URL")?;
    if let Some(authorization) = client.authorization() {
        request.headers_mut().insert("authorization", authorization.parse().context("the key is no header value")?);
    }
    let (socket, _) = match tokio_tungstenite::connect_async(request).await {
        Ok(connected) => connected,
        Err(Error::Http(answer)) => {
            let told = answer.body().as_deref().and_then(|body| serde_json::from_slice::<Value>(body).ok());
            let told = told.as_ref().and_then(|told| told["error"].as_str()).unwrap_or("no reason was given");
            anyhow::bail!("the daemon refused the terminal: {told}");
        }
        Err(error) => return Err(error).context("no answer from the daemon; start it with `sandpail serve`"),
    };
    let raw = Raw::enter();
    let code = talk(socket).await;
    drop(raw);
    code
}

/// Types and shows until the shell ends.
async fn talk<S>(socket: tokio_tungstenite::WebSocketStream<S>) -> anyhow::Result<ExitCode>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut to, mut from) = socket.split();
    let mut resized = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change())?;
    let mut stdin = tokio::io::stdin();
    let mut typed = vec![0; 4096];
    let mut is_open = true;
    loop {
        tokio::select! {
            read = stdin.read(&mut typed), if is_open => match read? {
                // The end of a pipe is what Ctrl-D is on a terminal.
                0 => { is_open = false; to.send(Message::binary(vec![4])).await? }
                len => to.send(Message::binary(typed[..len].to_vec())).await?,
            },
            _ = resized.recv() => {
                let (cols, rows) = size();
                to.send(Message::text(json!({ "type": "resize", "cols": cols, "rows": rows }).to_string())).await?;
            }
            message = from.next() => match message.context("the daemon closed the terminal")?? {
                Message::Binary(bytes) => {
                    let mut stdout = std::io::stdout();
                    stdout.write_all(&bytes)?;
                    stdout.flush()?;
                }
                Message::Text(text) => {
                    let told: Value = serde_json::from_str(&text).unwrap_or_default();
                    match told["type"].as_str() {
                        Some("exit") => {
                            let code = told["code"].as_i64().unwrap_or(1);
                            return Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX)));
                        }
                        Some("error") => eprint!("sandpail: {}\r\n", told["message"].as_str().unwrap_or_default()),
                        _ => {}
                    }
                }
                Message::Close(_) => anyhow::bail!("the daemon closed the terminal"),
                _ => {}
            },
        }
    }
}
