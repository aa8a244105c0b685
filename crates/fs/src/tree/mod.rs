//! What is known of the tree: nodes that the kernel or an open file holds, and listings of directories.
//!
//! Pure state, no I/O: [`crate::engine`] asks it what to do, asks the store, and tells it the answer.
//! An answer that began before a local change of the same name is never believed: each directory
//! remembers which names were changed here, and when ([`Directory::mutations`]).

mod asked;
pub mod names;
mod notes;
mod reads;

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sandpail_store::{ETag, ObjectAttributes, Proof, PutOutcome};
use tokio::time::Instant;

use self::asked::Questions;
pub use self::asked::Since;
pub use self::reads::Reads;
use crate::attr::{Attr, Defaults, Kind};
use crate::content::Content;

/// The root's inode number, as FUSE wants it.
pub const ROOT: u64 = 1;

/// A file name.
pub type Name = Arc<[u8]>;

/// Which version of an object something was learnt from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its tag; absent where a listing leaves it out.
    pub etag: Option<ETag>,
    /// Its length in bytes.
    pub size: u64,
    /// When it was stored.
    pub modified: SystemTime,
}

impl Version {
    /// Whether both are one version with the same attributes. HEAD knows whole seconds only, so finer time is not
    /// compared.
    pub fn is_same(&self, other: &Self) -> bool {
        self.has_same_bytes(other) && seconds(self.modified) == seconds(other.modified)
    }

