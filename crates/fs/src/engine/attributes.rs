//! Attributes: stat, chmod and its kin, extended attributes.

use std::sync::Arc;

use super::file::clear_set_id;
use super::{Engine, Stat, stale, stat_of, status};
use crate::attr::{Kind, Time, set_xattrs, xattrs};
use crate::content::AttributeChange;
use crate::receipt::STATE_ATTRIBUTE;
use crate::tree::{Node, ROOT};
use crate::{FsError, FsResult};

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The present.
    Now,
    /// This one.
    At(Time),
}

impl SetTime {
    fn time(self) -> Time {
        match self {
            Self::Now => Time::now(),
            Self::At(time) => time,
        }
    }
}

/// What `setattr` shall change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits.
    pub perm: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the contents.
    pub mtime: Option<SetTime>,
    /// The open file that this goes through.
    pub handle: Option<u64>,
    /// Take away the set-id bits, as for a change by someone unprivileged.
    pub kill_set_id: bool,
}

const XATTR_CREATE: i32 = 1;
const XATTR_REPLACE: i32 = 2;

impl Engine {
    /// What `stat` shows of a node.
    ///
    /// # Errors
    /// [`FsError::NotFound`] if it is gone from the bucket.
    pub async fn getattr(&self, ino: u64) -> FsResult<Stat> {
        if status::is_status(ino) {
            return Ok(self.status_stat(ino));
        }
        if let Some(stat) = self.local_stat(ino)? {
            return Ok(stat);
        }
        self.revalidate(ino).await?;
        stat_of(&self.tree(), ino)
    }

    /// Changes attributes; stored at once, or with the data of a file that is being written.
    ///
    /// # Errors
    /// [`FsError::ReadOnly`], [`FsError::NoSpace`], [`FsError::Store`].
    pub async fn setattr(&self, ino: u64, set: SetAttr) -> FsResult<Stat> {
        self.check_may_change(ino)?;
        if let Some(stat) = self.setattr_local(ino, &set)? {
            return Ok(stat);
        }
        if let Some(size) = set.size {
            if self.tree().dir(ino).is_some() {
                return Err(FsError::IsADirectory);
            }
            self.set_size(ino, set.handle, size, set.kill_set_id).await?;
        }
        let changes_more = set.perm.is_some()
            || set.uid.is_some()
            || set.gid.is_some()
            || set.atime.is_some()
            || set.mtime.is_some()
            || (set.kill_set_id && set.size.is_none());
        if changes_more {
            self.revalidate(ino).await?;
            self.describe_first(ino).await?;
            self.change(ino, set).await?;
        }
        stat_of(&self.tree(), ino)
    }

    async fn change(&self, ino: u64, set: SetAttr) -> FsResult<()> {
        let (before, after, times_were_set, change) = {
            let mut tree = self.tree();
            let node = tree.get_mut(ino).ok_or_else(|| stale(ino))?;
            let before = node.attr.clone();
            let times_were_set = node.content.as_ref().is_some_and(|content| content.times_were_set());
            let attr = &mut node.attr;
            if let Some(perm) = set.perm {
                attr.perm = perm & 0o7777;
            }
            if set.kill_set_id && attr.kind == Kind::File {
                clear_set_id(&mut attr.perm);
            }
            attr.uid = set.uid.unwrap_or(attr.uid);
            attr.gid = set.gid.unwrap_or(attr.gid);
            attr.atime = set.atime.map_or(attr.atime, SetTime::time);
            attr.mtime = set.mtime.map_or(attr.mtime, SetTime::time);
            attr.ctime = Time::now();
            let after = attr.clone();
            if set.mtime.is_some() && node.dir.is_none() {
                node.content.get_or_insert_default().set_times_were_set(true);
            }
            (before, after, times_were_set, self.attributes_changed(node))
        };
        let result = self.store_changed_attributes(ino, set.handle, change).await;
        if result.is_err() {
            let mut tree = self.tree();
            if let Some(node) = tree.get_mut(ino) {
                // Others may have changed something else meanwhile.
                node.attr.take_back(&after, &before);
                if let Some(content) = &node.content
                    && set.mtime.is_some()
                    && node.attr.mtime == before.mtime
                {
                    content.set_times_were_set(times_were_set);
                }
            }
            tree.doubt(ino);
        }
        result
    }

