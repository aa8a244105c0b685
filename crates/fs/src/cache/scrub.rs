//! Looking through a cache directory: every block is read and compared, so that damage is found before anybody needs it.
//!
//! Mounts may use the directory meanwhile. They write a block's bytes before its sum, and only ever the same bytes: what
//! differs twice is damaged. Taking a block out costs no more than that it is fetched again.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{OFlags, SeekFrom, seek};

use super::{BLOCK_LEN, DiskCache, crc};

/// A file whose other half is missing is left alone so long: a mount may just be making it.
const ORPHAN_AGE: Duration = Duration::from_secs(60);
/// Length of a name: two halves of 64 bits in hexadecimal.
const NAME_LEN: usize = 32;
/// Words of an index that are read at once.
const WORDS: usize = 8192;

/// What was found in a cache directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Versions of objects that have blocks here.
    pub files: u64,
    /// Blocks that are as they were written.
    pub blocks: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Blocks that differed from their sum, or could not be read, and are taken out.
    pub damaged: u64,
    /// Halves of files, and sums without bytes, as an interrupted mount or the removal of old files leaves them; removed.
    pub leftovers: u64,
    /// Files that are not the cache's, which are left alone.
    pub foreign: u64,
}

/// What became of one block.
enum Found {
    Whole(u64),
    Damaged,
    /// It has a sum and no bytes.
    Nothing,
    /// It was taken out meanwhile.
    Gone,
}

impl DiskCache {
    /// Reads every block of the cache directory `dir` and takes out what is damaged, so that it is fetched again, and what
    /// is left over. Mounts may go on using it. Blocks until all is read.
    ///
    /// # Errors
    /// If the directory, or the index of a version, cannot be read or written.
    pub fn scrub(dir: &Path) -> io::Result<Scrubbed> {
        let mut scrubbed = Scrubbed::default();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            match kind(&path) {
                Some("index") => scrub_version(&path, &mut scrubbed)?,
                Some("data") if !path.with_extension("index").exists() => {
                    remove_orphan(&path, &mut scrubbed)?;
                }
                Some(_) => {}
                None => scrubbed.foreign += 1,
            }
        }
        Ok(scrubbed)
    }
}

/// Which of the cache's files it is; `None` for what is not the cache's.
fn kind(path: &Path) -> Option<&str> {
    let is_name = |name: &str| name.len() == NAME_LEN && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    path.file_stem().and_then(OsStr::to_str).filter(|name| is_name(name))?;
    if !std::fs::symlink_metadata(path).ok()?.is_file() {
        return None;
    }
    path.extension().and_then(OsStr::to_str).filter(|kind| matches!(*kind, "index" | "data"))
}

/// Looking is not using: what is used least is removed first.
fn open_unnoticed(path: &Path, writes: bool) -> io::Result<File> {
    let flags = i32::try_from(OFlags::NOATIME.bits()).unwrap_or(0);
    let open = |flags| OpenOptions::new().read(true).write(writes).custom_flags(flags).open(path);
    match open(flags) {
        // Somebody else's file.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => open(0),
        other => other,
    }
}

/// `None` for what is not there.
fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn remove_orphan(path: &Path, scrubbed: &mut Scrubbed) -> io::Result<()> {
    let Some(meta) = if_there(std::fs::symlink_metadata(path))? else { return Ok(()) };
    let age = SystemTime::now().duration_since(meta.modified()?).unwrap_or_default();
    if age >= ORPHAN_AGE && if_there(std::fs::remove_file(path))?.is_some() {
        scrubbed.leftovers += 1;
    }
    Ok(())
}

