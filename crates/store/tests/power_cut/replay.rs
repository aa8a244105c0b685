//! System calls, done again on the simulated disk.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::rc::Rc;

use super::disk::{Disk, Ino, ROOT};
use super::trace::{self, Call};

/// What a call was for this test.
#[derive(Debug)]
pub(crate) enum Step {
    /// The disk, or what of it is synced, has changed.
    Changed,
    /// The program said something, a line.
    Said(String),
    /// Nothing.
    Other,
}

#[derive(Clone, Copy, Debug)]
enum Thing {
    File(Ino),
    Marks,
}

#[derive(Debug)]
struct Open {
    thing: Thing,
    offset: usize,
}

#[derive(Debug)]
pub(crate) struct Replay<'a> {
    pub(crate) disk: Disk,
    /// The path that is the disk's root.
    base: &'a str,
    /// The file in which the program says what it does.
    marks: &'a str,
    open: HashMap<i64, Rc<RefCell<Open>>>,
    said: Vec<u8>,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(base: &'a str, marks: &'a str) -> Self {
        Self { disk: Disk::new(), base, marks, open: HashMap::new(), said: Vec::new() }
    }

    /// Does the calls of one process again. After each one that counts, `each` is told.
    ///
    /// # Errors
    /// Why the calls cannot have been so in the order in which they were told: of several at the same time, more than one
    /// was told too early or too late.
    pub(crate) fn process(&mut self, calls: &[Call], mut each: impl FnMut(&Disk, &Call, Step)) -> Result<(), String> {
        self.open.clear();
        self.said.clear();
        let mut done = vec![false; calls.len()];
        // A descriptor is free as soon as its close begins: another thread may get the number before it returns.
        let mut closed: HashMap<usize, Vec<i64>> = HashMap::new();
        for call in calls.iter().filter(|call| call.name == "close") {
            closed.entry(call.made_after).or_default().push(trace::number(&call.args[0]));
        }
        // The disk's time when so many calls had returned.
        let mut times = vec![self.disk.time()];
        for at in 0..calls.len() {
            for fd in closed.remove(&at).unwrap_or_default() {
                self.open.remove(&fd);
            }
            while !done[at] {
                let mut tried = self.call(&calls[at], times[calls[at].made_after]);
                let mut which = at;
                if tried.is_err() {
                    // Of two calls at the same time, the later one may be told first.
                    let overlapping = (at + 1..calls.len()).filter(|later| calls[*later].made_after <= at);
                    for later in overlapping.filter(|later| !done[*later]).collect::<Vec<_>>() {
                        let its = self.call(&calls[later], times[calls[later].made_after]);
                        if matches!(its, Ok(Step::Changed)) {
                            (tried, which) = (its, later);
                            break;
                        }
                    }
                }
                match tried {
                    Ok(Step::Other) => {}
                    Ok(step) => each(&self.disk, &calls[which], step),
                    Err(why) => return Err(format!("the trace cannot be followed, {why}: {}", shown(&calls[at]))),
                }
                done[which] = true;
            }
            times.push(self.disk.time());
        }
        Ok(())
    }

    /// Does one call, or says why it cannot have been so. `time` is when it was made.
    fn call(&mut self, call: &Call, time: usize) -> Result<Step, String> {
        if call.result < 0 {
            return Ok(Step::Other);
        }
        let arg = |at: usize| call.args[at].as_str();
        let fd = |at: usize| trace::number(arg(at));
        let len = usize::try_from(call.result).unwrap();
        match call.name.as_str() {
            "open" | "openat" | "creat" => {
                let (directory, at) = if call.name == "openat" { (arg(0), 1) } else { ("AT_FDCWD", 0) };
                return self.opened(directory, &trace::bytes(arg(at)), arg(at + 1), call.result);
            }
            "write" | "writev" => {
                let Some(open) = self.open.get(&fd(0)).cloned() else { return Ok(Step::Other) };
                let mut data = trace::bytes(arg(1));
                data.truncate(len);
                let mut open = open.borrow_mut();
                match open.thing {
                    Thing::Marks => {
                        self.said.extend(data);
                        if self.said.last() != Some(&b'\n') {
                            return Ok(Step::Other);
                        }
                        return Ok(Step::Said(String::from_utf8(std::mem::take(&mut self.said)).unwrap()));
                    }
                    Thing::File(ino) => {
                        self.disk.write(ino, open.offset, data);
                        open.offset += len;
                    }
                }
            }
            "pwrite64" => {
                let Some(ino) = self.file(fd(0)) else { return Ok(Step::Other) };
                let mut data = trace::bytes(arg(1));
                data.truncate(len);
                self.disk.write(ino, usize::try_from(fd(3)).unwrap(), data);
            }
            "copy_file_range" => {
                let Some(target) = self.open.get(&fd(2)).cloned() else { return Ok(Step::Other) };
                let source = self.file(fd(0)).ok_or("it copies from an unknown file")?;
                assert!(arg(1) != "NULL" && arg(3) == "NULL", "offsets not provided for: {}", shown(call));
                let start = usize::try_from(fd(1)).unwrap();
                let data = self.disk.data(source).and_then(|data| data.get(start..start + len));
                let data = data.ok_or("there is less to copy")?.to_vec();
                let mut target = target.borrow_mut();
                let Thing::File(ino) = target.thing else { panic!("copied to the marks") };
                self.disk.write(ino, target.offset, data);
                target.offset += len;
            }
            "ftruncate" => {
                let Some(ino) = self.file(fd(0)) else { return Ok(Step::Other) };
                self.disk.resize(ino, usize::try_from(fd(1)).unwrap());
            }
            "rename" => return self.renamed(("AT_FDCWD", arg(0)), ("AT_FDCWD", arg(1))),
            "renameat" => return self.renamed((arg(0), arg(1)), (arg(2), arg(3))),
            "renameat2" if arg(4) == "0" => return self.renamed((arg(0), arg(1)), (arg(2), arg(3))),
            "unlink" => return self.removed("AT_FDCWD", arg(0), false),
            "rmdir" => return self.removed("AT_FDCWD", arg(0), true),
            "unlinkat" => return self.removed(arg(0), arg(1), arg(2).contains("AT_REMOVEDIR")),
            "mkdir" | "mkdirat" => {
                let (directory, at) = if call.name == "mkdirat" { (arg(0), 1) } else { ("AT_FDCWD", 0) };
                let Some((parent, name)) = self.parent(directory, arg(at))? else { return Ok(Step::Other) };
                if self.entries(parent)?.contains_key(&name) {
                    return Err("it is there already".into());
                }
                let ino = self.disk.directory();
                self.disk.rename(vec![(parent, name, Some(ino))]);
            }
            "fsync" | "fdatasync" => {
                let Some(ino) = self.file(fd(0)) else { return Ok(Step::Other) };
                self.disk.sync(ino, time);
            }
            "syncfs" | "sync" => {
                if call.name == "syncfs" && self.file(fd(0)).is_none() {
                    return Ok(Step::Other);
                }
                self.disk.sync_all(time);
            }
            // Done when it began.
            "close" => return Ok(Step::Other),
            "dup" | "dup2" | "dup3" => return Ok(self.duplicated(fd(0), call.result)),
            "fcntl" if arg(1).starts_with("F_DUPFD") => return Ok(self.duplicated(fd(0), call.result)),
            "fcntl" => return Ok(Step::Other),
            "lseek" => {
                if let Some(open) = self.open.get(&fd(0)) {
                    open.borrow_mut().offset = len;
                }
                return Ok(Step::Other);
            }
            // Promises nothing.
            "sync_file_range" => return Ok(Step::Other),
            "close_range" | "io_uring_setup" => panic!("not provided for: {}", shown(call)),
            _ => {
                let ours = call.args.iter().any(|arg| {
                    arg.contains('"') && String::from_utf8_lossy(&trace::bytes(arg)).contains(self.base)
                        || arg.parse().is_ok_and(|fd| self.file(fd).is_some())
                });
                assert!(!ours, "not provided for: {}", shown(call));
                return Ok(Step::Other);
            }
        }
        Ok(Step::Changed)
    }

    fn opened(&mut self, directory: &str, path: &[u8], flags: &str, fd: i64) -> Result<Step, String> {
        let path_text = String::from_utf8_lossy(path).into_owned();
        self.open.remove(&fd);
        if path_text == self.marks {
            self.open.insert(fd, Rc::new(RefCell::new(Open { thing: Thing::Marks, offset: 0 })));
            return Ok(Step::Other);
        }
        let mut step = Step::Other;
        let ino = match self.parent_of(directory, &path_text)? {
            None => return Ok(Step::Other),
            Some((ino, name)) if name.is_empty() => ino,
            Some((parent, name)) => match self.entries(parent)?.get(&name) {
                Some(_) if flags.contains("O_EXCL") => return Err("it is there already".into()),
                Some(ino) => *ino,
                None if flags.contains("O_CREAT") => {
                    let ino = self.disk.file();
                    self.disk.rename(vec![(parent, name, Some(ino))]);
                    step = Step::Changed;
                    ino
                }
                None => return Err("it is not there".into()),
            },
        };
        assert!(!flags.contains("O_APPEND") && !flags.contains("O_TMPFILE"), "flags not provided for: {flags}");
        if flags.contains("O_TRUNC") && self.disk.data(ino).is_some_and(|data| !data.is_empty()) {
            self.disk.resize(ino, 0);
            step = Step::Changed;
        }
        self.open.insert(fd, Rc::new(RefCell::new(Open { thing: Thing::File(ino), offset: 0 })));
        Ok(step)
    }

    fn renamed(&mut self, from: (&str, &str), to: (&str, &str)) -> Result<Step, String> {
        let (from, to) = (self.parent(from.0, from.1)?, self.parent(to.0, to.1)?);
        let (Some((from, from_name)), Some((to, to_name))) = (&from, &to) else {
            assert!(from.is_none() && to.is_none(), "renamed into or out of the disk");
            return Ok(Step::Other);
        };
        let ino = *self.entries(*from)?.get(from_name).ok_or("it is not there")?;
        self.entries(*to)?;
        self.disk.rename(vec![(*from, from_name.clone(), None), (*to, to_name.clone(), Some(ino))]);
        Ok(Step::Changed)
    }

    fn removed(&mut self, directory: &str, path: &str, is_directory: bool) -> Result<Step, String> {
        let Some((parent, name)) = self.parent(directory, path)? else { return Ok(Step::Other) };
        let ino = *self.entries(parent)?.get(&name).ok_or("it is not there")?;
        match self.disk.entries(ino) {
            Some(entries) if is_directory && entries.is_empty() => {}
            None if !is_directory => {}
            _ => return Err("it is of another kind, or not empty".into()),
        }
        self.disk.rename(vec![(parent, name, None)]);
        Ok(Step::Changed)
    }

    fn duplicated(&mut self, fd: i64, copy: i64) -> Step {
        match self.open.get(&fd).cloned() {
            Some(open) => self.open.insert(copy, open),
            None => self.open.remove(&copy),
        };
        Step::Other
    }

    fn file(&self, fd: i64) -> Option<Ino> {
        match self.open.get(&fd)?.borrow().thing {
            Thing::File(ino) => Some(ino),
            Thing::Marks => None,
        }
    }

    fn entries(&self, ino: Ino) -> Result<&BTreeMap<String, Ino>, String> {
        self.disk.entries(ino).ok_or_else(|| "a file stands where a directory should".into())
    }

    fn parent(&self, directory: &str, path: &str) -> Result<Option<(Ino, String)>, String> {
        self.parent_of(directory, &String::from_utf8(trace::bytes(path)).unwrap())
    }

    /// The directory and the name in it that a path means; no name for the root; `None` for what is elsewhere.
    fn parent_of(&self, directory: &str, path: &str) -> Result<Option<(Ino, String)>, String> {
        let (mut ino, below) = if path.starts_with('/') {
            match Path::new(path).strip_prefix(self.base) {
                Ok(below) => (ROOT, below.to_str().unwrap()),
                Err(_) => return Ok(None),
            }
        } else if directory == "AT_FDCWD" {
            return Ok(None);
        } else {
            match self.file(trace::number(directory)) {
                Some(ino) => (ino, path),
                None => return Ok(None),
            }
        };
        let mut names: Vec<&str> = below.split('/').filter(|name| !name.is_empty()).collect();
        assert!(!names.iter().any(|name| [".", ".."].contains(name)), "{path}");
        let Some(last) = names.pop() else { return Ok(Some((ino, String::new()))) };
        for name in names {
            ino = *self.entries(ino)?.get(name).ok_or("its directory is not there")?;
        }
        Ok(Some((ino, last.to_owned())))
    }
}

/// A call for people, with paths as text and data cut.
pub(crate) fn shown(call: &Call) -> String {
    let arg = |arg: &String| {
        if arg.contains('"') {
            let bytes = trace::bytes(arg);
            format!("{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(200)]))
        } else {
            arg.clone()
        }
    };
    format!("{}({}) = {}", call.name, call.args.iter().map(arg).collect::<Vec<_>>().join(", "), call.result)
}
