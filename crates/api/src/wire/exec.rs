//! Commands and sessions.

use std::collections::BTreeMap;
use std::time::Duration;

use sandpail_sandbox::{ExecSpec, SessionId, SessionSpec};
use serde_json::Value;
use utoipa::ToSchema;

use super::{Members, invalid, optional_text, present};
use crate::error::ApiError;
use crate::extract;
use crate::path::{self, Scope};

/// A command to run.
#[derive(Clone, Debug, Default, ToSchema)]
pub struct ExecRequest {
    /// Program and arguments, one word each, never expanded. The first may be a shell builtin.
    #[schema(min_items = 1)]
    pub argv: Vec<String>,
    /// The whole process group is killed after so many milliseconds; the exit code is 124 then.
    #[schema(exclusive_minimum = 0, nullable = false)]
    pub timeout_ms: Option<f64>,
    /// Working directory; relative means under `/workspace`, where it must stay.
    #[schema(nullable = false)]
    pub cwd: Option<String>,
    /// Variables for this command only.
    #[schema(nullable = false)]
    pub env: Option<BTreeMap<String, String>>,
    /// `sandbox` lets `cwd` be any directory of the sandbox.
    #[schema(nullable = false)]
    pub scope: Option<String>,
}

impl ExecRequest {
    /// Checks the form, in the contract's order.
    pub(crate) fn parse(
        members: &Members,
        session: impl FnOnce() -> Result<Option<SessionId>, ApiError>,
    ) -> Result<ExecSpec, ApiError> {
        let argv = argv(members)?;
        let session = session()?;
        let timeout = timeout(members)?;
        let cwd = cwd(members)?;
        let env = env(members)?;
        Ok(ExecSpec { argv, cwd, env, timeout, session, ..ExecSpec::default() })
    }
}

pub(super) fn argv(members: &Members) -> Result<Vec<String>, ApiError> {
    const REFUSAL: &str = "argv must be a non-empty array";
    let Some(Value::Array(items)) = members.get("argv") else { return Err(invalid(REFUSAL)) };
    if items.is_empty() {
        return Err(invalid(REFUSAL));
    }
    let word = |item: &Value| match item {
        // No argument of a process can hold a NUL.
        Value::String(word) if !word.contains('\0') => Ok(word.clone()),
        _ => Err(invalid(format!("{REFUSAL} of strings without NUL"))),
    };
    items.iter().map(word).collect()
}

pub(super) fn timeout(members: &Members) -> Result<Option<Duration>, ApiError> {
    let Some(value) = present(members, "timeout_ms") else { return Ok(None) };
    let milliseconds = value.as_f64().filter(|milliseconds| *milliseconds > 0.0);
    let duration = milliseconds.and_then(|milliseconds| Duration::try_from_secs_f64(milliseconds / 1000.0).ok());
    duration.map(Some).ok_or_else(|| invalid("timeout_ms must be a positive number"))
}

pub(super) fn cwd(members: &Members) -> Result<Option<std::path::PathBuf>, ApiError> {
    let scope = Scope::parse(optional_text(members, "scope")?.as_deref())?;
    optional_text(members, "cwd")?.map(|cwd| path::resolve_cwd(&cwd, scope)).transpose()
}

pub(super) fn env(members: &Members) -> Result<BTreeMap<String, String>, ApiError> {
    const REFUSAL: &str = "env must be an object of strings when provided";
    let Some(value) = present(members, "env") else { return Ok(BTreeMap::new()) };
    let Value::Object(variables) = value else { return Err(invalid(REFUSAL)) };
    let mut env = BTreeMap::new();
    for (name, value) in variables {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(invalid("a name in env must not be empty and must not contain = or NUL"));
        }
        match value {
            Value::String(value) if !value.contains('\0') => drop(env.insert(name.clone(), value.clone())),
            // JavaScript's undefined, if it was kept at all.
            Value::Null => {}
            _ => return Err(invalid(REFUSAL)),
        }
    }
    Ok(env)
}

/// A session to make. The body may be missing.
#[derive(Clone, Debug, Default, ToSchema)]
pub struct SessionRequest {
    /// Its name, `^[a-zA-Z0-9._-]{1,128}$` without `..`; one is made if it is missing.
    #[schema(nullable = false)]
    pub id: Option<String>,
    /// Where it starts; `/workspace` if it is missing.
    #[schema(nullable = false)]
    pub cwd: Option<String>,
    /// Its variables.
    #[schema(nullable = false)]
    pub env: Option<BTreeMap<String, String>>,
    /// `sandbox` lets `cwd` be any directory of the sandbox.
    #[schema(nullable = false)]
    pub scope: Option<String>,
}

