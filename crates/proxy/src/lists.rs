//! Answers that name keys, buckets or uploads: read and written anew, so that nothing outside the mount is shown.

use sandpail_s3::address::{decode_listed, encode_key};
use sandpail_s3::xml::{Element, escape};

use crate::deny::ErrorAnswer;
use crate::documents::NAMESPACE;
use crate::scope::List;
use crate::{Action, BadAnswer, Forward};

/// Writes a document.
struct Writer(String);

impl Writer {
    fn new(root: &str) -> Self {
        Self(format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{root} xmlns=\"{NAMESPACE}\">"))
    }

    fn open(&mut self, name: &str) {
        self.0.push('<');
        self.0.push_str(name);
        self.0.push('>');
    }

    fn close(&mut self, name: &str) {
        self.0.push_str("</");
        self.0.push_str(name);
        self.0.push('>');
    }

    fn text(&mut self, name: &str, text: &str) {
        self.open(name);
        self.0.push_str(&escape(text));
        self.close(name);
    }

    /// Copies those children of `element` that have these names, and theirs.
    fn copy(&mut self, element: &Element, names: &[&str]) {
        for child in element.children.iter().filter(|child| names.contains(&&*child.name)) {
            if child.children.is_empty() {
                self.text(&child.name, &child.text);
            } else {
                self.open(&child.name);
                self.copy(child, names);
                self.close(&child.name);
            }
        }
    }

    fn end(mut self, root: &str) -> String {
        self.close(root);
        self.0
    }
}

/// Checksums of objects and parts.
const SUMS: [&str; 6] =
    ["ChecksumCRC32", "ChecksumCRC32C", "ChecksumCRC64NVME", "ChecksumSHA1", "ChecksumSHA256", "ChecksumType"];
const OBJECT: [&str; 6] = ["LastModified", "ETag", "ChecksumAlgorithm", "ChecksumType", "Size", "StorageClass"];
const UPLOAD: [&str; 4] = ["StorageClass", "Initiated", "ChecksumAlgorithm", "ChecksumType"];
const ATTRIBUTES: [&str; 19] = [
    "Checksum",
    "ChecksumCRC32",
    "ChecksumCRC32C",
    "ChecksumCRC64NVME",
    "ChecksumSHA1",
    "ChecksumSHA256",
    "ChecksumType",
    "ETag",
    "IsTruncated",
    "MaxParts",
    "NextPartNumberMarker",
    "ObjectParts",
    "ObjectSize",
    "Part",
    "PartNumber",
    "PartNumberMarker",
    "PartsCount",
    "Size",
    "StorageClass",
];

fn bad(text: impl Into<String>) -> BadAnswer {
    BadAnswer(text.into())
}

/// Writes the answer to a permitted operation anew.
pub(crate) fn rewrite(forward: &Forward, root: &Element) -> Result<String, BadAnswer> {
    let expect = |name: &'static str| {
        if root.name == name { Ok(name) } else { Err(bad(format!("it is <{}> in place of <{name}>", root.name))) }
    };
    match forward.permit.action {
        Action::ListObjects | Action::ListObjectsV2 => {
            expect("ListBucketResult")?;
            objects(forward, root)
        }
        Action::ListMultipartUploads => {
            expect("ListMultipartUploadsResult")?;
            uploads(forward, root)
        }
        Action::ListParts => {
            expect("ListPartsResult")?;
            // Not every store compares the key with the upload's.
            if root.some_text_of("Key").is_some_and(|key| Some(key) != forward.permit.key()) {
                return Err(bad("it is about the upload of another key"));
            }
            Ok(parts(forward, root))
        }
        Action::DeleteObjects => {
            if root.name != "DeleteObjectsResult" {
                expect("DeleteResult")?;
            }
            Ok(deleted(forward, root))
        }
        Action::CopyObject | Action::UploadPartCopy => {
            let name = if root.name == "CopyPartResult" { "CopyPartResult" } else { expect("CopyObjectResult")? };
            let mut to = Writer::new(name);
            to.copy(root, &["LastModified", "ETag"]);
            to.copy(root, &SUMS);
            Ok(to.end(name))
        }
        Action::CreateMultipartUpload => {
            let name = expect("InitiateMultipartUploadResult")?;
            let id = root.some_text_of("UploadId").ok_or_else(|| bad("it has no UploadId"))?;
            let mut to = Writer::new(name);
            whose(forward, &mut to);
            to.text("UploadId", id);
            Ok(to.end(name))
        }
        Action::CompleteMultipartUpload => {
            let name = expect("CompleteMultipartUploadResult")?;
            let mut to = Writer::new(name);
            to.text("Location", &forward.location);
            whose(forward, &mut to);
            to.copy(root, &["ETag"]);
            to.copy(root, &SUMS);
            Ok(to.end(name))
        }
        Action::GetObjectAttributes => {
            let name = "GetObjectAttributesResponse";
            if root.name != "GetObjectAttributesOutput" {
                expect(name)?;
            }
            let mut to = Writer::new(name);
            to.copy(root, &ATTRIBUTES);
            Ok(to.end(name))
        }
        action => Err(bad(format!("{} has no document", action.name()))),
    }
}

