//! Directories: listing them, making and removing what stands in them.

use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use sandpail_store::{Condition, ListRequest, ObjectAttributes, ObjectKey, PutBody};

use super::lookup::version_of;
use super::plain::Described;
use super::{DirHandle, Engine, Metadata, Stat, failed, guard, not_found, object_key, stale, stat_of, status};
use crate::attr::{Attr, Kind, Time};
use crate::content::Content;
use crate::tree::names::{Asked, asked_for};
use crate::tree::{Entry, Name, Node, Tree};
use crate::{FsError, FsResult};

/// HEADs of one listing that are under way at the same time.
const HEADS_AT_ONCE: usize = 32;
/// Linux's longest link target in bytes; a larger object is no symbolic link.
const TARGET_LEN_MAX: u64 = 4095;

/// One name of an open directory.
#[derive(Clone, Debug)]
pub struct DirItem {
    /// The name.
    pub name: Name,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// What it is, if it is in the local tree.
    pub local: Option<Kind>,
}

/// A name of a directory with what a reply needs.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The position behind this entry.
    pub next: u64,
    /// The name.
    pub name: Name,
    /// Inode number and attributes; [`Attr::kind`] is always right, the rest only with `is_known`.
    pub stat: Stat,
    /// Whether `stat` was looked up, and a reference of the kernel counted.
    pub is_known: bool,
}

impl Engine {
    /// Opens a directory for listing.
    ///
    /// # Errors
    /// [`FsError::NotADirectory`].
    pub fn opendir(&self, ino: u64) -> FsResult<u64> {
        if !status::is_status(ino) {
            self.tree().dir(ino).ok_or(FsError::NotADirectory)?;
        }
        let handle = self.new_handle();
        guard(&self.dirs).insert(handle, Arc::new(DirHandle { ino, snapshot: Mutex::default(), resumed: None }));
        self.note_opened(handle, ino, None);
        Ok(handle)
    }

    /// Closes a directory.
    pub fn releasedir(&self, handle: u64) {
        self.note_closed(handle);
        guard(&self.dirs).remove(&handle);
    }

