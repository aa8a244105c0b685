//! `sandpail sync`: returns when everything that was written so far is in the bucket.

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::cli::SyncArgs;
use crate::control::{self, Ask, StoredFile};
use crate::progress::Waiting;
use crate::registry::{self, Entry};
use crate::serving::{Spot, is_shown_by};
use crate::{host, umount};

/// How long a mount may take to name what it has not stored, when it did not store it in time.
const NAMING_TIMEOUT: Duration = Duration::from_secs(5);

/// Time until a process is asked again, or another one, after it has closed the connection.
const ASK_AGAIN_PAUSE: Duration = Duration::from_millis(10);

/// What became of what was written.
pub(crate) enum Outcome {
    /// Everything is in the bucket; so many files had not been, some of which are named.
    Stored(usize, Vec<StoredFile>),
    /// These could not be stored, for these reasons; the others were.
    Failed(Vec<(String, String)>, Vec<StoredFile>),
    /// The time was up; these are not stored yet, with how the last try ended.
    Late(Vec<(String, String)>),
    /// Nothing is mounted there any more. Who has ended that was told what was not stored.
    Gone,
}

pub(crate) fn run(arguments: &SyncArgs) -> anyhow::Result<ExitCode> {
    let spots = match &arguments.mountpoint {
        Some(mountpoint) => vec![mount_at(mountpoint)?],
        None => all_mounts()?,
    };
    let waiting = Waiting::start("storing what was written");
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = spots.iter().map(|spot| scope.spawn(|| sync(spot, arguments.timeout))).collect::<Vec<_>>();
        all.into_iter().map(|one| one.join().unwrap_or_else(|_| bail!("storing ended early"))).collect()
    });
    drop(waiting);
    let mut code = ExitCode::SUCCESS;
    for (spot, outcome) in spots.iter().zip(outcomes) {
        let shown = spot.shown();
        match outcome {
            Ok(Outcome::Stored(count, _)) => println!("{shown}: everything is stored ({count} file(s) just now)"),
            Ok(Outcome::Gone) if arguments.all => println!("{shown}: {}", Outcome::Gone.told(arguments.timeout)),
            Ok(outcome) => {
                code = ExitCode::FAILURE;
                eprintln!("sandpail: {shown}: {}", outcome.told(arguments.timeout));
            }
            Err(error) => {
                code = ExitCode::FAILURE;
                eprintln!("sandpail: {shown}: {}", crate::report::in_one_line(&error));
            }
        }
    }
    Ok(code)
}

/// A directory that must be a mount.
pub(crate) fn mount_at(mountpoint: &Path) -> anyhow::Result<Spot> {
    let absolute = umount::absolute(mountpoint)?;
    if host::sandpail_mount(&absolute).is_none() {
        bail!("{} is not mounted by sandpail (see: sandpail list)", mountpoint.display());
    }
    Ok(Spot::on_host(absolute))
}

/// All mounts of this user, those too whose process was killed just now.
fn all_mounts() -> anyhow::Result<Vec<Spot>> {
    let (entries, mounts) = (registry::entries()?, host::mounts());
    let mut spots: Vec<Spot> = entries.iter().map(Spot::of).collect();
    for line in &mounts {
        let is_known = spots.iter().any(|spot| spot.sandbox.is_none() && spot.mountpoint == line.mountpoint)
            || is_shown_by(&entries, &mounts, line);
        if line.is_sandpail() && line.is_own() && !is_known {
            spots.push(Spot::on_host(line.mountpoint.clone()));
        }
    }
    Ok(spots)
}

fn sync(spot: &Spot, timeout: Duration) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let Some(mut entry) = spot.served_by(timeout)?.process()? else { return Ok(Outcome::Gone) };
    let left = || timeout.saturating_sub(started.elapsed());
    if entry.sandbox.is_none() {
        flush_pages(&entry.mountpoint, left())?;
    }
    drain(&mut entry, left())
}

