//! What is to be done, decided from what was seen. Pure.
//!
//! Per file, with what each side did since both were equal:
//!
//! | directory | bucket | done |
//! |---|---|---|
//! | changed or new | same or absent | goes up |
//! | same or absent | changed or new | comes down: against a deletion the change wins |
//! | changed or new | changed or new | both are compared; if they differ, both are kept ([`Transfer::Meet`]) |
//! | absent | same | removed from the bucket, if the directory is believed |
//! | same | absent | removed from the directory, if the bucket is believed |
//!
//! Directories follow their files; an empty one is a marker in the bucket.

use std::collections::{BTreeMap, BTreeSet};

use sandpail_store::ETag;

use crate::snapshot::{Base, BaseMap, Change, LocalTree, Marker, RemoteTree, Stamp, ancestors};

/// How far what was seen is believed, and which way changes go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// From the bucket to the directory only.
    pub(crate) read_only: bool,
    /// What is not in the directory was removed there.
    pub(crate) local_deletions: bool,
    /// What is not in the bucket was removed there.
    pub(crate) remote_deletions: bool,
    /// Files that were written a moment ago go up too, from a consistent read.
    pub(crate) hurry: bool,
}

/// What is done with the content of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// Goes up, over this version or (`None`) where there is none.
    Upload { over: Option<ETag> },
    /// Comes down, over this version or (`None`) where there is none.
    Download { over: Option<Stamp> },
    /// Both sides have something new.
    Meet { local: Stamp },
}

/// What is to be done, in this order of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Gone on both sides.
    pub(crate) forget: Vec<String>,
    /// Files that stand where a directory must be: they get a second name.
    pub(crate) evict: Vec<String>,
    /// Removed from the directory.
    pub(crate) delete_local: Vec<(String, Stamp)>,
    /// Directories removed from the directory, deepest first.
    pub(crate) remove_dirs: Vec<String>,
    /// Made in the directory, parents first.
    pub(crate) make_dirs: Vec<String>,
    /// Content.
    pub(crate) transfers: BTreeMap<String, Transfer>,
    /// Markers put into the bucket.
    pub(crate) put_markers: Vec<String>,
    /// Removed from the bucket.
    pub(crate) delete_remote: Vec<(String, ETag)>,
    /// Markers removed from the bucket.
    pub(crate) delete_markers: Vec<(String, Marker)>,
    /// Directories that are on both sides.
    pub(crate) equal_dirs: Vec<String>,
    /// Files that are being written.
    pub(crate) waiting: Vec<String>,
    /// Deletions that are not carried over, because the other side is not believed.
    pub(crate) held: Vec<String>,
    /// Objects that have no place in the directory.
    pub(crate) skipped: u64,
}

/// Decides.
pub(crate) fn plan(base: &BaseMap, local: &LocalTree, remote: &RemoteTree, rules: Rules) -> Plan {
    let mut planner = Planner { base, local, remote, rules, plan: Plan::default(), kept: Kept::default() };
    let mut paths: BTreeSet<&str> = local.files.keys().map(String::as_str).collect();
    paths.extend(remote.files.keys().map(String::as_str));
    paths.extend(base.iter().filter(|(_, base)| matches!(base, Base::File(_))).map(|(path, _)| path.as_str()));
    for path in paths {
        planner.file(path);
    }
    planner.directories();
    planner.plan
}

/// Directories that something stays in.
#[derive(Default)]
struct Kept {
    local: BTreeSet<String>,
    remote: BTreeSet<String>,
}

struct Planner<'a> {
    base: &'a BaseMap,
    local: &'a LocalTree,
    remote: &'a RemoteTree,
    rules: Rules,
    plan: Plan,
    kept: Kept,
}

