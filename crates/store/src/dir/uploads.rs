//! Multipart uploads: a directory each, `uploads/<id>`, with `upload.json` and one object file per part.
//!
//! An upload exists while `upload.json` does. The directory itself is locked: shared while a part is
//! put into it, exclusively while the upload ends.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::{TempFile, unique_name};
use super::object::{self, StoredAttributes};
use super::{Inner, io_error};
use crate::digest::multipart_tag;
use crate::{
    Condition, CopySource, ListedPart, ObjectAttributes, ObjectInfo, ObjectKey, Part, PutBody, PutOutcome, StoreError,
    StoreResult, UploadId, UploadInProgress,
};

const MANIFEST: &str = "upload.json";

/// What is written down when an upload begins.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    key: String,
    initiated_ms: u64,
    attributes: StoredAttributes,
}

/// An upload that exists and is locked.
struct Upload {
    path: PathBuf,
    manifest: Manifest,
    // Held until the work is done.
    _lock: File,
}

impl Inner {
    pub(super) fn create_multipart(&self, key: &ObjectKey, attributes: &ObjectAttributes) -> StoreResult<UploadId> {
        let id = UploadId(unique_name());
        let path = self.uploads.join(&id.0);
        let what = || format!("cannot begin an upload of {key:?}");
        let manifest = Manifest {
            key: key.as_str().to_owned(),
            initiated_ms: object::unix_ms(object::now()),
            attributes: attributes.into(),
        };
        let json = serde_json::to_vec(&manifest).map_err(|error| io_error(what(), error.into()))?;
        let temp = self.temp_file()?;
        io::Write::write_all(&mut temp.file(), &json).map_err(|error| io_error(what(), error))?;
        temp.publish(&self.uploads, &path.join(MANIFEST), false).map_err(|error| io_error(what(), error))?;
        Ok(id)
    }

