//! An object's file: its bytes, then a trailer that describes them, then a fixed footer.
//!
//! ```text
//! data … | metadata (JSON) | metadata length u32 | CRC-32 of metadata u32 | data length u64 | "sandobj1"
//! ```
//! All in one file, so that one rename publishes it whole; data first, so that a range is one `pread`
//! and a copy of the data is one `copy_file_range` from offset 0.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::io_error;
use crate::digest::TagHasher;
use crate::{ETag, ObjectAttributes, ObjectInfo, PutBody, StoreError, StoreResult};

const MAGIC: &[u8; 8] = b"sandobj1";
const FOOTER_LEN: usize = 4 + 4 + 8 + 8;
/// Read at once from the end: footer and most metadata.
const TAIL_LEN: usize = 4096;
/// Metadata beyond this is damage, not metadata.
const METADATA_LEN_MAX: usize = 1 << 20;
/// Files are read and written in pieces of this length.
pub(super) const IO_LEN: usize = 1 << 20;

/// What the trailer holds beside the length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trailer {
    etag: String,
    modified_ms: u64,
    #[serde(flatten)]
    attributes: StoredAttributes,
    /// CRC-64/NVME of the bytes, for a part of an upload: parts are not synced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crc64nvme: Option<u64>,
}

/// A part of an upload, opened.
#[derive(Debug)]
pub(super) struct OpenPart {
    pub(super) file: File,
    pub(super) info: ObjectInfo,
    sum: Option<u64>,
}

/// Tag and checksum of bytes as they go by.
struct Sums {
    tag: TagHasher,
    crc: crc_fast::Digest,
}

impl Sums {
    fn new() -> Self {
        Self { tag: TagHasher::default(), crc: crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme) }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.tag.update(bytes);
        self.crc.update(bytes);
    }

    fn finish(self) -> (ETag, u64) {
        (self.tag.finish(), self.crc.finalize())
    }
}

/// [`ObjectAttributes`] as they are written down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct StoredAttributes {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_encoding: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_disposition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_language: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    storage_class: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sse: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sse_kms_key_id: Option<String>,
}

impl From<&ObjectAttributes> for StoredAttributes {
    fn from(a: &ObjectAttributes) -> Self {
        let a = a.clone();
        Self {
            metadata: a.metadata,
            content_type: a.content_type,
            content_encoding: a.content_encoding,
            content_disposition: a.content_disposition,
            content_language: a.content_language,
            cache_control: a.cache_control,
            expires: a.expires,
            storage_class: a.storage_class,
            sse: a.sse,
            sse_kms_key_id: a.sse_kms_key_id,
        }
    }
}

impl From<StoredAttributes> for ObjectAttributes {
    fn from(a: StoredAttributes) -> Self {
        Self {
            metadata: a.metadata,
            content_type: a.content_type,
            content_encoding: a.content_encoding,
            content_disposition: a.content_disposition,
            content_language: a.content_language,
            cache_control: a.cache_control,
            expires: a.expires,
            storage_class: a.storage_class,
            sse: a.sse,
            sse_kms_key_id: a.sse_kms_key_id,
            // This store has no tags.
            tag_count: 0,
            tagging: None,
        }
    }
}

/// Milliseconds since 1970, as stored times are counted.
pub(super) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The present time, as precise as it is stored.
pub(super) fn now() -> SystemTime {
    from_unix_ms(unix_ms(SystemTime::now()))
}

/// The time that is `ms` milliseconds after 1970 began.
pub(super) fn from_unix_ms(ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms)
}

/// Writes trailer and footer behind `data_len` bytes of data; `file` stands there.
pub(super) fn write_trailer(file: &mut impl Write, info: &ObjectInfo) -> io::Result<()> {
    file.write_all(&trailer_bytes(info, None))
}

/// The same for a part of an upload, whose bytes have the checksum `sum`.
pub(super) fn write_part_trailer(file: &mut impl Write, info: &ObjectInfo, sum: u64) -> io::Result<()> {
    file.write_all(&trailer_bytes(info, Some(sum)))
}

