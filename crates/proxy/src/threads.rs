//! The threads that serve sandboxes.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Threads that each have a runtime of their own. All connections of a sandbox stay on one of them, with those to its
/// buckets: no request wakes another processor, which costs a fifth of a small one, and no sandbox takes more than one.
///
/// Dropping it ends them.
#[derive(Debug)]
pub struct Threads {
    threads: Vec<Thread>,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Thread {
    runtime: Handle,
    /// Dropped, it ends the thread.
    _end: oneshot::Sender<()>,
}

impl Threads {
    /// Starts as many as there are processors for this process.
    ///
    /// # Errors
    /// When the system has no threads or descriptors for them.
    pub fn start() -> std::io::Result<Self> {
        let count = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = (0..count).map(|_| Thread::start()).collect::<Result<_, _>>()?;
        Ok(Self { threads, next: AtomicUsize::new(0) })
    }

    /// The runtime for the next sandbox; each in its turn.
    pub fn next(&self) -> &Handle {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        &self.threads[turn % self.threads.len()].runtime
    }
}

impl Thread {
    fn start() -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        std::thread::Builder::new().name("network".to_owned()).spawn(move || {
            // That nobody holds the other side any more is the sign.
            let _dropped = runtime.block_on(ended);
        })?;
        Ok(Self { runtime: handle, _end: end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sandboxes_take_turns_and_the_threads_end_with_their_owner() {
        let threads = Threads::start().unwrap();
        let id = |handle: &Handle| {
            let handle = handle.clone();
            async move { handle.spawn(async { std::thread::current().id() }).await.unwrap() }
        };
        let count = threads.threads.len();
        let first = id(threads.next()).await;
        for _ in 1..count {
            assert_ne!(id(threads.next()).await, first);
        }
        let handle = threads.next().clone();
        assert_eq!(id(&handle).await, first);
        let forever = handle.spawn(std::future::pending::<()>());
        drop(threads);
        assert!(forever.await.unwrap_err().is_cancelled());
    }
}
