//! What the proxy tells of each request: a line in the log, counters of the mount, and an event if it was refused.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sandpail_proxy::{Audit, AuditRecord};
use sandpail_sandbox::SandboxId;

use crate::ProxyCounts;
use crate::events::Events;

/// Events of refusals in a second, for each sandbox: a guest that is refused without end must not drown all others.
const REFUSALS_PER_SECOND: u32 = 10;

/// Takes the records of one sandbox.
#[derive(Debug)]
pub(crate) struct AuditLog {
    sandbox: SandboxId,
    events: Events,
    /// Requests that take longer are warned of.
    slow: Duration,
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    /// By mount.
    counts: HashMap<String, ProxyCounts>,
    /// Events of refusals in the second that began then, and those that were not told since.
    second: Instant,
    told: u32,
    untold: u64,
}

impl AuditLog {
    pub(crate) fn new(sandbox: SandboxId, events: Events, slow: Duration) -> Self {
        let now = Now { counts: HashMap::new(), second: Instant::now(), told: 0, untold: 0 };
        Self { sandbox, events, slow, now: Mutex::new(now) }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What went through a mount's door.
    pub(crate) fn counts(&self, mount: &str) -> ProxyCounts {
        self.now().counts.get(mount).copied().unwrap_or_default()
    }

    /// Forgets a mount that is gone.
    pub(crate) fn forget(&self, mount: &str) {
        self.now().counts.remove(mount);
    }
}

impl Now {
    fn count(&mut self, record: &AuditRecord) {
        // Of mounts that are there: names that a guest makes up are not counted.
        let Some(mount) = &record.mount else { return };
        let counts = self.counts.entry(mount.clone()).or_default();
        counts.requests += 1;
        counts.refused += u64::from(record.refused.is_some());
        counts.failed += u64::from(record.status >= 500);
        counts.bytes_in += record.bytes_in;
        counts.bytes_out += record.bytes_out;
    }

    /// Whether a refusal is told now, and how many before it were not.
    fn tells(&mut self, at: Instant) -> Option<u64> {
        if at.duration_since(self.second) >= Duration::from_secs(1) {
            (self.second, self.told) = (at, 0);
        }
        self.told += 1;
        if self.told > REFUSALS_PER_SECOND {
            self.untold += 1;
            return None;
        }
        Some(std::mem::take(&mut self.untold))
    }
}

impl Audit for AuditLog {
    fn record(&self, record: AuditRecord) {
        let AuditRecord { sandbox, mount, operation, key, status, bytes_in, bytes_out, duration, refused, request_id } =
            &record;
        let (elapsed_ms, is_slow) = (u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), *duration > self.slow);
        macro_rules! tell {
            ($level:ident) => {
                tracing::$level!(
                    target: "sandpail::audit",
                    sandbox, mount, operation, key, status, bytes_in, bytes_out, elapsed_ms, refused, request_id, is_slow
                )
            };
        }
        if refused.is_some() || is_slow {
            tell!(warn);
        } else {
            tell!(info);
        }
        let told = {
            let mut now = self.now();
            now.count(&record);
            refused.and_then(|rule| now.tells(Instant::now()).map(|untold| (rule, untold)))
        };
        if let Some((rule, untold)) = told {
            let key = key.as_deref().unwrap_or_default();
            let more = if untold > 0 { format!(" (and {untold} more before)") } else { String::new() };
            let detail = format!("{rule}: {operation} {key}, {request_id}{more}");
            self.events.tell_quietly("proxy.refused", &self.sandbox, None, detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(mount: Option<&str>, refused: Option<&'static str>) -> AuditRecord {
        AuditRecord { mount: mount.map(str::to_owned), refused, status: 200, bytes_out: 5, ..AuditRecord::default() }
    }

    #[test]
    fn requests_are_counted_by_mount() {
        let log = AuditLog::new(SandboxId::parse("s").unwrap(), Events::new(), Duration::from_secs(5));
        log.record(record(Some("m"), None));
        log.record(record(Some("m"), Some("read-only")));
        log.record(record(None, Some("no-route")));
        let counts = log.counts("m");
        assert_eq!((counts.requests, counts.refused, counts.bytes_out), (2, 1, 10));
        log.forget("m");
        assert_eq!(log.counts("m"), ProxyCounts::default());
    }

    #[test]
    fn a_flood_of_refusals_is_told_in_part() {
        let events = Events::new();
        let mut told = events.subscribe();
        let log = AuditLog::new(SandboxId::parse("s").unwrap(), events, Duration::from_secs(5));
        for _ in 0..REFUSALS_PER_SECOND + 5 {
            log.record(record(None, Some("no-route")));
        }
        let mut count = 0;
        while told.try_recv().is_ok() {
            count += 1;
        }
        // The second may have ended meanwhile on a slow machine.
        assert!((REFUSALS_PER_SECOND..REFUSALS_PER_SECOND + 5).contains(&count), "{count}");
        let later = Instant::now() + Duration::from_secs(2);
        assert!(log.now().tells(later).is_some());
    }
}
