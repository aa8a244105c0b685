//! The program that is traced: random operations on a bucket, by seed. What it does and what it was told goes to a
//! file, line by line, so that the trace holds both in order.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sandpail_store::dir::DirStore;
use sandpail_store::{
    Condition, CopySource, ETag, ObjectAttributes, ObjectKey, Part, PutBody, PutOutcome, Store, StoreError,
    StoreResult, UploadId, put_tag,
};
use serde::{Deserialize, Serialize};

use super::disk::Random;

/// Few, so that they are written again and again; in directories that come and go.
const KEYS: [&str; 9] = ["a", "a/b", "a/b/c", "a/b/d", "d/e/f/g", "d/h", "i/", "i/j", "k"];
/// All parts but the last are at least so long.
const PART_LEN_MIN: usize = 5 << 20;

/// Bytes that tell where they belong: those of number `tag` from `start` to `end`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece {
    tag: u64,
    start: usize,
    end: usize,
}

impl Piece {
    fn append(&self, data: &mut Vec<u8>) {
        // One word in eight bytes, different in each place of each content, never 0.
        let words = self.start / 8..self.end.div_ceil(8);
        let first = data.len();
        data.extend(words.flat_map(|word| (((self.tag << 32 | word as u64) + 1) | 1 << 63).to_le_bytes()));
        data.drain(first..first + self.start % 8);
        data.truncate(first + self.end - self.start);
    }
}

/// What an object is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Value {
    pub(crate) pieces: Vec<Piece>,
    /// A number in its metadata.
    pub(crate) label: u64,
}

impl Value {
    pub(crate) fn data(&self) -> Vec<u8> {
        data(&self.pieces)
    }

    pub(crate) fn attributes(&self) -> ObjectAttributes {
        attributes(self.label)
    }
}

fn data(pieces: &[Piece]) -> Vec<u8> {
    let mut data = Vec::new();
    pieces.iter().for_each(|piece| piece.append(&mut data));
    data
}

pub(crate) fn attributes(label: u64) -> ObjectAttributes {
    let metadata = [("label".to_owned(), label.to_string())].into();
    ObjectAttributes { metadata, content_type: Some(format!("test/{label}")), ..ObjectAttributes::default() }
}

/// What the program says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Said {
    /// The bucket was acknowledged.
    Created,
    /// An operation begins: what it makes of which key.
    Begins {
        id: u64,
        what: String,
        effects: Vec<(String, Option<Value>)>,
    },
    /// It has returned; not done if a condition did not hold.
    Ended {
        id: u64,
        done: bool,
        etag: Option<String>,
    },
    Upload {
        id: String,
        key: String,
        label: u64,
    },
    /// A part is about to be uploaded.
    Part {
        upload: String,
        number: u32,
        etag: String,
        pieces: Vec<Piece>,
    },
    /// The last words of one that was not killed.
    Over,
}

/// What one process plays.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Script {
    pub(crate) seed: u64,
    /// 0, or 1 for the process after one that was killed.
    pub(crate) round: u64,
    pub(crate) worker_count: u64,
    pub(crate) op_count: u64,
}

#[derive(Debug)]
struct Player {
    store: DirStore,
    marks: File,
    random: Random,
    /// Numbers operations and contents; no other player uses the same.
    next: u64,
    known: Arc<Mutex<HashMap<String, (ETag, Value)>>>,
    is_alone: bool,
    step_count: u64,
}

