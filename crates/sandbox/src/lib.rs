//! Isolated process trees: namespaces, a root file system, limits, commands, sessions, files. It has never heard of
//! buckets: it offers "attach this mount at that path".
#![deny(unsafe_code)]

mod agent;
mod error;
mod id;
mod image;
mod runtime;
mod sandbox;
mod types;
mod unpack;

pub use agent::agent_main;
pub use error::SandboxError;
pub use id::{InvalidId, SandboxId, SessionId};
pub use runtime::{Finding, Runtime, RuntimeOptions};
pub use sandbox::Sandbox;
pub use types::*;
