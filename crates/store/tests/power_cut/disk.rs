//! A disk that keeps only what was synced, and any part of the rest.
//!
//! What a file system promises, and no more: syncing a file keeps its bytes and its size, not its name. Syncing a
//! directory keeps its names as they were when the sync began. A rename is one change. Changes of one name are kept in
//! their order. All else that was not synced may be kept or not, each change, and each page of a file, by itself.

use std::collections::BTreeMap;
use std::path::Path;

const PAGE_LEN: usize = 4096;

/// A number of a file or directory.
pub(crate) type Ino = usize;

/// The directory that is there before anything happens.
pub(crate) const ROOT: Ino = 0;

type Names = BTreeMap<String, Ino>;

#[derive(Debug)]
enum Node {
    File { synced: Vec<u8>, pending: Vec<(usize, DataChange)>, now: Vec<u8> },
    Directory { synced: Names, now: Names },
}

#[derive(Debug)]
enum DataChange {
    Write { offset: usize, data: Vec<u8> },
    Resize(usize),
}

/// One change of names, whole or not at all: in which directory which name becomes what.
#[derive(Debug)]
struct NameChange {
    time: usize,
    sets: Vec<(Ino, String, Option<Ino>)>,
}

/// What of the changes that were not synced is on the disk after the cut.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kept {
    Everything,
    Nothing,
    /// Files have their names, but neither bytes nor size.
    Names,
    /// Files have names and sizes, but no bytes.
    NamesAndSizes,
    Data,
    /// Each by itself.
    Some {
        seed: u64,
    },
}

#[derive(Debug)]
pub(crate) struct Disk {
    nodes: Vec<Node>,
    names: Vec<NameChange>,
    /// How many changes there were.
    time: usize,
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self { nodes: vec![Node::Directory { synced: Names::new(), now: Names::new() }], names: Vec::new(), time: 0 }
    }

    pub(crate) fn time(&self) -> usize {
        self.time
    }

    pub(crate) fn file(&mut self) -> Ino {
        self.nodes.push(Node::File { synced: Vec::new(), pending: Vec::new(), now: Vec::new() });
        self.nodes.len() - 1
    }

    pub(crate) fn directory(&mut self) -> Ino {
        self.nodes.push(Node::Directory { synced: Names::new(), now: Names::new() });
        self.nodes.len() - 1
    }

    /// The names in a directory now; `None` for a file.
    pub(crate) fn entries(&self, ino: Ino) -> Option<&Names> {
        match &self.nodes[ino] {
            Node::Directory { now, .. } => Some(now),
            Node::File { .. } => None,
        }
    }

    /// The bytes of a file now; `None` for a directory.
    pub(crate) fn data(&self, ino: Ino) -> Option<&[u8]> {
        match &self.nodes[ino] {
            Node::File { now, .. } => Some(now),
            Node::Directory { .. } => None,
        }
    }

    pub(crate) fn rename(&mut self, sets: Vec<(Ino, String, Option<Ino>)>) {
        self.time += 1;
        for (directory, name, target) in &sets {
            let Node::Directory { now, .. } = &mut self.nodes[*directory] else { panic!("a name in a file") };
            set(now, name, *target);
        }
        self.names.push(NameChange { time: self.time, sets });
    }

    pub(crate) fn write(&mut self, ino: Ino, offset: usize, data: Vec<u8>) {
        self.change(ino, DataChange::Write { offset, data });
    }

    pub(crate) fn resize(&mut self, ino: Ino, len: usize) {
        self.change(ino, DataChange::Resize(len));
    }

    fn change(&mut self, ino: Ino, change: DataChange) {
        self.time += 1;
        let Node::File { pending, now, .. } = &mut self.nodes[ino] else { panic!("data in a directory") };
        change.apply(now);
        pending.push((self.time, change));
    }

    /// Syncs a file or directory with all changes up to `time`.
    pub(crate) fn sync(&mut self, ino: Ino, time: usize) {
        match &mut self.nodes[ino] {
            Node::File { synced, pending, .. } => {
                let later = pending.split_off(pending.partition_point(|(at, _)| *at <= time));
                for (_, change) in std::mem::replace(pending, later) {
                    change.apply(synced);
                }
            }
            Node::Directory { .. } => self.sync_names(|change| {
                change.time <= time && change.sets.iter().any(|(directory, ..)| *directory == ino)
            }),
        }
    }

    /// Syncs all there is up to `time`.
    pub(crate) fn sync_all(&mut self, time: usize) {
        (0..self.nodes.len())
            .filter(|ino| matches!(self.nodes[*ino], Node::File { .. }))
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|ino| self.sync(ino, time));
        self.sync_names(|change| change.time <= time);
    }

    fn sync_names(&mut self, is_wanted: impl Fn(&NameChange) -> bool) {
        // What an atomic change needs before it, as it changed one of the same names, is kept with it.
        let mut wanted = vec![false; self.names.len()];
        for at in (0..self.names.len()).rev() {
            wanted[at] = is_wanted(&self.names[at])
                || (at + 1..self.names.len())
                    .any(|later| wanted[later] && self.names[at].shares_name(&self.names[later]));
        }
        let (mut kept, mut pending) = (Vec::new(), Vec::new());
        for (change, wanted) in std::mem::take(&mut self.names).into_iter().zip(wanted) {
            if wanted { kept.push(change) } else { pending.push(change) }
        }
        self.names = pending;
        for (directory, name, target) in kept.into_iter().flat_map(|change| change.sets) {
            let Node::Directory { synced, .. } = &mut self.nodes[directory] else { unreachable!() };
            set(synced, &name, target);
        }
    }

    /// Writes to `target` what is there when the power comes back.
    pub(crate) fn write_image(&self, kept: Kept, target: &Path) {
        let mut random = Random(match kept {
            Kept::Some { seed } => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            _ => 1,
        });
        let mut directories: BTreeMap<Ino, Names> = BTreeMap::new();
        for (ino, node) in self.nodes.iter().enumerate() {
            if let Node::Directory { synced, .. } = node {
                directories.insert(ino, synced.clone());
            }
        }
        let mut left_out: Vec<&NameChange> = Vec::new();
        // Mostly kept or mostly lost, so that also long chains are.
        let share = [1, 4, 7][random.below(3)];
        for change in &self.names {
            let keeps = match kept {
                Kept::Everything | Kept::Names | Kept::NamesAndSizes => true,
                Kept::Nothing | Kept::Data => false,
                Kept::Some { .. } => {
                    random.below(8) < share && !left_out.iter().any(|earlier| earlier.shares_name(change))
                }
            };
            if keeps {
                for (directory, name, target) in &change.sets {
                    set(directories.get_mut(directory).unwrap(), name, *target);
                }
            } else {
                left_out.push(change);
            }
        }
        self.write_directory(ROOT, &directories, kept, &mut random, target);
    }

    fn write_directory(
        &self,
        ino: Ino,
        directories: &BTreeMap<Ino, Names>,
        kept: Kept,
        random: &mut Random,
        target: &Path,
    ) {
        std::fs::create_dir(target).unwrap();
        for (name, ino) in &directories[&ino] {
            let path = target.join(name);
            match &self.nodes[*ino] {
                Node::Directory { .. } => self.write_directory(*ino, directories, kept, random, &path),
                Node::File { synced, pending, now } => {
                    std::fs::write(path, data_after_cut(synced, pending, now, kept, random)).unwrap();
                }
            }
        }
    }
}

