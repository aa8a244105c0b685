//! Copies of an object onto itself, which give it other attributes, and on some stores another tag: that of one made of parts
//! becomes, or stays, what nobody could know before. So that a copy that was done and not heard of is not taken for
//! somebody else's change, it is noted what it carries.

use sandpail_store::{ETag, ObjectAttributes, ObjectKey, Proof, PutOutcome, put_tag};

use super::lookup::version_of;
use super::{Engine, FsResult};
use crate::read::ObjectVersion;
use crate::tree::{Node, Version};

/// A digest of what an object carries that nobody else would have given it, such as times to the nanosecond.
pub(crate) fn carried(attributes: &ObjectAttributes) -> ETag {
    let mut text = Vec::new();
    let pairs = attributes.metadata.iter().flat_map(|(name, value)| [name, value]);
    for part in pairs.chain(&attributes.content_type) {
        text.extend((part.len() as u64).to_le_bytes());
        text.extend(part.as_bytes());
    }
    put_tag([&text[..]])
}

impl Node {
    /// Takes `version`, if that is what a copy that was noted here has made of the object.
    pub(super) fn take_copy(&mut self, version: &Version, attributes: &ObjectAttributes) -> bool {
        let Some(copying) = &self.copying else { return false };
        let is_it =
            self.version.as_ref().is_some_and(|known| known.size == version.size) && *copying == carried(attributes);
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
    /// A file's object is about to be copied onto itself.
    pub(super) fn begin_copy(&self, ino: u64, attributes: &ObjectAttributes) {
        if let Some(node) = self.tree().get_mut(ino) {
            node.copying = Some(carried(attributes));
        }
        self.settle();
    }

    /// If nobody knows whether such a copy was done: asks, and takes what it has made.
    ///
    /// # Errors
    /// When the store does not say.
    pub(super) async fn settle_copy(&self, ino: u64) -> FsResult<()> {
        let key = {
            let tree = self.tree();
            match tree.get(ino).filter(|node| node.copying.is_some() && node.is_linked) {
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

    /// The same before anybody is answered, for what a process that died had begun. What the store does not say is asked again by
    /// whoever needs it.
    pub(super) async fn settle_copies(&self) {
        let noted: Vec<u64> = {
            let tree = self.tree();
            tree.all().into_iter().filter(|ino| tree.get(*ino).is_some_and(|node| node.copying.is_some())).collect()
        };
        for ino in noted {
            if let Err(error) = self.settle_copy(ino).await {
                tracing::debug!(ino, %error, "whether an object was copied onto itself is not known yet");
            }
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
        let has_all = info.size == size && carried(&info.attributes) == carried(wanted);
        has_all.then(|| PutOutcome {
            etag: info.etag,
            last_modified: Some(info.last_modified),
            proof: Proof::default(),
        })
    }
}
