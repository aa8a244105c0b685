//! Starting a sandbox, and taking one away: the daemon's side.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::packet::{self, Packet};
use crate::record::{self, Record};
use crate::wire::{Layers, Progress, SetUp, ShownFile};
use crate::{
    Limits, RootFs, SandboxError, SandboxFile, SandboxId, SandboxSpec, control, hiding, ids, image, init, skeleton,
};

/// A start takes some milliseconds, and seconds on a machine that is out of memory; not more.
const START_TIME_MAX: Duration = Duration::from_secs(60);

/// How long the kernel may take to end all processes of a sandbox that was killed.
const KILL_TIME_MAX: Duration = Duration::from_secs(20);

/// A failed system call of ours.
pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> SandboxError {
    let what = what.into();
    move |source| SandboxError::System { what, source }
}

/// What starting needs to know of the runtime.
#[derive(Debug)]
pub(crate) struct Starter<'a> {
    pub(crate) program: &'a Path,
    pub(crate) state_dir: &'a Path,
    pub(crate) hidden: &'a [PathBuf],
    pub(crate) cgroups: &'a crate::cgroup::Cgroups,
}

impl Starter<'_> {
    /// Makes the sandbox's directory and starts its init. What it made is the caller's to remove if it fails.
    pub(crate) async fn start(
        &self,
        id: &SandboxId,
        mut spec: SandboxSpec,
        directory: &Path,
        cgroup: &str,
    ) -> Result<(Record, OwnedFd), SandboxError> {
        let make = |path: &Path| DirBuilder::new().mode(0o700).create(path);
        for path in [directory, &directory.join("mnt"), &directory.join("disk"), &directory.join("logs")] {
            make(path).map_err(system(format!("making {}", path.display())))?;
        }
        // The overlays' own directories below are the guest's root; what is above is for root alone.
        fs::set_permissions(directory.join("mnt"), fs::Permissions::from_mode(0o755))
            .map_err(system("mode of a directory"))?;
        let disk_image = match spec.limits.disk {
            Some(len) => Some(make_disk(directory, len).await?),
            None => None,
        };
        // Not kept in memory: they may be large, and are on disk now.
        let files = write_files(directory, &std::mem::take(&mut spec.files))?;
        let (layers, env) = self.layers(&spec.rootfs).await?;
        let (ids, lock) = ids::take().map_err(system("a range of ids"))?;
        let groups = self.groups(cgroup, &spec.limits).map_err(system("control groups"))?;
        let hidden = hiding::inside(self.hidden, &spec)?;
        let hard_limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        let set_up = SetUp {
            name: id.as_str().to_owned(),
            directory: directory.to_owned(),
            ids,
            layers,
            expose: spec.expose.clone(),
            files,
            hidden,
            cgroups: groups.iter().map(|group| group.join("cgroup.procs")).collect(),
            disk_image,
            open_files: spec.limits.open_files(hard_limit),
            shared_len: spec.limits.shared_len(host_memory()),
        };
        let control = control::listen(directory).map_err(system("the control socket"))?;
        let packet = Packet::new(&set_up, vec![control, lock]).map_err(system("what to start"))?;
        let record = Record {
            pid: 0,
            start_ticks: 0,
            ids,
            spec,
            rootfs_env: env.into_iter().collect(),
            environment: BTreeMap::new(),
            environment_count: 0,
            sessions: BTreeMap::new(),
            processes: BTreeMap::new(),
            attachments: Vec::new(),
        };
        let running = tokio::time::timeout(START_TIME_MAX, self.run(&packet, directory, record)).await;
        running.map_err(|_| SandboxError::Host("a sandbox did not start in time".to_owned()))?
    }

    /// The control groups of a sandbox. A host where what nobody asked for cannot be limited has sandboxes all the same.
    fn groups(&self, cgroup: &str, limits: &Limits) -> io::Result<Vec<PathBuf>> {
        self.cgroups.make(cgroup, &limits.with_defaults()).or_else(|error| {
            let groups = self.cgroups.make(cgroup, limits)?;
            tracing::warn!(%error, "a sandbox goes without a limit of its processes");
            Ok(groups)
        })
    }

    /// The layers of a root file system, and the variables that it comes with.
    async fn layers(&self, rootfs: &RootFs) -> Result<(Layers, Vec<(String, String)>), SandboxError> {
        let base = self.state_dir.join(crate::runtime::BASE_DIR);
        match rootfs {
            RootFs::Host => {
                let skeleton = tokio::task::spawn_blocking(move || skeleton::prepare(&base.join("skeleton"))).await;
                let skeleton = skeleton
                    .map_err(io::Error::other)
                    .and_then(|skeleton| skeleton)
                    .map_err(system("the root directory of sandboxes"))?;
                Ok((Layers::Host { skeleton, system: skeleton::system_directories() }, Vec::new()))
            }
            RootFs::Directory(path) => {
                let found = fs::metadata(path).map_err(system(format!("root file system {}", path.display())))?;
                if !found.is_dir() {
                    return Err(SandboxError::Host(format!("root file system {} is no directory", path.display())));
                }
                Ok((Layers::Stack(vec![path.clone()]), Vec::new()))
            }
            RootFs::Image(path) => {
                let (path, cache) = (path.clone(), base.join("images"));
                let unpacked = tokio::task::spawn_blocking(move || image::unpack(&path, &cache)).await;
                let image = unpacked.map_err(io::Error::other).map_err(system("unpacking an image"))??;
                Ok((Layers::Stack(vec![image.root]), image.env))
            }
        }
    }

    async fn run(&self, set_up: &Packet, directory: &Path, record: Record) -> Result<(Record, OwnedFd), SandboxError> {
        let (ours, theirs) = packet::pair().map_err(system("a socket pair"))?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|error| system("a socket pair")(error.into()))?;
        let log = fs::File::create(directory.join("logs/init")).map_err(system("init's log"))?;
        let mut starter = tokio::process::Command::new(self.program)
            .arg(init::ARGUMENT)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(system(format!("starting {}", self.program.display())))?;
        let ours = crate::sys::watch(ours, Interest::READABLE | Interest::WRITABLE).map_err(system("a socket pair"))?;
        ours.async_io(Interest::WRITABLE, |socket| set_up.send(socket)).await.map_err(system("what to start"))?;
        let result = watch(&ours, directory, record).await;
        // It ends by itself once init runs, and when it failed; else its time is over.
        if result.is_err() {
            // It may be gone already.
            let _result = starter.start_kill();
        }
        starter.wait().await.map_err(system("the end of the starter"))?;
        result
    }
}

