//! `sandpail umount`: stores what is not stored, then unmounts.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::cli::UmountArgs;
use crate::control::{self, Ask};
use crate::progress::Waiting;
use crate::{host, registry};
use anyhow::{Context, bail};

pub(crate) fn run(arguments: &UmountArgs) -> anyhow::Result<ExitCode> {
    let shown = arguments.mountpoint.display();
    let mountpoint = absolute(&arguments.mountpoint)?;
    if host::sandpail_mount(&mountpoint).is_none() {
        bail!("{shown} is not mounted by sandpail (see: sandpail list)");
    }
    let entry = registry::find(&mountpoint)?;
    if let Some(entry) = &entry {
        let left = drain(entry.pid, arguments.timeout)?;
        if !left.is_empty() && !arguments.force {
            eprintln!("sandpail: {shown} stays mounted: {} file(s) could not be stored:", left.len());
            for (path, reason) in left {
                eprintln!("  {path}: {reason}");
            }
            eprintln!("sandpail: try again when the store answers, or keep the bytes aside with --force");
            return Ok(ExitCode::FAILURE);
        }
    }
    host::unmount(&mountpoint, false)?;
    if let Some(entry) = entry {
        wait_for_end(entry.pid, arguments.timeout)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn absolute(path: &Path) -> anyhow::Result<std::path::PathBuf> {
    let absolute = std::path::absolute(path).with_context(|| format!("invalid path {}", path.display()))?;
    // Only the parent is looked up: the mount itself may not answer.
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else { return Ok(absolute) };
    Ok(parent.canonicalize().map_or(absolute.clone(), |parent| parent.join(name)))
}

fn drain(pid: u32, timeout: Duration) -> anyhow::Result<Vec<(String, String)>> {
    let socket = registry::socket_of(pid)?;
    let waiting = Waiting::start("storing what was written");
    let answer = control::ask(&socket, Ask::Drain, timeout);
    drop(waiting);
    Ok(answer.context("the mount's process does not say whether everything is stored")?.failed)
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
