//! What one request cost, told at its end, however it ends.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{Audit, AuditRecord, Denied, Guest, Route};

/// Longest key in a record, in bytes.
const KEY_LEN_MAX: usize = 1024;

/// The request that a connection is busy with, as far as it can be cut.
#[derive(Debug, Default)]
pub(crate) struct Slot(Mutex<Option<Pin<Box<WaitForCancellationFutureOwned>>>>);

impl Slot {
    fn set(&self, revoked: Option<&CancellationToken>) {
        let waiting = revoked.map(|token| Box::pin(token.clone().cancelled_owned()));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
    }

    /// Ready when the request's route is revoked.
    pub(crate) fn poll_revoked(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(waiting) => waiting.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

/// Counts one request. Its record is told when it is dropped: with its answer's body, or before, if there was none.
pub(crate) struct Meter {
    record: AuditRecord,
    begun: Instant,
    audit: Arc<dyn Audit>,
    slot: Arc<Slot>,
    received: Arc<AtomicU64>,
    /// Leave to be under way.
    permit: Option<OwnedSemaphorePermit>,
    /// Leave to hold documents.
    documents: Option<OwnedSemaphorePermit>,
}

impl Meter {
    /// A request begins.
    pub(crate) fn new(guest: &Guest, slot: Arc<Slot>) -> Self {
        let record = AuditRecord { sandbox: guest.id().to_owned(), request_id: request_id(), ..AuditRecord::default() };
        Self {
            record,
            begun: Instant::now(),
            audit: Arc::clone(guest.audit()),
            slot,
            received: Arc::default(),
            permit: None,
            documents: None,
        }
    }

    pub(crate) fn request_id(&self) -> &str {
        &self.record.request_id
    }

    pub(crate) fn hold(&mut self, permit: OwnedSemaphorePermit) {
        self.permit = Some(permit);
    }

    pub(crate) fn hold_documents(&mut self, permit: Option<OwnedSemaphorePermit>) {
        self.documents = permit;
    }

    /// The mount and what is asked of it are known. From now on the request is cut if the mount goes.
    pub(crate) fn found(&mut self, route: Option<&Route>, operation: &'static str, key: Option<&str>) {
        self.record.mount = route.map(|route| route.spec().id.clone());
        self.record.operation = operation;
        self.record.key = key.map(clean);
        self.slot.set(route.map(Route::revoked));
    }

    /// What a request that is refused seems to be about. It is not cut if the mount goes.
    pub(crate) fn meant(&mut self, route: Option<&Route>, operation: &'static str, key: &str) {
        self.record.mount = route.map(|route| route.spec().id.clone());
        self.record.operation = operation;
        self.record.key = Some(clean(key)).filter(|key| !key.is_empty());
    }

    /// The request was refused.
    pub(crate) fn refused(&mut self, denied: &Denied) {
        self.record.refused = Some(denied.rule());
    }

    /// The answer's status.
    pub(crate) fn answered(&mut self, status: u16) {
        self.record.status = status;
    }

    /// Bytes of body that went to the sandbox.
    pub(crate) fn sent(&mut self, len: usize) {
        self.record.bytes_out += len as u64;
    }

    /// Counts bytes of body that came from the sandbox.
    pub(crate) fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.slot.set(None);
        let mut record = std::mem::take(&mut self.record);
        record.bytes_in = self.received.load(Ordering::Relaxed);
        record.duration = self.begun.elapsed();
        self.audit.record(record);
    }
}

/// A key as it may stand in a log.
pub(crate) fn clean(key: &str) -> String {
    let mut end = key.len().min(KEY_LEN_MAX);
    while !key.is_char_boundary(end) {
        end -= 1;
    }
    let key = &key[..end];
    if !key.chars().any(char::is_control) {
        return key.to_owned();
    }
    key.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// 16 hexadecimal digits that are not given twice, and tell nothing of how many requests there were.
pub(crate) fn request_id() -> String {
    static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut hasher = STATE.build_hasher();
    hasher.write_u64(NEXT.fetch_add(1, Ordering::Relaxed));
    format!("{:016X}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_cut_and_cleaned() {
        assert_eq!(clean("a\r\nb"), "a\u{fffd}\u{fffd}b");
        let long = "é".repeat(600);
        assert_eq!(clean(&long), "é".repeat(512));
    }

    #[test]
    fn request_ids_differ() {
        let (one, two) = (request_id(), request_id());
        assert_ne!(one, two);
        assert_eq!(one.len(), 16);
    }
}
