//! Where processes log: one line for each event, whatever stands in it, and a bounded file.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Most bytes of a log before it is set aside, in place of the one that was set aside before.
const LOG_LEN_MAX: u64 = 4 << 20;

/// A log that takes twice [`LOG_LEN_MAX`] at most: what guests do wrong is logged, and they may do it without end.
#[derive(Debug)]
pub struct BoundedLog {
    path: PathBuf,
    file: File,
    len: u64,
    len_max: u64,
}

fn open(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// Where the older half of a log is.
pub fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

impl BoundedLog {
    /// Opens a log, or makes it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, len, len_max: LOG_LEN_MAX })
    }
}

impl Write for BoundedLog {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        if self.len >= self.len_max {
            std::fs::rename(&self.path, older(&self.path))?;
            self.file = open(&self.path)?;
            self.len = 0;
        }
        self.file.write_all(&in_one_line(event))?;
        self.len = self.len.saturating_add(event.len() as u64);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// An event as it may be shown. Guests choose names of files and processes: in them could be whole lines that look like
/// ours, and words for the terminal.
fn in_one_line(event: &[u8]) -> Vec<u8> {
    let last = event.len().saturating_sub(1);
    let plain = |(at, byte): (usize, &u8)| match byte {
        b'\n' if at == last => b'\n',
        b'\t' => b'\t',
        byte if byte.is_ascii_control() => b'?',
        byte => *byte,
    };
    event.iter().enumerate().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_bounded_and_keeps_the_latest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = BoundedLog { len_max: 100, ..BoundedLog::open(&path).unwrap() };
        for number in 0..1000 {
            log.write_all(format!("event {number}\n").as_bytes()).unwrap();
        }
        let now = std::fs::read_to_string(&path).unwrap();
        let before = std::fs::read_to_string(older(&path)).unwrap();
        assert!(now.len() < 120 && before.len() < 120, "{} {}", now.len(), before.len());
        assert!((before + &now).ends_with("event 998\nevent 999\n"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_name_cannot_forge_a_line() {
        assert_eq!(in_one_line(b"a\nERROR \x1b[31mb\r\n"), b"a?ERROR ?[31mb?\n");
        assert_eq!(in_one_line(b""), b"");
    }
}
