//! Files and directories.

use std::path::{Path, PathBuf};

use sandpail_sandbox::{FileEvent, FileInfo, FileKind};
use utoipa::ToSchema;

use super::{Members, iso, now, optional_flag, required_text};
use crate::error::ApiError;
use crate::path;

/// A file, directory or link.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    /// The last part of its path.
    pub name: String,
    /// Its path in the sandbox.
    pub absolute_path: String,
    /// Its path below the listed directory.
    pub relative_path: String,
    /// `file`, `directory`, `symlink` or `other`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes.
    pub size: u64,
    /// ISO 8601.
    pub modified_at: String,
    /// As `ls` writes it: `rw-r--r--`.
    pub mode: String,
    /// What its owner may do.
    pub permissions: FilePermissions,
}

/// What a file's owner may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, ToSchema)]
pub struct FilePermissions {
    /// Read it.
    pub readable: bool,
    /// Write it.
    pub writable: bool,
    /// Run it, or enter it.
    pub executable: bool,
}

impl FileEntry {
    /// `root`: the directory that was listed.
    pub(crate) fn new(info: &FileInfo, root: Option<&Path>) -> Self {
        let name = info.path.file_name().map_or_else(|| "/".to_owned(), |name| name.to_string_lossy().into_owned());
        let below = root.and_then(|root| info.path.strip_prefix(root).ok());
        let kind = match info.kind {
            FileKind::File => "file",
            FileKind::Directory => "directory",
            FileKind::Symlink => "symlink",
            FileKind::Other => "other",
        };
        Self {
            relative_path: below.map_or_else(|| name.clone(), |below| below.display().to_string()),
            name,
            absolute_path: info.path.display().to_string(),
            kind: kind.to_owned(),
            size: info.size,
            modified_at: iso(info.modified_ms),
            mode: mode_text(info.mode),
            permissions: FilePermissions {
                readable: info.mode & 0o400 != 0,
                writable: info.mode & 0o200 != 0,
                executable: info.mode & 0o100 != 0,
            },
        }
    }
}

fn mode_text(mode: u32) -> String {
    let letter = |bit: u32| if mode & (1 << bit) == 0 { '-' } else { ['x', 'w', 'r'][bit as usize % 3] };
    (0..9).rev().map(letter).collect()
}

/// A listed directory.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
pub struct FileList {
    /// Always true.
    pub success: bool,
    /// The directory.
    pub path: String,
    /// What is in it.
    pub files: Vec<FileEntry>,
    /// How many.
    pub count: usize,
    /// ISO 8601.
    pub timestamp: String,
}

impl FileList {
    pub(crate) fn new(path: &Path, found: &[FileInfo]) -> Self {
        let files: Vec<_> = found.iter().map(|info| FileEntry::new(info, Some(path))).collect();
        Self { success: true, path: path.display().to_string(), count: files.len(), files, timestamp: now() }
    }
}

/// Whether a path is there.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
pub struct FileExists {
    /// Always true.
    pub success: bool,
    /// The path.
    pub path: String,
    /// Whether it is there.
    pub exists: bool,
    /// ISO 8601.
    pub timestamp: String,
}

/// A directory to make.
#[derive(Clone, Debug, Default, ToSchema)]
pub struct MkdirRequest {
    /// Its path; relative means under `/workspace`.
    pub path: String,
    /// Those above it too; and one that is there is no error.
    #[schema(nullable = false)]
    pub recursive: Option<bool>,
}

impl MkdirRequest {
    pub(crate) fn parse(members: &Members) -> Result<(PathBuf, bool), ApiError> {
        let path = required_text(members, "path")?;
        Ok((path::resolve_own(&path)?, optional_flag(members, "recursive")?))
    }
}

/// A directory was made.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
pub struct MadeDirectory {
    /// Always true.
    pub success: bool,
    /// Its path.
    pub path: String,
    /// As it was asked for.
    pub recursive: bool,
    /// ISO 8601.
    pub timestamp: String,
}

/// A file or directory to rename or move.
#[derive(Clone, Debug, Default, ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct RenameRequest {
    /// What it is called.
    pub old_path: String,
    /// What it shall be called.
    pub new_path: String,
}

impl RenameRequest {
    pub(crate) fn parse(members: &Members) -> Result<(PathBuf, PathBuf), ApiError> {
        let old = required_text(members, "oldPath")?;
        let new = required_text(members, "newPath")?;
        Ok((path::resolve_own(&old)?, path::resolve_own(&new)?))
    }
}

/// It was renamed.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Renamed {
    /// Always true.
    pub success: bool,
    /// What it was called.
    pub path: String,
    /// What it is called.
    pub new_path: String,
    /// ISO 8601.
    pub timestamp: String,
}

/// Something was done to a path.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
pub struct PathResult {
    /// Always true.
    pub success: bool,
    /// The path.
    pub path: String,
    /// ISO 8601.
    pub timestamp: String,
}

/// A change below a watched directory.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WatchEvent {
    /// Always `event`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `create`, `modify`, `delete` or `move`.
    pub event_type: String,
    /// What changed.
    pub path: String,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// ISO 8601.
    pub timestamp: String,
}

impl From<FileEvent> for WatchEvent {
    fn from(event: FileEvent) -> Self {
        Self {
            kind: "event",
            event_type: event.kind,
            path: event.path.display().to_string(),
            is_directory: event.is_directory,
            timestamp: now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries() {
        let info = FileInfo {
            path: "/workspace/d/run.sh".into(),
            kind: FileKind::File,
            size: 5,
            mode: 0o754,
            modified_ms: 1000,
        };
        let entry = FileEntry::new(&info, Some(Path::new("/workspace")));
        assert_eq!((entry.name.as_str(), entry.relative_path.as_str()), ("run.sh", "d/run.sh"));
        assert_eq!((entry.kind.as_str(), entry.mode.as_str()), ("file", "rwxr-xr--"));
        assert_eq!(entry.permissions, FilePermissions { readable: true, writable: true, executable: true });
        assert_eq!(FileEntry::new(&info, None).relative_path, "run.sh");
        assert_eq!(mode_text(0o640), "rw-r-----");
    }
}
