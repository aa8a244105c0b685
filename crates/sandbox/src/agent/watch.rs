//! Reporting changes, by inotify.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::CWD;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use super::files::TEMPORARY_PREFIX;
use super::protocol::{Failure, FrameKind, Verb, WireEvent, WirePath, write_frame, write_json};
use super::walk::{Status, if_there, names, open_directory};
use super::{Answer, Stop, answer, send};

/// Room for a few hundred events of ordinary names.
const BUFFER_LEN: usize = 64 * 1024;

/// Reports what happens in `path` until the daemon closes standard input, or `path` itself is deleted.
///
/// A rename is `delete` of the old name and `move` of the new one, so that each event says whether its path is there.
/// If the kernel lost events, or watches ran away, there is a `rescan` of `path`. Mounts below are not watched.
pub(super) fn watch(path: &Path, recursive: bool, stdin: impl Read + AsFd, out: impl Write) -> Result<(), Stop> {
    let failed = |error: io::Error| Failure::file(Verb::Watch, path, &error);
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
    let is_directory = Status::following(path).map_err(failed)?.is_directory();
    let root = Root { path: path.to_owned(), is_directory };
    let mut watcher = Watcher { inotify, recursive, root, paths: HashMap::new(), last: None, out };
    watcher.start().map_err(failed)?;
    send(answer(&mut watcher.out, &Answer::Done))?;
    loop {
        let mut fds = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(&watcher.inotify, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            polled => polled.map_err(|error| failed(error.into()))?,
        };
        if !fds[0].revents().is_empty() {
            return Ok(());
        }
        let raw = watcher.read().map_err(failed)?;
        watcher.last = None;
        for event in raw {
            if !watcher.report(event)? {
                return send(write_frame(&mut watcher.out, FrameKind::End, &[]));
            }
        }
    }
}

struct Raw {
    watch: i32,
    flags: ReadFlags,
    name: Option<OsString>,
}

struct Root {
    path: PathBuf,
    is_directory: bool,
}

struct Watcher<W> {
    inotify: OwnedFd,
    recursive: bool,
    root: Root,
    /// Where each watched directory is.
    paths: HashMap<i32, PathBuf>,
    /// The event that was sent last of those that were read together, to send a burst of the same once.
    last: Option<WireEvent>,
    out: W,
}

