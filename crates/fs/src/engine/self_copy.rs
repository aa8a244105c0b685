//! Copies of an object onto itself, which give it other attributes, and on some stores another tag: that of one made of parts
//! becomes, or stays, what nobody could know before. So that a copy that was done and not heard of is not taken for
//! somebody else's change, it is noted what it carries.

use std::time::Duration;

use sandpail_store::{CopySource, ETag, ObjectAttributes, ObjectKey, Proof, PutOutcome, put_tag};

use super::lookup::version_of;
use super::{Engine, FsError, FsResult};
use crate::read::ObjectVersion;
use crate::tree::{Node, Version};
use crate::write::may_be_done;

/// Nobody is answered meanwhile. What is not known then is asked by whoever needs it.
const SETTLE_TIME: Duration = Duration::from_secs(3);

/// A digest of what an object carries that nobody else would have given it: a time of the last change, to the nanosecond. `None`
/// without that. What stores make up themselves, as the type of an object that has none, is not in it.
pub(crate) fn carried(attributes: &ObjectAttributes) -> Option<ETag> {
    let metadata = &attributes.metadata;
    if !metadata.contains_key("ctime") {
        return None;
    }
    let mut text = Vec::new();
    for part in metadata.iter().flat_map(|(name, value)| [name, value]) {
        text.extend((part.len() as u64).to_le_bytes());
        text.extend(part.as_bytes());
    }
    Some(put_tag([&text[..]]))
}

impl Node {
    /// Takes `version`, if that is what a copy that was noted here has made of the object.
    pub(super) fn take_copy(&mut self, version: &Version, attributes: &ObjectAttributes) -> bool {
        let Some(copying) = &self.copying else { return false };
        let is_it = self.version.as_ref().is_some_and(|known| known.size == version.size)
            && carried(attributes).as_ref() == Some(copying);
        if !is_it {
            return false;
        }
        self.copying = None;
        self.version = Some(version.clone());
        self.proof = None;
        true
    }
}

impl Engine {
    /// A file's object is copied onto itself, so that it carries `attributes`.
    ///
    /// # Errors
    /// As [`Engine::copy_object`]; then it may be done all the same.
    pub(super) async fn copy_onto_itself(
        &self,
        ino: u64,
        source: &CopySource,
        size: u64,
        attributes: &ObjectAttributes,
    ) -> FsResult<PutOutcome> {
        if let Some(node) = self.tree().get_mut(ino) {
            node.copying = carried(attributes);
        }
        self.settle();
        let copied = self.copy_object(source, &source.key, size, Some(attributes)).await;
        let is_refused = match &copied {
            Err(FsError::Store { source, .. }) => !may_be_done(source),
            _ => false,
        };
        if is_refused && let Some(node) = self.tree().get_mut(ino) {
            node.copying = None;
        }
        copied
    }

    /// If nobody knows whether such a copy was done: asks, and takes what it has made.
    ///
    /// # Errors
    /// When the store does not say.
    pub(super) async fn settle_copy(&self, ino: u64) -> FsResult<()> {
        let key = {
            let tree = self.tree();
            // Where an upload is unclear, too, the staged file finds out what there is.
            let is_unclear = |node: &Node| {
                let dirty = node.content.as_ref().and_then(|content| content.dirty());
                dirty.is_some_and(|dirty| dirty.is_unclear())
            };
            match tree.get(ino).filter(|node| node.copying.is_some() && node.is_linked && !is_unclear(node)) {
                Some(_) => self.file_key(&tree, ino)?,
                None => return Ok(()),
            }
        };
        let Some(info) = self.head(&key).await? else { return Ok(()) };
        let mut tree = self.tree();
        if self.file_key(&tree, ino).ok().as_ref() != Some(&key) {
            return Ok(());
        }
        let Some(node) = tree.get_mut(ino) else { return Ok(()) };
        let version = version_of(&info);
        if node.take_copy(&version, &info.attributes) {
            tracing::debug!(%key, "a copy of the object onto itself was done");
            if let Some(dirty) = node.content.as_ref().and_then(|content| content.dirty()) {
                dirty.set_base_version(ObjectVersion { key, etag: info.etag, size: info.size });
            }
        } else {
            // It was not done, or somebody else came after it.
            node.copying = None;
        }
        tree.doubt(ino);
        Ok(())
    }

    /// The same before anybody is answered, for what a process that died had begun.
    pub(super) async fn settle_copies(&self) {
        let noted: Vec<u64> = {
            let tree = self.tree();
            tree.all().into_iter().filter(|ino| tree.get(*ino).is_some_and(|node| node.copying.is_some())).collect()
        };
        let settled = futures_util::future::join_all(noted.into_iter().map(|ino| self.settle_copy(ino)));
        match tokio::time::timeout(SETTLE_TIME, settled).await {
            Ok(settled) => {
                for error in settled.into_iter().filter_map(Result::err) {
                    tracing::debug!(%error, "whether an object was copied onto itself is not known yet");
                }
            }
            Err(_) => tracing::debug!("whether objects were copied onto themselves is not known yet"),
        }
    }

    /// What a copy of an object onto itself has made, of which nobody knows whether it was done: if the object is what it should
    /// have made of it.
    pub(super) async fn copied_before(
        &self,
        key: &ObjectKey,
        size: u64,
        wanted: &ObjectAttributes,
    ) -> Option<PutOutcome> {
        let info = self.store.head(key).await.ok()?;
        let wanted = carried(wanted)?;
        let has_all = info.size == size && carried(&info.attributes).as_ref() == Some(&wanted);
        has_all.then(|| PutOutcome {
            etag: info.etag,
            last_modified: Some(info.last_modified),
            proof: Proof::default(),
        })
    }
}
