//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use sandpail_spec::{Endpoint, KeyPrefix, Provider, parse_bytes, parse_duration, parse_mode};

/// S3 buckets as fast, ordinary directories.
#[derive(Debug, Parser)]
#[command(name = "sandpail", version, about, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Mount a bucket on a directory
    Mount(Box<MountArgs>),
    /// Store what is not stored yet, then unmount
    #[command(visible_alias = "unmount")]
    Umount(UmountArgs),
    /// Return when everything that was written is in the bucket
    Sync(SyncArgs),
    /// Run the daemon: sandboxes, their buckets, and the API
    Serve(ServeArgs),
    /// List the mounts of this host
    List,
    /// Let all mounts of this host go on with this program's file, as it is now
    Upgrade(UpgradeArgs),
    /// Look after files that a mount has left without storing them
    Recover(RecoverArgs),
    /// Look after the disk cache of mounts
    Cache(CacheArgs),
    /// Sandboxes of a running daemon
    Sandbox(crate::client::SandboxArgs),
    /// Buckets in a directory of this machine
    #[command(subcommand)]
    Bucket(BucketCommand),
    /// Say what this host, and a bucket, can do
    Doctor(Box<DoctorArgs>),
    /// Show everything on an embedded bucket, in a minute
    Demo(DemoArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// The process behind a mount (started by `mount`)
    #[command(hide = true)]
    MountWorker,
    /// The process that starts another worker when one is killed (started by `mount`)
    #[command(hide = true)]
    MountKeeper,
    /// The process that hears the last answers to a worker that is killed (started by the worker)
    #[command(hide = true)]
    MountWitness,
}

/// Where attributes live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MetadataArg {
    /// In the objects' metadata, as s3fs writes them; each file is asked for
    Posix,
    /// The same; in directories that plain S3 tools have filled, listings say all
    Auto,
    /// Nowhere: objects stay as they are
    None,
}

/// What to do when an object was changed by someone else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConflictArg {
    /// The last writer wins
    Overwrite,
    /// close() fails with ESTALE and the bytes stay in staging
    Fail,
    /// Ours is stored beside, under another name
    KeepBoth,
}

const MOUNT_EXAMPLES: &str = "\
Examples:
  sandpail mount my-bucket /mnt/data                       # Amazon S3, keys from AWS_* or the AWS profile
  sandpail mount s3://my-bucket/logs /mnt/logs --read-only
  sandpail mount my-bucket /mnt/data --endpoint https://ACCOUNT.r2.cloudflarestorage.com
  sandpail mount my-bucket /mnt/data --endpoint http://127.0.0.1:9000 --prefix /uploads/
  sandpail mount dir:/srv/bucket /mnt/data                 # an embedded bucket, no server at all
  mount -t fuse.sandpail my-bucket /mnt/data -o endpoint=http://127.0.0.1:9000,ro,allow_other

Keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), else R2_ACCESS_KEY_ID and
R2_SECRET_ACCESS_KEY, else the AWS shared files. They are never taken from the command line.";

