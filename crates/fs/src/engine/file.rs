//! Files: open, read, write, and when their data reaches the bucket.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use sandpail_store::{CopySource, ObjectAttributes};
use tokio::time::Instant;

use super::local::{read_local, seek_local, sync_local};
use super::{Engine, FileHandle, Stat, failed, guard, stale, stat_of, status};
use crate::attr::{Kind, Time};
use crate::content::Content;
use crate::errno::{Errno, errno};
use crate::read::{ObjectVersion, ReadContext, Reader};
use crate::tree::{Name, Version};
use crate::write::{Base, BaseReader, DirtyFile};
use crate::{FsError, FsResult};

/// Largest size of a file: what S3 takes.
const FILE_LEN_MAX: u64 = 5 << 40;
/// A copy of more than this could not be reported: FUSE counts copied bytes in 32 bits.
const COPY_RANGE_LEN_MAX: u64 = 0xffff_f000;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMode {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// Every write goes to the end.
    pub append: bool,
    /// Drop the contents.
    pub truncate: bool,
}

/// An open file.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The handle.
    pub handle: u64,
    /// What the file is.
    pub stat: Stat,
    /// Whether pages that the kernel holds of it are still right.
    pub keep_cache: bool,
    /// Whether reads go past the kernel's pages and the length that `stat` shows.
    pub direct_io: bool,
}

/// What `lseek` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// `SEEK_DATA`
    Data,
    /// `SEEK_HOLE`
    Hole,
}

/// Reads the base version of a staged file.
#[derive(Debug)]
pub(super) struct Bases {
    context: Arc<ReadContext>,
    content: Arc<Content>,
}

#[async_trait]
impl BaseReader for Bases {
    async fn read_base(&self, handle: u64, version: &ObjectVersion, range: Range<u64>) -> FsResult<Vec<Bytes>> {
        self.content.reader(&self.context, version).read(handle, range).await
    }
}

impl Engine {
    /// Makes a file and opens it. It appears in the bucket when it is closed or synced.
    ///
    /// # Errors
    /// [`FsError::Exists`], [`FsError::ReadOnly`], [`FsError::NameTooLong`], [`FsError::Store`].
    pub async fn create(
        &self,
        parent: u64,
        name: &[u8],
        perm: u32,
        uid: u32,
        gid: u32,
        mode: OpenMode,
    ) -> FsResult<Opened> {
        self.check_may_change(parent)?;
        if self.is_local_place(parent, name, Kind::File) {
            return self.create_local(parent, name, perm, uid, gid, mode).await;
        }
        let segment = self.new_segment(parent, name).await?;
        // A directory above it that is being moved takes it along: nothing here waits for that.
        let (moves, key) = {
            let tree = self.tree();
            (tree.moves(), self.key_in(&tree, parent, &segment)?)
        };
        let attr = self.new_attr(parent, Kind::File, perm, uid, gid);
        // Nothing is changed in the bucket; but it is made, perhaps, if it is asked for again.
        let number = self.note_begun();
        self.note_ended(number);
        let (ino, content) = self.insert_new_file(parent, name, segment, attr);
        let made = content.dirty_or(|| DirtyFile::new(Arc::clone(&self.writing), key, None, 0)).and_then(|dirty| {
            dirty.belongs_to(ino);
            self.describe(ino, &dirty)?;
            // An empty file is something to store, too.
            dirty.truncate(0)?;
            self.follow_moves(ino, &dirty, moves)
        });
        if let Err(error) = made {
            let mut tree = self.tree();
            if let Some(node) = tree.get_mut(ino) {
                node.opens = 0;
                node.lookups = 0;
            }
            tree.detach(parent, name);
            // A listing that is believed has it by now.
            tree.note_removed(parent, &Name::from(name), Instant::now());
            return Err(error);
        }
        let stat = stat_of(&self.tree(), ino)?;
        let handle = self.add_handle(ino, content, mode);
        Ok(Opened { handle, stat, keep_cache: false, direct_io: false })
    }

