//! The entries of a ledger as bytes. No I/O.

use std::sync::Arc;

use sandpail_store::{ETag, ObjectAttributes};

use crate::attr::{Attr, Kind, Time};
use crate::engine::OpenMode;
use crate::frames;
use crate::tree::{Name, Version};
use crate::write::{attributes_json, parse_attributes};

/// What the kernel, or an open file, relies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeNote {
    pub(crate) ino: u64,
    pub(crate) parent: u64,
    pub(crate) name: Name,
    /// The key's part, where it differs from the name.
    pub(crate) segment: Option<Arc<str>>,
    pub(crate) attr: Attr,
    pub(crate) version: Option<Version>,
    /// See [`Node::copying`](crate::tree::Node::copying).
    pub(crate) copying: Option<ETag>,
    /// How often the kernel knows it.
    pub(crate) lookups: u64,
    pub(crate) is_linked: bool,
    /// Attributes were changed and are not stored.
    pub(crate) is_pending: bool,
    /// It is in the local tree.
    pub(crate) off_bucket: bool,
}

/// A node, and the name that the local tree has it under from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moving {
    pub(crate) ino: u64,
    pub(crate) parent: u64,
    pub(crate) name: Name,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// What a node is now.
    Node(NodeNote),
    /// What the object of a node carries.
    Attributes(u64, ObjectAttributes),
    /// A node is not known any more.
    Gone(u64),
    /// A file was opened, by this request of the kernel.
    File {
        handle: u64,
        ino: u64,
        mode: OpenMode,
        request: u64,
    },
    /// A directory was opened, by this request of the kernel.
    Directory {
        handle: u64,
        ino: u64,
        request: u64,
    },
    Closed(u64),
    /// Entries of an open directory are asked for from here on; the one before has this name.
    Position {
        handle: u64,
        position: u64,
        name: Name,
    },
    /// The kernel reads an open file by itself, from the local file that it knows by this number.
    Passed {
        handle: u64,
        backing: u32,
    },
    /// A change of the bucket begins, for a request of the kernel or on our own: if it is asked for again, it may be done.
    Begun(u64),
    /// The change has ended, well or not.
    Ended(u64),
    /// No handle from here on was ever given.
    Handles(u64),
    /// Something is about to have another name in the local tree; the node's own entry comes after it.
    Moving(Moving),
}

const NO_TAG: &[u8] = b"";

impl Entry {
    /// Appends the frame of this entry.
    pub(crate) fn encode(&self, log: &mut Vec<u8>) {
        let at = frames::begin(log);
        match self {
            Self::Node(node) => node.encode(log),
            Self::Attributes(ino, attributes) => put(log, 2, &[*ino], &[&attributes_json(attributes)]),
            Self::Gone(ino) => put(log, 3, &[*ino], &[]),
            Self::File { handle, ino, mode, request } => {
                let mode = u64::from(mode.read) | u64::from(mode.write) << 1 | u64::from(mode.append) << 2;
                put(log, 4, &[*handle, *ino, mode, *request], &[]);
            }
            Self::Directory { handle, ino, request } => put(log, 5, &[*handle, *ino, *request], &[]),
            Self::Closed(handle) => put(log, 6, &[*handle], &[]),
            Self::Position { handle, position, name } => put(log, 7, &[*handle, *position], &[name]),
            Self::Begun(request) => put(log, 8, &[*request], &[]),
            Self::Handles(next) => put(log, 9, &[*next], &[]),
            Self::Ended(request) => put(log, 10, &[*request], &[]),
            Self::Moving(Moving { ino, parent, name }) => put(log, 11, &[*ino, *parent], &[name]),
            Self::Passed { handle, backing } => put(log, 12, &[*handle, (*backing).into()], &[]),
        }
        frames::end(log, at);
    }

