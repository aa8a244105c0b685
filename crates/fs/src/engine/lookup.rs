//! From a name to a node: from what is known, or by asking the store.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sandpail_store::{ListRequest, ObjectAttributes, ObjectInfo, ObjectKey, StoreError};
use tokio::time::Instant;

use super::directory::DirItem;
use super::plain::Described;
use super::siblings::Sibling;
use super::{Engine, Stat, failed, not_found, object_key, stale, stat_of};
use crate::attr::{Attr, Kind};
use crate::read::ObjectVersion;
use crate::tree::names::{Asked, asked_for, name_of, shadowed_name_of};
use crate::tree::{Entry, Name, Node, ROOT, Since, Tree, Version};
use crate::{FsError, FsResult};

/// After so many questions for single names of a directory it is listed instead.
const PROBES_BEFORE_LISTING: u32 = 1;
/// Most names that are asked for at once ahead of their lookups, and how their number grows.
const AHEAD_LEN_MAX: usize = 256;
const AHEAD_GROWTH: usize = 8;
/// The same for directories that are listed ahead: what is learnt of them is believed for a second, mostly.
const LISTED_AHEAD_LEN_MAX: usize = 32;
/// A local change in the middle of every question would have to happen this often.
const TRIES: usize = 16;
/// Time between two looks at a name that is being changed.
const CHANGE_PAUSE: Duration = Duration::from_millis(5);

enum Step {
    Known(u64),
    Absent,
    Ask(Question),
}

struct Question {
    since: Since,
    what: What,
}

enum What {
    /// List the directory: one page, or all of it.
    List { prefix: String, whole: bool },
    /// HEAD a file whose version the listing told, and the files that are likely to be asked for next; or get it, if it is small and
    /// will probably be read.
    File { key: ObjectKey, ahead: Vec<DirItem>, sibling: Option<Arc<Sibling>> },
    /// HEAD a directory's marker, and what is likely to be asked for next.
    Marker { key: ObjectKey, ahead: Vec<DirItem> },
    /// List a directory, which tells whether it has a marker, and those that are likely to be asked for next.
    Below { ahead: Vec<DirItem> },
    /// HEAD what was known until now and is probably still there.
    Again { key: ObjectKey, segment: Arc<str> },
    /// Nothing is known: HEAD the file and look for keys below it.
    Probe { segment: Arc<str>, file: Option<ObjectKey>, below: Option<ObjectKey>, file_only: bool },
}

/// What a directory lists.
pub(super) struct Listing {
    pub(super) entries: BTreeMap<Name, Entry>,
    pub(super) has_marker: bool,
    /// Whether that is all of it.
    pub(super) is_whole: bool,
}

enum Found {
    Nothing,
    File { segment: Arc<str>, info: ObjectInfo },
    Directory { segment: Arc<str>, marker: Option<ObjectInfo>, marker_known: bool },
}

pub(super) fn version_of(info: &ObjectInfo) -> Version {
    Version { etag: Some(info.etag.clone()), size: info.size, modified: info.last_modified }
}

impl Engine {
    /// Finds `name` in `parent` and counts one more reference of the kernel.
    ///
    /// # Errors
    /// [`FsError::NotFound`]; [`FsError::Store`] if the store cannot say.
    pub async fn lookup(&self, parent: u64, name: &[u8]) -> FsResult<Stat> {
        match self.lookup_status(parent, name).await {
            Some(found) => found,
            None => self.resolve(parent, name, true).await,
        }
    }

