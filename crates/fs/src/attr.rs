//! File attributes, and how they stand in an object's user metadata.
//!
//! The names and forms are those of s3fs (`mode` as the decimal `st_mode`, `uid`, `gid`, times as
//! decimal seconds with an optional fraction, `xattr` as URL-encoded JSON), which rclone reads too.
//! Values that make no sense are ignored one by one: another tool's metadata never hides a file.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sandpail_store::ObjectAttributes;

use crate::{FsError, FsResult};

/// `S_IFMT`
pub const S_IFMT: u32 = 0o170_000;
/// `S_IFREG`
pub const S_IFREG: u32 = 0o100_000;
/// `S_IFDIR`
pub const S_IFDIR: u32 = 0o040_000;
/// `S_IFLNK`
pub const S_IFLNK: u32 = 0o120_000;

/// S3 takes 2 KB of user metadata: names and values together.
const METADATA_LEN_MAX: usize = 2048;
/// What s3fs gives its directory markers.
const DIRECTORY_TYPE: &str = "application/x-directory";

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
}

impl Kind {
    /// The file type bits of `st_mode`.
    pub fn type_bits(self) -> u32 {
        match self {
            Self::File => S_IFREG,
            Self::Directory => S_IFDIR,
            Self::Symlink => S_IFLNK,
        }
    }
}

/// A point in time: seconds since 1970 (may be negative) and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub secs: i64,
    /// 0..1e9.
    pub nanos: u32,
}

impl Time {
    /// The present.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// Reads decimal seconds with an optional fraction.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let secs: i64 = whole.parse().ok()?;
        if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
        let nanos: u32 = digits.parse().ok()?;
        if whole.starts_with('-') && nanos > 0 {
            return Some(Self { secs: secs.checked_sub(1)?, nanos: 1_000_000_000 - nanos });
        }
        Some(Self { secs, nanos })
    }

    /// Decimal seconds, as [`Time::parse`] reads them.
    pub(crate) fn text(self) -> String {
        if self.nanos == 0 {
            return self.secs.to_string();
        }
        if self.secs < 0 {
            let (secs, nanos) = (self.secs + 1, 1_000_000_000 - self.nanos);
            return format!("{}{secs}.{nanos:09}", if secs == 0 { "-" } else { "" });
        }
        format!("{}.{:09}", self.secs, self.nanos)
    }
}

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) => Self { secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() },
            Err(before) => {
                let before = before.duration();
                let secs = -i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                match before.subsec_nanos() {
                    0 => Self { secs, nanos: 0 },
                    nanos => Self { secs: secs - 1, nanos: 1_000_000_000 - nanos },
                }
            }
        }
    }
}

impl From<Time> for SystemTime {
    fn from(time: Time) -> Self {
        let nanos = Duration::from_nanos(time.nanos.into());
        let base = if time.secs >= 0 {
            UNIX_EPOCH.checked_add(Duration::from_secs(time.secs.unsigned_abs()))
        } else {
            UNIX_EPOCH.checked_sub(Duration::from_secs(time.secs.unsigned_abs()))
        };
        base.and_then(|base| base.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
    }
}

/// What `stat` shows, without the inode number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// What it is.
    pub kind: Kind,
    /// Permission bits (`mode & 07777`).
    pub perm: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Last access, as last set.
    pub atime: Time,
    /// Last change of the contents.
    pub mtime: Time,
    /// Last change of the attributes.
    pub ctime: Time,
}

/// What objects without metadata get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits of files.
    pub file_perm: u32,
    /// Permission bits of directories.
    pub dir_perm: u32,
}

impl Attr {
    /// The attributes of something of which only kind, size and age are known.
    pub fn plain(kind: Kind, size: u64, modified: SystemTime, defaults: &Defaults) -> Self {
        let time = modified.into();
        let perm = match kind {
            Kind::File => defaults.file_perm,
            Kind::Directory => defaults.dir_perm,
            Kind::Symlink => 0o777,
        };
        Self { kind, perm, uid: defaults.uid, gid: defaults.gid, size, atime: time, mtime: time, ctime: time }
    }