    /// Opens what [`Engine::create`] had made for a request that the kernel sends again, when the process that made it was killed
    /// before it had given a handle.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub async fn open_created(&self, parent: u64, name: &[u8], mode: OpenMode) -> FsResult<Opened> {
        // The kernel's reference was counted when it was made.
        let made = self.resolve(parent, name, false).await?;
        if let Some(node) = self.tree().get_mut(made.ino).filter(|node| node.off_bucket) {
            // The local tree knows nothing of references: it may have been killed before it could note this one.
            node.lookups = node.lookups.max(1);
        }
        self.open(made.ino, OpenMode { truncate: false, ..mode }).await
    }

    /// Opens a file.
    ///
    /// # Errors
    /// [`FsError::IsADirectory`], [`FsError::ReadOnly`], [`FsError::NotFound`].
    pub async fn open(&self, ino: u64, mode: OpenMode) -> FsResult<Opened> {
        if status::is_status(ino) {
            return self.open_status(ino, mode);
        }
        if mode.write || mode.truncate {
            self.check_writable()?;
        }
        if let Some(opened) = self.open_local(ino, mode)? {
            return Ok(opened);
        }
        let (content, keep_cache) = loop {
            self.revalidate(ino).await?;
            if mode.write || mode.truncate {
                // An edit keeps what the object carries.
                self.describe_first(ino).await?;
            }
            let leaving = {
                let tree = self.tree();
                tree.get(ino).and_then(|node| node.content.clone()).filter(|content| content.is_leaving())
            };
            if let Some(content) = leaving {
                // It may be here to stay, or gone: nobody has looked to it that this handle can read what goes.
                drop(content.commit.lock().await);
                continue;
            }
            let mut tree = self.tree();
            let node = tree.get_mut(ino).ok_or_else(|| stale(ino))?;
            if node.is_removal_open() || node.content.as_ref().is_some_and(|content| content.is_leaving()) {
                continue;
            }
            if node.dir.is_some() {
                return Err(FsError::IsADirectory);
            }
            if !node.is_linked && node.opens == 0 && !node.is_local() {
                // Another file may have the name: the kernel looks again.
                return Err(FsError::Changed { what: String::from_utf8_lossy(&node.name).into_owned() });
            }
            // The content is dropped when another version is found, so pages are right as long as it is there. Where there are
            // none, the kernel is not told to drop any: it would wait for those that somebody else has asked for meanwhile, and
            // whoever opens the file could not be killed as long as the store does not answer.
            let keep_cache = (node.content.is_some() || !node.has_pages) && !mode.truncate;
            node.has_pages = true;
            let content = Arc::clone(node.content.get_or_insert_default());
            node.opens += 1;
            break (content, keep_cache);
        };
        if mode.truncate
            && let Err(error) = self.staged_empty(ino, &content)
        {
            self.close_node(ino);
            return Err(error);
        }
        let stat = stat_of(&self.tree(), ino)?;
        let handle = self.add_handle(ino, content, mode);
        Ok(Opened { handle, stat, keep_cache, direct_io: false })
    }

    /// A local file with all bytes of an open file, which the kernel may read instead. Only where nobody writes: it would show
    /// neither that nor what follows.
    pub async fn whole_copy(&self, handle: u64) -> Option<Arc<File>> {
        let file = self.file(handle).ok().filter(|file| self.options.read_only && file.local.is_none())?;
        let reader = self.reader_of(file.ino, &file.content).ok()??;
        reader.whole_copy().await
    }

    fn add_handle(&self, ino: u64, content: Arc<Content>, mode: OpenMode) -> u64 {
        let handle = self.new_handle();
        let file =
            FileHandle { ino, content, can_read: mode.read, can_write: mode.write, append: mode.append, local: None };
        guard(&self.files).insert(handle, Arc::new(file));
        self.note_opened(handle, ino, Some(mode));
        handle
    }

    pub(super) fn file(&self, handle: u64) -> FsResult<Arc<FileHandle>> {
        guard(&self.files).get(&handle).cloned().ok_or(FsError::BadHandle)
    }

    /// An open file; `None` for the status file, which has nothing to store.
    fn real_file(&self, handle: u64) -> FsResult<Option<Arc<FileHandle>>> {
        match self.file(handle) {
            Err(_) if self.status_text(handle).is_some() => Ok(None),
            other => other.map(Some),
        }
    }

    pub(super) fn base_of(&self, content: &Arc<Content>) -> Bases {
        Bases { context: Arc::clone(&self.reading), content: Arc::clone(content) }
    }

    /// The stored version of a node, as a reader wants it.
    pub(super) fn object_version(&self, ino: u64) -> FsResult<Option<ObjectVersion>> {
        let tree = self.tree();
        let node = tree.get(ino).ok_or_else(|| stale(ino))?;
        let Some(Version { etag: Some(etag), size, .. }) = node.version.clone() else { return Ok(None) };
        Ok(Some(ObjectVersion { key: self.file_key(&tree, ino)?, etag, size }))
    }

    /// The reader of the stored version of an open file. Nothing is built for it while nothing moves: each read comes here.
    fn reader_of(&self, ino: u64, content: &Content) -> FsResult<Option<Arc<Reader>>> {
        let tree = self.tree();
        let node = tree.get(ino).ok_or_else(|| stale(ino))?;
        let Some(Version { etag: Some(etag), size, .. }) = &node.version else { return Ok(None) };
        let make = |version: &ObjectVersion| {
            let fetched = self.siblings.take(node.parent, &node.name, version);
            fetched.unwrap_or_else(|| Reader::new(Arc::clone(&self.reading), version.clone()))
        };
        let reader = content.reader_of((etag, *size), tree.moves(), || self.file_key(&tree, ino), make)?;
        if node.is_described {
            reader.allow();
        }
        Ok(Some(reader))
    }

    /// The staged file of a node, made if need be.
    pub(super) fn staged(&self, ino: u64, content: &Content) -> FsResult<Arc<DirtyFile>> {
        if let Some(dirty) = content.dirty() {
            return Ok(dirty);
        }
        let moves = self.tree().moves();
        let version = self.object_version(ino)?;
        let key = self.file_key(&self.tree(), ino)?;
        let replaces = version.as_ref().map(|version| version.etag.clone());
        // Before the lock inside, which others take under the tree's.
        let described = self.described(ino);
        let dirty = content.dirty_or(|| {
            let size = version.as_ref().map_or(0, |version| version.size);
            let base = version.filter(|version| version.size > 0).map(|version| Base { limit: version.size, version });
            let dirty = DirtyFile::new(Arc::clone(&self.writing), key, base, size)?;
            dirty.belongs_to(ino);
            if let Some(etag) = replaces {
                dirty.set_replaces(etag);
            }
            if content.is_unlinked() {
                dirty.note_unlinked();
            }
            if let Some((attributes, _)) = described {
                // Times that were set before count no more: it is about to be changed.
                dirty.describe(attributes, false)?;
            }
            Ok(dirty)
        })?;
        self.follow_moves(ino, &dirty, moves)?;
        Ok(dirty)
    }

    /// After a file was staged: its object may have gone elsewhere since there were so many moves, and whoever moved it did not
    /// see this.
    fn follow_moves(&self, ino: u64, dirty: &DirtyFile, moves: u64) -> FsResult<()> {
        let tree = self.tree();
        if tree.moves() == moves {
            return Ok(());
        }
        let key = self.file_key(&tree, ino)?;
        if dirty.key() != key && !dirty.has_bytes_in_upload() {
            dirty.retarget(key.clone());
            let version = tree.get(ino).and_then(|node| node.version.clone());
            if let Some(Version { etag: Some(etag), size, .. }) = version {
                dirty.set_base_version(ObjectVersion { key, etag, size });
            }
        }
        Ok(())
    }

    /// Tells a staged file what its object shall carry.
    pub(super) fn describe(&self, ino: u64, dirty: &DirtyFile) -> FsResult<()> {
        match self.described(ino) {
            Some((attributes, times_were_set)) => dirty.describe(attributes, times_were_set),
            None => Ok(()),
        }
    }

    fn described(&self, ino: u64) -> Option<(ObjectAttributes, bool)> {
        let tree = self.tree();
        let node = tree.get(ino)?;
        let times_were_set = node.content.as_ref().is_some_and(|content| content.times_were_set());
        Some((self.attributes_of(node), times_were_set))
    }

    /// The staged file of a node, without its contents.
    fn staged_empty(&self, ino: u64, content: &Content) -> FsResult<()> {
        self.staged(ino, content)?.truncate(0)?;
        self.modified(ino, true);
        Ok(())
    }

    /// Contents changed: times move, and set-id bits go where asked. An upload that has begun meanwhile may have the new bytes
    /// with the old times; then these are stored once more.
    fn modified(&self, ino: u64, keep_set_id: bool) {
        let mut tree = self.tree();
        tree.reclaim(ino);
        if let Some(node) = tree.get_mut(ino) {
            let now = Time::now();
            node.attr.mtime = now;
            node.attr.ctime = now;
            if !keep_set_id {
                clear_set_id(&mut node.attr.perm);
            }
            if let Some(content) = &node.content {
                content.set_times_were_set(false);
                if content.is_uploading() || !content.dirty().is_some_and(|dirty| dirty.is_dirty()) {
                    content.attributes_changed();
                }
            }
        }
    }

    /// Reads `len` bytes from `offset`; fewer at the end of the file.
    ///
    /// # Errors
    /// [`FsError::Changed`] if the object was replaced while it is open; [`FsError::Store`].
    pub async fn read(&self, handle: u64, offset: u64, len: u64) -> FsResult<Vec<Bytes>> {
        let Ok(file) = self.file(handle) else {
            let text = self.status_text(handle).ok_or(FsError::BadHandle)?;
            let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
            return Ok(vec![text.slice(at(offset)..at(offset.saturating_add(len)))]);
        };
        if !file.can_read {
            return Err(FsError::BadHandle);
        }
        if let Some(local) = &file.local {
            return read_local(local, offset, len);
        }
        // An upload of our own replaces the object, a rename moves it to another key: what fails while that goes on is tried
        // again when it is done.
        let (mut has_waited, mut tried) = (false, None::<ObjectVersion>);
        loop {
            if let Some(dirty) = file.content.dirty() {
                let end = offset.saturating_add(len).min(dirty.size());
                if end <= offset {
                    return Ok(Vec::new());
                }
                let base = self.base_of(&file.content);
                let mut read = dirty.read(handle, offset..end, &base).await;
                if matches!(read, Err(FsError::InUpload { .. })) {
                    self.store_file(file.ino).await?;
                    read = dirty.read(handle, offset..end, &base).await;
                }
                if has_waited || !matches!(read, Err(FsError::Changed { .. })) {
                    return read;
                }
                has_waited = true;
                self.own_change_ends(&file).await?;
                continue;
            }
            let Some(reader) = self.reader_of(file.ino, &file.content)? else { return Ok(Vec::new()) };
            let end = offset.saturating_add(len).min(reader.version().size);
            if end <= offset {
                return Ok(Vec::new());
            }
            if offset == 0 {
                self.fetch_siblings(file.ino, &reader);
            }
            match reader.read(handle, offset..end).await {
                Err(FsError::Changed { .. }) if tried.as_ref() != Some(reader.version()) => {
                    self.own_change_ends(&file).await?;
                    tried = Some(reader.version().clone());
                }
                other => return other,
            }
        }
    }

    /// Returns when nothing that this host does to the object of a file is under way, and what it did is known.
    async fn own_change_ends(&self, file: &FileHandle) -> FsResult<()> {
        let _shared = self.structure.read().await;
        let _one = file.content.commit.lock().await;
        self.settle_copy(file.ino).await
    }

    /// Writes `data` at `offset` (at the end, for a handle in append mode). Returns how many bytes were taken.
    /// Await [`Engine::backpressure`] before the caller is told.
    ///
    /// # Errors
    /// [`FsError::BadHandle`], [`FsError::NoSpace`], [`FsError::TooLarge`].
    pub fn write(&self, handle: u64, offset: u64, data: &[u8], kill_set_id: bool) -> FsResult<usize> {
        self.write_at(handle, data, kill_set_id, offset, true)
    }

    /// Writes as [`Engine::write`] does, for a request that the kernel sends again: in append mode, too, the bytes go where
    /// the kernel saw the end, as they may be there already.
    ///
    /// # Errors
    /// As [`Engine::write`].
    pub fn write_again(&self, handle: u64, offset: u64, data: &[u8], kill_set_id: bool) -> FsResult<usize> {
        self.write_at(handle, data, kill_set_id, offset, false)
    }

    fn write_at(&self, handle: u64, data: &[u8], kill_set_id: bool, offset: u64, may_append: bool) -> FsResult<usize> {
        let file = self.file(handle)?;
        if !file.can_write {
            return Err(FsError::BadHandle);
        }
        self.check_writable()?;
        let is_append = may_append && file.append;
        if let Some(local) = &file.local {
            return self.write_local(local, (!is_append).then_some(offset), data, kill_set_id);
        }
        let dirty = self.staged(file.ino, &file.content)?;
        let offset = if is_append { dirty.size() } else { offset };
        check_len(offset.saturating_add(data.len() as u64))?;
        dirty.write(offset, data)?;
        self.modified(file.ino, !kill_set_id);
        Ok(data.len())
    }

    /// Writes as [`Engine::write`], or with `is_again` [`Engine::write_again`], after that found no room: as soon as uploads beside the writing have made some.
    ///
    /// # Errors
    /// As [`Engine::write`]; [`FsError::NoSpace`] if nothing that makes room is under way.
    pub async fn write_when_there_is_room(
        &self,
        handle: u64,
        offset: u64,
        data: &[u8],
        kill_set_id: bool,
        is_again: bool,
    ) -> FsResult<usize> {
        let file = self.file(handle)?;
        loop {
            let has_room = match file.content.dirty() {
                Some(dirty) if dirty.make_room().await => true,
                Some(dirty) if dirty.is_unclear() => {
                    let _shared = self.structure.read().await;
                    let _one = file.content.commit.lock().await;
                    dirty.go_on().await.unwrap_or(false)
                }
                _ => false,
            };
            let written = match is_again {
                true => self.write_again(handle, offset, data, kill_set_id),
                false => self.write(handle, offset, data, kill_set_id),
            };
            match written {
                Err(error) if has_room && errno(&error) == Errno::ENOSPC => {}
                other => return other,
            }
        }
    }

    /// Whether an operation of a handle may be storing the file.
    pub fn may_store(&self, handle: u64) -> bool {
        self.file(handle).is_ok_and(|file| file.content.has_unstored())
    }

    /// Waits while an upload that runs beside the writing lags behind.
    pub async fn backpressure(&self, handle: u64) {
        if let Ok(file) = self.file(handle)
            && let Some(dirty) = file.content.dirty()
        {
            dirty.backpressure().await;
        }
    }

    /// A descriptor is being closed: what was written through it is stored, or with [`EngineOptions::write_back`] on the disk.
    ///
    /// [`EngineOptions::write_back`]: super::EngineOptions::write_back
    ///
    /// # Errors
    /// Why it could not be stored; it stays staged and is tried again.
    pub async fn flush(&self, handle: u64) -> FsResult<()> {
        let Some(file) = self.real_file(handle)? else { return Ok(()) };
        if file.can_write && file.content.has_unstored() {
            self.close_changed(file.ino, &file.content).await
        } else {
            Ok(())
        }
    }

    /// Stores what was written to the file.
    ///
    /// # Errors
    /// As [`Engine::flush`].
    pub async fn fsync(&self, handle: u64) -> FsResult<()> {
        let Some(file) = self.real_file(handle)? else { return Ok(()) };
        if let Some(local) = &file.local {
            return sync_local(Arc::clone(local)).await;
        }
        if file.content.has_unstored() { self.store_file(file.ino).await } else { Ok(()) }
    }

    /// The last descriptor is gone. Stores that come after the last flush (through `mmap`) are stored here.
    pub async fn release(&self, handle: u64) {
        let Some(file) = guard(&self.files).get(&handle).cloned() else { return self.close_status(handle) };
        file.content.forget_handle(handle);
        if file.can_write
            && file.content.has_unstored()
            && let Err(error) = self.close_changed(file.ino, &file.content).await
        {
            tracing::error!(path = self.tree().path_of(file.ino), %error, "not stored yet; it stays staged");
        }
        // Only now: if this process is killed before, whoever comes after it is asked to release the handle again.
        self.note_closed(handle);
        guard(&self.files).remove(&handle);
        self.close_node(file.ino);
    }

    fn close_node(&self, ino: u64) {
        {
            let mut tree = self.tree();
            if let Some(node) = tree.get_mut(ino) {
                node.opens = node.opens.saturating_sub(1);
            }
            self.unpark_unused(&tree, ino);
        }
        self.close_stored(ino);
    }

    /// Lets go of the staged bytes of a file that nobody has open and that is stored, or has no name any more.
    pub(super) fn close_stored(&self, ino: u64) {
        // Which version was stored must stand in the ledger before the record goes that says so, too.
        self.settle();
        let mut tree = self.tree();
        if let Some(node) = tree.get_mut(ino)
            && node.opens == 0
        {
            let is_done = node.content.as_ref().is_none_or(|content| !content.has_unstored());
            if let Some(content) = &node.content {
                content.rest();
                if is_done || !node.is_linked {
                    content.drop_dirty();
                }
            }
            if !node.is_linked {
                node.content = None;
            }
        }
        tree.drop_unused(ino);
    }

    /// Cuts or grows a file. Without a handle it is stored at once.
    pub(super) async fn set_size(&self, ino: u64, handle: Option<u64>, size: u64, kill_set_id: bool) -> FsResult<()> {
        self.check_writable()?;
        check_len(size)?;
        if let Some(handle) = handle {
            let file = self.file(handle)?;
            if !file.can_write {
                return Err(FsError::Invalid { what: "the file is not open for writing".to_owned() });
            }
            self.cut(ino, &file.content, size).await?;
            self.modified(ino, !kill_set_id);
            return Ok(());
        }
        let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
        let opened = self.open(ino, mode).await?;
        let cut = async {
            let file = self.file(opened.handle)?;
            self.cut(ino, &file.content, size).await?;
            self.modified(ino, !kill_set_id);
            self.flush(opened.handle).await
        }
        .await;
        self.release(opened.handle).await;
        cut
    }

    async fn cut(&self, ino: u64, content: &Content, size: u64) -> FsResult<()> {
        let dirty = self.staged(ino, content)?;
        match dirty.truncate(size) {
            Err(FsError::InUpload { .. }) => {
                self.store_file(ino).await?;
                dirty.truncate(size)
            }
            other => other,
        }
    }

    /// Reserves or clears a range, as `fallocate` with these flags.
    ///
    /// # Errors
    /// [`FsError::BadHandle`], [`FsError::NoSpace`], [`FsError::TooLarge`].
    pub fn fallocate(&self, handle: u64, range: Range<u64>, keep_size: bool, zero: bool) -> FsResult<()> {
        let file = self.file(handle)?;
        if !file.can_write {
            return Err(FsError::BadHandle);
        }
        if let Some(local) = &file.local {
            return self.fallocate_local(local, &range, keep_size, zero);
        }
        check_len(range.end)?;
        let dirty = self.staged(file.ino, &file.content)?;
        if zero {
            let end = range.end.min(dirty.size());
            if range.start < end {
                dirty.punch(range.start..end)?;
            }
        }
        if !keep_size && range.end > dirty.size() {
            dirty.allocate_to(range.end)?;
        }
        self.modified(file.ino, true);
        Ok(())
    }

    /// Finds data or a hole: to the outside a file is data all over, with a hole at its end.
    ///
    /// # Errors
    /// [`FsError::Range`] behind the end, which callers report as `ENXIO`.
    pub fn seek(&self, handle: u64, offset: u64, whence: Whence) -> FsResult<u64> {
        let file = self.file(handle)?;
        if let Some(local) = &file.local {
            return seek_local(local, offset, whence);
        }
        let size = stat_of(&self.tree(), file.ino)?.attr.size;
        match whence {
            _ if offset >= size => Err(FsError::Range { what: "offset behind the end".to_owned() }),
            Whence::Data => Ok(offset),
            Whence::Hole => Ok(size),
        }
    }

    /// Copies a whole stored file into an empty one inside the store.
    ///
    /// # Errors
    /// [`FsError::Unsupported`] for anything else: the caller copies the bytes itself.
    pub async fn copy_file_range(
        &self,
        from: u64,
        from_offset: u64,
        to: u64,
        to_offset: u64,
        len: u64,
    ) -> FsResult<u64> {
        let unsupported = || FsError::Unsupported { what: "server-side copy of a part".to_owned() };
        let (source, target) = (self.file(from)?, self.file(to)?);
        if !source.can_read || !target.can_write {
            return Err(FsError::BadHandle);
        }
        match (&source.local, &target.local) {
            (Some(source), Some(target)) => {
                return self.copy_local((source, from_offset), (target, to_offset), len, COPY_RANGE_LEN_MAX);
            }
            (None, None) => {}
            _ => return Err(unsupported()),
        }
        let version = self.object_version(source.ino)?.ok_or_else(unsupported)?;
        let is_whole = from_offset == 0 && to_offset == 0 && len >= version.size && version.size > 0;
        let target_is_empty = self.staged(target.ino, &target.content)?.size() == 0;
        let fits = version.size <= COPY_RANGE_LEN_MAX && version.size <= self.store.capabilities().copy_len_max;
        let is_clean = source.ino != target.ino && !source.content.has_unstored() && !target.content.is_unlinked();
        // A small file costs no less this way, and its bytes may be here already.
        if !is_whole || !target_is_empty || !fits || !is_clean || version.size < self.options.part_len {
            return Err(unsupported());
        }
        let _shared = self.structure.read().await;
        let _one = target.content.commit.lock().await;
        // Written meanwhile, perhaps.
        let staged = self.staged(target.ino, &target.content)?;
        if staged.size() != 0 || target.content.is_unlinked() {
            return Err(unsupported());
        }
        let (key, attributes, parent, name, carries_more) = {
            let tree = self.tree();
            let node = tree.get(target.ino).ok_or_else(|| stale(target.ino))?;
            let (parent, name) = (node.parent, Arc::clone(&node.name));
            (self.file_key(&tree, target.ino)?, self.attributes_of(node), parent, name, self.carries_more(node))
        };
        if carries_more {
            self.mark(parent).await?;
        }
        let origin = CopySource { key: version.key.clone(), etag: Some(version.etag.clone()) };
        let change = self.begin(parent, &name);
        let uploading = target.content.begin_upload();
        // What is written from here on comes after it: whoever asked may be gone by then, and another one writes.
        let had_changes = staged.begin_replacement();
        let copied = self.store.copy(&origin, &key, Some(&attributes), &sandpail_store::Condition::Always).await;
        let outcome = match copied {
            Ok(outcome) => outcome,
            Err(error) => {
                staged.replacement_failed(had_changes);
                return Err(failed(|| format!("cannot copy {} to {key}", version.key))(error));
            }
        };
        {
            let mut tree = self.tree();
            self.stored(&mut tree, target.ino, &outcome, version.size, attributes);
            change.done(&mut tree);
        }
        // Which version it is must stand in the ledger before the record goes.
        self.settle();
        {
            let _tree = self.tree();
            if staged.is_dirty() {
                staged.set_replaces(outcome.etag);
            } else {
                target.content.drop_dirty();
            }
        }
        drop(uploading);
        Ok(version.size)
    }
}

