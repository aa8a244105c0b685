//! Runs programs with a time limit and keeps what they said.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// How much of a program's output an error message quotes.
const QUOTE_LEN_MAX: usize = 4000;

/// Before every script: a trace for error messages; and `fails COMMAND…`, since `! COMMAND` does not stop a script.
const PRELUDE: &str = r#"
exec 9>"$TRACE"; BASH_XTRACEFD=9
fails() { if "$@"; then echo "should have failed: $*" >&2; return 1; fi; }
set -x"#;

/// What a program did.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The exit code; 124 or 137 when the time was up.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
    /// The last command that was begun, as the shell traces it.
    pub last: String,
}

impl Finished {
    /// Both outputs, shortened from the front.
    pub fn told(&self) -> String {
        let (stdout, stderr) = (tail(&self.stdout), tail(&self.stderr));
        format!("exit code {} at: {}\nstdout: {stdout}\nstderr: {stderr}", self.code, self.last)
    }
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(QUOTE_LEN_MAX);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// A Bash script, run with `set -euo pipefail`.
#[derive(Debug)]
pub struct Script {
    text: String,
    directory: PathBuf,
    env: Vec<(OsString, OsString)>,
    limit: Duration,
}

impl Script {
    /// A script that runs in `directory`.
    pub fn new(text: impl Into<String>, directory: impl Into<PathBuf>) -> Self {
        Self { text: text.into(), directory: directory.into(), env: Vec::new(), limit: Duration::from_secs(300) }
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets variables.
    #[must_use]
    pub fn envs(mut self, vars: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        self.env.extend(vars);
        self
    }

    /// Sets the time limit.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs the script to its end, whatever that is.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn finish(&self) -> Result<Finished> {
        let outputs = tempfile::tempdir()?;
        let (stdout, stderr) = (outputs.path().join("stdout"), outputs.path().join("stderr"));
        let trace = outputs.path().join("trace");
        let status = Command::new("timeout")
            .arg("--kill-after=10")
            .arg(self.limit.as_secs().to_string())
            .args(["bash", "-euo", "pipefail", "-c"])
            .arg(format!("{PRELUDE}\n{}", self.text))
            .env("TRACE", &trace)
            .current_dir(&self.directory)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .status()
            .context("cannot start timeout or bash")?;
        let read = |path: &Path| -> Result<String> { Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned()) };
        let last = read(&trace).unwrap_or_default().lines().last().unwrap_or_default().to_owned();
        Ok(Finished { code: status.code().unwrap_or(-1), stdout: read(&stdout)?, stderr: read(&stderr)?, last })
    }

    /// Runs the script, which must succeed, and returns what it printed.
    ///
    /// # Errors
    /// When a command in it fails or the time is up.
    pub fn run(&self) -> Result<String> {
        let finished = self.finish()?;
        match finished.code {
            0 => Ok(finished.stdout),
            124 | 137 => {
                bail!("not done after {} s:\n{}\n{}", self.limit.as_secs(), self.text.trim(), finished.told())
            }
            _ => bail!("failed:\n{}\n{}", self.text.trim(), finished.told()),
        }
    }
}
