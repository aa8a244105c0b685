//! A runtime in a directory of its own, and short words for what tests do with sandboxes.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use sandpail_sandbox::{ExecEvent, ExecEvents, ExecSpec, Runtime, RuntimeOptions, Sandbox, SandboxId, SandboxSpec};

pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) runtime: Runtime,
}

/// What a command did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: i32,
}

impl World {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = runtime(directory.path());
        Self { directory, runtime }
    }

    pub(crate) async fn create(&self, spec: SandboxSpec) -> Sandbox {
        self.runtime.create(new_id(), spec).await.unwrap()
    }

    pub(crate) async fn sandbox(&self) -> Sandbox {
        self.create(SandboxSpec::default()).await
    }
}

pub(crate) fn runtime(state_dir: &Path) -> Runtime {
    let program = std::env::current_exe().unwrap();
    Runtime::new(RuntimeOptions { state_dir: state_dir.join("state"), program, hidden: Vec::new() }).unwrap()
}

pub(crate) fn new_id() -> SandboxId {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let letters: String = count.to_string().bytes().map(|digit| char::from(digit - b'0' + b'a')).collect();
    SandboxId::parse(&format!("test{letters}")).unwrap()
}

pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

pub(crate) async fn collect(mut events: ExecEvents) -> Result<Done, String> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut last = None;
    while let Some(event) = events.recv().await {
        assert!(last.is_none(), "{event:?} after the last event");
        match event {
            ExecEvent::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            ExecEvent::Stderr(bytes) => stderr.extend_from_slice(&bytes),
            ExecEvent::Exit { code } => last = Some(Ok(code)),
            ExecEvent::Failed { message } => last = Some(Err(message)),
        }
    }
    let code = last.expect("there is a last event")?;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ok(Done { stdout: text(stdout), stderr: text(stderr), code })
}

pub(crate) async fn exec(sandbox: &Sandbox, spec: ExecSpec) -> Result<Done, String> {
    collect(sandbox.exec(spec).await.unwrap()).await
}

/// Runs words.
pub(crate) async fn run(sandbox: &Sandbox, argv: &[&str]) -> Done {
    exec(sandbox, ExecSpec { argv: words(argv), ..ExecSpec::default() }).await.unwrap()
}

/// Runs a line of shell.
pub(crate) async fn shell(sandbox: &Sandbox, line: &str) -> Done {
    run(sandbox, &["bash", "-c", line]).await
}

/// What a daemon does before it ends: in a runtime of its own, with which all its tasks end.
pub(crate) async fn earlier_daemon<F: Future<Output = ()> + Send + 'static>(work: F) {
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async { tokio::spawn(work).await.unwrap() });
        runtime.shutdown_background();
    });
    while !thread.is_finished() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    thread.join().unwrap();
}
