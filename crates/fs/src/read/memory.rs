//! The memory that data under way may take, for the whole mount.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A bound in bytes, shared by all readers of a mount.
#[derive(Debug)]
pub struct MemoryBudget {
    limit: u64,
    used: AtomicU64,
}

/// A share of the budget; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<MemoryBudget>,
    len: u64,
}

impl MemoryBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0) })
    }

    /// Bytes that are taken now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes `len` bytes if they are free. Reading ahead asks so, and does without if refused.
    pub fn try_acquire(self: &Arc<Self>, len: u64) -> Option<Permit> {
        let taken = self.used.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
            used.checked_add(len).filter(|sum| *sum <= self.limit)
        });
        taken.ok().map(|_| Permit { budget: Arc::clone(self), len })
    }

    /// Takes `len` bytes even over the limit: for what a caller waits for, so that nobody ever waits for memory
    /// that only he himself could free. Callers keep `len` to one request's length.
    pub fn acquire_for_demand(self: &Arc<Self>, len: u64) -> Permit {
        self.used.fetch_add(len, Ordering::AcqRel);
        Permit { budget: Arc::clone(self), len }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.len, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_and_comes_back() {
        let budget = MemoryBudget::new(10);
        let first = budget.try_acquire(6).unwrap();
        assert!(budget.try_acquire(5).is_none());
        drop(first);
        assert_eq!(budget.used(), 0);
        assert!(budget.try_acquire(10).is_some());
    }
}
