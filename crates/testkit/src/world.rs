//! S3 servers for tests: ours on memory or a directory, and SeaweedFS.
//!
//! Each has ports and directories of its own, so tests run side by side, and ends when it is dropped.
//! They work from plain threads as well as inside a runtime.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sandpail_s3d::{KeyPair, RequestLog, Server, ServerOptions};
use sandpail_store::Store;
use sandpail_store::dir::{DirOptions, DirStore};
use sandpail_store::memory::MemoryStore;
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::ports::free_ports;

/// Key pair of every test server.
const KEY_ID: &str = "sandpailtest";
const SECRET: &str = "sandpailtestsecret";
/// A machine with much to do takes a while to start SeaweedFS.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// How a client reaches a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// `http://127.0.0.1:PORT`.
    pub endpoint: String,
    /// The bucket's name.
    pub bucket: String,
    /// The access key id.
    pub key_id: String,
    /// The secret access key; a test's, so it is no secret.
    pub secret: String,
}

impl Access {
    fn new(endpoint: String, bucket: &str) -> Self {
        Self { endpoint, bucket: bucket.to_owned(), key_id: KEY_ID.into(), secret: SECRET.into() }
    }

    /// The variables by which programs find the key pair.
    pub fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("AWS_ACCESS_KEY_ID", self.key_id.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.secret.clone()),
            ("AWS_REGION", "us-east-1".into()),
        ]
    }
}

/// A server of ours with one bucket, named `bucket`.
pub struct World {
    access: Access,
    log: Arc<RequestLog>,
    store: Arc<dyn Store>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    // After the server: it is removed last.
    directory: Option<TempDir>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("access", &self.access).field("store", &self.store).finish_non_exhaustive()
    }
}

impl World {
    /// Serves a bucket in memory.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn memory() -> Result<Self> {
        Self::start(Arc::new(MemoryStore::new()), None, Duration::ZERO)
    }

    /// Serves a bucket in a temporary directory, which is not synced: tests are many, and power cuts are not tested.
    ///
    /// # Errors
    /// When the directory cannot be made or no port can be bound.
    pub fn directory() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let bucket = directory.path().join("bucket");
        DirStore::create(&bucket)?;
        let store = DirStore::open_with(&bucket, DirOptions { durable: false })?;
        Self::start(Arc::new(store), Some(directory), Duration::ZERO)
    }

    /// Serves `store`; every request waits for `latency` first.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn serving(store: Arc<dyn Store>, latency: Duration) -> Result<Self> {
        Self::start(store, None, latency)
    }

    fn start(store: Arc<dyn Store>, directory: Option<TempDir>, latency: Duration) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (started, starting) = std::sync::mpsc::channel();
        let served = Arc::clone(&store);
        // A runtime of its own on a thread of its own: neither blocks nor is blocked by the test's.
        let thread = std::thread::Builder::new().name("world".into()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(error))),
            };
            runtime.block_on(async move {
                let options =
                    ServerOptions::new(KeyPair::new(KEY_ID, SECRET)).bucket("bucket", served).latency(latency);
                match Server::bind(SocketAddr::from(([127, 0, 0, 1], 0)), options).await {
                    Ok(server) => {
                        let told = started.send(Ok((server.endpoint(), Arc::clone(server.log()))));
                        if told.is_ok() {
                            // An error means that the world was dropped, too.
                            let _ = stopped.await;
                        }
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
            });
            runtime.shutdown_background();
        })?;
        let (endpoint, log) = starting.recv()??;
        let access = Access::new(endpoint, "bucket");
        Ok(Self { access, log, store, stop: Some(stop), thread: Some(thread), directory })
    }

    /// How clients reach the bucket.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// What was asked of the server.
    pub fn log(&self) -> &Arc<RequestLog> {
        &self.log
    }

    /// The bucket itself, past HTTP.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The bucket's directory, if it has one.
    pub fn bucket_directory(&self) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.path().join("bucket"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It only fails by a panic, which has been printed.
            let _ = thread.join();
        }
    }
}

/// A SeaweedFS of one's own: master, volume server, filer and S3 gateway in one process.
#[derive(Debug)]
pub struct Seaweed {
    child: Child,
    endpoint: String,
    filer: SocketAddr,
    grpc_ports: [u16; 4],
    // After the process: it is removed last.
    directory: TempDir,
}