pub(crate) async fn play(script: Script, bucket: &Path, marks: &Path) {
    // Each player writes whole lines, in one call, behind the others': their order is that of the calls.
    let marks = || File::options().write(true).open(marks).unwrap();
    let store = DirStore::create(bucket).unwrap();
    let known = Arc::new(Mutex::new(HashMap::new()));
    let player = |number: u64| Player {
        store: store.clone(),
        marks: marks(),
        random: Random((script.seed << 16 | script.round << 8 | number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        next: (script.round * 16 + number) * 10_000 + 1,
        known: Arc::clone(&known),
        is_alone: script.worker_count == 1,
        step_count: script.round * 100,
    };
    player(15).say(&Said::Created);
    let workers = (0..script.worker_count).map(|number| {
        let mut player = player(number);
        tokio::spawn(async move {
            for _ in 0..script.op_count / script.worker_count {
                player.step().await;
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    let mut last = player(14);
    last.large_upload().await;
    last.say(&Said::Over);
}

impl Player {
    fn say(&self, said: &Said) {
        let mut line = serde_json::to_vec(said).unwrap();
        line.push(b'\n');
        (&self.marks).write_all(&line).unwrap();
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn key(&mut self) -> String {
        match self.random.below(3) {
            // In a directory that all enter at about the same time, and that nobody has been in.
            0 => format!("new/{}/{}", self.step_count / 3, self.random.below(3)),
            _ => KEYS[self.random.below(KEYS.len())].to_owned(),
        }
    }

    fn pieces(&mut self) -> Vec<Piece> {
        let end = [0, 9, 700, 4096, 5000, 30_000][self.random.below(6)] + self.random.below(900);
        vec![Piece { tag: self.number(), start: 0, end }]
    }

    fn value(&mut self) -> Value {
        Value { pieces: self.pieces(), label: self.number() }
    }

    fn known(&self, key: &str) -> Option<(ETag, Value)> {
        self.known.lock().unwrap().get(key).cloned()
    }

    fn condition(&mut self, key: &str) -> Condition {
        match (self.random.below(6), self.known(key)) {
            (0, _) => Condition::Absent,
            (1, Some((etag, _))) => Condition::Matches(etag),
            _ => Condition::Always,
        }
    }

    fn begin(&mut self, what: String, effects: Vec<(String, Option<Value>)>) -> u64 {
        let id = self.number();
        self.say(&Said::Begins { id, what, effects });
        id
    }

    fn end(&self, id: u64, key: &str, value: &Value, outcome: &StoreResult<PutOutcome>) {
        match outcome {
            Ok(outcome) => {
                self.known.lock().unwrap().insert(key.to_owned(), (outcome.etag.clone(), value.clone()));
                self.say(&Said::Ended { id, done: true, etag: Some(outcome.etag.as_str().to_owned()) });
            }
            // A condition, or the source of a copy, was not as it should.
            Err(StoreError::Precondition { .. } | StoreError::NotFound { .. }) => {
                self.say(&Said::Ended { id, done: false, etag: None });
            }
            Err(error) => panic!("{error}"),
        }
    }

    async fn step(&mut self) {
        self.step_count += 1;
        match self.random.below(20) {
            0..8 => self.put().await,
            8..13 => self.delete().await,
            13 => self.delete_many().await,
            14..17 => self.copy().await,
            _ => self.upload().await,
        }
    }

    async fn put(&mut self) {
        let (key, value) = (self.key(), self.value());
        let condition = self.condition(&key);
        let id = self.begin(format!("put {condition:?}"), vec![(key.to_owned(), Some(value.clone()))]);
        let body = Bytes::from(value.data()).into();
        let outcome = self.store.put(&object_key(&key), body, &value.attributes(), &condition).await;
        self.end(id, &key, &value, &outcome);
    }

    async fn delete(&mut self) {
        let key = self.key();
        let etag = self.known(&key).map(|(etag, _)| etag).filter(|_| self.random.below(4) == 0);
        let id = self.begin(format!("delete {etag:?}"), vec![(key.to_owned(), None)]);
        match self.store.delete(&object_key(&key), etag.as_ref()).await {
            Ok(()) => self.say(&Said::Ended { id, done: true, etag: None }),
            Err(StoreError::Precondition { .. }) => self.say(&Said::Ended { id, done: false, etag: None }),
            Err(error) => panic!("{error}"),
        }
    }

    async fn delete_many(&mut self) {
        let mut keys = vec![self.key(), self.key(), self.key()];
        keys.sort_unstable();
        keys.dedup();
        let id = self.begin("delete many".into(), keys.iter().map(|key| (key.clone(), None)).collect());
        let keys: Vec<_> = keys.iter().map(|key| object_key(key)).collect();
        assert!(self.store.delete_many(&keys).await.unwrap().is_empty());
        self.say(&Said::Ended { id, done: true, etag: None });
    }

    async fn copy(&mut self) {
        let (source, target) = (self.key(), self.key());
        let Some((etag, mut value)) = self.known(&source) else { return };
        let condition = self.condition(&target);
        // Others may change the label of a version, but not its bytes.
        let attributes = (source == target || !self.is_alone || self.random.below(2) == 0).then(|| {
            value.label = self.number();
            value.attributes()
        });
        let id = self.begin(format!("copy of {source} {condition:?}"), vec![(target.clone(), Some(value.clone()))]);
        let source = CopySource { key: object_key(&source), etag: Some(etag) };
        let outcome = self.store.copy(&source, &object_key(&target), attributes.as_ref(), &condition).await;
        self.end(id, &target, &value, &outcome);
    }

    async fn upload(&mut self) {
        let key = self.key();
        let (id, label) = self.begin_upload(&key).await;
        let mut parts = vec![];
        for _ in 0..1 + self.random.below(2) {
            // The second one replaces the first.
            let pieces = self.pieces();
            parts = vec![self.part(&key, &id, 1, pieces).await];
        }
        match self.random.below(5) {
            0 => self.store.abort_multipart(&object_key(&key), &id).await.unwrap(),
            1 => {}
            _ => {
                let condition = self.condition(&key);
                self.complete(&key, &id, label, parts, condition).await;
            }
        }
    }

    /// Several parts; the first has a legal length, the last is copied.
    async fn large_upload(&mut self) {
        let key = "large/upload";
        let pieces = vec![Piece { tag: self.number(), start: 0, end: PART_LEN_MIN }];
        let source = Value { pieces: vec![Piece { tag: self.number(), start: 0, end: 40_000 }], label: self.number() };
        let begun = self.begin("put".into(), vec![("k".into(), Some(source.clone()))]);
        let outcome = self
            .store
            .put(&object_key("k"), Bytes::from(source.data()).into(), &source.attributes(), &Condition::Always)
            .await;
        self.end(begun, "k", &source, &outcome);
        let (id, label) = self.begin_upload(key).await;
        let first = self.part(key, &id, 1, pieces).await;
        let copied = Piece { start: 100, end: 30_100, ..source.pieces[0] };
        let etag = put_tag([&*data(std::slice::from_ref(&copied))]);
        let pieces = vec![copied];
        let said = Said::Part { upload: id.0.clone(), number: 2, etag: etag.as_str().into(), pieces: pieces.clone() };
        self.say(&said);
        let from = CopySource { key: object_key("k"), etag: None };
        let second = self.store.upload_part_copy(&object_key(key), &id, 2, &from, 100..30_100).await.unwrap();
        assert_eq!(second.etag, etag);
        self.complete(key, &id, label, vec![first, (second, pieces)], Condition::Always).await;
    }

    async fn begin_upload(&mut self, key: &str) -> (UploadId, u64) {
        let label = self.number();
        let id = self.store.create_multipart(&object_key(key), &attributes(label)).await.unwrap();
        self.say(&Said::Upload { id: id.0.clone(), key: key.to_owned(), label });
        (id, label)
    }

    async fn part(&mut self, key: &str, id: &UploadId, number: u32, pieces: Vec<Piece>) -> (Part, Vec<Piece>) {
        let data = data(&pieces);
        let etag = put_tag([&*data]).as_str().to_owned();
        self.say(&Said::Part { upload: id.0.clone(), number, etag, pieces: pieces.clone() });
        let part =
            self.store.upload_part(&object_key(key), id, number, PutBody::from(Bytes::from(data))).await.unwrap();
        (part, pieces)
    }

    async fn complete(
        &mut self,
        key: &str,
        id: &UploadId,
        label: u64,
        parts: Vec<(Part, Vec<Piece>)>,
        condition: Condition,
    ) {
        let (parts, pieces): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let value = Value { pieces: pieces.concat(), label };
        let begun = self.begin(format!("complete {condition:?}"), vec![(key.to_owned(), Some(value.clone()))]);
        let outcome = self.store.complete_multipart(&object_key(key), id, &parts, &condition).await;
        self.end(begun, key, &value, &outcome);
    }
}

pub(crate) fn object_key(key: &str) -> ObjectKey {
    ObjectKey::new(key).unwrap()
}
