//! Documents that clients send: DeleteObjects and CompleteMultipartUpload. Read strictly, written anew.

use sandpail_s3::xml::{Element, XmlError, escape};

use crate::Denied;
use crate::target::check_key;

/// The namespace of all of S3's documents.
pub(crate) const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

/// S3's limits.
const DELETES_MAX: usize = 1000;
const PARTS_MAX: usize = 10_000;

/// A thousand keys of 1,024 bytes, and what stands around them.
pub(crate) const DELETES_LEN_MAX: u64 = 2 << 20;
/// Ten thousand parts, each with an ETag and a checksum.
pub(crate) const COMPLETION_LEN_MAX: u64 = 4 << 20;

/// What DeleteObjects asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Deletes {
    /// As the client sees them.
    pub(crate) keys: Vec<String>,
    pub(crate) is_quiet: bool,
}

/// Reads a document that has only elements of S3's namespace, without attributes.
fn read(body: &[u8], name: &'static str) -> Result<Element, Denied> {
    let root = Element::parse_as(body, name).map_err(|error| match error {
        XmlError::Syntax(_) => Denied::Xml("the body is not an XML document without entities and document type"),
        XmlError::Root { .. } | XmlError::Field { .. } => Denied::Xml("the body is another document"),
    })?;
    let is_namespace = |(name, value): &(String, String)| name == "xmlns" && value == NAMESPACE;
    if !root.attributes.iter().all(is_namespace) {
        return Err(Denied::Xml("the document is of another namespace"));
    }
    if !root.prefix.is_empty() || root.children.iter().any(|child| !is_plain(child)) {
        return Err(Denied::Xml("the document has elements of another namespace, or attributes"));
    }
    if !root.text.trim().is_empty() {
        return Err(MIXED);
    }
    Ok(root)
}

const MIXED: Denied = Denied::Xml("the document has text where elements belong");

fn is_plain(element: &Element) -> bool {
    element.prefix.is_empty() && element.attributes.is_empty() && element.children.iter().all(is_plain)
}

/// The text of an element that holds nothing else.
fn text(element: &Element) -> Result<&str, Denied> {
    if element.children.is_empty() {
        Ok(&element.text)
    } else {
        Err(Denied::Xml("an element holds others in place of text"))
    }
}

/// Reads the body of DeleteObjects.
pub(crate) fn read_deletes(body: &[u8]) -> Result<Deletes, Denied> {
    let root = read(body, "Delete")?;
    let mut deletes = Deletes { keys: Vec::new(), is_quiet: false };
    let mut has_quiet = false;
    for child in &root.children {
        match &*child.name {
            "Quiet" if !has_quiet => {
                has_quiet = true;
                deletes.is_quiet = match text(child)?.trim() {
                    "true" => true,
                    "false" | "" => false,
                    _ => return Err(Denied::Xml("Quiet must be true or false")),
                };
            }
            "Object" => deletes.keys.push(read_object(child)?),
            _ => return Err(Denied::Xml("the document has an element that is not known")),
        }
    }
    if deletes.keys.is_empty() || deletes.keys.len() > DELETES_MAX {
        return Err(Denied::Xml("the document must name 1 to 1000 keys"));
    }
    Ok(deletes)
}

fn read_object(object: &Element) -> Result<String, Denied> {
    if !object.text.trim().is_empty() {
        return Err(MIXED);
    }
    let mut key = None;
    for child in &object.children {
        match &*child.name {
            "Key" if key.is_none() => key = Some(text(child)?.to_owned()),
            "VersionId" => return Err(Denied::Operation("deleting a version")),
            // To leave a condition out would delete what the client wants kept.
            "ETag" | "LastModifiedTime" | "Size" => {
                return Err(Denied::Operation("deleting several keys on conditions"));
            }
            _ => return Err(Denied::Xml("an object of the document has an element that is not known, or two keys")),
        }
    }
    let key = key.filter(|key| !key.is_empty()).ok_or(Denied::Xml("an object of the document has no key"))?;
    check_key(&key)?;
    Ok(key)
}

