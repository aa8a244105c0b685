//! Output that goes on after its command has ended, because the command left children behind.
//!
//! They are read and nothing is kept: closing the pipe would kill them. But each takes a descriptor of the daemon's, and
//! how many there are is up to the guest. So beyond a number the oldest pipe is closed after all.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::AbortHandle;

use super::lock;

/// Pipes of one sandbox that are read for nobody.
const COUNT_MAX: usize = 128;

#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// The oldest first.
    readers: Mutex<VecDeque<AbortHandle>>,
}

impl Leftovers {
    /// Reads until nobody can write any more, or too many newer pipes came.
    pub(super) fn add(&self, mut pipe: pipe::Receiver) {
        let reader = tokio::spawn(async move {
            let mut chunk = vec![0; 4096];
            while matches!(pipe.read(&mut chunk).await, Ok(1..)) {}
        });
        let mut readers = lock(&self.readers);
        readers.push_back(reader.abort_handle());
        if readers.len() > COUNT_MAX {
            readers.retain(|reader| !reader.is_finished());
        }
        while readers.len() > COUNT_MAX
            && let Some(oldest) = readers.pop_front()
        {
            oldest.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn the_oldest_pipes_are_closed_beyond_a_number() {
        let leftovers = Leftovers::default();
        let mut writers = Vec::new();
        for _ in 0..COUNT_MAX + 3 {
            let (reader, writer) = std::io::pipe().unwrap();
            leftovers.add(pipe::Receiver::from_owned_fd(reader.into()).unwrap());
            writers.push(writer);
        }
        assert_eq!(lock(&leftovers.readers).len(), COUNT_MAX);
        let mut refused = |index: usize| writers[index].write_all(b"x").is_err();
        for index in 0..3 {
            while !refused(index) {
                tokio::task::yield_now().await;
            }
        }
        assert!((3..COUNT_MAX + 3).all(|index| !refused(index)));
        // What is closed by its writers makes room.
        drop(writers.drain(..100));
        while lock(&leftovers.readers).iter().filter(|reader| reader.is_finished()).count() < 97 {
            tokio::task::yield_now().await;
        }
        for _ in 0..90 {
            let (reader, writer) = std::io::pipe().unwrap();
            leftovers.add(pipe::Receiver::from_owned_fd(reader.into()).unwrap());
            writers.push(writer);
        }
        tokio::task::yield_now().await;
        assert!(writers.iter_mut().all(|writer| writer.write_all(b"x").is_ok()));
    }
}