    /// `None` if it makes no sense.
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let (tag, rest) = payload.split_first()?;
        let mut rest = Fields(rest);
        let entry = match tag {
            1 => Self::Node(NodeNote::decode(&mut rest)?),
            2 => Self::Attributes(rest.number()?, parse_attributes(rest.bytes()?)?),
            3 => Self::Gone(rest.number()?),
            4 => {
                let (handle, ino, bits, request) = (rest.number()?, rest.number()?, rest.number()?, rest.number()?);
                let mode =
                    OpenMode { read: bits & 1 != 0, write: bits & 2 != 0, append: bits & 4 != 0, truncate: false };
                Self::File { handle, ino, mode, request }
            }
            5 => Self::Directory { handle: rest.number()?, ino: rest.number()?, request: rest.number()? },
            6 => Self::Closed(rest.number()?),
            7 => Self::Position { handle: rest.number()?, position: rest.number()?, name: rest.bytes()?.into() },
            8 => Self::Begun(rest.number()?),
            9 => Self::Handles(rest.number()?),
            10 => Self::Ended(rest.number()?),
            11 => Self::Moving(Moving { ino: rest.number()?, parent: rest.number()?, name: rest.bytes()?.into() }),
            12 => Self::Passed { handle: rest.number()?, backing: rest.small()? },
            _ => return None,
        };
        rest.0.is_empty().then_some(entry)
    }
}

impl NodeNote {
    fn encode(&self, log: &mut Vec<u8>) {
        let Attr { kind, perm, uid, gid, size, atime, mtime, ctime } = &self.attr;
        let version = self.version.as_ref();
        let modified = version.map_or(Time::default(), |version| version.modified.into());
        let bits = u64::from(self.is_linked)
            | u64::from(self.is_pending) << 1
            | u64::from(version.is_some()) << 2
            | u64::from(self.segment.is_some()) << 3
            | u64::from(version.is_some_and(|version| version.etag.is_some())) << 4
            | u64::from(self.off_bucket) << 5
            | u64::from(self.copying.is_some()) << 6;
        let [atime_secs, mtime_secs, ctime_secs, modified_secs] =
            [atime, mtime, ctime, &modified].map(|time| u64::from_ne_bytes(time.secs.to_ne_bytes()));
        let numbers = [
            self.ino,
            self.parent,
            self.lookups,
            bits,
            (kind.type_bits() | perm & 0o7777).into(),
            (*uid).into(),
            (*gid).into(),
            *size,
            atime_secs,
            atime.nanos.into(),
            mtime_secs,
            mtime.nanos.into(),
            ctime_secs,
            ctime.nanos.into(),
            version.map_or(0, |version| version.size),
            modified_secs,
            modified.nanos.into(),
        ];
        let etag = version.and_then(|version| version.etag.as_ref());
        let etag = etag.map_or(NO_TAG, |etag| etag.as_str().as_bytes());
        let texts = [&self.name, self.segment.as_deref().unwrap_or_default().as_bytes(), etag];
        let copying = self.copying.as_ref().map(|copying| copying.as_str().as_bytes());
        put(log, 1, &numbers, &texts.into_iter().chain(copying).collect::<Vec<_>>());
    }

    fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        let (ino, parent, lookups, bits) = (fields.number()?, fields.number()?, fields.number()?, fields.number()?);
        let mode = fields.small()?;
        let kind = [Kind::File, Kind::Directory, Kind::Symlink]
            .into_iter()
            .find(|kind| kind.type_bits() == mode & crate::attr::S_IFMT)?;
        let (uid, gid, size) = (fields.small()?, fields.small()?, fields.number()?);
        let (atime, mtime, ctime) = (fields.time()?, fields.time()?, fields.time()?);
        let (version_size, modified) = (fields.number()?, fields.time()?);
        let (name, segment, etag) = (fields.bytes()?.into(), fields.text()?, fields.text()?);
        let etag = (bits & 16 != 0).then(|| ETag::new(etag));
        let copying = if bits & 64 != 0 { Some(ETag::new(fields.text()?)) } else { None };
        Some(Self {
            ino,
            parent,
            name,
            segment: (bits & 8 != 0).then(|| Arc::from(segment)),
            attr: Attr { kind, perm: mode & 0o7777, uid, gid, size, atime, mtime, ctime },
            version: (bits & 4 != 0).then(|| Version { etag, size: version_size, modified: modified.into() }),
            copying,
            lookups,
            is_linked: bits & 1 != 0,
            is_pending: bits & 2 != 0,
            off_bucket: bits & 32 != 0,
        })
    }
}

