//! A staged file of a process that died, taken up again.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::Instant;

use super::dirty_file::{State, not_recorded};
use super::journal::Journal;
use super::stream::Stream;
use super::sums::Sums;
use super::{DirtyFile, Recorded, WriteContext};
use crate::{FsError, FsResult};

/// The files of one kept staging file.
#[derive(Debug)]
pub(crate) struct Remains {
    pub(crate) data: File,
    pub(crate) path: PathBuf,
    pub(crate) log: File,
    /// How much of the log is whole.
    pub(crate) log_len: u64,
}

impl DirtyFile {
    /// The file as it was when its process died. Its staging file and record stay when it is dropped.
    ///
    /// # Errors
    /// [`FsError::Io`].
    pub(crate) fn resume(context: Arc<WriteContext>, recorded: &Recorded, remains: Remains) -> FsResult<Arc<Self>> {
        let failed = |source| FsError::Io { what: format!("cannot use {}", remains.path.display()), source };
        let data_len = remains.data.metadata().map_err(failed)?.len();
        let journal = Journal::resume(remains.log, remains.log_len, data_len, recorded);
        let journal = journal.map_err(not_recorded(&recorded.key))?;
        let staged = context.staging.resume(remains.data, remains.path);
        // What is not the base's may differ from it.
        let mut dirty = recorded.local.clone();
        dirty.insert(recorded.base.as_ref().map_or(0, |base| base.limit)..recorded.size);
        let state = State {
            key: recorded.key.clone(),
            size: recorded.size,
            local: recorded.local.clone(),
            // What has none gets it when the file is at rest again: reading it all now would make programs wait, and shows
            // nothing that could be compared.
            sums: Sums::recorded(recorded.sums.iter()),
            dirty,
            is_changed: true,
            changed_since: Some(Instant::now()),
            under_way: None,
            replaces: recorded.replaces.clone(),
            base: recorded.base.clone(),
            attempt: None,
            found: None,
            may_be_removed: recorded.may_be_removed,
            in_upload: recorded.in_upload.clone(),
            times_let_go: 0,
            low_water: recorded.size,
            attributes: recorded.attributes.clone(),
            stream: None,
            stays_here: recorded.is_unlinked && recorded.in_upload.is_empty(),
            is_synced: false,
            journal,
        };
        let file = Self::with_state(context, staged, state);
        let stream = Stream::resume(recorded, |number| file.stream_part_len(number));
        file.state().stream = stream;
        Ok(Arc::new(file))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;
    use std::path::Path;
    use std::rc::Rc;

    use bytes::Bytes;
    use futures_util::FutureExt;
    use proptest::prelude::*;
    use sandpail_store::memory::MemoryStore;
    use sandpail_store::{Capabilities, Condition, ETag, ObjectAttributes, ObjectKey, Store, collect};

    use super::*;
    use crate::read::ObjectVersion;
    use crate::recover::{Damage, KeptFiles, PutBack};
    use crate::write::record::{self, RecordProblem};
    use crate::write::{Base, BaseReader, StagingArea, WriteOptions, crash, sums};

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, usize, u8),
        Append(usize, u8),
        Truncate(u64),
        Punch(u64, u64),
        Commit,
        /// A rename, or a change of attributes: the same bytes under another tag.
        Moved,
        /// The object goes, as when an open file is removed.
        Materialise,
        Describe(bool),
        /// Uploads beside the writing go on.
        Wait,
        /// It is closed, with write-back.
        Persist,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            5 => (0..9000u64, 1..2500usize, 1..=255u8).prop_map(|(at, len, byte)| Step::Write(at, len, byte)),
            6 => (1..2500usize, 1..=255u8).prop_map(|(len, byte)| Step::Append(len, byte)),
            2 => (0..9000u64).prop_map(Step::Truncate),
            1 => (0..9000u64, 1..3000u64).prop_map(|(at, len)| Step::Punch(at, len)),
            1 => Just(Step::Commit),
            1 => Just(Step::Moved),
            1 => Just(Step::Materialise),
            1 => any::<bool>().prop_map(Step::Describe),
            3 => Just(Step::Wait),
            2 => Just(Step::Persist),
        ];
        prop::collection::vec(step, 1..16)
    }

    struct FromStore(Arc<dyn Store>);

    #[async_trait::async_trait]
    impl BaseReader for FromStore {
        async fn read_base(
            &self,
            _handle: u64,
            version: &ObjectVersion,
            range: std::ops::Range<u64>,
        ) -> FsResult<Vec<Bytes>> {
            let failed = |source| FsError::Store { what: "read".to_owned(), source };
            let download = self.0.get(&version.key, range, Some(&version.etag)).await.map_err(failed)?;
            Ok(vec![collect(download, 1 << 20).await.map_err(failed)?])
        }
    }

    /// What a process that was killed would have left.
    #[derive(Clone)]
    struct Left {
        log: Vec<u8>,
        data: Vec<u8>,
    }

    fn index(at: u64) -> usize {
        usize::try_from(at).unwrap()
    }

    /// The file that a log and a staging file stand for; `None` for bytes that are only in an upload.
    fn contents(log: &[u8], data: &[u8], versions: &HashMap<ETag, Bytes>) -> Result<Vec<Option<u8>>, RecordProblem> {
        let (recorded, _) = record::read(log, data.len() as u64)?;
        let mut bytes = vec![Some(0); index(recorded.size)];
        if let Some(base) = &recorded.base {
            let object = &versions[&base.version.etag];
            for at in 0..index(base.limit) {
                bytes[at] = Some(object[at]);
            }
        }
        for range in recorded.in_upload.iter() {
            bytes[index(range.start)..index(range.end)].fill(None);
        }
        assert_eq!(recorded.missing(data.len() as u64), 0);
        for piece in recorded.sums.iter() {
            let bytes = &data[index(piece.range.start)..index(piece.range.end)];
            assert_eq!(sums::sum(bytes), piece.crc, "a false alarm at {:?}", piece.range);
        }
        for range in recorded.local.iter() {
            for at in index(range.start)..index(range.end) {
                bytes[at] = Some(data[at]);
            }
        }
        Ok(bytes)
    }

    /// Whether a file is as it was before or after a step; a write may be there in part.
    fn is_between(found: &[Option<u8>], before: &[u8], after: &[u8]) -> bool {
        let lens = before.len().min(after.len())..=before.len().max(after.len());
        lens.contains(&found.len())
            && found
                .iter()
                .enumerate()
                .all(|(at, byte)| byte.is_none_or(|byte| before.get(at) == Some(&byte) || after.get(at) == Some(&byte)))
    }

    struct Played {
        store: Arc<dyn Store>,
        key: ObjectKey,
        expected: Vec<u8>,
        left: Left,
        /// Holds the parts of its upload.
        _file: Arc<DirtyFile>,
        _directory: tempfile::TempDir,
    }

    async fn play(steps: Vec<Step>, let_go_above: Option<u64>, on_base: bool) -> Result<Played, TestCaseError> {
        let directory = tempfile::tempdir().unwrap();
        let limits = Capabilities { part_len_min: 1, ..Capabilities::default() };
        let store: Arc<dyn Store> = Arc::new(MemoryStore::with_capabilities(limits));
        let staging = StagingArea::open(directory.path(), None).unwrap();
        let options = WriteOptions {
            part_len: 1000,
            max_parallel_parts: 2,
            stream_threshold: 2000,
            let_go_above,
            records_tags: true,
        };
        let context = WriteContext::new(Arc::clone(&store), staging, options, tokio::runtime::Handle::current());
        let key = ObjectKey::new("a/key with \"odd\" \u{1} bytes.record").unwrap();
        let versions: Rc<RefCell<HashMap<ETag, Bytes>>> = Rc::default();
        let (mut expected, mut base) = (Vec::new(), None);
        if on_base {
            expected = (0..7000).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let body = Bytes::from(expected.clone());
            let put =
                store.put(&key, body.clone().into(), &ObjectAttributes::default(), &Condition::Always).await.unwrap();
            versions.borrow_mut().insert(put.etag.clone(), body);
            base = Some(Base { version: ObjectVersion { key: key.clone(), etag: put.etag, size: 7000 }, limit: 7000 });
        }
        let file = DirtyFile::new(Arc::new(context), key.clone(), base, expected.len() as u64).unwrap();
        let from_store = FromStore(Arc::clone(&store));
        let (log_path, data_path) = (file.staged.record_path(), file.staged.path().to_owned());
        let look = move || Left { log: record::entries_in(&log_path), data: std::fs::read(&data_path).unwrap() };
        let seen: Rc<RefCell<Vec<Left>>> = Rc::default();
        let (look_at_point, seen_at_point) = (look.clone(), Rc::clone(&seen));
        let (store_at_point, key_at_point, versions_at_point) = (Arc::clone(&store), key.clone(), Rc::clone(&versions));
        crash::watch(move || {
            // One commit may make two versions. This store never waits.
            note_version(&*store_at_point, &key_at_point, &versions_at_point).now_or_never().unwrap();
            seen_at_point.borrow_mut().push(look_at_point());
        });
        let mut last = look();
        for step in &steps {
            let before = expected.clone();
            match step {
                Step::Write(at, len, byte) => {
                    expected.resize(expected.len().max(index(*at) + len), 0);
                    expected[index(*at)..][..*len].fill(*byte);
                    file.write(*at, &vec![*byte; *len]).unwrap();
                }
                Step::Append(len, byte) => {
                    file.write(expected.len() as u64, &vec![*byte; *len]).unwrap();
                    expected.resize(expected.len() + len, *byte);
                }
                Step::Truncate(size) => {
                    if let Err(FsError::InUpload { .. }) = file.truncate(*size) {
                        file.commit(&ObjectAttributes::default(), &Condition::Always, &from_store).await.unwrap();
                        note_version(&*store, &key, &versions).await;
                        file.truncate(*size).unwrap();
                    }
                    expected.resize(index(*size), 0);
                }
                Step::Punch(at, len) => {
                    let end = (at + len).min(expected.len() as u64);
                    if *at < end {
                        file.punch(*at..end).unwrap();
                        expected[index(*at)..index(end)].fill(0);
                    }
                }
                Step::Commit => {
                    file.commit(&ObjectAttributes::default(), &Condition::Always, &from_store).await.unwrap();
                }
                Step::Moved => {
                    if file.is_dirty() {
                        continue;
                    }
                    let Ok(info) = store.head(&key).await else { continue };
                    file.set_base_version(ObjectVersion { key: key.clone(), etag: info.etag, size: info.size });
                }
                Step::Materialise => match file.materialise(&from_store).await {
                    Ok(()) | Err(FsError::InUpload { .. }) => {}
                    Err(error) => panic!("{error}"),
                },
                Step::Persist => {
                    let times_let_go = file.state().times_let_go;
                    file.persist().await.unwrap();
                    // Nothing that a program was told is safe is without a sum, but for what stands beside a part, in its
                    // block, that went meanwhile.
                    if file.state().times_let_go == times_let_go {
                        let now = look();
                        let (recorded, _) = record::read(&now.log, now.data.len() as u64).unwrap();
                        let mut rest = recorded.local.clone();
                        recorded.sums.iter().for_each(|piece| rest.remove(piece.range));
                        prop_assert!(rest.is_empty(), "{:?}", rest);
                    }
                }
                Step::Describe(times) => file.describe(ObjectAttributes::default(), *times).unwrap(),
                Step::Wait => {
                    while file.state().stream.as_ref().is_some_and(|stream| stream.is_busy()) {
                        tokio::task::yield_now().await;
                    }
                }
            }
            note_version(&*store, &key, &versions).await;
            for left in seen.borrow_mut().drain(..) {
                // Killed here, or while the last entry was being written.
                let from = if left.log.starts_with(&last.log) { last.log.len() } else { left.log.len() };
                for len in from..=left.log.len() {
                    let found = match contents(&left.log[..len], &left.data, &versions.borrow()) {
                        Ok(found) => found,
                        // Nothing was recorded yet, for nothing was changed.
                        Err(_) if last.log.is_empty() => continue,
                        Err(problem) => panic!("{problem} at {step:?}"),
                    };
                    prop_assert!(
                        is_between(&found, &before, &expected),
                        "killed at {:?}, {} bytes of the log",
                        step,
                        len
                    );
                }
                last = left;
            }
            let now = look();
            if !now.log.is_empty() {
                let found = contents(&now.log, &now.data, &versions.borrow()).unwrap();
                prop_assert!(is_between(&found, &expected, &expected), "after {:?}", step);
                prop_assert_eq!(found.len(), expected.len());
            }
            prop_assert_eq!(file.size(), expected.len() as u64);
        }
        crash::watch(|| {});
        Ok(Played { store, key, expected, left: look(), _file: file, _directory: directory })
    }

    /// Keeps what an object held, by its tag.
    async fn note_version(store: &dyn Store, key: &ObjectKey, versions: &RefCell<HashMap<ETag, Bytes>>) {
        let Ok(info) = store.head(key).await else { return };
        let is_known = versions.borrow().contains_key(&info.etag);
        if !is_known {
            let bytes = object(store, key).await;
            versions.borrow_mut().insert(info.etag, bytes);
        }
    }

    async fn object(store: &dyn Store, key: &ObjectKey) -> Bytes {
        let size = store.head(key).await.unwrap().size;
        if size == 0 {
            return Bytes::new();
        }
        collect(store.get(key, 0..size, None).await.unwrap(), 1 << 20).await.unwrap()
    }

    fn put_left(root: &Path, left: &Left) {
        let dead = root.join("process-1-1");
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join("0-key"), &left.data).unwrap();
        std::fs::write(dead.join("0.record"), &left.log).unwrap();
    }

    /// The process dies at the end; the file is read and put back from what it left.
    async fn die_and_recover(played: Played) -> Result<(), TestCaseError> {
        let Played { store, key, expected, left, _file, _directory } = played;
        let root = tempfile::tempdir().unwrap();
        put_left(root.path(), &left);
        let kept = KeptFiles::open(root.path()).unwrap().unwrap();
        let files = kept.list().unwrap();
        let Some(file) = files.first() else {
            // Nothing was changed, or the bucket has it.
            let is_there = match store.head(&key).await {
                Ok(_) => left.log.is_empty() || object(&*store, &key).await == expected,
                Err(_) => expected.is_empty(),
            };
            prop_assert!(is_there, "lost");
            return Ok(());
        };
        let recorded = file.recorded().unwrap();
        prop_assert_eq!(&recorded.key, &key);
        let is_new_and_taken = recorded.replaces.is_none() && store.head(&key).await.is_ok();
        prop_assert!(!is_new_and_taken);
        let out = tempfile::tempfile().unwrap();
        let exported = kept.export(file, Some(Arc::clone(&store)), &out, Damage::Refuse).await;
        // What was written again is here all the same.
        if recorded.in_upload.iter().all(|range| recorded.local.covers(&range)) {
            prop_assert_eq!(exported.unwrap(), expected.len() as u64);
            let mut bytes = vec![0; expected.len()];
            std::os::unix::fs::FileExt::read_exact_at(&out, &mut bytes, 0).unwrap();
            prop_assert_eq!(&bytes, &expected);
        } else {
            let is_refused = matches!(exported, Err(FsError::InUpload { .. }));
            prop_assert!(is_refused);
        }
        let file = &kept.list().unwrap()[0];
        prop_assert_eq!(
            kept.upload(file, Arc::clone(&store), Damage::Refuse).await.unwrap(),
            PutBack::Stored { key: key.clone() }
        );
        prop_assert_eq!(object(&*store, &key).await, expected);
        prop_assert!(kept.list().unwrap().is_empty());
        prop_assert_eq!(std::fs::read_dir(root.path().join("kept")).unwrap().count(), 0);
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
        #[test]
        fn whenever_it_is_killed_the_record_is_true(
            steps in steps(), let_go_above in prop::option::of(0..4000u64), on_base: bool,
        ) {
            // One thread, so that every crash point is seen.
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let played = play(steps, let_go_above, on_base).await?;
                die_and_recover(played).await
            })?;
        }
    }

    #[test]
    fn appending_costs_no_entries() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let staging = StagingArea::open(directory.path(), None).unwrap();
            let options = WriteOptions {
                part_len: 1000,
                max_parallel_parts: 1,
                stream_threshold: u64::MAX,
                let_go_above: None,
                records_tags: false,
            };
            let store = Arc::new(MemoryStore::new());
            let context = WriteContext::new(store, staging, options, tokio::runtime::Handle::current());
            let file = DirtyFile::new(Arc::new(context), ObjectKey::new("k").unwrap(), None, 0).unwrap();
            let log_len = || record::entries_in(&file.staged.record_path()).len();
            file.write(0, &[1; 100]).unwrap();
            let before = log_len();
            for at in 1..100 {
                file.write(at * 100, &[1; 100]).unwrap();
            }
            // Nor does writing what is there already.
            file.write(50, &[2; 3000]).unwrap();
            assert_eq!(log_len(), before);
            file.write(20_000, &[1; 10]).unwrap();
            assert!(log_len() > before && log_len() < before + 100);
        });
    }
}
