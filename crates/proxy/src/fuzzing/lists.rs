//! Answers of stores: lists, and other documents that name keys.

use bytes::Bytes;
use sandpail_s3::address::decode_listed;
use sandpail_s3::xml::Element;
use sandpail_s3::{list, xml};

use super::world::{Text, World};
use crate::{Action, Arrival, Decision, ErrorAnswer, Forward, decide};

/// Requests whose answers are documents.
pub(super) const ASKED: [&str; 14] = [
    "A\nGET\n/b?list-type=2",
    "A\nGET\n/b?list-type=2&prefix=data/x&delimiter=/&encoding-type=url&max-keys=2&start-after=data/a",
    "A\nGET\n/OPEN?list-type=2&delimiter=/\nhost:r2.internal",
    "A\nGET\n/b?prefix=data/ro/&marker=data/ro/b&encoding-type=url",
    "A\nGET\n/OPEN?delimiter=/\nhost:r2.internal",
    "A\nGET\n/b?uploads&encoding-type=url",
    "A\nGET\n/OPEN?uploads&key-marker=a&upload-id-marker=u\nhost:r2.internal",
    "A\nGET\n/b/data/k?uploadId=u",
    "A\nGET\n/OPEN/k?attributes\nhost:r2.internal\nx-amz-object-attributes:ETag",
    "A\nPUT\n/OPEN/k\nhost:r2.internal\nx-amz-copy-source:OPEN/s",
    "A\nPOST\n/OPEN/k?uploads\nhost:r2.internal",
    "A\nPOST\n/b/data/k?uploadId=u",
    "A\nPOST\n/b?delete",
    "A\nPOST\n/OPEN?delete\nhost:r2.internal",
];

thread_local! {
    static FORWARDS: (World, Vec<Forward>) = {
        let world = World::new();
        let forward = |asked: &str| {
            let text = Text::parse(asked.as_bytes());
            let parts = text.and_then(|text| text.sign(world.now)).expect("the table is right");
            match decide(&parts, &Arrival::default(), &world.guest, world.now) {
                Ok(Decision::Forward(forward)) => *forward,
                other => panic!("{asked}: {other:?}"),
            }
        };
        let forwards = ASKED.into_iter().map(forward).collect();
        (world, forwards)
    };
}

/// Elements that a client may see, beside those that a rule below looks at.
const PLAIN: [&str; 46] = [
    "Bucket",
    "Checksum",
    "ChecksumAlgorithm",
    "ChecksumCRC32",
    "ChecksumCRC32C",
    "ChecksumCRC64NVME",
    "ChecksumSHA1",
    "ChecksumSHA256",
    "ChecksumType",
    "Code",
    "CommonPrefixes",
    "Contents",
    "ContinuationToken",
    "DeleteMarker",
    "Deleted",
    "Delimiter",
    "ETag",
    "EncodingType",
    "Error",
    "Initiated",
    "IsTruncated",
    "KeyCount",
    "KeyMarker",
    "LastModified",
    "Location",
    "Marker",
    "MaxKeys",
    "MaxParts",
    "MaxUploads",
    "Message",
    "Name",
    "NextContinuationToken",
    "NextPartNumberMarker",
    "NextUploadIdMarker",
    "ObjectParts",
    "ObjectSize",
    "Part",
    "PartNumber",
    "PartNumberMarker",
    "PartsCount",
    "Size",
    "StartAfter",
    "StorageClass",
    "Upload",
    "UploadId",
    "UploadIdMarker",
];

/// Which of [`ASKED`], and the store's answer. What the client sees is well formed, and every name in it is inside the
/// mount. The same bytes are given to the readers of the mounts themselves.
pub fn fuzz_lists(data: &[u8]) {
    run(data);
}

/// Which of [`ASKED`] was answered with a document.
pub(super) fn run(data: &[u8]) -> Option<usize> {
    let (&which, body) = data.split_first()?;
    read(body);
    FORWARDS.with(|(_, forwards)| {
        let which = usize::from(which) % forwards.len();
        let forward = &forwards[which];
        match forward.rewrite_answer(body) {
            Ok(Ok(document)) => {
                check(forward, body, &document);
                Some(which)
            }
            Ok(Err(error)) => {
                let answer = ErrorAnswer::from_document(&error);
                assert!(answer.status.is_client_error() || answer.status.is_server_error() || answer.status == 304);
                assert!(answer.code.len() <= 64 && answer.code.bytes().all(|byte| byte.is_ascii_alphanumeric()));
                None
            }
            Err(_) => None,
        }
    })
}

/// The mounts' own readers must not panic.
fn read(body: &[u8]) {
    let page = list::parse_objects(body);
    if let Ok(page) = &page {
        assert!(page.objects.len() + page.prefixes.len() <= body.len());
    }
    let outcomes = [page.is_ok(), list::parse_uploads(body).is_ok(), list::parse_parts(body).is_ok()];
    assert!(outcomes.into_iter().filter(|is_ok| *is_ok).count() <= 1, "one document is two");
    drop(xml::parse_copy(body));
}

fn check(forward: &Forward, body: &[u8], document: &Bytes) {
    let root = Element::parse(document).expect("what we write is XML");
    let list = forward.list.as_ref();
    let inside = list.map_or_else(|| forward.route.spec().prefix.as_str(), |list| &list.prefix);
    let names = Names { forward, inside, is_encoded: root.text_of("EncodingType") == Some("url") };
    assert_eq!(names.is_encoded, list.is_some_and(|list| list.is_encoded));
    let bucket = root.text_of("Name").or_else(|| root.text_of("Bucket"));
    assert!(bucket.is_none_or(|bucket| bucket == forward.view.bucket));
    for child in &root.children {
        names.check(child);
    }
    let truth = Element::parse(body).expect("it was read");
    if forward.permit.action() == Action::ListObjectsV2 {
        let (kept, sent) = (root.children("Contents").count(), truth.children("Contents").count());
        assert!(kept <= sent);
        let told = root.text_of("KeyCount").and_then(|count| count.parse::<usize>().ok());
        assert_eq!(told, Some(kept + root.children("CommonPrefixes").count()));
        let next = root.text_of("NextContinuationToken");
        assert_eq!(next.is_some(), root.text_of("IsTruncated") == Some("true"));
        if let (Some(next), Some(list)) = (next, list) {
            let token = list.seal.open(&list.prefix, list.delimiter.as_deref(), next);
            assert_eq!(token, truth.text_of("NextContinuationToken"), "the token comes back as the store's");
        }
    }
}

struct Names<'a> {
    forward: &'a Forward,
    /// What all names begin with.
    inside: &'a str,
    is_encoded: bool,
}

impl Names<'_> {
    fn check(&self, element: &Element) {
        let name = element.name.as_str();
        match name {
            "Key" | "Prefix" | "NextMarker" | "NextKeyMarker" => {
                let shown = if self.is_encoded {
                    decode_listed(&element.text).expect("we encode what we are asked to encode")
                } else {
                    element.text.clone()
                };
                let full = format!("{}{shown}", self.forward.view.hidden_prefix);
                assert!(full.starts_with(self.inside), "{full:?} is outside of {:?}", self.inside);
            }
            _ => assert!(PLAIN.contains(&name), "<{name}> is shown"),
        }
        for child in &element.children {
            self.check(child);
        }
    }
}
