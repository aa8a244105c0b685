//! Which process serves a mount, also while one that was killed or upgraded is followed by another.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::bail;
use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::host::{self, MountLine};
use crate::registry::{self, Entry};

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// What the next process may take, who waits for the last answers to the one before.
const NEXT_TIMEOUT: Duration = Duration::from_secs(30);

/// Where something is mounted.
#[derive(Clone, Debug)]
pub(crate) struct Spot {
    pub(crate) mountpoint: PathBuf,
    /// The sandbox that the path belongs to; `None` for the host itself.
    pub(crate) sandbox: Option<String>,
}

impl Spot {
    /// A directory of the host.
    pub(crate) fn on_host(mountpoint: PathBuf) -> Self {
        Self { mountpoint, sandbox: None }
    }

    pub(crate) fn of(entry: &Entry) -> Self {
        Self { mountpoint: entry.mountpoint.clone(), sandbox: entry.sandbox.clone() }
    }

    /// For people.
    pub(crate) fn shown(&self) -> String {
        registry::shown_place(self.sandbox.as_deref(), &self.mountpoint)
    }

    /// The process that serves it; one that follows another is waited for.
    ///
    /// # Errors
    /// When it is mounted, and none has come within `timeout`, or the time that one can take.
    pub(crate) fn served_by(&self, timeout: Duration) -> anyhow::Result<Found> {
        self.find(timeout, |_| true)
    }

    /// The same, but not this process.
    ///
    /// # Errors
    /// As [`Spot::served_by`].
    pub(crate) fn served_after(&self, pid: u32, timeout: Duration) -> anyhow::Result<Found> {
        self.find(timeout, |entry| entry.pid != pid)
    }

    /// The process that serves it now, if there is one.
    pub(crate) fn entry(&self) -> anyhow::Result<Option<Entry>> {
        Ok(self.entry_in(&registry::entries()?, |_| true).cloned())
    }

    fn entry_in<'a>(&self, entries: &'a [Entry], is_right: impl Fn(&Entry) -> bool) -> Option<&'a Entry> {
        let is_here = |entry: &Entry| entry.mountpoint == self.mountpoint && entry.sandbox == self.sandbox;
        entries.iter().rev().find(|entry| is_here(entry) && is_right(entry))
    }

    fn find(&self, timeout: Duration, is_right: impl Fn(&Entry) -> bool) -> anyhow::Result<Found> {
        let limit = timeout.min(NEXT_TIMEOUT);
        let (begun, mut look) = (Instant::now(), Look::default());
        loop {
            let entries = registry::entries()?;
            if let Some(entry) = self.entry_in(&entries, &is_right) {
                return Ok(Found::Served(entry.clone()));
            }
            if self.sandbox.is_none() {
                let mounts = host::mounts();
                let Some(line) = mounts.iter().rev().find(|line| line.mountpoint == self.mountpoint) else {
                    return Ok(Found::Gone);
                };
                if !line.is_sandpail() {
                    return Ok(Found::Gone);
                }
                if !line.is_own() || is_shown_by(&entries, &mounts, line) {
                    return Ok(Found::NotOurs);
                }
                if look.is_dead(&self.mountpoint) {
                    return Ok(Found::Dead);
                }
            }
            if begun.elapsed() > limit {
                let directory = registry::directory()?;
                bail!(
                    "no process that is known in {} has come within {limit:?} to serve {}",
                    directory.display(),
                    self.shown()
                );
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Who serves a mount.
pub(crate) enum Found {
    /// This process.
    Served(Entry),
    /// Nothing is mounted there any more.
    Gone,
    /// Its process has ended, and none will follow.
    Dead,
    /// It is another user's, or the same as a mount at another place.
    NotOurs,
}

impl Found {
    /// The process, if it can be asked for something; `None` if the mount has ended in good order.
    ///
    /// # Errors
    /// When nobody can be asked.
    pub(crate) fn process(self) -> anyhow::Result<Option<Entry>> {
        match self {
            Self::Served(entry) => Ok(Some(entry)),
            Self::Gone => Ok(None),
            Self::Dead => {
                bail!("its process has ended; what that had not stored is kept aside (see: sandpail recover list)")
            }
            Self::NotOurs => bail!("the process behind it is not this user's, or serves it at another place"),
        }
    }
}

/// Whether a mount is the same as one that an entry knows at another place: a bind mount.
pub(crate) fn is_shown_by(entries: &[Entry], mounts: &[MountLine], line: &MountLine) -> bool {
    mounts.iter().any(|other| {
        other.device == line.device
            && other.mountpoint != line.mountpoint
            && entries.iter().any(|entry| entry.sandbox.is_none() && entry.mountpoint == other.mountpoint)
    })
}

/// A look at a mount, which waits as long as nobody serves it.
#[derive(Default)]
struct Look {
    under_way: Option<Receiver<bool>>,
}

impl Look {
    /// Whether nobody will ever answer there.
    fn is_dead(&mut self, mountpoint: &Path) -> bool {
        let receiver = self.under_way.get_or_insert_with(|| {
            let (tell, told) = std::sync::mpsc::channel();
            let path = mountpoint.to_owned();
            // By a thread of its own, which may be left behind: a mount that hangs must not take this command along.
            std::thread::spawn(move || {
                // What the kernel remembers says nothing.
                let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
                let seen = rustix::fs::statx(CWD, &path, flags, StatxFlags::BASIC_STATS);
                // Nobody listens any more when the time was up.
                let _ = tell.send(seen.err() == Some(rustix::io::Errno::NOTCONN));
            });
            told
        });
        match receiver.try_recv() {
            Err(TryRecvError::Empty) => false,
            seen => {
                self.under_way = None;
                seen.unwrap_or(false)
            }
        }
    }
}
