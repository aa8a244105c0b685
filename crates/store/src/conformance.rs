//! Behaviour that every store must share, as a suite that runs on any of them.
//!
//! Each promise in the documentation of [`Store`] has a case here. [`run`] works below a prefix of its
//! own, so it may share a bucket with other things, and removes what it wrote. What a provider cannot do
//! is read from its [`Capabilities`](crate::Capabilities).

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use sandpail_s3::{ChecksumKind, checksum};

use crate::{
    Condition, CopySource, ETag, ListRequest, ObjectAttributes, ObjectKey, Part, PutBody, Store, StoreError,
    StoreResult, UploadId, collect,
};

/// Runs every case on `store`, below `prefix` (empty, or ending in `/`).
///
/// # Panics
/// If the store breaks a promise; the message names the case.
pub async fn run(store: &dyn Store, prefix: &str) {
    run_except(store, prefix, &[]).await;
}

/// As [`run`], without the cases of these names: for servers that are known to break a promise.
///
/// # Panics
/// As [`run`].
pub async fn run_except(store: &dyn Store, prefix: &str, except: &[&str]) {
    for (name, case) in CASES.iter().filter(|(name, _)| !except.contains(name)) {
        tracing::info!(name, store = store.describe(), "conformance");
        let t = Case { store, prefix: format!("{prefix}{name}/"), name };
        case(&t).await;
        t.clean().await;
    }
}

type CaseFn = for<'a> fn(&'a Case<'a>) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        const CASES: &[(&str, CaseFn)] = &[$((stringify!($name), |t| Box::pin($name(t)))),*];
    };
}

cases![
    bytes_come_back,
    odd_keys_come_back,
    a_missing_object_is_not_found,
    ranges_are_exact,
    a_range_behind_the_end_is_refused,
    a_version_is_pinned,
    a_download_outlives_its_object,
    attributes_come_back,
    attributes_are_replaced_whole,
    bodies_come_from_files_and_chains,
    a_new_version_has_a_new_tag,
    what_is_said_of_a_version_is_right,
    creation_is_exclusive,
    replacement_is_conditional,
    one_of_many_creators_wins,
    one_of_many_replacers_wins,
    a_copy_keeps_or_replaces_attributes,
    a_copy_onto_itself_changes_attributes,
    a_copy_checks_its_source,
    a_copy_checks_its_target,
    removal_is_idempotent,
    removal_is_conditional,
    many_are_removed,
    listings_are_ordered,
    listings_are_rolled_up,
    a_key_beside_its_directory_is_listed,
    long_segments_are_listed_in_order,
    pages_fit_together,
    a_listing_starts_after_a_key,
    listed_facts_are_those_of_head,
    a_listing_of_nothing_is_empty,
    parts_become_an_object,
    a_part_is_replaced,
    a_missing_or_small_part_is_refused,
    parts_are_copied,
    completion_is_conditional,
    an_upload_is_aborted,
    an_unknown_upload_is_not_found,
    uploads_are_listed,
    large_objects_come_back,
];

/// One case at work.
struct Case<'a> {
    store: &'a dyn Store,
    prefix: String,
    name: &'a str,
}

impl Case<'_> {
    fn key(&self, name: &str) -> ObjectKey {
        ObjectKey::new(format!("{}{name}", self.prefix)).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    #[track_caller]
    fn ok<T>(&self, result: StoreResult<T>) -> T {
        result.unwrap_or_else(|error| panic!("{} on {}: {error}", self.name, self.store.describe()))
    }

    #[track_caller]
    fn refused<T: std::fmt::Debug>(&self, result: StoreResult<T>, is_expected: fn(&StoreError) -> bool) {
        match result {
            Err(error) if is_expected(&error) => {}
            other => panic!("{} on {}: another refusal was expected, not {other:?}", self.name, self.store.describe()),
        }
    }

    async fn put(&self, name: &str, data: impl Into<Bytes>) -> ETag {
        let (data, none) = (data.into(), ObjectAttributes::default());
        let outcome = self.store.put(&self.key(name), data.into(), &none, &Condition::Always).await;
        self.ok(outcome).etag
    }

    async fn put_if(&self, name: &str, data: &'static [u8], condition: Condition) -> StoreResult<ETag> {
        let (data, none) = (Bytes::from_static(data), ObjectAttributes::default());
        Ok(self.store.put(&self.key(name), data.into(), &none, &condition).await?.etag)
    }

    async fn try_get(&self, name: &str, range: Range<u64>, etag: Option<&ETag>) -> StoreResult<Bytes> {
        collect(self.store.get(&self.key(name), range, etag).await?, usize::MAX).await
    }

    async fn get(&self, name: &str) -> Bytes {
        let whole = self.try_get(name, 0..u64::MAX >> 1, None).await;
        self.ok(whole)
    }

    async fn list_all(&self, request: &ListRequest) -> (Vec<String>, Vec<String>) {
        let (mut keys, mut prefixes) = (Vec::new(), Vec::new());
        let mut request = request.clone();
        loop {
            let page = self.store.list(&request).await;
            let page = self.ok(page);
            let page_len = page.objects.len() + page.prefixes.len();
            let page_len_max = if request.max_keys == 0 { 1000 } else { request.max_keys.into() };
            assert!(page_len <= page_len_max, "{}: a page of {page_len}, asked for {page_len_max}", self.name);
            keys.extend(page.objects.into_iter().map(|object| object.key));
            prefixes.extend(page.prefixes);
            match page.next {
                Some(next) => request.continuation = Some(next),
                None => return (self.strip(keys), self.strip(prefixes)),
            }
        }
    }

    fn strip(&self, keys: Vec<String>) -> Vec<String> {
        let strip = |key: String| {
            key.strip_prefix(&self.prefix).unwrap_or_else(|| panic!("{}: {key:?} listed", self.name)).to_owned()
        };
        keys.into_iter().map(strip).collect()
    }

    fn under(&self, prefix: &str) -> ListRequest {
        ListRequest { prefix: format!("{}{prefix}", self.prefix), ..ListRequest::default() }
    }

    fn delimited(&self, prefix: &str) -> ListRequest {
        ListRequest { delimited: true, ..self.under(prefix) }
    }

    async fn begin(&self, name: &str) -> UploadId {
        let id = self.store.create_multipart(&self.key(name), &ObjectAttributes::default()).await;
        self.ok(id)
    }

    async fn part(&self, name: &str, id: &UploadId, number: u32, data: Bytes) -> Part {
        let part = self.store.upload_part(&self.key(name), id, number, data.into()).await;
        self.ok(part)
    }

    async fn complete(&self, name: &str, id: &UploadId, parts: &[Part]) -> ETag {
        let outcome = self.store.complete_multipart(&self.key(name), id, parts, &Condition::Always).await;
        self.ok(outcome).etag
    }

    fn part_len(&self) -> usize {
        usize::try_from(self.store.capabilities().part_len_min).unwrap_or(usize::MAX).max(1)
    }

    async fn clean(&self) {
        let mut request = self.under("");
        loop {
            let page = self.store.list(&request).await;
            let page = self.ok(page);
            let keys: Vec<_> = page.objects.iter().filter_map(|object| ObjectKey::new(&object.key).ok()).collect();
            let failed = self.store.delete_many(&keys).await;
            assert!(self.ok(failed).is_empty(), "{}: some objects could not be removed", self.name);
            match page.next {
                Some(next) => request.continuation = Some(next),
                None => return,
            }
        }
    }
}