    /// As [`Engine::lookup`], counting only if `pin`.
    pub(super) async fn resolve(&self, parent: u64, name: &[u8], pin: bool) -> FsResult<Stat> {
        if let Some(stat) = self.resolve_local(parent, name, pin)? {
            return Ok(stat);
        }
        let mut tries = 0;
        while tries < TRIES {
            tries += 1;
            let step = {
                let mut tree = self.tree();
                let step = self.lookup_step(&mut tree, parent, name)?;
                if let Step::Known(ino) = step
                    && !tree.get(ino).is_some_and(Node::is_removal_open)
                {
                    if pin && let Some(node) = tree.get_mut(ino) {
                        node.lookups += 1;
                    }
                    return stat_of(&tree, ino);
                }
                step
            };
            match step {
                Step::Absent => return Err(not_found(name)),
                Step::Ask(_) if self.tree().is_changing(parent, name) => {
                    // Nothing that the store says now counts: it may be from before.
                    tokio::time::sleep(CHANGE_PAUSE).await;
                    tries -= 1;
                }
                Step::Ask(question) => self.answer(parent, name, question).await?,
                Step::Known(ino) => drop(self.settle_removal(ino).await?),
            }
        }
        Err(FsError::Busy { what: format!("{:?} changes all the time", String::from_utf8_lossy(name)) })
    }

    fn lookup_step(&self, tree: &mut Tree, parent: u64, name: &[u8]) -> FsResult<Step> {
        let asked = match asked_for(name) {
            Ok(asked) => asked,
            Err(FsError::Invalid { .. }) => return Ok(Step::Absent),
            Err(error) => return Err(error),
        };
        self.notice(tree, parent);
        let node = tree.get(parent).ok_or_else(|| stale(parent))?;
        let Some(dir) = node.dir.as_deref() else { return Err(FsError::NotADirectory) };
        if !node.is_linked {
            return Ok(Step::Absent);
        }
        let believes = |until: Instant| dir.believes(until, self.believed_for());
        if let Some(child) = dir.children.get(name).and_then(|ino| tree.get(*ino))
            && (child.is_ours_to_tell() || believes(child.fresh_until) || tree.is_changing(parent, name))
        {
            return Ok(Step::Known(child.ino));
        }
        let is_listed = dir.complete_until.is_some_and(believes);
        if is_listed {
            self.learn_from_siblings(tree);
            let Some(dir) = tree.dir(parent) else { return Err(FsError::NotADirectory) };
            let Some(entry) = dir.entries.get(name) else { return Ok(Step::Absent) };
            let described = self.described_by(tree, parent);
            let is_doubtful = tree.child(parent, name).is_some_and(|child| child.copying.is_some());
            let is_known = entry.attributes.is_some() || described == Described::ByListing && !is_doubtful;
            if is_known && !entry.is_directory() || !self.has_posix_metadata() {
                return Ok(Step::Known(self.node_of_entry(tree, parent, name)?));
            }
            let is_directory = entry.is_directory();
            let segment = tree.key_part(parent, name);
            let since = tree.ask();
            let key = format!("{}{segment}", self.dir_prefix(tree, parent));
            let was_listed =
                tree.child(parent, name).is_some_and(|child| child.dir.as_ref().is_some_and(|dir| dir.listed_at > 0));
            if is_directory && !was_listed && self.may_be_plain(tree, parent) {
                let mut ahead = ahead_of(tree, parent, name, LISTED_AHEAD_LEN_MAX);
                ahead.retain(|item| item.is_directory);
                return Ok(Step::Ask(Question { since, what: What::Below { ahead } }));
            }
            let mut ahead = ahead_of(tree, parent, name, AHEAD_LEN_MAX);
            if let Described::Sampled(left) = described {
                ahead.retain(|item| !item.is_directory);
                ahead.truncate(left - 1);
            }
            let what = if is_directory {
                match object_key(format!("{key}/")) {
                    Ok(key) => What::Marker { key, ahead },
                    // No room for a marker: the directory is implicit.
                    Err(_) => return Ok(Step::Known(self.node_of_entry(tree, parent, name)?)),
                }
            } else {
                let sibling = self.sibling_of(tree, parent, name);
                if sibling.is_some() {
                    // The next files will be fetched, too.
                    ahead.retain(|item| item.is_directory);
                }
                What::File { key: object_key(key)?, ahead, sibling }
            };
            return Ok(Step::Ask(Question { since, what }));
        }
        if dir.absent.get(name).is_some_and(|until| believes(*until)) {
            return Ok(Step::Absent);
        }
        let was_listed = dir.complete_until.is_some();
        let shall_list = !dir.is_huge && (was_listed || dir.probes >= PROBES_BEFORE_LISTING);
        let known = dir.children.get(name).and_then(|ino| tree.get(*ino)).filter(|child| child.version.is_some());
        let known = known.map(|child| (Arc::clone(&child.segment), child.dir.is_some()));
        let since = tree.ask();
        let prefix = self.dir_prefix(tree, parent);
        if matches!(asked, Asked::Shortened) || shall_list {
            let whole = matches!(asked, Asked::Shortened);
            return Ok(Step::Ask(Question { since, what: What::List { prefix, whole } }));
        }
        if let Some(dir) = tree.dir_mut(parent) {
            dir.probes += 1;
        }
        if let Some((segment, is_directory)) = known {
            let slash = if is_directory { "/" } else { "" };
            let key = object_key(format!("{prefix}{segment}{slash}"))?;
            return Ok(Step::Ask(Question { since, what: What::Again { key, segment } }));
        }
        let (segment, file_only) = match asked {
            Asked::Segment(segment) => (segment, false),
            Asked::ShadowedFile(segment) => (segment, true),
            Asked::Shortened => return Ok(Step::Absent),
        };
        let key = format!("{prefix}{segment}");
        // The segment of `a//b` in `a/` is empty: its file would be the marker of `a/` itself.
        let file = if segment.is_empty() && prefix.is_empty() { None } else { object_key(key.clone()).ok() };
        let below = if file_only { None } else { object_key(format!("{key}/")).ok() };
        if file.is_none() && below.is_none() {
            return Err(FsError::NameTooLong { what: format!("{:.60}…", key) });
        }
        let segment = Arc::from(&*segment);
        Ok(Step::Ask(Question { since, what: What::Probe { segment, file, below, file_only } }))
    }

