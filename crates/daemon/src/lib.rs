//! Who exists, what is mounted, and in which order things start and stop.
#![forbid(unsafe_code)]

mod audit;
mod config;
mod daemon;
mod embedded;
mod error;
mod events;
mod mounts;
mod network;
mod objects;
mod sandboxes;
mod state;
mod types;
pub mod worker;

pub use config::{
    BindingConfig, Config, ConfigError, KeySource, LogFormat, MountDefaults, RemoteConfig, SecretRef, Secrets,
};
pub use daemon::Daemon;
pub use error::{DaemonError, MountError, MountErrorKind};
pub use types::*;