/// Bytes that differ from each other at every offset.
fn pattern(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut data = Vec::with_capacity(len + 8);
    while data.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend(state.to_le_bytes());
    }
    data.truncate(len);
    data.into()
}

fn is_precondition(error: &StoreError) -> bool {
    matches!(error, StoreError::Precondition { .. })
}

/// Providers differ about a condition on what is not there.
fn is_precondition_or_not_found(error: &StoreError) -> bool {
    is_precondition(error) || error.is_not_found()
}

fn is_invalid(error: &StoreError) -> bool {
    matches!(error, StoreError::Invalid { .. })
}

async fn bytes_come_back(t: &Case<'_>) {
    for len in [0, 1, 7, 4096, 1 << 20] {
        let data = pattern(len, 1);
        let etag = t.put("object", data.clone()).await;
        let info = t.ok(t.store.head(&t.key("object")).await);
        assert_eq!((info.size, &info.etag), (len as u64, &etag), "{}: length {len}", t.name);
        if len > 0 {
            assert!(t.get("object").await == data, "{}: other bytes, length {len}", t.name);
        }
    }
}

async fn odd_keys_come_back(t: &Case<'_>) {
    let long = "x".repeat(crate::KEY_LEN_MAX - t.prefix.len());
    let wide = "é".repeat((crate::KEY_LEN_MAX - t.prefix.len()) / 2);
    let deep = "d/".repeat((crate::KEY_LEN_MAX - t.prefix.len()) / 2);
    let odd = [
        "c",
        "c/d",
        "c/",
        "c/d/",
        "a//b",
        "//",
        "/",
        ".",
        "..",
        "./a",
        "../a",
        "a/../b",
        "%",
        "%25",
        "%2F",
        "a+b",
        "a b",
        " ",
        "ü/ö",
        "😀",
        "?x=1&y=2#z",
        "'\"<>&;",
        "tab\there",
        "new\nline",
        "\u{7f}",
        "back\\slash",
        "~*()!@$,:=[]{}|^`",
        "%d",
        "%c",
        "%e",
        "e\u{301}",
        "\u{e9}",
        &long,
        &wide,
        &deep,
    ];
    for (index, name) in odd.iter().enumerate() {
        t.put(name, format!("{index}: {name}")).await;
    }
    for (index, name) in odd.iter().enumerate() {
        assert_eq!(t.get(name).await, format!("{index}: {name}"), "{}: {name:?}", t.name);
    }
    let mut expected: Vec<String> = odd.iter().map(ToString::to_string).collect();
    expected.sort_unstable();
    assert_eq!(t.list_all(&t.under("")).await.0, expected, "{}", t.name);
    for name in odd {
        t.ok(t.store.delete(&t.key(name), None).await);
    }
    assert_eq!(t.list_all(&t.under("")).await, (vec![], vec![]), "{}", t.name);
}

async fn a_missing_object_is_not_found(t: &Case<'_>) {
    t.put("there/below", "x").await;
    for name in ["missing", "there", "there/", "there/below/deeper", "there/other"] {
        t.refused(t.store.head(&t.key(name)).await, StoreError::is_not_found);
        t.refused(t.try_get(name, 0..1, None).await, StoreError::is_not_found);
    }
}

