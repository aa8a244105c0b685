//! Requests that change names, as the kernel sends them: also a second time.
//!
//! When the process behind a mount is killed, what it had not answered is sent again to the next one. It may have been done,
//! in part or whole: then it is not refused for that.

use std::sync::Arc;

use super::{Engine, OpenMode, Opened, Stat, as_request};
use crate::errno::{Errno, errno};
use crate::{FsError, FsResult};

/// One request of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The kernel's number of it, which is even.
    pub number: u64,
    /// Whether it was sent before, to a process that was killed.
    pub is_again: bool,
}

impl Asked {
    /// Whether the process that was killed had begun to change names for it.
    fn is_begun(self, engine: &Engine) -> bool {
        self.is_again && engine.was_begun(self.number)
    }

    /// What the process that was killed had opened for it.
    fn opened_before(self, engine: &Engine) -> Option<Opened> {
        if self.is_again { engine.opened_before(self.number) } else { None }
    }

    /// [`Engine::open`].
    ///
    /// # Errors
    /// Those of [`Engine::open`].
    pub async fn open(self, engine: &Arc<Engine>, ino: u64, mode: OpenMode) -> FsResult<Opened> {
        match self.opened_before(engine) {
            Some(opened) => Ok(opened),
            None => as_request(self.number, engine.open(ino, mode)).await,
        }
    }

    /// [`Engine::opendir`].
    ///
    /// # Errors
    /// Those of [`Engine::opendir`].
    pub async fn opendir(self, engine: &Arc<Engine>, ino: u64) -> FsResult<u64> {
        match self.opened_before(engine) {
            Some(opened) => Ok(opened.handle),
            None => as_request(self.number, async { engine.opendir(ino) }).await,
        }
    }

    /// [`Engine::create`].
    ///
    /// # Errors
    /// Those of [`Engine::create`].
    #[allow(clippy::too_many_arguments)]
    pub async fn create(
        self,
        engine: &Arc<Engine>,
        parent: u64,
        name: &[u8],
        perm: u32,
        uid: u32,
        gid: u32,
        mode: OpenMode,
    ) -> FsResult<Opened> {
        if let Some(opened) = self.opened_before(engine) {
            return Ok(opened);
        }
        let is_begun = self.is_begun(engine);
        let work = async {
            match engine.create(parent, name, perm, uid, gid, mode).await {
                Err(FsError::Exists { .. }) if is_begun => {
                    engine.names_changed(parent);
                    engine.open_created(parent, name, mode).await
                }
                other => other,
            }
        };
        as_request(self.number, work).await
    }

    /// A regular file of no bytes, in the bucket.
    ///
    /// # Errors
    /// Those of [`Engine::create`] and [`Engine::flush`].
    pub async fn mknod(
        self,
        engine: &Arc<Engine>,
        parent: u64,
        name: &[u8],
        perm: u32,
        uid: u32,
        gid: u32,
    ) -> FsResult<Stat> {
        let mode = OpenMode { write: true, ..OpenMode::default() };
        let opened = self.create(engine, parent, name, perm, uid, gid, mode).await?;
        let stored = engine.flush(opened.handle).await;
        engine.release(opened.handle).await;
        stored.map(|()| opened.stat)
    }

    /// [`Engine::mkdir`].
    ///
    /// # Errors
    /// Those of [`Engine::mkdir`].
    pub async fn mkdir(
        self,
        engine: &Arc<Engine>,
        parent: u64,
        name: &[u8],
        perm: u32,
        uid: u32,
        gid: u32,
    ) -> FsResult<Stat> {
        let made = as_request(self.number, engine.mkdir(parent, name, perm, uid, gid)).await;
        self.or_lookup(engine, parent, name, made).await
    }

    /// [`Engine::symlink`].
    ///
    /// # Errors
    /// Those of [`Engine::symlink`].
    pub async fn symlink(
        self,
        engine: &Arc<Engine>,
        parent: u64,
        name: &[u8],
        target: &[u8],
        uid: u32,
        gid: u32,
    ) -> FsResult<Stat> {
        let made = as_request(self.number, engine.symlink(parent, name, target, uid, gid)).await;
        self.or_lookup(engine, parent, name, made).await
    }

