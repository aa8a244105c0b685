//! Under which names a sandbox would see what is to be hidden from it.
//!
//! Names are compared as the file system has them, without links: what is hidden and what is shown may be named by others.

use std::io;
use std::path::{Path, PathBuf};

use crate::start::system;
use crate::{RootFs, SandboxError, SandboxSpec};

/// Paths in the sandbox to cover, if they are there.
///
/// # Errors
/// [`SandboxError::Host`] if a directory is to be shown that is hidden.
pub(crate) fn inside(hidden: &[PathBuf], spec: &SandboxSpec) -> Result<Vec<PathBuf>, SandboxError> {
    let mut covers = Vec::new();
    for hidden in hidden {
        let what = || format!("the hidden directory {}", hidden.display());
        let real = match hidden.canonicalize() {
            Ok(real) => real,
            // What is not there cannot be seen. If it comes later, it does so under this name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => hidden.clone(),
            Err(error) => return Err(system(what())(error)),
        };
        for shown in &spec.expose {
            let shown_really = shown.canonicalize().map_err(system(shown.display().to_string()))?;
            if shown_really.starts_with(&real) {
                let (shown, hidden) = (shown.display(), hidden.display());
                return Err(SandboxError::Host(format!(
                    "{shown} cannot be exposed: it lies in {hidden}, which is hidden"
                )));
            }
            covers.extend(below(&real, &shown_really, shown));
        }
        if let RootFs::Directory(root) = &spec.rootfs {
            let root = root.canonicalize().map_err(system(root.display().to_string()))?;
            covers.extend(below(&real, &root, Path::new("/")));
        }
        covers.push(real);
    }
    Ok(covers)
}

/// Where `hidden` is seen if `real` is shown at `at`.
fn below(hidden: &Path, real: &Path, at: &Path) -> Option<PathBuf> {
    let rest = hidden.strip_prefix(real).ok().filter(|rest| !rest.as_os_str().is_empty())?;
    Some(at.join(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_names_hide_nothing_less() {
        let world = tempfile::tempdir().unwrap();
        let top = world.path().canonicalize().unwrap();
        let (state, link) = (top.join("var/state"), top.join("link"));
        std::fs::create_dir_all(state.join("one")).unwrap();
        std::os::unix::fs::symlink(top.join("var"), &link).unwrap();
        let hidden = [link.join("state")];
        let spec = |shown: &Path| SandboxSpec { expose: vec![shown.to_owned()], ..SandboxSpec::default() };
        assert_eq!(inside(&hidden, &SandboxSpec::default()).unwrap(), std::slice::from_ref(&state));
        assert_eq!(inside(&hidden, &spec(&link)).unwrap(), [link.join("state"), state.clone()]);
        for shown in [&state, &state.join("one"), &link.join("state/one")] {
            let error = inside(&hidden, &spec(shown)).unwrap_err();
            assert!(error.to_string().contains("which is hidden"), "{error}");
        }
        let spec = SandboxSpec { rootfs: RootFs::Directory(link), ..SandboxSpec::default() };
        assert_eq!(inside(&hidden, &spec).unwrap(), [PathBuf::from("/state"), state]);
    }
}