async fn ranges_are_exact(t: &Case<'_>) {
    let data = pattern(3 << 20, 2);
    t.put("object", data.clone()).await;
    let len = data.len();
    for (start, end) in
        [(0, 1), (0, len), (1, len), (len - 1, len), (5, 6), ((1 << 20) - 3, (2 << 20) + 5), (len - 2, len + 100)]
    {
        let download = t.ok(t.store.get(&t.key("object"), start as u64..end as u64, None).await);
        assert_eq!(download.info.size, len as u64, "{}: the size is that of the whole object", t.name);
        let found = t.ok(collect(download, usize::MAX).await);
        assert!(found == data[start..end.min(len)], "{}: {start}..{end}", t.name);
    }
}

async fn a_range_behind_the_end_is_refused(t: &Case<'_>) {
    t.put("object", "12345").await;
    for range in [5..6, 100..200] {
        t.refused(t.try_get("object", range, None).await, is_invalid);
    }
    t.put("empty", "").await;
    t.refused(t.try_get("empty", 0..1, None).await, is_invalid);
}

async fn a_version_is_pinned(t: &Case<'_>) {
    let first = t.put("object", "first").await;
    assert_eq!(t.ok(t.try_get("object", 0..5, Some(&first)).await), "first");
    t.put("object", "other").await;
    t.refused(t.try_get("object", 0..5, Some(&first)).await, is_precondition);
    t.ok(t.store.delete(&t.key("object"), None).await);
    t.refused(t.try_get("object", 0..5, Some(&first)).await, StoreError::is_not_found);
}

async fn a_download_outlives_its_object(t: &Case<'_>) {
    let data = pattern(2 << 20, 3);
    let etag = t.put("object", data.clone()).await;
    let download = t.ok(t.store.get(&t.key("object"), 0..data.len() as u64, Some(&etag)).await);
    t.put("object", pattern(2 << 20, 4)).await;
    // Either the old version whole, or an error; never a mixture.
    if let Ok(found) = collect(download, usize::MAX).await {
        assert!(found == data, "{}: versions were mixed", t.name);
    }
}

fn attributes() -> ObjectAttributes {
    let metadata = [("mode", "33188"), ("name", "wért 😀 = \"x\"; y"), ("spaces", "a  b"), ("long", &"v".repeat(1000))];
    ObjectAttributes {
        metadata: metadata.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        content_type: Some("text/plain; charset=utf-8".into()),
        content_encoding: Some("gzip".into()),
        content_disposition: Some("attachment; filename=\"a b.txt\"".into()),
        content_language: Some("de".into()),
        cache_control: Some("max-age=60".into()),
        expires: Some("Wed, 21 Oct 2037 07:28:00 GMT".into()),
        ..ObjectAttributes::default()
    }
}

async fn attributes_come_back(t: &Case<'_>) {
    let attributes = attributes();
    t.ok(t.store.put(&t.key("object"), Bytes::from_static(b"x").into(), &attributes, &Condition::Always).await);
    assert_eq!(t.ok(t.store.head(&t.key("object")).await).attributes, attributes, "{}: HEAD", t.name);
    let download = t.ok(t.store.get(&t.key("object"), 0..1, None).await);
    assert_eq!(download.info.attributes, attributes, "{}: GET", t.name);
}

async fn attributes_are_replaced_whole(t: &Case<'_>) {
    t.ok(t.store.put(&t.key("object"), PutBody::empty(), &attributes(), &Condition::Always).await);
    t.put("object", "plain").await;
    let found = t.ok(t.store.head(&t.key("object")).await).attributes;
    assert_eq!((found.metadata, found.content_encoding), (BTreeMap::new(), None), "{}", t.name);
}

async fn bodies_come_from_files_and_chains(t: &Case<'_>) {
    let data = pattern(2_500_000, 5);
    let chain = PutBody::Chunks(vec![data.slice(..3), Bytes::new(), data.slice(3..1_000_000), data.slice(1_000_000..)]);
    t.ok(t.store.put(&t.key("chain"), chain, &ObjectAttributes::default(), &Condition::Always).await);
    assert!(t.get("chain").await == data, "{}: a chain of buffers", t.name);
    let file = match unnamed_file(&data) {
        Ok(file) => Arc::new(file),
        Err(error) => panic!("{}: no temporary file: {error}", t.name),
    };
    for range in [0..data.len(), 7..2_000_000, 100..100] {
        let body = PutBody::File { file: Arc::clone(&file), range: range.start as u64..range.end as u64 };
        t.ok(t.store.put(&t.key("file"), body, &ObjectAttributes::default(), &Condition::Always).await);
        let info = t.ok(t.store.head(&t.key("file")).await);
        assert_eq!(info.size, range.len() as u64, "{}: a file's range {range:?}", t.name);
        if !range.is_empty() {
            assert!(t.get("file").await == data[range.clone()], "{}: a file's range {range:?}", t.name);
        }
    }
}

fn unnamed_file(data: &[u8]) -> std::io::Result<std::fs::File> {
    use std::io::Write;
    let path = std::env::temp_dir().join(format!("sandpail-conformance-{}", crate::dir::unique_name()));
    let mut file = std::fs::File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    file.write_all(data)?;
    Ok(file)
}

async fn a_new_version_has_a_new_tag(t: &Case<'_>) {
    let first = t.put("object", "one").await;
    let second = t.put("object", "two").await;
    assert_ne!(first, second, "{}", t.name);
    assert_eq!(t.ok(t.store.head(&t.key("object")).await).etag, second, "{}", t.name);
}