impl Seaweed {
    /// Starts the `weed` program of the project's `.venv` and waits until it answers.
    ///
    /// # Errors
    /// When it is missing (`make setup` installs it) or does not answer in time; the message ends with its log.
    pub fn start() -> Result<Self> {
        let program = project_root().join(".venv/bin/weed");
        ensure!(program.exists(), "{} is missing; run: make setup", program.display());
        // Another process may take a port between its choice and its use.
        let mut failures = Vec::new();
        for _ in 0..3 {
            match Self::try_start(&program) {
                Ok(server) => return Ok(server),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        bail!("SeaweedFS does not start: {}", failures.join("\n"))
    }

    fn try_start(program: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("sandpail-weed-").tempdir()?;
        let identities = serde_json::json!({"identities": [{
            "name": "test",
            "credentials": [{"accessKey": KEY_ID, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }]});
        let config = directory.path().join("identities.json");
        fs::write(&config, identities.to_string())?;
        let data = directory.path().join("data");
        fs::create_dir(&data)?;
        let log = File::create(directory.path().join("log"))?;
        let [master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc] = free_ports()?;
        let child = Command::new(program)
            .args(["server", "-s3", "-filer", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"])
            // Each bucket takes several volumes; they are files that grow as needed.
            .args(["-volume.max=200", "-master.volumeSizeLimitMB=256", "-volume.minFreeSpace=1"])
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0"])
            .arg(format!("-dir={}", data.display()))
            .arg(format!("-s3.config={}", config.display()))
            .arg(format!("-filer.localSocket={}", directory.path().join("filer.sock").display()))
            .arg(format!("-s3.localSocket={}", directory.path().join("s3.sock").display()))
            .args([format!("-master.port={master}"), format!("-master.port.grpc={master_grpc}")])
            .args([format!("-volume.port={volume}"), format!("-volume.port.grpc={volume_grpc}")])
            .args([format!("-filer.port={filer}"), format!("-filer.port.grpc={filer_grpc}")])
            .args([format!("-s3.port={s3}"), format!("-s3.port.grpc={s3_grpc}")])
            .current_dir(directory.path())
            // It logs there, too.
            .env("TMPDIR", directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let endpoint = format!("http://127.0.0.1:{s3}");
        let grpc_ports = [master_grpc, volume_grpc, filer_grpc, s3_grpc];
        let filer = SocketAddr::from(([127, 0, 0, 1], filer));
        let mut server = Self { child, endpoint, filer, grpc_ports, directory };
        server.wait(SocketAddr::from(([127, 0, 0, 1], s3)))?;
        Ok(server)
    }

    fn wait(&mut self, s3: SocketAddr) -> Result<()> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended with {status}:\n{}", self.log_tail());
            }
            // The gateway answers last, and a file can be stored only when a volume server has reported.
            let ready = http(s3, "GET", "/status").is_ok_and(|status| status == 200)
                && http(self.filer, "POST", "/ready/").is_ok_and(|status| status < 300);
            if ready {
                return Ok(());
            }
            ensure!(begun.elapsed() < START_TIMEOUT, "it does not answer:\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn log_tail(&self) -> String {
        let log = fs::read(self.directory.path().join("log")).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(4000)..];
        String::from_utf8_lossy(tail).into_owned()
    }

    /// Makes a bucket and says how to reach it.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn bucket(&self, name: &str) -> Result<Access> {
        let status = http(self.filer, "POST", &format!("/buckets/{name}/"))?;
        ensure!(status < 300, "SeaweedFS answers {status} to the creation of bucket {name}");
        Ok(Access::new(self.endpoint.clone(), name))
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        // It has nothing to save; if it is gone already, that is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // It makes these in /tmp wherever TMPDIR points. One that stays takes no more than a name.
        for (role, port) in ["master", "volume", "filer", "s3"].iter().zip(self.grpc_ports) {
            let _ = fs::remove_file(format!("/tmp/seaweedfs-{role}-grpc-{port}.sock"));
        }
    }
}

fn project_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The status of an answer to a request without a body.
fn http(address: SocketAddr, method: &str, path: &str) -> Result<u16> {
    let timeout = Some(Duration::from_secs(10));
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(timeout)?;
    stream.set_write_timeout(timeout)?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(64 << 10).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).context("no HTTP answer")?;
    Ok(status.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worlds_answer_and_end() {
        let address = |access: &Access| access.endpoint.trim_start_matches("http://").parse::<SocketAddr>().unwrap();
        for world in [World::memory().unwrap(), World::directory().unwrap()] {
            let address = address(world.access());
            // Anonymous.
            assert_eq!(http(address, "GET", "/bucket").unwrap(), 403);
            let directory = world.bucket_directory();
            drop(world);
            http(address, "GET", "/bucket").unwrap_err();
            assert!(directory.is_none_or(|directory| !directory.exists()));
        }
    }

    #[tokio::test]
    async fn a_world_can_be_used_inside_a_runtime() {
        let world = World::memory().unwrap();
        assert_eq!(world.log().counts().len(), 0);
    }

    #[test]
    fn seaweedfs_starts_twice_at_once_and_ends() {
        let servers = [Seaweed::start().unwrap(), Seaweed::start().unwrap()];
        for server in servers {
            let access = server.bucket("some-bucket").unwrap();
            let address: SocketAddr = access.endpoint.trim_start_matches("http://").parse().unwrap();
            assert_eq!(http(address, "GET", "/some-bucket").unwrap(), 403);
            let directory = server.directory.path().to_owned();
            drop(server);
            http(address, "GET", "/").unwrap_err();
            assert!(!directory.exists());
        }
    }
}
