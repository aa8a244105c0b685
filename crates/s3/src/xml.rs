//! XML documents: a small tree to read, a small writer, and the documents that are not lists.

use std::borrow::Cow;
use std::time::SystemTime;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use crate::time;

/// A text that is not the document it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// No XML at all, or broken.
    #[error("not an XML document: {0}")]
    Syntax(String),
    /// Another document.
    #[error("expected <{expected}>, got <{got}>")]
    Root {
        /// The wanted root.
        expected: &'static str,
        /// The one that came.
        got: String,
    },
    /// A field is missing or malformed.
    #[error("<{document}> has no valid <{field}>")]
    Field {
        /// The document.
        document: &'static str,
        /// The field.
        field: &'static str,
    },
}

/// Deepest nesting that is read; S3's documents have four levels.
const DEPTH_MAX: usize = 32;

/// Most elements of a document: a completion of 10,000 parts has seven for each.
const ELEMENTS_MAX: usize = 100_000;
/// Most attributes of an element. (To look for duplicates takes the square of it.)
const ATTRIBUTES_MAX: usize = 16;

/// An element: its text, or its children.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    /// The name without namespace.
    pub name: String,
    /// What stands before the name, `a` of `<a:b>`; else empty.
    pub prefix: String,
    /// Names as written, and values.
    pub attributes: Vec<(String, String)>,
    /// All text directly in it.
    pub text: String,
    /// What it holds.
    pub children: Vec<Element>,
}

impl Element {
    /// Reads a document's root.
    ///
    /// # Errors
    /// [`XmlError::Syntax`].
    pub fn parse(bytes: &[u8]) -> Result<Self, XmlError> {
        let syntax = |what: &dyn std::fmt::Display| XmlError::Syntax(what.to_string());
        let text = std::str::from_utf8(bytes).map_err(|error| syntax(&error))?;
        let text = text.trim_start_matches('\u{feff}').trim();
        // No form of XML has it, not even as a reference; so it could not be written again.
        if text.contains('\0') {
            return Err(syntax(&"a NUL"));
        }
        let mut reader = Reader::from_str(text);
        let mut open: Vec<Self> = Vec::new();
        let mut root: Option<Self> = None;
        let mut count = 0;
        loop {
            let event = reader.read_event().map_err(|error| syntax(&error))?;
            if matches!(event, Event::Start(_) | Event::Empty(_)) {
                count += 1;
                if count > ELEMENTS_MAX {
                    return Err(syntax(&"too many elements"));
                }
            }
            let closed = match event {
                Event::Start(start) => {
                    if root.is_some() || open.len() >= DEPTH_MAX {
                        return Err(syntax(&"more than one root, or too deep"));
                    }
                    open.push(Self::of_tag(&start)?);
                    continue;
                }
                Event::Empty(start) => Self::of_tag(&start)?,
                Event::End(_) => open.pop().ok_or_else(|| syntax(&"an end without a start"))?,
                Event::Text(text) => {
                    if let Some(element) = open.last_mut() {
                        element.text.push_str(&text);
                    } else if !text.trim().is_empty() {
                        return Err(syntax(&"text outside of the document"));
                    }
                    continue;
                }
                Event::CData(text) => {
                    if let Some(element) = open.last_mut() {
                        element.text.push_str(&text);
                    }
                    continue;
                }
                Event::GeneralRef(reference) => {
                    let character = match &*reference {
                        "lt" => '<',
                        "gt" => '>',
                        "amp" => '&',
                        "quot" => '"',
                        "apos" => '\'',
                        _ => reference
                            .resolve_char_ref()
                            .map_err(|error| syntax(&error))?
                            .ok_or_else(|| syntax(&format!("unknown entity &{};", &*reference)))?,
                    };
                    if let Some(element) = open.last_mut() {
                        element.text.push(character);
                    }
                    continue;
                }
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => continue,
                Event::DocType(_) => return Err(syntax(&"a document type is not accepted")),
                Event::Eof => break,
            };
            match open.last_mut() {
                Some(parent) => parent.children.push(closed),
                None if root.is_none() => root = Some(closed),
                None => return Err(syntax(&"more than one root")),
            }
        }
        if !open.is_empty() {
            return Err(syntax(&"the document is cut short"));
        }
        root.ok_or_else(|| syntax(&"no element"))
    }