    async fn or_lookup(self, engine: &Arc<Engine>, parent: u64, name: &[u8], made: FsResult<Stat>) -> FsResult<Stat> {
        match made {
            Err(FsError::Exists { .. }) if self.is_begun(engine) => {
                engine.names_changed(parent);
                engine.lookup(parent, name).await
            }
            other => other,
        }
    }

    /// [`Engine::unlink`].
    ///
    /// # Errors
    /// Those of [`Engine::unlink`].
    pub async fn unlink(self, engine: &Arc<Engine>, parent: u64, name: &[u8]) -> FsResult<()> {
        let gone = as_request(self.number, engine.unlink(parent, name)).await;
        self.or_keep_parent(engine, parent, gone).await
    }

    /// [`Engine::rmdir`].
    ///
    /// # Errors
    /// Those of [`Engine::rmdir`].
    pub async fn rmdir(self, engine: &Arc<Engine>, parent: u64, name: &[u8]) -> FsResult<()> {
        let gone = as_request(self.number, engine.rmdir(parent, name)).await;
        self.or_keep_parent(engine, parent, gone).await
    }

    async fn or_keep_parent(self, engine: &Arc<Engine>, parent: u64, gone: FsResult<()>) -> FsResult<()> {
        match gone {
            Err(FsError::NotFound { .. }) if self.is_begun(engine) => {
                engine.names_changed(parent);
                engine.keep_parent(parent).await;
                Ok(())
            }
            other => other,
        }
    }

    /// [`Engine::rename`].
    ///
    /// # Errors
    /// Those of [`Engine::rename`].
    pub async fn rename(
        self,
        engine: &Arc<Engine>,
        (parent, name): (u64, &[u8]),
        (new_parent, new_name): (u64, &[u8]),
        no_replace: bool,
    ) -> FsResult<()> {
        let work = async {
            if !self.is_begun(engine) {
                return engine.rename(parent, name, new_parent, new_name, no_replace).await;
            }
            let renamed = engine.rename_again(parent, name, new_parent, new_name).await;
            if renamed.is_ok() {
                engine.names_changed(parent);
                engine.names_changed(new_parent);
                engine.keep_parent(parent).await;
            }
            renamed
        };
        as_request(self.number, work).await
    }

    /// [`Engine::write`], without waiting for room.
    ///
    /// # Errors
    /// Those of [`Engine::write`].
    pub fn write(
        self,
        engine: &Arc<Engine>,
        handle: u64,
        offset: u64,
        data: &[u8],
        kill_set_id: bool,
    ) -> FsResult<usize> {
        if self.is_again {
            engine.write_again(handle, offset, data, kill_set_id)
        } else {
            engine.write(handle, offset, data, kill_set_id)
        }
    }

    /// [`Engine::setxattr`].
    ///
    /// # Errors
    /// Those of [`Engine::setxattr`].
    pub async fn setxattr(self, engine: &Arc<Engine>, ino: u64, name: &str, value: &[u8], flags: i32) -> FsResult<()> {
        // One that was to be made may be there already: then it is made so again.
        let flags = if self.is_begun(engine) { 0 } else { flags };
        as_request(self.number, engine.setxattr(ino, name, value, flags)).await
    }

