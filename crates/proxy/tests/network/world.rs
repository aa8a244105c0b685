//! Sandboxes with a network, and a host beside them that they may be let to.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use sandpail_proxy::{
    Audit, AuditRecord, BUNDLE_PATH, Ca, DummyKey, EgressPolicy, Guest, Network, Sockets, TRUST_VARIABLES,
};
use sandpail_sandbox::{ExecEvent, ExecSpec, Runtime, RuntimeOptions, Sandbox, SandboxFile, SandboxId, SandboxSpec};
use sandpail_spec::SecretKey;

#[derive(Debug, Default)]
pub(crate) struct Records(Mutex<Vec<AuditRecord>>);

impl Audit for Records {
    fn record(&self, record: AuditRecord) {
        self.0.lock().unwrap().push(record);
    }
}

impl Records {
    pub(crate) fn rules(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().iter().filter_map(|record| record.refused).collect()
    }
}

pub(crate) struct World {
    directory: tempfile::TempDir,
    pub(crate) runtime: Runtime,
}

/// A test that failed leaves its sandboxes; they must not outlive it.
impl Drop for World {
    fn drop(&mut self) {
        let states = std::fs::read_dir(self.directory.path()).into_iter().flatten().flatten();
        for record in states.filter_map(|state| std::fs::read(state.path().join("record.json")).ok()) {
            let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
            let pid = record["pid"].as_i64().and_then(|pid| rustix::process::Pid::from_raw(pid.try_into().ok()?));
            if let Some(pid) = pid {
                let _ended = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

pub(crate) struct Guarded {
    pub(crate) sandbox: Sandbox,
    pub(crate) network: Network,
    pub(crate) guest: Arc<Guest>,
    pub(crate) records: Arc<Records>,
    pub(crate) kept: SecretKey,
}

pub(crate) fn policy(json: &str) -> EgressPolicy {
    serde_json::from_str(json).unwrap()
}

impl World {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = runtime(directory.path());
        Self { directory, runtime }
    }

    /// The same place after a restart of the daemon.
    pub(crate) fn again(&self) -> Runtime {
        runtime(self.directory.path())
    }

    pub(crate) async fn sandbox(&self, json: &str) -> Guarded {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let letters: String = count.to_string().bytes().map(|digit| char::from(digit - b'0' + b'a')).collect();
        let id = SandboxId::parse(&format!("net{letters}")).unwrap();
        let ca = Ca::generate(id.as_str()).unwrap();
        let bundle = SandboxFile { path: BUNDLE_PATH.into(), content: ca.bundle().unwrap().into(), is_optional: false };
        let spec = SandboxSpec { files: vec![bundle], ..SandboxSpec::default() };
        let sandbox = self.runtime.create(id, spec).await.unwrap();
        let variables = TRUST_VARIABLES.map(|name| (name.to_owned(), BUNDLE_PATH.to_owned()));
        sandbox.set_environment(BTreeMap::from(variables)).unwrap();
        let records = Arc::new(Records::default());
        let key = DummyKey { id: "AK".to_owned(), secret: SecretKey::new("s") };
        let guest = Arc::new(Guest::new(sandbox.id().to_string(), key, Arc::clone(&records) as Arc<dyn Audit>));
        let kept = ca.keep();
        let network = start(&sandbox, &guest, json, ca).await;
        Guarded { sandbox, network, guest, records, kept }
    }
}

pub(crate) async fn start(sandbox: &Sandbox, guest: &Arc<Guest>, json: &str, ca: Ca) -> Network {
    let listeners = sandbox.open_network().await.unwrap();
    let sockets = Sockets { connections: listeners.connections, names: listeners.names };
    Network::start(Arc::clone(guest), sockets, policy(json), ca).unwrap()
}

fn runtime(state_dir: &std::path::Path) -> Runtime {
    let program = std::env::current_exe().unwrap();
    Runtime::new(RuntimeOptions { state_dir: state_dir.to_owned(), program, hidden: Vec::new() }).unwrap()
}

/// Runs Python in a sandbox and returns what it prints.
pub(crate) async fn python(sandbox: &Sandbox, script: &str) -> String {
    let argv = ["python3", "-c", script].map(str::to_owned).to_vec();
    let mut events = sandbox.exec(ExecSpec { argv, ..ExecSpec::default() }).await.unwrap();
    let mut text = Vec::new();
    while let Some(event) = events.recv().await {
        match event {
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => text.extend_from_slice(&bytes),
            ExecEvent::Exit { .. } => {}
            ExecEvent::Failed { message } => panic!("{message}"),
        }
    }
    String::from_utf8(text).unwrap()
}

/// A host of its own: a network namespace that is reached by one address, where a server in Python runs.
pub(crate) struct Neighbour {
    name: String,
    pub(crate) address: String,
    server: Child,
}

impl Neighbour {
    pub(crate) fn new(number: u8, script: &str) -> Self {
        let name = format!("sp-{}-{number}", std::process::id() % 100_000);
        let (ours, theirs) = (format!("10.213.{number}.1"), format!("10.213.{number}.2"));
        let (near, far) = (format!("{name}n"), format!("{name}f"));
        ip(&["netns", "add", &name]);
        ip(&["link", "add", &near, "type", "veth", "peer", "name", &far, "netns", &name]);
        ip(&["addr", "add", &format!("{ours}/30"), "dev", &near]);
        ip(&["link", "set", &near, "up"]);
        ip(&["-n", &name, "addr", "add", &format!("{theirs}/30"), "dev", &far]);
        ip(&["-n", &name, "link", "set", &far, "up"]);
        let mut server = Command::new("ip")
            .args(["netns", "exec", &name, "python3", "-u", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It says a line when it listens.
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(server.stdout.take().unwrap()), &mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self { name, address: theirs, server }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _killed = self.server.kill();
        let _ended = self.server.wait();
        let _removed = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {}", arguments.join(" "));
}
