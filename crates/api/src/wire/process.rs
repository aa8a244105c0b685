//! Background processes.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use sandpail_sandbox::{ProcessInfo, ProcessLogs, ProcessSpec, ProcessState, SessionId};
use utoipa::ToSchema;

use super::exec::{argv, cwd, env, timeout};
use super::{Members, invalid, iso_unsigned, optional_text};
use crate::error::ApiError;

/// A process to start in the background.
#[derive(Clone, Debug, Default, ToSchema)]
pub struct ProcessRequest {
    /// Program and arguments, one word each, never expanded.
    #[schema(min_items = 1)]
    pub argv: Vec<String>,
    /// Its name, `^[a-zA-Z0-9._-]{1,128}$` without `..`; one is made if it is missing.
    #[schema(rename = "processId", nullable = false)]
    pub process_id: Option<String>,
    /// Working directory; relative means under `/workspace`, where it must stay.
    #[schema(nullable = false)]
    pub cwd: Option<String>,
    /// Variables.
    #[schema(nullable = false)]
    pub env: Option<BTreeMap<String, String>>,
    /// Killed after so many milliseconds.
    #[schema(exclusive_minimum = 0, nullable = false)]
    pub timeout_ms: Option<f64>,
    /// `sandbox` lets `cwd` be any directory of the sandbox.
    #[schema(nullable = false)]
    pub scope: Option<String>,
}

impl ProcessRequest {
    pub(crate) fn parse(members: &Members) -> Result<ProcessSpec, ApiError> {
        let argv = argv(members)?;
        let id = optional_text(members, "processId")?;
        // Names of processes have the form of a session's.
        if id.as_deref().is_some_and(|id| SessionId::parse(id).is_err()) {
            return Err(invalid("Invalid process ID format"));
        }
        Ok(ProcessSpec { id, argv, cwd: cwd(members)?, env: env(members)?, timeout: timeout(members)? })
    }
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProcessStatus {
    /// It runs.
    Running,
    /// It ended with 0.
    Completed,
    /// It ended with another code.
    Failed,
    /// A signal ended it.
    Killed,
}

/// A background process.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Its name.
    pub id: String,
    /// Its pid as the sandbox sees it.
    pub pid: i32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The same in one line, for people.
    pub command: String,
    /// Where it is in its life.
    pub status: ProcessStatus,
    /// How it ended, 128+n for signal n.
    pub exit_code: Option<i32>,
    /// ISO 8601.
    pub start_time: String,
    /// ISO 8601.
    pub end_time: Option<String>,
}

impl From<ProcessInfo> for Process {
    fn from(info: ProcessInfo) -> Self {
        let (status, exit_code) = match info.state {
            ProcessState::Running => (ProcessStatus::Running, None),
            ProcessState::Exited(0) => (ProcessStatus::Completed, Some(0)),
            // Signals are 1 to 64.
            ProcessState::Exited(code @ 129..=192) => (ProcessStatus::Killed, Some(code)),
            ProcessState::Exited(code) => (ProcessStatus::Failed, Some(code)),
        };
        Self {
            id: info.id,
            pid: info.pid,
            command: info.argv.join(" "),
            argv: info.argv,
            status,
            exit_code,
            start_time: iso_unsigned(info.started_ms),
            end_time: info.ended_ms.map(iso_unsigned),
        }
    }
}

/// The background processes of a sandbox.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
pub struct ProcessList {
    /// Ended ones too.
    pub processes: Vec<Process>,
}

/// A signal was sent.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProcessKilled {
    /// Always true.
    pub success: bool,
    /// To which process.
    pub process_id: String,
    /// Its number.
    pub signal: i32,
    /// ISO 8601.
    pub timestamp: String,
}

/// A signal was sent to all that ran.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
pub struct ProcessesKilled {
    /// Always true.
    pub success: bool,
    /// How many.
    pub count: usize,
    /// ISO 8601.
    pub timestamp: String,
}

