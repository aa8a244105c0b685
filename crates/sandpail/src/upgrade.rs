//! `sandpail upgrade`: each mount goes on with another process, of the program's file as it is now.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::cli::UpgradeArgs;
use crate::control::{self, Ask};
use crate::registry::{self, Entry};
use crate::serving::Spot;
use crate::sync;

/// How long a process may take to be gone that has closed the connection.
const END_TIMEOUT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(10);

pub(crate) fn run(arguments: &UpgradeArgs) -> anyhow::Result<ExitCode> {
    let entries = match &arguments.mountpoint {
        Some(mountpoint) => {
            let spot = sync::mount_at(mountpoint)?;
            spot.served_by(arguments.timeout)?.process().with_context(|| spot.shown())?.into_iter().collect()
        }
        None => registry::entries()?,
    };
    if entries.is_empty() {
        println!("no mounts");
    }
    let mut failed = false;
    for entry in entries {
        match replace(&entry, arguments.timeout) {
            Ok(Some(next)) => println!("{}\tpid {} follows pid {}", entry.shown_place(), next.pid, entry.pid),
            Ok(None) => println!("{}\tis not mounted any more", entry.shown_place()),
            Err(error) => {
                failed = true;
                eprintln!("sandpail: {}: no other process follows {}: {error:#}", entry.shown_place(), entry.pid);
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The process that follows; `None` if the mount has ended meanwhile.
fn replace(entry: &Entry, timeout: Duration) -> anyhow::Result<Option<Entry>> {
    match control::ask(&registry::socket_of(entry.pid)?, Ask::Yield, timeout) {
        Ok(answer) => {
            if let Some(why) = answer.refused {
                bail!("it does not leave the mount to another: {why}");
            }
        }
        // It was killed, or somebody else has asked before.
        Err(error) if control::is_cut(&error) => {
            let begun = Instant::now();
            while registry::entries()?.iter().any(|other| other.pid == entry.pid) {
                if begun.elapsed() > END_TIMEOUT {
                    bail!("it does not leave the mount to another: mounted with --no-restart, or by an older version");
                }
                std::thread::sleep(PAUSE);
            }
        }
        Err(error) => return Err(error),
    }
    Spot::of(entry).served_after(entry.pid, timeout)?.process()
}