fn put(log: &mut Vec<u8>, tag: u8, numbers: &[u64], texts: &[&[u8]]) {
    log.push(tag);
    numbers.iter().for_each(|number| log.extend(number.to_le_bytes()));
    for text in texts {
        // Names and tags, and attributes of a few KB.
        log.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
        log.extend(*text);
    }
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn small(&mut self) -> Option<u32> {
        self.number()?.try_into().ok()
    }

    fn time(&mut self) -> Option<Time> {
        Some(Time { secs: i64::from_ne_bytes(self.number()?.to_ne_bytes()), nanos: self.small()? })
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = u32::from_le_bytes(self.take(4)?.try_into().ok()?);
        self.take(usize::try_from(len).ok()?)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[track_caller]
    fn check(entry: Entry) {
        let mut log = Vec::new();
        entry.encode(&mut log);
        let (payload, end) = frames::at(&log, 0).unwrap();
        assert_eq!((Entry::decode(payload), end), (Some(entry), log.len()));
        for len in 0..payload.len() {
            // A part of an entry is none.
            assert_eq!(Entry::decode(&payload[..len]), None);
        }
    }

    #[test]
    fn entries_come_back() {
        let attr = Attr {
            kind: Kind::Symlink,
            perm: 0o4711,
            uid: 7,
            gid: u32::MAX,
            size: u64::MAX,
            atime: Time { secs: -5, nanos: 999_999_999 },
            mtime: Time { secs: i64::MAX, nanos: 0 },
            ctime: Time::default(),
        };
        let note = NodeNote {
            ino: 1 << 62,
            parent: 1,
            name: Name::from(&b"\xff\0 odd"[..]),
            segment: None,
            attr,
            version: None,
            lookups: 3,
            is_linked: true,
            copying: None,
            is_pending: false,
            off_bucket: false,
        };
        check(Entry::Node(note.clone()));
        let version = Version { etag: None, size: 9, modified: UNIX_EPOCH + Duration::new(5, 7) };
        check(Entry::Node(NodeNote { version: Some(version.clone()), segment: Some("".into()), ..note.clone() }));
        let version = Version { etag: Some(ETag::new("\"tag\"")), ..version };
        check(Entry::Node(NodeNote {
            version: Some(version),
            is_linked: false,
            is_pending: true,
            copying: Some(ETag::new("c")),
            ..note.clone()
        }));
        check(Entry::Attributes(5, ObjectAttributes { content_type: Some("x/y".to_owned()), ..Default::default() }));
        check(Entry::Node(NodeNote { off_bucket: true, ..note }));
        check(Entry::Moving(Moving { ino: 5, parent: 1, name: Name::from(&b"new"[..]) }));
        check(Entry::Gone(4));
        let mode = OpenMode { read: true, append: true, ..OpenMode::default() };
        check(Entry::File { handle: 1, ino: 2, mode, request: 3 });
        check(Entry::Directory { handle: 1, ino: 2, request: 3 });
        check(Entry::Closed(1));
        check(Entry::Passed { handle: 1, backing: u32::MAX });
        check(Entry::Position { handle: 1, position: 9, name: Name::from(&b"x"[..]) });
        check(Entry::Begun(1));
        check(Entry::Ended(1));
        check(Entry::Handles(u64::MAX));
    }
}