    fn of_tag(tag: &BytesStart<'_>) -> Result<Self, XmlError> {
        let mut element = Self { name: tag.local_name().as_ref().to_owned(), ..Self::default() };
        if let Some(prefix) = tag.name().prefix() {
            element.prefix = prefix.as_ref().to_owned();
        }
        for attribute in tag.attributes() {
            let attribute = attribute.map_err(|error| XmlError::Syntax(error.to_string()))?;
            if element.attributes.len() == ATTRIBUTES_MAX {
                return Err(XmlError::Syntax("too many attributes".into()));
            }
            element.attributes.push((attribute.key.as_ref().to_owned(), attribute.value.clone().into_owned()));
        }
        Ok(element)
    }

    /// Reads a document whose root must be `name`.
    ///
    /// # Errors
    /// [`XmlError`].
    pub fn parse_as(bytes: &[u8], name: &'static str) -> Result<Self, XmlError> {
        let root = Self::parse(bytes)?;
        if root.name == name { Ok(root) } else { Err(XmlError::Root { expected: name, got: root.name }) }
    }

    /// The first child of that name.
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// All children of that name.
    pub fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> + 'a {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The text of the first child of that name.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str())
    }

    /// As [`Self::text_of`]; empty text is none.
    pub fn some_text_of(&self, name: &str) -> Option<&str> {
        self.text_of(name).filter(|text| !text.is_empty())
    }
}

/// Writes text as XML. Control characters become references, so `\r` and `\n` survive.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(|c: char| c.is_control() || matches!(c, '<' | '>' | '&' | '"' | '\'')) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            c if c.is_control() => escaped.push_str(&format!("&#{};", u32::from(c))),
            c => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

/// Whether XML 1.0 can hold the text at all.
pub fn can_hold(text: &str) -> bool {
    !text.chars().any(|c| (c < ' ' && !matches!(c, '\t' | '\n' | '\r')) || matches!(c, '\u{fffe}' | '\u{ffff}'))
}

/// An error document: what the provider says went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorDocument {
    /// `NoSuchKey`.
    pub code: String,
    /// For people.
    pub message: String,
    /// The region that the bucket is in, if the error is about that.
    pub region: Option<String>,
}

impl ErrorDocument {
    /// Reads an error; `None` if the text is something else.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let root = Element::parse(bytes).ok()?;
        Self::from_element(&root)
    }

    fn from_element(root: &Element) -> Option<Self> {
        // `ErrorResponse` wraps the error at some providers.
        let error = match root.name.as_str() {
            "Error" => root,
            "ErrorResponse" => root.child("Error").unwrap_or(root),
            _ => return None,
        };
        Some(Self {
            code: error.text_of("Code").unwrap_or_default().trim().to_owned(),
            message: error.text_of("Message").unwrap_or_default().trim().to_owned(),
            region: error.some_text_of("Region").map(|region| region.trim().to_owned()),
        })
    }
}

/// What CopyObject, UploadPartCopy or CompleteMultipartUpload say in a body of status 200: done, or an error after all.
pub type Outcome<T> = Result<T, ErrorDocument>;

/// The new version that a copy made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyResult {
    /// With or without quotes, as it came.
    pub etag: String,
    /// When it was stored.
    pub last_modified: Option<SystemTime>,
    /// CRC64NVME of a copied part, where the provider tells it.
    pub crc64nvme: Option<String>,
}