/// Bucket and key as the client knows them.
fn whose(forward: &Forward, to: &mut Writer) {
    to.text("Bucket", &forward.view.bucket);
    to.text("Key", forward.permit.key().and_then(|key| forward.view.show(key)).unwrap_or_default());
}

/// How one list's names are read and shown.
struct Names<'a> {
    forward: &'a Forward,
    list: &'a List,
    is_encoded: bool,
}

impl<'a> Names<'a> {
    fn of(forward: &'a Forward, root: &Element) -> Result<Self, BadAnswer> {
        let list = forward.list.as_ref().ok_or_else(|| bad("it is a list that nobody asked for"))?;
        // Not every store obeys `encoding-type=url`; the answer says whether it did.
        let is_encoded = root.text_of("EncodingType").is_some_and(|kind| kind.trim().eq_ignore_ascii_case("url"));
        Ok(Self { forward, list, is_encoded })
    }

    fn read(&self, text: &str) -> Result<String, BadAnswer> {
        if self.is_encoded {
            decode_listed(text).ok_or_else(|| bad("a name is not UTF-8"))
        } else {
            Ok(text.to_owned())
        }
    }

    fn spell(&self, shown: &str) -> String {
        if self.list.is_encoded { encode_key(shown) } else { shown.to_owned() }
    }

    /// The name as the client gets it; none if it is outside.
    fn show(&self, full: &str) -> Option<String> {
        // A document with a NUL is none: it would hide all other names, too.
        let can_be_told = self.list.is_encoded || !full.contains('\0');
        let inside = (can_be_told && full.starts_with(&self.list.prefix)).then_some(full)?;
        self.forward.view.show(inside).map(|shown| self.spell(shown))
    }

    /// The head that all lists have. `marker` is the element that tells where the page begins.
    fn head(&self, to: &mut Writer, bucket: &str, marker: &str) {
        to.text(bucket, &self.forward.view.bucket);
        to.text("Prefix", &self.spell(self.forward.view.show(&self.list.prefix).unwrap_or_default()));
        if let Some(delimiter) = &self.list.delimiter {
            to.text("Delimiter", &self.spell(delimiter));
        }
        let is_told = marker != "StartAfter" || self.list.marker.is_some();
        if is_told {
            to.text(marker, &self.spell(self.list.marker.as_deref().unwrap_or_default()));
        }
        if self.list.is_encoded {
            to.text("EncodingType", "url");
        }
    }

    /// Writes the common prefixes; gives their number and the last of them, as the store knows it.
    fn common(&self, root: &Element, to: &mut Writer) -> Result<(usize, Option<String>), BadAnswer> {
        let (mut count, mut last) = (0, None);
        for prefix in root.children("CommonPrefixes").flat_map(|common| common.children("Prefix")) {
            let full = self.read(&prefix.text)?;
            let Some(shown) = self.show(&full) else { continue };
            to.open("CommonPrefixes");
            to.text("Prefix", &shown);
            to.close("CommonPrefixes");
            count += 1;
            last = Some(full);
        }
        Ok((count, last))
    }
}

fn is_truncated(root: &Element) -> bool {
    root.text_of("IsTruncated").is_some_and(|text| text.trim().eq_ignore_ascii_case("true"))
}

