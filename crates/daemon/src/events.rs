//! What happens, told to whoever listens.

use std::time::{SystemTime, UNIX_EPOCH};

use sandpail_sandbox::SandboxId;
use tokio::sync::broadcast;

use crate::Event;

/// A listener that is further behind than this misses events, and hears so.
const EVENT_COUNT_MAX: usize = 1024;

/// Where events go.
#[derive(Clone, Debug)]
pub(crate) struct Events(broadcast::Sender<Event>);

impl Events {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(EVENT_COUNT_MAX))
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }

    pub(crate) fn tell(&self, kind: &str, sandbox: &SandboxId, mount_path: Option<&str>, detail: impl Into<String>) {
        let detail = detail.into();
        tracing::info!(kind, sandbox = sandbox.as_str(), mount = mount_path, detail);
        self.tell_quietly(kind, sandbox, mount_path, detail);
    }

    /// The same for what is in the log already.
    pub(crate) fn tell_quietly(&self, kind: &str, sandbox: &SandboxId, mount_path: Option<&str>, detail: String) {
        let event = Event {
            time_ms: now_ms(),
            kind: kind.to_owned(),
            sandbox: Some(sandbox.to_string()),
            mount_path: mount_path.map(str::to_owned),
            detail,
        };
        // It is no error that nobody listens.
        let _ = self.0.send(event);
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
