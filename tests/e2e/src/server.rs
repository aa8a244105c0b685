//! S3 servers for the tests.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use sandpail_testkit::ports::free_port;

use crate::{Script, python, repository};

/// The key that every server takes.
pub const ACCESS_KEY: &str = "e2eaccess";
/// Its secret, made up and worth nothing.
pub const SECRET_KEY: &str = "e2esecretsecret";
/// Buckets made ahead, since every call of boto3 costs a start of Python.
const BUCKET_COUNT: usize = 150;
/// How long a server may take to answer first.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What the bucket lives on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerKind {
    /// `sandpail bucket serve`.
    Embedded,
    /// SeaweedFS, an S3 server made by others.
    SeaweedFs,
    /// A bucket directory mounted as it is, without a server.
    Directory,
}

impl ServerKind {
    /// The name in test names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::SeaweedFs => "seaweedfs",
            Self::Directory => "directory",
        }
    }
}

/// A running server; it ends when dropped.
#[derive(Debug)]
pub struct Server {
    /// Which one it is.
    pub kind: ServerKind,
    addr: SocketAddr,
    child: Option<Child>,
    ports: Vec<u16>,
    next_bucket: AtomicUsize,
    // Removed last, after the child has ended.
    directory: tempfile::TempDir,
}

/// The built program: `SANDPAIL_E2E_BIN`, or what Cargo builds beside this test.
///
/// # Errors
/// When it cannot be built.
pub fn sandpail() -> Result<PathBuf> {
    static FOUND: std::sync::OnceLock<Result<PathBuf, String>> = std::sync::OnceLock::new();
    FOUND.get_or_init(|| find_sandpail().map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
}

fn find_sandpail() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SANDPAIL_E2E_BIN") {
        return Ok(path.into());
    }
    // …/target/PROFILE/deps/e2e-HASH
    let this = std::env::current_exe()?;
    let profile_dir = this.parent().and_then(Path::parent).context("this test is not in a target directory")?;
    let release = profile_dir.file_name().is_some_and(|name| name == "release");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "-p", "sandpail", "--bin", "sandpail"]).current_dir(repository());
    if release {
        build.arg("--release");
    }
    if let Some(target) = profile_dir.parent() {
        build.env("CARGO_TARGET_DIR", target);
    }
    if !build.status()?.success() {
        bail!("sandpail does not build");
    }
    Ok(profile_dir.join("sandpail"))
}

impl Server {
    /// Starts a server and waits until it answers. An embedded server has one bucket.
    ///
    /// # Errors
    /// When a program is missing or the server does not answer in time.
    pub fn start(kind: ServerKind) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix(&format!("sandpail-e2e-{}-server-", std::process::id())).tempdir()?;
        let port = free_port()?;
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let log = File::create(directory.path().join("server.log"))?;
        let mut ports = vec![port];
        let mut command = match kind {
            ServerKind::SeaweedFs => seaweedfs(directory.path(), &mut ports)?,
            ServerKind::Embedded | ServerKind::Directory => embedded(directory.path(), port)?,
        };
        let child = command
            .env("TMPDIR", directory.path())
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start the {} server; is `scripts/setup test` done?", kind.name()))?;
        let mut server = Self { kind, addr, child: Some(child), ports, next_bucket: AtomicUsize::new(0), directory };
        server.wait_until_ready()?;
        if kind == ServerKind::SeaweedFs {
            server.python(&format!("for n in range({BUCKET_COUNT}): s3.create_bucket(Bucket=f'b{{n:03}}')"), "b000")?;
        }
        Ok(server)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < START_LIMIT {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().transpose()).transpose()? {
                bail!("the {} server ended ({status}):\n{}", self.kind.name(), self.log());
            }
            if TcpStream::connect(self.addr).is_ok()
                && (self.kind != ServerKind::SeaweedFs || self.python("s3.list_buckets()", "").is_ok())
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("the {} server does not answer:\n{}", self.kind.name(), self.log())
    }

    /// What the server said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("server.log")).unwrap_or_default()
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// The directory of the embedded bucket.
    pub fn bucket_dir(&self) -> PathBuf {
        self.directory.path().join("bucket")
    }

    /// An empty bucket that nobody else uses.
    ///
    /// # Errors
    /// When all buckets are given away.
    pub fn new_bucket(&self) -> Result<String> {
        let n = self.next_bucket.fetch_add(1, Ordering::SeqCst);
        match self.kind {
            ServerKind::SeaweedFs if n >= BUCKET_COUNT => bail!("more than {BUCKET_COUNT} buckets are in use"),
            ServerKind::SeaweedFs => Ok(format!("b{n:03}")),
            ServerKind::Embedded | ServerKind::Directory if n > 0 => bail!("an embedded server has one bucket"),
            ServerKind::Embedded | ServerKind::Directory => Ok("bucket".to_owned()),
        }
    }

    /// Runs Python with `s3` (a boto3 client), `bucket`, `put`, `get`, `head` and `keys` at hand.
    ///
    /// # Errors
    /// When the code raises.
    pub fn python(&self, code: &str, bucket: &str) -> Result<String> {
        let program = format!("{PRELUDE}\n{}", dedent(code));
        Script::new("exec \"$PYTHON\" -c \"$PROGRAM\"", self.directory.path())
            .env("PYTHON", python())
            .env("PROGRAM", program)
            .env("ENDPOINT", self.endpoint())
            .env("BUCKET", bucket)
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .limit(Duration::from_secs(1200))
            .run()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        remove_sockets(&self.ports);
    }
}

