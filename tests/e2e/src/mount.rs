//! A mount that goes away with its guard.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::server::{ACCESS_KEY, SECRET_KEY, sandpail};
use crate::{Script, on_peer};

/// How long a mount may take to appear, and to drain.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);

/// Mounts that are alive: the test's number, the process, the place. For the watchdog.
static LIVE: Mutex<Vec<(u64, u32, PathBuf)>> = Mutex::new(Vec::new());

fn live() -> MutexGuard<'static, Vec<(u64, u32, PathBuf)>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the mounts of a test that hangs, so that what waits for them wakes up.
pub fn abort_mounts_of(test: u64) {
    let stuck: Vec<_> = live().iter().filter(|(owner, ..)| *owner == test).cloned().collect();
    for (_, pid, mountpoint) in stuck {
        // Our own child, not yet waited for: the number cannot be someone else's.
        let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        detach(&mountpoint);
    }
}

/// Whether something is mounted at `path`. Asks the kernel's table, so a dead mount cannot block it.
pub fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let escaped = path.display().to_string().replace(' ', "\\040");
    table.lines().any(|line| line.split(' ').nth(4) == Some(&escaped))
}

fn detach(mountpoint: &Path) {
    let quiet = |command: &mut Command| {
        command
            .arg(mountpoint)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if !quiet(Command::new("umount").arg("-l")) {
        quiet(Command::new("fusermount3").args(["-u", "-z"]));
    }
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountPlan {
    /// The running test.
    pub test: u64,
    /// The server's URL; none for a bucket directory.
    pub endpoint: Option<String>,
    /// The bucket, with a prefix or not; or `dir:PATH`.
    pub source: String,
    /// Where.
    pub mountpoint: PathBuf,
    /// A directory for logs and staging.
    pub scratch: PathBuf,
    /// More of sandpail's options.
    pub options: Vec<String>,
    /// Another process goes on when the mount's is killed. Without it the process is our child.
    pub survives: bool,
}

/// A bucket, mounted by a process that is our child.
#[derive(Debug)]
pub struct Mount {
    plan: MountPlan,
    child: Child,
    done: bool,
}

/// How often a log says that a mount is ready.
fn times_ready(log: &Path) -> usize {
    std::fs::read_to_string(log).unwrap_or_default().matches("mounted on ").count()
}

impl Mount {
    /// Mounts and waits until the directory answers.
    ///
    /// # Errors
    /// With the log when the process ends or does not mount in time.
    pub fn start(plan: MountPlan) -> Result<Self> {
        std::fs::create_dir_all(&plan.mountpoint)?;
        let log = plan.scratch.join("mount.log");
        let output = File::options().create(true).append(true).open(&log)?;
        let ready_before = times_ready(&log);
        let mut command = if on_peer() { s3fs(&plan)? } else { ours(&plan)? };
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot start the mount's process")?;
        live().push((plan.test, child.id(), plan.mountpoint.clone()));
        let mut mount = Self { plan, child, done: false };
        let start = Instant::now();
        while !is_mounted(&mount.plan.mountpoint) {
            if let Some(status) = mount.child.try_wait()? {
                bail!("the mount's process ended ({status}):\n{}", mount.log());
            }
            ensure!(start.elapsed() < MOUNT_LIMIT, "not mounted after {MOUNT_LIMIT:?}:\n{}", mount.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        Script::new("stat . >/dev/null", &mount.plan.mountpoint).limit(MOUNT_LIMIT).run()?;
        // It answers before everybody can find its process.
        while !on_peer() && times_ready(&log) == ready_before {
            ensure!(start.elapsed() < MOUNT_LIMIT, "not ready after {MOUNT_LIMIT:?}:\n{}", mount.log());
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(mount)
    }

    /// The mounted directory.
    pub fn path(&self) -> &Path {
        &self.plan.mountpoint
    }

    /// The process behind it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of what the process logged.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.plan.scratch.join("mount.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Stores what is not stored, and unmounts.
    ///
    /// # Errors
    /// When the program says so, or the process outlives its mount.
    pub fn unmount(mut self) -> Result<()> {
        self.unmount_now()
    }

    fn unmount_now(&mut self) -> Result<()> {
        let script = if on_peer() {
            Script::new("fusermount3 -u \"$MNT\"", "/")
        } else {
            Script::new("\"$SANDPAIL\" umount \"$MNT\"", "/").env("SANDPAIL", sandpail()?)
        };
        script.env("MNT", self.path()).limit(Duration::from_secs(120)).run().with_context(|| self.log())?;
        ensure!(!is_mounted(self.path()), "still mounted after umount");
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(start.elapsed() < MOUNT_LIMIT, "the process outlives its mount:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        self.forget();
        Ok(())
    }

    /// Unmounts and mounts again, with the same options and `more`.
    ///
    /// # Errors
    /// As the two steps.
    pub fn remount(mut self, more: &[&str]) -> Result<Self> {
        self.unmount_now()?;
        let mut plan = self.plan.clone();
        plan.options.extend(more.iter().map(|&option| option.to_owned()));
        Self::start(plan)
    }

    /// Ends the process as a crash would, and clears the mountpoint.
    ///
    /// # Errors
    /// When the process cannot be ended.
    pub fn crash(mut self) -> Result<MountPlan> {
        self.child.kill()?;
        self.child.wait()?;
        detach(self.path());
        self.forget();
        Ok(self.plan.clone())
    }

    /// The highest memory use of the process so far, in MiB.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn peak_memory_mib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
    }

    fn forget(&mut self) {
        let pid = self.child.id();
        live().retain(|(_, other, _)| *other != pid);
        self.done = true;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if self.unmount_now().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            if is_mounted(self.path()) {
                detach(self.path());
            }
            self.forget();
        }
    }
}

fn ours(plan: &MountPlan) -> Result<Command> {
    let mut command = Command::new(sandpail()?);
    command.args(["mount", "--foreground"]).arg(&plan.source).arg(&plan.mountpoint);
    if let Some(endpoint) = &plan.endpoint {
        command.args(["--endpoint", endpoint, "--region", "us-east-1"]);
    }
    command.arg("--staging-dir").arg(plan.scratch.join("staging"));
    command.arg("--log-file").arg(plan.scratch.join("mount.log"));
    if !plan.survives {
        command.arg("--no-restart");
    }
    command.args(&plan.options);
    command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    // Nobody's own profiles.
    command.env("HOME", &plan.scratch).env_remove("AWS_PROFILE").env_remove("AWS_ENDPOINT_URL");
    Ok(command)
}

/// A mount by s3fs, for interoperation and to try the tests themselves.
///
/// # Errors
/// When its password file cannot be written.
pub fn s3fs(plan: &MountPlan) -> io::Result<Command> {
    let passwords = plan.scratch.join("s3fs-passwords");
    std::fs::write(&passwords, format!("{ACCESS_KEY}:{SECRET_KEY}"))?;
    std::fs::set_permissions(&passwords, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let source = plan.source.replacen('/', ":/", 1);
    let mut command = Command::new("s3fs");
    command.arg(source).arg(&plan.mountpoint).arg("-f");
    let endpoint = plan.endpoint.as_deref().unwrap_or_default();
    let options = format!(
        "url={endpoint},use_path_request_style,passwd_file={},tmpdir={},allow_other,enable_noobj_cache",
        passwords.display(),
        plan.scratch.display()
    );
    command.args(["-o", &options]);
    if plan.options.iter().any(|option| option == "--read-only") {
        command.args(["-o", "ro"]);
    }
    Ok(command)
}