fn scrub_version(path: &Path, scrubbed: &mut Scrubbed) -> io::Result<()> {
    // Removed by a mount that makes room.
    let Some(index) = if_there(open_unnoticed(path, true))? else { return Ok(()) };
    let Some(data) = if_there(open_unnoticed(&path.with_extension("data"), false))? else {
        return remove_orphan(path, scrubbed);
    };
    scrubbed.files += 1;
    let mut words = vec![0; WORDS * 8];
    let mut first = 0;
    loop {
        let len = read_up_to(&index, &mut words, first * 8)?;
        for (block, word) in (first..).zip(words[..len].chunks_exact(8)) {
            let word = word.try_into().map(u64::from_le_bytes).unwrap_or(0);
            if word == 0 {
                continue;
            }
            match compare(&index, &data, block, word)? {
                Found::Whole(len) => {
                    scrubbed.blocks += 1;
                    scrubbed.bytes += len;
                }
                Found::Damaged => {
                    tracing::warn!(path = %path.display(), block, "a cached block is damaged; it is taken out");
                    index.write_all_at(&[0; 8], block * 8)?;
                    scrubbed.damaged += 1;
                }
                Found::Nothing => {
                    index.write_all_at(&[0; 8], block * 8)?;
                    scrubbed.leftovers += 1;
                }
                Found::Gone => {}
            }
        }
        if len < words.len() {
            return Ok(());
        }
        first += WORDS as u64;
    }
}

/// Reads from `offset` until the buffer is full or the file ends.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read_at(&mut buffer[len..], offset + len as u64) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

fn compare(index: &File, data: &File, block: u64, word: u64) -> io::Result<Found> {
    let start = block.saturating_mul(BLOCK_LEN);
    let mut bytes = vec![0; usize::try_from(BLOCK_LEN).unwrap_or(0)];
    // A mount may write this very block, or have taken it out: then the second look says something else.
    for _ in 0..2 {
        let mut now = [0; 8];
        index.read_exact_at(&mut now, block * 8)?;
        if u64::from_le_bytes(now) != word {
            return Ok(Found::Gone);
        }
        // A sector that cannot be read is damage, too.
        if let Ok(len) = read_up_to(data, &mut bytes, start)
            && crc(&bytes[..len]) == word
        {
            return Ok(Found::Whole(len as u64));
        }
    }
    Ok(if has_bytes(data, start)? { Found::Damaged } else { Found::Nothing })
}

