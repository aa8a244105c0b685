//! What other mounts of the same bucket on this host have changed.
//!
//! All of them share one small file of slots. Whoever has changed a directory writes a fresh value into the directory's
//! slot; whoever finds another value there than it remembers no longer believes what it knows of that directory. So a
//! name that one mount has made is seen by the others at once, without asking the bucket more often.

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// Directories share slots: a change of one then costs the other a question more.
const SLOT_COUNT: u64 = 8192;
const SLOT_LEN: u64 = 8;
/// Behind the slots: how many mounts there are.
const COUNT_AT: u64 = SLOT_COUNT * SLOT_LEN;

/// The shared slots, or none.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    file: Option<File>,
    path: PathBuf,
    next: AtomicU64,
}

impl Neighbours {
    /// Opens the file, or makes it. Every mount holds a shared lock, so that the last one can remove the file.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = loop {
            let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
            file.lock_shared()?;
            // The last mount may just have removed it.
            if std::fs::metadata(path).is_ok_and(|meta| file.metadata().is_ok_and(|own| own.ino() == meta.ino())) {
                break file;
            }
        };
        if file.metadata()?.len() < COUNT_AT + SLOT_LEN {
            file.set_len(COUNT_AT + SLOT_LEN)?;
        }
        Self::enter(path, &file)?;
        // No other mount writes the same values: they begin at a moment and a process of their own.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let moment = u64::from(since.subsec_nanos()) ^ since.as_secs().rotate_left(24);
        Ok(Self {
            file: Some(file),
            path: path.to_owned(),
            next: AtomicU64::new(moment ^ u64::from(std::process::id()).rotate_left(44)),
        })
    }

    /// Counts this mount in.
    fn enter(path: &Path, file: &File) -> io::Result<()> {
        let _one_at_a_time = Self::counting(path)?;
        // Nobody but this mount: what stands there was left by mounts that died.
        let is_alone = file.try_lock().is_ok();
        file.lock_shared()?;
        let others = if is_alone { 0 } else { Self::count(file) };
        file.write_all_at(&(others + 1).to_le_bytes(), COUNT_AT)
    }

    /// A lock on changes of the count, beside the shared one that every mount holds.
    fn counting(path: &Path) -> io::Result<File> {
        let directory = File::open(path.parent().unwrap_or(Path::new(".")))?;
        directory.lock()?;
        Ok(directory)
    }

    fn count(file: &File) -> u64 {
        let mut count = [0; 8];
        // One that cannot be read is taken for company, which is only slower.
        if file.read_exact_at(&mut count, COUNT_AT).is_err() { 2 } else { u64::from_le_bytes(count) }
    }

    /// Whether other mounts have this bucket; also `true` for a while after one died.
    pub(super) fn has_others(&self) -> bool {
        self.file.as_ref().is_some_and(|file| Self::count(file) > 1)
    }

    fn slot(prefix: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(prefix.as_bytes());
        hasher.finish() % SLOT_COUNT * SLOT_LEN
    }

    /// The present value of a directory's slot; 0 if there are no neighbours.
    pub(super) fn value(&self, prefix: &str) -> u64 {
        let Some(file) = &self.file else { return 0 };
        let mut value = [0; 8];
        // A slot that cannot be read means what it means without neighbours: the time to live counts.
        match file.read_exact_at(&mut value, Self::slot(prefix)) {
            Ok(()) => u64::from_le_bytes(value),
            Err(_) => 0,
        }
    }

    /// Says that a directory was changed. Gives the value that says so.
    pub(super) fn tell(&self, prefix: &str) -> u64 {
        let Some(file) = &self.file else { return 0 };
        let value = self.next.fetch_add(1, Ordering::Relaxed);
        match file.write_all_at(&value.to_le_bytes(), Self::slot(prefix)) {
            Ok(()) => value,
            Err(_) => self.value(prefix),
        }
    }
}

impl Neighbours {
    /// Ends the part in it: the last mount removes the file.
    pub(super) fn leave(&self) {
        if let Some(file) = &self.file
            && let Ok(_one_at_a_time) = Self::counting(&self.path)
        {
            // A count that stays too high only makes the others slower.
            let _ = file.write_all_at(&Self::count(file).saturating_sub(1).to_le_bytes(), COUNT_AT);
        }
        if self.file.as_ref().is_some_and(|file| file.try_lock().is_ok()) {
            // A file that stays is found by the next mount.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_by_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slots");
        let (here, there) = (Neighbours::open(&path).unwrap(), Neighbours::open(&path).unwrap());
        let before = there.value("a/");
        let told = here.tell("a/");
        assert_ne!(told, before);
        assert_eq!(there.value("a/"), told);
        assert_ne!(here.tell("a/"), told);
        assert_eq!(Neighbours::default().tell("a/"), 0);
        assert!(here.has_others() && there.has_others() && !Neighbours::default().has_others());
        here.leave();
        assert!(path.exists() && !there.has_others());
        drop(here);
        // One that dies is counted until nobody is left.
        drop(Neighbours::open(&path).unwrap());
        assert!(there.has_others());
        there.leave();
        assert!(!path.exists());
        let again = Neighbours::open(&path).unwrap();
        assert!(!again.has_others());
        again.leave();
    }
}
