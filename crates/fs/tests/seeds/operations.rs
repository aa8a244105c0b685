//! What the program does.

use super::*;

impl Application {
    pub(super) fn create(&mut self, path: String) {
        let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
        let (parent, name) = split(&path);
        let ours = async |engine: &Arc<Engine>, asked: Asked| {
            let parent = node(engine, parent).await?;
            asked.create(engine, parent, name.as_bytes(), 0o640, 0, 0, mode).await
        };
        let theirs = |model: &mut Model| model.create(&path, 0o640).map(drop);
        if let Came::Same(opened) = self.change(format!("create {path}"), ours, theirs) {
            self.soften(&path, None);
            let node = self.model.lookup(&path).unwrap();
            self.open.push(Open { handle: opened.handle, ino: opened.stat.ino, node, path: Some(path) });
        }
    }

    pub(super) fn open(&mut self, path: String) {
        if self.kind(&path) == Some(Kind::Symlink) {
            return;
        }
        let truncate = self.random.chance(0.3);
        let mode = OpenMode { read: true, write: true, truncate, append: false };
        let was = self.seen(&path);
        let ours = async |engine: &Arc<Engine>, asked: Asked| {
            let ino = node(engine, &path).await?;
            asked.open(engine, ino, mode).await
        };
        let theirs = |model: &mut Model| {
            let id = model.open(&path)?;
            if truncate { model.truncate(id, 0) } else { Ok(()) }
        };
        if let Came::Same(opened) = self.change(format!("open {path} truncate {truncate}"), ours, theirs) {
            if truncate {
                self.soften(&path, was);
            }
            let node = self.model.lookup(&path).unwrap();
            self.open.push(Open { handle: opened.handle, ino: opened.stat.ino, node, path: Some(path) });
        }
    }

    /// One of the open files: handle, inode, node and path.
    fn pick(&mut self) -> Option<(u64, u64, NodeId, Option<String>)> {
        if self.open.is_empty() {
            return None;
        }
        let at = self.index(self.open.len());
        let Open { handle, ino, node, path } = &self.open[at];
        Some((*handle, *ino, *node, path.clone()))
    }

    /// A change of an open file's bytes, which is local and can fail by the disk only.
    fn edit<T>(
        &mut self,
        what: String,
        (node, path): (NodeId, Option<String>),
        handle: u64,
        ours: impl AsyncFn(&Arc<Engine>, Asked) -> FsResult<T>,
        theirs: impl FnOnce(&mut Model),
    ) {
        self.note(format!("{what} ({path:?})"));
        self.summary.operations += 1;
        let before = self.model.clone();
        if let Some(path) = &path {
            let was = self.seen(path);
            self.soften(path, was);
        }
        theirs(&mut self.model);
        match self.ask(ours) {
            Some(Ok(_)) => {}
            Some(Err(error)) if !self.world.is_calm() => {
                self.note(format!("  failed: {error}"));
                self.summary.failed += 1;
                self.accept(&what, handle, node, &before);
            }
            Some(Err(error)) => self.fail(&format!("{what}: {error}")),
            // Of a write that nobody was told of, some may be there.
            None => self.settle(&path.map_or(what, |path| format!("{TORN}{path}")), &before, true),
        }
    }

