//! A `sandpail serve` that ends with its guard, with all that came of it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use sandpail_testkit::ports::free_port;

use crate::server::{ACCESS_KEY, SECRET_KEY, sandpail};
use crate::{Script, World, python, repository};

/// How long a daemon may take to answer first.
const START_LIMIT: Duration = Duration::from_secs(30);
/// The most bytes of an upload that the daemon of the tests takes; small, so that a test can pass it.
pub const UPLOAD_LIMIT: u64 = 9 << 20;

/// A daemon below a supervisor, which also notices the end of this process and then ends everything.
///
/// It has embedded buckets bound as `MY_BUCKET`, `SECOND` and `THIRD`, the world's bucket as `REMOTE` with keys from
/// files, a made-up API key, and the world's keys among its secrets, so that endpoint mounts detect them.
#[derive(Debug)]
pub struct Daemon {
    supervisor: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    endpoint: String,
    bucket: String,
    port: u16,
    // Removed last.
    directory: tempfile::TempDir,
}

/// What a daemon finds around it besides the usual.
#[derive(Clone, Debug, Default)]
pub struct Around {
    /// Addresses and the names that the daemon's host knows them by.
    pub hosts: Vec<(String, String)>,
    /// Sandboxes see the S3 clients that `scripts/setup` installed for them.
    pub expose_clients: bool,
}

impl Around {
    /// Words before the daemon's program, that show it a file of hosts of its own.
    fn prefix(&self, directory: &Path) -> Result<Vec<std::ffi::OsString>> {
        if self.hosts.is_empty() {
            return Ok(Vec::new());
        }
        let file = directory.join("hosts");
        let mut text = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        for (address, name) in &self.hosts {
            text.push_str(&format!("\n{address} {name}\n"));
        }
        std::fs::write(&file, text)?;
        let words = ["unshare", "--mount", "--propagation", "private", "sh", "-c"];
        let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
        Ok(words.into_iter().map(Into::into).chain([script.into(), file.into()]).collect())
    }
}

impl Daemon {
    /// Starts a daemon and waits until it answers.
    ///
    /// # Errors
    /// With its log when it ends or does not answer in time.
    pub fn start(world: &World) -> Result<Self> {
        Self::start_in(world, &Around::default())
    }

    /// The same, with more around it.
    ///
    /// # Errors
    /// With its log when it ends or does not answer in time.
    pub fn start_in(world: &World, around: &Around) -> Result<Self> {
        let prefix = format!("sandpail-e2e-{}-daemon-", std::process::id());
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir()?;
        let (root, port, endpoint) = (directory.path(), free_port()?, world.server.endpoint());
        std::fs::write(root.join("api-key"), format!("key-{}\n", secret()?))?;
        std::fs::write(root.join("access"), ACCESS_KEY)?;
        std::fs::write(root.join("secret"), SECRET_KEY)?;
        // Not the environment: the tests look for keys in the environments of all our processes.
        std::fs::write(
            root.join(".dev.vars"),
            format!("AWS_ACCESS_KEY_ID=\"{ACCESS_KEY}\"\nAWS_SECRET_ACCESS_KEY={SECRET_KEY}\n"),
        )?;
        let expose = if around.expose_clients { format!("{:?}", clients()?) } else { String::new() };
        let config = format!(
            r#"listen = "127.0.0.1:{port}"
state_dir = "{root}/state"
expose = [{expose}]
api_key = "file:{root}/api-key"
upload_limit = {UPLOAD_LIMIT}
[[r2_buckets]]
binding = "MY_BUCKET"
bucket_name = "my-r2-bucket"
[[r2_buckets]]
binding = "SECOND"
bucket_name = "second"
[[r2_buckets]]
binding = "THIRD"
bucket_name = "third"
[[r2_buckets]]
binding = "REMOTE"
bucket_name = "{bucket}"
endpoint = "{endpoint}"
credentials = {{ access_key_id = "file:{root}/access", secret_access_key = "file:{root}/secret" }}
"#,
            root = root.display(),
            bucket = world.bucket,
        );
        std::fs::write(root.join("sandpail.toml"), config)?;
        let mut supervisor = Command::new(python())
            .arg(scripts().join("supervisor.py"))
            .arg(root.join("state"))
            .arg(root.join("daemon.log"))
            .args(around.prefix(root)?)
            .arg(sandpail()?)
            .args(["serve", "--config"])
            .arg(root.join("sandpail.toml"))
            .current_dir(root)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("HOME", root)
            .env_remove("AWS_PROFILE")
            .env_remove("AWS_ENDPOINT_URL")
            .env_remove("AWS_ACCESS_KEY_ID")
            .env_remove("AWS_SECRET_ACCESS_KEY")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the supervisor; is `scripts/setup test` done?")?;
        let stdin = supervisor.stdin.take();
        let stdout = BufReader::new(supervisor.stdout.take().context("no output")?);
        let mut daemon = Self { supervisor, stdin, stdout, endpoint, bucket: world.bucket.clone(), port, directory };
        daemon.start_again()?;
        Ok(daemon)
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        writeln!(self.stdin.as_mut().context("the supervisor was ended")?, "{command}")?;
        self.answer()
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the supervisor is gone");
        Ok(line.trim().to_owned())
    }