async fn what_is_said_of_a_version_is_right(t: &Case<'_>) {
    let (key, data) = (t.key("object"), &b"what a checksum is of"[..]);
    let body = Bytes::from_static(data).into();
    let stored = t.ok(t.store.put(&key, body, &ObjectAttributes::default(), &Condition::Always).await);
    let kept = t.ok(t.store.proof(&key, &stored.etag).await);
    let kinds = [ChecksumKind::Crc64Nvme, ChecksumKind::Crc32c, ChecksumKind::Crc32, ChecksumKind::ContentMd5];
    let right = kinds.map(|kind| format!("{}:{}", kind.name().unwrap(), checksum::of(kind, data).unwrap()));
    assert!(stored.proof.checksum.is_some(), "{}: nobody compared the bytes", t.name);
    for told in [&stored.proof, &kept].into_iter().filter_map(|proof| proof.checksum.as_ref()) {
        assert!(right.contains(told), "{}: {told}, not one of {right:?}", t.name);
    }
    t.refused(t.store.proof(&key, &ETag::new("another")).await, is_precondition);
    t.refused(t.store.proof(&t.key("nothing"), &stored.etag).await, StoreError::is_not_found);
}

async fn creation_is_exclusive(t: &Case<'_>) {
    if !t.store.capabilities().conditional_put {
        return;
    }
    t.ok(t.put_if("object", b"first", Condition::Absent).await);
    t.refused(t.put_if("object", b"second", Condition::Absent).await, is_precondition);
    assert_eq!(t.get("object").await, "first", "{}", t.name);
    t.ok(t.store.delete(&t.key("object"), None).await);
    t.ok(t.put_if("object", b"third", Condition::Absent).await);
    assert_eq!(t.get("object").await, "third", "{}", t.name);
}

async fn replacement_is_conditional(t: &Case<'_>) {
    if !t.store.capabilities().conditional_put {
        return;
    }
    let first = t.put("object", "first").await;
    let second = t.ok(t.put_if("object", b"second", Condition::Matches(first.clone())).await);
    t.refused(t.put_if("object", b"third", Condition::Matches(first)).await, is_precondition);
    assert_eq!(t.get("object").await, "second", "{}", t.name);
    let missing = t.put_if("missing", b"x", Condition::Matches(second)).await;
    t.refused(missing, is_precondition_or_not_found);
    t.refused(t.store.head(&t.key("missing")).await, StoreError::is_not_found);
}

async fn one_of_many_creators_wins(t: &Case<'_>) {
    if t.store.capabilities().conditional_put {
        race(t, Condition::Absent).await;
    }
}

async fn one_of_many_replacers_wins(t: &Case<'_>) {
    if t.store.capabilities().conditional_put {
        let etag = t.put("object", "before").await;
        race(t, Condition::Matches(etag)).await;
    }
}

async fn race(t: &Case<'_>, condition: Condition) {
    let (key, none) = (t.key("object"), ObjectAttributes::default());
    let racers = (0..16).map(|number| {
        let (key, none, condition) = (&key, &none, &condition);
        async move {
            let body = Bytes::from(format!("racer {number}")).into();
            t.store.put(key, body, none, condition).await.map(|_| number)
        }
    });
    let results = futures_util::future::join_all(racers).await;
    let winners: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
    let [winner] = winners[..] else { panic!("{}: {} winners", t.name, winners.len()) };
    assert_eq!(t.get("object").await, format!("racer {winner}"), "{}", t.name);
    for result in results {
        if result.is_err() {
            t.refused(result, is_precondition);
        }
    }
}

fn source(t: &Case<'_>, name: &str, etag: Option<&ETag>) -> CopySource {
    CopySource { key: t.key(name), etag: etag.cloned() }
}

async fn a_copy_keeps_or_replaces_attributes(t: &Case<'_>) {
    let data = pattern(1_200_000, 6);
    let first = attributes();
    t.ok(t.store.put(&t.key("ü +%/source"), data.clone().into(), &first, &Condition::Always).await);
    let from = source(t, "ü +%/source", None);
    let outcome = t.ok(t.store.copy(&from, &t.key("kept ü"), None, &Condition::Always).await);
    let info = t.ok(t.store.head(&t.key("kept ü")).await);
    assert_eq!((info.etag, info.size, &info.attributes), (outcome.etag, data.len() as u64, &first), "{}: kept", t.name);
    assert!(t.get("kept ü").await == data, "{}: kept", t.name);

    let mut second = ObjectAttributes { content_type: Some("a/b".into()), ..ObjectAttributes::default() };
    second.metadata.insert("other".into(), "ü".into());
    t.ok(t.store.copy(&from, &t.key("replaced"), Some(&second), &Condition::Always).await);
    assert_eq!(t.ok(t.store.head(&t.key("replaced")).await).attributes, second, "{}: replaced", t.name);
    assert!(t.get("replaced").await == data, "{}: replaced", t.name);

    t.put("empty", "").await;
    t.ok(t.store.copy(&source(t, "empty", None), &t.key("empty2"), None, &Condition::Always).await);
    assert_eq!(t.ok(t.store.head(&t.key("empty2")).await).size, 0, "{}: empty", t.name);
}

async fn a_copy_onto_itself_changes_attributes(t: &Case<'_>) {
    let etag = t.put("object", "same bytes").await;
    let mut attributes = ObjectAttributes { content_type: Some("text/x".into()), ..ObjectAttributes::default() };
    attributes.metadata.insert("mode".into(), "420".into());
    let key = t.key("object");
    t.ok(t.store.copy(&source(t, "object", Some(&etag)), &key, Some(&attributes), &Condition::Always).await);
    assert_eq!(t.ok(t.store.head(&key).await).attributes, attributes, "{}", t.name);
    assert_eq!(t.get("object").await, "same bytes", "{}", t.name);
}

