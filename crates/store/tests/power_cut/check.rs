//! What must hold of a bucket after a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;
use sandpail_store::dir::{DirOptions, DirStore};
use sandpail_store::{
    Condition, ETag, ListRequest, ObjectAttributes, Part, PutBody, Store, StoreError, UploadId, collect,
};

use super::play::{Piece, Said, Value, attributes, object_key};

/// What the program did and was told until the cut. Times are numbers of lines.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    now: usize,
    is_created: bool,
    ops: Vec<Op>,
    uploads: BTreeMap<String, Upload>,
}

#[derive(Clone, Debug)]
struct Op {
    id: u64,
    what: String,
    effects: Vec<(String, Option<Value>)>,
    begin: usize,
    end: Option<usize>,
    outcome: Outcome,
    etag: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Under way, or its process died.
    Unknown,
    Done,
    NotDone,
}

#[derive(Clone, Debug)]
struct Upload {
    key: String,
    label: u64,
    /// The newest of each number.
    parts: BTreeMap<u32, (String, Vec<Piece>)>,
}

impl History {
    pub(crate) fn add(&mut self, said: Said) {
        self.now += 1;
        match said {
            Said::Created => self.is_created = true,
            Said::Begins { id, what, effects } => self.ops.push(Op {
                id,
                what,
                effects,
                begin: self.now,
                end: None,
                outcome: Outcome::Unknown,
                etag: None,
            }),
            Said::Ended { id, done, etag } => {
                let op = self.ops.iter_mut().find(|op| op.id == id).unwrap();
                op.end = Some(self.now);
                op.outcome = if done { Outcome::Done } else { Outcome::NotDone };
                op.etag = etag;
            }
            Said::Upload { id, key, label } => {
                self.uploads.insert(id, Upload { key, label, parts: BTreeMap::new() });
            }
            Said::Part { upload, number, etag, pieces } => {
                self.uploads.get_mut(&upload).unwrap().parts.insert(number, (etag, pieces));
            }
            Said::Over => {}
        }
    }

    /// The process is dead: what it was doing does not go on.
    pub(crate) fn process_died(&mut self) {
        self.now += 1;
        for op in &mut self.ops {
            op.end.get_or_insert(self.now);
        }
    }

    fn keys(&self) -> BTreeSet<&str> {
        self.ops.iter().flat_map(|op| &op.effects).map(|(key, _)| key.as_str()).collect()
    }

    /// What `key` may be. What was done before something else that was acknowledged began is no longer.
    fn possible(&self, key: &str) -> Vec<(Option<&Value>, Option<&str>)> {
        let newest_begin = self
            .ops
            .iter()
            .filter(|op| op.outcome == Outcome::Done && op.effects.iter().any(|(its, _)| its == key))
            .map(|op| op.begin)
            .max()
            .unwrap_or(0);
        let mut possible = Vec::new();
        if newest_begin == 0 {
            possible.push((None, None));
        }
        for op in &self.ops {
            if op.outcome != Outcome::NotDone && op.end.is_none_or(|end| end > newest_begin) {
                for (_, value) in op.effects.iter().filter(|(its, _)| its == key) {
                    possible.push((value.as_ref(), op.etag.as_deref()));
                }
            }
        }
        possible
    }

    /// The operations on a key, for people.
    fn shown(&self, key: &str) -> String {
        let mut lines = String::new();
        for op in &self.ops {
            for (_, value) in op.effects.iter().filter(|(its, _)| its == key) {
                lines +=
                    &format!("\n  {:?}: {} = {:?} (lines {} to {:?})", op.outcome, op.what, value, op.begin, op.end);
            }
        }
        lines
    }
}

/// Opens the bucket and looks at all of it.
pub(crate) async fn check(bucket: &Path, history: &History) -> Result<(), String> {
    // What is checked is what the cut has left; what comes after it need not be synced.
    let options = DirOptions { durable: false };
    if !history.is_created {
        DirStore::create(bucket).map_err(|error| format!("cannot be made again: {error}"))?;
    }
    let store = DirStore::open_with(bucket, options).map_err(|error| format!("cannot be opened: {error}"))?;
    let left = std::fs::read_dir(bucket.join("tmp")).map_err(|error| error.to_string())?.count();
    ensure(left == 0, || format!("{left} temporary files stay"))?;

    let mut present = BTreeMap::new();
    for key in history.keys() {
        if let Some((etag, len)) = check_object(&store, key, &history.possible(key), &history.shown(key)).await? {
            present.insert(key.to_owned(), (etag, len));
        }
    }
    check_lists(&store, &present).await?;
    check_uploads(&store, bucket, history).await?;
    // From the end: these come and go most.
    for key in history.keys().into_iter().rev().take(3) {
        let is_present = store.head(&object_key(key)).await.is_ok();
        let body = PutBody::from(Bytes::from_static(b"new"));
        match store.put(&object_key(key), body, &ObjectAttributes::default(), &Condition::Absent).await {
            Ok(_) if !is_present => {}
            Err(StoreError::Precondition { .. }) if is_present => {}
            other => return Err(format!("{key}: made where there is none, gives {other:?} with {is_present}")),
        }
        store.delete(&object_key(key), None).await.map_err(|error| format!("{key}: cannot be removed: {error}"))?;
    }
    Ok(())
}