    /// Whether both are the same bytes. A change of attributes alone gives a new time, and a write that was answered
    /// without one has only our guess of it.
    pub fn has_same_bytes(&self, other: &Self) -> bool {
        match (&self.etag, &other.etag) {
            (Some(a), Some(b)) => a == b && self.size == other.size,
            _ => self.size == other.size && seconds(self.modified) == seconds(other.modified),
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What a directory's listing says of one name.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key's part, where it differs from the name.
    pub segment: Option<Arc<str>>,
    /// The object's version; `None` for a directory.
    pub version: Option<Version>,
    /// What HEAD said of this version, once it was asked. For a directory: of its marker.
    pub attributes: Option<Arc<ObjectAttributes>>,
}

impl Entry {
    /// Whether this is a directory.
    pub fn is_directory(&self) -> bool {
        self.version.is_none()
    }
}

/// What only directories have.
#[derive(Debug, Default)]
pub struct Directory {
    /// Nodes that are alive.
    pub children: HashMap<Name, u64>,
    /// All names, if the directory was listed whole.
    pub entries: BTreeMap<Name, Entry>,
    /// Until when `entries` may be believed. `None`: never listed, or found not to fit one page.
    pub complete_until: Option<Instant>,
    /// Names that were found absent, and until when that may be believed.
    pub absent: HashMap<Name, Instant>,
    /// Names that were changed here: when the change ended, or `u64::MAX` while it goes on. Those that are older than
    /// every question under way are forgotten in time.
    pub mutations: HashMap<Name, u64>,
    /// When the listing was asked for that `entries` began with.
    pub listed_at: u64,
    /// Lookups that had to ask for one name since the last listing.
    pub probes: u32,
    /// The last value of this directory's slot that was seen (what other mounts of this host say).
    pub told: u64,
    /// When another mount of this host changed something here: older knowledge does not count.
    pub doubted: Option<Instant>,
    /// Reading ahead of lookups in listed order: which name comes next, and how many were asked for last.
    pub ahead: Option<(Name, usize)>,
    /// The same for small files that are read.
    pub reads: Reads,
    /// More than one page: asking for single names is cheaper than listing.
    pub is_huge: bool,
    /// Whether the `dir/` object is known to exist.
    pub has_marker: Option<bool>,
    /// How many of its files were asked what they carry, to learn whether the listing says all.
    pub sampled: u32,
}

impl Directory {
    /// Whether something that may be believed `until` then, `ttl` after it was learnt, still counts.
    pub fn believes(&self, until: Instant, ttl: Duration) -> bool {
        until > Instant::now() && self.doubted.is_none_or(|at| until > at + ttl)
    }
}

/// One file, directory or symbolic link.
#[derive(Debug)]
pub struct Node {
    /// Inode number.
    pub ino: u64,
    /// The directory it stands in.
    pub parent: u64,
    /// Its name there.
    pub name: Name,
    /// Its part of the key.
    pub segment: Arc<str>,
    /// Whether it still has a name: not unlinked, and not replaced by another object.
    pub is_linked: bool,
    /// What `stat` shows.
    pub attr: Attr,
    /// The object's version; `None` while there is none (a new file, an implicit directory).
    pub version: Option<Version>,
    /// What the store said of a version besides, when it was stored from here; of `version` if the tags are the same.
    pub proof: Option<Arc<(ETag, Proof)>>,
    /// A copy of the object onto itself may have been done, and made another version; it carries what has this digest.
    pub copying: Option<ETag>,
    /// What the object carries; edits keep it.
    pub attributes: Arc<ObjectAttributes>,
    /// Whether that is known. A listing does not say.
    pub is_described: bool,
    /// Until when all this may be believed without asking.
    pub fresh_until: Instant,
    /// How often the kernel knows it.
    pub lookups: u64,
    /// Open handles.
    pub opens: u32,
    /// Directories only.
    pub dir: Option<Box<Directory>>,
    /// Data, while open or not yet stored.
    pub content: Option<Arc<Content>>,
    /// The target of a symbolic link, once read.
    pub target: Option<Arc<[u8]>>,
    /// It is in the local tree and never in the bucket.
    pub off_bucket: bool,
    /// Whether the kernel may hold pages of it: somebody has opened it.
    pub has_pages: bool,
    /// What the ledger says of it.
    noted: notes::Noted,
}

impl Node {
    /// Whether what is here counts more than what the store says of this name: something is not stored yet.
    pub fn is_ours_to_tell(&self) -> bool {
        self.is_local() || self.version.is_none() && self.opens > 0
    }

    /// Whether nobody knows if its removal was done.
    pub fn is_removal_open(&self) -> bool {
        self.content.as_ref().is_some_and(|content| content.is_removal_open())
    }

    /// Takes what the store answered to a write or a copy of this object.
    pub fn set_stored(&mut self, outcome: &PutOutcome, size: u64) {
        let modified = outcome.last_modified.unwrap_or_else(SystemTime::now);
        self.version = Some(Version { etag: Some(outcome.etag.clone()), size, modified });
        self.copying = None;
        let is_silent = outcome.proof == Proof::default();
        self.proof = (!is_silent).then(|| Arc::new((outcome.etag.clone(), outcome.proof.clone())));
    }

    /// Whether a copy of the object onto itself may have made what is listed. Its own lookup asks.
    fn may_be_copied_to(&self, entry: &Entry) -> bool {
        let size = |version: &Option<Version>| version.as_ref().map(|version| version.size);
        self.copying.is_some() && size(&entry.version) == size(&self.version)
    }

    /// What the object of a file carries, as far as that is known.
    fn carried(&self) -> Option<Arc<ObjectAttributes>> {
        (self.dir.is_none() && self.is_described).then(|| Arc::clone(&self.attributes))
    }

    /// What the store said of the present version besides its tag.
    pub fn proof(&self) -> Option<&Proof> {
        let (etag, proof) = &**self.proof.as_ref()?;
        (self.version.as_ref()?.etag.as_ref()? == etag).then_some(proof)
    }

    /// Whether this host knows better than the bucket: bytes or attributes that are not stored yet.
    pub fn is_local(&self) -> bool {
        self.content.as_ref().is_some_and(|content| content.has_unstored())
    }
}

/// All nodes of a mount.
#[derive(Debug)]
pub struct Tree {
    nodes: HashMap<u64, Node>,
    next_spare: u64,
    clock: u64,
    moves: u64,
    asked: Questions,
    news: notes::News,
    /// What objects without metadata get.
    pub defaults: Defaults,
}

impl Tree {
    /// A tree with its root only.
    pub fn new(defaults: Defaults) -> Self {
        let now = SystemTime::now();
        let root = Node {
            ino: ROOT,
            parent: ROOT,
            name: Arc::from(&b""[..]),
            segment: Arc::from(""),
            is_linked: true,
            attr: Attr::plain(Kind::Directory, 0, now, &defaults),
            version: None,
            proof: None,
            copying: None,
            attributes: Arc::default(),
            is_described: true,
            fresh_until: Instant::now(),
            lookups: 1,
            opens: 0,
            dir: Some(Box::default()),
            content: None,
            target: None,
            off_bucket: false,
            has_pages: false,
            noted: notes::Noted::default(),
        };
        Self {
            nodes: HashMap::from([(ROOT, root)]),
            next_spare: 1 << 62,
            clock: 1,
            moves: 0,
            asked: Questions::default(),
            news: notes::News::default(),
            defaults,
        }
    }

    /// A node that must be there.
    pub fn get(&self, ino: u64) -> Option<&Node> {
        self.nodes.get(&ino)
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, ino: u64) -> Option<&mut Node> {
        self.news.add(ino);
        self.nodes.get_mut(&ino)
    }

    /// What the ledger says of a node may have changed.
    pub fn is_news(&mut self, ino: u64) {
        self.news.add(ino);
    }

    /// A directory's own part.
    pub fn dir_mut(&mut self, ino: u64) -> Option<&mut Directory> {
        self.nodes.get_mut(&ino)?.dir.as_deref_mut()
    }

    /// A directory's own part.
    pub fn dir(&self, ino: u64) -> Option<&Directory> {
        self.nodes.get(&ino)?.dir.as_deref()
    }

    /// The key's part of a listed name.
    pub fn key_part(&self, parent: u64, name: &[u8]) -> Arc<str> {
        let listed = self.dir(parent).and_then(|dir| dir.entries.get(name)?.segment.clone());
        listed.unwrap_or_else(|| Arc::from(String::from_utf8_lossy(name)))
    }

    /// The node of a name, if it is alive.
    pub fn child(&self, parent: u64, name: &[u8]) -> Option<&Node> {
        let ino = *self.dir(parent)?.children.get(name)?;
        self.nodes.get(&ino)
    }

    /// A moment: later calls give larger numbers.
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// How often something got another name: as long as it stays the same, so do all keys.
    pub fn moves(&self) -> u64 {
        self.moves
    }

    /// Begins a question to the store.
    pub fn ask(&mut self) -> Since {
        let at = self.tick();
        self.asked.begin(at)
    }

    /// Every question under way was asked at this moment or later.
    fn oldest_question(&self) -> u64 {
        self.asked.oldest().unwrap_or(self.clock)
    }

    /// The key prefix of a directory below the mount's prefix: empty, or ending in `/`.
    pub fn prefix_of(&self, ino: u64) -> String {
        let mut segments = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let Some(node) = self.nodes.get(&at) else { break };
            segments.push(Arc::clone(&node.segment));
            at = node.parent;
        }
        let mut prefix = String::new();
        for segment in segments.iter().rev() {
            prefix.push_str(segment);
            prefix.push('/');
        }
        prefix
    }

    /// A path for people.
    pub fn path_of(&self, ino: u64) -> String {
        let mut names = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let Some(node) = self.nodes.get(&at) else { break };
            names.push(String::from_utf8_lossy(&node.name).into_owned());
            at = node.parent;
        }
        names.reverse();
        format!("/{}", names.join("/"))
    }

