//! What runs between the daemon and the guest: the starter, and init, the sandbox's pid 1.
//!
//! The daemon has threads, so it starts this program again, as [`init_main`]:
//!
//! ```text
//! daemon ── exec ──► starter (host root)       namespaces, root file system, ids          then it ends
//!                       └─ exec ──► init       pid 1: proc, dev, pivot_root, user namespace, seccomp, then serves
//!                                     ├─ fork+exec ─► commands, terminals
//!                                     └─ fork ──────► file agent (no exec: any root file system will do)
//! ```
//!
//! All namespaces but the user's are made before the user namespace is entered. They belong to the host's user
//! namespace, so that the sandbox's root has no power over its mounts, network or host name. The user namespace itself
//! is made first of all, by a helper that only lives until its ids are written, because id-mapped mounts need it.

mod caps;
mod child;
mod devices;
mod failure;
mod net;
mod outputs;
mod pid1;
mod processes;
mod rootfs;
mod seccomp;
mod serve;
mod starter;

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

/// First argument of this program when it is to be [`init_main`].
pub(crate) const ARGUMENT: &str = "sandbox-init";

/// Second argument when it is pid 1 already.
const PID1: &str = "pid1";

/// Runs as a sandbox's starter or init. To be called first thing in `main` when the first argument is `sandbox-init`,
/// before there is a second thread. Nothing of it is for people to call.
pub fn init_main() -> ExitCode {
    let is_pid1 = std::env::args_os().nth(2).is_some_and(|argument| argument == PID1);
    let result = if is_pid1 { pid1::run() } else { starter::run() };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{ARGUMENT}: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Takes the socket that standard input is, and leaves `/dev/null` there. All other descriptors but the standard ones are
/// closed: whoever started the daemon may have left some open, which are not for guests.
fn take_socket() -> io::Result<OwnedFd> {
    crate::sys::close_from(3)?;
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::net::sockopt::socket_type(&socket)?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(socket)
}
