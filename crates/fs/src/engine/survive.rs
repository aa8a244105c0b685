//! Taking a mount up when the process behind it was killed.
//!
//! The kernel keeps asking as long as somebody holds the mount's device. The process that answers next must know what the
//! last one had told: that is in the [ledger](crate::ledger), and what was written is in the staging directory with its
//! records. What the last one had not answered is asked again, with the same number: what it had begun is not refused for
//! having been done.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sandpail_store::Store;

use tokio::time::Instant;

use super::{DirHandle, Engine, EngineOptions, FileHandle, OpenMode, Opened, failed_io, guard, stat_of};
use crate::FsResult;
use crate::attr::{Attr, Time};
use crate::ledger::{Extent, HandleNote, Known, Ledger};
use crate::tree::{Name, Version};
use crate::write::{Adopted, DirtyFile, StagingArea};

/// See [`Engine::wait_until_quiet`].
const QUIET_TIME: Duration = Duration::from_millis(400);
/// What the process before had not answered has been asked for again by then, and answered.
const ASKED_AGAIN_WITHIN: Duration = Duration::from_secs(5);

tokio::task_local! {
    /// The kernel's number of the request that is being answered.
    static REQUEST: u64;
}

/// Lets `work` be known as the answer to a request of the kernel, by its number: what it opens and begins to change is noted
/// under that.
pub async fn as_request<F: Future>(number: u64, work: F) -> F::Output {
    REQUEST.scope(number, work).await
}

fn current_request() -> Option<u64> {
    REQUEST.try_with(|number| *number).ok()
}

/// What a mount's keeper holds for the process that takes the mount up.
#[derive(Debug)]
pub struct Left {
    /// What the kernel was told.
    pub ledger: OwnedFd,
    /// Keeps what is staged from being taken for a dead mount's.
    pub staging: OwnedFd,
}

/// A file that the process before had open, and that is open still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenBefore {
    /// The handle.
    pub handle: u64,
    /// Inode number.
    pub ino: u64,
    /// The local file that the kernel reads instead, by the kernel's number.
    pub backing: Option<u32>,
}

/// What is remembered of the process before.
#[derive(Debug, Default)]
pub(super) struct Restored {
    /// Files of the bucket that were open.
    files: Vec<OpenBefore>,
    /// Requests that had begun to change names.
    begun: HashSet<u64>,
    /// Handles that were given, by their requests.
    opened: HashMap<u64, u64>,
    /// Changes of the bucket that were under way.
    unheard: HashSet<u64>,
}

impl Engine {
    /// What a keeper must hold so that another process can take the mount up; `None` if it cannot be.
    ///
    /// # Errors
    /// Without descriptors to be had.
    pub fn share(&self) -> io::Result<Option<Left>> {
        let Some(ledger) = &self.ledger else { return Ok(None) };
        Ok(Some(Left { ledger: ledger.share()?, staging: self.writing.share_staging()? }))
    }

    /// An engine that goes on where one that was killed has stopped, with the same options. The caller keeps the device.
    ///
    /// # Errors
    /// [`crate::FsError::Io`] if what is left cannot be read: then the mount is lost, and what is staged is kept by the next.
    pub fn take_up(
        store: Arc<dyn Store>,
        options: EngineOptions,
        runtime: tokio::runtime::Handle,
        left: Left,
    ) -> FsResult<Arc<Self>> {
        let failed = || failed_io("cannot take up the mount");
        let file = File::from(left.ledger);
        let known = Known::read(&file).map_err(failed())?;
        let ledger = Ledger::resume(file, &known).map_err(failed())?;
        let staging = StagingArea::adopt(&options.staging_dir, left.staging, options.staging_limit)?;
        let mut engine = Self::on(store, options, runtime, staging, Some(ledger))?;
        let spent = match engine.restore(known) {
            Ok(spent) => spent,
            Err(error) => {
                // The next try needs what is staged.
                engine.writing.leave();
                return Err(error);
            }
        };
        let engine = Arc::new(engine);
        engine.settle();
        // Only now: what they alone knew stands in the ledger.
        spent.into_iter().for_each(Adopted::remove);
        Ok(engine)
    }

    /// Writes to the ledger what a request has changed. Comes before its answer.
    pub fn settle(&self) {
        let Some(ledger) = &self.ledger else { return };
        let mut tree = self.tree();
        if tree.has_news() || ledger.has_pending() {
            ledger.settle(|log, extent| match extent {
                Extent::News => tree.write_news(log),
                Extent::All => tree.write_all_notes(log),
            });
        }
    }

    /// Whether the process before had begun to change names for this request.
    pub fn was_begun(&self, request: u64) -> bool {
        self.restored.begun.contains(&request)
    }