/// Looks at one object; gives its tag and length.
async fn check_object(
    store: &DirStore,
    key: &str,
    possible: &[(Option<&Value>, Option<&str>)],
    history: &str,
) -> Result<Option<(ETag, u64)>, String> {
    let info = match store.head(&object_key(key)).await {
        Ok(info) => info,
        Err(StoreError::NotFound { .. }) => {
            let may_be = possible.iter().any(|(value, _)| value.is_none());
            return if may_be { Ok(None) } else { Err(format!("{key} is lost:{history}")) };
        }
        Err(error) => return Err(format!("{key}: {error}:{history}")),
    };
    let mut data = Bytes::new();
    if info.size > 0 {
        let download = store.get(&object_key(key), 0..info.size, Some(&info.etag)).await;
        data = collect(download.map_err(|error| error.to_string())?, usize::MAX).await.map_err(|e| e.to_string())?;
    }
    let fits = |value: &Value, etag: Option<&str>| {
        info.attributes == value.attributes()
            && etag.is_none_or(|etag| info.etag.as_str() == etag)
            && data == value.data()
    };
    if possible.iter().any(|(value, etag)| value.is_some_and(|value| fits(value, *etag))) {
        return Ok(Some((info.etag, info.size)));
    }
    let zeros = data.iter().filter(|byte| **byte == 0).count();
    Err(format!("{key} is {info:?} ({zeros} of its bytes are 0), which it cannot be:{history}"))
}

async fn check_lists(store: &DirStore, present: &BTreeMap<String, (ETag, u64)>) -> Result<(), String> {
    let page = store.list(&ListRequest::default()).await.map_err(|error| format!("cannot be listed: {error}"))?;
    let listed: BTreeMap<_, _> =
        page.objects.into_iter().map(|object| (object.key, (object.etag.unwrap(), object.size))).collect();
    ensure(listed == *present, || format!("{listed:?} are listed, {present:?} are there"))?;
    let delimited = ListRequest { delimited: true, ..ListRequest::default() };
    let page = store.list(&delimited).await.map_err(|error| format!("cannot be listed: {error}"))?;
    let top = |key: &str| key.split_once('/').map(|(top, _)| format!("{top}/"));
    let prefixes: BTreeSet<_> = present.keys().filter_map(|key| top(key)).collect();
    ensure(page.prefixes == prefixes.iter().cloned().collect::<Vec<_>>(), || {
        format!("prefixes {:?} are listed, not {prefixes:?}", page.prefixes)
    })
}

/// Completes each upload that is left, as its client would: it is right or refused. The rest is aborted.
async fn check_uploads(store: &DirStore, bucket: &Path, history: &History) -> Result<(), String> {
    let uploads = store.list_multipart("").await.map_err(|error| format!("uploads cannot be listed: {error}"))?;
    for found in uploads {
        let (key, id) = (object_key(&found.key), &found.id);
        let what = |error: StoreError| format!("upload {} of {key:?}: {error}", id.0);
        store.list_parts(&key, id).await.map_err(what)?;
        if let Some(upload) = history.uploads.get(&id.0).filter(|upload| !upload.parts.is_empty()) {
            ensure(upload.key == found.key, || format!("an upload of {} is one of {}", upload.key, found.key))?;
            check_completion(store, id, upload).await?;
        }
        store.abort_multipart(&key, id).await.map_err(what)?;
    }
    let left = std::fs::read_dir(bucket.join("uploads")).map_err(|error| error.to_string())?.count();
    ensure(left == 0, || format!("{left} uploads stay"))
}

async fn check_completion(store: &DirStore, id: &UploadId, upload: &Upload) -> Result<(), String> {
    let parts: Vec<_> = upload
        .parts
        .iter()
        .map(|(number, (etag, _))| Part { number: *number, etag: ETag::new(etag), checksum: None })
        .collect();
    let key = &upload.key;
    let refused = match store.complete_multipart(&object_key(key), id, &parts, &Condition::Always).await {
        Ok(_) => {
            let pieces: Vec<Vec<Piece>> = upload.parts.values().map(|(_, pieces)| pieces.clone()).collect();
            let value = Value { pieces: pieces.concat(), label: upload.label };
            assert_eq!(value.attributes(), attributes(upload.label));
            check_object(store, key, &[(Some(&value), None)], "\n  an upload completed after the cut").await?;
            return Ok(());
        }
        Err(refused) => refused,
    };
    // What a client is told is to upload again, not to try the same again.
    let is_clear = matches!(refused, StoreError::Invalid { .. } | StoreError::NotFound { .. });
    ensure(is_clear, || format!("an upload of {key} with parts that are lost is completed: {refused:?}"))
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
