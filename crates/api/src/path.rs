//! Paths of a sandbox as clients write them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use sandpail_sandbox::WORKSPACE;

use crate::error::ApiError;

/// How far a path may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// `/workspace` and below: the compatible rule.
    Workspace,
    /// The sandbox's whole root.
    Sandbox,
}

impl Scope {
    /// The `scope` of a query or a body; none is the workspace.
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, ApiError> {
        match text {
            None | Some("" | "workspace") => Ok(Self::Workspace),
            Some("sandbox") => Ok(Self::Sandbox),
            Some(_) => Err(ApiError::Invalid("scope must be workspace or sandbox".to_owned())),
        }
    }
}

/// Resolves `.`, `..` and `//` of `path` as text; relative means under `/workspace`. Links are not looked at: the
/// sandbox resolves them inside its own root.
///
/// # Errors
/// [`ApiError::Outside`] with `refusal`, if the path leaves `scope`; [`ApiError::Invalid`] for a NUL byte.
pub(crate) fn resolve(path: &[u8], scope: Scope, refusal: &'static str) -> Result<PathBuf, ApiError> {
    if path.contains(&0) {
        return Err(ApiError::Invalid("a path must not contain a NUL byte".to_owned()));
    }
    let base: &[u8] = if path.starts_with(b"/") { b"" } else { WORKSPACE.as_bytes() };
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in base.split(|byte| *byte == b'/').chain(path.split(|byte| *byte == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    let is_inside = parts.first().is_some_and(|first| *first == &WORKSPACE.as_bytes()[1..]);
    if scope == Scope::Workspace && !is_inside {
        return Err(ApiError::Outside(refusal));
    }
    let mut resolved = Vec::from(b"/");
    resolved.extend(parts.join(&b'/'));
    Ok(PathBuf::from(OsString::from_vec(resolved)))
}

/// The working directory of a command or session.
pub(crate) fn resolve_cwd(cwd: &str, scope: Scope) -> Result<PathBuf, ApiError> {
    resolve(cwd.as_bytes(), scope, "cwd must resolve to a location within /workspace")
}

/// A path of one of our own routes, which reach the whole sandbox.
pub(crate) fn resolve_own(path: &str) -> Result<PathBuf, ApiError> {
    resolve(path.as_bytes(), Scope::Sandbox, "")
}

/// The path of `/v1/sandbox/{id}/file/{path}`: what follows `/file/` is the absolute path without its first `/`,
/// percent-decoded once and whole. Any bytes are a name, so this takes the path as it was sent.
pub(crate) fn of_file_route(uri_path: &str, scope: Scope) -> Result<PathBuf, ApiError> {
    let rest = uri_path.splitn(6, '/').nth(5).unwrap_or("");
    if rest.is_empty() {
        return Err(ApiError::Invalid("file path must not be empty".to_owned()));
    }
    let mut path = Vec::from(b"/");
    path.extend(percent_decode_str(rest));
    resolve(&path, scope, "path must resolve to a location within /workspace")
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[track_caller]
    fn check(uri_path: &str, scope: Scope, expected: Result<&str, &str>) {
        let found = of_file_route(uri_path, scope).map_err(|error| match error {
            ApiError::Invalid(text) => text,
            ApiError::Outside(text) => text.to_owned(),
            other => format!("{other:?}"),
        });
        let found = found.as_ref().map(|path| path.to_str().unwrap()).map_err(String::as_str);
        assert_eq!(found, expected, "{uri_path}");
    }

    #[test]
    fn file_paths() {
        const OUTSIDE: Result<&str, &str> = Err("path must resolve to a location within /workspace");
        let workspace =
            |rest: &str, expected| check(&format!("/v1/sandbox/abc/file/{rest}"), Scope::Workspace, expected);
        workspace("workspace/a.txt", Ok("/workspace/a.txt"));
        workspace("workspace", Ok("/workspace"));
        workspace("workspace/a/../b//c/./d", Ok("/workspace/b/c/d"));
        workspace("/workspace/x", Ok("/workspace/x"));
        workspace("workspace/..%2Fworkspace%2Fx", Ok("/workspace/x"));
        workspace("workspace/a%20b%23%3F%25%2B%26%3D%3B%3A%40%2C%24", Ok("/workspace/a b#?%+&=;:@,$"));
        // Once: `%2541` is the name `%41`.
        workspace("workspace/%2541+b", Ok("/workspace/%41+b"));
        workspace("workspace/%E2%82%AC", Ok("/workspace/€"));
        workspace("", Err("file path must not be empty"));
        workspace("etc/passwd", OUTSIDE);
        workspace("workspace/../etc/passwd", OUTSIDE);
        workspace("workspace/%2e%2e/etc", OUTSIDE);
        workspace("workspace-2/x", OUTSIDE);
        workspace(".", OUTSIDE);
        workspace("workspace/a%00b", Err("a path must not contain a NUL byte"));
        check("/v1/sandbox/abc/file", Scope::Workspace, Err("file path must not be empty"));
        check("/v1/sandbox/abc/file/data/results.json", Scope::Sandbox, Ok("/data/results.json"));
        check("/v1/sandbox/abc/file/../..", Scope::Sandbox, Ok("/"));
    }

    #[test]
    fn names_are_bytes() {
        let path = of_file_route("/v1/sandbox/abc/file/workspace/%FF", Scope::Workspace).unwrap();
        assert_eq!(path.as_os_str().as_bytes(), b"/workspace/\xff");
    }

    #[test]
    fn working_directories() {
        let of = |cwd| resolve_cwd(cwd, Scope::Workspace).map(|path| path.to_str().unwrap().to_owned()).ok();
        assert_eq!(of("src").as_deref(), Some("/workspace/src"));
        assert_eq!(of("").as_deref(), Some("/workspace"));
        assert_eq!(of("/workspace/a b/").as_deref(), Some("/workspace/a b"));
        assert_eq!(of("../etc"), None);
        assert_eq!(of("/tmp"), None);
        assert_eq!(resolve_cwd("/tmp/", Scope::Sandbox).unwrap().to_str(), Some("/tmp"));
    }
}
