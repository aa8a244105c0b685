//! Directories that plain S3 tools have filled: their listing says all there is to say of their files.
//!
//! With [`Metadata::Auto`] a directory that shows no marker (`dir/`) is taken for one of these. Whoever keeps POSIX attributes
//! makes markers, and this engine makes one before it stores what a listing would not give back. Not every program does, so a
//! few files are asked about all the same: one that carries more than its listing says, and from then on all files are
//! asked about, as with [`Metadata::Posix`].
//!
//! A bucket's root can have no marker: its files are asked about.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use sandpail_store::{Condition, ObjectAttributes, ObjectInfo, PutBody, StoreError};

use super::directory::DirItem;
use super::file::clear_set_id;
use super::lookup::version_of;
use super::{Engine, Metadata, object_key, stale};
use crate::attr::{Attr, Kind, Time, xattrs};
use crate::tree::{Name, Node, ROOT, Tree, Version};
use crate::{FsError, FsResult};

/// So many files of one directory, and of all together, are asked about before the rest is believed.
const SAMPLE_OF_DIRECTORY: u32 = 2;
const SAMPLE_OF_ALL: u32 = 16;
/// The bucket's time of a file may be so far from the one that it carries, if nobody has set that.
const TIME_TOLERANCE: Duration = Duration::from_secs(60);
/// A local change in the middle of every question would have to happen this often.
const TRIES: usize = 16;

/// What was learnt from files that were asked about.
#[derive(Debug, Default)]
pub(super) struct Samples {
    asked: AtomicU32,
    /// One carried more than a listing says.
    refuted: AtomicBool,
}

/// How files of a listed directory are described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Described {
    /// By the listing.
    ByListing,
    /// By what their objects carry.
    ByObjects,
    /// By the listing, if so many more of them carry no more than that.
    Sampled(usize),
}

impl Engine {
    /// Whether a directory is one that could be described by its listing, and its directories' markers by theirs.
    pub(super) fn may_be_plain(&self, tree: &Tree, directory: u64) -> bool {
        // A listing that was asked for before a marker was made here says that there is none.
        let is_plain =
            |node: &Node| node.version.is_none() && node.dir.as_ref().is_some_and(|dir| dir.has_marker == Some(false));
        self.options.metadata == Metadata::Auto && tree.get(directory).is_some_and(is_plain)
    }

    /// How the files of a listed directory are described.
    pub(super) fn described_by(&self, tree: &Tree, directory: u64) -> Described {
        match self.options.metadata {
            Metadata::None => return Described::ByListing,
            Metadata::Posix => return Described::ByObjects,
            Metadata::Auto => {}
        }
        let is_root_of_bucket = directory == ROOT && self.options.prefix.is_empty();
        if is_root_of_bucket || !self.may_be_plain(tree, directory) || self.samples.refuted.load(Ordering::Relaxed) {
            return Described::ByObjects;
        }
        let sampled = tree.dir(directory).map_or(0, |dir| dir.sampled);
        let of_all = SAMPLE_OF_ALL.saturating_sub(self.samples.asked.load(Ordering::Relaxed));
        match SAMPLE_OF_DIRECTORY.saturating_sub(sampled).min(of_all) {
            0 => Described::ByListing,
            left => Described::Sampled(left as usize),
        }
    }

    /// Asks about the first files of a directory that was listed for whoever walks a tree, if a few decide how all are described: at once
    /// for all that are listed side by side.
    pub(super) async fn sample(&self, directory: u64) {
        let items: Vec<DirItem> = {
            let tree = self.tree();
            let Described::Sampled(left) = self.described_by(&tree, directory) else { return };
            let Some(dir) = tree.dir(directory) else { return };
            let files = dir.entries.iter().filter(|(_, entry)| !entry.is_directory());
            let item = |name: &Name| DirItem { name: Arc::clone(name), is_directory: false, local: None };
            files.take(left).map(|(name, _)| item(name)).collect()
        };
        self.head_unknown(directory, &items, true).await;
    }

    /// Learns from a file that was asked about.
    pub(super) fn sampled(&self, tree: &mut Tree, directory: u64, info: &ObjectInfo) {
        if !matches!(self.described_by(tree, directory), Described::Sampled(_)) {
            return;
        }
        let shown = Attr::of_object(&info.attributes, info.size, info.last_modified, false, &self.options.defaults);
        if self.is_more_than_listed(&shown, &info.attributes, info.last_modified) {
            tracing::debug!(path = tree.path_of(directory), "files carry more than listings say: all are asked about");
            self.samples.refuted.store(true, Ordering::Relaxed);
            return;
        }
        self.samples.asked.fetch_add(1, Ordering::Relaxed);
        if let Some(dir) = tree.dir_mut(directory) {
            dir.sampled += 1;
        }
    }

    /// Whether a listing, which knows the time `modified`, would not give these attributes back.
    fn is_more_than_listed(&self, attr: &Attr, attributes: &ObjectAttributes, modified: SystemTime) -> bool {
        let listed = Attr::plain(Kind::File, attr.size, modified, &self.options.defaults);
        let [set, listed_time] = [attr.mtime, listed.mtime].map(SystemTime::from);
        let apart = set.duration_since(listed_time).unwrap_or_else(|error| error.duration());
        (attr.kind, attr.perm, attr.uid, attr.gid) != (listed.kind, listed.perm, listed.uid, listed.gid)
            || apart > TIME_TOLERANCE
            || !xattrs(attributes).is_empty()
    }

