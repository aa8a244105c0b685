//! Mountpoint for Amazon S3 as a peer of the benchmark.
//!
//! Mountpoint's program is not published as a crate; its library is, and this does with it what `mount-s3 --foreground`
//! does: the same defaults, the same allocator. Only the options that the benchmark needs are here, under the names that
//! they have there.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use mountpoint_s3_client::config::{AddressingStyle, S3ClientAuthConfig};
use mountpoint_s3_client::user_agent::UserAgent;
use mountpoint_s3_fs::data_cache::{CacheLimit, DataCacheConfig, DiskDataCacheConfig, ManagedCacheDir};
use mountpoint_s3_fs::fs::{CacheConfig, TimeToLive, UploadChecksumAlgorithm};
use mountpoint_s3_fs::fuse::config::{FuseOptions, FuseSessionConfig, MountPoint};
use mountpoint_s3_fs::logging::{LoggingConfig, init_logging};
use mountpoint_s3_fs::memory::{CandidateSize, MINIMUM_MEM_LIMIT, PagedPool, effective_total_memory};
use mountpoint_s3_fs::s3::config::{ClientConfig, MemoryLimitSetting, PartConfig, Region, TargetThroughputSetting};
use mountpoint_s3_fs::s3::{Bucket, Prefix, S3Path, S3Personality};
use mountpoint_s3_fs::{MountpointConfig, Runtime, S3FilesystemConfig, Superblock, SuperblockConfig, metrics};

#[global_allocator]
static GLOBAL: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What `mount-s3` compiles in: purging on a thread of its own, and few arenas.
// SAFETY: the symbol is the one that jemalloc reads at its start, and the text ends in a NUL.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: &[u8] = b"abort_conf:true,background_thread:true,narenas:32\0";

const MIB: usize = 1 << 20;
/// `mount-s3`'s defaults of `--part-size`, `--max-threads`, and of the cache's blocks.
const PART_LEN: usize = 8 * MIB;
const THREAD_COUNT: usize = 16;
const CACHE_BLOCK_LEN: usize = MIB;
/// How long metadata is believed with `--cache`.
const CACHED_METADATA_TTL: Duration = Duration::from_secs(60);

/// Mounts a bucket with Mountpoint for Amazon S3, in the foreground.
#[derive(Debug, Parser)]
#[command(version = "mountpoint-s3-fs 0.11.0")]
struct Arguments {
    bucket: String,
    mount_point: PathBuf,
    #[arg(long)]
    endpoint_url: String,
    #[arg(long)]
    region: String,
    /// Ends in `/`
    #[arg(long)]
    prefix: Option<String>,
    #[arg(long)]
    force_path_style: bool,
    #[arg(long)]
    allow_delete: bool,
    #[arg(long)]
    allow_overwrite: bool,
    #[arg(long)]
    incremental_upload: bool,
    /// Keep read data in this directory, and metadata for a minute
    #[arg(long)]
    cache: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let _logging = init_logging(LoggingConfig {
        log_file: None,
        log_to_stdout: true,
        default_filter: format!("warn,awscrt=off,{}=off", metrics::TARGET_NAME),
    })?;
    let _metrics = metrics::install(None).map_err(|error| anyhow::anyhow!("metrics: {error}"))?;

    let memory_limit = MemoryLimitSetting::Default(
        // 95 % of the memory, as `mount-s3` does.
        usize::try_from(effective_total_memory() / 20 * 19)?.max(MINIMUM_MEM_LIMIT),
    );
    let client_config = ClientConfig {
        region: Region::new_user_specified(arguments.region.clone()),
        endpoint_url: Some(arguments.endpoint_url.clone()),
        addressing_style: if arguments.force_path_style { AddressingStyle::Path } else { AddressingStyle::Automatic },
        dual_stack: false,
        transfer_acceleration: false,
        auth_config: S3ClientAuthConfig::Default,
        requester_pays: false,
        expected_bucket_owner: None,
        // 10 Gbit/s, as everywhere outside of EC2.
        throughput_target: TargetThroughputSetting::Default,
        bind: None,
        part_config: PartConfig::with_read_write_sizes(PART_LEN, PART_LEN).validate(memory_limit)?,
        // `mount-s3` asks Amazon's metadata service here which machine it is on; elsewhere it would only wait for it.
        user_agent: UserAgent::new(Some("mountpoint-peer".into())),
        tls_config: None,
    };
    let part_config = &client_config.part_config;
    let pool = PagedPool::config()
        .with_candidate_sizes([
            CandidateSize::prunable(CACHE_BLOCK_LEN),
            CandidateSize::prunable(part_config.read_size_bytes),
            CandidateSize::new(part_config.write_size_bytes),
        ])
        .with_memory_limit(memory_limit.bytes())
        .with_maintenance_interval(Duration::from_secs(60))
        .build();

    let prefix = Prefix::new(arguments.prefix.as_deref().unwrap_or_default())?;
    let s3_path = S3Path::new(Bucket::new(arguments.bucket.clone())?, prefix);
    let client = client_config.create_client(pool.clone(), Some(&s3_path)).context("no client")?;
    let runtime = Runtime::new(client.event_loop_group());

    let ttl = match arguments.cache {
        Some(_) => TimeToLive::Duration(CACHED_METADATA_TTL),
        None => TimeToLive::Minimal,
    };
    let mut filesystem_config = S3FilesystemConfig::default();
    filesystem_config.allow_delete = arguments.allow_delete;
    filesystem_config.allow_overwrite = arguments.allow_overwrite;
    filesystem_config.incremental_upload = arguments.incremental_upload;
    filesystem_config.s3_personality = S3Personality::Standard;
    filesystem_config.upload_checksum_algorithm = Some(UploadChecksumAlgorithm::Crc32c);
    filesystem_config.cache_config = CacheConfig::new(ttl);

    let cache_directory = match &arguments.cache {
        Some(parent) => Some(ManagedCacheDir::new_from_parent_with_cache_key(parent, None, true)?),
        None => None,
    };
    let data_cache_config = DataCacheConfig {
        disk_cache_config: cache_directory.as_ref().map(|directory| DiskDataCacheConfig {
            cache_directory: directory.as_path_buf(),
            block_size: CACHE_BLOCK_LEN as u64,
            limit: CacheLimit::default(),
        }),
        express_cache_config: None,
    };
    let superblock_config = SuperblockConfig {
        cache_config: filesystem_config.cache_config.clone(),
        s3_personality: filesystem_config.s3_personality,
    };
    let superblock = Superblock::new(client.clone(), s3_path, superblock_config);
    let fuse_options =
        FuseOptions { read_only: false, auto_unmount: false, allow_root: false, allow_other: false, clone_fd: false };
    let session_config = FuseSessionConfig::new(MountPoint::new(&arguments.mount_point)?, fuse_options, THREAD_COUNT)?;
    let mut session = MountpointConfig::new(session_config, filesystem_config, data_cache_config)?
        .create_fuse_session(superblock, client, runtime, pool)?;
    session.run_on_close(Box::new(move || drop(cache_directory)));
    session.join().context("the session ended badly")
}
