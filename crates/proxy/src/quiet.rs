//! Keeps a task that wakes itself from being scheduled for it.
//!
//! The two sides of a request run in one task, and hyper joins them by channels that wake whoever waits at the other
//! end: the task that is running. The scheduler would hand it to another thread, which costs more than the request.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// So often a future that woke itself is polled again before others get their turn.
const ROUND_COUNT_MAX: usize = 4;

/// Polls a future again at once if it woke itself while it was polled.
pub(crate) struct Quiet<F> {
    future: F,
    state: Arc<State>,
    waker: Waker,
}

#[derive(Default)]
struct State {
    /// The task that polls.
    outer: AtomicWaker,
    is_polled: AtomicBool,
    is_woken: AtomicBool,
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_polled.load(Ordering::SeqCst) {
            self.is_woken.store(true, Ordering::SeqCst);
            // If the poll ended in between, it may not have seen that.
            if self.is_polled.load(Ordering::SeqCst) {
                return;
            }
        }
        self.outer.wake();
    }
}

impl<F> Quiet<F> {
    pub(crate) fn new(future: F) -> Self {
        let state = Arc::<State>::default();
        let waker = Waker::from(Arc::clone(&state));
        Self { future, state, waker }
    }
}

impl<F: Future + Unpin> Future for Quiet<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        this.state.outer.register(cx.waker());
        for _ in 0..ROUND_COUNT_MAX {
            this.state.is_polled.store(true, Ordering::SeqCst);
            this.state.is_woken.store(false, Ordering::SeqCst);
            let polled = Pin::new(&mut this.future).poll(&mut Context::from_waker(&this.waker));
            this.state.is_polled.store(false, Ordering::SeqCst);
            if polled.is_ready() || !this.state.is_woken.load(Ordering::SeqCst) {
                return polled;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn waking_itself_polls_again_and_not_for_ever() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut polls = 0;
        let mut quiet = Quiet::new(poll_fn(|cx| {
            polls += 1;
            cx.waker().wake_by_ref();
            if polls == 3 { Poll::Ready(()) } else { Poll::Pending }
        }));
        assert!(Pin::new(&mut quiet).poll(&mut Context::from_waker(&waker)).is_ready());
        assert_eq!(count.0.load(Ordering::SeqCst), 0, "nobody was told");

        let mut endless = Quiet::new(poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        assert!(Pin::new(&mut endless).poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(count.0.load(Ordering::SeqCst), 1, "others get their turn, then it goes on");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_of_another_thread_is_lost() {
        for round in 0..2000_u64 {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            tokio::spawn(async move { sender.send(round) });
            let waited = tokio::time::timeout(Duration::from_secs(5), Quiet::new(receiver)).await;
            assert_eq!(waited.unwrap().unwrap(), round);
        }
    }
}