    /// Some of a change that failed may be there.
    fn accept(&mut self, what: &str, handle: u64, node: NodeId, before: &Model) {
        let all = usize::try_from(FILE_LEN_MAX * 4).unwrap();
        let found = self.undisturbed(async |engine| engine.read(handle, 0, FILE_LEN_MAX * 4).await);
        let found = match found {
            Ok(found) => found.concat(),
            Err(error) => self.fail(&format!("{what} failed, and the file cannot be read: {error}")),
        };
        let (old, new) = (before.read(node, 0, all).unwrap(), self.model.read(node, 0, all).unwrap());
        if !are_mixed(&found, old, new) {
            self.fail(&format!("{what} failed: the file is neither as before nor as it was to be"));
        }
        self.model.truncate(node, 0).unwrap();
        self.model.write(node, 0, &found).unwrap();
        let open = self.open.iter().find(|open| open.handle == handle).map(|open| (open.ino, open.path.clone()));
        let Some((ino, path)) = open else { return };
        if let Some(path) = path {
            // It may have kept its time.
            let old = before.node(node).mtime_ns;
            let stat = self.undisturbed(async |engine| engine.getattr(ino).await);
            if stat.is_ok_and(|stat| stat.attr.mtime.secs == old) {
                self.model.utimens(&path, old).unwrap();
            }
            let now = self.seen(&path);
            self.soften(&path, now);
        }
    }

    pub(super) fn write(&mut self) {
        let Some((handle, _, node, path)) = self.pick() else { return };
        let range = self.range();
        let data = self.bytes(range.len());
        let ours = async |engine: &Arc<Engine>, asked: Asked| {
            asked.write(engine, handle, range.start as u64, &data, false)?;
            engine.backpressure(handle).await;
            Ok(())
        };
        let theirs = |model: &mut Model| model.write(node, range.start, &data).unwrap();
        self.edit(format!("write {range:?}"), (node, path), handle, ours, theirs);
    }

    pub(super) fn cut(&mut self) {
        let Some((handle, ino, node, path)) = self.pick() else { return };
        let len = self.range().start;
        let set = SetAttr { size: Some(len as u64), handle: Some(handle), ..SetAttr::default() };
        let ours = async |engine: &Arc<Engine>, _: Asked| engine.setattr(ino, set).await;
        let theirs = |model: &mut Model| model.truncate(node, len).unwrap();
        self.edit(format!("truncate {len}"), (node, path), handle, ours, theirs);
    }

    pub(super) fn punch(&mut self) {
        let Some((handle, _, node, path)) = self.pick() else { return };
        let range = self.range();
        let ours = async |engine: &Arc<Engine>, _: Asked| {
            engine.fallocate(handle, range.start as u64..range.end as u64, true, true)
        };
        let theirs = |model: &mut Model| {
            let Content::File(bytes) = &model.node(node).content else { return };
            let (len, end) = (bytes.len(), range.end.min(bytes.len()));
            // The time moves in any case.
            model.truncate(node, len).unwrap();
            if range.start < end {
                model.write(node, range.start, &vec![0; end - range.start]).unwrap();
            }
        };
        self.edit(format!("punch {range:?}"), (node, path), handle, ours, theirs);
    }

    pub(super) fn read(&mut self) {
        let Some((handle, _, node, path)) = self.pick() else { return };
        let range = self.range();
        self.note(format!("read {range:?} of {path:?}"));
        let expected = self.model.read(node, range.start, range.len()).unwrap().to_vec();
        let before = self.model.clone();
        let ours =
            async |engine: &Arc<Engine>, _: Asked| engine.read(handle, range.start as u64, range.len() as u64).await;
        match self.ask(ours) {
            Some(Ok(bytes)) if bytes.concat() == expected => {}
            Some(Ok(bytes)) => self.fail(&format!("wrong bytes ({} of {})", bytes.concat().len(), expected.len())),
            Some(Err(_)) if !self.world.is_calm() => self.summary.failed += 1,
            Some(Err(error)) => self.fail(&format!("read: {error}")),
            None => self.settle("read", &before, true),
        }
    }

    pub(super) fn close(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let at = self.index(self.open.len());
        let (handle, path) = (self.open[at].handle, self.open[at].path.clone());
        self.store("close", path, async |engine, _| engine.flush(handle).await);
        // After a remount there is no such handle any more.
        let Some(at) = self.open.iter().position(|open| open.handle == handle) else { return };
        self.open.swap_remove(at);
        let before = self.model.clone();
        let released = self.ask(async |engine: &Arc<Engine>, _: Asked| {
            engine.release(handle).await;
            Ok(())
        });
        if released.is_none() {
            self.settle("release", &before, true);
        }
    }