    /// Whether the object of a node, stored now, would carry more than a listing gives back.
    pub(super) fn carries_more(&self, node: &Node) -> bool {
        let times_were_set = node.content.as_ref().is_some_and(|content| content.times_were_set());
        node.is_described
            && (times_were_set || self.is_more_than_listed(&node.attr, &node.attributes, SystemTime::now()))
    }

    /// Before a file that [carries more](Self::carries_more) is stored in a directory: it must not be taken for a plain one, by
    /// no mount with the same defaults.
    pub(super) async fn mark(&self, directory: u64) -> FsResult<()> {
        {
            let tree = self.tree();
            let node = tree.get(directory).ok_or_else(|| stale(directory))?;
            let Some(dir) = node.dir.as_deref() else { return Ok(()) };
            let is_marked = dir.has_marker == Some(true) || node.version.is_some();
            let prefix = self.dir_prefix(&tree, directory);
            if !self.has_posix_metadata() || is_marked || node.off_bucket || prefix.is_empty() {
                return Ok(());
            }
        }
        self.put_marker(directory).await
    }

    /// Makes the marker of a directory that seems to have none: one that is there, which somebody else has just made, stays.
    pub(super) async fn put_marker(&self, directory: u64) -> FsResult<()> {
        let (key, attributes) = {
            let tree = self.tree();
            let node = tree.get(directory).ok_or_else(|| stale(directory))?;
            (object_key(self.dir_prefix(&tree, directory))?, self.attributes_of(node))
        };
        let has_conditions = self.store.capabilities().conditional_put;
        let condition = if has_conditions { Condition::Absent } else { Condition::Always };
        if has_conditions || self.head(&key).await?.is_none() {
            let number = self.note_begun_aside();
            let put = self.store.put(&key, PutBody::empty(), &attributes, &condition).await;
            self.note_ended(number);
            match put {
                Ok(outcome) => {
                    if let Some(node) = self.tree().get_mut(directory) {
                        node.set_stored(&outcome, 0);
                        node.attributes = attributes.into();
                    }
                }
                Err(StoreError::Precondition { .. }) => {}
                Err(source) => {
                    let what = format!("cannot mark the directory {key}");
                    return Err(FsError::Store { what, source });
                }
            }
        }
        if let Some(dir) = self.tree().dir_mut(directory) {
            dir.has_marker = Some(true);
        }
        Ok(())
    }

    /// Asks what an object carries, if only a listing has told of it: before that is shown, changed, or stored again.
    ///
    /// # Errors
    /// [`FsError::NotFound`] if the file is gone or another one; [`FsError::Store`].
    pub(super) async fn describe_first(&self, ino: u64) -> FsResult<()> {
        for _ in 0..TRIES {
            let (key, parent, name, since) = {
                let mut tree = self.tree();
                let since = tree.ask();
                let node = tree.get(ino).ok_or_else(|| stale(ino))?;
                if node.is_described || node.off_bucket || !node.is_linked {
                    return Ok(());
                }
                (self.file_key(&tree, ino)?, node.parent, node.name.clone(), since)
            };
            let info = self.head(&key).await?;
            let mut tree = self.tree();
            let node = tree.get(ino).ok_or_else(|| stale(ino))?;
            if node.is_local() {
                // What is not stored yet stays as it is; it is of this object, or a conflict that its upload will meet.
                self.describe_changed(&mut tree, ino, info.map(|info| info.attributes));
                return Ok(());
            }
            let info = info.ok_or_else(|| stale(ino))?;
            if tree.is_outdated(parent, &name, &since) {
                continue;
            }
            self.sampled(&mut tree, parent, &info);
            let (segment, version) = (node_segment(&tree, ino)?, version_of(&info));
            let found = self.place_file(&mut tree, parent, &name, segment, version, Some(info.attributes.into()));
            return if found == ino { Ok(()) } else { Err(stale(ino)) };
        }
        Err(FsError::Busy { what: "the file changes all the time".to_owned() })
    }

    /// Describes a file whose bytes were changed here before anybody asked.
    fn describe_changed(&self, tree: &mut Tree, ino: u64, attributes: Option<ObjectAttributes>) {
        let Some(node) = tree.get_mut(ino) else { return };
        node.is_described = true;
        // Gone: it will be there again with what is known.
        let Some(attributes) = attributes else { return };
        let Version { size, modified, .. } =
            node.version.clone().unwrap_or(Version { etag: None, size: 0, modified: SystemTime::now() });
        if self.has_posix_metadata() {
            let stored = Attr::of_object(&attributes, size, modified, false, &self.options.defaults);
            let now = Time::now();
            (node.attr.perm, node.attr.uid, node.attr.gid) = (stored.perm, stored.uid, stored.gid);
            clear_set_id(&mut node.attr.perm);
            node.attr.ctime = now;
        }
        node.attributes = attributes.into();
    }
}

fn node_segment(tree: &Tree, ino: u64) -> FsResult<std::sync::Arc<str>> {
    Ok(tree.get(ino).ok_or_else(|| stale(ino))?.segment.clone())
}
