//! How many requests may be under way, and what happens when the provider asks to slow down.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A bound that halves when the provider throttles and grows back by one per full round of successes.
#[derive(Debug)]
pub(super) struct Limiter {
    semaphore: Arc<Semaphore>,
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: usize,
    /// Permits that were taken back but are still out.
    owed: usize,
    successes: usize,
}

/// Leave for one request.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    limiter: &'a Limiter,
    permit: Option<OwnedSemaphorePermit>,
}

impl Limiter {
    pub(super) fn new(most: usize) -> Self {
        let most = most.max(1);
        let state = Mutex::new(State { limit: most, owed: 0, successes: 0 });
        Self { semaphore: Arc::new(Semaphore::new(most)), most, state }
    }

    pub(super) async fn acquire(&self) -> Permit<'_> {
        // The semaphore is never closed, so this is always a permit.
        let permit = Arc::clone(&self.semaphore).acquire_owned().await.ok();
        Permit { limiter: self, permit }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn success(&self) {
        let mut state = self.state();
        if state.limit == self.most {
            return;
        }
        state.successes += 1;
        if state.successes >= state.limit {
            state.successes = 0;
            state.limit += 1;
            if state.owed > 0 {
                state.owed -= 1;
            } else {
                self.semaphore.add_permits(1);
            }
        }
    }

    pub(super) fn slow_down(&self) {
        let mut state = self.state();
        let target = (state.limit / 2).max(1);
        let taken = state.limit - target;
        state.owed += taken - self.semaphore.forget_permits(taken);
        state.limit = target;
        state.successes = 0;
    }

    /// The present bound.
    pub(super) fn limit(&self) -> usize {
        self.state().limit
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut state = self.limiter.state();
        if state.owed > 0
            && let Some(permit) = self.permit.take()
        {
            state.owed -= 1;
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn halves_and_recovers() {
        let limiter = Limiter::new(8);
        let held: Vec<_> = futures_util::future::join_all((0..8).map(|_| limiter.acquire())).await;
        limiter.slow_down();
        limiter.slow_down();
        assert_eq!(limiter.limit(), 2);
        drop(held);
        assert_eq!(limiter.semaphore.available_permits(), 2);
        for _ in 0..100 {
            limiter.success();
        }
        assert_eq!((limiter.limit(), limiter.semaphore.available_permits()), (8, 8));
        for _ in 0..10 {
            limiter.slow_down();
        }
        assert_eq!((limiter.limit(), limiter.semaphore.available_permits()), (1, 1));
    }
}