fn objects(forward: &Forward, root: &Element) -> Result<String, BadAnswer> {
    let names = Names::of(forward, root)?;
    let list = names.list;
    let is_second = forward.permit.action == Action::ListObjectsV2;
    let mut to = Writer::new("ListBucketResult");
    names.head(&mut to, "Name", if is_second { "StartAfter" } else { "Marker" });
    to.text("MaxKeys", &list.page_len.to_string());
    let (mut count, mut last) = (0, None);
    for contents in root.children("Contents") {
        let full = names.read(contents.text_of("Key").ok_or_else(|| bad("an object has no key"))?)?;
        let Some(shown) = names.show(&full) else { continue };
        to.open("Contents");
        to.text("Key", &shown);
        to.copy(contents, &OBJECT);
        to.close("Contents");
        count += 1;
        last = Some(full);
    }
    let (common_count, last_common) = names.common(root, &mut to)?;
    let is_truncated = is_truncated(root);
    to.text("IsTruncated", if is_truncated { "true" } else { "false" });
    if is_second {
        to.text("KeyCount", &(count + common_count).to_string());
        if let Some(token) = &list.token {
            to.text("ContinuationToken", token);
        }
        if is_truncated {
            let token =
                root.some_text_of("NextContinuationToken").ok_or_else(|| bad("there is no continuation token"))?;
            to.text("NextContinuationToken", &list.seal.close(&list.prefix, list.delimiter.as_deref(), token));
        }
    } else if is_truncated {
        let told = root.some_text_of("NextMarker").map(|marker| names.read(marker)).transpose()?;
        // A store that names a marker outside would only make the client begin again; the last name does not.
        let next = told.and_then(|marker| names.show(&marker)).or_else(|| names.show(&last.max(last_common)?));
        to.text("NextMarker", &next.ok_or_else(|| bad("it is cut off, and says not where"))?);
    }
    Ok(to.end("ListBucketResult"))
}

fn uploads(forward: &Forward, root: &Element) -> Result<String, BadAnswer> {
    let names = Names::of(forward, root)?;
    let mut to = Writer::new("ListMultipartUploadsResult");
    names.head(&mut to, "Bucket", "KeyMarker");
    to.text("UploadIdMarker", names.list.token.as_deref().unwrap_or_default());
    to.text("MaxUploads", &names.list.page_len.to_string());
    let mut last = None;
    for upload in root.children("Upload") {
        let full = names.read(upload.text_of("Key").ok_or_else(|| bad("an upload has no key"))?)?;
        let id = upload.some_text_of("UploadId").ok_or_else(|| bad("an upload has no id"))?;
        let Some(shown) = names.show(&full) else { continue };
        to.open("Upload");
        to.text("Key", &shown);
        to.text("UploadId", id);
        to.copy(upload, &UPLOAD);
        to.close("Upload");
        last = Some((full, id.to_owned()));
    }
    names.common(root, &mut to)?;
    let is_truncated = is_truncated(root);
    to.text("IsTruncated", if is_truncated { "true" } else { "false" });
    if is_truncated {
        let told = root.some_text_of("NextKeyMarker").map(|marker| names.read(marker)).transpose()?;
        let id = root.text_of("NextUploadIdMarker").unwrap_or_default().to_owned();
        let next = told.map(|marker| (marker, id)).filter(|(marker, _)| names.show(marker).is_some()).or(last);
        let (marker, id) = next.ok_or_else(|| bad("it is cut off, and says not where"))?;
        to.text("NextKeyMarker", &names.show(&marker).unwrap_or_default());
        to.text("NextUploadIdMarker", &id);
    }
    Ok(to.end("ListMultipartUploadsResult"))
}

fn parts(forward: &Forward, root: &Element) -> String {
    let mut to = Writer::new("ListPartsResult");
    whose(forward, &mut to);
    to.text("UploadId", forward.permit.upload_id().unwrap_or_default());
    to.copy(root, &["StorageClass", "PartNumberMarker", "NextPartNumberMarker", "MaxParts", "IsTruncated"]);
    to.copy(root, &["ChecksumAlgorithm", "ChecksumType"]);
    for part in root.children("Part") {
        to.open("Part");
        to.copy(part, &["PartNumber", "LastModified", "ETag", "Size"]);
        to.copy(part, &SUMS);
        to.close("Part");
    }
    to.end("ListPartsResult")
}

fn deleted(forward: &Forward, root: &Element) -> String {
    let mut to = Writer::new("DeleteResult");
    let prefix = forward.route.spec().prefix.as_str();
    let shown = |element: &Element| {
        let key = element.text_of("Key").filter(|key| key.starts_with(prefix))?;
        forward.view.show(key).map(str::to_owned)
    };
    for child in &root.children {
        let Some(key) = shown(child) else { continue };
        match &*child.name {
            "Deleted" => {
                to.open("Deleted");
                to.text("Key", &key);
                to.copy(child, &["DeleteMarker"]);
                to.close("Deleted");
            }
            "Error" => {
                let error = ErrorAnswer::of_code(child.text_of("Code").unwrap_or_default().trim(), None);
                to.open("Error");
                to.text("Key", &key);
                to.text("Code", &error.code);
                to.text("Message", &error.message);
                to.close("Error");
            }
            _ => {}
        }
    }
    to.end("DeleteResult")
}
