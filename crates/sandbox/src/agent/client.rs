//! The daemon's side of one file operation: what [`super::agent_main`] is asked, and what comes back.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::protocol::{
    Answer, FRAME_LEN_MAX, Failure, FrameKind, LIST_COUNT_MAX, Request, WireEvent, WireInfo, WirePath, broken,
    from_json, receive_frame, send_frame, send_json,
};
use crate::{ByteStream, FileEvent, FileInfo, FileReader, ListOptions, SandboxError, WORKSPACE};

/// Most bytes of one listing on the wire: [`LIST_COUNT_MAX`] names of ordinary length.
const LIST_LEN_MAX: usize = 32 * 1024 * 1024;

/// Events that may wait for their reader before the agent (and then the kernel's queue) has to hold them.
const EVENT_COUNT_MAX: usize = 256;

type Result<T> = std::result::Result<T, SandboxError>;

/// One freshly started agent, good for one operation. Dropping it, or the stream that it turned into, closes the
/// agent's pipes: it undoes a transfer that was not whole and ends.
pub(crate) struct Agent {
    stdin: Box<dyn AsyncWrite + Send + Unpin>,
    stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Dropped last, when the operation is over in one way or the other.
    guard: Box<dyn Send>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").finish_non_exhaustive()
    }
}

impl Agent {
    /// Takes the ends of the agent's pipes. `guard` is dropped when the operation and its stream are over, for example
    /// to kill an agent that hangs in a file system.
    pub(crate) fn new(
        stdin: impl AsyncWrite + Send + Unpin + 'static,
        stdout: impl AsyncRead + Send + Unpin + 'static,
        guard: impl Send + 'static,
    ) -> Self {
        Self { stdin: Box::new(stdin), stdout: Box::new(stdout), guard: Box::new(guard) }
    }

    /// See [`crate::Sandbox::read_file`].
    pub(crate) async fn read_file(mut self, path: &Path) -> Result<FileReader> {
        let Answer::Size(size) = self.ask(&Request::Read { path: wire(path) }).await? else { return Err(confused()) };
        Ok(FileReader { size, body: self.into_body(Some(size)) })
    }

    /// See [`crate::Sandbox::write_file`]; `limit` in bytes.
    pub(crate) async fn write_file(mut self, path: &Path, body: ByteStream, limit: u64) -> Result<()> {
        self.send(&Request::Write { path: wire(path) }).await?;
        self.upload(body, limit).await
    }

    /// See [`crate::Sandbox::stat`].
    pub(crate) async fn stat(mut self, path: &Path) -> Result<FileInfo> {
        match self.ask(&Request::Stat { path: wire(path) }).await? {
            Answer::Info(info) => Ok(info.into()),
            _ => Err(confused()),
        }
    }

    /// See [`crate::Sandbox::list_files`].
    pub(crate) async fn list_files(mut self, path: &Path, options: ListOptions) -> Result<Vec<FileInfo>> {
        self.ask_done(&Request::list(wire(path), options)).await?;
        let (mut found, mut len) = (Vec::new(), 0);
        while let Some(payload) = self.next(FrameKind::Json).await? {
            let batch: Vec<WireInfo> = parse(&payload)?;
            len += payload.len();
            if found.len() + batch.len() > LIST_COUNT_MAX || len > LIST_LEN_MAX {
                return Err(broken("it sent a listing without end"));
            }
            found.extend(batch.into_iter().map(FileInfo::from));
        }
        Ok(found)
    }

    /// See [`crate::Sandbox::mkdir`].
    pub(crate) async fn mkdir(mut self, path: &Path, parents: bool) -> Result<()> {
        self.ask_done(&Request::MakeDirectory { path: wire(path), parents }).await
    }

    /// See [`crate::Sandbox::delete`].
    pub(crate) async fn delete(mut self, path: &Path, recursive: bool) -> Result<()> {
        self.ask_done(&Request::Delete { path: wire(path), recursive }).await
    }

    /// See [`crate::Sandbox::rename`].
    pub(crate) async fn rename(mut self, from: &Path, to: &Path) -> Result<()> {
        self.ask_done(&Request::Rename { from: wire(from), to: wire(to) }).await
    }

