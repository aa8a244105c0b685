//! A sandbox with mounts of all kinds, and requests as text.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use sandpail_s3::sign::goog4::GOOG4;
use sandpail_s3::sign::sigv4::SIGV4;
use sandpail_s3::sign::{Signer, Unsigned};
use sandpail_spec::{Credentials, KeyPrefix, SecretKey};

use crate::nowhere::Nowhere;
use crate::query::Query;
use crate::{Access, DummyKey, Guest, OpenRoute, RouteSpec};

const KEY_ID: &str = "id";
const SECRET: &str = "secret";

pub(super) struct World {
    pub(super) guest: Arc<Guest>,
    pub(super) now: SystemTime,
    _open: Vec<OpenRoute>,
}

/// One line for each mount: id, binding, bucket, prefix, endpoint, how it is open.
///
/// What wants a signature has `hidden` in its bucket's name, so that one sees if it is told of without.
const MOUNTS: [(&str, &str, &str, &str, &str, &str); 8] = [
    ("m1", "", "b", "/data/", "https://s3.example.com", "rw unsigned"),
    ("m2", "", "b", "/data/ro/", "https://s3.example.com", "ro unsigned"),
    ("m3", "LOGS", "logs-hidden", "/2024/", "", "rw"),
    ("m4", "OPEN", "open-real", "/in/", "", "rw unsigned"),
    ("m5", "", "a.hidden", "/x/", "http://127.0.0.1:9000", "ro"),
    ("m6", "", "hidden", "/", "https://s3.example.com", "rw"),
    ("m7", "", "ro", "/", "", "ro unsigned"),
    ("m8", "LOGS", "logs-hidden", "/2025/", "", "ro"),
];

impl World {
    pub(super) fn new() -> Self {
        let key = DummyKey { id: KEY_ID.into(), secret: SecretKey::new(SECRET) };
        let guest = Arc::new(Guest::new("guest", key, Arc::new(Nowhere)));
        let open = |(id, binding, bucket, prefix, endpoint, how): (&str, &str, &str, &str, &str, &str)| {
            let spec = RouteSpec {
                id: id.into(),
                binding: Some(binding.to_owned()).filter(|binding| !binding.is_empty()),
                bucket: bucket.into(),
                prefix: KeyPrefix::parse(prefix).expect("the table is right"),
                access: if how.starts_with("rw") { Access::ReadWrite } else { Access::ReadOnly },
                endpoint: Some(endpoint)
                    .filter(|end| !end.is_empty())
                    .map(|end| end.parse().expect("the table is right")),
                allow_unsigned: how.ends_with("unsigned"),
            };
            guest.open(spec, Arc::new(Nowhere))
        };
        let open = MOUNTS.into_iter().map(open).collect();
        Self { guest, now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000), _open: open }
    }
}

/// How a request comes: one letter.
#[derive(Clone, Copy)]
pub(super) struct Flags(u8);

impl Flags {
    pub(super) fn is_signed(self) -> bool {
        self.0 & 1 == 1
    }

    pub(super) fn is_tls(self) -> bool {
        self.0 & 2 == 2
    }

    /// Whether the connection was made to the host that the request names.
    pub(super) fn is_host_known(self) -> bool {
        self.0 & 4 == 4
    }

    /// Whether the signature is in the query, if there is one.
    pub(super) fn is_presigned(self) -> bool {
        self.0 & 8 == 8
    }

    /// Whether the signature has Google's names.
    pub(super) fn is_google(self) -> bool {
        self.0 & 16 == 16
    }
}

/// A request: a letter of [`Flags`], method, URL, and headers, a line each.
pub(super) struct Text {
    pub(super) flags: Flags,
    pub(super) parts: Parts,
}

impl Text {
    pub(super) fn parse(data: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(data).ok()?;
        let (flags, text) = text.split_once('\n')?;
        Some(Self { flags: Flags(*flags.as_bytes().first()?), parts: head(text)? })
    }

    /// The request as a client with the sandbox's key signs it.
    pub(super) fn sign(self, now: SystemTime) -> Option<Parts> {
        let Self { flags, mut parts } = self;
        // No client has two hosts, or one with blanks, which are signed as one.
        if parts.headers.get_all("host").iter().count() > 1 {
            return None;
        }
        let host = parts.headers.get("host")?.to_str().ok().filter(|host| !host.contains(' '))?.to_owned();
        let query = Query::parse(parts.uri.query()).ok()?;
        let mut headers: HeaderMap = parts.headers.clone();
        headers.remove("host");
        let dialect = if flags.is_google() { &GOOG4 } else { &SIGV4 };
        let payload = headers.remove(dialect.content_sha256);
        let request = Unsigned {
            method: parts.method.as_str(),
            authority: &host,
            path: parts.uri.path(),
            query: query.pairs(),
            headers: &headers,
            payload_hash: payload.as_ref().map_or(Some("UNSIGNED-PAYLOAD"), |value| value.to_str().ok())?,
        };
        let credentials = Credentials {
            access_key_id: KEY_ID.into(),
            secret_access_key: SecretKey::new(SECRET),
            session_token: None,
        };
        let signer = Signer::new(dialect, "auto");
        if flags.is_presigned() {
            let query = signer.presign(&request, &credentials, now, Duration::from_secs(60));
            parts.uri = format!("{}?{query}", parts.uri.path()).parse().ok()?;
        } else {
            for (name, value) in &signer.sign(&request, &credentials, now).ok()? {
                parts.headers.insert(name, value.clone());
            }
        }
        Some(parts)
    }
}

/// Method, URL, and headers, a line each; the host is `s3.internal` unless it is said.
pub(super) fn head(text: &str) -> Option<Parts> {
    let mut lines = text.split('\n');
    let mut request = http::Request::builder().method(lines.next()?).uri(lines.next()?).body(()).ok()?;
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        request.headers_mut().append(name, HeaderValue::from_str(value.trim_matches([' ', '\t'])).ok()?);
    }
    let mut parts = request.into_parts().0;
    parts.headers.entry("host").or_insert(HeaderValue::from_static("s3.internal"));
    Some(parts)
}

/// The head as [`head`] reads it.
pub(super) fn write(parts: &Parts) -> Vec<u8> {
    let mut text = format!("{}\n{}\n", parts.method, parts.uri).into_bytes();
    for (name, value) in &parts.headers {
        text.extend_from_slice(name.as_str().as_bytes());
        text.push(b':');
        text.extend_from_slice(value.as_bytes());
        text.push(b'\n');
    }
    text
}