/// Writes the body of DeleteObjects, of full keys.
pub(crate) fn write_deletes<'a>(keys: impl IntoIterator<Item = &'a str>, is_quiet: bool) -> String {
    let mut body = format!("<Delete xmlns=\"{NAMESPACE}\">");
    if is_quiet {
        body.push_str("<Quiet>true</Quiet>");
    }
    for key in keys {
        body.push_str("<Object><Key>");
        body.push_str(&escape(key));
        body.push_str("</Key></Object>");
    }
    body.push_str("</Delete>");
    body
}

/// The checksums that a part may have.
const SUMS: [&str; 5] = ["ChecksumCRC32", "ChecksumCRC32C", "ChecksumCRC64NVME", "ChecksumSHA1", "ChecksumSHA256"];

/// Reads the body of CompleteMultipartUpload, and writes it anew.
pub(crate) fn rewrite_completion(body: &[u8]) -> Result<String, Denied> {
    let root = read(body, "CompleteMultipartUpload")?;
    if root.children.is_empty() || root.children.len() > PARTS_MAX {
        return Err(Denied::Xml("the document must name 1 to 10000 parts"));
    }
    let mut document = format!("<CompleteMultipartUpload xmlns=\"{NAMESPACE}\">");
    for part in &root.children {
        if part.name != "Part" || !part.text.trim().is_empty() {
            return Err(Denied::Xml("the document may name parts only"));
        }
        document.push_str("<Part>");
        let mut seen: Vec<&str> = Vec::new();
        for field in &part.children {
            let name = field.name.as_str();
            let value = text(field)?.trim();
            let is_good = match name {
                "PartNumber" => {
                    (1..=5).contains(&value.len())
                        && value.bytes().all(|byte| byte.is_ascii_digit())
                        && value.parse().is_ok_and(|number: u32| (1..=10_000).contains(&number))
                }
                "ETag" => (1..=1024).contains(&value.len()) && !value.chars().any(char::is_control),
                _ => {
                    SUMS.contains(&name)
                        && (1..=128).contains(&value.len())
                        && value.bytes().all(|byte| byte.is_ascii_graphic())
                }
            };
            if !is_good || seen.contains(&name) {
                return Err(Denied::Xml("a part of the document has a field that is not known, or not valid"));
            }
            seen.push(name);
            document.push_str(&format!("<{name}>{}</{name}>", escape(value)));
        }
        if !seen.contains(&"PartNumber") || !seen.contains(&"ETag") {
            return Err(Denied::Xml("a part of the document has no number or no ETag"));
        }
        document.push_str("</Part>");
    }
    document.push_str("</CompleteMultipartUpload>");
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refuse(body: &str, rule: &str) {
        assert_eq!(read_deletes(body.as_bytes()).map_err(|denied| denied.rule()), Err(rule), "{body}");
    }

    #[test]
    fn deletes() {
        let body = format!(
            "<?xml version=\"1.0\"?>\n<Delete xmlns=\"{NAMESPACE}\">\n <Object><Key>a&amp;b&#10;c</Key></Object>\
             <Object><Key> x </Key></Object><Object><Key> x </Key></Object><Quiet>true</Quiet></Delete>"
        );
        let deletes = read_deletes(body.as_bytes()).unwrap();
        assert_eq!(deletes, Deletes { keys: vec!["a&b\nc".into(), " x ".into(), " x ".into()], is_quiet: true });
        let again = write_deletes(deletes.keys.iter().map(String::as_str), true);
        assert_eq!(read_deletes(again.as_bytes()).unwrap(), deletes);
    }

    #[test]
    fn deletes_that_are_refused() {
        refuse("", "malformed-xml");
        refuse("<Delete></Delete>", "malformed-xml");
        refuse("<Delete><Object></Object></Delete>", "malformed-xml");
        refuse("<Delete><Object><Key></Key></Object></Delete>", "malformed-xml");
        refuse("<Delete><Object><Key>a</Key><Key>b</Key></Object></Delete>", "malformed-xml");
        refuse("<Delete><Object><Key><b>a</b></Key></Object></Delete>", "malformed-xml");
        refuse("<Delete><Object>a<Key>a</Key></Object></Delete>", "malformed-xml");
        refuse("<Delete>x<Object><Key>a</Key></Object></Delete>", "malformed-xml");
        refuse(
            "<Delete><Quiet>true</Quiet><Quiet>false</Quiet><Object><Key>a</Key></Object></Delete>",
            "malformed-xml",
        );
        refuse("<Delete><Other/><Object><Key>a</Key></Object></Delete>", "malformed-xml");
        refuse("<Delete xmlns=\"urn:evil\"><Object><Key>a</Key></Object></Delete>", "malformed-xml");
        refuse("<e:Delete xmlns:e=\"urn:evil\"><Object><Key>a</Key></Object></e:Delete>", "malformed-xml");
        refuse("<Delete><Object xmlns=\"urn:evil\"><Key>a</Key></Object></Delete>", "malformed-xml");
        refuse(
            "<!DOCTYPE Delete [<!ENTITY k \"x\">]><Delete><Object><Key>&k;</Key></Object></Delete>",
            "malformed-xml",
        );
        refuse("<Delete><Object><Key>&k;</Key></Object></Delete>", "malformed-xml");
        refuse("<Delete><Object><Key>a</Key></Object></Delete><Delete/>", "malformed-xml");
        refuse("<Delete><Object><Key>a</Key><VersionId>1</VersionId></Object></Delete>", "operation");
        refuse("<Delete><Object><Key>a</Key><ETag>1</ETag></Object></Delete>", "operation");
        refuse("<Delete><Object><Key>a/../b</Key></Object></Delete>", "invalid");
        refuse(&format!("<Delete>{}</Delete>", "<Object><Key>a</Key></Object>".repeat(1001)), "malformed-xml");
        refuse(&format!("<Delete><Object><Key>{}</Key></Object></Delete>", "a".repeat(1025)), "too-large");
    }

    #[test]
    fn completions() {
        let body = "<CompleteMultipartUpload><Part><ETag>&quot;e&quot;</ETag><PartNumber>1</PartNumber>\
                    <ChecksumCRC32>AAAAAA==</ChecksumCRC32></Part></CompleteMultipartUpload>";
        let again = rewrite_completion(body.as_bytes()).unwrap();
        assert!(
            again.contains("<ETag>&quot;e&quot;</ETag><PartNumber>1</PartNumber><ChecksumCRC32>AAAAAA==<"),
            "{again}"
        );
        for bad in [
            "<CompleteMultipartUpload/>",
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>",
            "<CompleteMultipartUpload><Part><ETag>e</ETag><PartNumber>0</PartNumber></Part></CompleteMultipartUpload>",
            "<CompleteMultipartUpload>\
             <Part><ETag>e</ETag><PartNumber>10001</PartNumber></Part></CompleteMultipartUpload>",
            "<CompleteMultipartUpload>\
             <Part><ETag>e</ETag><PartNumber>1</PartNumber><Key>k</Key></Part></CompleteMultipartUpload>",
            "<CompleteMultipartUpload><Part><ETag>e</ETag><PartNumber>1</PartNumber>\
             <ChecksumCRC32>\u{1}AAAAAA==</ChecksumCRC32></Part></CompleteMultipartUpload>",
            "<CompleteMultipartUpload><Part><ETag>e</ETag><PartNumber>1</PartNumber>\
             <ChecksumCRC32>AA\0AA==</ChecksumCRC32></Part></CompleteMultipartUpload>",
            "<CompleteMultipartUpload><Key>k</Key></CompleteMultipartUpload>",
            "<Delete><Object><Key>a</Key></Object></Delete>",
        ] {
            assert!(rewrite_completion(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
