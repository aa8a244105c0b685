//! What a staging file stands for: the log beside it, read back after its process died. No I/O.
//!
//! A log is a magic number with the format's version, then [frames]. It is only ever appended to.
//! What a process that was killed had begun to append is no whole frame, or its sum is wrong: it and what follows is
//! ignored, and the log says what was true before.
//!
//! Appending to a file is what programs do most, and costs nothing here: [`Event::Tail`] says once that every byte from an
//! offset to the end of the staging file was written, and the staging file's length says how far that is.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use sandpail_store::{ETag, ObjectAttributes, ObjectKey, Part, UploadId};
use serde::{Deserialize, Serialize};

use super::journal::boot;
use super::sums::{self, RecordedSums, Summed};
use super::{Base, RangeSet};
use crate::frames;
use crate::read::ObjectVersion;

const MAGIC: &[u8; 15] = b"sandpail staged";
/// Where the version of the format stands, and which is written. The first one, without sums, is read, too.
pub(super) const FORMAT_AT: usize = MAGIC.len();
pub(super) const FORMAT: u8 = 2;
const HEAD_LEN: usize = FORMAT_AT + 1;
/// Sums in one entry.
const SUMS_PER_EVENT: usize = 4096;

/// Where the files of a mount belong. Never holds a credential.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// URL of the server; `None` for an embedded bucket.
    pub endpoint: Option<String>,
    /// Whose dialect it speaks.
    pub provider: Option<String>,
    /// The region to sign for.
    pub region: Option<String>,
    /// Whether the bucket's name stands in the path.
    pub path_style: Option<bool>,
    /// The bucket's name; `None` for an embedded bucket.
    pub bucket: Option<String>,
    /// The directory of an embedded bucket.
    #[serde(with = "path_form")]
    pub directory: Option<PathBuf>,
    /// The part of the bucket that was mounted. Keys are whole all the same.
    pub prefix: String,
}

impl Origin {
    /// Whether both are the same bucket, whatever part of it was mounted.
    pub fn is_same_bucket(&self, other: &Self) -> bool {
        let place = |origin: &Self| (origin.endpoint.clone(), origin.bucket.clone(), origin.directory.clone());
        place(self) == place(other)
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.bucket, &self.directory) {
            (Some(bucket), _) => write!(f, "s3://{bucket}"),
            (None, Some(directory)) => write!(f, "dir:{}", directory.display()),
            (None, None) => f.write_str("?"),
        }
    }
}

/// The first entry of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begin {
    /// Which start of the machine this was.
    pub(super) boot: String,
    /// Milliseconds since 1970.
    pub(super) created: u64,
    pub(super) origin: Origin,
    pub(super) key: String,
    pub(super) size: u64,
    pub(super) base: Option<BaseForm>,
    pub(super) replaces: Option<String>,
    /// Length of parts, which those of an upload that is gone on with must have.
    pub(super) part_len: u64,
}

/// A [`Base`] as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BaseForm {
    key: String,
    etag: String,
    size: u64,
    limit: u64,
}

impl From<&Base> for BaseForm {
    fn from(base: &Base) -> Self {
        Self {
            key: base.version.key.to_string(),
            etag: base.version.etag.as_str().to_owned(),
            size: base.version.size,
            limit: base.limit,
        }
    }
}

impl BaseForm {
    fn read(&self) -> Option<Base> {
        let version =
            ObjectVersion { key: ObjectKey::new(&self.key).ok()?, etag: ETag::new(&self.etag), size: self.size };
        Some(Base { version, limit: self.limit })
    }
}

/// What objects carry, as it is written.
#[derive(Serialize, Deserialize)]
#[serde(remote = "ObjectAttributes")]
struct AttributesForm {
    metadata: BTreeMap<String, String>,
    content_type: Option<String>,
    content_encoding: Option<String>,
    content_disposition: Option<String>,
    content_language: Option<String>,
    cache_control: Option<String>,
    expires: Option<String>,
    storage_class: Option<String>,
    sse: Option<String>,
    sse_kms_key_id: Option<String>,
    tag_count: u32,
    tagging: Option<String>,
}

/// What objects carry, as text.
pub(crate) fn attributes_json(attributes: &ObjectAttributes) -> Vec<u8> {
    let described = Described { attributes: attributes.clone(), times_set: false };
    json(&described).unwrap_or_default()
}

