//! Files that the kernel reads by itself, from a whole copy on the local disk (FUSE passthrough).
//!
//! While a file is open, the kernel takes all its handles one way or all the other, and all from one local file. So the first
//! handle decides, and what it decided is remembered until the last one is closed: across processes, too, by way of the
//! ledger.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use sandpail_fuse::{BackingId, Device};

use crate::engine::{Engine, Opened};
use crate::guard;

/// How each open file is read.
#[derive(Debug)]
pub(super) struct PassedFiles {
    ways: Mutex<HashMap<u64, Way>>,
}

/// How one open file is read.
#[derive(Debug)]
struct Way {
    handles: HashSet<u64>,
    /// The local file; `None`: the kernel asks.
    backing: Option<Arc<BackingId>>,
}

impl PassedFiles {
    /// `None` for a mount whose files may be written: their local copies would not show it.
    ///
    /// What an earlier process had decided for `device` goes on.
    pub(super) fn of(engine: &Engine, device: &Device) -> Option<Self> {
        engine.options().read_only.then_some(())?;
        let mut ways: HashMap<u64, Way> = HashMap::new();
        for file in engine.open_before() {
            let way = ways.entry(file.ino).or_insert_with(|| Way {
                handles: HashSet::new(),
                backing: file.backing.map(|id| Arc::new(BackingId::from_raw(device, id))),
            });
            way.handles.insert(file.handle);
        }
        Some(Self { ways: Mutex::new(ways) })
    }

    /// The local file that the kernel shall read through a new handle, which is noted in the ledger.
    pub(super) async fn opened(&self, engine: &Engine, device: &Device, opened: &Opened) -> Option<Arc<BackingId>> {
        if opened.direct_io || opened.stat.is_local {
            // It is not in the bucket.
            return None;
        }
        // To look for a copy may mean to read it all: not where the way is chosen, or the kernel would not take it.
        let is_chosen = guard(&self.ways).contains_key(&opened.stat.ino);
        let whole = match is_chosen || !device.may_pass_through() {
            true => None,
            false => engine.whole_copy(opened.handle).await,
        };
        // Held while the kernel is asked, so that all handles go one way.
        let mut ways = guard(&self.ways);
        let way = ways.entry(opened.stat.ino).or_insert_with(|| {
            let register = |file: &Arc<std::fs::File>| match device.open_backing(&**file) {
                Ok(id) => Some(Arc::new(id)),
                Err(error) => {
                    tracing::debug!(ino = opened.stat.ino, %error, "the kernel does not read it by itself");
                    None
                }
            };
            Way { handles: HashSet::new(), backing: whole.as_ref().and_then(register) }
        });
        // A handle that an earlier process gave is in the ledger.
        if way.handles.insert(opened.handle)
            && let Some(backing) = &way.backing
        {
            engine.note_passed(opened.handle, backing.as_raw());
        }
        way.backing.clone()
    }

    /// A handle is closed.
    pub(super) fn closed(&self, ino: u64, handle: u64) {
        let mut ways = guard(&self.ways);
        if let Some(way) = ways.get_mut(&ino) {
            way.handles.remove(&handle);
            if way.handles.is_empty() {
                ways.remove(&ino);
            }
        }
    }
}
