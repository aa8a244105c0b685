//! What goes wrong, as HTTP. A status is chosen in this file and nowhere else.
//!
//! The texts and codes are a contract: clients show the texts and branch on the codes. No text holds a key: those of
//! the daemon do not by their own contract, and those made here quote nothing of a request but ids, names and paths.

use std::path::Path;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use rustix::io::Errno;
use sandpail_daemon::DaemonError;
use sandpail_sandbox::SandboxError;

use crate::wire::ErrorBody;

/// A request that is not answered with what it asked for.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// No key, or not the configured one.
    Unauthorized,
    /// From a web page of somebody else, to a daemon that has no key.
    Foreign,
    /// No such path, or not with this method.
    NoRoute,
    /// The request is wrong; the text says what.
    Invalid(String),
    /// A path leads out of where it must stay.
    Outside(&'static str),
    /// A body is longer than it may be.
    TooLarge {
        /// Bytes seen or announced.
        len: u64,
        /// The most.
        limit: u64,
    },
    /// Nobody provides tunnels.
    NoTunnels,
    /// The body could not be read to its end.
    BrokenBody,
    /// A range outside an object.
    Range {
        /// The object's bytes.
        size: u64,
    },
    /// The daemon, or the sandbox, did not do it.
    Failed {
        /// What was asked for.
        operation: Operation,
        /// Why not.
        source: Box<DaemonError>,
    },
}

/// What was asked for: it decides the code and the first words of a failure's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Make or find a sandbox.
    Start,
    Destroy,
    Exec,
    Read,
    Write,
    SessionCreate,
    SessionDelete,
    Terminal,
    Persist,
    Hydrate,
    Mount,
    Unmount,
    Sync,
    Egress,
    Pool,
    /// One of our own file routes, by its verb.
    File(&'static str),
    /// One of the process routes, by its verb.
    Process(&'static str),
    /// One of the object routes, by its verb.
    Object(&'static str),
}

impl Operation {
    pub(crate) fn failed(self, source: impl Into<DaemonError>) -> ApiError {
        ApiError::Failed { operation: self, source: Box::new(source.into()) }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Start | Self::Pool => "pool_error",
            Self::Destroy => "destroy_error",
            Self::Exec | Self::Read | Self::Terminal => "exec_transport_error",
            Self::Write | Self::Hydrate => "workspace_archive_write_error",
            Self::SessionCreate | Self::SessionDelete => "session_error",
            Self::Persist => "workspace_archive_read_error",
            Self::Mount => "mount_error",
            Self::Unmount => "unmount_error",
            Self::Sync => "sync_error",
            Self::Egress => "egress_error",
            Self::File(_) => "file_error",
            Self::Process(_) => "process_error",
            Self::Object(_) => "bucket_error",
        }
    }

    fn text(&self, why: &str) -> String {
        match self {
            Self::Start | Self::Pool => format!("pool error: {why}"),
            Self::Destroy => format!("destroy failed: {why}"),
            Self::Exec => format!("exec failed: {why}"),
            Self::Read => format!("read failed: {why}"),
            Self::Write => format!("write failed: {why}"),
            Self::SessionCreate => format!("session create failed: {why}"),
            Self::SessionDelete => format!("session delete failed: {why}"),
            Self::Terminal => format!("terminal failed: {why}"),
            Self::Persist => format!("persist failed: {why}"),
            Self::Hydrate => format!("hydrate failed: {why}"),
            Self::Mount => format!("mount failed: {why}"),
            Self::Unmount => format!("unmount failed: {why}"),
            Self::Sync => format!("sync failed: {why}"),
            Self::Egress => format!("egress failed: {why}"),
            Self::File(verb) | Self::Process(verb) | Self::Object(verb) => format!("{verb} failed: {why}"),
        }
    }
}

/// A status with its body: what [`ApiError`] becomes.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    body: ErrorBody,
}

impl Answer {
    fn new(status: StatusCode, code: &'static str, error: impl Into<String>) -> Self {
        Self { status, body: ErrorBody::new(error, code) }
    }

    fn invalid(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let size = if let Self::Range { size } = self { Some(size) } else { None };
        let Answer { status, body } = answer(&self);
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(size) = size {
            // Digits are always a valid header value.
            if let Ok(value) = HeaderValue::from_str(&format!("bytes */{size}")) {
                response.headers_mut().insert(header::CONTENT_RANGE, value);
            }
        }
        response
    }
}

