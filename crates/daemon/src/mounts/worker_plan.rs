//! From a mount's plan to what its process is told, and to a store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sandpail_sandbox::Sandbox;
use sandpail_spec::{BucketPlace, Keys, MountPlan, PathClass, Remote, S3fsOptions};
use sandpail_store::dir::DirStore;
use sandpail_store::{Store, StoreError};

use crate::events::now_ms;
use crate::sandboxes::{Inner, Slot};
use crate::worker::backend::{self, RemotePlan, Source};
use crate::worker::{Conflict, Place, Plan, WriteBackPlan, store_cause};

/// Connections to a store at the same time, for each mount.
const CONNECTION_COUNT_MAX: usize = 64;
/// Length of the parts of large uploads, in bytes.
const PART_LEN: u64 = 8 << 20;
/// The usual most bytes that wait to be stored, for each mount.
const STAGING_LIMIT: u64 = 20 << 30;
const FILE_PERM: u32 = 0o644;
const DIR_PERM: u32 = 0o755;
const METADATA_TTL: Duration = Duration::from_secs(1);

/// How a worker, or the daemon itself, reaches a server.
pub(crate) fn remote_plan(remote: &Remote, s3fs: &S3fsOptions) -> RemotePlan {
    RemotePlan {
        endpoint: remote.endpoint.to_string(),
        provider: remote.provider.to_string(),
        region: remote.region.clone(),
        path_style: remote.path_style,
        ca_file: None,
        insecure: s3fs.insecure,
        max_connections: CONNECTION_COUNT_MAX,
        connect_timeout: s3fs.connect_timeout,
        stall_timeout: s3fs.stall_timeout,
        keys: match &remote.keys {
            Keys::These(keys) => keys.clone().into(),
            Keys::Profile(name) => backend::Keys::Aws { profile: Some(name.clone()) },
        },
    }
}

/// The directory of an embedded bucket; made when it is first used.
pub(super) fn embedded(inner: &Inner, bucket: &str) -> Result<PathBuf, String> {
    let dir = inner.state.join("buckets").join(bucket);
    let opened = match DirStore::open(&dir) {
        Err(_) if !dir.exists() => DirStore::create(&dir),
        opened => opened,
    };
    opened.map(|_| dir).map_err(|error| store_cause(&error))
}

/// The store of a bucket, for the daemon's own use. Nothing is sent yet.
///
/// # Errors
/// What is wrong, without a key.
pub(crate) fn open_store(
    inner: &Inner,
    bucket: &str,
    place: &BucketPlace,
    s3fs: &S3fsOptions,
) -> Result<Arc<dyn Store>, String> {
    match place {
        BucketPlace::Embedded => {
            let dir = embedded(inner, bucket)?;
            DirStore::open(dir)
                .map(|store| Arc::new(store) as Arc<dyn Store>)
                .map_err(|error: StoreError| error.to_string())
        }
        BucketPlace::Remote(remote) => remote_plan(remote, s3fs).store(bucket).map_err(|error| format!("{error:#}")),
    }
}

/// What may wait to be stored if nobody says: a guest that writes without end must not fill the disk of all others.
fn usual_staging_limit(inner: &Inner) -> u64 {
    match rustix::fs::statvfs(inner.state.join("")) {
        Ok(disk) => usual_limit_of(disk.f_bavail.saturating_mul(disk.f_frsize)),
        Err(error) => {
            tracing::warn!(%error, "the free space of the state directory is not known");
            STAGING_LIMIT
        }
    }
}

fn usual_limit_of(free: u64) -> u64 {
    STAGING_LIMIT.min(free / 5 * 4)
}

/// What the process behind a mount is told.
///
/// # Errors
/// Why the bucket cannot be used.
pub(super) fn worker_plan(inner: &Inner, slot: &Slot, sandbox: &Sandbox, plan: &MountPlan) -> Result<Plan, String> {
    let bucket = plan.bucket.as_str();
    let (source, store) = match &plan.place {
        BucketPlace::Embedded => (Source::Directory(embedded(inner, bucket)?), None),
        BucketPlace::Remote(remote) => (Source::Bucket(bucket.to_owned()), Some(remote_plan(remote, &plan.s3fs))),
    };
    let config = inner.config();
    let ids = sandbox.id_map();
    let s3fs = &plan.s3fs;
    Ok(Plan {
        source,
        store,
        prefix: plan.prefix.as_str().to_owned(),
        place: Place::Sandbox { sandbox: slot.id.to_string(), path: plan.path.to_string(), ids: (ids.base, ids.len) },
        read_only: plan.read_only,
        posix_metadata: true,
        trusts_listings: config.mounts.trusts_listings,
        metadata_ttl: s3fs.metadata_ttl.unwrap_or(METADATA_TTL),
        uid: s3fs.uid.unwrap_or(0),
        gid: s3fs.gid.unwrap_or(0),
        file_perm: FILE_PERM & !s3fs.file_umask.unwrap_or(0),
        dir_perm: DIR_PERM & !s3fs.dir_umask.unwrap_or(0),
        on_conflict: Conflict::Overwrite,
        part_len: s3fs.part_len.unwrap_or(PART_LEN),
        multipart: !s3fs.no_multipart,
        parallel_parts: s3fs.parallel_parts,
        memory_limit: config.mounts.memory_limit,
        staging_dir: inner.state.join("staging"),
        staging_limit: Some(config.mounts.staging_limit.unwrap_or_else(|| usual_staging_limit(inner))),
        cache: config.mounts.cache.clone(),
        status: true,
        op_timeout: config.mounts.op_timeout,
        write_back: (plan.write_back || plan.path_classes.gives(PathClass::WriteBack)).then(WriteBackPlan::default),
        write_back_by_default: plan.write_back,
        path_classes: plan.path_classes.clone(),
        tenant: Some(slot.id.to_string()),
        survives: config.mounts.survive,
        io_uring: false,
        log: config.mounts.log.clone(),
        log_file: Some(inner.state.join("logs").join(format!("{}-{}.log", slot.id, now_ms()))),
    })
}

/// What the sandbox's mount table shows: nothing of the host.
pub(super) fn shown_source(plan: &MountPlan) -> String {
    let prefix = plan.prefix.as_str().trim_end_matches('/');
    let bucket = plan.bucket.as_str();
    if prefix.is_empty() { bucket.to_owned() } else { format!("{bucket}/{prefix}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_leaves_room_on_the_disk() {
        assert_eq!(usual_limit_of(1 << 40), STAGING_LIMIT);
        assert_eq!(usual_limit_of(10 << 20), 8 << 20);
        assert_eq!(usual_limit_of(0), 0);
    }
}
