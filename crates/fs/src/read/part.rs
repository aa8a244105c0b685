//! One ranged GET, under way or done.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use bytes::Bytes;
use futures_util::StreamExt;
use sandpail_store::{ObjectInfo, StoreError, StoreResult};
use tokio::sync::Notify;

use super::{ObjectVersion, Permit, ReadContext};
use crate::cache::{CachedVersion, Claimed};
use crate::{FsError, FsResult, guard};

/// A range of an object whose bytes have come or are coming.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) range: Range<u64>,
    state: Mutex<State>,
    arrived: Notify,
    /// What the store said of the object, if it was asked.
    info: OnceLock<ObjectInfo>,
    task: Mutex<Option<tokio::task::AbortHandle>>,
    _memory: Permit,
}

#[derive(Debug, Default)]
struct State {
    /// In order, from the start of the range.
    chunks: Vec<Bytes>,
    filled: u64,
    failure: Option<Failure>,
}

#[derive(Debug)]
enum Failure {
    Changed,
    /// The cause, for the first who asks; later ones fetch anew.
    Store(Option<StoreError>),
}

impl Part {
    /// Begins to fetch `range` of `version`, for the cache, too.
    pub(super) fn fetch(
        context: &Arc<ReadContext>,
        version: &ObjectVersion,
        cached: Option<&Arc<CachedVersion>>,
        range: Range<u64>,
        memory: Permit,
    ) -> Arc<Self> {
        let part = Arc::new(Self {
            range,
            state: Mutex::default(),
            arrived: Notify::new(),
            info: OnceLock::new(),
            task: Mutex::default(),
            _memory: memory,
        });
        // The task does not keep the part alive: when the last reader lets go of it, the fetch ends.
        let own = Arc::downgrade(&part);
        let (shared, version, range) = (Arc::clone(context), version.clone(), part.range.clone());
        let cached = cached.cloned();
        let task = context.runtime.spawn(async move {
            let result = match &cached {
                Some(cached) => Self::run_cached(&own, &shared, &version, cached, range).await,
                None => Self::run(&own, &shared, &version, None, range).await,
            };
            let Some(part) = own.upgrade() else { return };
            if let Err(error) = result {
                guard(&part.state).failure = Some(match error {
                    StoreError::Precondition { .. } | StoreError::NotFound { .. } => Failure::Changed,
                    other => Failure::Store(Some(other)),
                });
            }
            part.arrived.notify_waiters();
        });
        *guard(&part.task) = Some(task.abort_handle());
        part
    }

    /// Fetches what the cache does not have, unless another mount of this host is at it: then it will be there.
    async fn run_cached(
        own: &Weak<Self>,
        context: &ReadContext,
        version: &ObjectVersion,
        cached: &CachedVersion,
        range: Range<u64>,
    ) -> StoreResult<()> {
        let (mut at, mut was_here) = (range.start, None);
        while at < range.end {
            if let Some(bytes) = cached.get(at..range.end) {
                let told = ask_leave(context, version, cached).await?;
                at += bytes.len() as u64;
                let Some(part) = own.upgrade() else { return Ok(()) };
                if let Some(info) = told {
                    part.info.get_or_init(|| info);
                }
                part.arrive(bytes);
                drop(part);
                // A disk may be slow.
                tokio::task::yield_now().await;
                continue;
            }
            let missing = at..cached.missing_to(&(at..range.end));
            let (missing, _claim) = match cached.claim(missing.clone()).await {
                Claimed::Ours(missing, claim) => (missing, Some(claim)),
                // It may be damaged all the same.
                Claimed::IsHere if was_here != Some(at) => {
                    was_here = Some(at);
                    continue;
                }
                Claimed::IsHere | Claimed::Nobodys => (missing, None),
            };
            Self::run(own, context, version, Some(cached), missing.clone()).await?;
            let Some(part) = own.upgrade() else { return Ok(()) };
            let (from, to) = (missing.start - range.start, missing.end - range.start);
            let chunks = slice(&guard(&part.state).chunks, from..to);
            cached.insert(missing.start, chunks);
            at = missing.end;
        }
        Ok(())
    }

