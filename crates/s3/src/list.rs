//! Listings.

use std::time::SystemTime;

use crate::address::decode_listed;
use crate::time::parse_iso;
use crate::xml::{Element, XmlError};

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The key, decoded.
    pub key: String,
    /// Length in bytes.
    pub size: u64,
    /// As it came.
    pub etag: Option<String>,
    /// When it was stored.
    pub last_modified: SystemTime,
    /// `StorageClass`.
    pub storage_class: Option<String>,
}

/// One page of ListObjectsV2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Objects.
    pub objects: Vec<Object>,
    /// Common prefixes.
    pub prefixes: Vec<String>,
    /// Where the next page begins; `None` if this is the last.
    pub next: Option<String>,
}

/// One multipart upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// The key, decoded.
    pub key: String,
    /// Its id.
    pub id: String,
    /// When it was begun.
    pub initiated: SystemTime,
}

/// One page of ListMultipartUploads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploadPage {
    /// Uploads.
    pub uploads: Vec<Upload>,
    /// Key marker and upload id marker of the next page.
    pub next: Option<(String, String)>,
}

/// One part of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadedPart {
    /// 1 to 10,000.
    pub number: u32,
    /// As it came.
    pub etag: String,
    /// Length in bytes.
    pub size: u64,
    /// When it was stored.
    pub last_modified: SystemTime,
}

/// One page of ListParts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartPage {
    /// Parts, in ascending order.
    pub parts: Vec<UploadedPart>,
    /// The marker of the next page.
    pub next: Option<u32>,
}

/// Decodes names if the answer says that it encoded them: not every provider obeys `encoding-type=url`.
struct Names {
    encoded: bool,
    document: &'static str,
}

impl Names {
    fn of(root: &Element, document: &'static str) -> Self {
        Self {
            encoded: root.text_of("EncodingType").is_some_and(|kind| kind.trim().eq_ignore_ascii_case("url")),
            document,
        }
    }

    fn decode(&self, element: &Element, field: &'static str) -> Result<String, XmlError> {
        let missing = XmlError::Field { document: self.document, field };
        match element.text_of(field) {
            Some(text) if self.encoded => decode_listed(text).ok_or(missing),
            Some(text) => Ok(text.to_owned()),
            None => Err(missing),
        }
    }
}

fn parsed<T>(value: Option<T>, document: &'static str, field: &'static str) -> Result<T, XmlError> {
    value.ok_or(XmlError::Field { document, field })
}

fn truncated(root: &Element) -> bool {
    root.text_of("IsTruncated").is_some_and(|text| text.trim().eq_ignore_ascii_case("true"))
}

/// Reads the answer to ListObjectsV2.
///
/// # Errors
/// [`XmlError`].
pub fn parse_objects(bytes: &[u8]) -> Result<Page, XmlError> {
    let document = "ListBucketResult";
    let root = Element::parse_as(bytes, document)?;
    let names = Names::of(&root, document);
    let mut page = Page::default();
    for contents in root.children("Contents") {
        let size = contents.text_of("Size").and_then(|size| size.trim().parse().ok());
        let modified = contents.text_of("LastModified").and_then(parse_iso);
        page.objects.push(Object {
            key: names.decode(contents, "Key")?,
            size: parsed(size, document, "Size")?,
            etag: contents.some_text_of("ETag").map(str::to_owned),
            last_modified: parsed(modified, document, "LastModified")?,
            storage_class: contents.some_text_of("StorageClass").map(str::to_owned),
        });
    }
    for prefixes in root.children("CommonPrefixes") {
        for prefix in prefixes.children("Prefix") {
            page.prefixes.push(if names.encoded {
                parsed(decode_listed(&prefix.text), document, "Prefix")?
            } else {
                prefix.text.clone()
            });
        }
    }
    if truncated(&root) {
        let token = root.some_text_of("NextContinuationToken");
        page.next = Some(parsed(token, document, "NextContinuationToken")?.to_owned());
    }
    Ok(page)
}