    /// The names that lead to a node, with `/` between them; empty for the root.
    pub fn names_of(&self, ino: u64) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let Some(node) = self.nodes.get(&at) else { break };
            names.push(Arc::clone(&node.name));
            at = node.parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// Adds a node under a name, replacing what the name stood for.
    pub fn insert(&mut self, parent: u64, name: Name, segment: Arc<str>, attr: Attr) -> u64 {
        let ino = self.free_ino(parent, &name);
        self.detach_replaced(parent, &name);
        let dir = (attr.kind == Kind::Directory).then(Box::default);
        let node = Node {
            ino,
            parent,
            name: Arc::clone(&name),
            segment,
            is_linked: true,
            attr,
            version: None,
            proof: None,
            copying: None,
            attributes: Arc::default(),
            is_described: true,
            fresh_until: Instant::now(),
            lookups: 0,
            opens: 0,
            dir,
            content: None,
            target: None,
            off_bucket: false,
            has_pages: false,
            noted: notes::Noted::default(),
        };
        self.nodes.insert(ino, node);
        self.news.add(ino);
        if let Some(dir) = self.dir_mut(parent) {
            dir.children.insert(name, ino);
        }
        ino
    }

    /// Takes a name's node out of the tree; it lives on while it is open or the kernel knows it.
    pub fn detach(&mut self, parent: u64, name: &[u8]) -> Option<u64> {
        self.detach_as(parent, name, Content::mark_unlinked)
    }