    /// The attributes that an object's metadata tells; `directory` if its key ends in `/`.
    pub fn of_object(
        attributes: &ObjectAttributes,
        size: u64,
        modified: SystemTime,
        directory: bool,
        defaults: &Defaults,
    ) -> Self {
        let get = |name: &str| attributes.metadata.get(name).map(String::as_str);
        let mode = get("mode").and_then(parse_mode);
        let kind = match mode.map(|mode| mode & S_IFMT) {
            _ if directory => Kind::Directory,
            Some(S_IFLNK) if size > 0 => Kind::Symlink,
            _ => Kind::File,
        };
        let mut attr = Self::plain(kind, if directory { 0 } else { size }, modified, defaults);
        if let Some(mode) = mode {
            attr.perm = mode & 0o7777;
        }
        attr.uid = get("uid").and_then(|uid| uid.trim().parse().ok()).unwrap_or(attr.uid);
        attr.gid = get("gid").and_then(|gid| gid.trim().parse().ok()).unwrap_or(attr.gid);
        attr.mtime = get("mtime").and_then(Time::parse).unwrap_or(attr.mtime);
        attr.ctime = get("ctime").and_then(Time::parse).unwrap_or(attr.mtime);
        attr.atime = get("atime").and_then(Time::parse).unwrap_or(attr.mtime);
        attr
    }

    /// Undoes a change from `before` to `after`, where nothing else has changed it since.
    pub(crate) fn take_back(&mut self, after: &Self, before: &Self) {
        fn one<T: PartialEq + Copy>(now: &mut T, after: T, before: T) {
            if *now == after {
                *now = before;
            }
        }
        one(&mut self.perm, after.perm, before.perm);
        one(&mut self.uid, after.uid, before.uid);
        one(&mut self.gid, after.gid, before.gid);
        one(&mut self.atime, after.atime, before.atime);
        one(&mut self.mtime, after.mtime, before.mtime);
        one(&mut self.ctime, after.ctime, before.ctime);
    }

    /// Puts these attributes into an object's metadata and keeps what else is there.
    pub fn store_in(&self, attributes: &mut ObjectAttributes) {
        let metadata = &mut attributes.metadata;
        let mut set = |name: &str, value: String| metadata.insert(name.to_owned(), value);
        set("mode", (self.kind.type_bits() | self.perm).to_string());
        set("uid", self.uid.to_string());
        set("gid", self.gid.to_string());
        set("mtime", self.mtime.text());
        set("ctime", self.ctime.text());
        set("atime", self.atime.text());
        if self.kind == Kind::Directory && attributes.content_type.is_none() {
            attributes.content_type = Some(DIRECTORY_TYPE.to_owned());
        }
    }
}

/// Reads `mode`: s3fs writes decimal, rclone octal.
fn parse_mode(text: &str) -> Option<u32> {
    let text = text.trim();
    let is_type = |mode: u32| mode <= 0o177_777 && matches!(mode & S_IFMT, S_IFREG | S_IFDIR | S_IFLNK);
    let decimal = text.parse::<u32>().ok();
    let octal = u32::from_str_radix(text.trim_start_matches("0o"), 8).ok();
    if let Some(mode) = decimal.filter(|mode| is_type(*mode)) {
        return Some(mode);
    }
    if let Some(mode) = octal.filter(|mode| is_type(*mode) || *mode <= 0o7777) {
        return Some(mode);
    }
    decimal.filter(|mode| *mode <= 0o7777)
}

/// The `user.*` attributes that the metadata holds, by full name.
pub fn xattrs(attributes: &ObjectAttributes) -> BTreeMap<String, Vec<u8>> {
    let Some(text) = attributes.metadata.get("xattr") else { return BTreeMap::new() };
    let json = percent_decode_str(text).decode_utf8_lossy();
    let Ok(all) = serde_json::from_str::<BTreeMap<String, String>>(&json) else { return BTreeMap::new() };
    all.into_iter().filter_map(|(name, value)| Some((name, BASE64.decode(value).ok()?))).collect()
}

