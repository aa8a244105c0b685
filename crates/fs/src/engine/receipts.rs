//! Receipts: what is stored and what is not; and the barrier, which returns when everything is.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::SystemTime;

use futures_util::StreamExt;
use sandpail_spec::PathClass;
use sandpail_store::{ETag, Proof};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Engine, FsError, FsResult, Unstored, guard, stale};
use crate::content::Content;
use crate::receipt::{Failure, FileState, Receipt, seconds};
use crate::tree::Node;

/// Files that a barrier stores at the same time.
const STORED_AT_ONCE: usize = 16;
/// Failures that are remembered, over all files.
const FAILURES_MAX: usize = 16;
/// Files that the status names, the oldest first.
const FILES_NAMED_MAX: usize = 100;

/// Stored files that a barrier names.
const STORED_NAMED_MAX: usize = 1000;

/// A file that a barrier stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFile {
    /// Its path below the mount.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// The tag of the version in the bucket.
    pub etag: Option<ETag>,
    /// What else the store said of it.
    pub proof: Proof,
}

/// What a barrier did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Files that were not in the bucket when it began, and are now.
    pub stored: usize,
    /// Those of them that have a name, up to a thousand, by path.
    pub files: Vec<StoredFile>,
    /// Files that could not be stored. Their bytes stay staged.
    pub failed: Vec<Unstored>,
}

/// The last failures, with the paths at that time.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<VecDeque<(String, Failure)>>);

impl Failures {
    fn add(&self, path: String, failure: Failure) {
        let mut all = guard(&self.0);
        // One file that is tried again and again does not drive the others out.
        all.retain(|(other, _)| *other != path);
        all.push_back((path, failure));
        if all.len() > FAILURES_MAX {
            all.pop_front();
        }
    }

    /// The newest first.
    fn to_json(&self) -> Vec<Value> {
        guard(&self.0).iter().rev().map(|(path, failure)| failure.to_json(path)).collect()
    }
}

fn receipt_of(node: &Node) -> Receipt {
    let content = node.content.as_deref();
    let version = node.version.as_ref();
    let dirty_size = content.and_then(Content::dirty).map(|dirty| dirty.size());
    let (since, unstored_bytes) = content.map_or((None, 0), Content::waiting);
    // First whether something is on its way: what fails is changed again before its upload ends.
    let is_uploading = content.is_some_and(Content::is_uploading);
    let has_changes = content.is_some_and(Content::has_changes);
    Receipt {
        state: FileState::of(node.is_linked, has_changes, is_uploading),
        size: dirty_size.or_else(|| version.map(|version| version.size)).unwrap_or(node.attr.size),
        etag: version.and_then(|version| version.etag.clone()),
        proof: node.proof().cloned().unwrap_or_default(),
        unstored_bytes,
        waiting: since.map(|since| since.elapsed()),
        failure: content.and_then(Content::failure),
    }
}

impl Engine {
    /// Where the bytes of a file are.
    ///
    /// # Errors
    /// [`FsError::IsADirectory`]; [`FsError::NotFound`] if it is gone from the bucket.
    pub async fn receipt(&self, ino: u64) -> FsResult<Receipt> {
        if let Some(receipt) = self.receipt_local(ino)? {
            return Ok(receipt);
        }
        self.revalidate(ino).await?;
        let (mut receipt, key) = {
            let tree = self.tree();
            let node = tree.get(ino).ok_or_else(|| stale(ino))?;
            if node.dir.is_some() {
                return Err(FsError::IsADirectory);
            }
            (receipt_of(node), self.file_key(&tree, ino)?)
        };
        // Some providers leave tags out of listings.
        if receipt.state == FileState::Stored && receipt.etag.is_none() {
            receipt.etag = self.head(&key).await?.filter(|info| info.size == receipt.size).map(|info| info.etag);
        }
        // Who has not stored it asks what the bucket says. Without that the receipt is shorter, and as true.
        if receipt.state == FileState::Stored
            && receipt.proof.checksum.is_none()
            && let Some(etag) = &receipt.etag
        {
            match self.store.proof(&key, etag).await {
                Ok(proof) => receipt.proof = proof,
                Err(error) => tracing::debug!(?key, %error, "nothing is known of a version besides its tag"),
            }
        }
        Ok(receipt)
    }

