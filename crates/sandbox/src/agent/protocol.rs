//! What the daemon and the agent say to each other over the agent's standard input and output.
//!
//! Everything is a frame: one byte of kind, the length of what follows (`u32`, little endian), the payload. The daemon
//! sends one `Json` frame, a [`Request`]; if the request has a body, `Data` frames follow, and `End` says that it is
//! whole. The agent answers with a `Json` frame, an [`Answer`], or with a [`Failure`]; if the answer has a body, it
//! follows in the same way. A body that stops without `End` is broken, never short: neither an upload whose client
//! went away nor an archive whose agent was killed can be taken for a whole one.
//!
//! The agent runs where guests run, and a guest's root may tamper with it. The daemon therefore believes nothing about
//! lengths: frames are bounded, and what is collected is counted.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{FileInfo, FileKind, ListOptions, SandboxError};

/// Most bytes of a frame. Two pipes' worth: larger frames would save no system call.
pub(super) const FRAME_LEN_MAX: usize = 128 * 1024;

/// Most entries of one listing: more would not fit into an answer that anybody reads.
pub(super) const LIST_COUNT_MAX: usize = 100_000;

const HEADER_LEN: usize = 5;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// A request, an answer or an event.
    Json,
    /// A part of a body; never empty.
    Data,
    /// The body is whole.
    End,
    /// It failed; a [`Failure`]. From the daemon: the body will not come, throw it away.
    Failure,
}

impl FrameKind {
    fn byte(self) -> u8 {
        match self {
            Self::Json => b'J',
            Self::Data => b'D',
            Self::End => b'E',
            Self::Failure => b'F',
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            b'J' => Self::Json,
            b'D' => Self::Data,
            b'E' => Self::End,
            b'F' => Self::Failure,
            _ => return None,
        })
    }
}

/// One file operation. Paths are the sandbox's, absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Request {
    /// Answer: [`Answer::Size`], then the file.
    Read { path: WirePath },
    /// A body follows, which replaces the file. Answer: [`Answer::Done`].
    Write { path: WirePath },
    /// Answer: [`Answer::Info`]. Links are followed.
    Stat { path: WirePath },
    /// Answer: [`Answer::Done`], then `Json` frames of `Vec<WireInfo>`.
    List { path: WirePath, recursive: bool, hidden: bool },
    /// Answer: [`Answer::Done`].
    MakeDirectory { path: WirePath, parents: bool },
    /// Answer: [`Answer::Done`].
    Delete { path: WirePath, recursive: bool },
    /// Answer: [`Answer::Done`].
    Rename { from: WirePath, to: WirePath },
    /// Answer: [`Answer::Done`], then `Json` frames of [`WireEvent`], until standard input is closed.
    Watch { path: WirePath, recursive: bool },
    /// Answer: [`Answer::Done`], then a tar of `root`.
    Persist { root: WirePath, excludes: Vec<WirePath> },
    /// A tar follows, which is unpacked over `root`; its members may have `limit` bytes together.
    /// Answer: [`Answer::Done`].
    Hydrate { root: WirePath, limit: u64 },
}

/// What a request got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    Done,
    Size(u64),
    Info(WireInfo),
}

/// What was tried, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Verb {
    Read,
    Write,
    Stat,
    List,
    Mkdir,
    Delete,
    Rename,
    Watch,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Stat => "stat",
            Self::List => "list",
            Self::Mkdir => "mkdir",
            Self::Delete => "delete",
            Self::Rename => "rename",
            Self::Watch => "watch",
        }
    }
}

/// Why a request failed: the variants of [`SandboxError`] that concern files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Failure {
    NotFound {
        path: WirePath,
    },
    File {
        verb: Verb,
        path: WirePath,
        errno: Option<i32>,
        message: String,
    },
    TooLarge {
        len: u64,
        limit: u64,
    },
    Archive {
        exit: i32,
        message: String,
    },
    /// The daemon's: the body will not come.
    Aborted,
}

