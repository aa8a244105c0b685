//! Which process serves a mount, also while one that was killed or upgraded is followed by another.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::host;
use crate::registry::{self, Entry};

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// What the next process may take, who waits for the last answers to the one before.
const NEXT_TIMEOUT: Duration = Duration::from_secs(30);
/// The same in a sandbox, of which nobody here can say whether it is still mounted.
const IN_SANDBOX_TIMEOUT: Duration = Duration::from_secs(12);

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

    /// The process that serves it; one that follows another is waited for. `None`: nothing of this user is mounted there any
    /// more, or nobody will ever answer.
    ///
    /// # Errors
    /// When it is mounted, and none has come within `timeout`, or the time that one can take.
    pub(crate) fn served_by(&self, timeout: Duration) -> anyhow::Result<Option<Entry>> {
        self.find(timeout, |_| true)
    }

    /// The same, but not this process.
    ///
    /// # Errors
    /// As [`Spot::served_by`].
    pub(crate) fn served_after(&self, pid: u32, timeout: Duration) -> anyhow::Result<Option<Entry>> {
        self.find(timeout, |entry| entry.pid != pid)
    }

    fn find(&self, timeout: Duration, is_right: impl Fn(&Entry) -> bool) -> anyhow::Result<Option<Entry>> {
        let limit = timeout.min(NEXT_TIMEOUT);
        let (begun, mut look) = (Instant::now(), Look::default());
        loop {
            let is_here = |entry: &Entry| entry.mountpoint == self.mountpoint && entry.sandbox == self.sandbox;
            let found = registry::entries()?.into_iter().rev().find(|entry| is_here(entry) && is_right(entry));
            if found.is_some() {
                return Ok(found);
            }
            let is_over = match self.sandbox {
                None => !is_own_mount(&self.mountpoint) || look.is_dead(&self.mountpoint),
                Some(_) => begun.elapsed() > IN_SANDBOX_TIMEOUT,
            };
            if is_over {
                return Ok(None);
            }
            if begun.elapsed() > limit {
                bail!("no process has come within {limit:?} that serves {}", self.mountpoint.display());
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn is_own_mount(mountpoint: &Path) -> bool {
    host::sandpail_mount(mountpoint).is_some_and(|line| line.is_own())
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
                let error = std::fs::symlink_metadata(&path).err().and_then(|error| error.raw_os_error());
                // Nobody listens any more when the time was up.
                let _ = tell.send(error == Some(rustix::io::Errno::NOTCONN.raw_os_error()));
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
