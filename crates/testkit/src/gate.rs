//! A store whose next operation of a kind waits until it is let on: what happens in the middle of it is no matter of luck.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use sandpail_store::{Store, StoreResult};
use tokio::sync::Notify;

use crate::hook::{Hook, Hooked};

/// Holds operations, and counts them.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    arrived: Notify,
    opened: Notify,
}

#[derive(Debug, Default)]
struct State {
    held: Option<&'static str>,
    counts: HashMap<&'static str, usize>,
}

impl Gate {
    /// A gate in front of `store`, open.
    pub fn new(store: Arc<dyn Store>) -> (Arc<dyn Store>, Arc<Self>) {
        let gate = Arc::new(Self::default());
        (Arc::new(Hooked { inner: store, hook: Arc::clone(&gate) }), gate)
    }

    /// The next operation with this name, such as `copy`, waits at the gate.
    pub fn hold(&self, operation: &'static str) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).held = Some(operation);
    }

    /// Returns when it waits there.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Lets it on.
    pub fn open(&self) {
        self.opened.notify_one();
    }

    /// How many operations with this name there were.
    pub fn count(&self, operation: &str) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.counts.get(operation).copied().unwrap_or_default()
    }
}

#[async_trait]
impl Hook for Gate {
    async fn before(&self, operation: &'static str) -> StoreResult<()> {
        let is_held = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            *state.counts.entry(operation).or_default() += 1;
            state.held.take_if(|held| *held == operation).is_some()
        };
        if is_held {
            self.arrived.notify_one();
            self.opened.notified().await;
        }
        Ok(())
    }

    async fn after(&self, _operation: &'static str) -> StoreResult<()> {
        Ok(())
    }
}
