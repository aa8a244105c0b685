//! File operations that run inside the sandbox.
//!
//! A guest's paths mean something only in the guest's own root, and a guest may change them while they are looked at. So
//! no process of the host follows one: init starts [`agent_main`] as the sandbox's root, inside all its namespaces, and
//! the daemon talks to it over two pipes ([`client::Agent`]). Whatever a path leads to, the guest could have reached it
//! itself.

mod client;
mod protocol;

pub(crate) use client::Agent;

/// The program that runs inside the sandbox: serves one request from standard input.
pub fn agent_main() -> std::process::ExitCode {
    todo!()
}