    /// Starts the daemon that was killed or stopped, and does not wait for it; returns its pid.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub fn begin(&mut self) -> Result<String> {
        self.ask("start")
    }

    /// The same, and waits until it answers.
    ///
    /// # Errors
    /// With its log when it ends or does not answer in time.
    pub fn start_again(&mut self) -> Result<()> {
        let pid = self.begin()?;
        let start = Instant::now();
        while !self.is_healthy() {
            ensure!(Path::new(&format!("/proc/{pid}/exe")).exists(), "the daemon ended:\n{}", self.log());
            ensure!(start.elapsed() < START_LIMIT, "the daemon does not answer:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn is_healthy(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let mut answer = String::new();
        stream.set_read_timeout(Some(START_LIMIT)).is_ok()
            && stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").is_ok()
            && BufReader::new(stream).read_line(&mut answer).is_ok()
            && answer.starts_with("HTTP/1.1 200")
    }

    /// Ends the daemon as a crash would; sandboxes and mounts are left to themselves.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.ask("kill").map(drop)
    }

    /// Asks the daemon to end, as `systemctl stop` would, and waits; returns its exit code.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&mut self) -> Result<i32> {
        match self.ask("term")?.as_str() {
            "null" => bail!("the daemon does not end:\n{}", self.log()),
            code => Ok(code.parse()?),
        }
    }

    /// All living processes that came of the daemon, itself too: pid and command line, as JSON.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub fn family(&mut self) -> Result<String> {
        self.ask("family")
    }

    /// The configuration's file.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("sandpail.toml")
    }

    /// What the daemon said.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.directory.path().join("daemon.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Runs `sandboxes/NAME` with the daemon's address and a key at hand, which must succeed.
    ///
    /// # Errors
    /// With the end of the daemon's log when it fails.
    pub fn script(&self, name: &str, args: &[&str], limit: Duration) -> Result<String> {
        let mut text = "exec \"$PYTHON\" \"$SCRIPTS/$NAME\"".to_owned();
        for arg in args {
            text.push_str(&format!(" '{arg}'"));
        }
        self.command(&text)?
            .env("NAME", name)
            .limit(limit)
            .run()
            .map_err(|error| error.context(format!("log of the daemon:\n{}", self.log())))
    }

    /// Runs Python with `api` (a client) and the names of `client.py` at hand.
    ///
    /// # Errors
    /// When the code raises; with the end of the daemon's log.
    pub fn python(&self, code: &str) -> Result<String> {
        let program = format!("from client import *\napi = Api()\n{}", crate::server::dedent(code));
        self.command("exec \"$PYTHON\" -c \"$PROGRAM\"")?
            .env("PROGRAM", program)
            .run()
            .map_err(|error| error.context(format!("log of the daemon:\n{}", self.log())))
    }

    /// A script that knows `SANDPAIL`, the daemon's address, key, state directory, and the store's endpoint.
    ///
    /// # Errors
    /// When sandpail is not built.
    pub fn command(&self, text: &str) -> Result<Script> {
        let root = self.directory.path();
        Ok(Script::new(text, root)
            .env("PYTHON", python())
            .env("PYTHONPATH", scripts())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("SCRIPTS", scripts())
            .env("REPO", repository())
            .env("SANDPAIL", sandpail()?)
            .env("SANDPAIL_URL", format!("http://127.0.0.1:{}", self.port))
            .env("SANDPAIL_KEY_FILE", root.join("api-key"))
            .env("CONFIG", self.config())
            .env("STATE", root.join("state"))
            .env("LOG", root.join("daemon.log"))
            .env("SUPERVISOR", self.supervisor.id().to_string())
            .env("UPLOAD_LIMIT", UPLOAD_LIMIT.to_string())
            .env("ENDPOINT", &self.endpoint)
            .env("BUCKET", &self.bucket)
            .env("ACCESS_KEY", ACCESS_KEY)
            .env("SECRET_KEY", SECRET_KEY))
    }

    /// Destroys all sandboxes and stops the daemon, after which nothing may be left.
    ///
    /// # Errors
    /// When something is left, or a step fails.
    pub fn end(mut self) -> Result<()> {
        self.python("for one in api.sandboxes(): api.destroy(one)\nassert not api.sandboxes()")?;
        let code = self.stop()?;
        ensure!(code == 0, "the daemon ended with {code}:\n{}", self.log());
        drop(self.stdin.take());
        let left = self.answer()?;
        ensure!(left == "[]", "left after the end: {left}\n{}", self.log());
        ensure!(self.supervisor.wait()?.success(), "the supervisor failed");
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The end of its input is the supervisor's order to end everything.
        drop(self.stdin.take());
        let _ = self.supervisor.wait();
    }
}

/// The S3 clients that sandboxes may see.
fn clients() -> Result<PathBuf> {
    let clients = repository().join(".tools/inside").canonicalize();
    clients.context("the S3 clients for sandboxes are not there; is `scripts/setup test` done?")
}

fn scripts() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/sandboxes")
}

/// A random word that occurs nowhere else.
fn secret() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().replace('-', ""))
}
