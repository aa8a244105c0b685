//! Key parts and file names: what cannot be a name is escaped, reversibly.
//!
//! A key is cut at every `/` into *segments*; a segment is shown as a *name*. Almost always they are
//! the same text. The rest begins with [`ESCAPE`]:
//!
//! | segment | name |
//! |---|---|
//! | empty (`a//b`), `.`, `..` | `=sp=`, `=sp=.`, `=sp=..` |
//! | begins with `=sp=` | `=sp=` + segment |
//! | a file that stands beside a directory of its name | `=sp=f:` + name |
//! | longer than 255 bytes | `=sp=l:` + its beginning + `~` + hash; found by listing |
//! | `=sp=b:` + percent-encoded bytes | those bytes, which are not UTF-8 |
//!
//! The last row works the other way: S3 keys are UTF-8, so a name that is not becomes such a segment.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hasher};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};

use crate::{FsError, FsResult};

/// What an escaped name begins with.
pub const ESCAPE: &str = "=sp=";
/// Linux's longest file name, in bytes.
pub const NAME_MAX: usize = 255;

const BYTES: &str = "=sp=b:";
const SHADOWED: &str = "=sp=f:";
const LONG: &str = "=sp=l:";
/// How much of a long segment its name shows.
const LONG_SHOWN: usize = 160;
/// `%` itself must be encoded, or decoding would not be the inverse.
const BYTES_SET: &AsciiSet = &CONTROLS.add(b'%');

/// What a name asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked<'a> {
    /// The segment, file or directory.
    Segment(Cow<'a, str>),
    /// The file of this segment that is hidden behind a directory of the same name.
    ShadowedFile(Cow<'a, str>),
    /// A shortened name: only the listing of the directory knows its segment.
    Shortened,
}

/// The name under which a segment is shown.
pub fn name_of(segment: &str) -> Cow<'_, [u8]> {
    if segment.starts_with(BYTES)
        && let Some(bytes) = decode_bytes(segment)
    {
        return Cow::Owned(bytes);
    }
    let plain = if matches!(segment, "" | "." | "..") || segment.starts_with(ESCAPE) {
        Cow::Owned(format!("{ESCAPE}{segment}"))
    } else {
        Cow::Borrowed(segment)
    };
    if plain.len() > NAME_MAX {
        return Cow::Owned(shortened(segment).into_bytes());
    }
    match plain {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

/// The name of a file that stands beside a directory of the same segment.
pub fn shadowed_name_of(segment: &str) -> Vec<u8> {
    let mut name = SHADOWED.as_bytes().to_vec();
    name.extend_from_slice(&name_of(segment));
    if name.len() > NAME_MAX {
        // Found by listing, as every shortened name; the mark keeps it apart from the directory's.
        return shortened(&format!("{SHADOWED}{segment}")).into_bytes();
    }
    name
}

/// What a name stands for; the inverse of [`name_of`] and [`shadowed_name_of`].
///
/// # Errors
/// [`FsError::NameTooLong`] over 255 bytes; [`FsError::Invalid`] for a name that begins with the escape
/// and is none of ours.
pub fn asked_for(name: &[u8]) -> FsResult<Asked<'_>> {
    if name.len() > NAME_MAX {
        return Err(FsError::NameTooLong { what: format!("{:.60}…", String::from_utf8_lossy(name)) });
    }
    let Ok(text) = std::str::from_utf8(name) else {
        let segment = format!("{BYTES}{}", percent_encode(name, BYTES_SET));
        return Ok(Asked::Segment(Cow::Owned(segment)));
    };
    if !text.starts_with(ESCAPE) {
        return Ok(Asked::Segment(Cow::Borrowed(text)));
    }
    if text.starts_with(LONG) {
        return Ok(Asked::Shortened);
    }
    if let Some(inner) = text.strip_prefix(SHADOWED) {
        return match asked_for(inner.as_bytes())? {
            Asked::Segment(segment) => Ok(Asked::ShadowedFile(Cow::Owned(segment.into_owned()))),
            _ => Err(unknown(text)),
        };
    }
    let segment = &text[ESCAPE.len()..];
    if name_of(segment) == name { Ok(Asked::Segment(Cow::Borrowed(segment))) } else { Err(unknown(text)) }
}

fn unknown(name: &str) -> FsError {
    FsError::Invalid {
        what: format!("name {name:?}: names that begin with {ESCAPE:?} are escapes (docs/semantics.md)"),
    }
}

fn decode_bytes(segment: &str) -> Option<Vec<u8>> {
    let bytes: Vec<u8> = percent_decode_str(segment.strip_prefix(BYTES)?).collect();
    let odd = std::str::from_utf8(&bytes).is_err() && bytes.len() <= NAME_MAX && !bytes.contains(&b'/');
    // Only what we would write ourselves, so that two segments never share a name.
    (odd && !bytes.contains(&0) && format!("{BYTES}{}", percent_encode(&bytes, BYTES_SET)) == segment).then_some(bytes)
}

fn shortened(segment: &str) -> String {
    let mut end = LONG_SHOWN.min(segment.len());
    while !segment.is_char_boundary(end) {
        end -= 1;
    }
    // SipHash with fixed keys: equal on every run and host.
    let mut hasher = DefaultHasher::new();
    hasher.write(segment.as_bytes());
    format!("{LONG}{}~{:016x}", &segment[..end], hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(segment: &str, name: &str) {
        assert_eq!(String::from_utf8_lossy(&name_of(segment)), name, "name of {segment:?}");
        assert_eq!(asked_for(name.as_bytes()).unwrap(), Asked::Segment(segment.into()), "segment of {name:?}");
    }

    #[test]
    fn every_segment_has_a_name_that_leads_back() {
        check("plain.txt", "plain.txt");
        check("ü %+ &", "ü %+ &");
        check("", "=sp=");
        check(".", "=sp=.");
        check("..", "=sp=..");
        check("=sp=", "=sp==sp=");
        check("=sp=f:x", "=sp==sp=f:x");
        check("=sp=b:plain", "=sp==sp=b:plain");
        check("...", "...");
    }

    #[test]
    fn bytes_that_are_no_text_become_a_segment_and_come_back() {
        let name = b"caf\xe9%41";
        let Asked::Segment(segment) = asked_for(name).unwrap() else { panic!() };
        assert_eq!(&*name_of(&segment), name);
    }

    #[test]
    fn a_long_segment_gets_a_short_name_of_its_own() {
        let (a, b) = (format!("{}a", "é".repeat(200)), format!("{}b", "é".repeat(200)));
        let (name_a, name_b) = (name_of(&a).into_owned(), name_of(&b).into_owned());
        assert!(name_a.len() <= NAME_MAX && name_a != name_b);
        assert_eq!(asked_for(&name_a).unwrap(), Asked::Shortened);
    }

    #[test]
    fn a_shadowed_file_has_a_name() {
        assert_eq!(shadowed_name_of("a"), b"=sp=f:a");
        assert_eq!(asked_for(b"=sp=f:a").unwrap(), Asked::ShadowedFile("a".into()));
    }

    #[test]
    fn unknown_escapes_and_long_names_are_refused() {
        assert!(matches!(asked_for(b"=sp=zzz"), Err(FsError::Invalid { .. })));
        assert!(matches!(asked_for(&[b'a'; 256]), Err(FsError::NameTooLong { .. })));
    }
}
