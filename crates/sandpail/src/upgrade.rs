//! `sandpail upgrade`: each mount goes on with another process, of the program's file as it is now.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::cli::UpgradeArgs;
use crate::control::{self, Ask};
use crate::registry::{self, Entry};
use crate::serving::Spot;
use crate::sync;

pub(crate) fn run(arguments: &UpgradeArgs) -> anyhow::Result<ExitCode> {
    let entries = match &arguments.mountpoint {
        Some(mountpoint) => {
            let spot = sync::mount_at(mountpoint)?;
            let gone = || format!("no process of this user serves {}", spot.shown());
            vec![spot.served_by(arguments.timeout)?.with_context(gone)?]
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
                eprintln!("sandpail: {} stays with its process {}: {error:#}", entry.shown_place(), entry.pid);
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
        // It was killed, or somebody else has asked before. Older versions refuse like this.
        Err(error) if control::is_cut(&error) => {}
        Err(error) => return Err(error),
    }
    Spot::of(entry).served_after(entry.pid, timeout)
}