    /// The same because the bucket has something else under the name. Who writes to the file takes the name back.
    pub fn detach_replaced(&mut self, parent: u64, name: &[u8]) -> Option<u64> {
        self.detach_as(parent, name, Content::mark_replaced)
    }

    fn detach_as(&mut self, parent: u64, name: &[u8], mark: impl FnOnce(&Content)) -> Option<u64> {
        let ino = self.dir_mut(parent)?.children.remove(name)?;
        if let Some(node) = self.get_mut(ino) {
            node.is_linked = false;
            if let Some(content) = &node.content {
                mark(content);
            }
        }
        self.drop_unused(ino);
        Some(ino)
    }

    /// A file was written to. If somebody else had replaced its object meanwhile, it has its name again: what is done about
    /// the other object is settled when it is stored, by the mount's policy. Otherwise what is written would go nowhere.
    pub fn reclaim(&mut self, ino: u64) {
        let Some(node) = self.nodes.get(&ino) else { return };
        let Some(content) = node.content.clone().filter(|content| !node.is_linked && content.is_replaced()) else {
            return;
        };
        let (parent, name) = (node.parent, Arc::clone(&node.name));
        let is_directory = self.child(parent, &name).is_some_and(|node| node.dir.is_some());
        if is_directory || !self.get(parent).is_some_and(|parent| parent.is_linked && parent.dir.is_some()) {
            return;
        }
        content.mark_reclaimed();
        self.detach_replaced(parent, &name);
        if let Some(dir) = self.dir_mut(parent) {
            dir.children.insert(Arc::clone(&name), ino);
        }
        if let Some(node) = self.get_mut(ino) {
            node.is_linked = true;
        }
        self.note_stored(ino);
        self.end_mutation(parent, &name);
    }

    /// Moves a node to another name. What stood there must have been detached.
    pub fn relink(&mut self, ino: u64, parent: u64, name: Name, segment: Arc<str>) {
        let Some((old_parent, old_name)) = self.nodes.get(&ino).map(|node| (node.parent, Arc::clone(&node.name)))
        else {
            return;
        };
        if let Some(dir) = self.dir_mut(old_parent) {
            dir.children.remove(&old_name);
        }
        if let Some(dir) = self.dir_mut(parent) {
            dir.children.insert(Arc::clone(&name), ino);
        }
        self.moves += 1;
        if let Some(node) = self.get_mut(ino) {
            node.parent = parent;
            node.name = name;
            node.segment = segment;
        }
        self.drop_unused(old_parent);
    }

    /// The kernel forgets a node `count` times.
    pub fn forget(&mut self, ino: u64, count: u64) {
        if let Some(node) = self.get_mut(ino) {
            node.lookups = node.lookups.saturating_sub(count);
        }
        self.drop_unused(ino);
    }

    /// Drops a node that nothing holds, and then its parents likewise.
    pub fn drop_unused(&mut self, ino: u64) {
        let mut at = ino;
        while at != ROOT {
            let Some(node) = self.nodes.get(&at) else { return };
            let has_children = node.dir.as_ref().is_some_and(|dir| !dir.children.is_empty());
            if node.lookups > 0 || node.opens > 0 || has_children || (node.is_linked && node.is_local()) {
                return;
            }
            let (parent, name, is_linked) = (node.parent, Arc::clone(&node.name), node.is_linked);
            if node.noted.is_written() {
                self.news.add(at);
            }
            self.nodes.remove(&at);
            if is_linked
                && let Some(dir) = self.dir_mut(parent)
                && dir.children.get(&name) == Some(&at)
            {
                dir.children.remove(&name);
            }
            at = parent;
        }
    }

    /// All nodes below a directory, itself not included.
    pub fn descendants(&self, ino: u64) -> Vec<u64> {
        let mut found = Vec::new();
        let mut open = vec![ino];
        while let Some(at) = open.pop() {
            if let Some(dir) = self.dir(at) {
                for child in dir.children.values() {
                    found.push(*child);
                    open.push(*child);
                }
            }
        }
        found
    }