/// The other way round.
pub(crate) fn parse_attributes(text: &[u8]) -> Option<ObjectAttributes> {
    serde_json::from_slice::<Described>(text).ok().map(|described| described.attributes)
}

/// What the object shall carry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Described {
    #[serde(with = "AttributesForm")]
    pub(super) attributes: ObjectAttributes,
    /// Someone chose the modification time; else it is that of the staging file.
    pub(super) times_set: bool,
}

/// A part that is only in an upload that is not complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartForm {
    pub(super) key: String,
    pub(super) upload: String,
    pub(super) number: u32,
    pub(super) etag: String,
    pub(super) checksum: Option<String>,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// What happened to a staged file. Offsets are those of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Begin(Begin),
    Described(Described),
    /// These bytes are in the staging file.
    Write(Range<u64>),
    /// All bytes from here to the end of the staging file are in it, until a `TailEnd`.
    Tail(u64),
    TailEnd(u64),
    /// The file was cut to this size.
    Cut(u64),
    /// The file grew to this size, by zeros.
    Grow(u64),
    /// These bytes are zeros that are not in the staging file.
    Punch(Range<u64>),
    /// These bytes of the base are in the staging file.
    Fetched(Range<u64>),
    /// These bytes are no more in the staging file, but in a part.
    LetGo(PartForm),
    Key(String),
    Base(Option<BaseForm>),
    /// The tag of the object that the next upload replaces.
    Replaces(Option<String>),
    /// Something is not stored.
    Changed,
    /// An upload of everything began.
    Storing,
    /// The bucket has everything.
    Stored,
    /// It has no name any more.
    Unlinked,
    /// The times follow the writing again.
    TimesFree,
    /// It is on the disk, as it was when its process gave up (with the reason) or was found dead.
    Kept(String),
    /// Everything up to here is on the disk, and a program was told that it is safe.
    Durable,
    /// An upload is about to be completed; the object will have this tag.
    Completing(String),
    /// The inode that it belongs to, while its mount lives.
    Node(u64),
    /// These pieces of the staging file have these sums.
    Summed(Vec<Summed>),
    /// Bytes of these blocks are about to change: what was said of their sums holds no more.
    Unsummed(Range<u64>),
    /// Bytes that have sums are about to change, for the first time since `Durable`: until the next one, what a machine that
    /// stops leaves may be older or newer than the sums that it leaves.
    Touched,
    /// The object is about to be removed: if it is gone, nobody wants the file back.
    Removing,
}

/// What a record says of sums, as entries of bounded length.
pub(super) fn sum_events(sums: &[Summed]) -> Vec<Event> {
    sums.chunks(SUMS_PER_EVENT).map(|sums| Event::Summed(sums.to_vec())).collect()
}

impl Event {
    /// Appends the frame of this event.
    pub(super) fn encode(&self, log: &mut Vec<u8>) {
        let at = frames::begin(log);
        let (tag, numbers, text): (u8, &[u64], _) = match self {
            Self::Begin(begin) => (1, &[], json(begin)),
            Self::Described(described) => (2, &[], json(described)),
            Self::Write(range) => (3, &[range.start, range.end], None),
            Self::Tail(start) => (4, &[*start], None),
            Self::TailEnd(end) => (5, &[*end], None),
            Self::Cut(size) => (6, &[*size], None),
            Self::Grow(size) => (7, &[*size], None),
            Self::Punch(range) => (8, &[range.start, range.end], None),
            Self::Fetched(range) => (9, &[range.start, range.end], None),
            Self::LetGo(part) => (10, &[], json(part)),
            Self::Key(key) => (11, &[], json(key)),
            Self::Base(base) => (12, &[], json(base)),
            Self::Replaces(etag) => (13, &[], json(etag)),
            Self::Changed => (14, &[], None),
            Self::Storing => (15, &[], None),
            Self::Stored => (16, &[], None),
            Self::Unlinked => (17, &[], None),
            Self::TimesFree => (18, &[], None),
            Self::Kept(reason) => (19, &[], json(reason)),
            Self::Durable => (20, &[], None),
            Self::Completing(tag) => (21, &[], json(tag)),
            Self::Node(ino) => (22, &[*ino], None),
            Self::Summed(sums) => (23, &[], Some(sums::encode(sums))),
            Self::Unsummed(range) => (24, &[range.start, range.end], None),
            Self::Touched => (25, &[], None),
            Self::Removing => (26, &[], None),
        };
        log.push(tag);
        numbers.iter().for_each(|number| log.extend(number.to_le_bytes()));
        log.extend(text.unwrap_or_default());
        frames::end(log, at);
    }

