//! A mount's door for S3 clients in its sandbox: opened with the mount, closed with it.

use std::sync::Arc;
use std::time::Duration;

use sandpail_proxy::{Access, Embedded, OpenRoute, RouteSpec, Upstream};
use sandpail_s3d::Local;
use sandpail_sandbox::Sandbox;
use sandpail_spec::{BindingName, BucketPlace, KeyPrefix, MountMode, S3fsOptions};
use sandpail_store::dir::DirStore;

use super::process::Worker;
use super::worker_plan::{embedded, remote_plan};
use crate::network::SandboxNetwork;
use crate::sandboxes::{Inner, Slot};
use crate::state::Shown;
use crate::worker::backend::RemotePlan;
use crate::worker::control::Ask;

/// How long a worker may take to say how it reaches its bucket.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether S3 clients inside may reach a mount's bucket.
pub(super) fn has_door(shown: &Shown) -> bool {
    matches!(shown.mode, MountMode::EndpointProxy | MountMode::Binding) && !shown.id.is_empty()
}

/// Opens the door of a new mount, and the sandbox's network with the first one. Dropping the door closes it.
///
/// # Errors
/// Why not, without a key.
pub(super) async fn open(
    inner: &Inner,
    slot: &Slot,
    sandbox: &Sandbox,
    shown: &Shown,
    place: &BucketPlace,
    s3fs: &S3fsOptions,
) -> Result<Option<OpenRoute>, String> {
    if !has_door(shown) {
        return Ok(None);
    }
    let upstream = match place {
        BucketPlace::Embedded => in_directory(inner, &shown.bucket)?,
        BucketPlace::Remote(remote) => on_server(&remote_plan(remote, s3fs), &shown.bucket)?,
    };
    let Some(network) = network_of(slot) else { return Ok(None) };
    network.open(&inner.config(), sandbox).await.map_err(|error| error.to_string())?;
    open_at(&network, shown, upstream).map(Some)
}

/// Opens the door of a mount of an earlier daemon. Its keys are the worker's; those of a binding are configured.
///
/// # Errors
/// Why not, without a key.
pub(super) async fn reopen(
    inner: &Inner,
    slot: &Slot,
    sandbox: &Sandbox,
    shown: &Shown,
    worker: &Worker,
) -> Result<Option<OpenRoute>, String> {
    if !has_door(shown) {
        return Ok(None);
    }
    let place = match &shown.binding {
        None => None,
        Some(name) => {
            let name = BindingName::parse(name).map_err(|error| error.to_string())?;
            let binding = inner.config().binding(&name).map_err(|error| error.to_string())?;
            let binding = binding.filter(|binding| binding.bucket.as_str() == shown.bucket);
            let binding = binding.ok_or("its binding is not configured any more")?;
            Some(binding.remote.map_or(BucketPlace::Embedded, BucketPlace::Remote))
        }
    };
    if let Some(place) = place {
        return open(inner, slot, sandbox, shown, &place, &S3fsOptions::default()).await;
    }
    let answer = worker.ask(Ask::Remote, ASK_TIMEOUT).await?;
    let remote = answer.remote.ok_or("the process behind it does not say how it reaches the bucket")?;
    let upstream = on_server(&remote, &shown.bucket)?;
    let Some(network) = network_of(slot) else { return Ok(None) };
    network.open(&inner.config(), sandbox).await.map_err(|error| error.to_string())?;
    open_at(&network, shown, upstream).map(Some)
}

fn network_of(slot: &Slot) -> Option<Arc<SandboxNetwork>> {
    slot.now().network.clone()
}

fn in_directory(inner: &Inner, bucket: &str) -> Result<Arc<dyn Upstream>, String> {
    let store = DirStore::open(embedded(inner, bucket)?).map_err(|error| error.to_string())?;
    Ok(Arc::new(Embedded::new(Local::new(bucket, Arc::new(store), inner.state.join("buckets")))))
}

fn on_server(remote: &RemotePlan, bucket: &str) -> Result<Arc<dyn Upstream>, String> {
    let relay = remote.relay(bucket).map_err(|error| format!("{error:#}"))?;
    Ok(Arc::new(relay))
}

fn open_at(network: &SandboxNetwork, shown: &Shown, upstream: Arc<dyn Upstream>) -> Result<OpenRoute, String> {
    let endpoint = match (&shown.endpoint, &shown.binding) {
        (Some(endpoint), None) => Some(endpoint.parse().map_err(|error| format!("{error}"))?),
        _ => None,
    };
    let spec = RouteSpec {
        id: shown.id.clone(),
        binding: shown.binding.clone(),
        bucket: shown.bucket.clone(),
        prefix: KeyPrefix::parse(&format!("/{}", shown.prefix)).map_err(|error| error.to_string())?,
        access: if shown.read_only { Access::ReadOnly } else { Access::ReadWrite },
        endpoint,
        allow_unsigned: false,
    };
    Ok(network.guest().open(spec, upstream))
}
