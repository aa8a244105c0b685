//! What the end-to-end tests stand on: real servers, real mounts, real programs.
//!
//! [`runner`] runs the table of tests, each on the embedded server and on SeaweedFS. A test gets a
//! [`World`]: a server, an empty bucket, a directory of its own, and helpers that mount the bucket and run
//! shell scripts with a time limit. [`Proxy`] stands between a mount and its server where a test counts
//! requests or breaks them. [`Daemon`] is a `sandpail serve` with sandboxes. Everything a test starts ends with its
//! guard: mounts are taken away, children are ended, directories removed, also when the test fails or hangs.
//!
//! Environment: `SANDPAIL_LONG=1` runs the long forms; `SANDPAIL_E2E_BIN` names a built `sandpail`;
//! `SANDPAIL_E2E_PEER=s3fs` mounts with s3fs instead, which shows what a test itself is worth;
//! `SANDPAIL_E2E_SERVER=seaweedfs` (or `embedded`) uses one server only; `SANDPAIL_E2E_TOLERATE_NO_FUSE=1`
//! lets a machine without `/dev/fuse` pass.
#![forbid(unsafe_code)]

pub mod command;
pub mod daemon;
pub mod mount;
pub mod proxy;
pub mod runner;
pub mod server;
mod world;

use std::path::PathBuf;

pub use command::{Finished, Script};
pub use daemon::{Around, Daemon};
pub use mount::Mount;
pub use proxy::{Fault, Proxy};
pub use runner::Test;
pub use server::{Server, ServerKind};
pub use world::World;

/// Whether the long forms were asked for.
pub fn is_long() -> bool {
    std::env::var_os("SANDPAIL_LONG").is_some_and(|value| value != "0" && !value.is_empty())
}

/// One number for each form of a test.
pub fn short_or_long<T>(short: T, long: T) -> T {
    if is_long() { long } else { short }
}

/// The repository's root.
pub fn repository() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().unwrap_or(root)
}

/// A Python that has the packages of `scripts/requirements.txt`.
pub fn python() -> PathBuf {
    repository().join(".venv/bin/python")
}

/// Whether the tests run on s3fs, to be checked themselves.
pub fn on_peer() -> bool {
    std::env::var_os("SANDPAIL_E2E_PEER").is_some_and(|peer| peer == "s3fs")
}