/// Reads the answer to ListMultipartUploads.
///
/// # Errors
/// [`XmlError`].
pub fn parse_uploads(bytes: &[u8]) -> Result<UploadPage, XmlError> {
    let document = "ListMultipartUploadsResult";
    let root = Element::parse_as(bytes, document)?;
    let names = Names::of(&root, document);
    let mut page = UploadPage::default();
    for upload in root.children("Upload") {
        let initiated = upload.text_of("Initiated").and_then(parse_iso);
        page.uploads.push(Upload {
            key: names.decode(upload, "Key")?,
            id: parsed(upload.some_text_of("UploadId"), document, "UploadId")?.to_owned(),
            initiated: parsed(initiated, document, "Initiated")?,
        });
    }
    if truncated(&root) {
        let id = root.text_of("NextUploadIdMarker").unwrap_or_default().to_owned();
        page.next = Some((names.decode(&root, "NextKeyMarker")?, id));
    }
    Ok(page)
}

/// Reads the answer to ListParts.
///
/// # Errors
/// [`XmlError`].
pub fn parse_parts(bytes: &[u8]) -> Result<PartPage, XmlError> {
    let document = "ListPartsResult";
    let root = Element::parse_as(bytes, document)?;
    let mut page = PartPage::default();
    for part in root.children("Part") {
        let number = part.text_of("PartNumber").and_then(|number| number.trim().parse().ok());
        let size = part.text_of("Size").and_then(|size| size.trim().parse().ok());
        let modified = part.text_of("LastModified").and_then(parse_iso);
        page.parts.push(UploadedPart {
            number: parsed(number, document, "PartNumber")?,
            etag: parsed(part.some_text_of("ETag"), document, "ETag")?.to_owned(),
            size: parsed(size, document, "Size")?,
            last_modified: parsed(modified, document, "LastModified")?,
        });
    }
    if truncated(&root) {
        let marker = root.text_of("NextPartNumberMarker").and_then(|marker| marker.trim().parse().ok());
        page.next = Some(parsed(marker, document, "NextPartNumberMarker")?);
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects() {
        let body = "<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>\
            <NextContinuationToken>a+b%20</NextContinuationToken><Contents><Key>a+b%2B%0A/%C3%BC</Key>\
            <LastModified>2013-05-24T00:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag><Size>7</Size>\
            <StorageClass>STANDARD</StorageClass></Contents><CommonPrefixes><Prefix>x+y/</Prefix></CommonPrefixes></ListBucketResult>";
        let page = parse_objects(body.as_bytes()).unwrap();
        assert_eq!((page.objects[0].key.as_str(), page.objects[0].size), ("a b+\n/ü", 7));
        assert_eq!(page.prefixes, ["x y/"]);
        assert_eq!(page.next.as_deref(), Some("a+b%20"), "the token is opaque");
        let plain = parse_objects(body.replace("<EncodingType>url</EncodingType>", "").as_bytes()).unwrap();
        assert_eq!(plain.objects[0].key, "a+b%2B%0A/%C3%BC");
        assert!(parse_objects(b"<html/>").is_err());
        assert!(parse_objects(b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>").is_err());
        assert!(parse_objects(b"<ListBucketResult><Contents><Key>k</Key></Contents></ListBucketResult>").is_err());
    }

    #[test]
    fn uploads_and_parts() {
        let body = "<ListMultipartUploadsResult><EncodingType>url</EncodingType><Upload><Key>a%20b</Key><UploadId>id</UploadId>\
            <Initiated>2013-05-24T00:00:00.000Z</Initiated></Upload><IsTruncated>true</IsTruncated>\
            <NextKeyMarker>a%20b</NextKeyMarker><NextUploadIdMarker>id</NextUploadIdMarker></ListMultipartUploadsResult>";
        let page = parse_uploads(body.as_bytes()).unwrap();
        assert_eq!(page.uploads[0].key, "a b");
        assert_eq!(page.next, Some(("a b".into(), "id".into())));
        let body = "<ListPartsResult><Part><PartNumber>2</PartNumber><ETag>e</ETag><Size>5</Size>\
            <LastModified>2013-05-24T00:00:00.000Z</LastModified></Part><IsTruncated>false</IsTruncated></ListPartsResult>";
        let page = parse_parts(body.as_bytes()).unwrap();
        assert_eq!((page.parts[0].number, page.next), (2, None));
    }
}