    fn decode(payload: &[u8]) -> Option<Self> {
        let (tag, rest) = payload.split_first()?;
        let one = || Some(u64::from_le_bytes(rest.try_into().ok()?));
        let two = || {
            let (start, end) = rest.split_at_checked(8)?;
            Some(u64::from_le_bytes(start.try_into().ok()?)..u64::from_le_bytes(end.try_into().ok()?))
        };
        Some(match tag {
            1 => Self::Begin(serde_json::from_slice(rest).ok()?),
            2 => Self::Described(serde_json::from_slice(rest).ok()?),
            3 => Self::Write(two()?),
            4 => Self::Tail(one()?),
            5 => Self::TailEnd(one()?),
            6 => Self::Cut(one()?),
            7 => Self::Grow(one()?),
            8 => Self::Punch(two()?),
            9 => Self::Fetched(two()?),
            10 => Self::LetGo(serde_json::from_slice(rest).ok()?),
            11 => Self::Key(serde_json::from_slice(rest).ok()?),
            12 => Self::Base(serde_json::from_slice(rest).ok()?),
            13 => Self::Replaces(serde_json::from_slice(rest).ok()?),
            14 => Self::Changed,
            15 => Self::Storing,
            16 => Self::Stored,
            17 => Self::Unlinked,
            18 => Self::TimesFree,
            19 => Self::Kept(serde_json::from_slice(rest).ok()?),
            20 => Self::Durable,
            21 => Self::Completing(serde_json::from_slice(rest).ok()?),
            22 => Self::Node(one()?),
            23 => Self::Summed(sums::decode(rest)?),
            24 => Self::Unsummed(two()?),
            25 => Self::Touched,
            26 => Self::Removing,
            _ => return None,
        })
    }
}

/// The beginning of every log.
pub(super) fn head() -> Vec<u8> {
    [&MAGIC[..], &[FORMAT]].concat()
}

fn json(value: &impl Serialize) -> Option<Vec<u8>> {
    // Strings and numbers: it cannot fail.
    serde_json::to_vec(value).ok()
}

/// Why a log cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordProblem {
    /// There is none.
    #[error("it has no record, as those of older versions")]
    Missing,
    /// Not even its first entry is whole.
    #[error("its record is damaged")]
    Damaged,
    /// Written by another version of the program.
    #[error("its record has format {0}; this version reads format {FORMAT}")]
    Version(u8),
    /// It cannot be read.
    #[error("its record cannot be read: {0}")]
    Unreadable(String),
}

/// What a log says of its staging file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Where it belongs.
    pub origin: Origin,
    /// Its key, prefix included.
    pub key: ObjectKey,
    /// Its length in bytes.
    pub size: u64,
    /// The object that shows through where nothing was written.
    pub base: Option<Base>,
    /// The tag of the object that it replaces; `None` if there was none.
    pub replaces: Option<ETag>,
    /// What the object shall carry.
    pub attributes: ObjectAttributes,
    /// When it was staged first, in milliseconds since 1970.
    pub created: u64,
    /// Why it could not be stored, if that was tried.
    pub reason: Option<String>,
    /// Bytes that are in the staging file.
    pub local: RangeSet,
    /// Bytes that are only in an upload that is not complete.
    pub in_upload: RangeSet,
    pub(crate) times_set: bool,
    pub(super) boot: String,
    pub(crate) part_len: u64,
    pub(super) parts: Vec<PartForm>,
    pub(super) tail: Option<u64>,
    pub(super) is_stored: bool,
    pub(super) is_storing: bool,
    /// An upload has ended well.
    pub(super) was_stored: bool,
    pub(super) is_unlinked: bool,
    /// Its removal had begun, and nothing has happened to it since.
    pub(crate) is_removing: bool,
    /// A removal was asked for since it was stored, which may be done, also if the file was gone on with after that.
    pub(crate) may_be_removed: bool,
    pub(super) is_kept: bool,
    pub(super) is_durable: bool,
    /// The tag of the object that an upload was to make, whose end is not known.
    pub(crate) completing: Option<ETag>,
    /// The inode that it belongs to.
    pub(super) node: Option<u64>,
    /// The sums of what is in the staging file, as far as they were recorded.
    pub(super) sums: RecordedSums,
}