    fn upload(&self, key: Option<&ObjectKey>, id: &UploadId, exclusive: bool) -> StoreResult<Upload> {
        let none = || StoreError::NotFound {
            what: match key {
                Some(key) => format!("upload {:?} of {key:?}", id.0),
                None => format!("upload {:?}", id.0),
            },
        };
        if id.0.is_empty() || !id.0.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(none());
        }
        let path = self.uploads.join(&id.0);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => none(),
            _ => io_error(format!("cannot open upload {}", path.display()), error),
        };
        let lock = File::open(&path).map_err(failed)?;
        if exclusive { lock.lock() } else { lock.lock_shared() }.map_err(failed)?;
        let json = fs::read(path.join(MANIFEST)).map_err(failed)?;
        let manifest: Manifest = serde_json::from_slice(&json)
            .map_err(|error| StoreError::Integrity { message: format!("{}: {error}", path.display()) })?;
        if key.is_some_and(|key| key.as_str() != manifest.key) {
            return Err(none());
        }
        Ok(Upload { path, manifest, _lock: lock })
    }

    pub(super) fn upload_part(&self, key: &ObjectKey, id: &UploadId, number: u32, body: &PutBody) -> StoreResult<Part> {
        check_number(number)?;
        drop(self.upload(Some(key), id, false)?);
        let temp = self.temp_file()?;
        let info = object::write_part(temp.file(), body)
            .map_err(|error| io_error(format!("cannot write part {number} of {key:?}"), error))?;
        self.publish_part(key, id, number, temp, &info)
    }

    pub(super) fn upload_part_copy(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        number: u32,
        source: &CopySource,
        range: std::ops::Range<u64>,
    ) -> StoreResult<Part> {
        check_number(number)?;
        drop(self.upload(Some(key), id, false)?);
        let (file, info) = self.open_version(&source.key, source.etag.as_ref())?;
        if range.is_empty() || range.end > info.size {
            return Err(StoreError::Invalid {
                message: format!("bytes {range:?} are not inside {:?} of {} bytes", source.key, info.size),
            });
        }
        let what = || format!("cannot copy part {number} of {key:?}");
        let mut temp = self.temp_file()?;
        object::append_range(temp.file_mut(), &file, range.start, range.end)
            .map_err(|error| io_error(what(), error))?;
        let (etag, sum) =
            object::sums_of_range(&file, range.start, range.end).map_err(|error| io_error(what(), error))?;
        let info = ObjectInfo {
            size: range.end - range.start,
            etag,
            last_modified: object::now(),
            attributes: ObjectAttributes::default(),
        };
        object::write_part_trailer(temp.file_mut(), &info, sum).map_err(|error| io_error(what(), error))?;
        self.publish_part(key, id, number, temp, &info)
    }

    /// Parts are not synced: they count once the object is completed, and that is. So after a power cut the bytes of a
    /// part may be others than its name and its trailer say; its checksum tells. (To sync parts would write each byte
    /// to the disk twice where a file system cannot share blocks; the checksum costs a look at what is in memory.)
    fn publish_part(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        number: u32,
        temp: TempFile,
        info: &ObjectInfo,
    ) -> StoreResult<Part> {
        let upload = self.upload(Some(key), id, false)?;
        temp.publish(&upload.path, &upload.path.join(part_name(number)), false)
            .map_err(|error| io_error(format!("cannot keep part {number} of {key:?}"), error))?;
        Ok(Part { number, etag: info.etag.clone(), checksum: None })
    }

    pub(super) fn complete_multipart(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        parts: &[Part],
        condition: &Condition,
    ) -> StoreResult<PutOutcome> {
        let upload = self.upload(Some(key), id, true)?;
        if parts.is_empty() {
            return Err(StoreError::Invalid { message: "an upload is completed with at least one part".into() });
        }
        if !parts.is_sorted_by(|a, b| a.number < b.number) {
            return Err(StoreError::Invalid { message: "parts are not in ascending order".into() });
        }
        let mut sources = Vec::with_capacity(parts.len());
        for (index, part) in parts.iter().enumerate() {
            let path = upload.path.join(part_name(part.number));
            let opened = object::open_part(&path).map_err(|error| match error {
                StoreError::Integrity { .. } => damaged(part.number),
                error => error,
            })?;
            let info = opened.map(|opened| opened.info).filter(|info| info.etag == part.etag).ok_or_else(|| {
                StoreError::Invalid { message: format!("part {} was not uploaded or has another tag", part.number) }
            })?;
            if index + 1 < parts.len() && info.size < self.capabilities.part_len_min {
                let message = format!("part {} of {} bytes is too small", part.number, info.size);
                return Err(StoreError::Invalid { message });
            }
            sources.push((part.number, path, info));
        }
        // Refuse before the work where that is possible; what counts is the check under the lock.
        self.check_condition(key, condition)?;
        let what = || format!("cannot complete the upload of {key:?}");
        let mut temp = self.temp_file()?;
        let mut size = 0;
        for (number, path, info) in &sources {
            // Nobody replaces it meanwhile: the upload is locked.
            let source = object::open_part(path)?.ok_or_else(|| damaged(*number))?;
            object::append_range(temp.file_mut(), &source.file, 0, info.size)
                .map_err(|error| io_error(what(), error))?;
            // Read back from where it goes, so that what is published is what was looked at.
            if !object::part_holds(&source, temp.file(), size).map_err(|error| io_error(what(), error))? {
                return Err(damaged(*number));
            }
            size += info.size;
        }
        let info = ObjectInfo {
            size,
            etag: multipart_tag(sources.iter().map(|(.., info)| &info.etag))?,
            last_modified: object::now(),
            attributes: upload.manifest.attributes.clone().into(),
        };
        object::write_trailer(temp.file_mut(), &info).map_err(|error| io_error(what(), error))?;
        let outcome = self.publish(key, temp, &info, condition)?;
        // The object is there; what fails now is only left to the next sweep.
        let _ = remove_upload(&upload.path);
        Ok(outcome)
    }

    pub(super) fn abort_multipart(&self, key: &ObjectKey, id: &UploadId) -> StoreResult<()> {
        match self.upload(Some(key), id, true) {
            Ok(upload) => remove_upload(&upload.path)
                .map_err(|error| io_error(format!("cannot remove {}", upload.path.display()), error)),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn list_multipart(&self, prefix: &str) -> StoreResult<Vec<UploadInProgress>> {
        let what = || format!("cannot list {}", self.uploads.display());
        let mut uploads = Vec::new();
        for entry in fs::read_dir(&self.uploads).map_err(|error| io_error(what(), error))? {
            let entry = entry.map_err(|error| io_error(what(), error))?;
            let Ok(json) = fs::read(entry.path().join(MANIFEST)) else { continue };
            let (Ok(manifest), Ok(id)) = (serde_json::from_slice::<Manifest>(&json), entry.file_name().into_string())
            else {
                tracing::warn!(path = %entry.path().display(), "not an upload, left out");
                continue;
            };
            if manifest.key.starts_with(prefix) {
                let initiated = object::from_unix_ms(manifest.initiated_ms);
                uploads.push(UploadInProgress { key: manifest.key, id: UploadId(id), initiated });
            }
        }
        uploads.sort_by(|a, b| (&a.key, a.initiated, &a.id.0).cmp(&(&b.key, b.initiated, &b.id.0)));
        Ok(uploads)
    }

    pub(super) fn list_parts(&self, key: &ObjectKey, id: &UploadId) -> StoreResult<Vec<ListedPart>> {
        let upload = self.upload(Some(key), id, false)?;
        let what = || format!("cannot list {}", upload.path.display());
        let mut parts = Vec::new();
        for entry in fs::read_dir(&upload.path).map_err(|error| io_error(what(), error))? {
            let entry = entry.map_err(|error| io_error(what(), error))?;
            let name = entry.file_name();
            let Some(number) = name.to_str().and_then(|name| name.strip_prefix("part-")?.parse().ok()) else {
                continue;
            };
            match object::open(&entry.path()) {
                Ok(Some((_, ObjectInfo { size, etag, last_modified, .. }))) => {
                    parts.push(ListedPart { number, etag, size, last_modified });
                }
                Ok(None) => {}
                // Whoever misses it uploads it again.
                Err(error @ StoreError::Integrity { .. }) => {
                    tracing::warn!(%error, "part of an upload, left out of the listing");
                }
                Err(error) => return Err(error),
            }
        }
        parts.sort_by_key(|part| part.number);
        Ok(parts)
    }

    /// Removes what uploads that ended have left, such as after a crash.
    pub(super) fn sweep_uploads(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.uploads)? {
            let path = entry?.path();
            let Ok(lock) = File::open(&path) else { continue };
            // A locked one is in use. One without a manifest may be about to get it: a publisher whose directory
            // vanishes makes it again. A manifest appears whole, so what cannot be read was damaged by a power cut:
            // nobody can go on with such an upload, or end it.
            if lock.try_lock().is_ok() && !has_manifest(&path) {
                let _ = remove_upload(&path);
            }
        }
        Ok(())
    }
}