    /// The next bytes are here.
    fn arrive(&self, bytes: Bytes) {
        let mut state = guard(&self.state);
        state.filled += bytes.len() as u64;
        state.chunks.push(bytes);
        drop(state);
        self.arrived.notify_waiters();
    }

    /// Fetches `range`, which comes next.
    async fn run(
        own: &Weak<Self>,
        context: &ReadContext,
        version: &ObjectVersion,
        cached: Option<&CachedVersion>,
        range: Range<u64>,
    ) -> StoreResult<()> {
        let mut download = context.store.get(&version.key, range.clone(), Some(&version.etag)).await?;
        if download.info.etag != version.etag || download.info.size != version.size {
            return Err(StoreError::changed(&version.key));
        }
        if let Some(cached) = cached {
            cached.allow();
        }
        if let Some(part) = own.upgrade() {
            part.info.get_or_init(|| download.info);
        }
        let want = range.end - range.start;
        let mut filled = 0;
        while let Some(chunk) = download.body.next().await {
            let chunk = chunk?;
            filled += chunk.len() as u64;
            if filled > want {
                return Err(StoreError::Integrity { message: format!("more bytes than asked for of {}", version.key) });
            }
            let Some(part) = own.upgrade() else { return Ok(()) };
            part.arrive(chunk);
        }
        if filled != want {
            let message = format!("{filled} bytes instead of {want} of {}", version.key);
            return Err(StoreError::Integrity { message });
        }
        Ok(())
    }

    /// Waits until the bytes of `wanted` (inside the part's range) are here, and hands them out without copying.
    pub(super) async fn read(&self, wanted: Range<u64>, version: &ObjectVersion) -> FsResult<Vec<Bytes>> {
        let until = wanted.end - self.range.start;
        loop {
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            // Registered before the look, so that no arrival is missed.
            arrived.as_mut().enable();
            {
                let mut state = guard(&self.state);
                if state.filled >= until {
                    return Ok(slice(&state.chunks, wanted.start - self.range.start..until));
                }
                match &mut state.failure {
                    Some(Failure::Changed) => return Err(FsError::Changed { what: version.key.to_string() }),
                    Some(Failure::Store(cause)) => {
                        let source = cause.take().unwrap_or_else(|| StoreError::Server {
                            message: "the same read failed a moment ago".to_owned(),
                        });
                        return Err(FsError::Store { what: format!("cannot read {}", version.key), source });
                    }
                    None => {}
                }
            }
            arrived.await;
        }
    }

    /// What the store said of the object, if the store was asked and has answered.
    pub(super) fn info(&self) -> Option<&ObjectInfo> {
        self.info.get()
    }

    /// Whether the fetch failed.
    pub(super) fn has_failed(&self) -> bool {
        guard(&self.state).failure.is_some()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Nobody will read what is still to come.
        if let Some(task) = guard(&self.task).take() {
            task.abort();
        }
    }
}

/// Asks the store whether this mount may have an object that others have put into the cache, if it has not let it have it before: keys
/// that may list an object do not always open it. A byte is asked for, since a HEAD may be answered to who cannot decrypt the
/// object. Returns what the store said, if it was asked.
pub(super) async fn ask_leave(
    context: &ReadContext,
    version: &ObjectVersion,
    cached: &CachedVersion,
) -> StoreResult<Option<ObjectInfo>> {
    if cached.is_allowed() {
        return Ok(None);
    }
    let download = context.store.get(&version.key, 0..1, Some(&version.etag)).await?;
    if download.info.etag != version.etag || download.info.size != version.size {
        return Err(StoreError::changed(&version.key));
    }
    cached.allow();
    Ok(Some(download.info))
}

/// The bytes of `range` (relative to the first chunk's start) as a chain.
pub(crate) fn slice(chunks: &[Bytes], range: Range<u64>) -> Vec<Bytes> {
    let mut found = Vec::new();
    let mut start = 0u64;
    for chunk in chunks {
        let end = start + chunk.len() as u64;
        let (from, to) = (range.start.max(start), range.end.min(end));
        if from < to {
            let at = |offset: u64| usize::try_from(offset - start).unwrap_or(chunk.len());
            found.push(chunk.slice(at(from)..at(to)));
        }
        if end >= range.end {
            break;
        }
        start = end;
    }
    found
}