async fn a_copy_checks_its_source(t: &Case<'_>) {
    let target = t.key("target");
    let missing = t.store.copy(&source(t, "missing", None), &target, None, &Condition::Always).await;
    t.refused(missing, StoreError::is_not_found);
    let old = t.put("object", "old").await;
    t.put("object", "new").await;
    let changed = t.store.copy(&source(t, "object", Some(&old)), &target, None, &Condition::Always).await;
    t.refused(changed, is_precondition);
    t.refused(t.store.head(&target).await, StoreError::is_not_found);
}

async fn a_copy_checks_its_target(t: &Case<'_>) {
    if !t.store.capabilities().conditional_put {
        return;
    }
    t.put("source", "new").await;
    let etag = t.put("target", "old").await;
    let (from, target) = (source(t, "source", None), t.key("target"));
    match t.store.copy(&from, &target, None, &Condition::Absent).await {
        // Not every provider has conditions on copies.
        Ok(_) => return,
        refused => t.refused(refused, is_precondition),
    }
    let other = Condition::Matches(ETag::new("00000000000000000000000000000000"));
    t.refused(t.store.copy(&from, &target, None, &other).await, is_precondition);
    assert_eq!(t.get("target").await, "old", "{}", t.name);
    t.ok(t.store.copy(&from, &target, None, &Condition::Matches(etag)).await);
    assert_eq!(t.get("target").await, "new", "{}", t.name);
    t.ok(t.store.copy(&from, &t.key("fresh"), None, &Condition::Absent).await);
}

async fn removal_is_idempotent(t: &Case<'_>) {
    t.put("a/b", "x").await;
    for name in ["a/b", "a/b", "a", "a/", "a/b/c", "never"] {
        t.ok(t.store.delete(&t.key(name), None).await);
    }
    t.refused(t.store.head(&t.key("a/b")).await, StoreError::is_not_found);
}

async fn removal_is_conditional(t: &Case<'_>) {
    if !t.store.capabilities().conditional_delete {
        return;
    }
    let old = t.put("object", "old").await;
    let new = t.put("object", "new").await;
    t.refused(t.store.delete(&t.key("object"), Some(&old)).await, is_precondition);
    assert_eq!(t.get("object").await, "new", "{}", t.name);
    t.ok(t.store.delete(&t.key("object"), Some(&new)).await);
    t.refused(t.store.head(&t.key("object")).await, StoreError::is_not_found);
}

async fn many_are_removed(t: &Case<'_>) {
    // More than one batch, of which most are not there.
    let keys: Vec<_> = (0..1234).map(|number| t.key(&format!("{number:04} <&> ü"))).collect();
    for number in (0..1234).step_by(100) {
        t.put(&format!("{number:04} <&> ü"), "x").await;
    }
    t.put("kept", "x").await;
    assert!(t.ok(t.store.delete_many(&keys).await).is_empty(), "{}", t.name);
    assert_eq!(t.list_all(&t.under("")).await.0, ["kept"], "{}", t.name);
    assert!(t.ok(t.store.delete_many(&[]).await).is_empty(), "{}: none at all", t.name);
}

async fn put_all(t: &Case<'_>, names: &[&str]) {
    for name in names {
        t.put(name, "x").await;
    }
}

async fn listings_are_ordered(t: &Case<'_>) {
    let mut names = vec![
        "a", "a!", "a-b", "a.b", "a/", "a/b", "a/b/c", "a0", "aa", "B", "b", "b//c", "ä", "z", "{", "%", "+", "~", "😀",
    ];
    put_all(t, &names).await;
    // `!`, `-` and `.` sort before `/`, so `a.b` comes before `a/b`.
    names.sort_unstable();
    assert_eq!(t.list_all(&t.under("")).await.0, names, "{}", t.name);
    assert_eq!(t.list_all(&t.under("a")).await.0, ["a", "a!", "a-b", "a.b", "a/", "a/b", "a/b/c", "a0", "aa"]);
    assert_eq!(t.list_all(&t.under("a/")).await.0, ["a/", "a/b", "a/b/c"], "{}", t.name);
    assert_eq!(t.list_all(&t.under("a/b/")).await.0, ["a/b/c"], "{}", t.name);
}

async fn listings_are_rolled_up(t: &Case<'_>) {
    put_all(t, &["a/1", "a/2/x", "a/2/y", "a.b", "b", "c/", "d//x", "e/f/g/h", "é/x"]).await;
    let check = async |prefix: &str, keys: &[&str], prefixes: &[&str]| {
        let (found_keys, found_prefixes) = t.list_all(&t.delimited(prefix)).await;
        assert_eq!(found_keys, keys, "{}: keys under {prefix:?}", t.name);
        assert_eq!(found_prefixes, prefixes, "{}: prefixes under {prefix:?}", t.name);
    };
    check("", &["a.b", "b"], &["a/", "c/", "d/", "e/", "é/"]).await;
    check("a/", &["a/1"], &["a/2/"]).await;
    check("a", &["a.b"], &["a/"]).await;
    check("a/2", &[], &["a/2/"]).await;
    check("c/", &["c/"], &[]).await;
    check("d/", &[], &["d//"]).await;
    check("e/f", &[], &["e/f/"]).await;
    check("é", &[], &["é/"]).await;
    check("x/", &[], &[]).await;
}