/// Follows the start. If it fails, init is killed if there is one. The record is written as soon as there is an init, which
/// begins only then: whatever happens to this daemon, the next one finds it.
async fn watch(
    socket: &AsyncFd<OwnedFd>,
    directory: &Path,
    mut record: Record,
) -> Result<(Record, OwnedFd), SandboxError> {
    let mut init = None;
    let failure = loop {
        let progress = socket.async_io(Interest::READABLE, |socket| packet::receive::<Progress>(socket)).await;
        match progress.map_err(system("the start of a sandbox"))? {
            Some((Progress::Init { pid, notes }, mut fds)) => {
                for note in notes {
                    tracing::warn!(note, "a sandbox goes without something");
                }
                record.pid = pid;
                record.start_ticks = record::start_ticks(pid).unwrap_or_default();
                init = fds.pop();
                record.write(directory).map_err(system("the sandbox's record"))?;
                let written = Packet::new(&(), Vec::new()).map_err(system("the start of a sandbox"))?;
                let told = socket.async_io(Interest::WRITABLE, |socket| written.send(socket)).await;
                told.map_err(system("the start of a sandbox"))?;
            }
            Some((Progress::Ready, _)) => match init {
                Some(init) => return Ok((record, init)),
                None => break "init came before it was told of".to_owned(),
            },
            Some((Progress::Failed { what, .. }, _)) => break what,
            None => {
                let log = fs::read_to_string(directory.join("logs/init")).unwrap_or_default();
                break format!("it ended without a word {}", log.trim());
            }
        }
    };
    if let Some(pidfd) = init {
        kill(&pidfd).await?;
    }
    Err(SandboxError::Host(format!("a sandbox cannot be started: {failure}")))
}

