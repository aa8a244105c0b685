//! What goes over the wire: JSON bodies, and how they become checked commands. These types stop at this crate's border.

mod egress;
mod exec;
mod file;
mod mount;
mod object;
mod process;
mod sandbox;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value};
use utoipa::ToSchema;

pub use egress::{EgressPolicy, Outbound};
pub use exec::{ExecRequest, SessionCreated, SessionDeleted, SessionRequest};
pub use file::{
    FileEntry, FileExists, FileList, FilePermissions, MadeDirectory, MkdirRequest, PathResult, RenameRequest, Renamed,
    WatchEvent,
};
pub use mount::{
    Credentials, MountBucketOptions, MountBucketRequest, MountEntry, MountList, MountSynced, NotStored, ProxyEntry,
    SyncBucketRequest, UnmountBucketRequest, Unmounted,
};
pub use object::{BindingList, HttpMetadata, Object, ObjectKeys, ObjectPage};
pub use process::{
    Process, ProcessKilled, ProcessList, ProcessLogText, ProcessRequest, ProcessStatus, ProcessesKilled,
};
pub use sandbox::{
    EventEntry, Health, PoolConfig, PoolInfo, Running, SandboxCreated, SandboxEntry, SandboxList, TunnelRequest,
};

pub(crate) use object::{decode_metadata, encode_metadata, parse_range};
pub(crate) use process::parse_signal;

use crate::error::ApiError;

/// An error as every route answers it. Clients ignore members that they do not know.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody {
    /// For people.
    pub error: String,
    /// For programs.
    pub code: &'static str,
    /// The SDK's class of a mount error.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub name: Option<&'static str>,
    /// The SDK's code of a mount error.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub sdk_code: Option<&'static str>,
    /// The system's name of a file error, such as `EROFS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub errno: Option<&'static str>,
    /// The path of a file error, absolute.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub path: Option<String>,
}

impl ErrorBody {
    /// An error with nothing but its text and code.
    pub fn new(error: impl Into<String>, code: &'static str) -> Self {
        Self { error: error.into(), code, name: None, sdk_code: None, errno: None, path: None }
    }
}

/// Something was done.
#[derive(Clone, Copy, Debug, serde::Serialize, ToSchema)]
pub struct Done {
    /// Always true.
    pub ok: bool,
}

/// The body of a success that has nothing to say.
pub const DONE: Done = Done { ok: true };

/// A JSON body's members.
pub(crate) type Members = Map<String, Value>;

/// Parses a body that must be a JSON object.
pub(crate) fn object(body: &Bytes) -> Result<Members, ApiError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(members)) => Ok(members),
        // The parser's own text would quote what was sent.
        Ok(_) | Err(_) => Err(invalid("Invalid JSON body")),
    }
}

/// The same for a body that may be missing.
pub(crate) fn optional_object(body: &Bytes) -> Result<Members, ApiError> {
    if body.trim_ascii().is_empty() { Ok(Members::new()) } else { object(body) }
}

fn invalid(text: impl Into<String>) -> ApiError {
    ApiError::Invalid(text.into())
}

/// A member that may be missing or null.
fn present<'a>(members: &'a Members, name: &str) -> Option<&'a Value> {
    members.get(name).filter(|value| !value.is_null())
}

fn optional_text(members: &Members, name: &str) -> Result<Option<String>, ApiError> {
    match present(members, name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(invalid(format!("{name} must be a string when provided"))),
    }
}

fn required_text(members: &Members, name: &str) -> Result<String, ApiError> {
    match members.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        _ => Err(invalid(format!("{name} must be a non-empty string"))),
    }
}

fn optional_flag(members: &Members, name: &str) -> Result<bool, ApiError> {
    match present(members, name) {
        None => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(_) => Err(invalid(format!("{name} must be a boolean when provided"))),
    }
}

/// A moment as JavaScript writes it: `2026-11-24T09:10:00.000Z`.
pub(crate) fn iso(milliseconds: i64) -> String {
    Timestamp::from_millisecond(milliseconds)
        .map_or_else(|_beyond_year_9999| String::new(), |time| format!("{time:.3}"))
}

/// The same for a time that cannot be before 1970.
pub(crate) fn iso_unsigned(milliseconds: u64) -> String {
    i64::try_from(milliseconds).map_or_else(|_beyond_year_9999| String::new(), iso)
}

/// This moment.
pub(crate) fn now() -> String {
    iso(Timestamp::now().as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        assert_eq!(iso(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(iso(1_764_000_000_123), "2025-11-24T16:00:00.123Z");
        assert_eq!(iso(-1), "1969-12-31T23:59:59.999Z");
        assert_eq!(iso(i64::MAX), "");
    }

    #[test]
    fn bodies_are_objects() {
        let parse = |text: &'static str| object(&Bytes::from_static(text.as_bytes()));
        assert!(parse("{}").is_ok());
        for bad in ["", "[]", "1", "null", "\"x\"", "{", "{}x"] {
            match parse(bad) {
                Err(ApiError::Invalid(text)) => assert_eq!(text, "Invalid JSON body", "{bad}"),
                other => panic!("{bad}: {other:?}"),
            }
        }
        assert!(optional_object(&Bytes::from_static(b" \n")).is_ok_and(|members| members.is_empty()));
    }
}