fn data_after_cut(
    synced: &[u8],
    pending: &[(usize, DataChange)],
    now: &[u8],
    kept: Kept,
    random: &mut Random,
) -> Vec<u8> {
    let mut sizes = vec![synced.len()];
    let mut grown = synced.to_vec();
    for (_, change) in pending {
        change.apply(&mut grown);
        sizes.push(grown.len());
    }
    let len = match kept {
        Kept::Everything | Kept::Data | Kept::NamesAndSizes => now.len(),
        Kept::Nothing | Kept::Names => synced.len(),
        Kept::Some { .. } => sizes[random.below(sizes.len())],
    };
    let mut data = synced.to_vec();
    data.resize(len, 0);
    let share = [0, 4, 7, 8][random.below(4)];
    for (page, data) in data.chunks_mut(PAGE_LEN).enumerate() {
        let keeps = match kept {
            Kept::Everything | Kept::Data => true,
            Kept::Nothing | Kept::Names | Kept::NamesAndSizes => false,
            Kept::Some { .. } => random.below(8) < share,
        };
        if keeps {
            let now = now.get(page * PAGE_LEN..).unwrap_or_default();
            let len = data.len().min(now.len());
            data[..len].copy_from_slice(&now[..len]);
        }
    }
    data
}

impl NameChange {
    fn shares_name(&self, other: &Self) -> bool {
        self.sets.iter().any(|(directory, name, _)| {
            other.sets.iter().any(|(its_directory, its_name, _)| directory == its_directory && name == its_name)
        })
    }
}

impl DataChange {
    fn apply(&self, data: &mut Vec<u8>) {
        match self {
            Self::Write { offset, data: new } => {
                let end = offset + new.len();
                if data.len() < end {
                    data.resize(end, 0);
                }
                data[*offset..end].copy_from_slice(new);
            }
            Self::Resize(len) => data.resize(*len, 0),
        }
    }
}

fn set(names: &mut Names, name: &str, target: Option<Ino>) {
    match target {
        Some(ino) => names.insert(name.to_owned(), ino),
        None => names.remove(name),
    };
}

/// Xorshift; never 0.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 11).unwrap() % end
    }
}
