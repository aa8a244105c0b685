//! How many requests were sent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use sandpail_s3::Operation;

/// Requests so far, tries included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestCounts {
    /// By S3's name of the operation; only those that happened.
    pub by_operation: BTreeMap<&'static str, u64>,
    /// How many of them were further tries.
    pub retries: u64,
    /// Bytes of bodies that were sent.
    pub bytes_sent: u64,
    /// Bytes of bodies that were received.
    pub bytes_received: u64,
}

impl RequestCounts {
    /// All requests.
    pub fn total(&self) -> u64 {
        self.by_operation.values().sum()
    }

    /// Requests of one operation.
    pub fn of(&self, operation: &str) -> u64 {
        self.by_operation.get(operation).copied().unwrap_or(0)
    }

    /// What was added since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let difference = self.by_operation.iter().map(|(name, count)| (*name, count - earlier.of(name)));
        Self {
            by_operation: difference.filter(|(_, count)| *count > 0).collect(),
            retries: self.retries - earlier.retries,
            bytes_sent: self.bytes_sent - earlier.bytes_sent,
            bytes_received: self.bytes_received - earlier.bytes_received,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    operations: [AtomicU64; Operation::ALL.len()],
    retries: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counters {
    pub(super) fn request(&self, operation: Operation, is_retry: bool) {
        self.operations[operation as usize].fetch_add(1, Ordering::Relaxed);
        self.retries.fetch_add(u64::from(is_retry), Ordering::Relaxed);
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> RequestCounts {
        let counts = Operation::ALL.iter().map(|op| (op.name(), self.operations[*op as usize].load(Ordering::Relaxed)));
        RequestCounts {
            by_operation: counts.filter(|(_, count)| *count > 0).collect(),
            retries: self.retries.load(Ordering::Relaxed),
            bytes_sent: self.sent.load(Ordering::Relaxed),
            bytes_received: self.received.load(Ordering::Relaxed),
        }
    }
}