    /// Lists up to `count_max` names from `position` on, which is 0 or a [`Listed::next`]; `.` and `..` come first.
    /// With `plus`, each name (but those two) is looked up and counted as [`Engine::lookup`] does, with [`Metadata::Auto`] only
    /// those that need no question; entries that
    /// the caller does not pass on must be given back with [`Engine::forget`].
    ///
    /// # Errors
    /// [`FsError::BadHandle`]; [`FsError::Store`] if the store cannot be listed.
    pub async fn readdir(&self, handle: u64, position: u64, count_max: usize, plus: bool) -> FsResult<Vec<Listed>> {
        let dir = guard(&self.dirs).get(&handle).cloned().ok_or(FsError::BadHandle)?;
        if status::is_status(dir.ino) {
            return Ok(self.list_status(position));
        }
        let known = if position == 0 { None } else { guard(&dir.snapshot).clone() };
        let snapshot = match known {
            Some(snapshot) => snapshot,
            None => {
                let mut items = self.snapshot(dir.ino).await?;
                if position != 0
                    && let Some((position, name)) = &dir.resumed
                {
                    align(&mut items, *position, name);
                }
                let snapshot = Arc::new(items);
                *guard(&dir.snapshot) = Some(Arc::clone(&snapshot));
                snapshot
            }
        };
        let mut listed = Vec::new();
        let first = usize::try_from(position).unwrap_or(usize::MAX);
        if first < 2 {
            let tree = self.tree();
            let node = tree.get(dir.ino).ok_or_else(|| stale(dir.ino))?;
            for (at, (name, ino)) in [(".", dir.ino), ("..", node.parent)].into_iter().enumerate().skip(first) {
                let attr = node.attr.clone();
                let name = Name::from(name.as_bytes());
                listed.push(Listed {
                    next: at as u64 + 1,
                    name,
                    stat: Stat { ino, attr, is_linked: true, is_local: false },
                    is_known: false,
                });
            }
        }
        let from = first.saturating_sub(2);
        if let Some(before) = from.checked_sub(1).and_then(|at| snapshot.get(at)) {
            self.note_position(handle, position, &before.name);
        }
        let items = snapshot.get(from..).unwrap_or_default();
        let items = &items[..items.len().min(count_max)];
        // The lookups that may follow ask ahead; if there are none, nobody wants to know.
        self.head_unknown(dir.ino, items, plus && self.options.metadata != Metadata::Auto).await;
        for (at, item) in items.iter().enumerate() {
            let next = (from + at) as u64 + 3;
            let name = Arc::clone(&item.name);
            let told = if plus { self.tell_listed(dir.ino, item) } else { None };
            if let Some(stat) = told {
                listed.push(Listed { next, name, stat, is_known: true });
            } else if plus && self.options.metadata != Metadata::Auto {
                match self.resolve(dir.ino, &item.name, true).await {
                    Ok(stat) => listed.push(Listed { next, name, stat, is_known: true }),
                    // Gone since the listing.
                    Err(FsError::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            } else {
                listed.push(self.hint(dir.ino, item, next));
            }
        }
        Ok(listed)
    }

    /// What is known of a listed name, with one more reference of the kernel. However old the listing is: it is what its reader
    /// sees.
    fn tell_listed(&self, parent: u64, item: &DirItem) -> Option<Stat> {
        if item.local.is_some() {
            return None;
        }
        let mut tree = self.tree();
        let dir = tree.dir(parent)?;
        let is_known = |node: &Node| node.is_ours_to_tell() || dir.believes(node.fresh_until, self.believed_for());
        let ino = match tree.child(parent, &item.name).filter(|node| is_known(node)) {
            Some(node) => node.ino,
            None => {
                let entry = dir.entries.get(&item.name).filter(|entry| !entry.is_directory())?;
                // What was learnt since then of another version counts more.
                let is_same = |node: &Node| node.version.as_ref() == entry.version.as_ref();
                if tree.child(parent, &item.name).is_some_and(|node| !is_same(node)) {
                    return None;
                }
                if entry.attributes.is_none() && self.described_by(&tree, parent) != Described::ByListing {
                    return None;
                }
                let until = dir.complete_until;
                let ino = self.node_of_entry(&mut tree, parent, &item.name).ok()?;
                if let (Some(node), Some(until)) = (tree.get_mut(ino), until) {
                    node.fresh_until = node.fresh_until.min(until);
                }
                ino
            }
        };
        tree.get_mut(ino)?.lookups += 1;
        stat_of(&tree, ino).ok()
    }

    /// A listed name without asking for more: its number and kind.
    fn hint(&self, parent: u64, item: &DirItem, next: u64) -> Listed {
        let tree = self.tree();
        let ino = tree.ino_hint(parent, &item.name);
        let child = tree.child(parent, &item.name);
        let entry = tree.dir(parent).and_then(|dir| dir.entries.get(&item.name));
        let stored = entry.and_then(|entry| Some((entry.attributes.as_ref()?, entry.version.as_ref()?)));
        // The listing is newer than a node that nobody has looked up since.
        let kind = match (child, stored) {
            _ if item.local.is_some() => item.local.unwrap_or(Kind::File),
            (Some(node), _) if node.is_local() => node.attr.kind,
            (_, Some((attributes, version))) => {
                Attr::of_object(attributes, version.size, version.modified, false, &tree.defaults).kind
            }
            _ if item.is_directory => Kind::Directory,
            // Only of small ones it is asked whether they are links.
            (Some(node), None) if node.dir.is_none() && entry.is_none_or(may_be_link) => node.attr.kind,
            _ => Kind::File,
        };
        let attr = Attr::plain(kind, 0, std::time::SystemTime::UNIX_EPOCH, &tree.defaults);
        let stat = Stat { ino, attr, is_linked: true, is_local: item.local.is_some() };
        Listed { next, name: Arc::clone(&item.name), stat, is_known: false }
    }

    /// All names of a directory, in order.
    async fn snapshot(&self, ino: u64) -> FsResult<Vec<DirItem>> {
        self.settle_removals_in(ino).await;
        let (since, prefix, is_fresh) = {
            let mut tree = self.tree();
            let since = tree.ask();
            self.notice(&mut tree, ino);
            let node = tree.get(ino).ok_or_else(|| stale(ino))?;
            if !node.is_linked {
                return Ok(Vec::new());
            }
            let dir = node.dir.as_deref().ok_or(FsError::NotADirectory)?;
            if node.off_bucket {
                return self.local_items(&tree, ino);
            }
            let is_fresh = dir.complete_until.is_some_and(|until| dir.believes(until, self.believed_for()));
            (since, self.dir_prefix(&tree, ino), is_fresh)
        };
        if !is_fresh {
            let listing = self.list_directory(&prefix, true).await?;
            self.install(ino, &since, listing);
        }
        let tree = self.tree();
        let dir = tree.dir(ino).ok_or_else(|| stale(ino))?;
        let item = |name: &Name, is_directory| DirItem { name: Arc::clone(name), is_directory, local: None };
        let local = self.local_items(&tree, ino)?;
        let is_shown = |name: &Name| local.iter().all(|item| item.name != *name);
        let entries = dir.entries.iter().filter(|(name, _)| is_shown(name));
        let mut items: Vec<_> = entries.map(|(name, entry)| item(name, entry.is_directory())).collect();
        // New files that are not stored yet; in an order that another process would find, too.
        let stored_count = items.len();
        for (name, child) in &dir.children {
            if !dir.entries.contains_key(name)
                && let Some(node) = tree.get(*child)
                && !node.off_bucket
                && (node.is_local() || node.opens > 0)
            {
                items.push(item(name, node.dir.is_some()));
            }
        }
        items[stored_count..].sort_by(|a, b| a.name.cmp(&b.name));
        items.extend(local);
        Ok(items)
    }

    /// Asks for the metadata of listed files, many at a time: of all of them, or of those that could be links.
    pub(super) async fn head_unknown(&self, parent: u64, items: &[DirItem], all: bool) {
        if !self.has_posix_metadata() || items.is_empty() {
            return;
        }
        let mut keys: Vec<(Name, ObjectKey, bool)> = Vec::new();
        let since = {
            let mut tree = self.tree();
            let since = tree.ask();
            let prefix = self.dir_prefix(&tree, parent);
            let (count_max, only_files) = match self.described_by(&tree, parent) {
                Described::ByListing => (0, true),
                Described::Sampled(left) => (left, true),
                // Its directories are described by their own listings.
                Described::ByObjects => (usize::MAX, self.may_be_plain(&tree, parent)),
            };
            for item in items {
                let Some(dir) = tree.dir(parent) else { break };
                let is_known = |node: &Node| node.is_local() || dir.believes(node.fresh_until, self.believed_for());
                if item.local.is_some() || tree.child(parent, &item.name).is_some_and(is_known) {
                    continue;
                }
                let Some(entry) = dir.entries.get(&item.name) else { continue };
                if entry.attributes.is_some() || only_files && entry.is_directory() {
                    continue;
                }
                if keys.len() >= count_max {
                    break;
                }
                let segment = tree.key_part(parent, &item.name);
                let slash = if entry.is_directory() { "/" } else { "" };
                if (all || count_max < usize::MAX || may_be_link(entry))
                    && let Ok(key) = object_key(format!("{prefix}{segment}{slash}"))
                {
                    keys.push((Arc::clone(&item.name), key, entry.is_directory()));
                }
            }
            since
        };
        let mut keys = keys.into_iter();
        let mut asked = FuturesUnordered::new();
        loop {
            while asked.len() < HEADS_AT_ONCE
                && let Some((name, key, is_directory)) = keys.next()
            {
                asked.push(async move { (name, is_directory, self.head(&key).await) });
            }
            let Some((name, is_directory, info)) = asked.next().await else { return };
            // What fails here is asked again, and reported, by the lookup of that name alone.
            let Ok(info) = info else { continue };
            let mut tree = self.tree();
            if let Some(info) = info.as_ref().filter(|_| !is_directory) {
                self.sampled(&mut tree, parent, info);
            }
            if tree.is_outdated(parent, &name, &since) {
                continue;
            }
            if is_directory {
                let segment = tree.key_part(parent, &name);
                self.apply_directory(&mut tree, parent, &name, segment, info);
            } else if let (Some(info), Some(entry)) =
                (info, tree.dir_mut(parent).and_then(|dir| dir.entries.get_mut(&name)))
            {
                entry.version = Some(version_of(&info));
                entry.attributes = Some(Arc::new(info.attributes));
            }
        }
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// [`FsError::Exists`], [`FsError::ReadOnly`], [`FsError::Store`].
    pub async fn mkdir(&self, parent: u64, name: &[u8], perm: u32, uid: u32, gid: u32) -> FsResult<Stat> {
        self.check_may_change(parent)?;
        if self.is_local_place(parent, name, Kind::Directory) {
            return self.mkdir_local(parent, name, perm, uid, gid).await;
        }
        let segment = self.new_segment(parent, name).await?;
        let _shared = self.structure.read().await;
        let mut attr = self.new_attr(parent, Kind::Directory, perm, uid, gid);
        attr.size = 0;
        let key = {
            let tree = self.tree();
            object_key(format!("{}/", self.key_in(&tree, parent, &segment)?))?
        };
        let mut attributes = ObjectAttributes::default();
        if self.has_posix_metadata() {
            attr.store_in(&mut attributes);
        }
        let change = self.begin(parent, name);
        let outcome = self
            .store
            .put(&key, PutBody::empty(), &attributes, &Condition::Always)
            .await
            .map_err(failed(|| format!("cannot make directory {key}")))?;
        let mut tree = self.tree();
        let ino = tree.insert(parent, name.into(), segment, attr);
        let until = self.believed_until();
        if let Some(node) = tree.get_mut(ino) {
            node.set_stored(&outcome, 0);
            node.attributes = Arc::new(attributes);
            node.fresh_until = until;
            node.lookups = 1;
            if let Some(dir) = &mut node.dir {
                // Made here and now: it is empty.
                dir.complete_until = Some(until);
                dir.has_marker = Some(true);
            }
        }
        tree.note_stored(ino);
        touch(&mut tree, parent);
        change.done(&mut tree);
        stat_of(&tree, ino)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`FsError::NotEmpty`], [`FsError::NotADirectory`], [`FsError::ReadOnly`], [`FsError::Store`].
    pub async fn rmdir(&self, parent: u64, name: &[u8]) -> FsResult<()> {
        self.check_may_change(parent)?;
        let stat = self.resolve_to_change(parent, name).await?;
        if self.rmdir_local(parent, name, stat.ino)?.is_some() {
            return Ok(());
        }
        let _shared = self.structure.read().await;
        let prefix = self.check_empty(stat.ino).await?;
        let change = self.begin(parent, name);
        let marker = object_key(prefix)?;
        self.store.delete(&marker, None).await.map_err(failed(|| format!("cannot remove directory {marker}")))?;
        self.removed(parent, name);
        self.forget_directory(parent, name);
        change.done(&mut self.tree());
        self.keep_parent(parent).await;
        Ok(())
    }

    /// Checks that a directory has no entries, here or in the bucket, and gives its key prefix.
    pub(super) async fn check_empty(&self, ino: u64) -> FsResult<String> {
        let prefix = {
            let tree = self.tree();
            let dir = tree.dir(ino).ok_or(FsError::NotADirectory)?;
            // New files that are open are in no listing of the bucket.
            if dir.children.values().any(|child| tree.get(*child).is_some_and(Node::is_local)) {
                return Err(FsError::NotEmpty);
            }
            if !self.local_items(&tree, ino)?.is_empty() {
                return Err(FsError::NotEmpty);
            }
            self.dir_prefix(&tree, ino)
        };
        let request = ListRequest { prefix: prefix.clone(), max_keys: 2, ..ListRequest::default() };
        let page = self.store.list(&request).await.map_err(failed(|| format!("cannot list {prefix:?}")))?;
        let only_its_marker = page.objects.iter().all(|object| object.key == prefix && object.size == 0);
        if only_its_marker { Ok(prefix) } else { Err(FsError::NotEmpty) }
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// [`FsError::NotPermitted`] without POSIX metadata; as [`Engine::mkdir`].
    pub async fn symlink(&self, parent: u64, name: &[u8], target: &[u8], uid: u32, gid: u32) -> FsResult<Stat> {
        self.check_may_change(parent)?;
        if self.is_local_place(parent, name, Kind::Symlink) {
            return self.symlink_local(parent, name, target, uid, gid).await;
        }
        if self.options.metadata == Metadata::None {
            return Err(FsError::NotPermitted { what: "symbolic links are not kept with --metadata none".to_owned() });
        }
        if target.len() as u64 > TARGET_LEN_MAX {
            return Err(FsError::NameTooLong { what: "link target".to_owned() });
        }
        let segment = self.new_segment(parent, name).await?;
        let _shared = self.structure.read().await;
        let mut attr = self.new_attr(parent, Kind::Symlink, 0o777, uid, gid);
        attr.size = target.len() as u64;
        let key = self.key_in(&self.tree(), parent, &segment)?;
        let mut attributes = ObjectAttributes::default();
        attr.store_in(&mut attributes);
        self.mark(parent).await?;
        let change = self.begin(parent, name);
        let body = PutBody::from(bytes::Bytes::copy_from_slice(target));
        let outcome = self
            .store
            .put(&key, body, &attributes, &Condition::Always)
            .await
            .map_err(failed(|| format!("cannot make link {key}")))?;
        let mut tree = self.tree();
        let ino = tree.insert(parent, name.into(), segment, attr);
        let until = self.believed_until();
        if let Some(node) = tree.get_mut(ino) {
            node.set_stored(&outcome, target.len() as u64);
            node.attributes = Arc::new(attributes);
            node.target = Some(target.into());
            node.fresh_until = until;
            node.lookups = 1;
        }
        tree.note_stored(ino);
        touch(&mut tree, parent);
        change.done(&mut tree);
        stat_of(&tree, ino)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// [`FsError::Invalid`] if it is none.
    pub async fn readlink(&self, ino: u64) -> FsResult<Arc<[u8]>> {
        if let Some(target) = self.readlink_local(ino)? {
            return Ok(target);
        }
        let (key, version) = {
            let tree = self.tree();
            let node = tree.get(ino).ok_or_else(|| stale(ino))?;
            if node.attr.kind != Kind::Symlink {
                return Err(FsError::Invalid { what: "not a symbolic link".to_owned() });
            }
            if let Some(target) = &node.target {
                return Ok(Arc::clone(target));
            }
            (self.file_key(&tree, ino)?, node.version.clone().ok_or_else(|| stale(ino))?)
        };
        let download = self
            .store
            .get(&key, 0..version.size, version.etag.as_ref())
            .await
            .map_err(failed(|| format!("cannot read link {key}")))?;
        let bytes =
            sandpail_store::collect(download, 4096).await.map_err(failed(|| format!("cannot read link {key}")))?;
        // s3fs ends the target with a newline in old versions.
        let target: Arc<[u8]> = bytes.strip_suffix(b"\n").unwrap_or(&bytes).into();
        if let Some(node) = self.tree().get_mut(ino) {
            node.target = Some(Arc::clone(&target));
        }
        Ok(target)
    }

    /// Finds what stands under a name, to remove or to move it.
    pub(super) async fn resolve_to_change(&self, parent: u64, name: &[u8]) -> FsResult<Stat> {
        match self.resolve(parent, name, false).await {
            Err(FsError::NotFound { .. }) if self.is_status_name(parent, name) => Err(status::refused()),
            other => other,
        }
    }

    /// Checks that a name is free and can be a key.
    pub(super) async fn new_segment(&self, parent: u64, name: &[u8]) -> FsResult<Arc<str>> {
        let segment: Arc<str> = match asked_for(name)? {
            Asked::Segment(segment) => {
                let segment: Arc<str> = Arc::from(&*segment);
                let key = self.key_in(&self.tree(), parent, &segment)?;
                self.store.check_key(&key).map_err(|error| FsError::Invalid { what: error.to_string() })?;
                segment
            }
            Asked::ShadowedFile(_) | Asked::Shortened => {
                let what = format!("{:?} is the escape of another name", String::from_utf8_lossy(name));
                return Err(FsError::Invalid { what });
            }
        };
        match self.resolve(parent, name, false).await {
            Ok(_) => Err(FsError::Exists { what: format!("{:?}", String::from_utf8_lossy(name)) }),
            Err(FsError::NotFound { .. }) if self.is_status_name(parent, name) => {
                Err(FsError::Exists { what: format!("the mount's own {:?}", String::from_utf8_lossy(name)) })
            }
            Err(FsError::NotFound { .. }) => {
                let tree = self.tree();
                let node = tree.get(parent).ok_or_else(|| stale(parent))?;
                if !node.is_linked {
                    return Err(not_found(name));
                }
                Ok(segment)
            }
            Err(error) => Err(error),
        }
    }

    /// The attributes of something new; a set-group-id directory hands its group down.
    pub(super) fn new_attr(&self, parent: u64, kind: Kind, perm: u32, uid: u32, gid: u32) -> Attr {
        let now = Time::now();
        let tree = self.tree();
        let parent = tree.get(parent).map(|node| &node.attr);
        let inherits = parent.filter(|attr| attr.perm & 0o2000 != 0);
        let gid = inherits.map_or(gid, |attr| attr.gid);
        let perm = if inherits.is_some() && kind == Kind::Directory { perm | 0o2000 } else { perm };
        Attr { kind, perm: perm & 0o7777, uid, gid, size: 0, atime: now, mtime: now, ctime: now }
    }

    pub(super) fn begin(&self, parent: u64, name: &[u8]) -> Change<'_> {
        self.begin_as(self.note_begun(), parent, name)
    }

    /// The same for an upload, which may be done on the way to what was asked for.
    pub(super) fn begin_upload(&self, parent: u64, name: &[u8]) -> Change<'_> {
        self.begin_as(self.note_begun_aside(), parent, name)
    }

    fn begin_as(&self, number: u64, parent: u64, name: &[u8]) -> Change<'_> {
        self.tree().begin_mutation(parent, name);
        Change { engine: self, parent, name: name.into(), number, is_open: true }
    }

    /// A file node for a new name, not stored yet.
    pub(super) fn insert_new_file(
        &self,
        parent: u64,
        name: &[u8],
        segment: Arc<str>,
        attr: Attr,
    ) -> (u64, Arc<Content>) {
        let content = Arc::new(Content::default());
        let mut tree = self.tree();
        let ino = tree.insert(parent, name.into(), segment, attr);
        let until = self.believed_until();
        if let Some(node) = tree.get_mut(ino) {
            node.content = Some(Arc::clone(&content));
            node.fresh_until = until;
            node.lookups = 1;
            node.opens = 1;
            node.has_pages = true;
        }
        tree.note_stored(ino);
        // Who asked before does not know of it.
        tree.end_mutation(parent, name);
        touch(&mut tree, parent);
        (ino, content)
    }
}

/// Moves what a directory lists now so that `position` stands behind `name`, as it did when another process listed it.
fn align(items: &mut Vec<DirItem>, position: u64, name: &Name) {
    // Positions begin behind `.` and `..`.
    let wanted = usize::try_from(position).unwrap_or(usize::MAX).saturating_sub(2);
    let found = items.iter().position(|item| item.name == *name).map(|at| at + 1);
    // Gone since: behind it comes what is larger. What is not stored yet stands at the end, in no order.
    let behind = found.or_else(|| items.iter().position(|item| item.name > *name)).unwrap_or(items.len());
    if behind > wanted {
        items.drain(..behind - wanted);
    } else if let Some(first) = items.first().cloned() {
        let missing = std::iter::repeat_n(first, wanted - behind);
        items.splice(..0, missing);
    }
}

/// A change of a name that goes on; ends when dropped, so that an error never leaves it open.
#[derive(Debug)]
pub(super) struct Change<'a> {
    engine: &'a Engine,
    parent: u64,
    name: Name,
    /// What the ledger calls it.
    number: u64,
    is_open: bool,
}

impl Change<'_> {
    pub(super) fn done(mut self, tree: &mut Tree) {
        self.engine.tell(tree, self.parent);
        tree.end_mutation(self.parent, &self.name);
        self.engine.note_ended(self.number);
        self.is_open = false;
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if self.is_open {
            let mut tree = self.engine.tree();
            // It may have happened all the same.
            self.engine.tell(&mut tree, self.parent);
            tree.end_mutation(self.parent, &self.name);
            self.engine.note_ended(self.number);
        }
    }
}

/// An entry came or went: the directory's times move.
impl Engine {
    /// Names of a directory were changed, perhaps by a process that was killed before it could tell.
    pub(super) fn names_changed(&self, directory: u64) {
        touch(&mut self.tree(), directory);
    }
}

pub(super) fn touch(tree: &mut Tree, ino: u64) {
    if let Some(node) = tree.get_mut(ino) {
        let now = Time::now();
        node.attr.mtime = now;
        node.attr.ctime = now;
    }
}

/// Whether a listed object is small enough to be a link, which its metadata says.
fn may_be_link(entry: &Entry) -> bool {
    entry.version.as_ref().is_some_and(|version| version.size > 0 && version.size <= TARGET_LEN_MAX)
}
