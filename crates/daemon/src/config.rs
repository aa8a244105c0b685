//! The daemon's configuration.

use std::net::SocketAddr;
use std::path::PathBuf;

use sandpail_spec::SecretKey;

/// Secrets by name: `.dev.vars`, files of systemd credentials, then the environment. Values never print.
#[derive(Clone, Debug, Default)]
pub struct Secrets {}

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
}