    async fn answer(&self, parent: u64, name: &[u8], question: Question) -> FsResult<()> {
        let Question { since, what } = question;
        match what {
            What::List { prefix, whole } => {
                let listing = self.list_directory(&prefix, whole).await?;
                self.install(parent, &since, listing);
            }
            What::Below { ahead } => {
                let ahead = ahead.iter().map(|item| self.list_below(parent, &since, &item.name));
                let ahead = futures_util::future::join_all(ahead);
                // What fails ahead is asked again, and reported, by its own lookup.
                let (found, _) = futures_util::future::join(self.list_below(parent, &since, name), ahead).await;
                found?;
            }
            What::File { sibling: Some(sibling), .. } if self.learn_from(&sibling).await => {}
            What::File { key, ahead, .. } => match self.head_with(parent, &key, &ahead).await? {
                Some(info) => {
                    let mut tree = self.tree();
                    self.sampled(&mut tree, parent, &info);
                    if !tree.is_outdated(parent, name, &since)
                        && let Some(entry) = tree.dir_mut(parent).and_then(|dir| dir.entries.get_mut(name))
                    {
                        entry.version = Some(version_of(&info));
                        entry.attributes = Some(Arc::new(info.attributes));
                    }
                }
                None => {
                    let mut tree = self.tree();
                    if !tree.is_outdated(parent, name, &since) {
                        let until = self.believed_until();
                        tree.detach_replaced(parent, name);
                        tree.note_removed(parent, &Name::from(name), until);
                    }
                }
            },
            What::Again { key, segment } => {
                let info = self.head(&key).await?;
                let mut tree = self.tree();
                if tree.is_outdated(parent, name, &since) {
                    return Ok(());
                }
                match info {
                    Some(info) if key.as_str().ends_with('/') => {
                        self.apply_directory(&mut tree, parent, name, segment, Some(info));
                    }
                    Some(info) => self.apply(&mut tree, parent, name, Found::File { segment, info }),
                    // Gone, or something else now: the next step asks for everything.
                    None => {
                        let child = tree.child(parent, name).map(|node| node.ino);
                        if let Some(node) = child.and_then(|ino| tree.get_mut(ino)) {
                            node.version = None;
                            if let Some(dir) = &mut node.dir {
                                dir.has_marker = None;
                            }
                        }
                    }
                }
            }
            What::Marker { key, ahead } => {
                let marker = self.head_with(parent, &key, &ahead).await?;
                let mut tree = self.tree();
                if !tree.is_outdated(parent, name, &since) {
                    let segment = tree.key_part(parent, name);
                    self.apply(&mut tree, parent, name, Found::Directory { segment, marker, marker_known: true });
                }
            }
            What::Probe { segment, file, below, file_only } => {
                let mut found = self.ask_for(segment, file, below, file_only).await?;
                let mut tree = self.tree();
                if matches!(found, Found::Directory { .. }) && self.hides(&tree, parent, name, true) {
                    found = Found::Nothing;
                }
                if !tree.is_outdated(parent, name, &since) {
                    self.apply(&mut tree, parent, name, found);
                }
            }
        }
        Ok(())
    }