    /// A node's attributes wait to be stored, if they are. In the moment in which they are changed: an upload that ends just
    /// then would put back what it has stored.
    fn attributes_changed(&self, node: &mut Node) -> Option<AttributeChange> {
        if node.dir.is_some() || !node.is_linked || !self.has_posix_metadata() {
            return None;
        }
        Some(node.content.get_or_insert_default().attributes_changed())
    }

    /// Brings a node's attributes to the bucket: with the data where data is still to come, else at once.
    async fn store_changed_attributes(
        &self,
        ino: u64,
        handle: Option<u64>,
        change: Option<AttributeChange>,
    ) -> FsResult<()> {
        if !self.has_posix_metadata() {
            return Ok(());
        }
        let (is_linked, is_directory, content) = {
            let tree = self.tree();
            let node = tree.get(ino).ok_or_else(|| stale(ino))?;
            (node.is_linked, node.dir.is_some(), node.content.clone())
        };
        if is_linked && is_directory {
            return self.store_directory(ino).await;
        }
        let (Some(content), Some(change), true) = (content, change, is_linked) else { return Ok(()) };
        if let Some(dirty) = content.dirty().filter(|dirty| dirty.is_dirty()) {
            // Goes up with the data.
            let described = self.describe(ino, &dirty);
            if described.is_err() {
                content.attributes_restored(change);
            }
            return described;
        }
        // A writer that holds the file open will flush it; one copy then serves several changes.
        let is_deferred = handle.is_some_and(|handle| self.is_writer(handle));
        if is_deferred {
            return Ok(());
        }
        let result = self.store_file(ino).await;
        if result.is_err() {
            content.attributes_restored(change);
        }
        // As in `close_stored`.
        self.settle();
        let mut tree = self.tree();
        if let Some(node) = tree.get_mut(ino)
            && node.opens == 0
            && node.content.as_ref().is_some_and(|content| !content.has_unstored())
        {
            node.content.as_ref().inspect(|content| content.drop_dirty());
        }
        result
    }

