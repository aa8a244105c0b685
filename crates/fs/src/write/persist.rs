//! Bringing a staged file to the disk, for programs that are told it is safe before the bucket has it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::DirtyFile;
use super::dirty_file::not_recorded;
use super::disk;
use crate::{FsError, FsResult};

impl DirtyFile {
    /// Returns when what was written so far is found again also after the machine stopped.
    ///
    /// The order is that of the record: first the bytes, then what says that they are there.
    ///
    /// # Errors
    /// [`FsError::Io`] if the disk fails.
    pub async fn persist(self: &Arc<Self>) -> FsResult<()> {
        let _one = self.persisting.lock().await;
        // Before the bytes are brought there: bytes that are written meanwhile may not be, and the record voids their sums.
        self.note_sums();
        let is_synced = std::mem::replace(&mut self.state().is_synced, true);
        let staged = async {
            if !is_synced {
                let data = Arc::clone(&self.staged.file);
                on_disk(move || data.sync_data()).await?;
            }
            // Its name, and that of its record.
            self.staged.sync_names().await
        };
        if let Err(source) = staged.await {
            self.state().is_synced = false;
            return Err(self.not_persisted(source));
        }
        let log = {
            let mut state = self.state();
            state.journal.durable().map_err(not_recorded(&state.key))?
        };
        let Some(log) = log else { return Ok(()) };
        on_disk(move || log.sync_data()).await.map_err(|source| {
            self.state().journal.not_durable();
            self.not_persisted(source)
        })
    }

    fn not_persisted(&self, source: io::Error) -> FsError {
        FsError::Io { what: format!("cannot bring {} to the disk", self.state().key), source }
    }
}