async fn a_key_beside_its_directory_is_listed(t: &Case<'_>) {
    put_all(t, &["c", "c/", "c/d", "c/d/", "c/d/e"]).await;
    assert_eq!(t.list_all(&t.under("")).await.0, ["c", "c/", "c/d", "c/d/", "c/d/e"], "{}", t.name);
    let (keys, prefixes) = t.list_all(&t.delimited("")).await;
    assert_eq!((keys, prefixes), (vec!["c".to_owned()], vec!["c/".to_owned()]), "{}", t.name);
    let (keys, prefixes) = t.list_all(&t.delimited("c/")).await;
    assert_eq!((keys, prefixes), (vec!["c/".to_owned(), "c/d".to_owned()], vec!["c/d/".to_owned()]), "{}", t.name);
    t.ok(t.store.delete(&t.key("c"), None).await);
    assert_eq!(t.list_all(&t.under("")).await.0, ["c/", "c/d", "c/d/", "c/d/e"], "{}", t.name);
}

/// Around the lengths at which a directory store may cut a name.
async fn long_segments_are_listed_in_order(t: &Case<'_>) {
    let mut names = Vec::new();
    for len in [188, 189, 190, 191, 192, 254, 255, 256, 380, 381] {
        for end in ["", "!", "/", "/x", "0", "!/x", "0/x", "ü", "%"] {
            names.push(format!("{}{end}", "n".repeat(len)));
        }
    }
    names.sort_unstable();
    for name in &names {
        t.put(name, "x").await;
    }
    for max_keys in [0, 1, 3, 7] {
        let request = ListRequest { max_keys, ..t.under("") };
        assert_eq!(t.list_all(&request).await.0, names, "{}: pages of {max_keys}", t.name);
    }
    for start in names.iter().step_by(5) {
        let request = ListRequest { start_after: Some(format!("{}{start}", t.prefix)), ..t.under("nn") };
        let rest: Vec<_> = names.iter().filter(|name| *name > start).cloned().collect();
        assert_eq!(t.list_all(&request).await.0, rest, "{}: after {start}", t.name);
    }
    let prefix = "n".repeat(191);
    let expected: Vec<_> = names.iter().filter(|name| name.starts_with(&prefix)).cloned().collect();
    assert_eq!(t.list_all(&t.under(&prefix)).await.0, expected, "{}: a long prefix", t.name);
    let (keys, prefixes) = t.list_all(&t.delimited("")).await;
    let rolled = |name: &&String| name.contains('/');
    let mut expected: Vec<_> =
        names.iter().filter(rolled).filter_map(|name| Some(name[..=name.find('/')?].to_owned())).collect();
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(prefixes, expected, "{}: prefixes", t.name);
    let expected: Vec<_> = names.iter().filter(|name| !rolled(name)).cloned().collect();
    assert_eq!(keys, expected, "{}: keys", t.name);
}

async fn pages_fit_together(t: &Case<'_>) {
    let mut names = Vec::new();
    for number in 0..7 {
        names.push(format!("dir{number}/a"));
        names.push(format!("dir{number}/b/c"));
        names.push(format!("file{number}"));
        names.push(format!("dir{number}.x"));
    }
    names.sort_unstable();
    for name in &names {
        t.put(name, "x").await;
    }
    let (mut keys, prefixes): (Vec<_>, Vec<_>) = names.iter().cloned().partition(|name| !name.contains('/'));
    let mut prefixes: Vec<_> = prefixes.iter().map(|name| format!("{}/", &name[..4])).collect();
    prefixes.dedup();
    keys.sort_unstable();
    for max_keys in [1, 2, 3, 5, 28, 29, 1000] {
        let request = ListRequest { max_keys, ..t.under("") };
        assert_eq!(t.list_all(&request).await.0, names, "{}: pages of {max_keys}", t.name);
        let request = ListRequest { max_keys, ..t.delimited("") };
        let (found_keys, found_prefixes) = t.list_all(&request).await;
        assert_eq!((&found_keys, &found_prefixes), (&keys, &prefixes), "{}: rolled-up pages of {max_keys}", t.name);
    }
    // The last page has no successor, even if it is full.
    let page = t.ok(t.store.list(&ListRequest { max_keys: 28, ..t.under("") }).await);
    assert_eq!((page.objects.len(), page.next), (28, None), "{}", t.name);
}

async fn a_listing_starts_after_a_key(t: &Case<'_>) {
    let names = ["a", "a/b", "a/b/c", "a/d", "b", "c/d"];
    put_all(t, &names).await;
    for start in ["", "a", "a/", "a/b", "a/b/c", "a/c", "aa", "b", "c", "c/d", "z"] {
        let request = ListRequest { start_after: Some(format!("{}{start}", t.prefix)), ..t.under("") };
        let rest: Vec<_> = names.iter().filter(|name| **name > start).copied().collect();
        assert_eq!(t.list_all(&request).await.0, rest, "{}: after {start:?}", t.name);
    }
    let request = ListRequest { start_after: Some(format!("{}a/b", t.prefix)), max_keys: 1, ..t.under("") };
    assert_eq!(t.list_all(&request).await.0, ["a/b/c", "a/d", "b", "c/d"], "{}: with continuation", t.name);
    let request = ListRequest { start_after: Some(format!("{}a/zz", t.prefix)), ..t.delimited("") };
    assert_eq!(t.list_all(&request).await, (vec!["b".into()], vec!["c/".into()]), "{}: rolled up", t.name);
    // Behind everything that begins with the prefix.
    let request = ListRequest { start_after: Some(format!("{}b", t.prefix)), ..t.under("a") };
    assert_eq!(t.list_all(&request).await.0, Vec::<String>::new(), "{}: behind the prefix", t.name);
}

