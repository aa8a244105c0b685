//! What of the tree the ledger must say, and whether it does.

use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use sandpail_store::ObjectAttributes;
use tokio::time::Instant;

use super::{Node, ROOT, Tree};
use crate::attr::Kind;
use crate::ledger::{Entry, NodeNote};

/// What the ledger says of a node.
#[derive(Debug, Default)]
pub(super) struct Noted {
    /// A hash of its entry; 0: it has none.
    entry: u64,
    attributes: Option<Arc<ObjectAttributes>>,
}

impl Noted {
    pub(super) fn is_written(&self) -> bool {
        self.entry != 0
    }
}

/// Nodes that may have changed since the ledger was written.
#[derive(Debug, Default)]
pub(super) struct News {
    /// `None`: there is no ledger.
    nodes: Option<Vec<u64>>,
}

impl News {
    pub(super) fn add(&mut self, ino: u64) {
        if let Some(nodes) = &mut self.nodes
            && nodes.last() != Some(&ino)
        {
            nodes.push(ino);
        }
    }
}

/// Whether somebody outside relies on a node.
fn is_relied_on(node: &Node) -> bool {
    node.lookups > 0 || node.opens > 0
}

fn note_of(node: &Node) -> NodeNote {
    let segment = (node.segment.as_bytes() != &*node.name).then(|| Arc::clone(&node.segment));
    let mut attr = node.attr.clone();
    if node.off_bucket {
        // The local disk knows these, and they change with every write.
        (attr.size, attr.atime, attr.mtime, attr.ctime) = Default::default();
    }
    if let Some(content) = &node.content
        && content.dirty().is_some_and(|dirty| dirty.is_dirty())
    {
        // The staged file and its record know these better, and they change with every write.
        (attr.size, attr.ctime) = Default::default();
        attr.mtime = if content.times_were_set() { attr.mtime } else { Default::default() };
    }
    NodeNote {
        ino: node.ino,
        parent: node.parent,
        name: Arc::clone(&node.name),
        segment,
        attr,
        version: node.version.clone(),
        lookups: node.lookups,
        is_linked: node.is_linked,
        off_bucket: node.off_bucket,
        copying: node.copying.clone(),
        is_pending: node.content.as_ref().is_some_and(|content| content.has_unstored_attributes()),
    }
}

impl Tree {
    /// From now on changes are collected for a ledger.
    pub(crate) fn keep_notes(&mut self) {
        self.news.nodes.get_or_insert_default();
    }

    /// Whether something may have changed that the ledger must say.
    pub(crate) fn has_news(&self) -> bool {
        self.news.nodes.as_ref().is_some_and(|nodes| !nodes.is_empty())
    }

    /// Appends what has changed since the last time.
    pub(crate) fn write_news(&mut self, log: &mut Vec<u8>) {
        let Some(nodes) = &mut self.news.nodes else { return };
        let mut nodes = std::mem::take(nodes);
        nodes.sort_unstable();
        nodes.dedup();
        for ino in nodes {
            match self.nodes.get(&ino) {
                None => Entry::Gone(ino).encode(log),
                Some(node) if is_relied_on(node) || node.noted.is_written() => self.write_with_parents(ino, log),
                Some(_) => {}
            }
        }
    }

    /// Appends everything.
    pub(crate) fn write_all_notes(&mut self, log: &mut Vec<u8>) {
        if let Some(nodes) = &mut self.news.nodes {
            nodes.clear();
        }
        for node in self.nodes.values_mut() {
            node.noted = Noted::default();
        }
        let relied: Vec<u64> = self.nodes.values().filter(|node| is_relied_on(node)).map(|node| node.ino).collect();
        for ino in relied {
            self.write_with_parents(ino, log);
        }
    }

    fn write_with_parents(&mut self, ino: u64, log: &mut Vec<u8>) {
        let mut at = ino;
        while at != ROOT {
            let Some(node) = self.nodes.get_mut(&at) else { return };
            // What stands above one that was written was written, too, and is after its own changes.
            if at != ino && node.noted.is_written() {
                return;
            }
            write(node, log);
            at = node.parent;
        }
    }

    /// Puts a node back that a process which died had. Names are linked by [`Tree::relink_restored`], once all are there.
    pub(crate) fn restore(&mut self, note: NodeNote, attributes: Option<ObjectAttributes>) {
        let NodeNote { ino, parent, name, segment, attr, version, copying, lookups, is_linked, off_bucket, .. } = note;
        let mut version = version;
        if attributes.is_none()
            && let Some(version) = &mut version
        {
            // The bytes are known; that the node is what a listing shows must not be believed without them.
            version.modified = UNIX_EPOCH;
        }
        let segment = segment.unwrap_or_else(|| Arc::from(String::from_utf8_lossy(&name)));
        let dir = (attr.kind == Kind::Directory).then(Box::default);
        let is_described = attributes.is_some() || dir.is_some() || version.is_none();
        let node = Node {
            ino,
            parent,
            name,
            segment,
            is_linked,
            attr,
            version,
            proof: None,
            copying,
            attributes: attributes.map(Arc::new).unwrap_or_default(),
            is_described,
            fresh_until: Instant::now(),
            lookups,
            opens: 0,
            dir,
            content: None,
            target: None,
            off_bucket,
            has_pages: true,
            noted: Noted::default(),
        };
        self.next_spare = if ino > 1 << 62 { self.next_spare.max(ino) } else { self.next_spare };
        self.nodes.insert(ino, node);
    }

    /// Hangs restored nodes under their directories. One whose directory is not there is without a name.
    pub(crate) fn relink_restored(&mut self) {
        let linked = self.nodes.values().filter(|node| node.is_linked && node.ino != ROOT);
        let linked: Vec<_> = linked.map(|node| (node.ino, node.parent, Arc::clone(&node.name))).collect();
        for (ino, parent, name) in linked {
            match self.dir_mut(parent) {
                Some(dir) => drop(dir.children.insert(name, ino)),
                None => {
                    if let Some(node) = self.nodes.get_mut(&ino) {
                        node.is_linked = false;
                    }
                }
            }
        }
    }

    /// All nodes but the root.
    pub(crate) fn all(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self.nodes.keys().copied().filter(|ino| *ino != ROOT).collect();
        all.sort_unstable();
        all
    }
}

fn write(node: &mut Node, log: &mut Vec<u8>) {
    if node.noted.attributes.is_some() && !node.is_described {
        // They were those of another version.
        Entry::Gone(node.ino).encode(log);
        node.noted = Noted::default();
    }
    let before = log.len();
    Entry::Node(note_of(node)).encode(log);
    let mut hasher = DefaultHasher::new();
    hasher.write(&log[before..]);
    let sum = hasher.finish().max(1);
    if sum == node.noted.entry {
        log.truncate(before);
    }
    node.noted.entry = sum;
    // Whoever looks a closed file up asks the bucket for these; but what was said once must stay right.
    let wants_attributes = node.opens > 0 || node.is_local() || node.noted.attributes.is_some();
    let wants_attributes = wants_attributes && node.is_described;
    if wants_attributes && !node.noted.attributes.as_ref().is_some_and(|noted| Arc::ptr_eq(noted, &node.attributes)) {
        Entry::Attributes(node.ino, (*node.attributes).clone()).encode(log);
        node.noted.attributes = Some(Arc::clone(&node.attributes));
    }
}
