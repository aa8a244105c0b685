//! Failures while a sandbox starts: what was tried, and the system's answer.

use std::fmt;
use std::io;

/// A step that failed.
#[derive(Debug)]
pub(super) struct Failure {
    what: String,
    source: io::Error,
}

impl Failure {
    pub(super) fn new(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { what: what.into(), source: source.into() }
    }

    pub(super) fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// For the daemon.
    pub(super) fn to_progress(&self) -> crate::wire::Progress {
        crate::wire::Progress::Failed { what: self.to_string(), errno: self.source.raw_os_error() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.source)
    }
}

/// Names the step that a system call belongs to.
pub(super) trait During<T> {
    fn during(self, what: impl AsRef<str>) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, what: impl AsRef<str>) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(what.as_ref(), error))
    }
}