    async fn store_directory(&self, ino: u64) -> FsResult<()> {
        use sandpail_store::{Condition, PutBody};
        let (key, attributes, parent, name) = {
            let tree = self.tree();
            let prefix = self.dir_prefix(&tree, ino);
            if ino == ROOT && prefix.is_empty() {
                // A bucket's root has no object; its attributes last as long as the mount.
                return Ok(());
            }
            let node = tree.get(ino).ok_or_else(|| stale(ino))?;
            (super::object_key(prefix)?, self.attributes_of(node), node.parent, Arc::clone(&node.name))
        };
        let _shared = self.structure.read().await;
        // Whoever asks meanwhile may hear of the attributes before.
        let change = self.begin(parent, &name);
        let put = self.store.put(&key, PutBody::empty(), &attributes, &Condition::Always).await;
        let outcome = put.map_err(super::failed(|| format!("cannot change directory {key}")))?;
        let until = self.believed_until();
        let mut tree = self.tree();
        if let Some(node) = tree.get_mut(ino) {
            node.set_stored(&outcome, 0);
            node.attributes = Arc::new(attributes);
            node.fresh_until = until;
            if let Some(dir) = &mut node.dir {
                dir.has_marker = Some(true);
            }
        }
        change.done(&mut tree);
        Ok(())
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// [`FsError::NoAttribute`]; [`FsError::Unsupported`] outside of `user.`.
    pub async fn getxattr(&self, ino: u64, name: &str) -> FsResult<Vec<u8>> {
        check_xattr_name(name, false)?;
        if status::is_status(ino) {
            return Err(FsError::NoAttribute);
        }
        if name == STATE_ATTRIBUTE {
            return match self.receipt(ino).await {
                Ok(receipt) => Ok(receipt.to_json().to_string().into_bytes()),
                Err(FsError::IsADirectory) => Err(FsError::NoAttribute),
                Err(error) => Err(error),
            };
        }
        if let Some(value) = self.with_local(ino, |local, at| local.xattr(at, name))? {
            return Ok(value);
        }
        self.look_for_xattrs(ino).await?;
        let tree = self.tree();
        let node = tree.get(ino).ok_or_else(|| stale(ino))?;
        xattrs(&node.attributes).remove(name).ok_or(FsError::NoAttribute)
    }

    /// The names of all extended attributes, each followed by a NUL byte.
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub async fn listxattr(&self, ino: u64) -> FsResult<Vec<u8>> {
        if status::is_status(ino) {
            return Ok(Vec::new());
        }
        if let Some(names) = self.with_local(ino, |local, at| local.xattr_names(at))? {
            let names = names.into_iter().filter(|name| name != STATE_ATTRIBUTE);
            return Ok(names.flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect());
        }
        self.look_for_xattrs(ino).await?;
        let tree = self.tree();
        let node = tree.get(ino).ok_or_else(|| stale(ino))?;
        // What some client has stored under our own name would be carried along by copies.
        let names = xattrs(&node.attributes).into_keys().filter(|name| name != STATE_ATTRIBUTE);
        Ok(names.flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect())
    }

    /// Sets an extended attribute; `flags` as for `setxattr(2)`.
    ///
    /// # Errors
    /// [`FsError::NoSpace`] over S3's 2 KB; [`FsError::Exists`] or [`FsError::NoAttribute`] as the flags ask.
    pub async fn setxattr(&self, ino: u64, name: &str, value: &[u8], flags: i32) -> FsResult<()> {
        check_xattr_name(name, true)?;
        if self.is_off_bucket(ino) {
            self.check_may_change(ino)?;
            self.note_ended(self.note_begun());
            return self.with_local(ino, |local, at| local.set_xattr(at, name, value, flags)).map(drop);
        }
        self.change_xattr(ino, |all| {
            match (flags, all.contains_key(name)) {
                (XATTR_CREATE, true) => return Err(FsError::Exists { what: name.to_owned() }),
                (XATTR_REPLACE, false) => return Err(FsError::NoAttribute),
                _ => {}
            }
            all.insert(name.to_owned(), value.to_vec());
            Ok(())
        })
        .await
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// [`FsError::NoAttribute`].
    pub async fn removexattr(&self, ino: u64, name: &str) -> FsResult<()> {
        check_xattr_name(name, true)?;
        if self.is_off_bucket(ino) {
            self.check_may_change(ino)?;
            self.note_ended(self.note_begun());
            return self.with_local(ino, |local, at| local.remove_xattr(at, name)).map(drop);
        }
        self.change_xattr(ino, |all| all.remove(name).map(drop).ok_or(FsError::NoAttribute)).await
    }

    async fn change_xattr(
        &self,
        ino: u64,
        change: impl FnOnce(&mut std::collections::BTreeMap<String, Vec<u8>>) -> FsResult<()>,
    ) -> FsResult<()> {
        self.check_may_change(ino)?;
        if !self.has_posix_metadata() {
            return Err(FsError::Unsupported {
                what: "extended attributes are not kept with --metadata none".to_owned(),
            });
        }
        self.look_for_xattrs(ino).await?;
        let (before, after, pending) = {
            let mut tree = self.tree();
            let node = tree.get_mut(ino).ok_or_else(|| stale(ino))?;
            let before = Arc::clone(&node.attributes);
            let mut all = xattrs(&before);
            change(&mut all)?;
            let mut attributes = (*before).clone();
            set_xattrs(&mut attributes, &all)?;
            // From here on the request is done, if it is sent again.
            let number = self.note_begun();
            self.note_ended(number);
            let after = Arc::new(attributes);
            node.attributes = Arc::clone(&after);
            node.attr.ctime = Time::now();
            (before, after, self.attributes_changed(node))
        };
        let result = self.store_changed_attributes(ino, None, pending).await;
        if result.is_err() {
            let mut tree = self.tree();
            // Others may have changed something else meanwhile.
            match tree.get_mut(ino) {
                Some(node) if Arc::ptr_eq(&node.attributes, &after) => node.attributes = before,
                _ => tree.doubt(ino),
            }
        }
        result
    }

    async fn look_for_xattrs(&self, ino: u64) -> FsResult<()> {
        self.revalidate(ino).await?;
        if self.has_posix_metadata() { self.describe_first(ino).await } else { Ok(()) }
    }

    fn is_writer(&self, handle: u64) -> bool {
        super::guard(&self.files).get(&handle).is_some_and(|file| file.can_write)
    }
}

fn check_xattr_name(name: &str, to_change: bool) -> FsResult<()> {
    if to_change && name == STATE_ATTRIBUTE {
        return Err(FsError::NotPermitted {
            what: format!("{name} says where the file's bytes are; it cannot be set"),
        });
    }
    if name.strip_prefix("user.").is_some_and(|rest| !rest.is_empty()) {
        return Ok(());
    }
    let what = format!("attribute {name:?}: only user.* can be kept");
    // Programs ask for security.* and system.* all the time and go on without.
    Err(if to_change { FsError::Unsupported { what } } else { FsError::NoAttribute })
}