/// A success without a body.
pub(crate) const NO_CONTENT: StatusCode = StatusCode::NO_CONTENT;

/// A part of an object.
pub(crate) const PARTIAL: StatusCode = StatusCode::PARTIAL_CONTENT;

/// The status of `/health`.
pub(crate) fn health_status(problems: &[String]) -> StatusCode {
    if problems.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// A failure's text as the last event of a stream, which has its status already: `exec failed: …`.
pub(crate) fn text_and_code(error: &ApiError) -> (String, &'static str) {
    let body = answer(error).body;
    (body.error, body.code)
}

fn answer(error: &ApiError) -> Answer {
    match error {
        ApiError::Unauthorized => Answer::new(StatusCode::UNAUTHORIZED, "unauthorized", "Unauthorized"),
        ApiError::Foreign => Answer::new(
            StatusCode::FORBIDDEN,
            "invalid_request",
            "without an API key only clients of this machine are answered; configure a key to be reached otherwise",
        ),
        ApiError::NoRoute => Answer::new(StatusCode::NOT_FOUND, "not_found", "Not found"),
        ApiError::Invalid(text) => Answer::invalid(text.clone()),
        ApiError::Outside(text) => Answer::new(StatusCode::FORBIDDEN, "invalid_request", *text),
        ApiError::TooLarge { len, limit } => too_large(*len, *limit),
        ApiError::NoTunnels => Answer::new(
            StatusCode::BAD_GATEWAY,
            "tunnel_error",
            "tunnel failed: this daemon has no tunnel provider; reach the sandbox's ports from inside it",
        ),
        ApiError::BrokenBody => Answer::invalid("Could not read request body"),
        ApiError::Range { size } => Answer::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "invalid_request",
            format!("the range is outside the object of {size} bytes"),
        ),
        ApiError::Failed { operation, source } => failed(operation, source),
    }
}

fn too_large(len: u64, limit: u64) -> Answer {
    Answer::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "payload_too_large",
        format!("payload too large: {len} bytes exceeds the {limit}-byte limit"),
    )
}

fn failed(operation: &Operation, source: &DaemonError) -> Answer {
    let bad_gateway = |why: &str| Answer::new(StatusCode::BAD_GATEWAY, operation.code(), operation.text(why));
    match source {
        DaemonError::Capacity(text) => Answer::new(StatusCode::SERVICE_UNAVAILABLE, "capacity_exceeded", text.clone()),
        DaemonError::Stopping => Answer::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", source.to_string()),
        DaemonError::Mount(mount) => {
            let (name, sdk_code) = mount.kind.name_and_code();
            let mut answer = bad_gateway(&mount.message);
            answer.body.name = Some(name);
            answer.body.sdk_code = Some(sdk_code);
            answer
        }
        DaemonError::NoBinding { .. } => Answer::new(StatusCode::NOT_FOUND, "binding_not_found", source.to_string()),
        DaemonError::NoObject { .. } => Answer::new(StatusCode::NOT_FOUND, "object_not_found", source.to_string()),
        DaemonError::Egress(_) => Answer::new(StatusCode::BAD_REQUEST, "invalid_request", source.to_string()),
        DaemonError::Bucket(why) | DaemonError::State(why) => bad_gateway(why),
        DaemonError::Sandbox(sandbox) => failed_inside(operation, sandbox, bad_gateway),
    }
}

