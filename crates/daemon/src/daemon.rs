//! The daemon itself.

use std::sync::Arc;

use sandpail_sandbox::{Sandbox, SandboxId};
use tokio::sync::broadcast;

use crate::{
    BucketBody, BucketListOptions, BucketObject, BucketPage, BucketPutOptions, Config, DaemonError, Event, MountInfo,
    MountRequest, PoolStats, SandboxInfo,
};

/// The daemon: cheap to clone, one per process.
#[derive(Clone, Debug)]
pub struct Daemon {}

impl Daemon {
    /// Starts: finds living sandboxes and mounts again, cleans what died.
    ///
    /// # Errors
    /// When the state directory cannot be used, or another daemon uses it.
    pub async fn start(_config: Config) -> Result<Self, DaemonError> {
        todo!()
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        todo!()
    }

    /// What is not well, for `/health`; empty when all is.
    pub async fn problems(&self) -> Vec<String> {
        todo!()
    }

    /// Makes a sandbox with a new id (26 random base32 characters), or takes a warm one.
    ///
    /// # Errors
    /// [`DaemonError::Capacity`].
    pub async fn create_sandbox(&self) -> Result<SandboxId, DaemonError> {
        todo!()
    }

    /// The sandbox of this id, made if there is none yet (the same call for exec, files, sessions, mounts, archives).
    ///
    /// # Errors
    /// [`DaemonError::Capacity`], [`DaemonError::Sandbox`].
    pub async fn sandbox(&self, _id: &SandboxId) -> Result<Sandbox, DaemonError> {
        todo!()
    }

    /// Whether the id was created and not destroyed; starts it if need be.
    pub async fn is_running(&self, _id: &SandboxId) -> bool {
        todo!()
    }

    /// Stores and unmounts everything, then removes the sandbox. An unknown id is no error.
    ///
    /// # Errors
    /// When something could not be removed.
    pub async fn destroy_sandbox(&self, _id: &SandboxId) -> Result<(), DaemonError> {
        todo!()
    }

    /// All sandboxes.
    pub async fn list_sandboxes(&self) -> Vec<SandboxInfo> {
        todo!()
    }

    /// Mounts a bucket; returns when the mount has been used once through the sandbox's own path.
    ///
    /// # Errors
    /// [`DaemonError::Mount`] with the contract's text. Nothing is left then, and other mounts are as they were.
    pub async fn mount(&self, _id: &SandboxId, _request: MountRequest) -> Result<(), DaemonError> {
        todo!()
    }

    /// Stores everything, then unmounts. With `force` also what is in use or cannot be stored (its bytes are kept).
    ///
    /// # Errors
    /// [`DaemonError::Mount`]; the mount stays usable.
    pub async fn unmount(&self, _id: &SandboxId, _mount_path: &str, _force: bool) -> Result<(), DaemonError> {
        todo!()
    }

    /// The mounts of a sandbox; none for an unknown id.
    pub async fn list_mounts(&self, _id: &SandboxId) -> Vec<MountInfo> {
        todo!()
    }

    /// The pool of started sandboxes.
    pub async fn pool_stats(&self) -> PoolStats {
        todo!()
    }

    /// Fills the pool.
    ///
    /// # Errors
    /// [`DaemonError::Capacity`].
    pub async fn prime_pool(&self) -> Result<(), DaemonError> {
        todo!()
    }

    /// Ends the warm sandboxes; those in use stay.
    ///
    /// # Errors
    /// When one could not be removed.
    pub async fn empty_pool(&self) -> Result<(), DaemonError> {
        todo!()
    }

    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        todo!()
    }

    /// The names of the bindings.
    pub fn bindings(&self) -> Vec<String> {
        todo!()
    }

    /// Stores an object in a binding's bucket. The body is streamed.
    ///
    /// # Errors
    /// [`DaemonError::NoBinding`], [`DaemonError::Bucket`].
    pub async fn put_object(
        &self,
        _binding: &str,
        _key: &str,
        _body: BucketBody,
        _options: BucketPutOptions,
    ) -> Result<BucketObject, DaemonError> {
        todo!()
    }

    /// Reads an object, or `range` of it (offset and length in bytes).
    ///
    /// # Errors
    /// [`DaemonError::NoBinding`], [`DaemonError::NoObject`], [`DaemonError::Bucket`].
    pub async fn get_object(
        &self,
        _binding: &str,
        _key: &str,
        _range: Option<(u64, Option<u64>)>,
    ) -> Result<(BucketObject, BucketBody), DaemonError> {
        todo!()
    }

    /// Describes an object.
    ///
    /// # Errors
    /// [`DaemonError::NoBinding`], [`DaemonError::NoObject`], [`DaemonError::Bucket`].
    pub async fn head_object(&self, _binding: &str, _key: &str) -> Result<BucketObject, DaemonError> {
        todo!()
    }

    /// Removes objects; those that are not there are no error.
    ///
    /// # Errors
    /// [`DaemonError::NoBinding`], [`DaemonError::Bucket`].
    pub async fn delete_objects(&self, _binding: &str, _keys: &[String]) -> Result<(), DaemonError> {
        todo!()
    }

    /// Lists a binding's bucket.
    ///
    /// # Errors
    /// [`DaemonError::NoBinding`], [`DaemonError::Bucket`].
    pub async fn list_objects(&self, _binding: &str, _options: BucketListOptions) -> Result<BucketPage, DaemonError> {
        todo!()
    }

    /// Takes in changed bindings (SIGHUP). Mounts that are there stay as they are.
    pub async fn reload(&self, _config: Config) {
        todo!()
    }

    /// Stops gracefully: no new calls; sandboxes and mounts go on without the daemon and are found by the next one,
    /// unless `destroy` asks to store, unmount and end everything.
    ///
    /// # Errors
    /// What could not be stored.
    pub async fn stop(&self, _destroy: bool) -> Result<(), DaemonError> {
        todo!()
    }
}
