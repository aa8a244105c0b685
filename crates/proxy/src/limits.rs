//! How much one sandbox may ask at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Connections of one sandbox. Each costs some KiB while it waits.
const CONNECTION_COUNT_MAX: usize = 2048;
/// Requests under way of one sandbox; what is above waits. Each costs some hundred KiB at most.
const REQUEST_COUNT_MAX: usize = 256;

/// KiB of documents (bodies and lists that are written anew, which are in memory whole) of one sandbox under way; what is
/// above waits.
const DOCUMENTS_KIB_MAX: u32 = 64 << 10;

/// One sandbox's share of the proxy.
#[derive(Debug)]
pub(crate) struct Limits {
    connections: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    documents: Arc<Semaphore>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: Arc::new(Semaphore::new(CONNECTION_COUNT_MAX)),
            requests: Arc::new(Semaphore::new(REQUEST_COUNT_MAX)),
            documents: Arc::new(Semaphore::new(DOCUMENTS_KIB_MAX as usize)),
        }
    }
}

impl Limits {
    /// Leave for one connection; none if there are too many.
    pub(crate) fn connection(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.connections).try_acquire_owned().ok()
    }

    /// Leave for one request, in turn; none if that takes longer than `patience`.
    pub(crate) async fn request(&self, patience: Duration) -> Option<OwnedSemaphorePermit> {
        // The usual case needs no timer. Who waits is not overtaken: the semaphore has permits only if nobody does.
        if let Ok(permit) = Arc::clone(&self.requests).try_acquire_owned() {
            return Some(permit);
        }
        // The semaphore is never closed, so this is a permit if it ends in time.
        timeout(patience, Arc::clone(&self.requests).acquire_owned()).await.ok()?.ok()
    }

    /// Leave for documents of so many KiB, in turn.
    pub(crate) async fn documents(&self, kib: u32) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.documents).acquire_many_owned(kib.min(DOCUMENTS_KIB_MAX)).await.ok()
    }
}
