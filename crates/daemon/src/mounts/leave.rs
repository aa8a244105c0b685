//! Ending a mount.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sandpail_sandbox::{Sandbox, SandboxError, SandboxId};
use sandpail_spec::MountPath;
use sandpail_sync::SyncError;

use super::process::Worker;
use super::{Action, Mount, MountEvent, STATUS_TIMEOUT, is_local, sync_state_file};
use crate::sandboxes::{Inner, Slot};
use crate::worker::control::{Answer, Ask, StoredFile};
use crate::{DaemonError, MountError};

/// How many files that are not stored are named.
const NAMED_COUNT_MAX: usize = 5;
/// How many files that were stored at the end are named.
const STORED_NAMED_MAX: usize = 100;

/// Stores everything, then unmounts. With `force` also what is in use or cannot be stored; gives what was not stored
/// then.
pub(crate) async fn unmount(
    inner: &Arc<Inner>,
    id: &SandboxId,
    mount_path: &str,
    force: bool,
) -> Result<NotStored, DaemonError> {
    inner.check_running()?;
    let path = MountPath::parse(mount_path).map_err(sandpail_spec::InvalidMount::from)?;
    let nothing = || DaemonError::from(MountError::nothing_at(path.as_str()));
    let slot = inner.slot(id).ok_or_else(nothing)?;
    let _turn = slot.turn.lock().await;
    let mount = slot.mount(&path).ok_or_else(nothing)?;
    let sandbox = slot.living().ok_or(SandboxError::Gone)?;
    let (left, files) = match mount.on(MountEvent::Unmount) {
        Action::Store => store(inner, &mount, force).await?,
        // The process is dead: nobody can store anything, and nothing is in use that still works.
        Action::Detach => {
            remove(inner, &slot, &sandbox, &mount).await?;
            inner.events.tell("mount.gone", &slot.id, Some(path.as_str()), "it had failed");
            return Ok(NotStored::new());
        }
        action => return Err(refused(&mount, format!("it is being made or ended ({action:?})")).into()),
    };
    if mount.sync().is_some() {
        mount.on(MountEvent::Stored);
        forget(inner, &slot, &mount);
        inner.events.tell("mount.gone", &slot.id, Some(path.as_str()), "the files stay");
        return Ok(left);
    }
    if mount.on(MountEvent::Stored) != Action::Detach {
        return Err(refused(&mount, "the process behind it ended meanwhile; unmount again").into());
    }
    let made = mount.now().made.clone();
    if let Err(error) = sandbox.detach(mount.path(), made.as_deref(), force).await {
        mount.on(MountEvent::Kept);
        inner.persist_or_warn(&slot);
        let why = match error {
            SandboxError::Busy { users, .. } => {
                // Guests choose the names of their processes.
                let users = users.join(", ").replace(char::is_control, "?");
                format!("it is in use by {users}; end them first, or unmount with force")
            }
            error => error.to_string(),
        };
        return Err(refused(&mount, why).into());
    }
    forget(inner, &slot, &mount);
    if let Some(worker) = mount.worker() {
        end_worker(&worker, inner.config().mounts.drain_timeout, force).await;
    }
    mount.is_left(inner.config().mounts.drain_timeout).await;
    inner.events.tell("mount.gone", &slot.id, Some(path.as_str()), told_stored(&files));
    Ok(left)
}

/// Files that are not in the bucket, with the reasons.
pub(crate) type NotStored = Vec<(String, String)>;

fn refused(mount: &Mount, why: impl std::fmt::Display) -> MountError {
    MountError::not_unmounted(format!("Cannot unmount {}: {why}", mount.shown.path))
}

/// Stores what is written. Without `force`, what cannot be stored keeps the mount.
async fn store(inner: &Inner, mount: &Mount, force: bool) -> Result<(NotStored, Vec<StoredFile>), MountError> {
    let timeout = inner.config().mounts.drain_timeout;
    let Left { why, files } = match stored(mount, timeout).await {
        Ok(files) => return Ok((NotStored::new(), files)),
        Err(left) => left,
    };
    if force {
        tracing::warn!(path = mount.shown.path.as_str(), why, "not stored; unmounted all the same");
        return Ok((files, Vec::new()));
    }
    mount.on(MountEvent::Kept);
    Err(refused(mount, why))
}