    /// Whether `ino` is `ancestor` or stands below it.
    pub fn is_within(&self, ino: u64, ancestor: u64) -> bool {
        let mut at = ino;
        loop {
            if at == ancestor {
                return true;
            }
            if at == ROOT {
                return false;
            }
            let Some(node) = self.nodes.get(&at) else { return false };
            at = node.parent;
        }
    }

    /// All nodes whose data or attributes are not stored.
    pub fn unstored(&self) -> Vec<u64> {
        let unstored = self.nodes.values().filter(|node| node.is_linked && node.is_local());
        let mut unstored: Vec<u64> = unstored.map(|node| node.ino).collect();
        // One order, whatever the hashes are: a test that fails must do so again.
        unstored.sort_unstable();
        unstored
    }

    /// The inode number that a listing shows for a name: that of its node, or the one it would get.
    pub fn ino_hint(&self, parent: u64, name: &[u8]) -> u64 {
        match self.child(parent, name) {
            Some(node) => node.ino,
            None => hashed_ino(parent, name),
        }
    }

    /// Equal for one path as long as the mount lives, and never that of another living node.
    fn free_ino(&mut self, parent: u64, name: &[u8]) -> u64 {
        let ino = hashed_ino(parent, name);
        if !self.nodes.contains_key(&ino) {
            return ino;
        }
        loop {
            self.next_spare += 1;
            if !self.nodes.contains_key(&self.next_spare) {
                return self.next_spare;
            }
        }
    }

    /// Says that a name is being changed here; answers about it that are under way are void.
    pub fn begin_mutation(&mut self, parent: u64, name: &[u8]) {
        let oldest = self.oldest_question();
        if let Some(dir) = self.dir_mut(parent) {
            if dir.mutations.insert(name.into(), u64::MAX).is_none() && is_time_to_clean(dir.mutations.len()) {
                dir.mutations.retain(|_, at| *at > oldest);
            }
            dir.absent.remove(name);
        }
    }

    /// Says that the change has ended, well or not.
    pub fn end_mutation(&mut self, parent: u64, name: &[u8]) {
        let now = self.tick();
        if let Some(dir) = self.dir_mut(parent) {
            dir.mutations.insert(name.into(), now);
        }
    }

    /// Whether an answer that was asked for at `since` is too old for this name, or the store cannot know better.
    pub fn is_outdated(&self, parent: u64, name: &[u8], since: &Since) -> bool {
        self.dir(parent).is_none_or(|dir| dir.mutations.get(name).is_some_and(|at| *at > since.at()))
            || self.child(parent, name).is_some_and(Node::is_ours_to_tell)
    }

    /// Whether this host is about to change what has this name.
    pub fn is_changing(&self, parent: u64, name: &[u8]) -> bool {
        self.dir(parent).is_some_and(|dir| dir.mutations.get(name) == Some(&u64::MAX))
    }

    /// Writes into the listing what this host has just stored under a name.
    pub fn note_stored(&mut self, ino: u64) {
        let Some(node) = self.nodes.get(&ino) else { return };
        if !node.is_linked || ino == ROOT {
            return;
        }
        let entry = entry_of(node);
        let (parent, name) = (node.parent, Arc::clone(&node.name));
        if let Some(dir) = self.dir_mut(parent) {
            dir.absent.remove(&name);
            if dir.complete_until.is_some() {
                dir.entries.insert(name, entry);
            }
        }
    }

    /// Writes into the listing that this host has just removed a name.
    pub fn note_removed(&mut self, parent: u64, name: &Name, believed_until: Instant) {
        if let Some(dir) = self.dir_mut(parent) {
            dir.entries.remove(name);
            if dir.absent.insert(Arc::clone(name), believed_until).is_none() && is_time_to_clean(dir.absent.len()) {
                let now = Instant::now();
                dir.absent.retain(|_, until| *until > now);
            }
        }
    }

