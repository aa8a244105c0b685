//! What one test works with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;

use crate::mount::{MountPlan, s3fs};
use crate::server::{ACCESS_KEY, SECRET_KEY, sandpail};
use crate::{Mount, Proxy, Script, Server, ServerKind, python, repository};

/// A server, an empty bucket on it, and a directory; all gone after the test.
#[derive(Debug)]
pub struct World {
    /// The server.
    pub server: Arc<Server>,
    /// An empty bucket.
    pub bucket: String,
    number: u64,
    directory: tempfile::TempDir,
}

impl World {
    pub(crate) fn new(server: Arc<Server>, number: u64) -> Result<Self> {
        let bucket = server.new_bucket()?;
        let directory = tempfile::Builder::new().prefix(&format!("sandpail-e2e-{}-", std::process::id())).tempdir()?;
        std::fs::create_dir(directory.path().join("local"))?;
        Ok(Self { server, bucket, number, directory })
    }

    /// The server's kind.
    pub fn kind(&self) -> ServerKind {
        self.server.kind
    }

    /// A directory on the local file system.
    pub fn local(&self) -> PathBuf {
        self.directory.path().join("local")
    }

    /// The test's own directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Mounts the bucket.
    ///
    /// # Errors
    /// When it does not mount.
    pub fn mount(&self, options: &[&str]) -> Result<Mount> {
        Mount::start(self.plan("mnt", options)?)
    }

    /// Mounts the bucket once more, elsewhere.
    ///
    /// # Errors
    /// When it does not mount.
    pub fn mount_at(&self, name: &str, options: &[&str]) -> Result<Mount> {
        Mount::start(self.plan(name, options)?)
    }

    /// Mounts the bucket through a proxy that counts and breaks requests.
    ///
    /// # Errors
    /// When it does not mount.
    pub fn mount_counted(&self, options: &[&str]) -> Result<(Mount, Proxy)> {
        let proxy = Proxy::start(self.server.addr())?;
        let mut plan = self.plan("mnt", options)?;
        plan.endpoint = Some(proxy.endpoint());
        plan.source.clone_from(&self.bucket);
        Ok((Mount::start(plan)?, proxy))
    }

    /// Mounts the bucket with s3fs.
    ///
    /// # Errors
    /// When it does not mount.
    pub fn mount_s3fs(&self, name: &str) -> Result<S3fsMount> {
        let mut plan = self.plan(name, &[])?;
        plan.endpoint = Some(self.server.endpoint());
        plan.source.clone_from(&self.bucket);
        std::fs::create_dir_all(&plan.mountpoint)?;
        S3fsMount::start(&plan)
    }

    /// How this test's bucket is mounted at the directory `name`.
    ///
    /// # Errors
    /// When directories cannot be made.
    pub fn plan(&self, name: &str, options: &[&str]) -> Result<MountPlan> {
        let scratch = self.directory.path().join(format!("{name}.scratch"));
        std::fs::create_dir_all(&scratch)?;
        let (endpoint, source) = match self.kind() {
            ServerKind::Directory => (None, format!("dir:{}", self.server.bucket_dir().display())),
            ServerKind::Embedded | ServerKind::SeaweedFs => (Some(self.server.endpoint()), self.bucket.clone()),
        };
        Ok(MountPlan {
            test: self.number,
            endpoint,
            source,
            mountpoint: self.directory.path().join(name),
            scratch,
            options: options.iter().map(|&option| option.to_owned()).collect(),
            survives: false,
        })
    }

    /// A script that runs in `directory` and knows `LOCAL`, `REPO`, `PYTHON`, `TOOLS`, `SANDPAIL`, the endpoint
    /// and keys.
    ///
    /// # Errors
    /// When sandpail is not built.
    pub fn script_in(&self, directory: &Path, text: &str) -> Result<Script> {
        let venv = repository().join(".venv/bin");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut script = Script::new(text, directory)
            .env("LOCAL", self.local())
            .env("REPO", repository())
            .env("TOOLS", repository().join(".tools/bin"))
            .env("E2E", env!("CARGO_MANIFEST_DIR"))
            .env("PYTHON", python())
            .env("TMPDIR", self.local())
            .env("PATH", format!("{}:{path}", venv.display()))
            .env("ENDPOINT", self.server.endpoint())
            .env("BUCKET", &self.bucket)
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            // Sorting and messages must not depend on the machine.
            .env("LC_ALL", "C.UTF-8")
            .env("PYTHONDONTWRITEBYTECODE", "1");
        if !crate::on_peer() {
            script = script.env("SANDPAIL", sandpail()?);
        }
        for (name, value) in [
            ("GIT_AUTHOR_NAME", "e2e"),
            ("GIT_AUTHOR_EMAIL", "e2e@example.invalid"),
            ("GIT_COMMITTER_NAME", "e2e"),
            ("GIT_COMMITTER_EMAIL", "e2e@example.invalid"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            // What git tidies up in the background would still use the mount when the test is over.
            ("GIT_CONFIG_COUNT", "2"),
            ("GIT_CONFIG_KEY_0", "gc.autoDetach"),
            ("GIT_CONFIG_VALUE_0", "false"),
            ("GIT_CONFIG_KEY_1", "maintenance.autoDetach"),
            ("GIT_CONFIG_VALUE_1", "false"),
        ] {
            script = script.env(name, value);
        }
        Ok(script)
    }

    /// Runs a script inside the mount, with `MNT` set to it, and returns what it printed.
    ///
    /// # Errors
    /// When it fails; with the end of the mount's log.
    pub fn sh(&self, mount: &Mount, text: &str) -> Result<String> {
        // The test's own limit is what counts in the long form.
        let limit = std::time::Duration::from_secs(crate::short_or_long(300, 3600));
        let script = self.script_in(mount.path(), text)?.env("MNT", mount.path()).limit(limit);
        script.run().map_err(|error| error.context(format!("log of the mount:\n{}", mount.log())))
    }

    /// Runs Python with boto3, see [`Server::python`].
    ///
    /// # Errors
    /// When the code raises.
    pub fn python(&self, code: &str) -> Result<String> {
        self.server.python(code, &self.bucket)
    }
}

/// The other file system.
#[derive(Debug)]
pub struct S3fsMount {
    child: std::process::Child,
    path: PathBuf,
}

impl S3fsMount {
    fn start(plan: &MountPlan) -> Result<Self> {
        let log = std::fs::File::create(plan.scratch.join("s3fs.log"))?;
        let child = s3fs(plan)?.stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut mount = Self { child, path: plan.mountpoint.clone() };
        for _ in 0..1000 {
            if crate::mount::is_mounted(&mount.path) {
                return Ok(mount);
            }
            if let Some(status) = mount.child.try_wait()? {
                let told = std::fs::read_to_string(plan.scratch.join("s3fs.log")).unwrap_or_default();
                anyhow::bail!("s3fs ended ({status}): {told}");
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        anyhow::bail!("s3fs does not mount")
    }

    /// The mounted directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process behind it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for S3fsMount {
    fn drop(&mut self) {
        let quiet = std::process::Stdio::null;
        let done = std::process::Command::new("fusermount3").arg("-u").arg(&self.path).stderr(quiet()).status();
        if !done.is_ok_and(|status| status.success()) {
            let _ = self.child.kill();
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.path).stderr(quiet()).status();
        }
        let _ = self.child.wait();
    }
}