/// What is not in the bucket.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    /// In words, with some of the files.
    why: String,
    /// All of them, as far as they are known.
    files: NotStored,
}

impl From<String> for Left {
    fn from(why: String) -> Self {
        Self { why, files: NotStored::new() }
    }
}

/// What was stored at the end, in words.
fn told_stored(files: &[StoredFile]) -> String {
    if files.is_empty() {
        return String::new();
    }
    let tag = |file: &StoredFile| file.etag.as_ref().map_or(String::new(), |etag| format!(" ({etag})"));
    let some: Vec<String> =
        files.iter().take(STORED_NAMED_MAX).map(|file| format!("{}{}", file.path, tag(file))).collect();
    let more = if files.len() > STORED_NAMED_MAX { ", …" } else { "" };
    format!("{} file(s) stored at the end: {}{more}", files.len(), some.join(", "))
}

/// Brings everything to the bucket, and gives what was not there; if that cannot be, what is not there, and why.
async fn stored(mount: &Mount, timeout: Duration) -> Result<Vec<StoredFile>, Left> {
    if let Some(worker) = mount.worker() {
        let (worker, asked) = drained(mount, worker, timeout).await;
        return match asked {
            Ok(answer) => not_stored(answer.failed).map(|()| answer.stored_files),
            Err(why) => Err(still_waiting(&worker, why).await),
        };
    }
    let Some(sync) = mount.sync() else { return Ok(Vec::new()) };
    match tokio::time::timeout(timeout, sync.stop()).await {
        Ok(Ok(_)) => Ok(Vec::new()),
        Ok(Err(error)) => {
            let why = error.to_string();
            let files = if let SyncError::Incomplete { failed } = error { failed } else { NotStored::new() };
            Err(Left { why, files })
        }
        Err(_) => Err(format!("not everything is carried over within {timeout:?}").into()),
    }
}

/// Has everything stored, by `worker` or by the one that has followed it, which is given with the answer.
pub(super) async fn drained(mount: &Mount, worker: Worker, timeout: Duration) -> (Worker, Result<Answer, String>) {
    let begun = Instant::now();
    let mut worker = worker;
    loop {
        // No time at all would mean no limit.
        let left = timeout.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
        let asked = worker.ask(Ask::Drain, left).await;
        // One that was killed meanwhile has left everything to another.
        match &asked {
            Err(_) if let Some(next) = mount.next_worker(&worker).await => worker = next,
            _ => return (worker, asked),
        }
    }
}

/// The time was up, or nobody answered: what is not stored is asked for by name.
async fn still_waiting(worker: &Worker, why: String) -> Left {
    let why = format!("not everything is stored: {why}");
    match worker.ask(Ask::Status, STATUS_TIMEOUT).await {
        Ok(answer) if !answer.failed.is_empty() => {
            Left { why: format!("{why}; still waiting: {}", named(&answer.failed)), files: answer.failed }
        }
        _ => why.into(),
    }
}

fn not_stored(failed: NotStored) -> Result<(), Left> {
    if failed.is_empty() {
        return Ok(());
    }
    Err(Left { why: format!("{} file(s) could not be stored: {}", failed.len(), named(&failed)), files: failed })
}

fn named(files: &[(String, String)]) -> String {
    let some: Vec<String> =
        files.iter().take(NAMED_COUNT_MAX).map(|(path, reason)| format!("{path}: {reason}")).collect();
    let more = if files.len() > NAMED_COUNT_MAX { ", …" } else { "" };
    format!("{}{more}", some.join(", "))
}

/// Waits for the end of a worker whose mount is gone. It ends by itself; with `force` something may still hold the
/// mount, and then it is told to.
async fn end_worker(worker: &Worker, timeout: Duration, force: bool) {
    /// Time to notice that nobody holds the mount.
    const USUAL: Duration = Duration::from_millis(500);
    let patience = if force { USUAL.min(timeout) } else { timeout };
    if worker.ended_within(patience).await.is_none() {
        worker.end(timeout).await;
    }
}