    /// [`Engine::removexattr`].
    ///
    /// # Errors
    /// Those of [`Engine::removexattr`].
    pub async fn removexattr(self, engine: &Arc<Engine>, ino: u64, name: &str) -> FsResult<()> {
        match as_request(self.number, engine.removexattr(ino, name)).await {
            Err(error) if self.is_begun(engine) && errno(&error) == Errno::ENODATA => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, SeekFrom};
    use std::path::Path;
    use std::time::Duration;

    use sandpail_store::Store;
    use sandpail_store::memory::MemoryStore;

    use super::*;
    use crate::engine::{EngineOptions, Left};

    const ROOT: u64 = 1;

    fn options(staging: &Path) -> EngineOptions {
        EngineOptions { survives: true, ..EngineOptions::new(staging.to_owned()) }
    }

    /// What a process finds that comes when `first` was killed at this moment.
    fn taken_up(first: &Engine, store: &Arc<dyn Store>, staging: &Path) -> Arc<Engine> {
        taken_up_by(first.share().unwrap().unwrap().ledger.into(), store, staging)
    }

    /// The same with what stands in its ledger and no more.
    fn taken_up_by(mut told: File, store: &Arc<dyn Store>, staging: &Path) -> Arc<Engine> {
        let mut ledger = tempfile::tempfile().unwrap();
        told.seek(SeekFrom::Start(0)).unwrap();
        std::io::copy(&mut told, &mut ledger).unwrap();
        let own = staging.join("process-before");
        std::fs::create_dir_all(&own).unwrap();
        let left = Left { ledger: ledger.into(), staging: File::open(own).unwrap().into() };
        Engine::take_up(Arc::clone(store), options(staging), tokio::runtime::Handle::current(), left).unwrap()
    }

    /// The bucket was changed by a process that was killed before it could tell anybody.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_done_and_not_answered_shows_in_the_times_of_its_directory() {
        for what in ["symlink", "mkdir", "unlink", "rmdir", "rename"] {
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
            let (staging, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let runtime = tokio::runtime::Handle::current();
            let first = Engine::new(Arc::clone(&store), options(staging.path()), runtime).unwrap();
            let dir = first.mkdir(ROOT, b"d", 0o755, 0, 0).await.unwrap().ino;
            let other = first.mkdir(ROOT, b"other", 0o755, 0, 0).await.unwrap().ino;
            first.mkdir(dir, b"empty", 0o755, 0, 0).await.unwrap();
            first.symlink(dir, b"link", b"t", 0, 0).await.unwrap();
            first.settle();
            let before = first.getattr(dir).await.unwrap().attr.mtime;
            let before_other = first.getattr(other).await.unwrap().attr.mtime;
            let ask = async |engine: Arc<Engine>, is_again| {
                let asked = Asked { number: 2, is_again };
                match what {
                    "symlink" => asked.symlink(&engine, dir, b"new", b"t", 0, 0).await.map(drop),
                    "mkdir" => asked.mkdir(&engine, dir, b"new", 0o755, 0, 0).await.map(drop),
                    "unlink" => asked.unlink(&engine, dir, b"link").await,
                    "rmdir" => asked.rmdir(&engine, dir, b"empty").await,
                    _ => asked.rename(&engine, (dir, b"link"), (other, b"link"), false).await,
                }
            };
            tokio::time::sleep(Duration::from_millis(2)).await;
            ask(Arc::clone(&first), false).await.unwrap();
            let next = taken_up(&first, &store, after.path());
            next.wait_until_quiet(async {}).await;
            assert_eq!(next.getattr(dir).await.unwrap().attr.mtime, before, "{what}: nobody was told");
            ask(Arc::clone(&next), true).await.unwrap();
            assert!(next.getattr(dir).await.unwrap().attr.mtime > before, "{what}");
            let after_other = next.getattr(other).await.unwrap().attr.mtime;
            assert_eq!(after_other > before_other, what == "rename", "{what}: the other directory");
        }
    }

    /// The record of a staged file goes when it is stored and closed; the ledger knows the version by then.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_stored_and_closed_is_known_to_the_next_process() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let (staging, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first =
            Engine::new(Arc::clone(&store), options(staging.path()), tokio::runtime::Handle::current()).unwrap();
        let both = OpenMode { read: true, write: true, ..OpenMode::default() };
        let made = first.create(ROOT, b"f", 0o644, 0, 0, both).await.unwrap();
        first.write(made.handle, 0, b"first version", false).unwrap();
        first.flush(made.handle).await.unwrap();
        first.release(made.handle).await;
        let again = Asked { number: 2, is_again: false }.open(&first, made.stat.ino, both).await.unwrap();
        // Its attributes are to be stored, too, which the ledger is told.
        first.fallocate(again.handle, 0..4, true, false).unwrap();
        first.settle();
        let ledger = first.share().unwrap().unwrap().ledger.into();
        first.write(again.handle, 0, b"second", false).unwrap();
        first.flush(again.handle).await.unwrap();
        first.release(again.handle).await;
        let next = taken_up_by(ledger, &store, after.path());
        next.wait_until_quiet(async {}).await;
        let opened = next.open(made.stat.ino, both).await.unwrap();
        let read = next.read(opened.handle, 0, 100).await.unwrap();
        assert_eq!(read.concat(), b"secondversion");
    }
}
