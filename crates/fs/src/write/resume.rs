//! A staged file of a process that died, taken up again.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::dirty_file::{State, not_recorded};
use super::journal::Journal;
use super::stream::Stream;
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
            dirty,
            is_changed: true,
            replaces: recorded.replaces.clone(),
            base: recorded.base.clone(),
            attempt: None,
            in_upload: recorded.in_upload.clone(),
            times_let_go: 0,
            low_water: recorded.size,
            attributes: recorded.attributes.clone(),
            stream: None,
            journal,
        };
        let file = Self { context, staged, state: Mutex::new(state), progress: Notify::new() };
        let stream = Stream::resume(recorded, |number| file.stream_part_len(number));
        file.state().stream = stream;
        Ok(Arc::new(file))
    }
}