    /// Stores everything that was written so far, also of files that are open, and returns when the bucket has it.
    /// What others are uploading already is waited for.
    pub async fn sync(&self) -> Synced {
        let inos = self.tree().unstored();
        let stores = inos.into_iter().map(|ino| async move { (ino, self.store_file(ino).await) });
        let mut stores = futures_util::stream::iter(stores).buffer_unordered(STORED_AT_ONCE);
        let mut synced = Synced::default();
        while let Some((ino, result)) = stores.next().await {
            match result {
                Ok(()) => {
                    synced.stored += 1;
                    if synced.files.len() < STORED_NAMED_MAX {
                        synced.files.extend(self.stored_file(ino));
                    }
                    self.close_stored(ino);
                }
                Err(error) => {
                    let tree = self.tree();
                    // What was removed meanwhile is nobody's loss.
                    if tree.get(ino).is_some_and(|node| node.is_linked && node.is_local()) {
                        synced.failed.push(Unstored { path: tree.path_of(ino), reason: error.to_string() });
                    }
                }
            }
        }
        synced.failed.sort_by(|left, right| left.path.cmp(&right.path));
        synced.files.sort_by(|left, right| left.path.cmp(&right.path));
        synced
    }

    /// What the bucket has of a file; `None` for one that has no name any more.
    fn stored_file(&self, ino: u64) -> Option<StoredFile> {
        let tree = self.tree();
        let node = tree.get(ino).filter(|node| node.is_linked)?;
        let version = node.version.as_ref()?;
        let proof = node.proof().cloned().unwrap_or_default();
        Some(StoredFile { path: tree.path_of(ino), size: version.size, etag: version.etag.clone(), proof })
    }

    /// Up to `count_max` files that are not stored, without trying to store them; how the last try failed, if there was
    /// one.
    pub fn unstored(&self, count_max: usize) -> Vec<Unstored> {
        let tree = self.tree();
        let failures = guard(&self.failures);
        let reason = |ino: u64| {
            let told = failures.get(&ino).cloned();
            told.unwrap_or_else(|| tree.get(ino).map_or("", |node| receipt_of(node).state.as_str()).to_owned())
        };
        let inos = tree.unstored().into_iter().take(count_max);
        inos.map(|ino| Unstored { path: tree.path_of(ino), reason: reason(ino) }).collect()
    }

    /// Whoever waited for a file to be stored was let go, for this reason. The try goes on.
    pub fn note_unanswered(&self, handle: u64, error: &FsError) {
        let Ok(file) = self.file(handle) else { return };
        if !file.content.has_unstored() {
            return;
        }
        guard(&self.failures).insert(file.ino, error.to_string());
        self.note_failure(file.ino, &file.content, Some(Failure::of(error, SystemTime::now())));
    }

    /// A try to store a file has ended.
    pub(super) fn note_result(&self, ino: u64, content: &Content, result: &FsResult<()>) {
        self.note_failure(ino, content, result.as_ref().err().map(|error| Failure::of(error, SystemTime::now())));
    }

    fn note_failure(&self, ino: u64, content: &Content, failure: Option<Failure>) {
        content.set_failure(failure.clone());
        if let Some(failure) = failure {
            let path = self.tree().path_of(ino);
            self.recent_failures.add(path, failure);
        }
    }

    /// What is not stored, as JSON for people and programs: how much, since when, which files, and what failed last.
    pub(super) fn status_json(&self) -> Value {
        let tree = self.tree();
        let mut waiting: Vec<(Option<Instant>, String, Receipt)> = tree
            .unstored()
            .into_iter()
            .filter_map(|ino| {
                let node = tree.get(ino)?;
                let since = node.content.as_ref().and_then(|content| content.waiting().0);
                Some((since, tree.path_of(ino), receipt_of(node)))
            })
            .collect();
        drop(tree);
        // Who has no time yet has only just been changed.
        waiting.sort_by_key(|(since, ..)| (since.is_none(), *since));
        let count = |state: FileState| {
            let of_it = waiting.iter().filter(|(.., receipt)| receipt.state == state);
            let (files, bytes) = of_it.fold((0u64, 0u64), |(files, bytes), (.., receipt)| {
                (files + 1, bytes.saturating_add(receipt.unstored_bytes))
            });
            json!({ "files": files, "bytes": bytes })
        };
        let named: Vec<Value> = waiting
            .iter()
            .take(FILES_NAMED_MAX)
            .map(|(_, path, receipt)| {
                let mut shown = receipt.to_json();
                shown["path"] = path.as_str().into();
                shown
            })
            .collect();
        let oldest = waiting.first().and_then(|(since, ..)| *since).map(|since| seconds(since.elapsed()));
        json!({
            "dirty": count(FileState::Dirty),
            "uploading": count(FileState::Uploading),
            "oldestSeconds": oldest,
            "filesNotNamed": waiting.len().saturating_sub(named.len()),
            "files": named,
            "lastErrors": self.recent_failures.to_json(),
            "localPaths": self.options.path_classes.globs_of(PathClass::Local).collect::<Vec<_>>(),
        })
    }
}