    /// Takes in the listing of a directory.
    pub(super) fn install(&self, directory: u64, since: &Since, mut listing: Listing) {
        self.show_only(directory, &mut listing.entries);
        let mut tree = self.tree();
        if listing.is_whole {
            tree.install_listing(directory, since, listing.entries, listing.has_marker, self.believed_until());
        } else if let Some(dir) = tree.dir_mut(directory) {
            dir.is_huge = true;
            dir.complete_until = None;
            dir.entries.clear();
        }
    }

    /// Describes a listed directory by its own first page, which is wanted next by whoever walks a tree.
    async fn list_below(&self, parent: u64, since: &Since, name: &[u8]) -> FsResult<()> {
        let (segment, prefix) = {
            let tree = self.tree();
            let Some(dir) = tree.dir(parent) else { return Ok(()) };
            let is_fresh = |node: &Node| node.dir.is_some() && dir.believes(node.fresh_until, self.believed_for());
            if tree.child(parent, name).is_some_and(is_fresh) {
                return Ok(());
            }
            if !dir.entries.contains_key(name) {
                return Ok(());
            }
            let segment = tree.key_part(parent, name);
            let prefix = format!("{}{segment}/", self.dir_prefix(&tree, parent));
            (segment, prefix)
        };
        let listing = self.list_directory(&prefix, false).await?;
        let marker = match object_key(prefix) {
            Ok(key) if listing.has_marker => self.head(&key).await?,
            _ => None,
        };
        let directory = {
            let mut tree = self.tree();
            if tree.is_outdated(parent, name, since) {
                return Ok(());
            }
            // It is there even with nothing in it: its parent's listing says so, and some stores keep empty directories.
            let directory = self.apply_directory(&mut tree, parent, name, segment, marker);
            if let Some(dir) = tree.dir_mut(directory) {
                dir.has_marker = Some(listing.has_marker);
            }
            directory
        };
        self.install(directory, since, listing);
        self.sample(directory).await;
        Ok(())
    }

