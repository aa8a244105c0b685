//! The second half of a start, as pid 1: the file systems that belong to the new namespaces, then the way into the user
//! namespace and away from all powers, then [`super::serve`].

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::Mode;
use rustix::mount::UnmountFlags;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{Gid, LinkNameSpaceType, Uid};

use super::failure::{During, Failure};
use super::{caps, devices, rootfs, seccomp, serve};
use crate::packet::{self, Packet};
use crate::wire::{Progress, SetUp};

/// Where init keeps its own things for guests to use: states of sessions, the shell's start file.
pub(super) const RUN: &str = "/run/sandpail";

pub(super) fn run() -> Result<(), Failure> {
    let starter = super::take_socket().during("the socket to the starter")?;
    let message = packet::receive::<SetUp>(&starter).during("what to start")?;
    let Some((set_up, fds)) = message else {
        // The starter failed and has told so.
        return Ok(());
    };
    drop(starter);
    let [control, lock, users, daemon]: [OwnedFd; 4] =
        fds.try_into().map_err(|_| Failure::new("descriptors for init", std::io::ErrorKind::InvalidData))?;
    if let Err(failure) = enter(&set_up, &users) {
        let packet = Packet::new(&failure.to_progress(), Vec::new()).during("telling of a failure")?;
        return packet.send(&daemon).during("telling of a failure");
    }
    drop(users);
    Packet::new(&Progress::Ready, Vec::new()).and_then(|packet| packet.send(&daemon)).during("telling that it runs")?;
    drop(daemon);
    // The id range stays taken as long as this descriptor is open, which is as long as a process of the sandbox lives.
    let _lock = lock;
    serve::run(control, set_up.open_files).during("serving")
}

fn enter(set_up: &SetUp, users: &OwnedFd) -> Result<(), Failure> {
    // Views of host directories, taken while these can still be seen.
    let views = devices::views(set_up)?;
    std::env::set_current_dir(rootfs::NEW_ROOT).during("the new root")?;
    rustix::process::pivot_root(".", ".").during("changing the root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).during("leaving the old root")?;
    std::env::set_current_dir("/").during("the new root")?;
    devices::mount_all(set_up, views)?;

    // One byte: no core file, and no program of the host's that gets one either, which 0 does not prevent (core(5)).
    // Whoever started the daemon may have forbidden more, and even root may lack the capability to raise a limit again.
    let most = Some(rustix::process::getrlimit(Resource::Core).maximum.map_or(1, |most| most.min(1)));
    rustix::process::setrlimit(Resource::Core, Rlimit { current: most, maximum: most }).during("core files")?;
    rustix::thread::move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User))
        .during("entering the user namespace")?;
    rustix::thread::set_thread_groups(&[]).during("giving up groups")?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).during("becoming the sandbox's group 0")?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).during("becoming the sandbox's root")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    make_run_directory().during(RUN)?;
    // What guests must not see of init's memory is little, but a debugger on init could speak to the daemon.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).during("hiding init")?;
    caps::reduce().during("giving up capabilities")?;
    rustix::thread::set_no_new_privs(true).during("no_new_privs")?;
    rustix::thread::set_name(c"sandpail-init").during("init's name")?;
    seccomp::install().during("the system call filter")
}

/// Made by the sandbox's root, to whom it belongs.
fn make_run_directory() -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    for directory in [RUN, "/run/sandpail/sessions"] {
        match fs::DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            result => result?,
        }
    }
    fs::write(Path::new(RUN).join("bashrc"), BASHRC)
}

/// What the shell of a session's terminal begins with; the session's state is named by a variable.
const BASHRC: &str = "\
[ -r /etc/bash.bashrc ] && . /etc/bash.bashrc
[ -r ~/.bashrc ] && . ~/.bashrc
[ -r \"$SANDPAIL_SESSION_STATE\" ] && . \"$SANDPAIL_SESSION_STATE\"
unset SANDPAIL_SESSION_STATE
";