impl Failure {
    /// A failed operation on `path`; "no such file" is its own case, whatever was tried.
    pub(super) fn file(verb: Verb, path: impl Into<PathBuf>, error: &io::Error) -> Self {
        let path = WirePath(path.into());
        if error.kind() == io::ErrorKind::NotFound {
            return Self::NotFound { path };
        }
        Self::File { verb, path, errno: error.raw_os_error(), message: error.to_string() }
    }

    /// As `tar` would fail.
    pub(super) fn archive(message: impl Into<String>) -> Self {
        Self::Archive { exit: 2, message: message.into() }
    }
}

impl From<Failure> for SandboxError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotFound { path } => Self::NotFound { path: path.0 },
            Failure::File { verb, path, errno, message } => Self::File {
                operation: verb.as_str(),
                path: path.0,
                source: errno.map_or_else(|| io::Error::other(message), io::Error::from_raw_os_error),
            },
            Failure::TooLarge { len, limit } => Self::TooLarge { len, limit },
            Failure::Archive { exit, message } => Self::Archive { exit, message },
            Failure::Aborted => broken("the file agent gave up a transfer that nobody ended"),
        }
    }
}

/// A path in JSON: a string, or a list of bytes if it is not UTF-8, which file names need not be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WirePath(pub(super) PathBuf);

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrBytes {
    Text(String),
    Bytes(Vec<u8>),
}

impl Serialize for WirePath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => serializer.collect_seq(self.0.as_os_str().as_encoded_bytes()),
        }
    }
}

impl<'de> Deserialize<'de> for WirePath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use std::os::unix::ffi::OsStringExt;
        Ok(Self(match TextOrBytes::deserialize(deserializer)? {
            TextOrBytes::Text(text) => text.into(),
            TextOrBytes::Bytes(bytes) => std::ffi::OsString::from_vec(bytes).into(),
        }))
    }
}

/// [`FileInfo`] with any name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WireInfo {
    pub(super) path: WirePath,
    pub(super) kind: FileKind,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) modified_ms: i64,
}

impl From<WireInfo> for FileInfo {
    fn from(info: WireInfo) -> Self {
        let WireInfo { path, kind, size, mode, modified_ms } = info;
        Self { path: path.0, kind, size, mode, modified_ms }
    }
}

/// [`crate::FileEvent`] with any name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WireEvent {
    pub(super) kind: String,
    pub(super) path: WirePath,
    pub(super) is_directory: bool,
}

impl From<WireEvent> for crate::FileEvent {
    fn from(event: WireEvent) -> Self {
        Self { kind: event.kind, path: event.path.0, is_directory: event.is_directory }
    }
}

impl Request {
    pub(super) fn list(path: WirePath, options: ListOptions) -> Self {
        Self::List { path, recursive: options.recursive, hidden: options.hidden }
    }
}