fn failed_inside(operation: &Operation, source: &SandboxError, bad_gateway: impl Fn(&str) -> Answer) -> Answer {
    let mut answer = match source {
        // What a write lacks is not the file, so only what reads may say that.
        SandboxError::NotFound { path } if matches!(operation, Operation::Read | Operation::File(_)) => {
            let mut answer = Answer::new(
                StatusCode::NOT_FOUND,
                "workspace_read_not_found",
                format!("File not found: {}", path.display()),
            );
            answer.body.errno = Some("ENOENT");
            answer.body.path = Some(text(path));
            answer
        }
        SandboxError::File { path, source, .. } => {
            let mut answer = bad_gateway(&format!("{}: {}", path.display(), reason(source)));
            answer.body.errno = source.raw_os_error().and_then(errno_name);
            answer.body.path = Some(text(path));
            answer
        }
        SandboxError::TooLarge { len, limit } if *operation == Operation::Hydrate => {
            Answer::invalid(format!("tar payload too large: {len} bytes exceeds the {limit}-byte limit"))
        }
        SandboxError::TooLarge { len, limit } => too_large(*len, *limit),
        SandboxError::Archive { exit, message } => {
            let what = if *operation == Operation::Hydrate { "tar extract failed" } else { "tar failed" };
            Answer::new(StatusCode::BAD_GATEWAY, operation.code(), format!("{what} (exit {exit}): {message}"))
        }
        SandboxError::NoProcess { .. } => Answer::new(StatusCode::NOT_FOUND, "process_not_found", source.to_string()),
        SandboxError::System { what, source } => bad_gateway(&format!("{what}: {}", reason(source))),
        SandboxError::NotFound { .. }
        | SandboxError::Exec { .. }
        | SandboxError::SessionExists { .. }
        | SandboxError::NoSession { .. }
        | SandboxError::Busy { .. }
        | SandboxError::Gone
        | SandboxError::Host(_) => bad_gateway(&source.to_string()),
    };
    // A mount may fail in a sandbox's words; its clients test the class all the same.
    if let Operation::Mount | Operation::Unmount | Operation::Sync = operation {
        let kind = sandpail_daemon::MountErrorKind::Other;
        let kind = if *operation == Operation::Unmount { sandpail_daemon::MountErrorKind::UnmountFailed } else { kind };
        let (name, sdk_code) = kind.name_and_code();
        answer.body.name = Some(name);
        answer.body.sdk_code = Some(sdk_code);
    }
    answer
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The cause in words: the guide's for a read-only mount, else the system's without its number.
fn reason(source: &std::io::Error) -> String {
    match source.raw_os_error() {
        Some(code) if code == Errno::ROFS.raw_os_error() => "Read-only filesystem".to_owned(),
        Some(code) => {
            let text = source.to_string();
            let number = format!(" (os error {code})");
            text.strip_suffix(&number).map_or(text.clone(), ToOwned::to_owned)
        }
        None => source.to_string(),
    }
}

/// Names of errnos that file operations meet; SDKs choose their error class by them.
const ERRNOS: [(Errno, &str); 26] = [
    (Errno::NOENT, "ENOENT"),
    (Errno::ROFS, "EROFS"),
    (Errno::ISDIR, "EISDIR"),
    (Errno::NOTDIR, "ENOTDIR"),
    (Errno::ACCESS, "EACCES"),
    (Errno::PERM, "EPERM"),
    (Errno::NOSPC, "ENOSPC"),
    (Errno::DQUOT, "EDQUOT"),
    (Errno::EXIST, "EEXIST"),
    (Errno::NOTEMPTY, "ENOTEMPTY"),
    (Errno::NAMETOOLONG, "ENAMETOOLONG"),
    (Errno::LOOP, "ELOOP"),
    (Errno::XDEV, "EXDEV"),
    (Errno::BUSY, "EBUSY"),
    (Errno::IO, "EIO"),
    (Errno::INVAL, "EINVAL"),
    (Errno::STALE, "ESTALE"),
    (Errno::FBIG, "EFBIG"),
    (Errno::MLINK, "EMLINK"),
    (Errno::MFILE, "EMFILE"),
    (Errno::NFILE, "ENFILE"),
    (Errno::NOTSUP, "ENOTSUP"),
    (Errno::NOTCONN, "ENOTCONN"),
    (Errno::TIMEDOUT, "ETIMEDOUT"),
    (Errno::TXTBSY, "ETXTBSY"),
    (Errno::NOMEM, "ENOMEM"),
];

fn errno_name(code: i32) -> Option<&'static str> {
    ERRNOS.iter().find(|(errno, _)| errno.raw_os_error() == code).map(|(_, name)| *name)
}

/// The sandbox's own word for a body that broke off, so that a stream of it can say so.
pub(crate) fn broken_body(source: axum::Error) -> SandboxError {
    SandboxError::System { what: "the request's body".to_owned(), source: std::io::Error::other(source) }
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