impl Recorded {
    fn begin(begin: Begin) -> Option<Self> {
        let base = match &begin.base {
            Some(base) => Some(base.read()?),
            None => None,
        };
        Some(Self {
            origin: begin.origin,
            key: ObjectKey::new(&begin.key).ok()?,
            size: begin.size,
            base,
            replaces: begin.replaces.as_deref().map(ETag::new),
            attributes: ObjectAttributes::default(),
            created: begin.created,
            reason: None,
            local: RangeSet::default(),
            in_upload: RangeSet::default(),
            times_set: false,
            boot: begin.boot,
            part_len: begin.part_len,
            parts: Vec::new(),
            tail: None,
            is_stored: true,
            is_storing: false,
            was_stored: false,
            is_unlinked: false,
            is_removing: false,
            may_be_removed: false,
            is_kept: false,
            is_durable: false,
            completing: None,
            node: None,
            sums: RecordedSums::default(),
        })
    }

    /// Takes one event in. `None` if it makes no sense.
    fn apply(&mut self, event: Event) -> Option<()> {
        match event {
            Event::Begin(_) => return None,
            Event::Described(described) => {
                self.attributes = described.attributes;
                self.times_set = described.times_set;
            }
            Event::Write(range) => {
                self.size = self.size.max(range.end);
                self.local.insert(range);
                self.change();
            }
            Event::Tail(start) => {
                self.tail = Some(start);
                self.change();
            }
            Event::TailEnd(end) => self.end_tail(end),
            Event::Cut(size) => {
                self.size = size;
                self.sums.void(&(size..u64::MAX));
                self.local.remove(size..u64::MAX);
                self.in_upload.remove(size..u64::MAX);
                self.parts.clear();
                if let Some(base) = &mut self.base {
                    base.limit = base.limit.min(size);
                }
                self.base.take_if(|base| base.limit == 0);
                self.change();
            }
            Event::Grow(size) => {
                self.size = self.size.max(size);
                self.change();
            }
            Event::Punch(range) => {
                self.sums.void(&range);
                self.local.remove(range);
                self.change();
            }
            Event::Fetched(range) => self.local.insert(range),
            Event::LetGo(part) => {
                self.sums.void(&(part.start..part.end));
                self.local.remove(part.start..part.end);
                self.in_upload.insert(part.start..part.end);
                self.parts.push(part);
            }
            Event::Key(key) => self.key = ObjectKey::new(key).ok()?,
            Event::Base(base) => {
                self.completing = None;
                self.base = match base {
                    Some(base) => Some(base.read()?),
                    None => None,
                };
                if let Some(base) = &self.base {
                    self.in_upload.remove(0..base.limit);
                    if self.in_upload.is_empty() {
                        self.parts.clear();
                    }
                }
            }
            Event::Replaces(etag) => self.replaces = etag.as_deref().map(ETag::new),
            Event::Changed => self.change(),
            Event::Storing => (self.is_storing, self.is_removing) = (true, false),
            Event::Stored => {
                (self.is_stored, self.is_storing, self.is_durable) = (true, false, false);
                (self.was_stored, self.may_be_removed) = (true, false);
            }
            Event::Durable => {
                (self.is_durable, self.is_removing) = (true, false);
                self.sums.safe();
            }
            Event::Completing(tag) => self.completing = Some(ETag::new(&tag)),
            Event::Node(ino) => self.node = Some(ino),
            Event::Unlinked => self.is_unlinked = true,
            Event::Removing => (self.is_removing, self.may_be_removed) = (true, true),
            Event::TimesFree => self.times_set = false,
            Event::Summed(sums) => self.sums.add(sums)?,
            Event::Unsummed(range) => self.sums.void(&range),
            Event::Touched => self.sums.is_touched = true,
            Event::Kept(reason) => {
                self.sums.safe();
                self.is_kept = true;
                self.reason = Some(reason).filter(|reason| !reason.is_empty());
            }
        }
        Some(())
    }