    pub(super) fn fsync(&mut self) {
        let Some((handle, _, _, path)) = self.pick() else { return };
        self.store("fsync", path, async |engine, _| engine.fsync(handle).await);
    }

    /// Something after which a file is safe.
    fn store(&mut self, what: &str, path: Option<String>, ours: impl AsyncFn(&Arc<Engine>, Asked) -> FsResult<()>) {
        self.note(format!("{what} {path:?}"));
        self.summary.operations += 1;
        let before = self.model.clone();
        match self.ask(ours) {
            Some(Ok(())) => {
                if let Some(path) = path {
                    self.harden(&path);
                }
            }
            Some(Err(error)) if !self.world.is_calm() => {
                self.note(format!("  failed: {error}"));
                self.summary.failed += 1;
            }
            Some(Err(error)) => self.fail(&format!("{what} of {path:?}: {error}")),
            None => self.settle(what, &before, true),
        }
    }

    pub(super) fn unlink(&mut self, path: &str) {
        let (parent, name) = split(path);
        let ours = async |engine: &Arc<Engine>, asked: Asked| {
            let parent = node(engine, parent).await?;
            asked.unlink(engine, parent, name.as_bytes()).await
        };
        if let Came::Same(()) = self.change(format!("unlink {path}"), ours, |model| model.unlink(path)) {
            self.harden(path);
            for open in &mut self.open {
                if open.path.as_deref() == Some(path) {
                    open.path = None;
                }
            }
        }
    }

    pub(super) fn mkdir(&mut self) {
        let path = *self.random.pick(&DIRECTORIES[1..]);
        let (parent, name) = split(path);
        let ours = async |engine: &Arc<Engine>, asked: Asked| {
            let parent = node(engine, parent).await?;
            asked.mkdir(engine, parent, name.as_bytes(), 0o750, 0, 0).await
        };
        let made = self.change(format!("mkdir {path}"), ours, |model| model.mkdir(path, 0o750).map(drop));
        if let Came::Same(_) = made {
            self.harden(path);
        }
    }

    pub(super) fn rmdir(&mut self, path: &str) {
        let (parent, name) = split(path);
        let ours = async |engine: &Arc<Engine>, asked: Asked| {
            let parent = node(engine, parent).await?;
            asked.rmdir(engine, parent, name.as_bytes()).await
        };
        if let Came::Same(()) = self.change(format!("rmdir {path}"), ours, |model| model.rmdir(path)) {
            self.harden(path);
        }
    }

    pub(super) fn symlink(&mut self, path: &str) {
        let (parent, name) = split(path);
        let ours = async |engine: &Arc<Engine>, asked: Asked| {
            let parent = node(engine, parent).await?;
            asked.symlink(engine, parent, name.as_bytes(), b"to/where", 0, 0).await
        };
        let theirs = |model: &mut Model| model.symlink("to/where", path).map(drop);
        if let Came::Same(_) = self.change(format!("symlink {path}"), ours, theirs) {
            self.harden(path);
        }
    }

    pub(super) fn set_attributes(&mut self, path: &str) {
        let was = self.seen(path);
        let perm = *self.random.pick(&[0o600, 0o644, 0o755, 0o4711]);
        let secs = 1_000_000_000 + i64::try_from(self.random.below(1_000_000)).unwrap();
        let changed = match self.kind(path) {
            Some(Kind::Symlink) => return,
            Some(Kind::File) if self.random.chance(0.5) => {
                let set = SetAttr { mtime: Some(SetTime::At(Time { secs, nanos: 5 })), ..SetAttr::default() };
                let ours = async |engine: &Arc<Engine>, _: Asked| engine.setattr(node(engine, path).await?, set).await;
                self.change(format!("utimens {secs} {path}"), ours, |model| model.utimens(path, secs))
            }
            _ => {
                let set = SetAttr { perm: Some(perm), ..SetAttr::default() };
                let ours = async |engine: &Arc<Engine>, _: Asked| engine.setattr(node(engine, path).await?, set).await;
                self.change(format!("chmod {perm:o} {path}"), ours, |model| model.chmod(path, perm))
            }
        };
        if let Came::Same(_) = changed
            && self.is_soft(path)
        {
            self.soften(path, was);
        }
    }

