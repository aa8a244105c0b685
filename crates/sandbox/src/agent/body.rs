//! Bodies as the agent sees them: a reader that tells the end from a break, and a writer that sends frames.

use std::io::{self, Read, Write};

use super::protocol::{FRAME_LEN_MAX, FrameKind, read_frame, write_frame};

/// What the daemon sends after a request.
#[derive(Debug)]
pub(super) struct BodyReader<R> {
    from: R,
    frame: Vec<u8>,
    taken: usize,
    is_whole: bool,
    is_broken: bool,
}

impl<R: Read> BodyReader<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, frame: Vec::new(), taken: 0, is_whole: false, is_broken: false }
    }

    /// Whether the daemon's side failed: then nobody waits for a reason.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }

    fn next_frame(&mut self) -> io::Result<()> {
        self.taken = 0;
        self.frame.clear();
        match read_frame(&mut self.from, &mut self.frame)? {
            FrameKind::Data => Ok(()),
            FrameKind::End => {
                self.is_whole = true;
                self.frame.clear();
                Ok(())
            }
            FrameKind::Failure | FrameKind::Json => {
                self.frame.clear();
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the transfer was given up"))
            }
        }
    }
}

impl<R: Read> Read for BodyReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.is_broken {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the transfer broke off"));
        }
        // An empty frame is no end: only `End` is.
        while self.taken == self.frame.len() {
            if self.is_whole {
                return Ok(0);
            }
            self.next_frame().inspect_err(|_| self.is_broken = true)?;
        }
        let len = into.len().min(self.frame.len() - self.taken);
        into[..len].copy_from_slice(&self.frame[self.taken..self.taken + len]);
        self.taken += len;
        Ok(len)
    }
}

/// What follows an answer. Without [`BodyWriter::finish`] the daemon takes it for broken.
#[derive(Debug)]
pub(super) struct BodyWriter<W> {
    to: W,
    frame: Vec<u8>,
}

impl<W: Write> BodyWriter<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to, frame: Vec::with_capacity(FRAME_LEN_MAX) }
    }

    /// Sends what is left, and the end.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        write_frame(&mut self.to, FrameKind::End, &[])
    }
}

impl<W: Write> Write for BodyWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.frame.len() == FRAME_LEN_MAX {
            self.flush()?;
        }
        let len = bytes.len().min(FRAME_LEN_MAX - self.frame.len());
        self.frame.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.frame.is_empty() {
            write_frame(&mut self.to, FrameKind::Data, &self.frame)?;
            self.frame.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(wire: &[u8]) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        BodyReader::new(wire).read_to_end(&mut body).map(|_| body)
    }

    #[test]
    fn a_body_without_end_is_broken_not_short() {
        let mut wire = Vec::new();
        let mut body = BodyWriter::new(&mut wire);
        body.write_all(&[7; 3 * FRAME_LEN_MAX / 2]).unwrap();
        body.flush().unwrap();
        assert_eq!(read(&wire).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read(&wire[..wire.len() - 1]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        write_frame(&mut wire, FrameKind::End, &[]).unwrap();
        assert_eq!(read(&wire).unwrap(), [7; 3 * FRAME_LEN_MAX / 2]);
    }

    #[test]
    fn a_body_that_is_given_up_is_broken() {
        let mut wire = Vec::new();
        write_frame(&mut wire, FrameKind::Data, b"ab").unwrap();
        write_frame(&mut wire, FrameKind::Failure, b"\"Aborted\"").unwrap();
        assert_eq!(read(&wire).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