    /// Says that a change of a node's attributes has failed, and may have been done all the same: what is known of them
    /// is asked for again. A listing could not tell: the bytes are the same, and the time may be.
    pub fn doubt(&mut self, ino: u64) {
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        node.fresh_until = Instant::now();
        if let Some(version) = &mut node.version {
            version.modified = UNIX_EPOCH;
        }
        let (parent, name) = (node.parent, Arc::clone(&node.name));
        if let Some(entry) = self.dir_mut(parent).and_then(|dir| dir.entries.get_mut(&name)) {
            entry.attributes = None;
        }
    }

    /// Takes a whole listing that was asked for at `since`. Names changed here since then stay as they are. One that was
    /// overtaken by a later one is not taken.
    pub fn install_listing(
        &mut self,
        ino: u64,
        since: &Since,
        mut listed: BTreeMap<Name, Entry>,
        has_marker: bool,
        believed_until: Instant,
    ) {
        let oldest = self.oldest_question();
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        let Some(mut dir) = node.dir.take_if(|dir| dir.listed_at <= since.at()) else { return };
        dir.listed_at = since.at();
        dir.mutations.retain(|_, at| *at > oldest);
        for (name, entry) in &mut listed {
            let old = dir.entries.get(name);
            if let Some(old) = old
                && same_entry(old, entry)
            {
                entry.attributes.clone_from(&old.attributes);
            }
        }
        for (name, _) in dir.mutations.iter().filter(|(_, at)| **at > since.at()) {
            match dir.children.get(name).and_then(|child| self.nodes.get(child)) {
                Some(node) if !node.off_bucket => listed.insert(Arc::clone(name), entry_of(node)),
                _ => listed.remove(name),
            };
        }
        let mut gone = Vec::new();
        for (name, child) in &dir.children {
            let Some(node) = self.nodes.get_mut(child) else { continue };
            if node.off_bucket {
                continue;
            }
            if node.is_ours_to_tell() {
                listed.insert(Arc::clone(name), entry_of(node));
                continue;
            }
            match listed.get_mut(name) {
                None => gone.push(Arc::clone(name)),
                Some(entry) if entry.is_directory() == node.dir.is_some() => {
                    let (same, same_bytes) = match (&entry.version, &node.version) {
                        (Some(a), Some(b)) => (a.is_same(b), a.has_same_bytes(b)),
                        (None, _) => (true, true),
                        (Some(_), None) => (false, false),
                    };
                    if same {
                        // A directory's marker may have changed unseen: its own lookup asks again. So does that of a file which
                        // only a listing has described.
                        if !entry.is_directory() && node.is_described {
                            node.fresh_until = believed_until;
                            entry.attributes = node.carried();
                        }
                    } else if node.opens > 0 && !same_bytes && !node.may_be_copied_to(entry) {
                        gone.push(Arc::clone(name));
                    }
                }
                Some(_) => gone.push(Arc::clone(name)),
            }
        }
        dir.entries = listed;
        dir.complete_until = Some(believed_until);
        dir.absent.clear();
        dir.probes = 0;
        dir.is_huge = dir.entries.len() > 1000;
        dir.has_marker = Some(has_marker);
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.dir = Some(dir);
        }
        for name in gone {
            self.detach_replaced(ino, &name);
        }
    }
}

/// Whether a table that has just grown to `len` is looked through for what is too old: seldom, and less the larger it is.
fn is_time_to_clean(len: usize) -> bool {
    len >= 64 && len.is_power_of_two()
}

fn same_entry(a: &Entry, b: &Entry) -> bool {
    match (&a.version, &b.version) {
        (Some(a), Some(b)) => a.is_same(b),
        _ => false,
    }
}

fn entry_of(node: &Node) -> Entry {
    let segment = (node.segment.as_bytes() != &*node.name).then(|| Arc::clone(&node.segment));
    let version = (node.dir.is_none()).then(|| {
        node.version.clone().unwrap_or(Version { etag: None, size: node.attr.size, modified: node.attr.mtime.into() })
    });
    Entry { segment, version, attributes: node.carried() }
}