/// SeaweedFS leaves sockets, named by port, in `/tmp` wherever `TMPDIR` points.
fn remove_sockets(ports: &[u16]) {
    for file in std::fs::read_dir("/tmp").into_iter().flatten().flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if name.starts_with("seaweedfs-") && ports.iter().any(|port| name.ends_with(&format!("-{port}.sock"))) {
            // One that stays takes no more than a name.
            let _ = std::fs::remove_file(file.path());
        }
    }
}

const PRELUDE: &str = r#"
import boto3, os, sys, threading, concurrent.futures
from botocore.config import Config
bucket = os.environ["BUCKET"]
s3 = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], region_name="us-east-1",
    config=Config(s3={"addressing_style": "path"}, max_pool_connections=32, retries={"max_attempts": 3}))
def put(key, body=b"", **more): return s3.put_object(Bucket=bucket, Key=key, Body=body, **more)
def get(key): return s3.get_object(Bucket=bucket, Key=key)["Body"].read()
def head(key): return s3.head_object(Bucket=bucket, Key=key)
def keys(prefix=""):
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [item["Key"] for page in pages for item in page.get("Contents", [])]
"#;

/// Takes the indentation of the first line away from all.
pub fn dedent(code: &str) -> String {
    let code = code.trim_start_matches('\n');
    let indent = code.len() - code.trim_start_matches(' ').len();
    let lines = code.lines().map(|line| {
        let own = line.len() - line.trim_start_matches(' ').len();
        &line[own.min(indent)..]
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn embedded(directory: &Path, port: u16) -> Result<Command> {
    let secret = directory.join("secret");
    std::fs::write(&secret, SECRET_KEY)?;
    let mut command = Command::new(sandpail()?);
    command.args(["bucket", "serve"]).arg(directory.join("bucket"));
    command.args(["--name", "bucket", "--listen", &format!("127.0.0.1:{port}"), "--access-key", ACCESS_KEY]);
    command.arg("--secret-key-file").arg(secret);
    Ok(command)
}

/// `ports` begins with the port for S3; the others are added.
fn seaweedfs(directory: &Path, ports: &mut Vec<u16>) -> Result<Command> {
    let identities = directory.join("identities.json");
    std::fs::write(
        &identities,
        format!(
            r#"{{"identities":[{{"name":"e2e","credentials":[{{"accessKey":"{ACCESS_KEY}","secretKey":"{SECRET_KEY}"}}],
            "actions":["Admin","Read","Write","List","Tagging"]}},
            {{"name":"reader","credentials":[{{"accessKey":"getonly","secretKey":"{SECRET_KEY}"}}],"actions":["Read"]}}]}}"#
        ),
    )?;
    // Every bucket has volumes of its own; one at a time is plenty.
    std::fs::write(directory.join("master.toml"), "[master.volume_growth]\ncopy_1 = 1\ncopy_other = 1\n")?;
    let data = directory.join("data");
    std::fs::create_dir(&data)?;
    let mut command = Command::new(repository().join(".venv/bin/weed"));
    command.args(["server", "-ip=127.0.0.1", "-filer", "-s3", "-s3.iam=false"]);
    command.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]);
    // An empty directory marker must stay, as it does elsewhere.
    command.args(["-volume.max=1000", "-master.volumeSizeLimitMB=256", "-master.volumePreallocate=false"]);
    command.arg(format!("-dir={}", data.display())).arg(format!("-s3.config={}", identities.display()));
    command.arg(format!("-s3.port={}", ports[0]));
    for role in ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"]
        .into_iter()
        .chain(["s3.port.grpc"])
    {
        let port = free_port()?;
        ports.push(port);
        command.arg(format!("-{role}={port}"));
    }
    Ok(command)
}