    /// HEAD of the file and LIST of what is below it, side by side.
    async fn ask_for(
        &self,
        segment: Arc<str>,
        file: Option<ObjectKey>,
        below: Option<ObjectKey>,
        file_only: bool,
    ) -> FsResult<Found> {
        let head = async {
            match &file {
                Some(key) => self.head(key).await,
                None => Ok(None),
            }
        };
        let first_below = async {
            let Some(key) = &below else { return Ok(None) };
            let request = ListRequest { prefix: key.to_string(), max_keys: 1, ..ListRequest::default() };
            let page = self.store.list(&request).await.map_err(failed(|| format!("cannot list {key}")))?;
            Ok(page.objects.into_iter().next())
        };
        let (head, first_below) = futures_util::future::join(head, first_below).await;
        if let (Some(first), Some(key)) = (first_below?, &below) {
            let is_marker = first.key == key.as_str();
            let marker = if is_marker && self.has_posix_metadata() { self.head(key).await? } else { None };
            return Ok(Found::Directory { segment, marker, marker_known: is_marker });
        }
        Ok(match head? {
            // A key that ends in `/` is a marker, unless it holds data.
            Some(info) if !segment.is_empty() || info.size > 0 => Found::File { segment, info },
            _ if file_only => Found::Nothing,
            _ => Found::Nothing,
        })
    }

    /// Describes an object, and asks for its neighbours beside.
    async fn head_with(&self, parent: u64, key: &ObjectKey, ahead: &[DirItem]) -> FsResult<Option<ObjectInfo>> {
        let (info, ()) = futures_util::future::join(self.head(key), self.head_unknown(parent, ahead, true)).await;
        info
    }

