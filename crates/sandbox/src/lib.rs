//! Isolated process trees: namespaces, a root file system, limits, commands, sessions, files. It has never heard of
//! buckets: it offers "attach this mount at that path" and "all that goes out comes through these sockets".
//!
//! The daemon's side ([`Runtime`], [`Sandbox`]) never runs a guest's code and never follows a guest's path as the host
//! does. What happens inside is done by init, started as [`init_main`], on messages over a socket. See `init` for how a
//! sandbox starts and `wire` for what is said.
#![deny(unsafe_code)]

mod agent;
mod cgroup;
mod control;
mod error;
mod findings;
mod hiding;
mod id;
mod ids;
mod image;
mod init;
mod network;
mod packet;
mod record;
mod removal;
mod runtime;
mod sandbox;
mod session;
mod skeleton;
mod start;
mod sys;
mod types;
mod unpack;
mod wire;

pub use agent::agent_main;
pub use error::SandboxError;
pub use id::{InvalidId, SandboxId, SessionId};
pub use init::init_main;
pub use network::{Listeners, NAME_SERVER, SOURCE};
pub use runtime::{Finding, Runtime, RuntimeOptions};
pub use sandbox::Sandbox;
pub use types::*;