    /// The file, or directory, that the process before had opened for this request.
    pub fn opened_before(&self, request: u64) -> Option<Opened> {
        let handle = *self.restored.opened.get(&request)?;
        let file = guard(&self.files).get(&handle).map(|file| file.ino);
        let ino = file.or_else(|| guard(&self.dirs).get(&handle).map(|dir| dir.ino))?;
        let stat = stat_of(&self.tree(), ino).ok()?;
        Some(Opened { handle, stat, keep_cache: false, direct_io: false })
    }

    pub(super) fn note_opened(&self, handle: u64, ino: u64, mode: Option<OpenMode>) {
        // What is opened for a short while by the engine itself is nobody else's.
        if let (Some(ledger), Some(request)) = (&self.ledger, current_request()) {
            ledger.opened(handle, ino, mode, request);
        }
    }

    /// The kernel shall read an open file by itself, from a local file that it knows by this number; it goes on with that
    /// when this process is killed.
    pub fn note_passed(&self, handle: u64, backing: u32) {
        if let Some(ledger) = &self.ledger {
            ledger.passed(handle, backing);
        }
    }

    /// The files of the bucket that the process before had open.
    pub fn open_before(&self) -> &[OpenBefore] {
        &self.restored.files
    }

    pub(super) fn note_closed(&self, handle: u64) {
        if let Some(ledger) = &self.ledger {
            ledger.closed(handle);
        }
    }

    pub(super) fn note_position(&self, handle: u64, position: u64, before: &Name) {
        if let Some(ledger) = &self.ledger {
            ledger.asked_from(handle, position, before.clone());
        }
    }

    /// What the current request asks for is about to be done. Gives a number for [`Engine::note_ended`].
    pub(super) fn note_begun(&self) -> u64 {
        self.note_begun_as(current_request())
    }

    /// The same for what is done on the way, or by nobody's request: it says nothing of the request itself.
    pub(super) fn note_begun_aside(&self) -> u64 {
        self.note_begun_as(None)
    }

    fn note_begun_as(&self, request: Option<u64>) -> u64 {
        let Some(ledger) = &self.ledger else { return 0 };
        // Requests of the kernel have even numbers.
        let number = request.unwrap_or_else(|| self.next_handle.fetch_add(1, Ordering::Relaxed) << 1 | 1);
        ledger.begun(number);
        number
    }

    pub(super) fn note_ended(&self, number: u64) {
        if let Some(ledger) = &self.ledger {
            ledger.ended(number);
        }
    }

    /// Comes before anybody is answered. What the process before had sent to the store, and not heard of, may be done only
    /// now: this waits longer than requests take, and until `answered`, which knows more. Returns at once if there was no such
    /// thing.
    pub async fn wait_until_quiet(&self, answered: impl Future<Output = ()>) {
        if self.restored.unheard.is_empty() {
            // One that failed may have left some that were not settled yet.
            return self.settle_copies().await;
        }
        futures_util::future::join(tokio::time::sleep(QUIET_TIME), answered).await;
        self.settle_copies().await;
        self.restored.unheard.iter().for_each(|number| self.note_ended(*number));
        self.settle();
    }

    /// Gives the staged files that are not needed any more.
    fn restore(&mut self, known: Known) -> FsResult<Vec<Adopted>> {
        let Known { nodes, mut attributes, handles, begun, under_way, moving, next_handle } = known;
        self.next_handle.store(next_handle.max(1), Ordering::Relaxed);
        self.restored.begun = begun;
        self.restored.unheard = under_way;
        let pending: Vec<u64> = nodes.values().filter(|node| node.is_pending).map(|node| node.ino).collect();
        {
            let mut tree = self.tree();
            for (ino, note) in nodes {
                tree.restore(note, attributes.remove(&ino));
            }
            tree.relink_restored();
            if !self.restored.unheard.is_empty() {
                // A change of attributes may have been done, which no listing tells within the same second.
                tree.all().into_iter().for_each(|ino| tree.doubt(ino));
            }
        }
        self.finish_moves(moving);
        for (handle, note) in handles {
            self.restore_handle(handle, note);
        }
        self.clean_parked()?;
        let mut spent = Vec::new();
        for file in self.writing.adopted()? {
            spent.extend(self.restore_staged(file)?);
        }
        for ino in pending {
            if let Some(content) = self.content_of(ino) {
                content.attributes_wait();
            }
        }
        let mut tree = self.tree();
        let all = tree.all();
        let closed: Vec<u64> = all
            .iter()
            .copied()
            .filter(|ino| tree.get(*ino).is_some_and(|node| node.is_linked && node.is_local() && node.opens == 0))
            .collect();
        // A node may be gone with one that came before it.
        all.into_iter().for_each(|ino| tree.drop_unused(ino));
        drop(tree);
        for ino in closed {
            self.store_later(ino);
        }
        Ok(spent)
    }

