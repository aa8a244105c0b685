//! The command line of `sandpail sandbox`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use sandpail_spec::parse_duration;

const EXAMPLES: &str = "\
Examples:
  sandpail serve --config sandpail.toml &          # the daemon
  id=$(sandpail sandbox create)
  sandpail sandbox mount $id MY_BUCKET /data --prefix /uploads/
  sandpail sandbox exec $id -- ls -l /data
  sandpail sandbox exec $id 'wc -l /data/*.csv | sort -n'
  sandpail sandbox shell $id
  sandpail sandbox cp report.py $id:/workspace/report.py
  sandpail sandbox destroy $id";

/// Sandboxes of a running daemon.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SandboxArgs {
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    #[command(subcommand)]
    pub(crate) command: SandboxCommand,
}

/// Which daemon. Its key comes from SANDPAIL_API_KEY or a file, never from the command line.
#[derive(Args, Clone, Debug)]
pub(crate) struct DaemonArgs {
    /// URL of the daemon
    #[arg(long, value_name = "URL", env = "SANDPAIL_URL", default_value = "http://127.0.0.1:8787", global = true)]
    pub(crate) url: String,
    /// The file that holds the daemon's key; without it SANDPAIL_API_KEY
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) api_key_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SandboxCommand {
    /// Make a sandbox and print its id
    Create,
    /// List sandboxes and what is mounted in them
    #[command(visible_alias = "ls")]
    List,
    /// Run a command; ends with its exit code
    Exec(ExecArgs),
    /// Open a terminal
    Shell(ShellArgs),
    /// Mount a bucket on a directory of the sandbox
    Mount(MountArgs),
    /// Store everything, then unmount
    #[command(visible_alias = "umount")]
    Unmount {
        /// The sandbox
        id: String,
        /// The directory in the sandbox
        path: String,
        /// Also while it is in use; what cannot be stored is kept on the host
        #[arg(long)]
        force: bool,
    },
    /// Return when everything that was written to a mount is in the bucket
    Sync {
        /// The sandbox
        id: String,
        /// The directory in the sandbox
        path: String,
    },
    /// Copy a file: one side is SANDBOX:PATH, `-` is standard input or output
    Cp {
        /// Where from
        from: String,
        /// Where to
        to: String,
        /// Whole directories
        #[arg(long, short)]
        recursive: bool,
    },
    /// Unmount everything, end everything, remove the sandbox; buckets keep their data
    Destroy {
        /// The sandboxes
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    /// The sandbox
    pub(crate) id: String,
    /// One word is a line for the shell; more are a program and its arguments, as they are
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<String>,
    /// A variable for the command
    #[arg(long = "env", short = 'e', value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// End it after this time, with exit code 124
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// The session whose directory and variables it uses and changes
    #[arg(long, value_name = "NAME")]
    pub(crate) session: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct ShellArgs {
    /// The sandbox
    pub(crate) id: String,
    /// The program; bash if not given
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) shell: Option<String>,
    /// The session's terminal: it goes on when this one is closed
    #[arg(long, value_name = "NAME")]
    pub(crate) session: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct MountArgs {
    /// The sandbox
    pub(crate) id: String,
    /// A binding of the daemon; with --endpoint the name of a bucket
    pub(crate) source: String,
    /// The directory in the sandbox
    pub(crate) path: String,
    /// URL of the store
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Option<String>,
    /// Show only this part of the bucket; begins with /
    #[arg(long, value_name = "/PATH/")]
    pub(crate) prefix: Option<String>,
    /// Refuse writes
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Let S3 clients inside reach the bucket, without its key
    #[arg(long)]
    pub(crate) credential_proxy: bool,
    /// Keep a plain directory equal to the bucket instead of mounting it
    #[arg(long, conflicts_with = "endpoint")]
    pub(crate) local: bool,
    /// Let close return when the file is on the daemon's disk; it goes to the bucket within seconds
    #[arg(long)]
    pub(crate) write_back: bool,
    /// When files of these paths are stored: durable, write-back or local (never; on the daemon's disk only)
    #[arg(long = "path-class", value_name = "GLOB=CLASS", conflicts_with = "local")]
    pub(crate) path_classes: Vec<String>,
    /// .git is stored a little later, node_modules, target, __pycache__ and .venv stay on the daemon's disk
    #[arg(long, conflicts_with = "local")]
    pub(crate) agent: bool,
    /// Send the keys of this environment (AWS_*, else R2_*) with the request; without it the daemon uses its own
    #[arg(long, requires = "endpoint")]
    pub(crate) send_keys: bool,
    /// Options as s3fs writes them
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub(crate) s3fs_options: Vec<String>,
}
