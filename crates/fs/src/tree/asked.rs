//! Questions to the store that are under way: as long as one is, what is changed here after it is remembered, so that its
//! answer can be told from what is older.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use crate::guard;

/// The moments of all of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Questions(Arc<Mutex<BTreeSet<u64>>>);

impl Questions {
    pub(super) fn begin(&self, at: u64) -> Since {
        guard(&self.0).insert(at);
        Since { at, all: self.clone() }
    }

    pub(super) fn oldest(&self) -> Option<u64> {
        guard(&self.0).first().copied()
    }
}

/// The moment at which a question was asked. It is over when this is dropped.
#[derive(Debug)]
pub struct Since {
    at: u64,
    all: Questions,
}

impl Since {
    pub(super) fn at(&self) -> u64 {
        self.at
    }
}

impl Drop for Since {
    fn drop(&mut self) {
        guard(&self.all.0).remove(&self.at);
    }
}