/// Kills init, and with it all processes of the sandbox, and returns when they have ended.
pub(crate) async fn kill(pidfd: &OwnedFd) -> Result<(), SandboxError> {
    match rustix::process::pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(system("killing a sandbox")(error.into())),
    }
    let pidfd = pidfd.try_clone().and_then(|pidfd| crate::sys::watch(pidfd, Interest::READABLE));
    let pidfd = pidfd.map_err(system("killing a sandbox"))?;
    let ended = tokio::time::timeout(KILL_TIME_MAX, pidfd.readable()).await;
    ended
        .map_err(|_| io::ErrorKind::TimedOut.into())
        .and_then(|ended| ended.map(drop))
        .map_err(system("the processes of a sandbox do not end"))?;
    // Init is our own child only where we are everybody's parent, as pid 1 of a container.
    let _not_ours = rustix::process::waitid(WaitId::PidFd(pidfd.get_ref().as_fd()), WaitIdOptions::EXITED);
    Ok(())
}

/// A descriptor for a process that an earlier daemon started, if it is still that one.
pub(crate) fn find(pid: i32, start_ticks: u64) -> Option<OwnedFd> {
    let pidfd = rustix::process::pidfd_open(rustix::process::Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Looked at after it was opened: the number cannot change hands in between.
    (record::start_ticks(pid) == Some(start_ticks)).then_some(pidfd)
}

/// Bytes of memory that this host has.
fn host_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into())
}

/// Writes the daemon's files for a sandbox below its directory, which is for root alone; equal ones once.
fn write_files(directory: &Path, files: &[SandboxFile]) -> Result<Vec<ShownFile>, SandboxError> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let place = directory.join("files");
    DirBuilder::new().mode(0o700).create(&place).map_err(system(format!("making {}", place.display())))?;
    let mut written: Vec<&[u8]> = Vec::new();
    let mut shown = Vec::new();
    for SandboxFile { path, content, is_optional } in files {
        if !path.is_absolute() || path.file_name().is_none() {
            return Err(SandboxError::Host(format!("{} is no place for a file in a sandbox", path.display())));
        }
        let index = written.iter().position(|known| *known == content).unwrap_or(written.len());
        let name = format!("files/{index}");
        if index == written.len() {
            let file = directory.join(&name);
            fs::write(&file, content).map_err(system(file.display().to_string()))?;
            // For whoever reads it inside; the directories above let nobody else come near.
            fs::set_permissions(&file, fs::Permissions::from_mode(0o444))
                .map_err(system(file.display().to_string()))?;
            written.push(content);
        }
        shown.push(ShownFile { name, at: path.clone(), is_optional: *is_optional });
    }
    Ok(shown)
}

/// Makes a sparse file system image, which is what bounds the sandbox's files.
async fn make_disk(directory: &Path, len: u64) -> Result<PathBuf, SandboxError> {
    /// Smaller ones have no room for the file system's own blocks.
    const LEN_MIN: u64 = 8 * 1024 * 1024;
    let image = directory.join("disk.img");
    let file = fs::File::create(&image).map_err(system("the disk image"))?;
    file.set_len(len.max(LEN_MIN)).map_err(system("the disk image"))?;
    let output = tokio::process::Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "nodiscard,lazy_itable_init=1,root_owner=0:0"])
        .arg(&image)
        // The daemon's own may hold keys.
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .await
        .map_err(system("mkfs.ext4, for the disk's limit"))?;
    if output.status.success() {
        return Ok(image);
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(SandboxError::Host(format!("mkfs.ext4: {why}")))
}
