//! Amazon's headers in Google's words: a request signed by GOOG4 may not carry `x-amz-` headers.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

/// Names that only change their beginning.
const SAME: [&str; 7] = [
    "copy-source",
    "copy-source-if-match",
    "copy-source-if-none-match",
    "copy-source-if-modified-since",
    "copy-source-if-unmodified-since",
    "copy-source-range",
    "metadata-directive",
];
/// How to check a body, or that the answer should name its sum: without meaning to Google, and without loss left out.
const LEFT_OUT: [&str; 4] = ["sdk-checksum-algorithm", "checksum-algorithm", "checksum-mode", "checksum-type"];
/// Google's own classes. Amazon's others have no counterpart that costs and lasts the same.
const CLASSES: [&str; 4] = ["STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"];

/// Translates the headers of a request. Checksums are left out but for the one that Google knows.
///
/// # Errors
/// The name of a header that Google has no counterpart for.
pub(super) fn request(method: &Method, headers: &HeaderMap) -> Result<HeaderMap, String> {
    let mut translated = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let Some(short) = name.as_str().strip_prefix("x-amz-") else {
            if let Some((name, value)) = condition(method, name, value)? {
                translated.append(name, value);
            }
            continue;
        };
        let to = match short {
            "checksum-crc32c" => {
                let sum = value.to_str().map_err(|_| name.to_string())?;
                let value = HeaderValue::from_str(&format!("crc32c={sum}")).map_err(|_| name.to_string())?;
                translated.append(HeaderName::from_static("x-goog-hash"), value);
                continue;
            }
            short if LEFT_OUT.contains(&short) || short.starts_with("checksum-") => continue,
            "storage-class" if CLASSES.iter().any(|class| value == class) => "storage-class",
            short if SAME.contains(&short) || short.starts_with("meta-") => short,
            _ => return Err(name.to_string()),
        };
        let to = HeaderName::try_from(format!("x-goog-{to}")).map_err(|_| name.to_string())?;
        translated.append(to, value.clone());
    }
    Ok(translated)
}

/// On writes Google knows no conditions by tag, but one by generation: 0 is "there is none".
fn condition(
    method: &Method,
    name: &HeaderName,
    value: &HeaderValue,
) -> Result<Option<(HeaderName, HeaderValue)>, String> {
    let is_write = !matches!(*method, Method::GET | Method::HEAD);
    if is_write && name == header::IF_NONE_MATCH && value == "*" {
        return Ok(Some((HeaderName::from_static("x-goog-if-generation-match"), HeaderValue::from_static("0"))));
    }
    // Ignored it would be a write that should not have happened.
    if is_write && (name == header::IF_MATCH || name == header::IF_NONE_MATCH) {
        return Err(format!("{name} on a write"));
    }
    Ok(Some((name.clone(), value.clone())))
}

/// Translates the headers of an answer; what has no counterpart stays as it is.
pub(super) fn answer(headers: &mut HeaderMap) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with("x-goog-")).cloned().collect();
    for name in names {
        let short = &name.as_str()["x-goog-".len()..];
        if !short.starts_with("meta-") && short != "storage-class" {
            continue;
        }
        let Ok(to) = HeaderName::try_from(format!("x-amz-{short}")) else { continue };
        let values: Vec<HeaderValue> = headers.get_all(&name).iter().cloned().collect();
        headers.remove(&name);
        for value in values {
            headers.append(to.clone(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        headers
            .iter()
            .map(|(name, value)| (HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[track_caller]
    fn check(method: Method, from: (&str, &str), to: Result<&[(&str, &str)], &str>) {
        let translated = request(&method, &map(&[from]));
        assert_eq!(translated, to.map(map).map_err(str::to_owned), "{from:?}");
    }

    #[test]
    fn requests() {
        check(Method::PUT, ("x-amz-meta-a", "1"), Ok(&[("x-goog-meta-a", "1")]));
        check(Method::PUT, ("content-type", "a/b"), Ok(&[("content-type", "a/b")]));
        check(Method::PUT, ("x-amz-copy-source", "b/k"), Ok(&[("x-goog-copy-source", "b/k")]));
        check(Method::PUT, ("x-amz-storage-class", "NEARLINE"), Ok(&[("x-goog-storage-class", "NEARLINE")]));
        check(Method::PUT, ("x-amz-storage-class", "GLACIER"), Err("x-amz-storage-class"));
        check(Method::PUT, ("x-amz-tagging", "a=b"), Err("x-amz-tagging"));
        check(Method::PUT, ("x-amz-checksum-crc32c", "4waSgw=="), Ok(&[("x-goog-hash", "crc32c=4waSgw==")]));
        check(Method::PUT, ("x-amz-checksum-sha256", "x"), Ok(&[]));
        check(Method::PUT, ("if-none-match", "*"), Ok(&[("x-goog-if-generation-match", "0")]));
        check(Method::PUT, ("if-match", "\"a\""), Err("if-match on a write"));
        check(Method::GET, ("if-match", "\"a\""), Ok(&[("if-match", "\"a\"")]));
    }

    #[test]
    fn answers() {
        let mut headers = map(&[("x-goog-meta-a", "1"), ("x-goog-hash", "md5=x"), ("etag", "\"e\"")]);
        answer(&mut headers);
        assert_eq!(headers, map(&[("x-amz-meta-a", "1"), ("x-goog-hash", "md5=x"), ("etag", "\"e\"")]));
    }
}