async fn listed_facts_are_those_of_head(t: &Case<'_>) {
    t.put("object", pattern(12345, 7)).await;
    let page = t.ok(t.store.list(&t.under("")).await);
    let [listed] = &page.objects[..] else { panic!("{}: {} objects", t.name, page.objects.len()) };
    let info = t.ok(t.store.head(&t.key("object")).await);
    assert_eq!(listed.size, info.size, "{}", t.name);
    assert!(listed.etag.as_ref().is_none_or(|etag| *etag == info.etag), "{}: {:?}", t.name, listed.etag);
    // A provider may show milliseconds in one place and seconds in the other.
    let times = [listed.last_modified, info.last_modified];
    let [a, b] = times.map(|time| time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs());
    assert_eq!(a, b, "{}", t.name);
    let age = std::time::SystemTime::now().duration_since(info.last_modified).unwrap_or_default();
    assert!(age.as_secs() < 3600, "{}: modified {age:?} ago", t.name);
}

async fn a_listing_of_nothing_is_empty(t: &Case<'_>) {
    for request in [t.under(""), t.delimited(""), t.under("x/y"), t.delimited("x/y/")] {
        assert_eq!(t.list_all(&request).await, (vec![], vec![]), "{}", t.name);
    }
    t.put("a/b/c", "x").await;
    t.ok(t.store.delete(&t.key("a/b/c"), None).await);
    assert_eq!(t.list_all(&t.delimited("")).await, (vec![], vec![]), "{}: nothing is left of a directory", t.name);
}

async fn parts_become_an_object(t: &Case<'_>) {
    let data = pattern(t.part_len() * 2 + 1234, 8);
    let attributes = attributes();
    let id = t.ok(t.store.create_multipart(&t.key("object"), &attributes).await);
    t.refused(t.store.head(&t.key("object")).await, StoreError::is_not_found);
    // Uploaded in another order than they are joined, and with a gap.
    let mut parts = Vec::new();
    for (number, range) in
        [(5, t.part_len() * 2..data.len()), (1, 0..t.part_len()), (2, t.part_len()..t.part_len() * 2)]
    {
        parts.push(t.part("object", &id, number, data.slice(range)).await);
    }
    parts.sort_by_key(|part| part.number);
    let etag = t.complete("object", &id, &parts).await;
    let info = t.ok(t.store.head(&t.key("object")).await);
    assert_eq!((info.size, info.etag, info.attributes), (data.len() as u64, etag, attributes), "{}", t.name);
    assert!(t.get("object").await == data, "{}", t.name);
    let across = t.part_len() as u64 - 10..t.part_len() as u64 + 10;
    let found = t.ok(t.try_get("object", across.clone(), None).await);
    assert!(found == data[t.part_len() - 10..t.part_len() + 10], "{}: {across:?}", t.name);
}

async fn a_part_is_replaced(t: &Case<'_>) {
    let id = t.begin("object").await;
    t.part("object", &id, 1, Bytes::from_static(b"first")).await;
    let second = t.part("object", &id, 1, Bytes::from_static(b"second")).await;
    t.complete("object", &id, &[second]).await;
    assert_eq!(t.get("object").await, "second", "{}", t.name);
}

async fn a_missing_or_small_part_is_refused(t: &Case<'_>) {
    let id = t.begin("object").await;
    let one = t.part("object", &id, 1, Bytes::from_static(b"small")).await;
    let two = t.part("object", &id, 2, Bytes::from_static(b"small, too")).await;
    let key = t.key("object");
    let missing = Part { number: 3, ..two.clone() };
    let refused = t.store.complete_multipart(&key, &id, &[one.clone(), missing], &Condition::Always).await;
    t.refused(refused, is_invalid);
    let other = Part { etag: ETag::new("00000000000000000000000000000000"), ..one.clone() };
    t.refused(t.store.complete_multipart(&key, &id, &[other], &Condition::Always).await, is_invalid);
    if t.part_len() > 100 {
        t.refused(t.store.complete_multipart(&key, &id, &[one, two], &Condition::Always).await, is_invalid);
    }
    t.refused(t.store.head(&key).await, StoreError::is_not_found);
    t.ok(t.store.abort_multipart(&key, &id).await);
}

async fn parts_are_copied(t: &Case<'_>) {
    if !t.store.capabilities().part_copy {
        return;
    }
    let part_len = t.part_len();
    let data = pattern(part_len * 2, 9);
    let etag = t.put("ü source", data.clone()).await;
    let id = t.begin("object").await;
    let (key, from) = (t.key("object"), source(t, "ü source", Some(&etag)));
    let copied = 3..part_len + 3;
    let range = copied.start as u64..copied.end as u64;
    let one = t.ok(t.store.upload_part_copy(&key, &id, 1, &from, range).await);
    let last = part_len as u64 - 1..part_len as u64;
    let three = t.ok(t.store.upload_part_copy(&key, &id, 3, &from, last).await);
    let two = t.part("object", &id, 2, data.slice(..part_len)).await;
    let old = source(t, "ü source", Some(&ETag::new("00000000000000000000000000000000")));
    t.refused(t.store.upload_part_copy(&key, &id, 4, &old, 0..10).await, is_precondition);
    let missing = source(t, "missing", None);
    t.refused(t.store.upload_part_copy(&key, &id, 4, &missing, 0..10).await, StoreError::is_not_found);
    t.complete("object", &id, &[one, two, three]).await;
    let expected = [&data[copied], &data[..part_len], &data[part_len - 1..part_len]].concat();
    assert!(t.get("object").await == expected, "{}", t.name);
}