    fn change(&mut self) {
        self.is_removing = false;
        self.is_stored = false;
    }

    fn end_tail(&mut self, end: u64) {
        if let Some(start) = self.tail.take()
            && start < end
        {
            self.local.insert(start..end);
            self.size = self.size.max(end);
        }
    }

    /// Bytes that were written and that a staging file of `data_len` bytes does not have: only a machine that stopped
    /// leaves such.
    pub fn missing(&self, data_len: u64) -> u64 {
        let mut lost = self.local.clone();
        lost.remove(0..data_len);
        lost.len()
    }

    /// Whether its process died, or gave up, while it was being stored.
    pub fn is_storing(&self) -> bool {
        self.is_storing
    }

    /// Whether a program was told that the file is safe before the bucket had it: what was written until then is here,
    /// also if the machine stopped.
    pub fn is_durable(&self) -> bool {
        self.is_durable
    }

    /// Whether the machine stopped before the file was on its disk: bytes that were written last may be missing.
    pub fn is_doubtful(&self) -> bool {
        !self.is_kept && !self.is_durable && self.is_of_another_boot()
    }

    fn is_of_another_boot(&self) -> bool {
        self.boot.is_empty() || self.boot != boot()
    }

    /// Bytes that only the base object has.
    pub fn in_base(&self) -> u64 {
        let limit = self.base.as_ref().map_or(0, |base| base.limit.min(self.size));
        let mut here = self.local.clone();
        here.extend(&self.in_upload);
        here.remove(limit..u64::MAX);
        limit - here.len()
    }
}

/// Reads a log that belongs to a staging file of `data_len` bytes. Also says how many of its bytes are whole.
///
/// # Errors
/// [`RecordProblem`] if not even the beginning can be used.
pub(super) fn read(log: &[u8], data_len: u64) -> Result<(Recorded, u64), RecordProblem> {
    let head = log.get(..HEAD_LEN).ok_or(RecordProblem::Damaged)?;
    if &head[..MAGIC.len()] != MAGIC {
        return Err(RecordProblem::Damaged);
    }
    if !(1..=FORMAT).contains(&head[FORMAT_AT]) {
        return Err(RecordProblem::Version(head[FORMAT_AT]));
    }
    let mut at = HEAD_LEN;
    let Some((Event::Begin(begin), next)) =
        frames::at(log, at).and_then(|(payload, next)| Some((Event::decode(payload)?, next)))
    else {
        return Err(RecordProblem::Damaged);
    };
    let mut recorded = Recorded::begin(begin).ok_or(RecordProblem::Damaged)?;
    at = next;
    while let Some((payload, next)) = frames::at(log, at) {
        // A whole frame that makes no sense was not torn: what it would have said is not known.
        Event::decode(payload).and_then(|event| recorded.apply(event)).ok_or(RecordProblem::Damaged)?;
        at = next;
    }
    let was_safe = recorded.is_durable || recorded.is_kept;
    if recorded.is_of_another_boot() {
        recorded.sums.machine_stopped(was_safe);
    }
    // What has a sum was written, also where the staging file ends before it.
    let data_len = data_len.max(recorded.sums.end());
    recorded.end_tail(data_len);
    if recorded.is_durable && recorded.is_of_another_boot() {
        // Written after somebody was told that the file is safe, and lost with the machine: nobody was told of that.
        recorded.local.remove(data_len..u64::MAX);
    }
    recorded.sums.limit_to(&recorded.local);
    Ok((recorded, at as u64))
}

impl PartForm {
    pub(super) fn part(&self) -> Part {
        Part { number: self.number, etag: ETag::new(&self.etag), checksum: self.checksum.clone() }
    }

    pub(super) fn upload_id(&self) -> UploadId {
        UploadId(self.upload.clone())
    }
}

/// The log in a file, without the room behind its last entry.
#[cfg(test)]
pub(super) fn entries_in(path: &std::path::Path) -> Vec<u8> {
    let mut log = std::fs::read(path).unwrap();
    let mut end = HEAD_LEN.min(log.len());
    while let Some((_, next)) = frames::at(&log, end) {
        end = next;
    }
    assert!(log[end..].iter().all(|byte| *byte == 0));
    log.truncate(end);
    log
}

