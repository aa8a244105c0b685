//! What programs were told is safe and the bucket has not: put back when the bucket is mounted again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use crate::engine::Engine;
use crate::recover::{Damage, KeptFile, KeptFiles, PutBack};
use crate::write::Origin;
use crate::{FsError, FsResult};

/// Objects that are put back at the same time.
const OBJECTS_AT_ONCE: usize = 8;
const RETRY_PAUSE_MIN: Duration = Duration::from_secs(5);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(300);

/// What a replay did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Replayed {
    /// Files that are in the bucket now.
    stored: usize,
    /// Files that are still kept.
    left: usize,
}

impl Engine {
    /// Puts back what mounts of this bucket with write-back left when they were killed or the machine stopped: files that were
    /// closed, with success, before the bucket had them. Waits for `patience` at most; what is left then, or cannot be
    /// stored, is tried again as long as the engine lives. What was not closed is left to `sandpail recover`.
    ///
    /// # Errors
    /// [`FsError::Io`] if the staging directory cannot be used.
    pub async fn replay(self: &Arc<Self>, patience: Duration) -> FsResult<()> {
        if self.options().read_only {
            return Ok(());
        }
        let Some(kept) = KeptFiles::open(&self.options().staging_dir)? else { return Ok(()) };
        if wanted(&kept, &self.options().origin)?.is_empty() {
            return Ok(());
        }
        let (tell, told) = tokio::sync::oneshot::channel::<()>();
        let weak = Arc::downgrade(self);
        self.runtime().spawn(async move {
            let mut tell = Some(tell);
            let mut pause = RETRY_PAUSE_MIN;
            loop {
                let Some(engine) = weak.upgrade() else { return };
                match pass(&engine, &kept).await {
                    Ok(Replayed { stored, left: 0 }) => {
                        tracing::info!(stored, "what an earlier mount was told to keep is stored");
                        return;
                    }
                    Ok(Replayed { stored, left }) => tracing::warn!(stored, left, "some kept files are not stored yet"),
                    Err(error) => tracing::warn!(%error, "kept files cannot be looked at"),
                }
                // Nobody may wait any more.
                tell.take();
                drop(engine);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_PAUSE_MAX);
            }
        });
        // The other side is dropped when the first pass ends; or the time is up.
        let _over = tokio::time::timeout(patience, told).await;
        Ok(())
    }
}

/// Kept files of this bucket that somebody was told are safe, by key: the oldest of one key first.
fn wanted(kept: &KeptFiles, origin: &Origin) -> FsResult<BTreeMap<String, Vec<KeptFile>>> {
    let mut wanted: BTreeMap<String, Vec<KeptFile>> = BTreeMap::new();
    for file in kept.list()? {
        let Ok(recorded) = &file.record else { continue };
        let is_here = recorded.origin.is_same_bucket(origin) && recorded.key.as_str().starts_with(&origin.prefix);
        if is_here && recorded.is_durable() {
            wanted.entry(recorded.key.to_string()).or_default().push(file);
        }
    }
    Ok(wanted)
}

async fn pass(engine: &Engine, kept: &KeptFiles) -> FsResult<Replayed> {
    let objects = wanted(kept, &engine.options().origin)?;
    let replays = objects.into_values().map(|files| async move {
        let mut replayed = Replayed::default();
        for file in files {
            match kept.upload(&file, Arc::clone(engine.store()), Damage::Refuse).await {
                Ok(put_back) => {
                    replayed.stored += 1;
                    tell(&put_back);
                }
                // Another mount does it.
                Err(FsError::Busy { .. }) => {}
                // It stays kept, and trying again does not help.
                Err(error @ FsError::Damaged { .. }) => {
                    tracing::error!(id = file.id, %error, "a kept file is not stored; see: sandpail recover list");
                }
                Err(error) => {
                    replayed.left += 1;
                    tracing::warn!(id = file.id, %error, "a kept file cannot be stored");
                }
            }
        }
        replayed
    });
    let all = futures_util::stream::iter(replays).buffer_unordered(OBJECTS_AT_ONCE);
    let sum = |sum: Replayed, one: Replayed| async move {
        Replayed { stored: sum.stored + one.stored, left: sum.left + one.left }
    };
    Ok(all.fold(Replayed::default(), sum).await)
}

fn tell(put_back: &PutBack) {
    match put_back {
        PutBack::Stored { key } => tracing::info!(?key, "stored: it was closed before its mount ended"),
        PutBack::WasRemoved { key } => tracing::debug!(?key, "was removed already"),
        PutBack::WasStored { key } => tracing::debug!(?key, "was stored already"),
        PutBack::Beside { key } => {
            tracing::warn!(kept = ?key, "the object was changed since; both versions are kept");
        }
    }
}
