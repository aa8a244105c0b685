//! Aborting multipart uploads that processes which died have left in the bucket ([`crate::write`] knows which).

use std::sync::Arc;
use std::time::Duration;

use super::Engine;

/// Time between two looks. What a dead process left costs money, and nothing else.
const PAUSE: Duration = Duration::from_secs(3600);

impl Engine {
    /// Aborts multipart uploads of this mount's part of the bucket that processes of this host left when they died. Says how
    /// many there were. Those of living processes and of anybody else stay.
    pub async fn abort_left_uploads(&self) -> usize {
        if self.options.read_only { 0 } else { self.writing.abort_left_uploads().await }
    }

    /// Does so now, and now and then as long as the engine lives.
    pub fn keep_aborting_left_uploads(self: &Arc<Self>) {
        let engine = Arc::downgrade(self);
        self.runtime.spawn(async move {
            loop {
                let Some(engine) = engine.upgrade() else { return };
                let count = engine.abort_left_uploads().await;
                if count > 0 {
                    tracing::info!(count, "uploads that dead processes had left are aborted");
                }
                drop(engine);
                tokio::time::sleep(PAUSE).await;
            }
        });
    }
}