/// SipHash with fixed keys over parent and name; never 0, the root's number or a spare one.
fn hashed_ino(parent: u64, name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(parent);
    hasher.write(name);
    (hasher.finish() & ((1 << 62) - 1)).max(ROOT + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(etag: &str) -> Version {
        Version { etag: Some(ETag::new(etag)), size: 3, modified: UNIX_EPOCH }
    }

    fn listing(etag: &str) -> BTreeMap<Name, Entry> {
        let entry = Entry { segment: None, version: Some(version(etag)), attributes: None };
        BTreeMap::from([(Name::from(&b"db"[..]), entry)])
    }

    /// A tree with one open file, stored as version `1`.
    fn tree() -> (Tree, u64) {
        let mut tree = Tree::new(Defaults { uid: 0, gid: 0, file_perm: 0o644, dir_perm: 0o755 });
        let attr = Attr::plain(Kind::File, 3, UNIX_EPOCH, &tree.defaults);
        let ino = tree.insert(ROOT, Name::from(&b"db"[..]), Arc::from("db"), attr);
        let node = tree.get_mut(ino).unwrap();
        (node.version, node.opens) = (Some(version("1")), 1);
        (tree, ino)
    }

    fn store(tree: &mut Tree, ino: u64, etag: &str) {
        tree.begin_mutation(ROOT, b"db");
        tree.get_mut(ino).unwrap().version = Some(version(etag));
        tree.end_mutation(ROOT, b"db");
    }

    #[test]
    fn a_listing_that_was_overtaken_does_not_take_an_open_file_for_replaced() {
        let (mut tree, ino) = tree();
        let until = Instant::now();
        let slow = tree.ask();
        store(&mut tree, ino, "2");
        let fast = tree.ask();
        tree.install_listing(ROOT, &fast, listing("2"), true, until);
        drop(fast);
        assert!(tree.is_outdated(ROOT, b"db", &slow), "what was stored since is forgotten");
        tree.install_listing(ROOT, &slow, listing("1"), true, until);
        assert!(tree.get(ino).is_some_and(|node| node.is_linked), "the file has lost its name");
        assert_eq!(tree.dir(ROOT).unwrap().entries[&b"db"[..]].version, Some(version("2")));
    }

    #[test]
    fn a_file_that_somebody_else_replaced_is_another_one() {
        let (mut tree, ino) = tree();
        let since = tree.ask();
        tree.install_listing(ROOT, &since, listing("other"), true, Instant::now());
        assert!(tree.get(ino).is_some_and(|node| !node.is_linked));
    }

    #[test]
    fn who_writes_to_a_file_that_somebody_else_replaced_takes_its_name_back() {
        let (mut tree, ino) = tree();
        let content = Arc::new(Content::default());
        tree.get_mut(ino).unwrap().content = Some(Arc::clone(&content));
        let since = tree.ask();
        tree.install_listing(ROOT, &since, listing("other"), true, Instant::now());
        let attr = Attr::plain(Kind::File, 3, UNIX_EPOCH, &tree.defaults);
        let other = tree.insert(ROOT, Name::from(&b"db"[..]), Arc::from("db"), attr);
        tree.get_mut(other).unwrap().opens = 1;
        tree.reclaim(ino);
        assert_eq!(tree.child(ROOT, b"db").map(|node| node.ino), Some(ino));
        assert!(tree.get(other).is_some_and(|node| !node.is_linked));
        assert!(tree.is_outdated(ROOT, b"db", &since), "what was asked before would take it away again");
        // What was removed here is not.
        tree.detach(ROOT, b"db");
        tree.reclaim(ino);
        assert!(tree.child(ROOT, b"db").is_none());
    }

    #[test]
    fn changes_are_forgotten_when_no_question_is_older() {
        let (mut tree, ino) = tree();
        store(&mut tree, ino, "2");
        let since = tree.ask();
        tree.install_listing(ROOT, &since, listing("2"), true, Instant::now());
        assert!(tree.dir(ROOT).unwrap().mutations.is_empty());
        drop(since);
        // Also where nobody lists.
        for number in 0..1000 {
            let name = format!("{number}");
            tree.begin_mutation(ROOT, name.as_bytes());
            tree.end_mutation(ROOT, name.as_bytes());
            tree.note_removed(ROOT, &Name::from(name.as_bytes()), Instant::now());
            drop(tree.ask());
        }
        let dir = tree.dir(ROOT).unwrap();
        assert!(dir.mutations.len() <= 64 && dir.absent.len() <= 64, "{} {}", dir.mutations.len(), dir.absent.len());
    }
}
