//! Who exists, what is mounted, and in which order things start and stop.
#![forbid(unsafe_code)]

mod config;
mod daemon;
mod error;
mod types;
pub mod worker;

pub use config::{Config, Secrets};
pub use daemon::Daemon;
pub use error::{DaemonError, MountError, MountErrorKind};
pub use types::*;