/// Pages that were changed through a shared mapping are still the kernel's; nobody has told the mount's process.
fn flush_pages(mountpoint: &Path, timeout: Duration) -> anyhow::Result<()> {
    /// `FUSE_SUPER_MAGIC`
    const FUSE: rustix::fs::FsWord = 0x6573_5546;
    let (tell, told) = std::sync::mpsc::channel();
    let path = mountpoint.to_owned();
    // By a thread of its own, which may be left behind: a mount that hangs must not take this command along.
    std::thread::spawn(move || {
        let flushed = File::open(&path).and_then(|root| {
            // It may be unmounted by now, and another file system is below.
            if rustix::fs::fstatfs(&root)?.f_type == FUSE {
                rustix::fs::syncfs(root)?;
            }
            Ok(())
        });
        // Nobody listens any more when the time was up.
        let _ = tell.send(flushed);
    });
    let flushed =
        told.recv_timeout(timeout).with_context(|| format!("the mount does not answer within {timeout:?}"))?;
    flushed.context("the kernel cannot hand over what was written through mappings")
}

/// Has the mount's process store everything. One that ends before it has answered, killed or upgraded, is followed by
/// another, which is asked then, and which `entry` names afterwards.
pub(crate) fn drain(entry: &mut Entry, timeout: Duration) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    let left = || timeout.saturating_sub(begun.elapsed());
    loop {
        match drain_by(entry.pid, left()) {
            Err(error) if control::is_cut(&error) && !left().is_zero() => {}
            outcome => return outcome,
        }
        // It may only be about to end.
        std::thread::sleep(ASK_AGAIN_PAUSE);
        match Spot::of(entry).served_by(left())?.process()? {
            Some(next) => *entry = next,
            None => return Ok(Outcome::Gone),
        }
    }
}

fn drain_by(pid: u32, timeout: Duration) -> anyhow::Result<Outcome> {
    let socket = registry::socket_of(pid)?;
    // A timeout of zero would mean none.
    match control::ask(&socket, Ask::Drain, timeout.max(Duration::from_millis(1))) {
        Ok(answer) if answer.failed.is_empty() => Ok(Outcome::Stored(answer.stored, answer.stored_files)),
        Ok(answer) => Ok(Outcome::Failed(answer.failed, answer.stored_files)),
        Err(error) if control::is_late(&error) => {
            let answer = control::ask(&socket, Ask::Status, NAMING_TIMEOUT)
                .context("the mount's process says neither that everything is stored nor what is not")?;
            Ok(Outcome::Late(answer.failed))
        }
        Err(error) => Err(error.context("the mount's process does not say whether everything is stored")),
    }
}

impl Outcome {
    /// What was stored and what was not, for programs.
    pub(crate) fn to_json(&self) -> Value {
        const NONE: &[(String, String)] = &[];
        let (stored, not_stored) = match self {
            Self::Stored(_, stored) => (&stored[..], NONE),
            Self::Failed(failed, stored) => (&stored[..], &failed[..]),
            Self::Late(waiting) => (&[][..], &waiting[..]),
            Self::Gone => (&[][..], NONE),
        };
        let left = |(path, reason): &(String, String)| json!({ "path": path, "reason": reason });
        json!({ "stored": stored, "notStored": not_stored.iter().map(left).collect::<Vec<_>>() })
    }

    /// What is not stored, a line for each file.
    pub(crate) fn told(&self, timeout: Duration) -> String {
        let (mut text, files) = match self {
            Self::Stored(..) => return "everything is stored".to_owned(),
            Self::Gone => return "it is not mounted any more".to_owned(),
            Self::Failed(files, _) => (format!("{} file(s) could not be stored:", files.len()), files),
            Self::Late(files) => (format!("not everything is stored after {timeout:?}; still waiting:"), files),
        };
        for (path, reason) in files {
            text.push_str(&format!("\n  {path}: {reason}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_stored_is_told_by_name() {
        let files = vec![("/a".to_owned(), "access denied".to_owned()), ("/d/b".to_owned(), "dirty".to_owned())];
        let timeout = Duration::from_secs(3);
        assert_eq!(
            Outcome::Failed(files.clone(), Vec::new()).told(timeout),
            "2 file(s) could not be stored:\n  /a: access denied\n  /d/b: dirty"
        );
        let stored = StoredFile {
            path: "/c".to_owned(),
            size: 3,
            etag: Some("tag".to_owned()),
            checksum: Some("md5:sum".to_owned()),
            version: None,
        };
        assert_eq!(
            Outcome::Failed(files[..1].to_vec(), vec![stored]).to_json(),
            json!({ "stored": [{ "path": "/c", "size": 3, "etag": "tag", "checksum": "md5:sum" }], "notStored": [{ "path": "/a", "reason": "access denied" }] })
        );
        let late = Outcome::Late(files).told(timeout);
        assert!(late.starts_with("not everything is stored after 3s; still waiting:\n  /a: "), "{late}");
    }
}