fn trailer_bytes(info: &ObjectInfo, crc64nvme: Option<u64>) -> Vec<u8> {
    let trailer = Trailer {
        etag: info.etag.as_str().to_owned(),
        modified_ms: unix_ms(info.last_modified),
        attributes: (&info.attributes).into(),
        crc64nvme,
    };
    let mut bytes = serde_json::to_vec(&trailer).unwrap_or_default();
    let metadata_len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let crc = crc32(&bytes);
    bytes.extend(metadata_len.to_le_bytes());
    bytes.extend(crc.to_le_bytes());
    bytes.extend(info.size.to_le_bytes());
    bytes.extend(MAGIC);
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    // The crate widens all sums to 64 bits.
    u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, bytes)).unwrap_or_default()
}

/// Opens an object's file and reads what its trailer says; `None` if there is no such file.
pub(super) fn open(path: &Path) -> StoreResult<Option<(File, ObjectInfo)>> {
    Ok(open_part(path)?.map(|part| (part.file, part.info)))
}

/// The same for a part of an upload. What its trailer says of its bytes need not hold, see [`part_holds`].
pub(super) fn open_part(path: &Path) -> StoreResult<Option<OpenPart>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(io_error(format!("cannot open {}", path.display()), error)),
    };
    match read_info(&file) {
        Ok((info, sum)) => Ok(Some(OpenPart { file, info, sum })),
        Err(ReadError::Io(error)) => Err(io_error(format!("cannot read {}", path.display()), error)),
        Err(ReadError::Damaged(why)) => {
            Err(StoreError::Integrity { message: format!("{} is not a whole object: {why}", path.display()) })
        }
    }
}

enum ReadError {
    Io(io::Error),
    Damaged(&'static str),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn read_info(file: &File) -> Result<(ObjectInfo, Option<u64>), ReadError> {
    use ReadError::Damaged;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Damaged("it is no regular file"));
    }
    let file_len = metadata.len();
    if file_len < FOOTER_LEN as u64 {
        return Err(Damaged("it is too short"));
    }
    let tail_len = usize::try_from(file_len).unwrap_or(usize::MAX).min(TAIL_LEN);
    let mut tail = vec![0; tail_len];
    file.read_exact_at(&mut tail, file_len - tail_len as u64)?;
    let footer = tail.split_off(tail_len - FOOTER_LEN);
    let word = |at: usize| u32::from_le_bytes([footer[at], footer[at + 1], footer[at + 2], footer[at + 3]]);
    if footer[16..] != *MAGIC {
        return Err(Damaged("its end is missing"));
    }
    let (metadata_len, crc) = (word(0) as usize, word(4));
    let data_len = u64::from(word(8)) | u64::from(word(12)) << 32;
    if metadata_len > METADATA_LEN_MAX || data_len.checked_add((metadata_len + FOOTER_LEN) as u64) != Some(file_len) {
        return Err(Damaged("its lengths do not add up"));
    }
    let json = if metadata_len <= tail.len() {
        tail.split_off(tail.len() - metadata_len)
    } else {
        let mut json = vec![0; metadata_len];
        file.read_exact_at(&mut json, data_len)?;
        json
    };
    if crc32(&json) != crc {
        return Err(Damaged("the checksum of its metadata differs"));
    }
    let trailer: Trailer = serde_json::from_slice(&json).map_err(|_| Damaged("its metadata cannot be read"))?;
    let info = ObjectInfo {
        size: data_len,
        etag: ETag::new(&trailer.etag),
        last_modified: from_unix_ms(trailer.modified_ms),
        attributes: trailer.attributes.into(),
    };
    Ok((info, trailer.crc64nvme))
}

/// Writes a body as a whole object file and returns its description.
pub(super) fn write_body(file: &File, body: &PutBody, attributes: &ObjectAttributes) -> io::Result<ObjectInfo> {
    let mut hasher = TagHasher::default();
    let tail = write_data(file, body, |bytes| hasher.update(bytes))?;
    let info =
        ObjectInfo { size: body.len(), etag: hasher.finish(), last_modified: now(), attributes: attributes.clone() };
    finish_body(file, tail, trailer_bytes(&info, None))?;
    Ok(info)
}

/// Writes a body as a part of an upload and returns its description.
pub(super) fn write_part(file: &File, body: &PutBody) -> io::Result<ObjectInfo> {
    let mut sums = Sums::new();
    let tail = write_data(file, body, |bytes| sums.update(bytes))?;
    let (etag, sum) = sums.finish();
    let info = ObjectInfo { size: body.len(), etag, last_modified: now(), attributes: ObjectAttributes::default() };
    finish_body(file, tail, trailer_bytes(&info, Some(sum)))?;
    Ok(info)
}

