//! `sandpail upgrade`: each mount goes on with another process, of the program's file as it is now.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::cli::UpgradeArgs;
use crate::control::{self, Ask};
use crate::registry::{self, Entry};
use crate::sync::{self, NEXT_PAUSE};

pub(crate) fn run(arguments: &UpgradeArgs) -> anyhow::Result<ExitCode> {
    let entries = match &arguments.mountpoint {
        Some(mountpoint) => vec![sync::mount_at(mountpoint)?],
        None => registry::entries()?,
    };
    if entries.is_empty() {
        println!("no mounts");
    }
    let mut failed = false;
    for entry in entries {
        match replace(&entry, arguments.timeout) {
            Ok(next) => println!("{}\tpid {} follows pid {}", entry.shown_place(), next.pid, entry.pid),
            Err(error) => {
                failed = true;
                eprintln!("sandpail: {} stays with its process {}: {error:#}", entry.shown_place(), entry.pid);
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn replace(entry: &Entry, timeout: Duration) -> anyhow::Result<Entry> {
    control::ask(&registry::socket_of(entry.pid)?, Ask::Yield, timeout)
        .context("it does not leave the mount to another (mounted with --no-restart, or by an older version)")?;
    let begun = Instant::now();
    loop {
        if let Some(next) = entry.next()? {
            return Ok(next);
        }
        if begun.elapsed() > timeout {
            bail!("no other process has come within {timeout:?}");
        }
        std::thread::sleep(NEXT_PAUSE);
    }
}