/// Reads the answer to CopyObject or UploadPartCopy.
///
/// # Errors
/// [`XmlError`] if it is neither a result nor an error.
pub fn parse_copy(bytes: &[u8]) -> Result<Outcome<CopyResult>, XmlError> {
    let root = Element::parse(bytes)?;
    if let Some(error) = ErrorDocument::from_element(&root) {
        return Ok(Err(error));
    }
    if root.name != "CopyObjectResult" && root.name != "CopyPartResult" {
        return Err(XmlError::Root { expected: "CopyObjectResult", got: root.name });
    }
    let etag = root.some_text_of("ETag").ok_or(XmlError::Field { document: "CopyObjectResult", field: "ETag" })?;
    Ok(Ok(CopyResult {
        etag: etag.to_owned(),
        last_modified: root.text_of("LastModified").and_then(time::parse_iso),
        crc64nvme: root.some_text_of("ChecksumCRC64NVME").map(str::to_owned),
    }))
}

/// What CompleteMultipartUpload answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompleteResult {
    /// The new object's tag, as it is written.
    pub etag: String,
    /// Base64 CRC64NVME of the whole object.
    pub full_crc64nvme: Option<String>,
}

/// Reads the answer to CompleteMultipartUpload.
///
/// # Errors
/// [`XmlError`] if it is neither a result nor an error.
pub fn parse_complete(bytes: &[u8]) -> Result<Outcome<CompleteResult>, XmlError> {
    let root = Element::parse(bytes)?;
    if let Some(error) = ErrorDocument::from_element(&root) {
        return Ok(Err(error));
    }
    let document = "CompleteMultipartUploadResult";
    if root.name != document {
        return Err(XmlError::Root { expected: document, got: root.name });
    }
    let etag = root.some_text_of("ETag").ok_or(XmlError::Field { document, field: "ETag" })?.to_owned();
    // This algorithm has no sums of sums.
    let full_crc64nvme = root.some_text_of("ChecksumCRC64NVME").map(str::to_owned);
    Ok(Ok(CompleteResult { etag, full_crc64nvme }))
}

/// Reads the answer to GetObjectTagging: names and values.
///
/// # Errors
/// [`XmlError`].
pub fn parse_tagging(bytes: &[u8]) -> Result<Vec<(String, String)>, XmlError> {
    let root = Element::parse_as(bytes, "Tagging")?;
    let set = root.children("TagSet").flat_map(|set| set.children("Tag"));
    let text = |tag: &Element, field| tag.text_of(field).unwrap_or_default().to_owned();
    Ok(set.map(|tag| (text(tag, "Key"), text(tag, "Value"))).collect())
}

/// Reads the answer to CreateMultipartUpload: the upload's id.
///
/// # Errors
/// [`XmlError`].
pub fn parse_create(bytes: &[u8]) -> Result<String, XmlError> {
    let document = "InitiateMultipartUploadResult";
    let root = Element::parse_as(bytes, document)?;
    root.some_text_of("UploadId").map(str::to_owned).ok_or(XmlError::Field { document, field: "UploadId" })
}

/// One part, to be named at completion.
#[derive(Clone, Copy, Debug)]
pub struct CompletedPart<'a> {
    /// 1 to 10,000.
    pub number: u32,
    /// Without quotes.
    pub etag: &'a str,
    /// Base64 CRC64NVME.
    pub crc64nvme: Option<&'a str>,
}

/// Writes the body of CompleteMultipartUpload.
pub fn complete_body<'a>(parts: impl IntoIterator<Item = CompletedPart<'a>>) -> String {
    let mut body = String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for part in parts {
        body.push_str(&format!(
            "<Part><PartNumber>{}</PartNumber><ETag>&quot;{}&quot;</ETag>",
            part.number,
            escape(part.etag)
        ));
        if let Some(crc) = part.crc64nvme {
            body.push_str(&format!("<ChecksumCRC64NVME>{}</ChecksumCRC64NVME>", escape(crc)));
        }
        body.push_str("</Part>");
    }
    body.push_str("</CompleteMultipartUpload>");
    body
}

/// Writes the body of DeleteObjects; the answer names failures only.
pub fn delete_body<'a>(keys: impl IntoIterator<Item = &'a str>) -> String {
    let mut body = String::from("<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for key in keys {
        body.push_str(&format!("<Object><Key>{}</Key></Object>", escape(key)));
    }
    body.push_str("<Quiet>true</Quiet></Delete>");
    body
}

