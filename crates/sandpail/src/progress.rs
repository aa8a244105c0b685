//! What a terminal shows while something takes longer than people like to wait without a word.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Work that is done sooner shows nothing.
const SHOW_AFTER: Duration = Duration::from_secs(2);

/// Shows on standard error that work goes on, until it is dropped; nothing where that is no terminal.
#[derive(Debug)]
pub(crate) struct Waiting {
    is_done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Waiting {
    /// Begins to wait for `what`, such as "storing what was written".
    pub(crate) fn start(what: &str) -> Self {
        let is_done = Arc::new(AtomicBool::new(false));
        let bar = ProgressBar::new_spinner();
        if bar.is_hidden() {
            return Self { is_done, thread: None };
        }
        // A template that is not understood leaves the spinner as it is.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} … {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        let done = Arc::clone(&is_done);
        let thread = std::thread::spawn(move || {
            let started = Instant::now();
            while !done.load(Ordering::Acquire) {
                let left = SHOW_AFTER.saturating_sub(started.elapsed());
                if left.is_zero() {
                    bar.tick();
                }
                std::thread::park_timeout(if left.is_zero() { Duration::from_millis(100) } else { left });
            }
            bar.finish_and_clear();
        });
        Self { is_done, thread: Some(thread) }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.is_done.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // What comes next is written on a line of its own.
            let _ = thread.join();
        }
    }
}
