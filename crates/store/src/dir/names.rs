//! Keys as paths. Pure.
//!
//! A key is split at `/`; each segment but the last becomes a directory, the last one a file:
//!
//! | key | path |
//! |---|---|
//! | `a/b.txt` | `a%d/b.txt` |
//! | `c`, `c/d` | `c`, `c%d/d` |
//! | `c/` | `c%d/%e` |
//! | `100%`, `..` | `100%25`, `%2E%2E` |
//! | 300 × `x` | 190 × `x` + `%c` / 110 × `x` |
//!
//! `%` and control characters are written `%XX` with upper-case digits, so a name that ends in `%d`
//! (directory), `%c` (the segment continues below) or is `%e` (empty) never comes out of escaping.
//! A segment is cut right behind the character with which its escaped form reaches [`CUT_LEN`]: the
//! cut depends on nothing that follows, so all longer segments with that beginning lie in one `%c`
//! directory and none of them beside it. Listing in key order relies on this.

use std::path::PathBuf;

/// Escaped length at which a segment is cut. A name is at most this, a character and a mark long.
const CUT_LEN: usize = 190;

const DIRECTORY: &str = "%d";
const CONTINUED: &str = "%c";
const EMPTY: &str = "%e";

/// What a name in the store stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameKind {
    /// An object's file.
    Object,
    /// A directory: the segment ends here with a `/`.
    Directory,
    /// A directory: the segment goes on inside.
    Continued,
}

/// The path of an object, relative to the directory of objects.
pub(super) fn object_path(key: &str) -> PathBuf {
    let (directories, name) = match key.rfind('/') {
        Some(slash) => (&key[..=slash], &key[slash + 1..]),
        None => ("", key),
    };
    let mut path = directory_path(directories);
    let mut chunks = chunks(name).peekable();
    if chunks.peek().is_none() {
        path.push(EMPTY);
    }
    while let Some(chunk) = chunks.next() {
        let mark = if chunks.peek().is_some() { CONTINUED } else { "" };
        path.push(escape(chunk) + mark);
    }
    path
}

/// The path of the directory that holds the keys under `prefix`, which is empty or ends in `/`.
pub(super) fn directory_path(prefix: &str) -> PathBuf {
    let mut path = PathBuf::new();
    for segment in prefix.split_terminator('/') {
        let mut chunks = chunks(segment).peekable();
        if chunks.peek().is_none() {
            path.push(DIRECTORY);
        }
        while let Some(chunk) = chunks.next() {
            let mark = if chunks.peek().is_some() { CONTINUED } else { DIRECTORY };
            path.push(escape(chunk) + mark);
        }
    }
    path
}

/// The file name of a segment's last piece, as [`decode`] returned it.
pub(super) fn object_name(piece: &str) -> String {
    if piece.is_empty() { EMPTY.to_owned() } else { escape(piece) }
}

/// The name of the directory in which the segment goes on behind `piece`.
pub(super) fn continued_name(piece: &str) -> String {
    escape(piece) + CONTINUED
}

/// Reads a name back; `None` for a name that this module does not write.
pub(super) fn decode(name: &str) -> Option<(String, NameKind)> {
    let (escaped, kind) = if let Some(segment) = name.strip_suffix(DIRECTORY) {
        (segment, NameKind::Directory)
    } else if let Some(segment) = name.strip_suffix(CONTINUED) {
        (segment, NameKind::Continued)
    } else if name == EMPTY {
        return Some((String::new(), NameKind::Object));
    } else {
        (name, NameKind::Object)
    };
    let segment = unescape(escaped)?;
    // One spelling per key, or a listing would show what no request can reach.
    let canonical = escape(&segment) == escaped
        && match kind {
            NameKind::Object => !segment.is_empty() && chunks(&segment).count() == 1,
            NameKind::Directory => chunks(&segment).count() <= 1,
            NameKind::Continued => escaped.len() >= CUT_LEN && chunks(&segment).count() == 1,
        };
    canonical.then_some((segment, kind))
}

