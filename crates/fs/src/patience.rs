//! How long a caller waits for an operation, and what becomes of the operation after that.
//!
//! There is one budget, [`op_timeout`](crate::engine::EngineOptions::op_timeout): it holds for the whole operation, with all
//! requests and tries that it takes. A store has limits of its own (of `sandpail-store`: 30 s without a byte, a minute of
//! tries for one request), which mostly come first; this one bounds what is made of many requests, waits for other
//! operations, or has a store without limits. What stores or moves data is not late while it gets on: its time begins anew
//! with each part, copy or object that the store takes ([`Progress`]).
//!
//! Only the caller is let go. What changes something goes on to its end, since nobody could say how far it had come; what is
//! dirty stays dirty until the store has it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::FsError;
use crate::engine::Engine;

/// Time between two looks at whether a caller still waits: what a person calls at once. Most operations are done before the
/// first.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// What becomes of an operation whose caller was let go.
pub enum Course<T> {
    /// It changes nothing, so it ends.
    Dropped,
    /// It goes on.
    ToItsEnd,
    /// It goes on, and what it has made for its caller is given back.
    Undone(Undo<T>),
}

/// Gives back what nobody was told of.
pub type Undo<T> = Box<dyn FnOnce(&Engine, T) + Send>;

impl<T> fmt::Debug for Course<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dropped => "Dropped",
            Self::ToItsEnd => "ToItsEnd",
            Self::Undone(_) => "Undone",
        })
    }
}

/// Polls `work` until it is done or the caller is let go: at `until(begun)`, which may move, or when `leaves` says so.
///
/// # Errors
/// [`FsError::TimedOut`], [`FsError::Interrupted`]; `work` is as it was then, and may be polled on.
pub async fn wait<F: Future<Output = Result<T, FsError>>, T>(
    what: &'static str,
    mut work: Pin<&mut F>,
    until: impl Fn(Instant) -> Option<Instant>,
    leaves: impl Fn() -> bool,
) -> Result<Result<T, FsError>, FsError> {
    let begun = Instant::now();
    let mut look = begun + LOOK_PAUSE;
    loop {
        let next = until(begun).map_or(look, |until| until.min(look));
        if let Ok(done) = timeout_at(next, work.as_mut()).await {
            return Ok(done);
        }
        let now = Instant::now();
        if until(begun).is_some_and(|until| until <= now) {
            return Err(FsError::TimedOut { what, seconds: (now - begun).as_secs() });
        }
        if look <= now {
            if leaves() {
                return Err(FsError::Interrupted { what });
            }
            look = now + LOOK_PAUSE;
        }
    }
}

/// When the store has last taken a part of something large.
#[derive(Debug)]
pub(crate) struct Progress {
    begun: Instant,
    /// Milliseconds since then.
    last: AtomicU64,
}

impl Default for Progress {
    fn default() -> Self {
        Self { begun: Instant::now(), last: AtomicU64::new(0) }
    }
}

impl Progress {
    pub(crate) fn note(&self) {
        let since = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.fetch_max(since, Ordering::Relaxed);
    }

    pub(crate) fn last(&self) -> Instant {
        self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, ready};
    use std::pin::pin;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(120);

    fn limited(begun: Instant) -> Option<Instant> {
        Some(begun + LIMIT)
    }

    fn never() -> impl Future<Output = Result<(), FsError>> {
        pending()
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_waits_no_longer_than_its_time() {
        let begun = Instant::now();
        let waited = wait("read", pin!(never()), limited, || false).await;
        assert!(matches!(waited, Err(FsError::TimedOut { what: "read", seconds: 120 })), "{waited:?}");
        assert_eq!(begun.elapsed().as_secs(), 120);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_it_waits_as_long_as_it_takes() {
        let work = async {
            tokio::time::sleep(Duration::from_secs(1 << 20)).await;
            Ok(7)
        };
        assert!(matches!(wait("read", pin!(work), |_| None, || false).await, Ok(Ok(7))));
        assert!(
            matches!(wait("read", pin!(ready(Ok(8))), limited, || true).await, Ok(Ok(8))),
            "done, though it leaves"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_leaves_is_let_go_at_the_next_look() {
        let begun = Instant::now();
        let looks = Cell::new(0);
        let leaves = || {
            looks.set(looks.get() + 1);
            looks.get() == 3
        };
        let waited = wait("flush", pin!(never()), limited, leaves).await;
        assert!(matches!(waited, Err(FsError::Interrupted { what: "flush" })), "{waited:?}");
        assert_eq!((looks.get(), begun.elapsed()), (3, LOOK_PAUSE * 3));
    }

    #[tokio::test(start_paused = true)]
    async fn what_gets_on_is_not_late() {
        let progress = Progress::default();
        let begun = Instant::now();
        let steps = async {
            for _ in 0..5 {
                tokio::time::sleep(LIMIT - Duration::from_secs(1)).await;
                progress.note();
            }
            pending::<Result<(), FsError>>().await
        };
        let until = |begun: Instant| Some(progress.last().max(begun) + LIMIT);
        let waited = wait("flush", pin!(steps), until, || false).await;
        assert!(matches!(waited, Err(FsError::TimedOut { .. })), "{waited:?}");
        assert_eq!(begun.elapsed().as_secs(), (LIMIT - Duration::from_secs(1)).as_secs() * 5 + LIMIT.as_secs());
    }
}