    /// See [`crate::Sandbox::watch`]. Besides the kinds of [`FileEvent`] there is `rescan`: events were lost, and
    /// whoever keeps state has to list the directory `path` again.
    pub(crate) async fn watch(mut self, path: &Path, recursive: bool) -> Result<mpsc::Receiver<FileEvent>> {
        self.ask_done(&Request::Watch { path: wire(path), recursive }).await?;
        let (sender, receiver) = mpsc::channel(EVENT_COUNT_MAX);
        tokio::spawn(async move {
            loop {
                let frame = tokio::select! {
                    frame = self.next(FrameKind::Json) => frame,
                    () = sender.closed() => return,
                };
                let event = match frame.and_then(|frame| frame.map(|json| parse::<WireEvent>(&json)).transpose()) {
                    Ok(Some(event)) => event,
                    Ok(None) => return,
                    Err(error) => {
                        tracing::debug!(%error, "a watch in a sandbox ended");
                        return;
                    }
                };
                if sender.send(event.into()).await.is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    /// See [`crate::Sandbox::persist`].
    pub(crate) async fn persist(mut self, excludes: Vec<PathBuf>) -> Result<ByteStream> {
        let excludes = excludes.into_iter().map(WirePath).collect();
        self.ask_done(&Request::Persist { root: wire(Path::new(WORKSPACE)), excludes }).await?;
        Ok(self.into_body(None))
    }

    /// See [`crate::Sandbox::hydrate`]; `limit` in bytes.
    pub(crate) async fn hydrate(mut self, tar: ByteStream, limit: u64) -> Result<()> {
        self.send(&Request::Hydrate { root: wire(Path::new(WORKSPACE)), limit }).await?;
        self.upload(tar, limit).await
    }

    async fn send(&mut self, request: &Request) -> Result<()> {
        send_json(&mut self.stdin, FrameKind::Json, request).await.map_err(lost)
    }

    async fn ask(&mut self, request: &Request) -> Result<Answer> {
        self.send(request).await?;
        answer(&mut self.stdout).await
    }

    async fn ask_done(&mut self, request: &Request) -> Result<()> {
        done(self.ask(request).await?)
    }

    /// Sends a body and awaits the answer, which comes early when the agent fails before the body's end.
    async fn upload(mut self, body: ByteStream, limit: u64) -> Result<()> {
        let Self { stdin, stdout, guard: _guard } = &mut self;
        // One future for the answer, whoever awaits it: it may have read half a frame when the body's end comes first.
        let answer = answer(stdout);
        tokio::pin!(answer);
        let sent = tokio::select! {
            biased;
            sent = send_body(stdin, body, limit) => sent,
            early = &mut answer => return Err(early.err().unwrap_or_else(confused)),
        };
        match sent {
            Ok(()) => done(answer.await?),
            // The agent stopped reading. It says why, unless it is gone.
            Err(NotSent::Pipe(error)) => Err(answer.await.err().unwrap_or_else(|| lost(error))),
            Err(NotSent::Body(error)) => {
                // The answer is awaited so that the agent has cleaned up when this returns.
                if send_json(stdin, FrameKind::Failure, &Failure::Aborted).await.is_ok() {
                    let _aborted = answer.await;
                }
                Err(error)
            }
        }
    }

    /// The next frame of an answer's body; `None` at its end.
    async fn next(&mut self, kind: FrameKind) -> Result<Option<Vec<u8>>> {
        match receive_frame(&mut self.stdout).await.map_err(lost)? {
            (FrameKind::End, _) => Ok(None),
            (FrameKind::Failure, payload) => Err(parse::<Failure>(&payload)?.into()),
            (found, payload) if found == kind => Ok(Some(payload)),
            _ => Err(confused()),
        }
    }

    /// The answer's body. If it is to have `len` bytes, one of another length is an error: a guest that tampers with its
    /// agent must not break the framing of whoever announced that length.
    fn into_body(self, len: Option<u64>) -> ByteStream {
        let body = stream::unfold(Some((self, 0_u64)), move |state| async move {
            let (mut agent, seen) = state?;
            let failed = |error| Some((Err(error), None));
            match agent.next(FrameKind::Data).await {
                Ok(Some(data)) => match seen + data.len() as u64 {
                    seen if len.is_some_and(|len| seen > len) => failed(broken("it sent more than it announced")),
                    seen => Some((Ok(Bytes::from(data)), Some((agent, seen)))),
                },
                Ok(None) if len.is_some_and(|len| seen < len) => failed(broken("it sent less than it announced")),
                Ok(None) => None,
                Err(error) => failed(error),
            }
        });
        // Whoever looks at the first chunk before it answers asks again after the end of an empty file.
        Box::pin(body.fuse())
    }
}

/// Why a body did not get to the agent.
enum NotSent {
    /// The body itself failed, or is too large.
    Body(SandboxError),
    /// The agent does not read.
    Pipe(io::Error),
}

async fn send_body(
    to: &mut (impl AsyncWrite + Unpin),
    mut body: ByteStream,
    limit: u64,
) -> std::result::Result<(), NotSent> {
    let mut len = 0_u64;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(NotSent::Body)?;
        len += chunk.len() as u64;
        if len > limit {
            return Err(NotSent::Body(SandboxError::TooLarge { len, limit }));
        }
        for part in chunk.chunks(FRAME_LEN_MAX) {
            send_frame(to, FrameKind::Data, part).await.map_err(NotSent::Pipe)?;
        }
    }
    send_frame(to, FrameKind::End, &[]).await.map_err(NotSent::Pipe)
}

async fn answer(from: &mut (impl AsyncRead + Unpin)) -> Result<Answer> {
    match receive_frame(from).await.map_err(lost)? {
        (FrameKind::Json, payload) => parse(&payload),
        (FrameKind::Failure, payload) => Err(parse::<Failure>(&payload)?.into()),
        _ => Err(confused()),
    }
}

fn done(answer: Answer) -> Result<()> {
    match answer {
        Answer::Done => Ok(()),
        _ => Err(confused()),
    }
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T> {
    from_json(payload).map_err(lost)
}

fn wire(path: &Path) -> WirePath {
    WirePath(path.to_owned())
}

fn confused() -> SandboxError {
    broken("it answered what was not asked")
}

fn lost(source: io::Error) -> SandboxError {
    SandboxError::System { what: "the sandbox's file agent".to_owned(), source }
}
