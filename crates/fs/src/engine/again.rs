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
                Err(FsError::Exists { .. }) if is_begun => engine.open_created(parent, name, mode).await,
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
            Err(FsError::Exists { .. }) if self.is_begun(engine) => engine.lookup(parent, name).await,
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
