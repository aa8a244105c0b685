//! Ranges of host ids, one for each living sandbox of this host, whichever daemon it belongs to.
//!
//! A range is taken by a lock on a file, and the descriptor that holds the lock goes to the sandbox's init: so a range is
//! free again when the sandbox ends, in whatever way, and not before.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rustix::fs::FlockOperation;

use crate::IdMap;

/// Above what distributions give to users and services, and to users' own containers (100,000 and up for each user).
const BASE: u32 = 1_000_000;

/// Ids of one sandbox: as many as programs expect.
const LEN: u32 = 65_536;

/// Ranges below 2^31, beyond which some file systems and programs see negative numbers.
const SLOT_COUNT: u32 = (i32::MAX as u32 - BASE) / LEN;

/// Locks live where the host's other daemons look too, and are gone after a restart of the host.
const DIRECTORY: &str = "/run/sandpail/ids";

/// Takes the first free range. It stays taken while the descriptor, or a copy of it, is open.
///
/// # Errors
/// When all are taken or the directory cannot be written.
pub(crate) fn take() -> io::Result<(IdMap, OwnedFd)> {
    let directory = Path::new(DIRECTORY);
    // Nobody else may hold locks here.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    for slot in 0..SLOT_COUNT {
        let file = File::options().create(true).append(true).open(directory.join(slot.to_string()))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok((IdMap { base: BASE + slot * LEN, len: LEN }, file.into())),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other("all ranges of ids for sandboxes are taken"))
}