fn check_len(len: u64) -> FsResult<()> {
    if len > FILE_LEN_MAX {
        return Err(FsError::TooLarge { what: format!("{len} bytes; S3 takes at most {FILE_LEN_MAX}") });
    }
    Ok(())
}

/// As the kernel does when someone else writes to a file that runs with its owner's rights.
pub(crate) fn clear_set_id(perm: &mut u32) {
    *perm &= !0o4000;
    if *perm & 0o010 != 0 {
        *perm &= !0o2000;
    }
}

#[cfg(test)]
mod tests {
    use sandpail_store::memory::MemoryStore;

    use super::*;
    use crate::engine::{EngineOptions, SetAttr, SetTime};

    const ROOT: u64 = 1;

    /// The uploader is quicker than whoever writes: it has the new bytes, and the times that somebody chose before.
    #[tokio::test(flavor = "multi_thread")]
    async fn an_upload_that_begins_in_the_middle_of_a_write_keeps_no_old_time() {
        let (store, staging) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
        let new = || {
            let options = EngineOptions::new(staging.path().to_owned());
            Engine::new(store.clone(), options, tokio::runtime::Handle::current()).unwrap()
        };
        let engine = new();
        let mode = OpenMode { write: true, ..OpenMode::default() };
        let opened = engine.create(ROOT, b"a", 0o644, 0, 0, mode).await.unwrap();
        let (ino, handle) = (opened.stat.ino, opened.handle);
        let chosen = Time { secs: 1000, nanos: 0 };
        let set = SetAttr { mtime: Some(SetTime::At(chosen)), handle: Some(handle), ..SetAttr::default() };
        engine.setattr(ino, set).await.unwrap();
        let file = engine.file(handle).unwrap();
        engine.staged(ino, &file.content).unwrap().write(0, b"bytes").unwrap();
        engine.store_file(ino).await.unwrap();
        engine.modified(ino, true);
        engine.flush(handle).await.unwrap();
        let shown = stat_of(&engine.tree(), ino).unwrap().attr.mtime;
        assert_ne!(shown, chosen);
        let stored = new().lookup(ROOT, b"a").await.unwrap().attr.mtime;
        assert_eq!(stored, shown);
    }
}
