//! The daemon's configuration: `sandpail.toml`, the environment, a `wrangler` file, and secrets.
//!
//! ```text
//! sandpail.toml ──┐
//! SANDPAIL_*  ────┼─► file::Raw ──► Config
//! wrangler.*  ────┘                   ├─ bindings: where buckets are, and where their keys are
//! .dev.vars, $CREDENTIALS_DIRECTORY ──┴─ secrets: the keys themselves, looked up when they are needed
//! ```

mod bindings;
mod egress;
mod file;
mod secrets;
mod told;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandpail_proxy::EgressPolicy;
use sandpail_sandbox::SandboxSpec;
use sandpail_spec::{Binding, BindingName, InvalidMount, SecretKey};

pub use self::bindings::{BindingConfig, KeySource, RemoteConfig, SecretRef};
pub use self::secrets::Secrets;

/// A configuration that cannot be used. The text names file, key and position; it holds no secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file, or a variable, does not say what it may say.
    #[error("{place}: {message}")]
    Invalid {
        /// The file or variable.
        place: String,
        /// What is wrong, with the position where there is one.
        message: String,
    },
    /// Anybody on the network could do anything.
    #[error(
        "{listen} can be reached from other machines, but there is no api_key: set api_key (or SANDPAIL_API_KEY), or \
         listen on 127.0.0.1"
    )]
    Open {
        /// The address.
        listen: SocketAddr,
    },
}

/// How the daemon logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object each line.
    Json,
}

/// What mounts get that say nothing else.
#[derive(Clone, Debug)]
pub struct MountDefaults {
    /// Disk cache for reads, shared by all mounts: directory and size in bytes.
    pub cache: Option<(PathBuf, u64)>,
    /// Memory for data under way, in bytes, for each mount.
    pub memory_limit: u64,
    /// The most bytes that may wait to be stored, for each mount; `None`: 20 GiB, or four fifths of what is free if that is
    /// less.
    pub staging_limit: Option<u64>,
    /// How long storing everything may take when a mount goes.
    pub drain_timeout: Duration,
    /// Time between two looks of a local bucket.
    pub sync_interval: Duration,
    /// How long a program waits for one operation of a mount; `None`: as long as it takes.
    pub op_timeout: Option<Duration>,
    /// Whether a mount whose process is killed goes on with another one.
    pub survive: bool,
    /// Whether listings describe files where they can ([`sandpail_fs::engine::Metadata::Auto`]); else each file is asked for.
    pub trusts_listings: bool,
    /// What the processes of mounts log.
    pub log: String,
}

impl Default for MountDefaults {
    fn default() -> Self {
        Self {
            cache: None,
            memory_limit: 128 << 20,
            staging_limit: None,
            drain_timeout: Duration::from_secs(120),
            sync_interval: Duration::from_secs(1),
            op_timeout: Some(sandpail_fs::engine::OP_TIMEOUT),
            survive: true,
            trusts_listings: true,
            log: "info".to_owned(),
        }
    }
}

/// The daemon's configuration, read and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the API listens.
    pub listen: SocketAddr,
    /// Where everything is kept.
    pub state_dir: PathBuf,
    /// The key that clients present; `None`: no authentication, loopback only.
    pub api_key: Option<SecretKey>,
    /// The most bytes of one uploaded file or archive.
    pub upload_limit: u64,
    /// The most sandboxes at the same time; `None`: no limit.
    pub max_sandboxes: Option<usize>,
    /// Sandboxes that are kept started and unused.
    pub warm_target: usize,
    /// What new sandboxes are like.
    pub sandbox: SandboxSpec,
    /// Directories of the host that no sandbox may see, besides those that are never shown.
    pub hidden: Vec<PathBuf>,
    /// What mounts get.
    pub mounts: MountDefaults,
    /// What sandboxes reach of the network unless their own policy says something else; `${NAME}` in values of headers are
    /// secrets.
    pub egress: EgressPolicy,
    /// Requests of S3 clients in sandboxes that take longer are warned of.
    pub slow_request: Duration,
    /// Where embedded buckets are served to S3 clients, if at all.
    pub embedded_listen: Option<SocketAddr>,
    /// What is logged.
    pub log: String,
    /// How it is logged.
    pub log_format: LogFormat,
    /// Bindings by name.
    pub bindings: BTreeMap<BindingName, BindingConfig>,
    /// Secrets by name.
    pub secrets: Secrets,
    /// The executable that runs as worker and as init of sandboxes; this program itself if `None`.
    pub program: Option<PathBuf>,
}

/// What is slow for a request of a few bytes, and not for one of gigabytes.
const SLOW_REQUEST: Duration = Duration::from_secs(10);

/// The usual most bytes of one uploaded file or archive.
const UPLOAD_LIMIT: u64 = 1 << 30;

impl Config {
    /// What holds when nothing is configured, with everything kept in `state_dir`.
    pub fn in_directory(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8787)),
            state_dir: state_dir.into(),
            api_key: None,
            upload_limit: UPLOAD_LIMIT,
            max_sandboxes: None,
            warm_target: 0,
            sandbox: SandboxSpec::default(),
            hidden: Vec::new(),
            mounts: MountDefaults::default(),
            egress: EgressPolicy::default(),
            slow_request: SLOW_REQUEST,
            embedded_listen: None,
            log: "info".to_owned(),
            log_format: LogFormat::default(),
            bindings: BTreeMap::new(),
            secrets: Secrets::default(),
            program: None,
        }
    }

    /// Reads `file`, or `sandpail.toml` of the working directory if there is one; the variables of the environment
    /// (`SANDPAIL_LISTEN`, …) win over it.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the key and the position.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        file::load(file, &|name| std::env::var(name).ok())
    }

    /// Checks what must hold of the whole, after the command line has had its say.
    ///
    /// # Errors
    /// [`ConfigError::Open`].
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.api_key.is_none() && !self.listen.ip().is_loopback() {
            return Err(ConfigError::Open { listen: self.listen });
        }
        Ok(())
    }

    /// A binding with its keys; `None` if nobody configured it.
    ///
    /// # Errors
    /// [`InvalidMount::NoCredentials`] if its keys are nowhere to be found.
    pub fn binding(&self, name: &BindingName) -> Result<Option<Binding>, InvalidMount> {
        self.bindings.get(name).map(|binding| binding.resolve(&self.secrets)).transpose()
    }

    /// Where embedded buckets are.
    pub fn embedded_bucket(&self, bucket: &str) -> PathBuf {
        self.state_dir.join("buckets").join(bucket)
    }
}