/// Does what the disk may take long for.
pub(super) async fn on_disk(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    disk::before_sync().await?;
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Brings the names in a directory to the disk; who comes while that is under way shares the next time.
#[derive(Debug)]
pub(super) struct Names {
    dir: Arc<File>,
    /// What the directory itself is named in.
    parent: Arc<File>,
    /// How many names were made, and how many of them are on the disk.
    made: AtomicU64,
    synced: tokio::sync::Mutex<u64>,
}

impl Names {
    pub(super) fn new(dir: File, parent: File) -> Self {
        Self {
            dir: Arc::new(dir),
            parent: Arc::new(parent),
            made: AtomicU64::new(0),
            synced: tokio::sync::Mutex::default(),
        }
    }

    /// A descriptor of the directory, with the same lock.
    pub(super) fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.dir.try_clone()?.into())
    }

    /// Names were made; gives what to ask [`Names::sync`] for.
    pub(super) fn made(&self) -> u64 {
        self.made.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Returns when the names up to `number` are on the disk.
    pub(super) async fn sync(&self, number: u64) -> io::Result<()> {
        let mut synced = self.synced.lock().await;
        if *synced >= number {
            return Ok(());
        }
        let until = self.made.load(Ordering::Acquire);
        let parent = (*synced == 0).then(|| Arc::clone(&self.parent));
        let dir = Arc::clone(&self.dir);
        on_disk(move || parent.map_or(Ok(()), |parent| parent.sync_all()).and_then(|()| dir.sync_all())).await?;
        *synced = until;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sandpail_store::ObjectKey;
    use sandpail_store::memory::MemoryStore;

    use super::*;
    use crate::write::record::{self, of_another_boot};
    use crate::write::{StagingArea, WriteContext, WriteOptions, sums};

    const PAGE: usize = 512;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, usize, u8),
        Truncate(u64),
        Punch(u64, u64),
        Persist,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0..6000u64, 1..1500usize, 1..=255u8).prop_map(|(at, len, byte)| Step::Write(at, len, byte)),
            2 => (0..6000u64).prop_map(Step::Truncate),
            1 => (0..6000u64, 1..2000u64).prop_map(|(at, len)| Step::Punch(at, len)),
            1 => Just(Step::Persist),
        ];
        prop::collection::vec(step, 1..20)
    }

    /// What is on the disk in the end, and what the file was, after one step.
    struct After {
        data: Vec<u8>,
        log: Vec<u8>,
        /// So much of the log was synced.
        synced: usize,
        content: Vec<u8>,
    }

    fn index(at: u64) -> usize {
        usize::try_from(at).unwrap()
    }

    async fn play(steps: &[Step]) -> Vec<After> {
        let directory = tempfile::tempdir().unwrap();
        let staging = StagingArea::open(directory.path(), None).unwrap();
        let options = WriteOptions {
            part_len: 1 << 20,
            max_parallel_parts: 1,
            stream_threshold: u64::MAX,
            let_go_above: None,
            records_tags: true,
        };
        let runtime = tokio::runtime::Handle::current();
        let context = WriteContext::new(Arc::new(MemoryStore::new()), staging, options, runtime);
        let file = DirtyFile::new(Arc::new(context), ObjectKey::new("key").unwrap(), None, 0).unwrap();
        let (mut content, mut synced, mut seen) = (Vec::<u8>::new(), 0, Vec::<After>::new());
        let first = [Step::Write(0, 700, 7), Step::Persist];
        for step in first.iter().chain(steps) {
            match step {
                Step::Write(at, len, byte) => {
                    file.write(*at, &vec![*byte; *len]).unwrap();
                    content.resize(content.len().max(index(*at) + len), 0);
                    content[index(*at)..][..*len].fill(*byte);
                }
                Step::Truncate(size) => {
                    file.truncate(*size).unwrap();
                    content.resize(index(*size), 0);
                }
                Step::Punch(at, len) => {
                    let end = (at + len).min(content.len() as u64);
                    if *at < end {
                        file.punch(*at..end).unwrap();
                        content[index(*at)..index(end)].fill(0);
                    }
                }
                Step::Persist => {
                    file.persist().await.unwrap();
                    seen.clear();
                }
            };
            file.assert_sums();
            let log = record::entries_in(&file.staged.record_path());
            synced = match step {
                Step::Persist => log.len(),
                _ => synced.max(index(file.state().journal.synced_len.get())),
            };
            let data = std::fs::read(file.staged.path()).unwrap();
            seen.push(After { data, log, synced, content: content.clone() });
        }
        seen
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        /// The machine stops: of what was not synced any page may be on the disk or not, and the log may end anywhere.
        #[test]
        fn what_is_safe_survives_a_power_cut(
            steps in steps(),
            pages in prop::collection::vec(any::<prop::sample::Index>(), 16),
            len_of in any::<prop::sample::Index>(),
            cut in any::<prop::sample::Index>(),
            has_zeros in any::<bool>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let safe_last = [&steps[..], &[Step::Persist]].concat();
            for played in [&steps, &safe_last] {
                let seen = runtime.block_on(play(played));
                // Nothing was done since it was safe: the state then is the only one.
                let Some(last) = seen.last() else { continue };
                let mut data = seen[len_of.index(seen.len())].data.clone();
                for (number, (page, chosen)) in data.chunks_mut(PAGE).zip(&pages).enumerate() {
                    let from = &seen[chosen.index(seen.len())].data;
                    for (at, byte) in page.iter_mut().enumerate() {
                        *byte = from.get(number * PAGE + at).copied().unwrap_or(0);
                    }
                }
                let mut log = last.log[..last.synced + cut.index(last.log.len() - last.synced + 1)].to_vec();
                if has_zeros {
                    log.extend([0; 100]);
                }
                let (recorded, _) = record::read(&of_another_boot(&log), data.len() as u64).unwrap();
                prop_assert!(recorded.is_durable() && !recorded.is_doubtful());
                prop_assert_eq!(recorded.missing(data.len() as u64), 0);
                // No sum is wrong, whatever reached the disk; and what was safe, and not touched again, has one.
                for piece in recorded.sums.iter() {
                    let bytes = &data[index(piece.range.start)..index(piece.range.end)];
                    prop_assert_eq!(sums::sum(bytes), piece.crc, "of {:?}", piece.range);
                }
                if seen.len() == 1 {
                    let summed: u64 = recorded.sums.iter().map(|piece| piece.range.end - piece.range.start).sum();
                    prop_assert_eq!(summed, recorded.local.len());
                }
                let lens = seen.iter().map(|after| after.content.len());
                let found_len = index(recorded.size);
                prop_assert!((lens.clone().min().unwrap()..=lens.max().unwrap().max(data.len())).contains(&found_len));
                let is_local = |at: usize| recorded.local.intersects(&(at as u64..at as u64 + 1));
                let found = (0..found_len).map(|at| if is_local(at) { data[at] } else { 0 });
                for (at, byte) in found.enumerate() {
                    let may_be = seen.iter().any(|after| after.content.get(at).copied().unwrap_or(0) == byte);
                    prop_assert!(may_be, "byte {} is {}, which it never was since it was safe", at, byte);
                }
            }
        }
    }
}