/// The kept output of a process.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProcessLogText {
    /// Of which process.
    pub process_id: String,
    /// Its newest output.
    pub stdout: String,
    /// Its newest errors.
    pub stderr: String,
    /// `utf-8` (what is none is replaced) or `base64`.
    pub encoding: &'static str,
}

impl ProcessLogText {
    /// `encoding`: `utf-8` if `None`.
    pub(crate) fn new(process_id: String, logs: &ProcessLogs, encoding: Option<&str>) -> Result<Self, ApiError> {
        let (encoding, encode): (_, fn(&[u8]) -> String) = match encoding {
            None | Some("utf-8" | "utf8") => ("utf-8", |bytes| String::from_utf8_lossy(bytes).into_owned()),
            Some("base64") => ("base64", |bytes| STANDARD.encode(bytes)),
            Some(_) => return Err(invalid("encoding must be utf-8 or base64")),
        };
        Ok(Self { process_id, stdout: encode(&logs.stdout), stderr: encode(&logs.stderr), encoding })
    }
}

const SIGNALS: [(&str, Signal); 16] = [
    ("HUP", Signal::HUP),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("ABRT", Signal::ABORT),
    ("KILL", Signal::KILL),
    ("USR1", Signal::USR1),
    ("SEGV", Signal::SEGV),
    ("USR2", Signal::USR2),
    ("PIPE", Signal::PIPE),
    ("ALRM", Signal::ALARM),
    ("TERM", Signal::TERM),
    ("CHLD", Signal::CHILD),
    ("CONT", Signal::CONT),
    ("STOP", Signal::STOP),
    ("TSTP", Signal::TSTP),
    ("WINCH", Signal::WINCH),
];

/// The number of a signal by name (`SIGTERM`, `TERM`) or number; `SIGTERM` if there is none.
pub(crate) fn parse_signal(text: Option<&str>) -> Result<i32, ApiError> {
    let Some(text) = text else { return Ok(Signal::TERM.as_raw()) };
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let by_name = SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, signal)| signal.as_raw());
    let by_number = || text.parse().ok().filter(|number| (1..=64).contains(number));
    by_name.or_else(by_number).ok_or_else(|| invalid("signal must be a signal's name or its number"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn signals() {
        for (text, number) in [("SIGTERM", 15), ("term", 15), ("KILL", 9), ("sigint", 2), ("64", 64), ("1", 1)] {
            assert_eq!(parse_signal(Some(text)).unwrap(), number, "{text}");
        }
        assert_eq!(parse_signal(None).unwrap(), 15);
        for bad in ["", "0", "65", "-1", "SIGNOPE", "9x"] {
            assert!(parse_signal(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn how_a_process_ended() {
        let of = |state| {
            let info =
                ProcessInfo { id: "p".into(), pid: 2, argv: vec!["a".into()], state, started_ms: 0, ended_ms: None };
            Process::from(info).status
        };
        assert_eq!(of(ProcessState::Running), ProcessStatus::Running);
        assert_eq!(of(ProcessState::Exited(0)), ProcessStatus::Completed);
        assert_eq!(of(ProcessState::Exited(127)), ProcessStatus::Failed);
        assert_eq!(of(ProcessState::Exited(137)), ProcessStatus::Killed);
        assert_eq!(of(ProcessState::Exited(255)), ProcessStatus::Failed);
    }

    #[test]
    fn logs() {
        let logs = ProcessLogs { stdout: Bytes::from_static(b"a\xff"), stderr: Bytes::new() };
        assert_eq!(ProcessLogText::new("p".into(), &logs, None).unwrap().stdout, "a\u{fffd}");
        assert_eq!(ProcessLogText::new("p".into(), &logs, Some("base64")).unwrap().stdout, "Yf8=");
        assert!(ProcessLogText::new("p".into(), &logs, Some("x")).is_err());
    }
}