async fn completion_is_conditional(t: &Case<'_>) {
    if !t.store.capabilities().conditional_put {
        return;
    }
    let etag = t.put("object", "old").await;
    let key = t.key("object");
    for condition in [Condition::Absent, Condition::Matches(ETag::new("00000000000000000000000000000000"))] {
        let id = t.begin("object").await;
        let part = t.part("object", &id, 1, Bytes::from_static(b"new")).await;
        t.refused(t.store.complete_multipart(&key, &id, &[part], &condition).await, is_precondition);
        t.ok(t.store.abort_multipart(&key, &id).await);
    }
    assert_eq!(t.get("object").await, "old", "{}", t.name);
    for (name, condition) in [("object", Condition::Matches(etag)), ("fresh", Condition::Absent)] {
        let id = t.begin(name).await;
        let part = t.part(name, &id, 1, Bytes::from_static(b"new")).await;
        t.ok(t.store.complete_multipart(&t.key(name), &id, &[part], &condition).await);
        assert_eq!(t.get(name).await, "new", "{}", t.name);
    }
}

async fn an_upload_is_aborted(t: &Case<'_>) {
    let id = t.begin("object").await;
    let part = t.part("object", &id, 1, Bytes::from_static(b"x")).await;
    let key = t.key("object");
    t.ok(t.store.abort_multipart(&key, &id).await);
    t.ok(t.store.abort_multipart(&key, &id).await);
    let late = t.store.upload_part(&key, &id, 2, Bytes::from_static(b"x").into()).await;
    t.refused(late, StoreError::is_not_found);
    let late = t.store.complete_multipart(&key, &id, &[part], &Condition::Always).await;
    t.refused(late, StoreError::is_not_found);
    t.refused(t.store.head(&key).await, StoreError::is_not_found);
    assert!(t.ok(t.store.list_multipart(&t.prefix).await).is_empty(), "{}", t.name);
}

async fn an_unknown_upload_is_not_found(t: &Case<'_>) {
    let key = t.key("object");
    let id = UploadId("0123456789abcdef0123456789abcdef".into());
    t.refused(t.store.upload_part(&key, &id, 1, Bytes::from_static(b"x").into()).await, StoreError::is_not_found);
    let part = Part { number: 1, etag: ETag::new("9dd4e461268c8034f5c8564e155c67a6"), checksum: None };
    let completed = t.store.complete_multipart(&key, &id, &[part], &Condition::Always).await;
    t.refused(completed, StoreError::is_not_found);
    t.ok(t.store.abort_multipart(&key, &id).await);
}

async fn uploads_are_listed(t: &Case<'_>) {
    let mut expected = Vec::new();
    for name in ["a", "b/c", "ü +"] {
        let id = t.begin(name).await;
        expected.push((t.key(name).as_str().to_owned(), id));
    }
    let listed = t.ok(t.store.list_multipart(&t.prefix).await);
    let found: Vec<_> = listed.iter().map(|upload| (upload.key.clone(), upload.id.clone())).collect();
    assert_eq!(found, expected, "{}", t.name);
    assert_eq!(t.ok(t.store.list_multipart(&format!("{}b", t.prefix)).await).len(), 1, "{}", t.name);
    let part = t.part("a", &expected[0].1, 2, Bytes::from_static(b"abc")).await;
    match t.store.list_parts(&t.key("a"), &expected[0].1).await {
        Err(StoreError::Unsupported { .. }) => {}
        parts => {
            let parts: Vec<_> = t.ok(parts).into_iter().map(|part| (part.number, part.etag, part.size)).collect();
            assert_eq!(parts, [(2, part.etag, 3)], "{}", t.name);
        }
    }
    for (key, id) in expected {
        let key = ObjectKey::new(key).unwrap_or_else(|error| panic!("{}: {error}", t.name));
        t.ok(t.store.abort_multipart(&key, &id).await);
    }
}

async fn large_objects_come_back(t: &Case<'_>) {
    let data = pattern(24 << 20, 10);
    let etag = t.put("object", data.clone()).await;
    assert!(t.get("object").await == data, "{}", t.name);
    let middle = 11_000_001..19_000_003;
    let found = t.ok(t.try_get("object", middle.start as u64..middle.end as u64, Some(&etag)).await);
    assert!(found == data[middle], "{}: the middle", t.name);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dir::DirStore;
    use crate::memory::MemoryStore;

    #[tokio::test(flavor = "multi_thread")]
    async fn memory_keeps_the_promises() {
        run(&MemoryStore::new(), "some/prefix/").await;
        run(&MemoryStore::new(), "").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_directory_keeps_the_promises() {
        let directory = tempfile::tempdir().unwrap();
        let store = DirStore::create(directory.path()).unwrap();
        run(&store, "some/prefix/").await;
        // Nothing stays behind: no temporary file, no empty directory.
        for part in ["objects", "tmp", "uploads"] {
            let left: Vec<_> = std::fs::read_dir(directory.path().join(part)).unwrap().collect();
            assert!(left.is_empty(), "{part}: {left:?}");
        }
    }
}