    fn restore_handle(&mut self, handle: u64, note: HandleNote) {
        let HandleNote { ino, mode, request, position, backing } = note;
        let mut tree = self.tree();
        let Some(node) = tree.get_mut(ino) else {
            if ino != crate::tree::ROOT {
                return tracing::debug!(ino, "a handle without its node");
            }
            return;
        };
        match mode {
            Some(mode) if node.off_bucket => {
                node.opens += 1;
                drop(tree);
                match self.reopen_local(ino, mode) {
                    Ok(file) => drop(guard(&self.files).insert(handle, Arc::new(file))),
                    Err(error) => tracing::error!(ino, %error, "an open local file is lost"),
                }
                self.restored.opened.insert(request, handle);
                return;
            }
            Some(mode) => {
                node.opens += 1;
                let content = Arc::clone(node.content.get_or_insert_default());
                if !node.is_linked {
                    content.mark_unlinked();
                }
                let OpenMode { read, write, append, .. } = mode;
                let file = FileHandle { ino, content, can_read: read, can_write: write, append, local: None };
                guard(&self.files).insert(handle, Arc::new(file));
                drop(tree);
                self.restored.files.push(OpenBefore { handle, ino, backing });
            }
            None => {
                let dir = DirHandle { ino, snapshot: Default::default(), resumed: position };
                drop(tree);
                guard(&self.dirs).insert(handle, Arc::new(dir));
            }
        }
        self.restored.opened.insert(request, handle);
    }

    /// Goes on with a staged file, or gives it back: the bucket has it, or nobody wants it.
    fn restore_staged(&self, file: Adopted) -> FsResult<Option<Adopted>> {
        let ino = file.node;
        let found = self.tree().get(ino).map(|node| (node.is_linked, node.opens > 0));
        let Some((is_linked, is_open)) = found else {
            // Its making was never answered.
            return Ok(Some(file));
        };
        // One without a base may be the only copy: of an object whose removal had begun.
        if file.is_stored() && (!is_open || is_linked && file.recorded.base.is_some()) {
            // The bucket has it. The ledger may know neither the last version nor what it left to the record.
            let mut tree = self.tree();
            if let (Some(node), Some(etag)) = (tree.get_mut(ino), file.recorded.replaces.clone()) {
                fill_times(&mut node.attr, file.modified.into());
                if node.version.as_ref().is_none_or(|version| version.etag.as_ref() != Some(&etag)) {
                    if !file.recorded.times_set {
                        node.attr.mtime = file.modified.into();
                    }
                    node.version =
                        Some(Version { etag: Some(etag), size: file.recorded.size, modified: file.modified });
                }
                node.attr.size = file.recorded.size;
            }
            return Ok(Some(file));
        }
        if !is_linked && !is_open {
            return Ok(Some(file));
        }
        let (modified, times_set, may_be_stored) = (file.modified, file.recorded.times_set, file.may_be_stored());
        let (is_stored, is_removing, recorded_key) =
            (file.is_stored(), file.recorded.is_removing, file.recorded.key.clone());
        // Of one that is stored the tree knows the version that was copied.
        let copying = if is_stored { None } else { self.tree().get(ino).and_then(|node| node.copying.clone()) };
        let dirty = DirtyFile::adopt(Arc::clone(&self.writing), file, copying)?;
        let mut tree = self.tree();
        if is_linked
            && let key = self.file_key(&tree, ino)?
            && key != recorded_key
        {
            // Of a move that was not answered the record may tell, and the ledger not yet. Then it is not done.
            dirty.retarget(key);
        }
        let Some(node) = tree.get_mut(ino) else { return Ok(None) };
        let content = Arc::clone(node.content.get_or_insert_default());
        if is_stored {
            fill_times(&mut node.attr, modified.into());
        } else {
            node.attr.ctime = modified.into();
            if !times_set {
                node.attr.mtime = modified.into();
            }
        }
        drop(tree);
        content.set_times_were_set(times_set);
        if !is_linked {
            content.mark_unlinked();
        }
        if may_be_stored {
            content.set_may_be_stored();
        }
        // Never fails, and there is none yet but by a second record of the same file.
        content.dirty_or(|| Ok::<_, crate::FsError>(dirty))?;
        if is_removing {
            self.note_removal_failed(ino);
        }
        Ok(None)
    }

    /// A file is closed and not stored: it goes up as soon as may be.
    fn store_later(&self, ino: u64) {
        if self.options.write_back.is_some() {
            // A rename over it may have been done, and not be known here until it is asked for again: then it is not wanted.
            let not_before =
                (!self.restored.unheard.is_empty()).then(|| Instant::now() + QUIET_TIME + ASKED_AGAIN_WITHIN);
            self.waiting.add_again(ino, not_before);
        } else {
            guard(&self.failures).insert(ino, "the mount's process was killed before it was stored".to_owned());
        }
    }
}

/// The ledger leaves the times of what is dirty to the staged file; if it was stored since, they are still missing.
fn fill_times(attr: &mut Attr, modified: Time) {
    if attr.ctime == Time::default() {
        attr.ctime = modified;
        if attr.mtime == Time::default() {
            attr.mtime = modified;
        }
    }
}
