//! A daemon in a directory of its own, and short words for what tests do with it.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use sandpail_daemon::{
    BindingConfig, BucketListOptions, BucketPutOptions, Config, Daemon, DaemonError, MountError, MountErrorKind,
    MountOptions, MountRequest, MountSource,
};
use sandpail_sandbox::{ExecEvent, ExecSpec, SandboxId};
use sandpail_spec::{BindingName, BucketName};

pub(crate) struct World {
    pub(crate) daemon: Daemon,
    directory: tempfile::TempDir,
}

/// What a command did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: i32,
}

pub(crate) fn config(state_dir: &Path) -> Config {
    let mut config = Config::in_directory(state_dir);
    for name in ["MY_BUCKET", "OTHER"] {
        let name = BindingName::parse(name).unwrap();
        let bucket = BucketName::parse(&name.as_str().to_lowercase().replace('_', "-")).unwrap();
        config.bindings.insert(name.clone(), BindingConfig { name, bucket, remote: None });
    }
    config.mounts.drain_timeout = Duration::from_secs(20);
    config.mounts.log = "debug".to_owned();
    config
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path());
        change(&mut config);
        Self { daemon: Daemon::start(config).await.unwrap(), directory }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Ends everything, and looks for what is left.
    pub(crate) async fn end(self) {
        self.daemon.stop(true).await.unwrap();
        let left = |dir: &str| -> Vec<String> {
            let entries = std::fs::read_dir(self.path().join(dir)).into_iter().flatten().flatten();
            entries
                .map(|entry| entry.file_name().into_string().unwrap())
                .filter(|name| !name.starts_with('_'))
                .collect()
        };
        assert_eq!(left("registry"), [""; 0]);
        assert_eq!(left("sandboxes"), [""; 0]);
        let staged = left("staging").into_iter().filter(|name| name.starts_with("process-")).collect::<Vec<_>>();
        assert_eq!(staged, [""; 0]);
        let workers = workers_of(self.path());
        assert!(workers.is_empty(), "workers are left: {workers:?}");
    }

    pub(crate) async fn exec(&self, id: &SandboxId, line: &str) -> Done {
        exec(&self.daemon, id, line).await
    }

    /// Runs a line of shell that must succeed, and says what it wrote.
    pub(crate) async fn run(&self, id: &SandboxId, line: &str) -> String {
        let done = self.exec(id, line).await;
        assert_eq!(done.code, 0, "{line}: {done:?}");
        done.stdout
    }

    pub(crate) async fn mount(&self, id: &SandboxId, binding: &str, path: &str) -> Result<(), DaemonError> {
        self.daemon.mount(id, request(binding, path, MountOptions::default())).await
    }

    pub(crate) async fn put(&self, binding: &str, key: &str, bytes: impl Into<Bytes>) {
        let body = Box::pin(futures_util::stream::iter([Ok(bytes.into())]));
        self.daemon.put_object(binding, key, body, BucketPutOptions::default()).await.unwrap();
    }

    pub(crate) async fn get(&self, binding: &str, key: &str) -> Result<String, DaemonError> {
        let (_, mut body) = self.daemon.get_object(binding, key, None).await?;
        let mut all = Vec::new();
        while let Some(chunk) = body.next().await {
            all.extend_from_slice(&chunk?);
        }
        Ok(String::from_utf8(all).unwrap())
    }

    pub(crate) async fn keys(&self, binding: &str) -> Vec<String> {
        let page = self.daemon.list_objects(binding, BucketListOptions::default()).await.unwrap();
        page.objects.into_iter().map(|object| object.key).collect()
    }
}

pub(crate) fn request(binding: &str, path: &str, options: MountOptions) -> MountRequest {
    MountRequest { source: MountSource::Binding(binding.to_owned()), mount_path: path.to_owned(), options }
}

pub(crate) async fn exec(daemon: &Daemon, id: &SandboxId, line: &str) -> Done {
    let sandbox = daemon.sandbox(id).await.unwrap();
    let argv = ["sh", "-c", line].map(str::to_owned).to_vec();
    let mut events = sandbox.exec(ExecSpec { argv, ..ExecSpec::default() }).await.unwrap();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(event) = events.recv().await {
        match event {
            ExecEvent::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            ExecEvent::Stderr(bytes) => stderr.extend_from_slice(&bytes),
            ExecEvent::Exit { code } => {
                let text = |bytes| String::from_utf8(bytes).unwrap();
                return Done { stdout: text(stdout), stderr: text(stderr), code };
            }
            ExecEvent::Failed { message } => panic!("{line}: {message}"),
        }
    }
    panic!("{line}: no last event")
}

pub(crate) fn id(text: &str) -> SandboxId {
    SandboxId::parse(text).unwrap()
}

#[track_caller]
pub(crate) fn mount_error<T: std::fmt::Debug>(result: Result<T, DaemonError>) -> (MountErrorKind, String) {
    match result {
        Err(DaemonError::Mount(MountError { kind, message })) => (kind, message),
        other => panic!("{other:?}"),
    }
}

/// Processes of workers whose files are below a directory.
pub(crate) fn workers_of(state_dir: &Path) -> Vec<i32> {
    let is_worker = |pid: i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        command.split(|byte| *byte == 0).any(|word| word == sandpail_daemon::worker::ARGUMENT.as_bytes())
            && files.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|file| file.starts_with(state_dir))
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| is_worker(*pid)).collect()
}

/// Waits until something holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let begun = std::time::Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
