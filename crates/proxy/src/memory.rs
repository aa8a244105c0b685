//! What a route remembers of its own requests: which uploads it began, and which directory markers it just wrote.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;

/// Older uploads are looked up at the store again.
const UPLOAD_COUNT_MAX: usize = 10_000;
/// A marker is answered from memory for so long: enough for stores that show it late.
const MARKER_AGE_MAX: Duration = Duration::from_secs(5);
/// Markers beyond it are not remembered.
const MARKER_COUNT_MAX: usize = 1000;

/// One route's memory. Bounded; nothing in it outlives the route.
#[derive(Debug, Default)]
pub(crate) struct RouteMemory {
    uploads: Mutex<Uploads>,
    markers: Mutex<HashMap<String, (Instant, HeaderValue)>>,
}

#[derive(Debug, Default)]
struct Uploads {
    /// Key by upload id.
    keys: HashMap<String, String>,
    /// Ids, oldest first; may name some that are gone.
    order: VecDeque<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RouteMemory {
    /// An upload of `key` began, or was found at the store.
    pub(crate) fn add_upload(&self, id: &str, key: &str) {
        let mut uploads = lock(&self.uploads);
        if uploads.keys.insert(id.to_owned(), key.to_owned()).is_none() {
            uploads.order.push_back(id.to_owned());
        }
        while uploads.order.len() > UPLOAD_COUNT_MAX {
            if let Some(oldest) = uploads.order.pop_front() {
                uploads.keys.remove(&oldest);
            }
        }
    }

    /// Whether the upload is known, and for this key.
    pub(crate) fn knows_upload(&self, id: &str, key: &str) -> bool {
        lock(&self.uploads).keys.get(id).is_some_and(|known| known == key)
    }

    /// The upload was completed or aborted.
    pub(crate) fn remove_upload(&self, id: &str) {
        let mut uploads = lock(&self.uploads);
        if uploads.keys.remove(id).is_some() {
            uploads.order.retain(|known| known != id);
        }
    }

    /// A directory marker was written.
    pub(crate) fn add_marker(&self, key: &str, etag: HeaderValue) {
        let now = Instant::now();
        let mut markers = lock(&self.markers);
        if markers.len() >= MARKER_COUNT_MAX {
            markers.retain(|_, (written, _)| now.duration_since(*written) < MARKER_AGE_MAX);
        }
        if markers.len() < MARKER_COUNT_MAX {
            markers.insert(key.to_owned(), (now, etag));
        }
    }

    /// The tag of a marker that was written just now.
    pub(crate) fn marker(&self, key: &str) -> Option<HeaderValue> {
        let markers = lock(&self.markers);
        markers.get(key).filter(|(written, _)| written.elapsed() < MARKER_AGE_MAX).map(|(_, etag)| etag.clone())
    }

    /// Keys were removed or replaced: their markers are no longer what is there. With none, all are.
    pub(crate) fn forget_markers(&self, key: Option<&str>) {
        let mut markers = lock(&self.markers);
        match key {
            Some(key) => {
                markers.remove(key);
            }
            None => markers.clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_belong_to_one_key_and_are_bounded() {
        let memory = RouteMemory::default();
        memory.add_upload("1", "a");
        assert!(memory.knows_upload("1", "a"));
        assert!(!memory.knows_upload("1", "b"));
        for id in 0..UPLOAD_COUNT_MAX {
            memory.add_upload(&format!("n{id}"), "a");
        }
        assert!(!memory.knows_upload("1", "a"), "the oldest is forgotten");
        memory.remove_upload("n5");
        assert!(!memory.knows_upload("n5", "a"));
        assert!(memory.knows_upload("n6", "a"));
    }

    #[test]
    fn markers_are_remembered_until_something_happens_to_them() {
        let memory = RouteMemory::default();
        memory.add_marker("d/", HeaderValue::from_static("\"e\""));
        memory.add_marker("e/", HeaderValue::from_static("\"f\""));
        assert_eq!(memory.marker("d/").unwrap(), "\"e\"");
        memory.forget_markers(Some("d/"));
        assert_eq!(memory.marker("d/"), None);
        memory.forget_markers(None);
        assert_eq!(memory.marker("e/"), None);
    }
}