/// The path is free again.
fn forget(inner: &Inner, slot: &Slot, mount: &Mount) {
    mount.close_door(slot);
    mount.now().kept = None;
    slot.now().mounts.remove(&mount.shown.path);
    inner.persist_or_warn(slot);
    if is_local(&mount.shown) {
        remove_sync_state(inner, slot, mount);
    }
}

fn remove_sync_state(inner: &Inner, slot: &Slot, mount: &Mount) {
    let file = sync_state_file(inner, slot, &mount.shown);
    match std::fs::remove_file(&file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(file = %file.display(), %error, "what a local bucket remembers stays");
        }
        _ => {}
    }
}

/// Takes a mount away whose process is dead.
async fn remove(inner: &Inner, slot: &Slot, sandbox: &Sandbox, mount: &Mount) -> Result<(), DaemonError> {
    let made = mount.now().made.clone();
    sandbox
        .detach(mount.path(), made.as_deref(), true)
        .await
        .map_err(|error| refused(mount, format!("it had failed, and stays: {error}")))?;
    forget(inner, slot, mount);
    Ok(())
}

/// Makes room at the path of a mount that failed.
pub(super) async fn clear_failed(inner: &Inner, slot: &Slot, mount: &Mount) -> Result<(), DaemonError> {
    let sandbox = slot.living().ok_or(SandboxError::Gone)?;
    mount.on(MountEvent::Unmount);
    remove(inner, slot, &sandbox, mount).await
}

/// The first half of a sandbox's end: stores what is written, as far as it can be.
pub(crate) async fn store_before_end(inner: &Arc<Inner>, slot: &Slot, mount: &Mount) {
    if mount.on(MountEvent::Unmount) != Action::Store {
        return;
    }
    match stored(mount, inner.config().mounts.drain_timeout).await {
        Ok(files) if files.is_empty() => {}
        Ok(files) => {
            inner.events.tell("mount.stored", &slot.id, Some(mount.shown.path.as_str()), told_stored(&files));
        }
        Err(Left { why, .. }) => {
            let detail = format!("{why}; its bytes are kept in staging");
            tracing::error!(sandbox = slot.id.as_str(), path = mount.shown.path.as_str(), why, "not stored at the end");
            inner.events.tell("mount.unstored", &slot.id, Some(mount.shown.path.as_str()), detail);
        }
    }
    mount.on(MountEvent::Stored);
    mount.close_door(slot);
    if mount.sync().is_some() {
        // Its directory must not be held when the sandbox is removed.
        mount.now().engine = None;
    }
}

/// The second half: the sandbox is gone, and with it everything that held the mount.
pub(crate) async fn end_after_sandbox(inner: &Arc<Inner>, slot: &Slot, mount: &Mount) {
    mount.now().kept = None;
    if let Some(worker) = mount.worker() {
        end_worker(&worker, inner.config().mounts.drain_timeout, false).await;
    }
    mount.is_left(inner.config().mounts.drain_timeout).await;
    if is_local(&mount.shown) {
        remove_sync_state(inner, slot, mount);
    }
    inner.events.tell("mount.gone", &slot.id, Some(mount.shown.path.as_str()), "with its sandbox");
}

/// The daemon ends and the sandbox goes on: local buckets carry everything over once more, workers work on.
pub(crate) async fn rest(slot: &Slot) -> Result<(), DaemonError> {
    /// Somebody waits for the daemon's end.
    const TIMEOUT: Duration = Duration::from_secs(30);
    for mount in slot.mounts() {
        if mount.sync().is_some() {
            let stored = stored(&mount, TIMEOUT).await;
            stored.map_err(|left| DaemonError::State(format!("{}: {}", mount.shown.path, left.why)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_stored_is_named() {
        assert_eq!(not_stored(Vec::new()), Ok(()));
        let one = ("a/b".to_owned(), "access denied".to_owned());
        assert_eq!(not_stored(vec![one.clone()]).unwrap_err().why, "1 file(s) could not be stored: a/b: access denied");
        let Left { why: many, files } = not_stored(vec![one; 6]).unwrap_err();
        assert_eq!(files.len(), 6);
        assert!(many.starts_with("6 file(s)") && many.ends_with(", …") && many.matches("a/b").count() == 5, "{many}");
    }
}
