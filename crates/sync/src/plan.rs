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
    let mut plan = planner.plan;
    if !plan.held.is_empty() {
        // What came into an emptied side now would make it look used, and the removals believed.
        if !rules.local_deletions {
            plan.transfers.retain(|_, transfer| !matches!(transfer, Transfer::Download { .. }));
            plan.make_dirs.clear();
        }
        if !rules.remote_deletions {
            plan.transfers.retain(|_, transfer| !matches!(transfer, Transfer::Upload { .. }));
            plan.put_markers.clear();
        }
    }
    plan
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
        // In doubt nothing is removed, and nothing made where a side seems emptied.
        let held = known
            && ((here && there.is_none() && !self.rules.remote_deletions)
                || (!here && there.is_some() && !self.rules.local_deletions));
        if held {
            self.keep(path, here, there.is_some());
            self.plan.held.push(format!("{path}/"));
            return;
        }
        let wanted = self.kept.local.contains(path)
            || filled
            || match (here, there.is_some(), known) {
                (true, true, _) | (true, false, false) | (false, true, false) => true,
                (true, false, true) => false,
                (false, true, true) => self.rules.read_only,
                (false, false, _) => false,
            };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{BaseFile, LocalFile, RemoteFile};

    const BELIEVED: Rules = Rules { read_only: false, local_deletions: true, remote_deletions: true, hurry: false };
    const READ_ONLY: Rules = Rules { read_only: true, ..BELIEVED };
    const DOUBTED: Rules = Rules { local_deletions: false, remote_deletions: false, ..BELIEVED };

    fn stamp(ino: u64) -> Stamp {
        Stamp { ino, size: 1, mtime: 0, ctime: 0, mode: 0o100_644 }
    }

    /// Makes a world of words: `base` paths, and on each side paths with a sign in front: `=` as in the base, `!`
    /// changed or new, `~` still being written, `?` cannot be seen. A slash at the end is a directory (in
    /// the bucket: a marker).
    fn world(base: &str, local: &str, remote: &str) -> (BaseMap, LocalTree, RemoteTree) {
        let mut all = (BaseMap::new(), LocalTree::default(), RemoteTree::default());
        for path in base.split_whitespace() {
            let file = BaseFile {
                local: stamp(1),
                racy: false,
                hash: "h".into(),
                etag: "e1".into(),
                modified: None,
                leaving: false,
            };
            match path.strip_suffix('/') {
                Some(dir) => all.0.insert(dir.to_owned(), Base::Dir),
                None => all.0.insert(path.to_owned(), Base::File(file)),
            };
        }
        for word in local.split_whitespace() {
            let (sign, path) = word.split_at(1);
            all.1.dirs.extend(ancestors(path.trim_end_matches('/')).map(str::to_owned));
            let change = if sign == "=" { Change::Same } else { Change::Changed };
            match path.strip_suffix('/') {
                Some(dir) => drop(all.1.dirs.insert(dir.to_owned())),
                None if sign == "?" => drop(all.1.blocked.insert(path.to_owned(), None)),
                None => {
                    let file = LocalFile { stamp: stamp(2), settled: sign != "~", change };
                    all.1.files.insert(path.to_owned(), file);
                }
            }
        }
        for word in remote.split_whitespace() {
            let (sign, path) = word.split_at(1);
            let etag = Some(ETag::new(if sign == "=" { "e1" } else { "e2" }));
            all.2.add(path, etag, u64::from(!path.ends_with('/')), std::time::UNIX_EPOCH);
            if let Some(file) = all.2.files.get_mut(path).filter(|_| sign == "=") {
                file.change = Change::Same;
            }
        }
        all.2.finish();
        all
    }

    /// The plan in words.
    fn words(plan: &Plan) -> String {
        let mut words = Vec::new();
        let mut all = |verb: &str, paths: Vec<&str>| words.extend(paths.iter().map(|path| format!("{verb} {path}")));
        all("forget", plan.forget.iter().map(String::as_str).collect());
        all("evict", plan.evict.iter().map(String::as_str).collect());
        all("unlink", plan.delete_local.iter().map(|(path, _)| path.as_str()).collect());
        all("rmdir", plan.remove_dirs.iter().map(String::as_str).collect());
        all("mkdir", plan.make_dirs.iter().map(String::as_str).collect());
        for (path, transfer) in &plan.transfers {
            let verb = match transfer {
                Transfer::Upload { over: None } => "put-new",
                Transfer::Upload { over: Some(_) } => "put-over",
                Transfer::Download { over: None } => "get-new",
                Transfer::Download { over: Some(_) } => "get-over",
                Transfer::Meet { .. } => "meet",
            };
            all(verb, vec![path]);
        }
        all("mark", plan.put_markers.iter().map(String::as_str).collect());
        all("delete", plan.delete_remote.iter().map(|(path, _)| path.as_str()).collect());
        all("unmark", plan.delete_markers.iter().map(|(path, _)| path.as_str()).collect());
        all("wait", plan.waiting.iter().map(String::as_str).collect());
        all("hold", plan.held.iter().map(String::as_str).collect());
        words.join(", ")
    }

    #[track_caller]
    fn check(rules: Rules, (base, local, remote): (&str, &str, &str), expected: &str) {
        let (base, local, remote) = world(base, local, remote);
        assert_eq!(words(&plan(&base, &local, &remote, rules)), expected);
    }

    #[test]
    fn files() {
        for (seen, expected) in [
            (("", "!f", ""), "put-new f"),
            (("", "", "!f"), "get-new f"),
            (("", "!f", "!f"), "meet f"),
            (("f", "=f", "=f"), ""),
            (("f", "!f", "=f"), "put-over f"),
            (("f", "=f", "!f"), "get-over f"),
            (("f", "!f", "!f"), "meet f"),
            (("f", "", "=f"), "delete f"),
            (("f", "", "!f"), "get-new f"),
            (("f", "=f", ""), "unlink f"),
            (("f", "!f", ""), "put-new f"),
            (("f", "", ""), "forget f"),
            (("", "~f", ""), "wait f"),
            (("f", "~f", "!f"), "wait f"),
            // What cannot be seen is not removed, changed or replaced; nor what is below.
            (("f", "?f", "=f"), ""),
            (("f", "?f", "!f"), ""),
            (("d/f", "?d", "=d/f !d/g"), ""),
        ] {
            check(BELIEVED, seen, expected);
        }
    }

    #[test]
    fn a_side_in_doubt_removes_nothing() {
        check(DOUBTED, ("f", "", "=f"), "hold f");
        check(DOUBTED, ("f", "=f", ""), "hold f");
        check(DOUBTED, ("d/ d/f", "", "=d/f"), "hold d/f, hold d/");
        check(DOUBTED, ("d/ d/f", "=d/f", ""), "hold d/f, hold d/");
        check(DOUBTED, ("d/", "", "=d/"), "hold d/");
        check(DOUBTED, ("d/", "=d/", ""), "hold d/");
        // Nor does it get anything: it would look used.
        check(DOUBTED, ("f", "", "=f !g"), "hold f");
        check(DOUBTED, ("f", "=f !g", ""), "hold f");
    }

    #[test]
    fn directories() {
        for (seen, expected) in [
            (("", "!d/", ""), "mark d"),
            (("", "!d/e/", ""), "mark d/e"),
            (("", "", "!d/"), "mkdir d"),
            (("", "", "!d/e/"), "mkdir d, mkdir d/e"),
            (("", "!d/f", ""), "put-new d/f"),
            (("", "", "!d/f"), "mkdir d, get-new d/f"),
            (("d/", "=d/", "=d/"), ""),
            (("d/", "", "=d/"), "unmark d"),
            (("d/", "=d/", ""), "rmdir d"),
            (("d/ d/e/", "=d/e/", ""), "rmdir d/e, rmdir d"),
            (("d/", "", ""), "forget d"),
            // The last file goes, the directory stays.
            (("d/ d/f", "=d/", "=d/f"), "mark d, delete d/f"),
            // All goes.
            (("d/ d/f", "", "=d/f =d/"), "delete d/f, unmark d"),
            (("d/ d/f", "=d/f", ""), "unlink d/f, rmdir d"),
            // Something new inside keeps it.
            (("d/ d/f", "=d/f !d/g", ""), "unlink d/f, put-new d/g"),
            (("d/ d/f", "", "=d/f !d/g"), "mkdir d, get-new d/g, delete d/f"),
        ] {
            check(BELIEVED, seen, expected);
        }
    }

    #[test]
    fn a_file_and_a_directory_of_one_name() {
        for (seen, expected) in [
            (("", "!a", "!a/b"), "evict a, mkdir a, get-new a/b"),
            (("a", "=a", "=a !a/b"), "evict a, mkdir a, get-new a/b"),
            (("", "!a/b", "!a"), "put-new a/b"),
            (("a", "!a/b", "=a"), "put-new a/b, delete a"),
            (("a/ a/b", "!a", "=a/b"), "put-new a, delete a/b"),
            (("a/ a/b", "=a/b", "!a"), "unlink a/b, rmdir a, get-new a"),
            (("a/ a/b", "=a/b !a/c", "!a"), "unlink a/b, put-new a/c"),
        ] {
            check(BELIEVED, seen, expected);
        }
    }

    #[test]
    fn read_only_goes_one_way() {
        for (seen, expected) in [
            (("", "!f", ""), ""),
            (("", "!d/", ""), ""),
            (("f", "!f", "=f"), "get-over f"),
            (("f", "!f", "!f"), "get-over f"),
            (("f", "", "=f"), "get-new f"),
            (("f", "=f", ""), "unlink f"),
            (("f", "!f", ""), ""),
            (("d/", "", "=d/"), "mkdir d"),
            (("d/", "=d/", ""), "rmdir d"),
            (("", "!f", "!f"), "meet f"),
        ] {
            check(READ_ONLY, seen, expected);
        }
    }

    #[test]
    fn a_listing_that_differs_only_in_time_is_looked_at() {
        let base = BaseFile {
            local: stamp(1),
            racy: false,
            hash: "h".into(),
            etag: "e".into(),
            modified: Some(5),
            leaving: false,
        };
        let seen = |etag: Option<&str>, size, modified| {
            base.remote_change(&RemoteFile { etag: etag.map(ETag::new), size, modified, change: Change::Changed })
        };
        assert_eq!(seen(Some("e"), 1, 5), Change::Same);
        assert_eq!(seen(Some("e"), 1, 6), Change::Touched);
        assert_eq!(seen(Some("x"), 1, 5), Change::Changed);
        assert_eq!(seen(None, 1, 5), Change::Same);
        assert_eq!(seen(None, 1, 6), Change::Touched);
        assert_eq!(seen(None, 2, 5), Change::Changed);
        let fresh = BaseFile { modified: None, ..base.clone() };
        let file = RemoteFile { etag: Some(ETag::new("e")), size: 1, modified: 9, change: Change::Changed };
        assert_eq!(fresh.remote_change(&file), Change::Same);
        let leaving = BaseFile { leaving: true, ..base.clone() };
        assert_eq!(leaving.local_change(&stamp(1)), Change::Changed);
        let racy = BaseFile { racy: true, ..base.clone() };
        assert_eq!((base.local_change(&stamp(1)), racy.local_change(&stamp(1))), (Change::Same, Change::Touched));
    }
}
