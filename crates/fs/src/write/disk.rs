//! What stands before every change of the staging directory.
//!
//! In production nothing does. A test of disks that are full or broken, and of processes that die between any two system
//! calls, hangs itself in with [`set_hook`]. A hook belongs to a thread: several worlds are tested side by side.

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::time::Duration;

/// A change of the staging directory that is about to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskChange {
    /// A file is made.
    Create,
    /// So many bytes are written to a staging file.
    Write(u64),
    /// A staging file is cut or extended.
    Resize,
    /// A range of a staging file becomes a hole.
    Punch,
    /// A record is appended to.
    Record,
    /// The same, in room that the record has already: a full disk does not refuse it.
    Kept,
    /// What was written is brought to the disk.
    Sync,
    /// A file moves.
    Rename,
    /// A file or directory is removed.
    Remove,
}

type Hook = Box<dyn FnMut(DiskChange) -> io::Result<Duration>>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// From now on `hook` is asked before each change that this thread makes; an error keeps it from being made, and the time is
/// what it takes where something can wait for it: bringing bytes to the disk. `None` ends that.
pub fn set_hook(hook: Option<Hook>) {
    HOOK.with(|slot| *slot.borrow_mut() = hook);
}

pub(super) fn before(change: DiskChange) -> io::Result<()> {
    ask(change).map(drop)
}

/// The same for what may wait.
pub(super) async fn before_sync() -> io::Result<()> {
    let takes = ask(DiskChange::Sync)?;
    if !takes.is_zero() {
        tokio::time::sleep(takes).await;
    }
    Ok(())
}

fn ask(change: DiskChange) -> io::Result<Duration> {
    HOOK.with(|hook| hook.borrow_mut().as_mut().map_or(Ok(Duration::ZERO), |hook| hook(change)))
}

/// Removes a file of the staging directory.
pub(crate) fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    before(DiskChange::Remove)?;
    std::fs::remove_file(path)
}

/// Removes a directory below the staging directory, if it is empty.
pub(crate) fn remove_dir(path: impl AsRef<Path>) -> io::Result<()> {
    before(DiskChange::Remove)?;
    std::fs::remove_dir(path)
}

/// Moves a file inside the staging directory.
pub(crate) fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    before(DiskChange::Rename)?;
    std::fs::rename(from, to)
}
