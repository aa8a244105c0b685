//! What commands print when their daemon is gone: it is read and thrown away, for without a reader they would be killed by
//! their next word.
//!
//! As long as the daemon is there it reads, and these are only held. How many there are is up to the guest, so beyond a
//! number the oldest are let go.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags};

/// Pipes of one sandbox that are held.
const COUNT_MAX: usize = 128;

const CHUNK_LEN: usize = 64 * 1024;

/// The reading ends of commands' pipes.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    /// The oldest first.
    held: VecDeque<Output>,
}

#[derive(Debug)]
struct Output {
    /// The daemon that reads it, as long as it is there.
    reader: u64,
    pipe: OwnedFd,
}

impl Outputs {
    pub(super) fn hold(&mut self, reader: u64, pipes: impl IntoIterator<Item = OwnedFd>) {
        self.held.extend(pipes.into_iter().map(|pipe| Output { reader, pipe }));
        self.held.drain(..self.held.len().saturating_sub(COUNT_MAX));
    }

    /// What to poll for: the end of each, and the words of those that nobody else reads.
    pub(super) fn wishes(&self, is_there: impl Fn(u64) -> bool) -> impl Iterator<Item = PollFd<'_>> {
        self.held.iter().map(move |output| {
            let wish = if is_there(output.reader) { PollFlags::empty() } else { PollFlags::IN };
            PollFd::new(&output.pipe, wish)
        })
    }

    /// Does what [`Outputs::wishes`] found: one answer each.
    pub(super) fn read(&mut self, ready: &[PollFlags]) {
        let mut ready = ready.iter();
        self.held.retain(|output| match ready.next() {
            Some(flags) if flags.contains(PollFlags::IN) => throw_away(&output.pipe),
            Some(flags) => flags.is_empty(),
            None => true,
        });
    }
}

/// Whether there may come more.
fn throw_away(pipe: &OwnedFd) -> bool {
    let mut chunk = [0; CHUNK_LEN];
    match rustix::io::read(pipe, &mut chunk) {
        Ok(len) => len > 0,
        Err(error) => matches!(error, rustix::io::Errno::AGAIN | rustix::io::Errno::INTR),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Write};

    use super::*;

    fn turn(outputs: &mut Outputs, is_there: bool) {
        let mut fds: Vec<_> = outputs.wishes(|_| is_there).collect();
        rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap();
        let ready: Vec<_> = fds.iter().map(PollFd::revents).collect();
        outputs.read(&ready);
    }

    fn unread(reader: &PipeReader) -> u64 {
        rustix::io::ioctl_fionread(reader).unwrap()
    }

    #[test]
    fn only_what_nobody_else_reads_is_read() {
        let mut outputs = Outputs::default();
        let (reader, mut writer) = std::io::pipe().unwrap();
        outputs.hold(1, [reader.try_clone().unwrap().into()]);
        writer.write_all(b"words").unwrap();
        turn(&mut outputs, true);
        assert_eq!(unread(&reader), 5);
        turn(&mut outputs, false);
        assert_eq!((unread(&reader), outputs.held.len()), (0, 1));
        writer.write_all(b"last words").unwrap();
        drop(writer);
        turn(&mut outputs, false);
        turn(&mut outputs, false);
        assert_eq!((unread(&reader), outputs.held.len()), (0, 0));
    }

    #[test]
    fn what_has_ended_and_what_is_too_much_is_let_go() {
        let mut outputs = Outputs::default();
        let mut writers = Vec::new();
        for _ in 0..COUNT_MAX + 3 {
            let (reader, writer) = std::io::pipe().unwrap();
            outputs.hold(1, [reader.into()]);
            writers.push(writer);
        }
        assert!(writers.drain(..3).all(|mut writer| writer.write_all(b"x").is_err()));
        let (mut last, rest) = (writers.pop().unwrap(), writers);
        drop(rest);
        turn(&mut outputs, true);
        assert_eq!(outputs.held.len(), 1);
        last.write_all(b"x").unwrap();
    }
}
