//! The first half of a start, as the host's root: ids, namespaces, the layers of the root file system.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::mount::MountPropagationFlags;
use rustix::process::{Pid, PidfdFlags, WaitOptions};
use rustix::thread::UnshareFlags;

use super::failure::{During, Failure};
use super::{ARGUMENT, PID1, net, rootfs};
use crate::packet::{self, Packet};
use crate::wire::{Progress, SetUp};
use crate::{IdMap, sys};

pub(super) fn run() -> Result<(), Failure> {
    let daemon = super::take_socket().during("the socket to the daemon")?;
    let result = start(&daemon);
    if let Err(failure) = &result {
        let packet = Packet::new(&failure.to_progress(), Vec::new()).during("telling of a failure")?;
        packet.send(&daemon).during("telling of a failure")?;
    }
    result
}

fn start(daemon: &OwnedFd) -> Result<(), Failure> {
    let message = packet::receive::<SetUp>(daemon).during("what to start")?;
    let Some((set_up, mut fds)) = message else {
        return Err(Failure::new("what to start", std::io::ErrorKind::UnexpectedEof));
    };
    for cgroup in &set_up.cgroups {
        fs::write(cgroup, "0").during(format!("joining {}", cgroup.display()))?;
    }
    let users = make_user_namespace(set_up.ids)?;
    std::env::set_current_dir(&set_up.directory).during("the sandbox's directory")?;
    let namespaces = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    sys::unshare(namespaces).during("new namespaces")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).during("making mounts private")?;
    net::open_loopback().during("the loopback interface")?;
    set_host_name(&set_up.name)?;
    let notes = rootfs::build(&set_up, users.as_fd())?;
    sys::unshare(UnshareFlags::NEWPID).during("a new pid namespace")?;

    let (ours, theirs) = packet::pair().during("a socket pair")?;
    let child = Command::new("/proc/self/exe")
        .args([ARGUMENT, PID1])
        .env_clear()
        .stdin(Stdio::from(theirs))
        .spawn()
        .during("starting init")?;
    let pid = i32::try_from(child.id()).map_err(std::io::Error::other).during("init's pid")?;
    let pidfd = Pid::from_raw(pid)
        .ok_or(std::io::ErrorKind::InvalidData)
        .during("init's pid")
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).during("init's pidfd"))?;
    // Told before init may begin, so that the daemon can undo whatever comes.
    let told = Packet::new(&Progress::Init { pid, notes }, vec![pidfd]).during("telling of init")?;
    told.send(daemon).during("telling of init")?;
    // It begins when it is written down. A daemon that was killed before has a successor that would not know of it.
    if packet::receive::<()>(daemon).during("whether init is written down")?.is_none() {
        return Err(Failure::new("whether init is written down", std::io::ErrorKind::UnexpectedEof));
    }
    fds.push(users);
    fds.push(daemon.try_clone().during("the socket to the daemon")?);
    Packet::new(&set_up, fds).and_then(|packet| packet.send(&ours)).during("telling init what to start")
}

/// Makes a user namespace with these ids. A child makes it and lives until the ids are written, as only a process
/// outside can write more than one id.
fn make_user_namespace(ids: IdMap) -> Result<OwnedFd, Failure> {
    const WHAT: &str = "a user namespace";
    let (mut is_made, mut made) = std::io::pipe().during(WHAT)?;
    let helper = sys::fork_child(|| {
        let kill = Some(rustix::process::Signal::KILL);
        let is_ready = sys::unshare(UnshareFlags::NEWUSER).is_ok()
            && rustix::process::set_parent_process_death_signal(kill).is_ok()
            && made.write_all(b"1").is_ok();
        if !is_ready {
            return 1;
        }
        loop {
            std::thread::park();
        }
    })
    .during(WHAT)?;
    drop(made);
    let result = (|| {
        is_made.read_exact(&mut [0]).during("a user namespace (see /proc/sys/user/max_user_namespaces)")?;
        let map = format!("0 {} {}\n", ids.base, ids.len);
        let proc = format!("/proc/{}", helper.as_raw_nonzero());
        fs::write(format!("{proc}/uid_map"), &map).during("the user id map")?;
        fs::write(format!("{proc}/gid_map"), &map).during("the group id map")?;
        fs::File::open(format!("{proc}/ns/user")).map(OwnedFd::from).during(WHAT)
    })();
    let killed = rustix::process::kill_process(helper, rustix::process::Signal::KILL);
    killed.during(WHAT)?;
    rustix::process::waitpid(Some(helper), WaitOptions::empty()).during(WHAT)?;
    result
}

fn set_host_name(name: &str) -> Result<(), Failure> {
    /// The kernel's `__NEW_UTS_LEN`.
    const NAME_LEN_MAX: usize = 64;
    let name = name.as_bytes();
    rustix::system::sethostname(name.get(..NAME_LEN_MAX).unwrap_or(name)).during("the host name")
}