impl SessionRequest {
    pub(crate) fn parse(members: &Members) -> Result<SessionSpec, ApiError> {
        let id = optional_text(members, "id")?.map(|id| extract::session_id(&id)).transpose()?;
        Ok(SessionSpec { id, cwd: cwd(members)?, env: env(members)? })
    }
}

/// A session was made.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
pub struct SessionCreated {
    /// Its name.
    pub id: String,
}

/// A session was ended.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionDeleted {
    /// Always true.
    pub success: bool,
    /// Its name.
    pub session_id: String,
    /// When, ISO 8601.
    pub timestamp: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(body: Value) -> Result<ExecSpec, String> {
        let Value::Object(members) = body else { panic!("no object") };
        ExecRequest::parse(&members, || Ok(None)).map_err(|error| match error {
            ApiError::Invalid(text) => format!("400 {text}"),
            ApiError::Outside(text) => format!("403 {text}"),
            other => format!("{other:?}"),
        })
    }

    #[track_caller]
    fn refused(body: Value, expected: &str) {
        assert_eq!(parse(body.clone()).map(|spec| spec.argv), Err(expected.to_owned()), "{body}");
    }

    #[test]
    fn forms_that_are_refused() {
        for argv in [json!({}), json!({"argv": []}), json!({"argv": "ls"}), json!({"argv": null})] {
            refused(argv, "400 argv must be a non-empty array");
        }
        refused(json!({"argv": ["ls", 1]}), "400 argv must be a non-empty array of strings without NUL");
        refused(json!({"argv": ["a\0b"]}), "400 argv must be a non-empty array of strings without NUL");
        for timeout in [json!(0), json!(-1), json!("1"), json!(1e300), json!([])] {
            refused(json!({"argv": ["ls"], "timeout_ms": timeout}), "400 timeout_ms must be a positive number");
        }
        refused(json!({"argv": ["ls"], "cwd": "/etc"}), "403 cwd must resolve to a location within /workspace");
        refused(json!({"argv": ["ls"], "cwd": "../x"}), "403 cwd must resolve to a location within /workspace");
        refused(json!({"argv": ["ls"], "cwd": 1}), "400 cwd must be a string when provided");
        refused(json!({"argv": ["ls"], "env": []}), "400 env must be an object of strings when provided");
        refused(json!({"argv": ["ls"], "env": {"A": 1}}), "400 env must be an object of strings when provided");
        refused(
            json!({"argv": ["ls"], "env": {"A=": "1"}}),
            "400 a name in env must not be empty and must not contain = or NUL",
        );
        refused(json!({"argv": ["ls"], "scope": "host"}), "400 scope must be workspace or sandbox");
    }

    #[test]
    fn words_arrive_unchanged() {
        let words = ["a b", "'\"", "\n", "$HOME", "*", "", "ü€"];
        let spec =
            parse(json!({"argv": words, "timeout_ms": 1500, "cwd": "src", "env": {"A": "1", "B": null}, "x": 1}));
        let spec = spec.unwrap();
        assert_eq!(spec.argv, words);
        assert_eq!(spec.timeout, Some(Duration::from_millis(1500)));
        assert_eq!(spec.cwd.unwrap().to_str(), Some("/workspace/src"));
        assert_eq!(spec.env, BTreeMap::from([("A".to_owned(), "1".to_owned())]));
        let spec = parse(json!({"argv": ["ls"], "timeout_ms": null, "cwd": "/tmp", "scope": "sandbox"})).unwrap();
        assert_eq!((spec.timeout, spec.cwd.unwrap().to_str()), (None, Some("/tmp")));
    }

    #[test]
    fn the_session_is_checked_after_argv_and_before_cwd() {
        let bad = || Err(ApiError::Invalid("Invalid session ID format".to_owned()));
        let of = |body: Value| {
            let Value::Object(members) = body else { panic!("no object") };
            match ExecRequest::parse(&members, bad) {
                Err(ApiError::Invalid(text)) => text,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(of(json!({})), "argv must be a non-empty array");
        assert_eq!(of(json!({"argv": ["x"], "cwd": "/etc"})), "Invalid session ID format");
    }

    #[test]
    fn sessions() {
        let Value::Object(members) = json!({"id": "s-1", "cwd": "a", "env": {"A": "b"}}) else { unreachable!() };
        let spec = SessionRequest::parse(&members).unwrap();
        assert_eq!(spec.id.unwrap().as_str(), "s-1");
        assert_eq!(spec.cwd.unwrap().to_str(), Some("/workspace/a"));
        assert!(SessionRequest::parse(&Members::new()).unwrap().id.is_none());
        let Value::Object(members) = json!({"id": "a/b"}) else { unreachable!() };
        assert!(SessionRequest::parse(&members).is_err());
    }
}
