//! Where a bucket and its keys are in URLs.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sandpail_spec::Endpoint;

/// What S3's signature leaves as it is: letters, digits and `-._~`.
const STRICT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// As [`STRICT`], and the `/` between the parts of a key.
const PATH: &AsciiSet = &STRICT.remove(b'/');

/// Percent-encodes a name or value of a query.
pub fn encode_query(text: &str) -> String {
    encode(text, STRICT)
}

/// Percent-encodes a key as it stands in a path; `/` stays.
pub fn encode_key(key: &str) -> String {
    encode(key, PATH)
}

/// Piece by piece: `to_string` goes through the formatter.
fn encode(text: &str, kept: &'static AsciiSet) -> String {
    let mut encoded = String::with_capacity(text.len());
    encoded.extend(utf8_percent_encode(text, kept));
    encoded
}

/// Undoes `encoding-type=url`, where providers write a blank as `+` or `%20`. `None` if it is not UTF-8.
pub fn decode_listed(text: &str) -> Option<String> {
    let text = if text.contains('+') { text.replace('+', "%20") } else { text.to_owned() };
    percent_decode_str(&text).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

/// The query as it is sent and signed: encoded and in the signature's order.
pub fn canonical_query(query: &[(String, String)]) -> String {
    canonical_query_of(query.iter().map(|(name, value)| (&**name, &**value)))
}

/// [`canonical_query`] of pairs that are borrowed.
pub fn canonical_query_of<'a>(query: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut pairs: Vec<(String, String)> =
        query.map(|(name, value)| (encode_query(name), encode_query(value))).collect();
    pairs.sort_unstable();
    let mut text = String::new();
    for (name, value) in &pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        text.push_str(value);
    }
    text
}

/// One bucket at one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    endpoint: Endpoint,
    bucket: String,
    path_style: bool,
    authority: String,
}

impl Address {
    /// `path_style` puts the bucket into the path, else it is the first label of the host.
    pub fn new(endpoint: Endpoint, bucket: &str, path_style: bool) -> Self {
        let authority = if path_style {
            endpoint.authority()
        } else {
            endpoint.with_host(&format!("{bucket}.{}", endpoint.host())).authority()
        };
        Self { endpoint, bucket: bucket.into(), path_style, authority }
    }

    /// The endpoint without the bucket.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The value of the `Host` header.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The encoded path of a key, or of the bucket itself.
    pub fn path(&self, key: Option<&str>) -> String {
        let mut path = String::with_capacity(self.bucket.len() + key.map_or(0, str::len) + 2);
        path.push('/');
        if self.path_style {
            path.extend(utf8_percent_encode(&self.bucket, PATH));
            if key.is_some() {
                path.push('/');
            }
        }
        if let Some(key) = key {
            path.extend(utf8_percent_encode(key, PATH));
        }
        path
    }

    /// The whole URL, with an already encoded query.
    pub fn url(&self, path: &str, query: &str) -> String {
        let mark = if query.is_empty() { "" } else { "?" };
        let scheme = if self.endpoint.is_tls() { "https" } else { "http" };
        format!("{scheme}://{}{path}{mark}{query}", self.authority)
    }

    /// The value of `x-amz-copy-source` for a key of this bucket.
    pub fn copy_source(&self, key: &str) -> String {
        format!("{}/{}", encode_key(&self.bucket), encode_key(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn styles() {
        let endpoint = "https://s3.example.com:9000".parse::<Endpoint>().unwrap();
        let path = Address::new(endpoint.clone(), "data", true);
        assert_eq!(
            path.url(&path.path(Some("a b/ü+%.txt")), ""),
            "https://s3.example.com:9000/data/a%20b/%C3%BC%2B%25.txt"
        );
        assert_eq!(path.path(None), "/data");
        let host = Address::new(endpoint, "data", false);
        assert_eq!(host.url(&host.path(Some("/x//")), "a=b"), "https://data.s3.example.com:9000//x//?a=b");
        assert_eq!(host.path(None), "/");
        assert_eq!(host.copy_source("a b"), "data/a%20b");
    }

    #[test]
    fn queries() {
        let query =
            [("prefix".into(), "a/b c".into()), ("delimiter".into(), "/".into()), ("uploads".into(), String::new())];
        assert_eq!(canonical_query(&query), "delimiter=%2F&prefix=a%2Fb%20c&uploads=");
        assert_eq!(decode_listed("a+b%2Bc%20d/%C3%BC").as_deref(), Some("a b+c d/ü"));
        assert_eq!(decode_listed("%FF"), None);
    }
}
