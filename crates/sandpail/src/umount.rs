//! `sandpail umount`: stores what is not stored, then unmounts.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::cli::UmountArgs;
use crate::progress::Waiting;
use crate::sync::{self, Outcome};
use crate::{host, registry};
use anyhow::{Context, bail};

pub(crate) fn run(arguments: &UmountArgs) -> anyhow::Result<ExitCode> {
    let shown = arguments.mountpoint.display();
    let mountpoint = absolute(&arguments.mountpoint)?;
    if host::sandpail_mount(&mountpoint).is_none() {
        bail!("{shown} is not mounted by sandpail (see: sandpail list)");
    }
    let mut entry = entry_of(&mountpoint)?;
    let mut left = None;
    let mut json = serde_json::json!({ "stored": [], "notStored": [] });
    if let Some(entry) = &mut entry {
        let waiting = Waiting::start("storing what was written");
        let outcome = sync::drain(entry, arguments.timeout)?;
        drop(waiting);
        if arguments.json {
            json = outcome.to_json();
        }
        if !matches!(outcome, Outcome::Stored(..)) {
            let told = outcome.told(arguments.timeout);
            if !arguments.force {
                tell_json(arguments, json, false)?;
                eprintln!("sandpail: {shown} stays mounted: {told}");
                eprintln!("sandpail: try again when the store answers, or keep the bytes aside with --force");
                return Ok(ExitCode::FAILURE);
            }
            left = Some(told);
        }
    }
    host::unmount(&mountpoint, false)?;
    // Another one may serve it by now; without an entry it has ended, or is about to.
    if let Some(entry) = registry::find(&mountpoint)?.or(entry) {
        wait_for_end(entry.pid, arguments.timeout)?;
    }
    tell_json(arguments, json, true)?;
    if let Some(told) = left {
        eprintln!("sandpail: {shown} is unmounted all the same: {told}");
        eprintln!("sandpail: what the last try could not store either is below kept/ in the staging directory");
    }
    Ok(ExitCode::SUCCESS)
}

/// With `--json`: what was stored at the end and what was not, and whether the mount is gone.
fn tell_json(arguments: &UmountArgs, mut json: serde_json::Value, unmounted: bool) -> anyhow::Result<()> {
    if arguments.json {
        json["mountpoint"] = arguments.mountpoint.display().to_string().into();
        json["unmounted"] = unmounted.into();
        writeln!(std::io::stdout(), "{json}").context("cannot print")?;
    }
    Ok(())
}

/// The entry of a mount. One whose process was killed has none until the next one serves.
fn entry_of(mountpoint: &Path) -> anyhow::Result<Option<registry::Entry>> {
    const TIMEOUT: Duration = Duration::from_secs(3);
    let begun = Instant::now();
    loop {
        let entry = registry::find(mountpoint)?;
        if entry.is_some() || begun.elapsed() > TIMEOUT || !answers(mountpoint) {
            return Ok(entry);
        }
        std::thread::sleep(sync::NEXT_PAUSE);
    }
}

/// Whether somebody serves the mount, or will.
pub(crate) fn answers(mountpoint: &Path) -> bool {
    let error = std::fs::symlink_metadata(mountpoint).err().and_then(|error| error.raw_os_error());
    error != Some(rustix::io::Errno::NOTCONN.raw_os_error())
}

pub(crate) fn absolute(path: &Path) -> anyhow::Result<std::path::PathBuf> {
    let absolute = std::path::absolute(path).with_context(|| format!("invalid path {}", path.display()))?;
    // Only the parent is looked up: the mount itself may not answer.
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else { return Ok(absolute) };
    Ok(parent.canonicalize().map_or(absolute.clone(), |parent| parent.join(name)))
}

/// Everything is in the bucket, or kept aside, when the process has ended.
fn wait_for_end(pid: u32, timeout: Duration) -> anyhow::Result<()> {
    let process = format!("/proc/{pid}/stat");
    let started = Instant::now();
    loop {
        let stat = std::fs::read_to_string(&process).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
        if !matches!(state, Some(Some(state)) if state != 'Z') {
            return Ok(());
        }
        if started.elapsed() > timeout {
            bail!("unmounted, but the mount's process {pid} has not ended yet");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