impl<W: Write> Watcher<W> {
    /// Watches the root and what is below.
    fn start(&mut self) -> io::Result<()> {
        let root = self.root.path.clone();
        self.add(&root, WatchFlags::empty())?;
        if self.recursive && self.root.is_directory {
            self.add_below(&root, &mut Vec::new())?;
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, flags: WatchFlags) -> io::Result<()> {
        let flags = flags
            | WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::EXCL_UNLINK;
        let watch = inotify::add_watch(&self.inotify, path, flags).map_err(|error| match error {
            Errno::NOSPC => io::Error::other("too many watched directories: raise fs.inotify.max_user_watches"),
            error => error.into(),
        })?;
        self.paths.insert(watch, path.to_owned());
        Ok(())
    }

    /// Watches the directories below `path`, which is watched; `found` gets what is in all of them.
    fn add_below(&mut self, path: &Path, found: &mut Vec<(PathBuf, bool)>) -> io::Result<()> {
        // The watched directory itself may be a link.
        let Some(directory) = if_there(open_directory(CWD, path.join(".")))? else { return Ok(()) };
        for name in names(&directory)? {
            let Some(status) = if_there(Status::of(&directory, &name))? else { continue };
            let below = path.join(&name);
            found.push((below.clone(), status.is_directory()));
            if status.is_directory() && !status.is_mount {
                self.add_directory(&below, found)?;
            }
        }
        Ok(())
    }

    fn add_directory(&mut self, path: &Path, found: &mut Vec<(PathBuf, bool)>) -> io::Result<()> {
        match self.add(path, WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW) {
            Ok(()) => self.add_below(path, found),
            // It is gone again, or something else.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn read(&self) -> io::Result<Vec<Raw>> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER_LEN];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut raw = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => raw.push(Raw {
                    watch: event.wd(),
                    flags: event.events(),
                    name: event.file_name().map(|name| OsString::from_vec(name.to_bytes().to_vec())),
                }),
                Err(Errno::AGAIN) => return Ok(raw),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            // One buffer at a time, so that reports go out while more come in.
            if reader.is_buffer_empty() {
                return Ok(raw);
            }
        }
    }

    /// Sends what an event means; `false` when the root is gone.
    fn report(&mut self, raw: Raw) -> Result<bool, Stop> {
        if raw.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return self.rescan().map(|()| true);
        }
        let Some(directory) = self.paths.get(&raw.watch).cloned() else { return Ok(true) };
        if raw.flags.intersects(ReadFlags::IGNORED | ReadFlags::UNMOUNT | ReadFlags::DELETE_SELF) {
            // That a directory below is gone, its parent reports.
            self.paths.remove(&raw.watch);
            if directory != self.root.path {
                return Ok(true);
            }
            self.send("delete", directory, self.root.is_directory)?;
            return Ok(false);
        }
        if raw.name.as_deref().is_some_and(is_temporary) {
            return Ok(true);
        }
        let is_directory = raw.flags.contains(ReadFlags::ISDIR);
        let path = raw.name.map_or_else(|| directory.clone(), |name| directory.join(name));
        if raw.flags.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
            if is_directory && raw.flags.contains(ReadFlags::MOVED_FROM) {
                self.forget(&path);
            }
            self.send("delete", path, is_directory)?;
        } else if raw.flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            let kind = if raw.flags.contains(ReadFlags::CREATE) { "create" } else { "move" };
            self.send(kind, path.clone(), is_directory)?;
            if is_directory && self.recursive {
                self.enter(&path)?;
            }
        } else if raw.flags.intersects(ReadFlags::MODIFY | ReadFlags::ATTRIB)
            && (!is_directory || path != self.root.path)
        {
            self.send("modify", path, is_directory)?;
        }
        Ok(true)
    }

    /// Watches a new directory. What got into it before it was watched is reported as created.
    fn enter(&mut self, path: &Path) -> Result<(), Stop> {
        let mut found = Vec::new();
        let entered = match if_there(Status::of(CWD, path)) {
            Ok(Some(status)) if status.is_directory() && !status.is_mount => self.add_directory(path, &mut found),
            other => other.map(drop),
        };
        entered.map_err(|error| Failure::file(Verb::Watch, path, &error))?;
        for (path, is_directory) in found {
            if !path.file_name().is_some_and(is_temporary) {
                self.send("create", path, is_directory)?;
            }
        }
        Ok(())
    }

    /// Ends the watches of a directory that went elsewhere.
    fn forget(&mut self, path: &Path) {
        let inotify = &self.inotify;
        self.paths.retain(|watch, watched| {
            let stays = !watched.starts_with(path);
            if !stays {
                // It fails for one that has ended by itself.
                let _: Result<(), Errno> = inotify::remove_watch(inotify, *watch);
            }
            stays
        });
    }

    /// Events were lost: directories may be unwatched, and whoever listens must look again.
    fn rescan(&mut self) -> Result<(), Stop> {
        self.start().map_err(|error| Failure::file(Verb::Watch, &self.root.path, &error))?;
        self.last = None;
        self.send("rescan", self.root.path.clone(), self.root.is_directory)
    }

    fn send(&mut self, kind: &str, path: PathBuf, is_directory: bool) -> Result<(), Stop> {
        let event = WireEvent { kind: kind.to_owned(), path: WirePath(path), is_directory };
        if self.last.as_ref() == Some(&event) && kind == "modify" {
            return Ok(());
        }
        send(write_json(&mut self.out, FrameKind::Json, &event))?;
        self.last = Some(event);
        Ok(())
    }
}

fn is_temporary(name: &OsStr) -> bool {
    name.as_bytes().starts_with(TEMPORARY_PREFIX.as_bytes())
}
