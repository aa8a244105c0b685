//! Where in a sandbox a bucket is mounted.

use std::fmt;

/// An absolute path of a sandbox, normalised as text: no `//`, `.`, `..` or closing `/`. Never `/`, nor anything that
/// belongs to the system.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct MountPath(String);

/// A text that is no place for a mount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMountPath {
    /// Relative, or empty.
    #[error("Mount path must be absolute (start with /): \"{path}\"")]
    Relative {
        /// The refused text.
        path: String,
    },
    /// `/`, `/proc`, `/sys`, `/dev` or below.
    #[error("Mount path not allowed: {path}. Choose a directory outside of /proc, /sys and /dev, such as /data.")]
    Reserved {
        /// The normalised path.
        path: String,
    },
    /// A byte that no path can hold.
    #[error("Mount path must not hold a NUL byte: {path:?}")]
    Nul {
        /// The refused text.
        path: String,
    },
}

/// Directories that the kernel fills; a mount there would break every program.
const RESERVED: [&str; 3] = ["/proc", "/sys", "/dev"];

impl MountPath {
    /// Normalises and checks.
    ///
    /// # Errors
    /// [`InvalidMountPath`].
    pub fn parse(path: &str) -> Result<Self, InvalidMountPath> {
        if !path.starts_with('/') {
            return Err(InvalidMountPath::Relative { path: path.to_owned() });
        }
        if path.contains('\0') {
            return Err(InvalidMountPath::Nul { path: path.to_owned() });
        }
        let path = normalise(path);
        let is_reserved = RESERVED.iter().any(|dir| is_at_or_below(&path, dir));
        if path == "/" || is_reserved { Err(InvalidMountPath::Reserved { path }) } else { Ok(Self(path)) }
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MountPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_at_or_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// As text, so that nothing has to exist: what `..` leads out of stays at `/`.
fn normalise(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalised_as_text() {
        for (path, normal) in [
            ("/data", "/data"),
            ("/data/", "/data"),
            ("//a///b/./c/..", "/a/b"),
            ("/a/../../b", "/b"),
            ("/my data/ x ", "/my data/ x "),
            ("/procfs", "/procfs"),
            ("/workspace/dev", "/workspace/dev"),
        ] {
            assert_eq!(MountPath::parse(path).unwrap().as_str(), normal, "{path}");
        }
    }

    #[test]
    fn refused() {
        let relative = MountPath::parse("data").unwrap_err();
        assert_eq!(relative.to_string(), "Mount path must be absolute (start with /): \"data\"");
        for path in ["/", "//", "/a/..", "/proc", "/proc/self", "/x/../sys/", "/dev/shm", "/./dev"] {
            let error = MountPath::parse(path).unwrap_err();
            assert!(matches!(error, InvalidMountPath::Reserved { .. }), "{path}: {error}");
        }
        assert!(matches!(MountPath::parse("/a\0b"), Err(InvalidMountPath::Nul { .. })));
    }
}