/// The same log, as another start of the machine would have left it.
#[cfg(test)]
pub(crate) fn of_another_boot(log: &[u8]) -> Vec<u8> {
    let (payload, next) = frames::at(log, HEAD_LEN).unwrap();
    let Some(Event::Begin(begin)) = Event::decode(payload) else { panic!("no beginning") };
    let mut changed = head();
    Event::Begin(Begin { boot: "another".to_owned(), ..begin }).encode(&mut changed);
    changed.extend(&log[next..]);
    changed
}

/// A path that may hold any bytes.
mod path_form {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Form {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub(super) fn serialize<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
        let form = path.as_ref().map(|path| match path.to_str() {
            Some(text) => Form::Text(text.to_owned()),
            None => Form::Bytes(path.as_os_str().as_bytes().to_vec()),
        });
        form.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<Form>::deserialize(from)?.map(|form| match form {
            Form::Text(text) => text.into(),
            Form::Bytes(bytes) => OsString::from_vec(bytes).into(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin() -> Begin {
        Begin {
            boot: "boot".to_owned(),
            created: 5,
            origin: Origin { bucket: Some("b".to_owned()), ..Origin::default() },
            key: "a\u{1}\"\\\u{202e}ü=sp=b:%FF\n".to_owned(),
            size: 7,
            base: Some(BaseForm { key: "k".to_owned(), etag: "\"e\"".trim_matches('"').to_owned(), size: 9, limit: 7 }),
            replaces: Some("e".to_owned()),
            part_len: 8,
        }
    }

    fn log_of(events: &[Event]) -> Vec<u8> {
        log_of_boot("boot", events)
    }

    fn log_of_boot(boot: &str, events: &[Event]) -> Vec<u8> {
        let mut log = head();
        Event::Begin(Begin { boot: boot.to_owned(), ..begin() }).encode(&mut log);
        events.iter().for_each(|event| event.encode(&mut log));
        log
    }

    fn every_event() -> Vec<Event> {
        let mut attributes = ObjectAttributes { tag_count: 2, ..ObjectAttributes::default() };
        attributes.metadata.insert("mode".to_owned(), "33188".to_owned());
        let part = PartForm {
            key: "k".to_owned(),
            upload: "u".to_owned(),
            number: 2,
            etag: "p".to_owned(),
            checksum: None,
            start: 8,
            end: 16,
        };
        vec![
            Event::Described(Described { attributes, times_set: true }),
            Event::Write(1..2),
            Event::Tail(5),
            Event::TailEnd(40),
            Event::Cut(30),
            Event::Grow(90),
            Event::Punch(31..33),
            Event::Fetched(2..3),
            Event::LetGo(part),
            Event::Key("other".to_owned()),
            Event::Base(None),
            Event::Base(Some(begin().base.unwrap())),
            Event::Replaces(None),
            Event::Changed,
            Event::Storing,
            Event::Stored,
            Event::Unlinked,
            Event::TimesFree,
            Event::Kept("why".to_owned()),
            Event::Summed(vec![Summed { range: 5..9, crc: 7 }, Summed { range: 1024..2048, crc: u32::MAX }]),
            Event::Touched,
            Event::Unsummed(0..1024),
            Event::Removing,
        ]
    }

    #[test]
    fn events_round_trip() {
        for event in every_event().into_iter().chain([Event::Begin(begin())]) {
            let mut log = Vec::new();
            event.encode(&mut log);
            let (payload, end) = frames::at(&log, 0).unwrap();
            assert_eq!((Event::decode(payload), end), (Some(event), log.len()));
        }
    }

    #[test]
    fn a_torn_end_is_ignored_and_nothing_before_it() {
        let events = every_event();
        let ends: Vec<usize> = (0..=events.len()).map(|count| log_of(&events[..count]).len()).collect();
        let log = log_of(&events);
        for len in ends[0]..=log.len() {
            let whole = ends.iter().filter(|end| **end <= len).count() - 1;
            let (expected, _) = read(&log_of(&events[..whole]), 50).unwrap();
            assert_eq!(read(&log[..len], 50), Ok((expected.clone(), ends[whole] as u64)), "cut at {len}");
            // What a disk shows in place of what it did not write.
            let zeros = [&log[..len], &[0; 40]].concat();
            let found = read(&zeros, 50).unwrap().0;
            // Zeros may be what the entry had there.
            let next = read(&log_of(&events[..events.len().min(whole + 1)]), 50).unwrap().0;
            assert!(found == expected || found == next, "zeros from {len}: {found:?}");
        }
        for len in 0..ends[0] {
            assert_eq!(read(&log[..len], 50), Err(RecordProblem::Damaged), "cut at {len}");
        }
    }

    #[test]
    fn a_flipped_bit_ends_the_log() {
        let log = log_of(&[Event::Write(0..5), Event::Write(5..9)]);
        let first = log_of(&[Event::Write(0..5)]).len();
        for at in first..log.len() {
            let mut damaged = log.clone();
            damaged[at] ^= 4;
            assert_eq!(read(&damaged, 9).unwrap().0.local.len(), 5, "flipped at {at}");
        }
    }

    #[test]
    fn other_formats_are_told_apart() {
        let mut log = log_of(&[]);
        for format in [0, FORMAT + 1] {
            log[FORMAT_AT] = format;
            assert_eq!(read(&log, 0), Err(RecordProblem::Version(format)));
        }
        log[FORMAT_AT] = 1;
        assert!(read(&log, 0).is_ok());
        assert_eq!(read(b"", 0), Err(RecordProblem::Damaged));
        assert_eq!(read(b"no record, but a text of some length", 0), Err(RecordProblem::Damaged));
        let mut unknown = log_of(&[]);
        let at = frames::begin(&mut unknown);
        unknown.push(99);
        frames::end(&mut unknown, at);
        assert_eq!(read(&unknown, 0), Err(RecordProblem::Damaged));
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)] // lists of ranges
    fn sums_are_of_what_is_there() {
        let summed = |range: Range<u64>| Summed { range, crc: 1 };
        let sums = vec![summed(0..1024), summed(1024..1500), summed(3000..3072)];
        let written = [Event::Tail(0), Event::Summed(sums.clone())];
        let after = |events: &[Event]| read(&log_of_boot(boot(), &[&written, events].concat()), 3072).unwrap().0;
        for (event, left) in [
            (Event::Changed, vec![0..1024, 1024..1500, 3000..3072]),
            (Event::Unsummed(0..1024), vec![1024..1500, 3000..3072]),
            (Event::Cut(1024), vec![0..1024]),
            (Event::Cut(1023), vec![]),
            (Event::Punch(1600..1700), vec![0..1024, 3000..3072]),
        ] {
            let events = [Event::TailEnd(3072), event];
            assert_eq!(after(&events).sums.iter().map(|piece| piece.range).collect::<Vec<_>>(), left, "{events:?}");
        }
        // One that crosses blocks, or is cut short, was never written.
        let (mut torn, sums) = (log_of(&written), sums::encode(&sums));
        let at = frames::begin(&mut torn);
        torn.push(23);
        torn.extend(&sums[..21]);
        frames::end(&mut torn, at);
        assert_eq!(read(&torn, 3072), Err(RecordProblem::Damaged));
        assert_eq!(read(&log_of(&[Event::Summed(vec![summed(1000..1025)])]), 3072), Err(RecordProblem::Damaged));
        // A staging file that ends too early lacks bytes.
        let (cut, _) = read(&log_of_boot(boot(), &written), 3010).unwrap();
        assert_eq!((cut.size, cut.missing(3010)), (3072, 62));
    }

    #[test]
    fn a_tail_reaches_as_far_as_the_staging_file() {
        let log = log_of(&[Event::Tail(20)]);
        let recorded = |len| read(&log, len).unwrap().0;
        assert!(recorded(45).local.iter().eq(std::iter::once(20..45)));
        assert_eq!(recorded(45).size, 45);
        assert!(recorded(20).local.is_empty());
        assert_eq!(recorded(20).size, 7);
    }

    #[test]
    fn paths_of_any_bytes() {
        use std::os::unix::ffi::OsStringExt;
        let directory = std::ffi::OsString::from_vec(b"/srv/\xff\n\"b".to_vec());
        for directory in [directory.into(), PathBuf::from("/srv/ü")] {
            let origin = Origin { directory: Some(directory), ..Origin::default() };
            let text = serde_json::to_string(&origin).unwrap();
            assert_eq!(serde_json::from_str::<Origin>(&text).unwrap(), origin);
        }
    }
}