/// Writes the bytes of a body and shows them to `update`. Returns those that are still to be written: all of a small
/// body, so that one write does for it and its trailer.
fn write_data(mut file: &File, body: &PutBody, mut update: impl FnMut(&[u8])) -> io::Result<Vec<u8>> {
    match body {
        PutBody::Chunks(chunks) if body.len() < IO_LEN as u64 => {
            let whole = chunks.concat();
            update(&whole);
            return Ok(whole);
        }
        PutBody::Chunks(chunks) => {
            for chunk in chunks.iter().flat_map(|chunk| chunk.chunks(IO_LEN)) {
                update(chunk);
                file.write_all(chunk)?;
            }
        }
        PutBody::File { file: source, range } => {
            each_piece(source, range.start, range.end, |piece| {
                update(piece);
                file.write_all(piece)
            })?;
        }
    }
    Ok(Vec::new())
}

fn finish_body(mut file: &File, mut tail: Vec<u8>, trailer: Vec<u8>) -> io::Result<()> {
    tail.extend(trailer);
    file.write_all(&tail)
}

/// Reads a byte range of a file piece by piece.
fn each_piece(file: &File, mut offset: u64, end: u64, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; IO_LEN.min(usize::try_from(end - offset).unwrap_or(IO_LEN))];
    while offset < end {
        let piece_len = buffer.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
        file.read_exact_at(&mut buffer[..piece_len], offset)?;
        take(&buffer[..piece_len])?;
        offset += piece_len as u64;
    }
    Ok(())
}

/// The tag of a byte range of a file, its MD5, and the checksum that a part of these bytes has.
pub(super) fn sums_of_range(file: &File, offset: u64, end: u64) -> io::Result<(ETag, u64)> {
    let mut sums = Sums::new();
    each_piece(file, offset, end, |piece| {
        sums.update(piece);
        Ok(())
    })?;
    Ok(sums.finish())
}

/// Whether the bytes of `copy` from `offset` on are those that were uploaded as `part`.
pub(super) fn part_holds(part: &OpenPart, copy: &File, offset: u64) -> io::Result<bool> {
    let end = offset + part.info.size;
    let Some(sum) = part.sum else {
        // Uploaded by an earlier version.
        return Ok(sums_of_range(copy, offset, end)?.0 == part.info.etag);
    };
    let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    each_piece(copy, offset, end, |piece| {
        crc.update(piece);
        Ok(())
    })?;
    Ok(crc.finalize() == sum)
}

/// Appends the bytes `offset..end` of `source` to `target`, inside the kernel where it can.
pub(super) fn append_range(target: &mut File, source: &File, mut offset: u64, end: u64) -> io::Result<()> {
    use rustix::io::Errno;
    while offset < end {
        let wanted_len = usize::try_from(end - offset).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(source, Some(&mut offset), &mut *target, None, wanted_len) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            // `offset` has moved on.
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let mut buffer = vec![0; if offset < end { IO_LEN } else { 0 }];
    while offset < end {
        let piece_len = buffer.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
        source.read_exact_at(&mut buffer[..piece_len], offset)?;
        target.write_all(&buffer[..piece_len])?;
        offset += piece_len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn what_is_cut_or_changed_is_not_an_object() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("object");
        let file = File::create(&path).unwrap();
        let mut attributes = ObjectAttributes::default();
        attributes.metadata.insert("name".into(), "wért".repeat(2000));
        let info = write_body(&file, &Bytes::from_static(b"some data").into(), &attributes).unwrap();
        let (_, read) = open(&path).unwrap().unwrap();
        assert_eq!(read, info);
        let whole = std::fs::read(&path).unwrap();
        for len in [0, 5, 23, 24, 100, whole.len() - 1] {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert!(matches!(open(&path), Err(StoreError::Integrity { .. })), "cut to {len}");
        }
        for at in [9, 20, whole.len() - 24, whole.len() - 18, whole.len() - 9, whole.len() - 1] {
            let mut changed = whole.clone();
            changed[at] ^= 4;
            std::fs::write(&path, &changed).unwrap();
            assert!(matches!(open(&path), Err(StoreError::Integrity { .. })), "changed at {at}");
        }
        assert!(open(&dir.path().join("other")).unwrap().is_none());
        assert!(open(&path.join("below")).unwrap().is_none());
    }
}