/// Reads the answer to DeleteObjects: the keys that could not be removed, and why.
///
/// # Errors
/// [`XmlError`].
pub fn parse_delete(bytes: &[u8]) -> Result<Outcome<Vec<(String, ErrorDocument)>>, XmlError> {
    let root = Element::parse(bytes)?;
    if let Some(error) = ErrorDocument::from_element(&root) {
        return Ok(Err(error));
    }
    // Some providers write `DeleteObjectsResult`.
    if root.name != "DeleteResult" && root.name != "DeleteObjectsResult" {
        return Err(XmlError::Root { expected: "DeleteResult", got: root.name });
    }
    let failed = root.children("Error").map(|error| {
        let document = ErrorDocument::from_element(error).unwrap_or_default();
        (error.text_of("Key").unwrap_or_default().to_owned(), document)
    });
    Ok(Ok(failed.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        let text = "<Tagging><TagSet><Tag><Key>a&amp;b</Key><Value>1</Value></Tag><Tag><Key>c</Key><Value></Value></Tag></TagSet></Tagging>";
        let tags = parse_tagging(text.as_bytes()).unwrap();
        assert_eq!(tags, [("a&b".to_owned(), "1".to_owned()), ("c".to_owned(), String::new())]);
    }

    #[test]
    fn tree() {
        let root = Element::parse(
            b"\n<?xml version=\"1.0\"?>\n<a:R xmlns:a=\"x\"><K> a&amp;b&#13;&#xe4; </K><E/><![CDATA[<]]></a:R>",
        )
        .unwrap();
        assert_eq!((root.name.as_str(), root.text_of("K"), root.text_of("E")), ("R", Some(" a&b\rä "), Some("")));
        for bad in [
            "",
            "text",
            "<a>",
            "<a></b>",
            "<a/><b/>",
            "<!DOCTYPE html><html></html>",
            "<a>&x;</a>",
            "<a>\0</a>",
            "<a>&#0;</a>",
        ] {
            assert!(Element::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(Element::parse("<a>".repeat(1000).as_bytes()).is_err());
        let many = |count| format!("<a>{}</a>", "<b/>".repeat(count));
        assert!(Element::parse(many(ELEMENTS_MAX - 1).as_bytes()).is_ok());
        assert!(Element::parse(many(ELEMENTS_MAX).as_bytes()).is_err());
        let attributes: String = (0..100_000).map(|n| format!(" a{n}=\"\"")).collect();
        assert!(Element::parse(format!("<a{attributes}/>").as_bytes()).is_err());
    }

    #[test]
    fn errors_inside_200() {
        let error =
            b"<?xml version=\"1.0\"?>\n\n\n<Error><Code>InternalError</Code><Message>We failed.</Message></Error>";
        for parsed in [parse_copy(error).unwrap().unwrap_err(), parse_complete(error).unwrap().unwrap_err()] {
            assert_eq!((parsed.code.as_str(), parsed.message.as_str()), ("InternalError", "We failed."));
        }
        let copied = b"<CopyObjectResult><LastModified>2013-05-24T00:00:00Z</LastModified><ETag>&quot;e&quot;</ETag></CopyObjectResult>";
        assert_eq!(parse_copy(copied).unwrap().unwrap().etag, "\"e\"");
        assert!(parse_complete(b"<html></html>").is_err());
        assert!(parse_complete(b"").is_err());
    }

    #[test]
    fn deletes() {
        let body = delete_body(["a&b", "line\nend"]);
        assert!(body.contains("<Key>a&amp;b</Key>") && body.contains("<Key>line&#10;end</Key>"), "{body}");
        let answer =
            b"<DeleteResult><Error><Key>k</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>";
        let failed = parse_delete(answer).unwrap().unwrap();
        assert_eq!((failed[0].0.as_str(), failed[0].1.code.as_str()), ("k", "AccessDenied"));
        assert!(!can_hold("\u{1}") && can_hold("\t\r\nä"));
    }
}