/// Cuts a segment into pieces that fit a file name; none for an empty one.
fn chunks(segment: &str) -> impl Iterator<Item = &str> {
    let mut rest = segment;
    std::iter::from_fn(move || {
        let mut escaped_len = 0;
        let mut cut = rest.len();
        for (at, char) in rest.char_indices() {
            escaped_len += if is_escaped(char) { 3 } else { char.len_utf8() };
            if escaped_len >= CUT_LEN {
                cut = at + char.len_utf8();
                break;
            }
        }
        let (chunk, after) = rest.split_at(cut);
        rest = after;
        (!chunk.is_empty()).then_some(chunk)
    })
}

fn is_escaped(char: char) -> bool {
    char == '%' || char.is_ascii_control()
}

fn escape(segment: &str) -> String {
    use std::fmt::Write as _;
    if segment == "." || segment == ".." {
        return segment.replace('.', "%2E");
    }
    let mut escaped = String::with_capacity(segment.len() + 2);
    for char in segment.chars() {
        if is_escaped(char) {
            let _ = write!(escaped, "%{:02X}", u32::from(char));
        } else {
            escaped.push(char);
        }
    }
    escaped
}

fn unescape(escaped: &str) -> Option<String> {
    if !escaped.contains('%') {
        return Some(escaped.to_owned());
    }
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            bytes.extend(hex::decode(after.get(..2)?).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(key: &str, path: &str) {
        assert_eq!(object_path(key).to_str().unwrap(), path, "{key:?}");
        assert_eq!(key_of(path).as_deref(), Some(key), "{path}");
    }

    fn key_of(path: &str) -> Option<String> {
        let mut key = String::new();
        for name in path.split('/') {
            let (segment, kind) = decode(name)?;
            key += &segment;
            if kind == NameKind::Directory {
                key.push('/');
            }
        }
        Some(key)
    }

    #[test]
    fn keys_have_readable_paths() {
        check("a", "a");
        check("a/b.txt", "a%d/b.txt");
        check("c/", "c%d/%e");
        check("/", "%d/%e");
        check("//x", "%d/%d/x");
        check("..", "%2E%2E");
        check("../.", "%2E%2E%d/%2E");
        check("100%", "100%25");
        check("a%d", "a%25d");
        check("a+b c\u{1}ü😀", "a+b c%01ü😀");
        check(&"x".repeat(190), &"x".repeat(190));
        check(&"x".repeat(191), &format!("{}%c/x", "x".repeat(190)));
        check(&format!("{}/y", "x".repeat(190)), &format!("{}%d/y", "x".repeat(190)));
        check(&format!("{}/y", "x".repeat(191)), &format!("{}%c/x%d/y", "x".repeat(190)));
    }

    #[test]
    fn foreign_names_are_no_keys() {
        for name in ["%", "%zz", "%2e", "%2F%", "%41", ".", "..", "a%2", "x%c", "%", &"x".repeat(191), "a%e"] {
            assert_eq!(decode(name), None, "{name}");
        }
        // An escaped slash cannot come out of a key either.
        assert_eq!(decode("a%2Fb"), None);
    }

    #[test]
    fn the_longest_keys_have_legal_paths() {
        for unit in ["/", "%", "%/", "x", "😀", "\u{1}/a"] {
            let key: String = unit.repeat(1024 / unit.len());
            let path = object_path(&key);
            assert!(path.as_os_str().len() < 3600, "{unit}: {}", path.as_os_str().len());
            assert!(path.iter().all(|name| name.len() <= 200), "{unit}");
            assert_eq!(key_of(path.to_str().unwrap()).as_deref(), Some(&*key));
        }
    }

    proptest! {
        #[test]
        fn every_key_comes_back_and_no_two_share_a_path(keys in prop::collection::vec("[a%/.cde\u{1}ü]{1,12}", 1..20)) {
            let mut paths = BTreeMap::new();
            for key in keys {
                let path = object_path(&key).to_str().unwrap().to_owned();
                prop_assert_eq!(key_of(&path), Some(key.clone()));
                if let Some(other) = paths.insert(path, key.clone()) {
                    prop_assert_eq!(other, key);
                }
            }
        }
    }
}