impl Planner<'_> {
    fn is_blocked(&self, path: &str) -> bool {
        !self.local.blocked.is_empty()
            && (self.local.blocked.contains_key(path)
                || ancestors(path).any(|above| self.local.blocked.contains_key(above)))
    }

    /// Says that a file will be there.
    fn keep(&mut self, path: &str, local: bool, remote: bool) {
        for above in ancestors(path) {
            if local {
                self.kept.local.insert(above.to_owned());
            }
            if remote {
                self.kept.remote.insert(above.to_owned());
            }
        }
    }

    fn file(&mut self, path: &str) {
        let here = self.local.files.get(path);
        let there = self.remote.files.get(path);
        if self.is_blocked(path) || self.remote.hidden.contains(path) {
            self.keep(path, here.is_some(), there.is_some());
            return;
        }
        let known = match self.base.get(path) {
            Some(Base::File(file)) => Some(file),
            _ => None,
        };
        let read_only = self.rules.read_only;
        match (here, there) {
            (None, None) => self.plan.forget.push(path.to_owned()),
            (Some(here), Some(there)) => {
                self.keep(path, true, true);
                let (up, down) = match known {
                    Some(_) => (here.change != Change::Same, there.change != Change::Same),
                    None => (true, true),
                };
                let transfer = match (up, down) {
                    (false, false) => return,
                    (false, true) => Transfer::Download { over: Some(here.stamp) },
                    // The bucket's version is put back.
                    (true, _) if read_only && known.is_some() => Transfer::Download { over: Some(here.stamp) },
                    (true, false) => Transfer::Upload { over: known.map(|known| ETag::new(&known.etag)) },
                    (true, true) => Transfer::Meet { local: here.stamp },
                };
                if !here.settled && !self.rules.hurry && up {
                    self.plan.waiting.push(path.to_owned());
                } else {
                    self.plan.transfers.insert(path.to_owned(), transfer);
                }
            }
            (Some(here), None) => match known {
                Some(_) if here.change == Change::Same => {
                    if self.rules.remote_deletions {
                        self.plan.delete_local.push((path.to_owned(), here.stamp));
                    } else {
                        self.keep(path, true, false);
                        self.plan.held.push(path.to_owned());
                    }
                }
                // Only here, and here only it stays.
                _ if read_only => self.keep(path, true, false),
                _ => {
                    self.keep(path, true, true);
                    if here.settled || self.rules.hurry {
                        self.plan.transfers.insert(path.to_owned(), Transfer::Upload { over: None });
                    } else {
                        self.plan.waiting.push(path.to_owned());
                    }
                }
            },
            (None, Some(there)) => match known {
                Some(known) if there.change == Change::Same && !read_only => {
                    if self.rules.local_deletions {
                        self.plan.delete_remote.push((path.to_owned(), ETag::new(&known.etag)));
                    } else {
                        self.keep(path, false, true);
                        self.plan.held.push(path.to_owned());
                    }
                }
                _ => {
                    self.keep(path, true, true);
                    self.plan.transfers.insert(path.to_owned(), Transfer::Download { over: None });
                }
            },
        }
    }

    fn directories(&mut self) {
        let mut dirs: BTreeSet<&str> = self.local.dirs.iter().map(String::as_str).collect();
        dirs.extend(self.remote.dirs.keys().map(String::as_str));
        dirs.extend(self.base.iter().filter(|(_, base)| **base == Base::Dir).map(|(path, _)| path.as_str()));
        // A path sorts before what is below it, so this is deepest first.
        for path in dirs.into_iter().rev() {
            self.directory(path);
        }
        self.plan.make_dirs.reverse();
    }

    fn directory(&mut self, path: &str) {
        let here = self.local.dirs.contains(path);
        let there = self.remote.dirs.get(path);
        let known = self.base.get(path) == Some(&Base::Dir);
        let filled = self.kept.remote.contains(path);
        if self.is_blocked(path) {
            self.keep(path, here, there.is_some());
            return;
        }
        let mut held = false;
        let wanted = self.kept.local.contains(path)
            || filled
            || match (here, there.is_some(), known) {
                (true, true, _) | (true, false, false) | (false, true, false) => true,
                (true, false, true) => {
                    held = !self.rules.remote_deletions;
                    held
                }
                (false, true, true) => {
                    held = !self.rules.local_deletions;
                    held || self.rules.read_only
                }
                (false, false, _) => false,
            };
        if held {
            self.keep(path, here, there.is_some());
            self.plan.held.push(format!("{path}/"));
            return;
        }
        if !wanted {
            if here {
                self.plan.remove_dirs.push(path.to_owned());
            }
            match there {
                Some(Some(marker)) if !self.rules.read_only => {
                    self.plan.delete_markers.push((path.to_owned(), marker.clone()));
                }
                _ => {}
            }
            if !here && there.is_none() {
                self.plan.forget.push(path.to_owned());
            }
            return;
        }
        // In a read-only sync a directory may be here alone; it is not carried up.
        let is_local_only = self.rules.read_only && there.is_none() && !filled;
        self.keep(path, true, !is_local_only);
        if is_local_only {
            return;
        }
        if !here {
            if self.local.files.contains_key(path) {
                self.plan.transfers.remove(path);
                self.plan.waiting.retain(|waiting| waiting != path);
                self.plan.delete_local.retain(|(file, _)| file != path);
                self.plan.evict.push(path.to_owned());
            }
            self.plan.make_dirs.push(path.to_owned());
        } else if let Some(Transfer::Download { .. }) = self.plan.transfers.get(path) {
            // The directory has the name; the object stays where it is.
            self.plan.transfers.remove(path);
            self.plan.skipped += 1;
        }
        if !filled && !matches!(there, Some(Some(_))) && !self.rules.read_only {
            self.plan.put_markers.push(path.to_owned());
        }
        if here {
            self.plan.equal_dirs.push(path.to_owned());
        }
    }
}
