//! Bringing a staged file to the disk, for programs that are told it is safe before the bucket has it.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::DirtyFile;
use super::dirty_file::not_recorded;
use crate::{FsError, FsResult};

impl DirtyFile {
    /// Returns when what was written so far is found again also after the machine stopped.
    ///
    /// The order is that of the record: first the bytes, then what says that they are there.
    ///
    /// # Errors
    /// [`FsError::Io`] if the disk fails.
    pub async fn persist(self: &Arc<Self>) -> FsResult<()> {
        let _one = self.persisting.lock().await;
        let is_synced = std::mem::replace(&mut self.state().is_synced, true);
        let staged = async {
            if !is_synced {
                let data = Arc::clone(&self.staged.file);
                on_disk(move || data.sync_data()).await?;
            }
            // Its name, and that of its record.
            self.staged.sync_names().await
        };
        if let Err(source) = staged.await {
            self.state().is_synced = false;
            return Err(self.not_persisted(source));
        }
        let log = {
            let mut state = self.state();
            state.journal.durable().map_err(not_recorded(&state.key))?
        };
        let Some(log) = log else { return Ok(()) };
        on_disk(move || log.sync_data()).await.map_err(|source| {
            self.state().journal.not_durable();
            self.not_persisted(source)
        })
    }

    fn not_persisted(&self, source: io::Error) -> FsError {
        FsError::Io { what: format!("cannot bring {} to the disk", self.state().key), source }
    }
}

/// Does what the disk may take long for.
pub(super) async fn on_disk(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Brings the names in a directory to the disk; who comes while that is under way shares the next time.
#[derive(Debug)]
pub(super) struct Names {
    dir: Arc<File>,
    /// What the directory itself is named in.
    parent: Arc<File>,
    /// How many names were made, and how many of them are on the disk.
    made: AtomicU64,
    synced: tokio::sync::Mutex<u64>,
}

impl Names {
    pub(super) fn new(dir: File, parent: File) -> Self {
        Self {
            dir: Arc::new(dir),
            parent: Arc::new(parent),
            made: AtomicU64::new(0),
            synced: tokio::sync::Mutex::default(),
        }
    }

    /// Names were made; gives what to ask [`Names::sync`] for.
    pub(super) fn made(&self) -> u64 {
        self.made.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Returns when the names up to `number` are on the disk.
    pub(super) async fn sync(&self, number: u64) -> io::Result<()> {
        let mut synced = self.synced.lock().await;
        if *synced >= number {
            return Ok(());
        }
        let until = self.made.load(Ordering::Acquire);
        let parent = (*synced == 0).then(|| Arc::clone(&self.parent));
        let dir = Arc::clone(&self.dir);
        on_disk(move || parent.map_or(Ok(()), |parent| parent.sync_all()).and_then(|()| dir.sync_all())).await?;
        *synced = until;
        Ok(())
    }
}