    /// Describes an object; `None` if there is none.
    pub(super) async fn head(&self, key: &ObjectKey) -> FsResult<Option<ObjectInfo>> {
        match self.store.head(key).await {
            Ok(info) => Ok(Some(info)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(source) => Err(FsError::Store { what: format!("cannot look up {key}"), source }),
        }
    }

    fn apply(&self, tree: &mut Tree, parent: u64, name: &[u8], found: Found) {
        let until = self.believed_until();
        match found {
            Found::Nothing => {
                tree.detach_replaced(parent, name);
                tree.note_removed(parent, &Name::from(name), until);
            }
            Found::File { segment, info } => {
                let version = version_of(&info);
                self.place_file(tree, parent, name, segment, version, Some(Arc::new(info.attributes)));
            }
            Found::Directory { segment, marker, marker_known } => {
                let ino = self.apply_directory(tree, parent, name, segment, marker);
                if let Some(dir) = tree.dir_mut(ino) {
                    // A marker that was asked for and is not there: the directory is implicit.
                    let has_marker = dir.has_marker == Some(true);
                    dir.has_marker = marker_known.then_some(has_marker || !self.has_posix_metadata());
                }
            }
        }
    }

    /// Takes in what HEAD said of a directory's marker.
    pub(super) fn apply_directory(
        &self,
        tree: &mut Tree,
        parent: u64,
        name: &[u8],
        segment: Arc<str>,
        marker: Option<ObjectInfo>,
    ) -> u64 {
        let until = self.believed_until();
        let ino = self.place_directory(tree, parent, name, segment);
        let Some(node) = tree.get_mut(ino) else { return ino };
        node.fresh_until = until;
        if let Some(info) = marker {
            let stored = Attr::of_object(&info.attributes, 0, info.last_modified, true, &self.options.defaults);
            // Entries that came and went here have moved the times forward; that is not stored.
            let is_first = node.version.is_none();
            let (mtime, ctime) = (node.attr.mtime.max(stored.mtime), node.attr.ctime.max(stored.ctime));
            node.attr = stored;
            if !is_first {
                node.attr.mtime = mtime;
                node.attr.ctime = ctime;
            }
            node.version = Some(version_of(&info));
            node.attributes = Arc::new(info.attributes);
            if let Some(dir) = &mut node.dir {
                dir.has_marker = Some(true);
            }
        }
        ino
    }

    /// The node of a listed name.
    pub(super) fn node_of_entry(&self, tree: &mut Tree, parent: u64, name: &[u8]) -> FsResult<u64> {
        let entry = tree.dir(parent).and_then(|dir| dir.entries.get(name)).cloned().ok_or_else(|| not_found(name))?;
        let segment = tree.key_part(parent, name);
        Ok(match entry.version {
            Some(version) => self.place_file(tree, parent, name, segment, version, entry.attributes),
            None => {
                let ino = self.place_directory(tree, parent, name, segment);
                if let Some(node) = tree.get_mut(ino) {
                    node.fresh_until = self.believed_until();
                }
                ino
            }
        })
    }

    fn place_directory(&self, tree: &mut Tree, parent: u64, name: &[u8], segment: Arc<str>) -> u64 {
        match tree.child(parent, name) {
            Some(node) if node.dir.is_some() => node.ino,
            _ => {
                let attr = Attr::plain(Kind::Directory, 0, SystemTime::now(), &self.options.defaults);
                tree.insert(parent, name.into(), segment, attr)
            }
        }
    }

    pub(super) fn attr_of_file(&self, attributes: &ObjectAttributes, version: &Version) -> Attr {
        let defaults = &self.options.defaults;
        if self.has_posix_metadata() {
            Attr::of_object(attributes, version.size, version.modified, false, defaults)
        } else {
            Attr::plain(Kind::File, version.size, version.modified, defaults)
        }
    }

    pub(super) fn place_file(
        &self,
        tree: &mut Tree,
        parent: u64,
        name: &[u8],
        segment: Arc<str>,
        version: Version,
        attributes: Option<Arc<ObjectAttributes>>,
    ) -> u64 {
        let is_described = attributes.is_some();
        let attributes = attributes.unwrap_or_default();
        let until = self.believed_until();
        let attr = self.attr_of_file(&attributes, &version);
        let copied = tree.child(parent, name).filter(|node| node.copying.is_some()).map(|node| node.ino);
        if let Some(node) = copied.and_then(|ino| tree.get_mut(ino))
            && node.take_copy(&version, &attributes)
            && let Some(dirty) = node.content.as_ref().and_then(|content| content.dirty())
            && let Some(etag) = version.etag.clone()
        {
            dirty.set_base_version(ObjectVersion { key: dirty.key(), etag, size: version.size });
        }
        let reusable = tree.child(parent, name).and_then(|node| {
            let is_same = node.version.as_ref().is_some_and(|known| known.has_same_bytes(&version));
            // An open file keeps the version that it was opened with: the new one is another inode.
            (node.dir.is_none() && (is_same || node.opens == 0)).then_some((node.ino, is_same))
        });
        let ino = match reusable {
            Some((ino, is_same)) => {
                if let Some(node) = tree.get_mut(ino) {
                    node.fresh_until = until;
                    let is_kept = !is_described && node.version.as_ref().is_some_and(|known| known.is_same(&version));
                    if is_same && !self.has_posix_metadata() || is_kept {
                        if is_described {
                            (node.attributes, node.is_described) = (attributes, true);
                        }
                        return ino;
                    }
                }
                ino
            }
            None => tree.insert(parent, name.into(), segment, attr.clone()),
        };
        if let Some(node) = tree.get_mut(ino) {
            if node.version.as_ref().is_none_or(|known| !known.has_same_bytes(&version)) {
                node.content = None;
                node.target = None;
            }
            if node.version.as_ref().is_none_or(|known| !known.is_same(&version)) {
                node.proof = None;
            }
            node.attr = attr;
            node.version = Some(version);
            node.attributes = attributes;
            node.is_described = is_described;
            node.fresh_until = until;
        }
        ino
    }

    /// Lists a directory: all of it, or its first page.
    pub(super) async fn list_directory(&self, prefix: &str, whole: bool) -> FsResult<Listing> {
        let mut entries = BTreeMap::new();
        // It comes before everything that it is the marker of.
        let mut has_marker = false;
        let mut request = ListRequest { prefix: prefix.to_owned(), delimited: true, ..ListRequest::default() };
        loop {
            let page = self.store.list(&request).await.map_err(failed(|| format!("cannot list {prefix:?}")))?;
            for object in page.objects {
                let Some(segment) = object.key.strip_prefix(prefix) else { continue };
                if segment.is_empty() {
                    has_marker = true;
                    if object.size == 0 || prefix.is_empty() {
                        continue;
                    }
                }
                let version = Version { etag: object.etag, size: object.size, modified: object.last_modified };
                add_entry(&mut entries, segment, Some(version));
            }
            for below in page.prefixes {
                let Some(segment) = below.strip_prefix(prefix).and_then(|rest| rest.strip_suffix('/')) else {
                    continue;
                };
                add_entry(&mut entries, segment, None);
            }
            match page.next {
                Some(next) if whole => request.continuation = Some(next),
                next => return Ok(Listing { entries, has_marker, is_whole: next.is_none() }),
            }
        }
    }

    /// Finds out again whether a path still stands for this node, when what is known of it is too old.
    pub(super) async fn revalidate(&self, ino: u64) -> FsResult<()> {
        let (parent, name) = {
            let mut tree = self.tree();
            let parent = tree.get(ino).ok_or_else(|| stale(ino))?.parent;
            self.notice(&mut tree, parent);
            let node = tree.get(ino).ok_or_else(|| stale(ino))?;
            let is_fresh = tree.dir(parent).is_none_or(|dir| dir.believes(node.fresh_until, self.believed_for()));
            let is_settled = is_fresh || node.off_bucket || node.is_local() || !node.is_linked || node.opens > 0;
            if ino == ROOT || is_settled && !node.is_removal_open() {
                return Ok(());
            }
            (node.parent, Arc::clone(&node.name))
        };
        match self.resolve(parent, &name, false).await {
            Ok(found) if found.ino == ino => Ok(()),
            Ok(_) | Err(FsError::NotFound { .. }) => Err(stale(ino)),
            Err(error) => Err(error),
        }
    }
}

/// Programs that list a directory look its names up one by one, in the order of the listing (`ls -l`). As with the
/// contents of a file, the more names were asked for in order, the more are fetched at once.
fn ahead_of(tree: &mut Tree, parent: u64, name: &[u8], len_max: usize) -> Vec<DirItem> {
    let Some(dir) = tree.dir_mut(parent) else { return Vec::new() };
    let is_first = dir.entries.first_key_value().is_some_and(|(first, _)| **first == *name);
    let len = match &dir.ahead {
        Some((next, len)) if **next == *name => (len * AHEAD_GROWTH).min(len_max),
        _ if is_first => AHEAD_GROWTH,
        _ => 1,
    };
    let mut after = dir.entries.range::<[u8], _>((Bound::Excluded(name), Bound::Unbounded));
    let item = |(name, entry): (&Name, &Entry)| DirItem {
        name: Arc::clone(name),
        is_directory: entry.is_directory(),
        local: None,
    };
    let ahead = after.by_ref().take(len - 1).map(item).collect();
    dir.ahead = after.next().map(|(next, _)| (Arc::clone(next), len));
    ahead
}

/// Adds a name; of a file and a directory of one name the directory wins, the file gets an escaped name.
fn add_entry(entries: &mut BTreeMap<Name, Entry>, segment: &str, version: Option<Version>) {
    let name = name_of(segment);
    let is_file = version.is_some();
    let entry = |name: &[u8], version| Entry {
        segment: (name != segment.as_bytes()).then(|| Arc::from(segment)),
        version,
        attributes: None,
    };
    match entries.get(&*name) {
        None => {
            entries.insert(Name::from(&*name), entry(&name, version));
        }
        Some(other) if is_file && other.is_directory() => {
            let shadowed = shadowed_name_of(segment);
            entries.insert(Name::from(&*shadowed), entry(&shadowed, version));
        }
        Some(other) if !is_file && !other.is_directory() => {
            let shadowed = shadowed_name_of(segment);
            let file = entry(&shadowed, other.version.clone());
            entries.insert(Name::from(&*shadowed), file);
            entries.insert(Name::from(&*name), entry(&name, None));
        }
        Some(_) => {}
    }
}