/// Whether there is a manifest that can be read, or may be.
fn has_manifest(upload: &Path) -> bool {
    match fs::read(upload.join(MANIFEST)) {
        Ok(json) => serde_json::from_slice::<Manifest>(&json).is_ok(),
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    }
}

/// The manifest goes first: without it the upload no longer exists, however far the rest gets.
fn remove_upload(path: &Path) -> io::Result<()> {
    match fs::remove_file(path.join(MANIFEST)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for entry in fs::read_dir(path)? {
        let part = entry?.path();
        // Never `remove_dir_all`: a manifest that was published this moment must survive.
        if part.file_name().is_some_and(|name| name != MANIFEST) {
            match fs::remove_file(&part) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(error),
        _ => Ok(()),
    }
}

/// Not [`StoreError::Integrity`]: to try again does not help.
fn damaged(number: u32) -> StoreError {
    StoreError::Invalid { message: format!("part {number} was damaged, by a power cut perhaps; upload it again") }
}

fn part_name(number: u32) -> String {
    format!("part-{number:05}")
}

fn check_number(number: u32) -> StoreResult<()> {
    if (1..=10_000).contains(&number) {
        Ok(())
    } else {
        Err(StoreError::Invalid { message: format!("part number {number} is not between 1 and 10000") })
    }
}