    pub(super) fn rename(&mut self, from: String) {
        let to = self.path();
        // Of a directory's move that fails half-way both directories may be left, which is documented.
        let can_fail = !self.world.is_calm() || self.world.life_max.is_some();
        if self.kind(&from) == Some(Kind::Directory) && can_fail {
            return;
        }
        let no_replace = self.random.chance(0.2);
        let replace = if no_replace { Replace::No } else { Replace::Yes };
        let target = self.seen(&to);
        let ((parent, name), (new_parent, new_name)) = (split(&from), split(&to));
        let ours = async |engine: &Arc<Engine>, asked: Asked| {
            let (parent, new_parent) = (node(engine, parent).await?, node(engine, new_parent).await?);
            asked.rename(engine, (parent, name.as_bytes()), (new_parent, new_name.as_bytes()), no_replace).await
        };
        let theirs = |model: &mut Model| model.rename(&from, &to, replace);
        let Came::Same(()) = self.change(format!("rename {from}|{to}|{replace:?}"), ours, theirs) else { return };
        if from == to {
            return;
        }
        for open in &mut self.open {
            let Some(path) = &open.path else { continue };
            if *path == to {
                open.path = None;
            } else if *path == from || path.starts_with(&format!("{from}/")) {
                open.path = Some(format!("{to}{}", &path[from.len()..]));
            }
        }
        // What is not safe under its new name may leave what had that before.
        let before_target = self.soft.remove(&to).unwrap_or_default();
        let under = format!("{from}/");
        let moved: Vec<String> =
            self.soft.keys().filter(|path| **path == from || path.starts_with(&under)).cloned().collect();
        for path in moved {
            let mut states = self.soft.remove(&path).unwrap();
            if path == from {
                states.push(target.clone());
                states.extend(before_target.clone());
            }
            self.soft.insert(format!("{to}{}", &path[from.len()..]), states);
        }
    }

    /// Nobody asks for anything, for a while.
    pub(super) fn idle(&mut self) {
        let pause = Duration::from_millis(self.random.below(30_000));
        self.note(format!("idle {pause:?}"));
        let before = self.model.clone();
        let ours = async |_: &Arc<Engine>, _: Asked| {
            tokio::time::sleep(pause).await;
            Ok(())
        };
        if self.ask(ours).is_none() {
            self.settle("idle", &before, true);
        }
    }

    /// Bits of what is cached flip.
    pub(super) fn rot(&mut self) {
        let files: Vec<_> = std::fs::read_dir(self.places.cache.path()).unwrap().flatten().collect();
        for file in files {
            let mut bytes = std::fs::read(file.path()).unwrap();
            if !bytes.is_empty() && self.random.chance(0.5) {
                let at = self.index(bytes.len());
                bytes[at] ^= 1 << self.random.below(8);
                self.note(format!("bit rot in {}", file.path().display()));
                std::fs::write(file.path(), bytes).unwrap();
            }
        }
    }

    pub(super) fn sync(&mut self) {
        self.note("sync".to_owned());
        let before = self.model.clone();
        match self.ask(async |engine: &Arc<Engine>, _: Asked| Ok(engine.sync().await.failed)) {
            // What is open and changed goes up, too.
            Some(Ok(failed)) if failed.is_empty() => self.soft.clear(),
            Some(Ok(failed)) if self.world.is_calm() => self.fail(&format!("sync: {failed:?}")),
            Some(_) => {}
            None => self.settle("sync", &before, true),
        }
    }
}
