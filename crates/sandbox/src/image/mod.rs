//! Images as root file systems: an OCI image layout (a directory, or that in a tar) or what `docker save` wrote.
//!
//! [`unpack`] finds the image for this machine in it ([`manifest`]), checks every digest, and puts the layers on top of
//! each other into one directory ([`layer`]), once per image: the directory's name is the image's digest, and it gets
//! that name when it is complete.

mod layer;
mod manifest;
mod source;

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::SandboxError;
use manifest::Found;
use source::Source;

/// Most bytes of an image when it is unpacked: larger ones are attacks, or no root file systems.
const IMAGE_LEN_MAX: u64 = 64 * 1024 * 1024 * 1024;

/// An image that is unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// Its root file system; nobody else changes it, so do not either. Users and groups are those of the image.
    pub(crate) root: PathBuf,
    /// Variables of its commands.
    pub(crate) env: Vec<(String, String)>,
    /// Where its commands start.
    pub(crate) working_dir: Option<PathBuf>,
    /// As whom its commands run.
    pub(crate) user: Option<String>,
    /// The program that its commands are arguments of.
    pub(crate) entrypoint: Vec<String>,
    /// What it runs if nothing else is asked for.
    pub(crate) cmd: Vec<String>,
}

/// Unpacks the image at `source` below `cache_dir`, or finds that it is unpacked. Blocks; two at once do the work once.
///
/// Layers are verified when they are unpacked; what is in `cache_dir`, which must be root's alone, is trusted later.
///
/// # Errors
/// [`SandboxError::Host`] names the file and what to do.
pub(crate) fn unpack(source: &Path, cache_dir: &Path) -> Result<Image, SandboxError> {
    unpack_bounded(source, cache_dir, IMAGE_LEN_MAX)
        .map_err(|Fault(why)| SandboxError::Host(format!("the image {} cannot be used: {why}", source.display())))
}

/// Why an image cannot be used.
#[derive(Debug)]
struct Fault(String);

impl Fault {
    fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }

    fn io(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Self {
        move |error| Self(format!("{what}: {error}"))
    }
}

fn unpack_bounded(source: &Path, cache_dir: &Path, limit: u64) -> Result<Image, Fault> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(cache_dir)
        .map_err(Fault::io(format_args!("{}", cache_dir.display())))?;
    let source = Source::open(source, cache_dir, limit)?;
    let found = manifest::find(&source)?;
    let root = cache_dir.join(&found.id);
    unpack_once(&source, &found, &root, cache_dir, limit)?;
    let Found { config, .. } = found;
    let run = config.config.unwrap_or_default();
    let env = run.env.unwrap_or_default();
    let image = Image {
        root,
        env: env.iter().filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        working_dir: run.working_dir.filter(|dir| !dir.is_empty()).map(PathBuf::from),
        user: run.user.filter(|user| !user.is_empty()),
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
    };
    // A sandbox runs what it is asked to, as its root, in its workspace.
    let Image { root, working_dir, user, entrypoint, cmd, .. } = &image;
    tracing::debug!(?root, ?working_dir, ?user, ?entrypoint, ?cmd, "an image is unpacked");
    Ok(image)
}

fn unpack_once(source: &Source, found: &Found, root: &Path, cache_dir: &Path, limit: u64) -> Result<(), Fault> {
    if root.is_dir() {
        return Ok(());
    }
    // Whoever holds the lock unpacks. It stays locked until the file is closed, also by a crash.
    let lock_path = cache_dir.join(format!(".lock-{}", found.id));
    let in_cache = |error| Fault::new(format!("{}: {error}", cache_dir.display()));
    let lock = File::create(&lock_path).map_err(in_cache)?;
    lock.lock().map_err(in_cache)?;
    if root.is_dir() {
        return Ok(());
    }
    let staging = cache_dir.join(format!(".unpacking-{}", found.id));
    let cleared = || crate::removal::remove(&staging).map_err(in_cache);
    // What a daemon that was killed left.
    cleared()?;
    let unpacked = layers(source, found, &staging, limit).and_then(|()| {
        // The name says that it is complete, also after a power failure.
        File::open(&staging).and_then(|directory| Ok(rustix::fs::syncfs(directory)?)).map_err(in_cache)?;
        fs::rename(&staging, root).map_err(in_cache)
    });
    if unpacked.is_err() {
        cleared()?;
    }
    unpacked
}

fn layers(source: &Source, found: &Found, staging: &Path, limit: u64) -> Result<(), Fault> {
    fs::create_dir(staging)
        .and_then(|()| fs::set_permissions(staging, Permissions::from_mode(0o755)))
        .map_err(Fault::io(staging.display()))?;
    let mut left = limit;
    for layer in &found.layers {
        left -= layer::apply(source, layer, staging, left)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