/// Where a bucket is, and who asks.
#[derive(Args, Clone, Debug)]
pub(crate) struct StoreArgs {
    /// URL of the store; without it AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, or Amazon S3 in the region
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Option<Endpoint>,
    /// Dialect of the store, if its host name does not tell
    #[arg(long, value_name = "NAME")]
    pub(crate) provider: Option<Provider>,
    /// Region to sign for
    #[arg(long, value_name = "REGION")]
    pub(crate) region: Option<String>,
    /// Profile of the AWS shared files to take keys from
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// Do not sign requests
    #[arg(long, conflicts_with = "profile")]
    pub(crate) anonymous: bool,
    /// Put the bucket's name into the path
    #[arg(long, conflicts_with = "virtual_host")]
    pub(crate) path_style: bool,
    /// Put the bucket's name into the host name
    #[arg(long)]
    pub(crate) virtual_host: bool,
    /// More authorities to trust for TLS, as PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Do not check the server's certificate: anyone on the way can read and change everything
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Connections to the store at the same time
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) max_connections: usize,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = MOUNT_EXAMPLES)]
pub(crate) struct MountArgs {
    /// BUCKET[/PREFIX], s3://BUCKET/PREFIX, or dir:PATH for an embedded bucket
    pub(crate) source: String,
    /// The directory to mount on
    pub(crate) mountpoint: PathBuf,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Show only this part of the bucket; begins with /
    #[arg(long, value_name = "/PATH/", value_parser = KeyPrefix::parse)]
    pub(crate) prefix: Option<KeyPrefix>,
    /// Refuse writes
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Owner of what has none of its own
    #[arg(long, value_name = "ID")]
    pub(crate) uid: Option<u32>,
    /// Group of what has none of its own
    #[arg(long, value_name = "ID")]
    pub(crate) gid: Option<u32>,
    /// Taken away from --file-mode and --dir-mode
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    pub(crate) umask: Option<u32>,
    /// Mode of files that have none of their own
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    pub(crate) file_mode: Option<u32>,
    /// Mode of directories that have none of their own
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    pub(crate) dir_mode: Option<u32>,
    /// Let other users use the mount
    #[arg(long)]
    pub(crate) allow_other: bool,
    /// Keep read data in this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) cache_dir: Option<PathBuf>,
    /// The most that --cache-dir may take
    #[arg(long, value_name = "SIZE", default_value = "10GiB", value_parser = parse_bytes)]
    pub(crate) cache_size: u64,
    /// Where written data waits until it is stored
    #[arg(long, value_name = "DIR")]
    pub(crate) staging_dir: Option<PathBuf>,
    /// The most that may wait there
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) staging_limit: Option<u64>,
    /// Memory for data under way
    #[arg(long, value_name = "SIZE", default_value = "128MiB", value_parser = parse_bytes)]
    pub(crate) memory_limit: u64,
    /// Where modes, owners, times and links are kept
    #[arg(long, value_name = "WHERE", default_value = "auto")]
    pub(crate) metadata: MetadataArg,
    /// How long names and attributes are believed without asking
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub(crate) metadata_ttl: Duration,
    /// Length of the parts of large uploads
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = parse_part_size)]
    pub(crate) part_size: u64,
    /// When an object was changed by someone else
    #[arg(long, value_name = "POLICY", default_value = "overwrite")]
    pub(crate) on_conflict: ConflictArg,
    /// Let close return when the file is on the local disk; it goes to the bucket within seconds
    ///
    /// fsync and `sandpail sync` wait for the bucket. What was closed when the mount is killed, or the machine stops, goes up
    /// when the bucket is mounted again with this option and the same staging directory.
    #[arg(long)]
    pub(crate) write_back: bool,
    /// While more than this waits, close waits for the bucket
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = parse_bytes)]
    pub(crate) write_back_limit: u64,
    /// While something has waited longer than this, close waits for the bucket
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    pub(crate) write_back_age: Duration,
    /// The longest that a program waits for one operation, which then fails with ETIMEDOUT; 0: as long as it takes
    ///
    /// What is being stored goes on and is tried again. While the store takes parts of a large file, its close is not late.
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = parse_duration)]
    pub(crate) op_timeout: Duration,
    /// When files of these paths are stored: durable (close waits for the bucket), write-back (close waits for the local
    /// disk) or local (never: they are on this host only). The glob is matched against the path below the mount and covers
    /// what is below; with / at its end it matches directories only. The first one that matches counts
    #[arg(long = "path-class", value_name = "GLOB=CLASS")]
    pub(crate) path_classes: Vec<String>,
    /// For trees that programs make: **/.git/=write-back, and **/node_modules/, **/target/, **/__pycache__/ and **/.venv/
    /// local, after the rules of --path-class
    #[arg(long)]
    pub(crate) agent: bool,
    /// Leave out the virtual file .sandpail/status, which says what is not stored yet
    #[arg(long)]
    pub(crate) no_status: bool,
    /// Let the mount be gone when its process is killed, instead of going on with another one
    #[arg(long)]
    pub(crate) no_restart: bool,
    /// Talk with the kernel by io_uring (Linux 6.14, where it is switched on; see `sandpail doctor`): small operations cost less. Only with
    /// --no-restart, as such a mount cannot go on with another process
    #[arg(long)]
    pub(crate) io_uring: bool,
    /// Stay in the foreground
    #[arg(long, short = 'f')]
    pub(crate) foreground: bool,
    /// What to log: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "SANDPAIL_LOG")]
    pub(crate) log: String,
    /// Where to log; without it beside the mount's entry in the runtime directory
    #[arg(long, value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,
    /// Options as mount(8) and fstab write them; what is no option of the kernel is one of the above
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub(crate) options: Vec<String>,
    /// Options for the kernel, found among the others
    #[arg(skip)]
    pub(crate) kernel_options: Vec<String>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct UpgradeArgs {
    /// The directory of the one mount to upgrade; without it all mounts of this user, those in sandboxes too
    pub(crate) mountpoint: Option<PathBuf>,
    /// How long the next process of a mount may take
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct UmountArgs {
    /// The directory that the bucket is mounted on
    pub(crate) mountpoint: PathBuf,
    /// Unmount even if something cannot be stored; its bytes are kept in the staging directory
    #[arg(long)]
    pub(crate) force: bool,
    /// How long storing may take
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Print one line of JSON: what was stored now (path, size, etag, checksum, version), what was not (path, reason), whether it is unmounted
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct SyncArgs {
    /// The directory that the bucket is mounted on
    #[arg(required_unless_present = "all")]
    pub(crate) mountpoint: Option<PathBuf>,
    /// All mounts of this user, those in sandboxes too
    #[arg(long, conflicts_with = "mountpoint")]
    pub(crate) all: bool,
    /// How long storing may take
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BucketCommand {
    /// Make an embedded bucket
    Create {
        /// The directory; made if it is not there
        dir: PathBuf,
    },
    /// Serve an embedded bucket to S3 clients
    #[command(after_help = "Example:\n  sandpail bucket serve /srv/bucket --listen 127.0.0.1:9000")]
    Serve {
        /// The bucket's directory; made if it is not there
        dir: PathBuf,
        /// Address and port; port 0 takes a free one
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9000")]
        listen: std::net::SocketAddr,
        /// The bucket's name; the directory's name if not given
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// The key's id; a new pair is made and printed if not given
        #[arg(long, value_name = "ID", requires = "secret_key_file")]
        access_key: Option<String>,
        /// The file that holds the secret key
        #[arg(long, value_name = "FILE", requires = "access_key")]
        secret_key_file: Option<PathBuf>,
    },
    /// List the keys of an embedded bucket
    List {
        /// The bucket's directory
        dir: PathBuf,
        /// Only keys that begin so
        #[arg(default_value = "")]
        prefix: String,
    },
}

const RECOVER_EXAMPLES: &str = "\
Examples:
  sandpail recover list
  sandpail recover upload --all              # back into the buckets they came from; keys as for mount
  sandpail recover export 1a2b3c4d ./report.csv
  sandpail recover discard 1a2b3c4d
  sandpail recover list --staging-dir .sandpail/staging    # of the mounts of a daemon";

#[derive(Args, Clone, Debug)]
#[command(after_help = RECOVER_EXAMPLES)]
pub(crate) struct RecoverArgs {
    /// The staging directory of the mounts; that of \"sandpail mount\" if not given
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) staging_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: RecoverCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum RecoverCommand {
    /// List them
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Store files in the buckets they came from
    ///
    /// If the object was changed since, both are kept: the recovered one as "KEY (recovered HOST SECONDS)". Endpoint,
    /// provider and region are those of the mount if not given.
    Upload {
        /// Also files whose bytes on the disk are not what was written; they replace no object
        #[arg(long)]
        damaged: bool,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        store: Box<StoreArgs>,
    },
    /// Write one whole file to a local file
    Export {
        /// Its id, or the beginning of it
        id: String,
        /// The file to write; must not exist
        file: PathBuf,
        /// Only the staged bytes as they are, with holes where nothing was written
        #[arg(long)]
        raw: bool,
        /// Also if its bytes on the disk are not what was written
        #[arg(long)]
        damaged: bool,
        #[command(flatten)]
        store: Box<StoreArgs>,
    },
    /// Remove files for good
    Discard {
        #[command(flatten)]
        which: Which,
        /// Do it, which only --all asks for
        #[arg(long)]
        yes: bool,
    },
}

const CACHE_EXAMPLES: &str = "\
Examples:
  sandpail cache scrub --cache-dir /var/cache/sandpail
  sandpail cache scrub --cache-dir /var/cache/sandpail --json

The exit status of scrub is 0 if everything was whole, 1 if something was damaged or could not be looked at.";

#[derive(Args, Clone, Debug)]
#[command(after_help = CACHE_EXAMPLES)]
pub(crate) struct CacheArgs {
    /// The cache directory of the mounts
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) cache_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: CacheCommand,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Read everything, compare it with its checksums, and take out what is damaged or left over
    ///
    /// Mounts may use the directory meanwhile. What is taken out is fetched again when it is read.
    Scrub {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Which of the kept files.
#[derive(Args, Clone, Debug)]
pub(crate) struct Which {
    /// Ids, or their beginnings
    #[arg(value_name = "ID", required_unless_present = "all")]
    pub(crate) ids: Vec<String>,
    /// All of them
    #[arg(long, conflicts_with = "ids")]
    pub(crate) all: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct DoctorArgs {
    /// Also test this bucket
    #[arg(long, value_name = "BUCKET")]
    pub(crate) bucket: Option<String>,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Also write, copy and delete a few small objects, to see what the provider can do
    #[arg(long, requires = "bucket")]
    pub(crate) write_probe: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

const SERVE_EXAMPLES: &str = "\
Examples:
  sandpail serve                                    # sandpail.toml of this directory if there is one, else defaults
  sandpail serve --config /etc/sandpail.toml
  SANDPAIL_API_KEY=… sandpail serve --listen 0.0.0.0:8787

Every key of the file can be given by the environment, too: SANDPAIL_LISTEN, SANDPAIL_STATE_DIR, …
SIGHUP reads the configuration anew. SIGTERM ends the daemon; sandboxes and mounts go on, and the next one finds them.";

#[derive(Args, Clone, Debug)]
#[command(after_help = SERVE_EXAMPLES)]
pub(crate) struct ServeArgs {
    /// The configuration; without it sandpail.toml of the working directory, if there is one
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where the API listens; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<std::net::SocketAddr>,
    /// Where everything is kept
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Store, unmount and end everything at the end, as a demo does
    #[arg(long)]
    pub(crate) destroy_on_exit: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct DemoArgs {
    /// The source tree to unpack; the present directory's repository if not given
    #[arg(long, value_name = "DIR")]
    pub(crate) tree: Option<PathBuf>,
}

/// `mount -t fuse.sandpail SRC DIR -o …` calls `mount.fuse.sandpail SRC DIR -o …`, or `sandpail SRC DIR -o …`.
pub(crate) fn with_mount_helper_forms(arguments: Vec<OsString>) -> Vec<OsString> {
    let name = arguments.first().map(PathBuf::from).unwrap_or_default();
    let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_helper = name.starts_with("mount.");
    // mount.fuse3 passes "SRC DIR -o rw,…" to the program itself; the bucket may be called as a command is.
    let is_bare = arguments.len() >= 4 && arguments.get(3).is_some_and(|argument| argument == "-o");
    let is_command = arguments.len() != 5
        && arguments.get(1).is_some_and(|argument| {
            let known = argument.to_string_lossy();
            let mut commands = Cli::command();
            commands
                .get_subcommands_mut()
                .any(|sub| sub.get_name() == known || sub.get_all_aliases().any(|a| a == known))
        });
    if !is_helper && (!is_bare || is_command) {
        return arguments;
    }
    let mut arguments = arguments.into_iter();
    let mut forms: Vec<OsString> = arguments.next().into_iter().collect();
    forms.push("mount".into());
    forms.extend(arguments.filter(|argument| !matches!(argument.to_str(), Some("-n" | "-s" | "-v"))));
    forms
}

impl MountArgs {
    /// Takes `-o` options in: our own by their long names, `ro`, ids, and what the kernel knows.
    pub(crate) fn with_options(mut self) -> Result<Self, clap::Error> {
        let options = std::mem::take(&mut self.options);
        let mut more: Vec<OsString> = vec!["sandpail".into(), "mount".into()];
        let mut kernel = Vec::new();
        for option in options.iter().map(|option| option.trim()).filter(|option| !option.is_empty()) {
            let name = option.split('=').next().unwrap_or(option);
            match name {
                "ro" => more.push("--read-only".into()),
                "rw"
                | "_netdev"
                | "nofail"
                | "auto"
                | "noauto"
                | "user"
                | "users"
                | "defaults"
                | "dev"
                | "suid"
                | "nodev"
                | "nosuid"
                | "atime"
                | "noatime"
                | "relatime"
                | "async"
                | "default_permissions" => {}
                "noexec" | "exec" | "sync" | "dirsync" => kernel.push(name.to_owned()),
                _ if name.starts_with("x-") || name == "comment" => {}
                // Names are written with `_` there; values stay as they are.
                _ => more.push(format!("--{}{}", name.replace('_', "-"), &option[name.len()..]).into()),
            }
        }
        if more.len() > 2 {
            more.push(self.source.clone().into());
            more.push(self.mountpoint.clone().into());
            let parse = |line: Vec<OsString>| match Cli::try_parse_from(line)?.command {
                Command::Mount(read) => Ok(Some(*read)),
                _ => Ok::<_, clap::Error>(None),
            };
            let bare =
                vec!["sandpail".into(), "mount".into(), self.source.clone().into(), self.mountpoint.clone().into()];
            let (Some(read), Some(bare)) = (parse(more)?, parse(bare)?) else { return Ok(self) };
            self = merge(self, read, &bare);
        }
        self.kernel_options = kernel;
        Ok(self)
    }
}

/// S3 takes parts of 5 MiB to 5 GiB.
fn parse_part_size(text: &str) -> Result<u64, String> {
    let size = parse_bytes(text).map_err(|error| error.to_string())?;
    if !(5 << 20..=5 << 30).contains(&size) {
        return Err("S3 takes parts of 5MiB to 5GiB".to_owned());
    }
    Ok(size)
}

/// What `-o` says, over what the flags say where those say nothing.
fn merge(flags: MountArgs, options: MountArgs, bare: &MountArgs) -> MountArgs {
    /// What an option says, unless it says nothing.
    fn said<T: PartialEq>(flag: T, option: T, bare: &T) -> T {
        if option == *bare { flag } else { option }
    }
    MountArgs {
        source: flags.source,
        mountpoint: flags.mountpoint,
        store: StoreArgs {
            endpoint: flags.store.endpoint.or(options.store.endpoint),
            provider: flags.store.provider.or(options.store.provider),
            region: flags.store.region.or(options.store.region),
            profile: flags.store.profile.or(options.store.profile),
            anonymous: flags.store.anonymous || options.store.anonymous,
            path_style: flags.store.path_style || options.store.path_style,
            virtual_host: flags.store.virtual_host || options.store.virtual_host,
            ca_file: flags.store.ca_file.or(options.store.ca_file),
            insecure: flags.store.insecure || options.store.insecure,
            max_connections: said(
                flags.store.max_connections,
                options.store.max_connections,
                &bare.store.max_connections,
            ),
        },
        prefix: flags.prefix.or(options.prefix),
        read_only: flags.read_only || options.read_only,
        uid: flags.uid.or(options.uid),
        gid: flags.gid.or(options.gid),
        umask: flags.umask.or(options.umask),
        file_mode: flags.file_mode.or(options.file_mode),
        dir_mode: flags.dir_mode.or(options.dir_mode),
        allow_other: flags.allow_other || options.allow_other,
        cache_dir: flags.cache_dir.or(options.cache_dir),
        staging_dir: flags.staging_dir.or(options.staging_dir),
        staging_limit: flags.staging_limit.or(options.staging_limit),
        write_back: flags.write_back || options.write_back,
        path_classes: if flags.path_classes.is_empty() { options.path_classes } else { flags.path_classes },
        agent: flags.agent || options.agent,
        no_status: flags.no_status || options.no_status,
        no_restart: flags.no_restart || options.no_restart,
        io_uring: flags.io_uring || options.io_uring,
        foreground: flags.foreground || options.foreground,
        log_file: flags.log_file.or(options.log_file),
        cache_size: said(flags.cache_size, options.cache_size, &bare.cache_size),
        memory_limit: said(flags.memory_limit, options.memory_limit, &bare.memory_limit),
        metadata: said(flags.metadata, options.metadata, &bare.metadata),
        metadata_ttl: said(flags.metadata_ttl, options.metadata_ttl, &bare.metadata_ttl),
        part_size: said(flags.part_size, options.part_size, &bare.part_size),
        on_conflict: said(flags.on_conflict, options.on_conflict, &bare.on_conflict),
        write_back_limit: said(flags.write_back_limit, options.write_back_limit, &bare.write_back_limit),
        write_back_age: said(flags.write_back_age, options.write_back_age, &bare.write_back_age),
        op_timeout: said(flags.op_timeout, options.op_timeout, &bare.op_timeout),
        log: said(flags.log, options.log, &bare.log),
        options: options.options,
        kernel_options: options.kernel_options,
    }
}

pub(crate) fn print_completions(shell: Shell) {
    clap_complete::generate(shell, &mut Cli::command(), "sandpail", &mut std::io::stdout());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn mount(line: &str) -> Result<MountArgs, clap::Error> {
        let arguments = line.split(' ').map(OsString::from).collect();
        match Cli::try_parse_from(with_mount_helper_forms(arguments))?.command {
            Command::Mount(arguments) => arguments.with_options(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_option_takes_nothing_from_a_flag() {
        let mixed = mount("sandpail mount b /mnt --metadata posix --memory-limit 1GiB -o ro,metadata_ttl=9s").unwrap();
        assert_eq!((mixed.metadata, mixed.memory_limit, mixed.read_only), (MetadataArg::Posix, 1 << 30, true));
        assert_eq!(mixed.metadata_ttl, Duration::from_secs(9));
        assert_eq!(mount("sandpail mount b /mnt -o metadata=none").unwrap().metadata, MetadataArg::None);
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_and_mount_options_say_the_same() {
        let flags = mount("sandpail mount b /mnt --read-only --endpoint http://h:1 --uid 7 --cache-size 1GiB").unwrap();
        let options = mount("sandpail mount b /mnt -o ro,endpoint=http://h:1,uid=7,cache_size=1GiB,_netdev").unwrap();
        let helper = mount("/sbin/mount.fuse.sandpail b /mnt -o ro,endpoint=http://h:1,uid=7,cache_size=1GiB").unwrap();
        let bare = mount("sandpail b /mnt -o ro,endpoint=http://h:1,uid=7,cache_size=1GiB,noexec").unwrap();
        for read in [&options, &helper, &bare] {
            assert!(read.read_only && flags.read_only);
            assert_eq!((read.uid, read.cache_size), (flags.uid, flags.cache_size));
            assert_eq!(read.store.endpoint, flags.store.endpoint);
        }
        let named = mount("sandpail bucket /mnt -o cache_dir=/my_cache").unwrap();
        assert_eq!((named.source.as_str(), named.cache_dir), ("bucket", Some("/my_cache".into())));
        assert_eq!(bare.kernel_options, ["noexec"]);
        assert!(!named.no_status && mount("sandpail bucket /mnt -o no_status").unwrap().no_status);
    }

    #[track_caller]
    fn refused(line: &str, word: &str) {
        let text = mount(line).unwrap_err().to_string();
        assert!(text.contains(word), "{line}: {text}");
    }

    #[test]
    fn bad_input_is_named() {
        refused("sandpail mount b /mnt --cache-size 10XB", "10XB");
        refused("sandpail mount b /mnt --prefix data", "Prefix must start with '/': \"data\"");
        refused("sandpail mount b /mnt --endpoint ftp://x", "Invalid endpoint URL");
        refused("sandpail mount b /mnt --no-such", "--no-such");
        refused("sandpail mount b /mnt -o no_such_option", "--no-such-option");
        refused("sandpail mount b /mnt --provider s4", "unknown provider");
        refused("sandpail mount b /mnt --file-mode 0999", "0999");
        refused("sandpail mount b /mnt --part-size 1KiB", "5MiB");
        refused("sandpail recover upload", "<ID");
        refused("sandpail recover discard --all abcd", "cannot be used with");
        refused("sandpail recover export abcd", "<FILE>");
    }
}