/// Puts the `user.*` attributes into the metadata.
///
/// # Errors
/// [`FsError::NoSpace`] if S3's 2 KB of user metadata do not hold them.
pub fn set_xattrs(attributes: &mut ObjectAttributes, all: &BTreeMap<String, Vec<u8>>) -> FsResult<()> {
    if all.is_empty() {
        attributes.metadata.remove("xattr");
        return Ok(());
    }
    let encoded: BTreeMap<&str, String> = all.iter().map(|(k, v)| (k.as_str(), BASE64.encode(v))).collect();
    let json = serde_json::to_string(&encoded).map_err(|_| FsError::Invalid { what: "attribute name".to_owned() })?;
    let text = utf8_percent_encode(&json, NON_ALPHANUMERIC).to_string();
    let others: usize = attributes.metadata.iter().filter(|(k, _)| *k != "xattr").map(|(k, v)| k.len() + v.len()).sum();
    // Mode, owner and times may still have to be added.
    const RESERVED: usize = 160;
    if others + text.len() + "xattr".len() + RESERVED > METADATA_LEN_MAX {
        return Err(FsError::NoSpace { what: "extended attributes exceed S3's 2 KB of user metadata".to_owned() });
    }
    attributes.metadata.insert("xattr".to_owned(), text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: Defaults = Defaults { uid: 1, gid: 2, file_perm: 0o644, dir_perm: 0o755 };

    fn with(metadata: &[(&str, &str)]) -> ObjectAttributes {
        let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        ObjectAttributes { metadata, ..ObjectAttributes::default() }
    }

    #[track_caller]
    fn check_mode(text: &str, kind: Kind, perm: u32) {
        let attr = Attr::of_object(&with(&[("mode", text)]), 3, UNIX_EPOCH, false, &DEFAULTS);
        assert_eq!((attr.kind, attr.perm), (kind, perm), "{text}");
    }

    #[test]
    fn modes_of_other_tools() {
        check_mode("33188", Kind::File, 0o644); // s3fs
        check_mode("41471", Kind::Symlink, 0o777); // s3fs
        check_mode("100664", Kind::File, 0o664); // rclone
        check_mode("0755", Kind::File, 0o755);
        check_mode("garbage", Kind::File, 0o644);
        check_mode("-1", Kind::File, 0o644);
        check_mode("99999999999999", Kind::File, 0o644);
    }

    #[test]
    fn times_round_trip() {
        for text in ["0", "1700000000", "1700000000.123456789", "-1", "-1.500000000", "-0.250000000"] {
            assert_eq!(Time::parse(text).unwrap().text(), text);
        }
        assert_eq!(Time::parse("1.5").unwrap(), Time { secs: 1, nanos: 500_000_000 });
        assert_eq!(Time::parse("x"), None);
        assert_eq!(Time::parse("1.x"), None);
        let time = Time { secs: -2, nanos: 5 };
        assert_eq!(Time::from(SystemTime::from(time)), time);
    }

    #[test]
    fn attributes_round_trip_and_keep_the_rest() {
        let mut attributes = with(&[("project", "x")]);
        let attr = Attr {
            perm: 0o4751,
            uid: 7,
            mtime: Time { secs: 9, nanos: 1 },
            ..Attr::plain(Kind::File, 5, UNIX_EPOCH, &DEFAULTS)
        };
        attr.store_in(&mut attributes);
        assert_eq!(attributes.metadata["project"], "x");
        assert_eq!(Attr::of_object(&attributes, 5, SystemTime::now(), false, &DEFAULTS), attr);
    }

    #[test]
    fn xattrs_round_trip_within_the_limit() {
        let mut attributes = with(&[]);
        let mut all = BTreeMap::from([("user.a".to_owned(), vec![0, 255, 7])]);
        set_xattrs(&mut attributes, &all).unwrap();
        assert_eq!(xattrs(&attributes), all);
        all.insert("user.big".to_owned(), vec![0; 2000]);
        assert!(matches!(set_xattrs(&mut attributes, &all), Err(FsError::NoSpace { .. })));
        attributes.metadata.insert("xattr".to_owned(), "no json".to_owned());
        assert!(xattrs(&attributes).is_empty());
    }
}