/// The other side does not keep to the protocol, or is gone.
pub(super) fn broken(what: &str) -> SandboxError {
    SandboxError::System {
        what: "the sandbox's file agent".to_owned(),
        source: io::Error::new(io::ErrorKind::UnexpectedEof, what),
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn header(kind: FrameKind, payload: &[u8]) -> io::Result<[u8; HEADER_LEN]> {
    if payload.len() > FRAME_LEN_MAX {
        return Err(invalid("a frame of the file agent's protocol is too long"));
    }
    let len = u32::try_from(payload.len()).map_err(|_| invalid("a frame is too long"))?.to_le_bytes();
    Ok([kind.byte(), len[0], len[1], len[2], len[3]])
}

fn parse_header(header: [u8; HEADER_LEN]) -> io::Result<(FrameKind, usize)> {
    let kind = FrameKind::from_byte(header[0]).ok_or_else(|| invalid("a frame of an unknown kind"))?;
    let len = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
    match usize::try_from(len) {
        Ok(len) if len <= FRAME_LEN_MAX => Ok((kind, len)),
        _ => Err(invalid("a frame is too long")),
    }
}

fn to_json(value: &impl Serialize) -> io::Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(io::Error::from)
}

/// Reads the JSON of a frame.
pub(super) fn from_json<T: DeserializeOwned>(payload: &[u8]) -> io::Result<T> {
    serde_json::from_slice(payload).map_err(io::Error::from)
}

/// Writes a frame, blocking.
pub(super) fn write_frame(mut to: impl Write, kind: FrameKind, payload: &[u8]) -> io::Result<()> {
    to.write_all(&header(kind, payload)?)?;
    to.write_all(payload)?;
    to.flush()
}

/// Writes a frame of JSON, blocking.
pub(super) fn write_json(to: impl Write, kind: FrameKind, value: &impl Serialize) -> io::Result<()> {
    write_frame(to, kind, &to_json(value)?)
}

/// Reads a frame, blocking. `payload` is replaced.
pub(super) fn read_frame(mut from: impl Read, payload: &mut Vec<u8>) -> io::Result<FrameKind> {
    let mut header = [0; HEADER_LEN];
    from.read_exact(&mut header)?;
    let (kind, len) = parse_header(header)?;
    payload.resize(len, 0);
    from.read_exact(payload)?;
    Ok(kind)
}

/// Writes a frame from the daemon's side.
pub(super) async fn send_frame(to: &mut (impl AsyncWrite + Unpin), kind: FrameKind, payload: &[u8]) -> io::Result<()> {
    to.write_all(&header(kind, payload)?).await?;
    to.write_all(payload).await?;
    to.flush().await
}

/// Writes a frame of JSON from the daemon's side.
pub(super) async fn send_json(
    to: &mut (impl AsyncWrite + Unpin),
    kind: FrameKind,
    value: &impl Serialize,
) -> io::Result<()> {
    send_frame(to, kind, &to_json(value)?).await
}

/// Reads a frame on the daemon's side.
pub(super) async fn receive_frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<(FrameKind, Vec<u8>)> {
    let mut header = [0; HEADER_LEN];
    from.read_exact(&mut header).await?;
    let (kind, len) = parse_header(header)?;
    let mut payload = vec![0; len];
    from.read_exact(&mut payload).await?;
    Ok((kind, payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn frames_come_back_as_they_were_sent() {
        let mut wire = Vec::new();
        let request = Request::Stat { path: WirePath(OsStr::from_bytes(b"/a/\xff").into()) };
        write_json(&mut wire, FrameKind::Json, &request).unwrap();
        write_frame(&mut wire, FrameKind::Data, b"abc").unwrap();
        let mut from = wire.as_slice();
        let mut payload = Vec::new();
        assert_eq!(read_frame(&mut from, &mut payload).unwrap(), FrameKind::Json);
        assert_eq!(from_json::<Request>(&payload).unwrap(), request);
        assert_eq!(read_frame(&mut from, &mut payload).unwrap(), FrameKind::Data);
        assert_eq!(payload, b"abc");
        assert_eq!(read_frame(&mut from, &mut payload).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn lengths_are_bounded_on_both_sides() {
        let long = vec![0; FRAME_LEN_MAX + 1];
        assert!(write_frame(Vec::new(), FrameKind::Data, &long).is_err());
        let wire = [b'D', 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(read_frame(wire.as_slice(), &mut Vec::new()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn an_errno_survives() {
        let failure = Failure::file(Verb::Write, "/mnt/a", &io::Error::from_raw_os_error(30));
        let failure: Failure = from_json(&to_json(&failure).unwrap()).unwrap();
        let SandboxError::File { operation: "write", path, source } = SandboxError::from(failure) else {
            panic!("another error")
        };
        assert_eq!((path.to_str(), source.raw_os_error()), (Some("/mnt/a"), Some(30)));
    }
}
