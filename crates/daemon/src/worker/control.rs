//! The socket through which `umount` and the daemon speak to a mount's process.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use sandpail_fs::engine::{self, Engine, Unstored};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::backend::RemotePlan;
use super::keeper::{KEEP_TIMEOUT, Kept};
use super::{hand_over, leave};

/// Room for the usual answer.
const TEXT_LEN: usize = 16 << 10;
/// Time between two looks whether somebody keeps the mount.
const KEEP_PAUSE: Duration = Duration::from_millis(10);
/// Files that an answer names without having tried to store them.
const NAMED_COUNT_MAX: usize = 100;

/// What can be asked, one JSON line each.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// How much is not stored, and what, as far as an answer holds it. Nothing is tried.
    Status,
    /// Store everything that was written so far, and answer when the bucket has it.
    Drain,
    /// How the bucket is reached, keys included: a daemon that was restarted has nobody else to ask. The socket is in a
    /// directory of the daemon's own user, who started the process with these keys.
    Remote,
    /// End at once and leave the mount to another process, which may be of a newer program.
    Yield,
    /// What whoever keeps the mount alive must hold: the plan, keys included, and descriptors. Answered in another form, to
    /// [`keep`].
    Keep,
}

/// The answer, one JSON line.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Files that are not stored.
    pub unstored: usize,
    /// Files that were not stored before [`Ask::Drain`], and are now.
    #[serde(default)]
    pub stored: usize,
    /// Those of them that have a name, as far as an answer holds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stored_files: Vec<StoredFile>,
    /// Paths that could not be stored, with the reasons; for [`Ask::Status`] those that are not stored.
    pub failed: Vec<(String, String)>,
    /// Why what was asked for is not done; only for [`Ask::Yield`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// How the bucket is reached; only for [`Ask::Remote`], of a mount in a sandbox whose bucket is on a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<RemotePlan>,
}

/// A file that was stored just now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Its path below the mount.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// The tag of the version in the bucket, without quotes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// A checksum of its bytes that the store has compared, with the algorithm's name: `crc64nvme:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    /// The version's id, in a bucket that keeps versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

impl From<engine::StoredFile> for StoredFile {
    fn from(file: engine::StoredFile) -> Self {
        let (etag, proof) = (file.etag.map(|etag| etag.as_str().to_owned()), file.proof);
        Self { path: file.path, size: file.size, etag, checksum: proof.checksum, version: proof.version_id }
    }
}

/// Answers until the process ends.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(path: &Path, engine: Arc<Engine>, remote: Option<RemotePlan>, kept: Option<Kept>) -> anyhow::Result<()> {
    let (remote, kept) = (remote.map(Arc::new), kept.map(Arc::new));
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let (engine, remote, kept) = (Arc::clone(&engine), remote.clone(), kept.clone());
            // Each by itself: storing may take long, and how much is left is asked meanwhile.
            let answering = std::thread::Builder::new().name("answer".to_owned()).spawn(move || {
                if let Err(error) = answer(&stream, &engine, remote.as_deref(), kept.as_deref()) {
                    tracing::debug!(%error, "a control connection failed");
                }
            });
            if let Err(error) = answering {
                tracing::warn!(%error, "no thread for an answer");
            }
        }
    })?;
    Ok(())
}

fn answer(
    stream: &UnixStream,
    engine: &Engine,
    remote: Option<&RemotePlan>,
    kept: Option<&Kept>,
) -> anyhow::Result<()> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let answer = match serde_json::from_str(&line)? {
        Ask::Status => {
            let unstored = engine.unstored_count();
            Answer { unstored, failed: pairs(engine.unstored(NAMED_COUNT_MAX)), ..Answer::default() }
        }
        Ask::Remote => Answer { remote: remote.cloned(), ..Answer::default() },
        Ask::Yield => match may_leave(kept) {
            Err(why) => Answer { refused: Some(why.to_owned()), ..Answer::default() },
            Ok(()) => {
                tracing::info!("asked to leave the mount to another process");
                let mut stream = stream;
                stream.write_all(&[&serde_json::to_vec(&Answer::default())?[..], b"\n"].concat())?;
                leave();
            }
        },
        Ask::Keep => {
            let kept = kept.context("this mount cannot be kept alive")?;
            let text = Zeroizing::new(serde_json::to_string(&kept.plan)?);
            kept.send(stream, text.as_bytes())?;
            kept.add_holder(stream.try_clone()?);
            return Ok(());
        }
        Ask::Drain => {
            let synced = engine.runtime().block_on(engine.sync());
            let unstored = engine.unstored_count();
            let stored_files = synced.files.into_iter().map(StoredFile::from).collect();
            Answer { unstored, stored: synced.stored, stored_files, failed: pairs(synced.failed), ..Answer::default() }
        }
    };
    let mut text = Zeroizing::new(Vec::with_capacity(TEXT_LEN));
    serde_json::to_writer(&mut *text, &answer)?;
    text.push(b'\n');
    let mut stream = stream;
    stream.write_all(&text)?;
    Ok(())
}

/// Whether somebody would start another process, or why not.
fn may_leave(kept: Option<&Kept>) -> Result<(), &'static str> {
    let kept = kept.ok_or("it was mounted with --no-restart")?;
    let begun = Instant::now();
    // Whoever has started this process asks for that next.
    while !kept.was_held() && begun.elapsed() < KEEP_TIMEOUT {
        std::thread::sleep(KEEP_PAUSE);
    }
    if kept.is_held() { Ok(()) } else { Err("nobody would start another process for it") }
}

fn pairs(files: Vec<Unstored>) -> Vec<(String, String)> {
    files.into_iter().map(|left| (left.path, left.reason)).collect()
}

/// Asks a mount's process for what keeps the mount alive without it.
///
/// # Errors
/// When it does not answer within `timeout`, or cannot be kept alive.
pub fn keep(path: &Path, timeout: Duration) -> anyhow::Result<Kept> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(format!("{}\n", serde_json::to_string(&Ask::Keep)?).as_bytes())?;
    let (text, descriptors) = hand_over::receive(stream.as_fd())?;
    Kept::new(serde_json::from_str(&text)?, descriptors, stream)
        .context("the mount's process did not hand over what it should")
}

/// Asks a mount's process.
///
/// # Errors
/// When it does not answer within `timeout`, or ends before; [`is_cut`] tells the two apart.
pub fn ask(path: &Path, ask: Ask, timeout: Duration) -> anyhow::Result<Answer> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(format!("{}\n", serde_json::to_string(&ask)?).as_bytes())?;
    // Large enough for keys: a text that grew would leave copies of them behind.
    let mut line = Zeroizing::new(String::with_capacity(TEXT_LEN));
    if BufReader::new(stream).read_line(&mut line)? == 0 {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, "the mount's process has closed the connection").into());
    }
    Ok(serde_json::from_str(&line)?)
}

/// Whether [`ask`] got no answer in time.
pub fn is_late(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

/// Whether [`ask`] got no answer because nobody is there any more: the process was killed, or has left its mount to
/// another one.
pub fn is_cut(error: &anyhow::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    error.downcast_ref::<io::Error>().is_some_and(|error| {
        matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | NotFound | UnexpectedEof)
    })
}
