//! `sandpail umount`: stores what is not stored, then unmounts.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::cli::UmountArgs;
use crate::host;
use crate::progress::Waiting;
use crate::report::in_one_line;
use crate::serving::Found;
use crate::sync::{self, Outcome};

pub(crate) fn run(arguments: &UmountArgs) -> anyhow::Result<ExitCode> {
    let shown = arguments.mountpoint.display();
    let spot = sync::mount_at(&arguments.mountpoint)?;
    let mountpoint = &spot.mountpoint;
    let (mut left, mut outcome) = (None, Outcome::Gone);
    let mut entry = match spot.served_by(arguments.timeout) {
        Err(error) if arguments.force => {
            left = Some(in_one_line(&error));
            None
        }
        // Nobody can be asked; or it is not the last place where the mount is seen.
        Ok(Found::Dead | Found::Gone | Found::NotOurs) => None,
        Ok(Found::Served(entry)) => Some(entry),
        Err(error) => return Err(error.context(format!("{shown} stays mounted (see --force)"))),
    };
    if let Some(entry) = &mut entry {
        let waiting = Waiting::start("storing what was written");
        let drained = sync::drain(entry, arguments.timeout);
        drop(waiting);
        match drained {
            Ok(drained) => outcome = drained,
            Err(error) if arguments.force => left = Some(in_one_line(&error)),
            Err(error) => return Err(error),
        }
        if matches!(outcome, Outcome::Failed(..) | Outcome::Late(..)) {
            let told = outcome.told(arguments.timeout);
            if !arguments.force {
                tell_json(arguments, outcome.to_json(), false)?;
                eprintln!("sandpail: {shown} stays mounted: {told}");
                eprintln!("sandpail: try again when the store answers, or keep the bytes aside with --force");
                return Ok(ExitCode::FAILURE);
            }
            left = Some(told);
        }
    }
    // Somebody else may have been quicker.
    if host::sandpail_mount(mountpoint).is_some() {
        host::unmount(mountpoint, false)?;
    }
    // Another one may serve it by now; without an entry it has ended, or is about to.
    if let Some(entry) = spot.entry()?.or(entry) {
        wait_for_end(entry.pid, arguments.timeout)?;
    }
    tell_json(arguments, outcome.to_json(), true)?;
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