/// Whether the file has bytes, not only a hole or its end, in the block that starts there.
fn has_bytes(data: &File, start: u64) -> io::Result<bool> {
    match seek(data, SeekFrom::Data(start)) {
        Ok(at) => Ok(at < start + BLOCK_LEN),
        Err(rustix::io::Errno::NXIO) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use bytes::Bytes;
    use sandpail_store::{ETag, ObjectKey};

    use super::*;
    use crate::read::ObjectVersion;

    const LEN: u64 = 2 * BLOCK_LEN + 1000;

    fn version(key: &str) -> ObjectVersion {
        ObjectVersion { key: ObjectKey::new(key).unwrap(), etag: ETag::new("tag"), size: LEN }
    }

    fn bytes() -> Bytes {
        (0..LEN).map(|at| u8::try_from(at % 251).unwrap()).collect::<Vec<_>>().into()
    }

    struct World {
        dir: tempfile::TempDir,
        cache: Arc<DiskCache>,
    }

    impl World {
        /// A cache of one object, three blocks.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let cache = DiskCache::open(dir.path(), 1 << 30, "store".into()).unwrap();
            cache.insert(&version("a"), 0, vec![bytes()]);
            Self { dir, cache }
        }

        fn file(&self, kind: &str) -> PathBuf {
            self.cache.path(&version("a"), kind)
        }

        fn open(&self, kind: &str) -> File {
            OpenOptions::new().read(true).write(true).open(self.file(kind)).unwrap()
        }

        fn scrub(&self) -> Scrubbed {
            DiskCache::scrub(self.dir.path()).unwrap()
        }

        fn make_old(&self, kind: &str) {
            self.open(kind).set_modified(SystemTime::now() - 2 * ORPHAN_AGE).unwrap();
        }
    }

    fn whole(blocks: u64, bytes: u64) -> Scrubbed {
        Scrubbed { files: 1, blocks, bytes, ..Scrubbed::default() }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&World), expected: Scrubbed) {
        let world = World::new();
        change(&world);
        assert_eq!(world.scrub(), expected);
        // Once found, it is gone.
        let again = world.scrub();
        assert_eq!((again.damaged, again.leftovers), (0, 0));
        // What is left is served, and the rest can be put in again.
        let version = version("a");
        world.cache.insert(&version, 0, vec![bytes()]);
        for block in 0..3 {
            let start = block * BLOCK_LEN;
            let end = (start + BLOCK_LEN).min(LEN);
            let index = |at| usize::try_from(at).unwrap();
            assert_eq!(world.cache.get(&version, start..end).unwrap(), bytes()[index(start)..index(end)]);
        }
        assert_eq!(DiskCache::scrub(world.dir.path()).unwrap().blocks, 3);
    }

    #[test]
    fn damage_is_found_and_taken_out() {
        let flip = |at: u64| {
            move |world: &World| {
                let (file, mut byte) = (world.open("data"), [0]);
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 16], at).unwrap();
            }
        };
        let cut = |len: u64| move |world: &World| world.open("data").set_len(len).unwrap();
        check(|_| {}, whole(3, LEN));
        check(flip(0), Scrubbed { damaged: 1, ..whole(2, LEN - BLOCK_LEN) });
        check(flip(LEN - 1), Scrubbed { damaged: 1, ..whole(2, LEN - 1000) });
        check(cut(LEN - 1), Scrubbed { damaged: 1, ..whole(2, LEN - 1000) });
        check(cut(100), Scrubbed { damaged: 1, leftovers: 2, ..whole(0, 0) });
        check(cut(0), Scrubbed { leftovers: 3, ..whole(0, 0) });
        // A sum that is none, and one behind the end.
        check(
            |world| world.open("index").write_all_at(&7u64.to_le_bytes(), 8).unwrap(),
            Scrubbed { damaged: 1, ..whole(2, LEN - BLOCK_LEN) },
        );
        check(
            |world| world.open("index").write_all_at(&7u64.to_le_bytes(), 80).unwrap(),
            Scrubbed { leftovers: 1, ..whole(3, LEN) },
        );
    }

    #[test]
    fn leftovers_go_and_what_is_not_the_caches_stays() {
        // A version that was removed and put in again in part, while its index stayed.
        check(
            |world| {
                std::fs::remove_file(world.file("data")).unwrap();
                let from = usize::try_from(BLOCK_LEN).unwrap();
                world.cache.insert(&version("a"), BLOCK_LEN, vec![bytes().slice(from..)]);
            },
            Scrubbed { leftovers: 1, ..whole(2, LEN - BLOCK_LEN) },
        );
        for (gone, left) in [("data", "index"), ("index", "data")] {
            let world = World::new();
            std::fs::remove_file(world.file(gone)).unwrap();
            // A mount may just be making the other half.
            assert_eq!(world.scrub(), Scrubbed::default(), "{left} is new");
            world.make_old(left);
            assert_eq!(world.scrub(), Scrubbed { leftovers: 1, ..Scrubbed::default() });
            assert!(!world.file(left).exists());
        }
        let world = World::new();
        let name = world.file("data").file_name().unwrap().to_owned();
        for foreign in ["notes.data", "README", "0123.index"] {
            std::fs::write(world.dir.path().join(foreign), "mine").unwrap();
        }
        std::fs::create_dir(world.dir.path().join(format!("{}.data", "a".repeat(NAME_LEN)))).unwrap();
        std::os::unix::fs::symlink(name, world.dir.path().join(format!("{}.index", "b".repeat(NAME_LEN)))).unwrap();
        assert_eq!(world.scrub(), Scrubbed { foreign: 5, ..whole(3, LEN) });
        assert_eq!(std::fs::read_dir(world.dir.path()).unwrap().count(), 7);
    }

    #[test]
    fn mounts_go_on_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        // Small, so that files are removed all the time.
        let cache = DiskCache::open(dir.path(), 16 << 20, "store".into()).unwrap();
        let done = AtomicBool::new(false);
        let version = |round: u64| version(&format!("{}", round % 9));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..60 {
                    cache.insert(&version(round), 0, vec![bytes()]);
                }
                done.store(true, Ordering::Release);
            });
            scope.spawn(|| {
                for round in 0.. {
                    if done.load(Ordering::Acquire) {
                        break;
                    }
                    if let Some(found) = cache.get(&version(round), 5..BLOCK_LEN) {
                        assert_eq!(found, bytes()[5..usize::try_from(BLOCK_LEN).unwrap()]);
                    }
                }
            });
            let mut looks = 0;
            while !done.load(Ordering::Acquire) || looks == 0 {
                assert_eq!(DiskCache::scrub(dir.path()).unwrap().damaged, 0, "nothing is damaged");
                looks += 1;
            }
        });
    }
}
