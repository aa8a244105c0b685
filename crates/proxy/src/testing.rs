//! A sandbox with mounts, and requests as its clients sign them, for tests.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use sandpail_s3::sign::sigv4::SIGV4;
use sandpail_s3::sign::{Dialect, Signer, Unsigned};
use sandpail_spec::{Credentials, KeyPrefix, SecretKey};

use crate::nowhere::Nowhere;
use crate::query::Query;
use crate::{Access, Arrival, Decision, Denied, DummyKey, Forward, Guest, OpenRoute, RouteSpec, decide};

pub(crate) const KEY_ID: &str = "SPDUMMY";
pub(crate) const SECRET: &str = "dummy/secret+of=guest";

pub(crate) struct World {
    pub(crate) guest: Arc<Guest>,
    pub(crate) routes: Vec<OpenRoute>,
    pub(crate) now: SystemTime,
}

/// One line for each mount: id, binding, bucket, prefix, endpoint.
const MOUNTS: [(&str, &str, &str, &str, &str); 6] = [
    ("m1", "", "train", "/data/", "https://s3.example.com"),
    ("m2", "", "models", "/", "https://s3.example.com"),
    ("m3", "LOGS", "logs-real", "/2024/", ""),
    ("m4", "OPEN", "open-real", "/", ""),
    ("m5", "", "a.b", "/x/", "http://127.0.0.1:9000"),
    ("m6", "", "train", "/data/deep/", "https://s3.example.com"),
];

pub(crate) fn world() -> World {
    let key = DummyKey { id: KEY_ID.into(), secret: SecretKey::new(SECRET) };
    let guest = Arc::new(Guest::new("sandbox-1", key, Arc::new(Nowhere)));
    let open = |(id, binding, bucket, prefix, endpoint): (&str, &str, &str, &str, &str)| {
        guest.open(
            RouteSpec {
                id: id.into(),
                binding: Some(binding.to_owned()).filter(|binding| !binding.is_empty()),
                bucket: bucket.into(),
                prefix: KeyPrefix::parse(prefix).unwrap(),
                access: if id == "m2" { Access::ReadOnly } else { Access::ReadWrite },
                endpoint: Some(endpoint).filter(|end| !end.is_empty()).map(|end| end.parse().unwrap()),
                allow_unsigned: id == "m4",
            },
            Arc::new(Nowhere),
        )
    };
    let routes = MOUNTS.into_iter().map(open).collect();
    World { guest, routes, now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000) }
}

/// The sandbox against which the captures of `captures/` were made.
pub(crate) fn world_of_captures() -> (Arc<Guest>, Vec<OpenRoute>) {
    let key = DummyKey { id: KEY_ID.into(), secret: SecretKey::new(SECRET) };
    let guest = Arc::new(Guest::new("sandbox-1", key, Arc::new(Nowhere)));
    let open = |endpoint: &str| {
        let spec = RouteSpec {
            id: "m1".into(),
            binding: None,
            bucket: "train".into(),
            prefix: KeyPrefix::parse("/data").unwrap(),
            access: Access::ReadWrite,
            endpoint: Some(endpoint.parse().unwrap()),
            allow_unsigned: false,
        };
        guest.open(spec, Arc::new(Nowhere))
    };
    let routes = vec![open("http://127.0.0.1:18080"), open("https://127.0.0.1:18443")];
    (guest, routes)
}

/// A request before it is signed.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: String,
    pub(crate) secret: String,
    pub(crate) dialect: &'static Dialect,
}

/// `GET s3.internal/bucket/key?query`, and headers.
pub(crate) fn call(line: &str, headers: &[(&str, &str)]) -> Call {
    let (method, url) = line.split_once(' ').unwrap();
    let slash = url.find('/').unwrap();
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    Call {
        method: method.into(),
        host: url[..slash].into(),
        target: url[slash..].into(),
        headers: map,
        payload: "UNSIGNED-PAYLOAD".into(),
        secret: SECRET.into(),
        dialect: &SIGV4,
    }
}

fn credentials(secret: &str) -> Credentials {
    Credentials { access_key_id: KEY_ID.into(), secret_access_key: SecretKey::new(secret), session_token: None }
}

impl Call {
    pub(crate) fn payload(mut self, payload: &str) -> Self {
        self.payload = payload.into();
        self
    }

    pub(crate) fn unsigned(&self) -> Parts {
        let mut request = http::Request::builder().method(&*self.method).uri(&*self.target).body(()).unwrap();
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert("host", self.host.parse().unwrap());
        request.into_parts().0
    }

    fn split(&self) -> (&str, Vec<(String, String)>) {
        let (path, query) =
            self.target.split_once('?').map_or((&*self.target, None), |(path, query)| (path, Some(query)));
        // What cannot be read is refused before its signature is looked at.
        (path, Query::parse(query).unwrap_or_default().pairs().to_vec())
    }

    pub(crate) fn signed(&self, now: SystemTime) -> Parts {
        let mut parts = self.unsigned();
        let (path, query) = self.split();
        let request = Unsigned {
            method: &self.method,
            authority: &self.host,
            path,
            query: &query,
            headers: &self.headers,
            payload_hash: &self.payload,
        };
        let added = Signer::new(self.dialect, "auto").sign(&request, &credentials(&self.secret), now).unwrap();
        parts.headers.extend(added);
        parts
    }

    /// The call with its signature in the query.
    pub(crate) fn presigned(&self, now: SystemTime, expires: u64) -> Self {
        let (path, query) = self.split();
        let request = Unsigned {
            method: &self.method,
            authority: &self.host,
            path,
            query: &query,
            headers: &self.headers,
            payload_hash: &self.payload,
        };
        let signer = Signer::new(self.dialect, "us-east-1");
        let query = signer.presign(&request, &credentials(&self.secret), now, Duration::from_secs(expires));
        // The signer signs no headers of a presigned URL but the host.
        Self { target: format!("{path}?{query}"), ..self.clone() }
    }
}

impl World {
    pub(crate) fn decide(&self, parts: &Parts) -> Result<Decision, Denied> {
        decide(parts, &Arrival::default(), &self.guest, self.now)
    }

    pub(crate) fn decide_call(&self, call: &Call) -> Result<Decision, Denied> {
        self.decide(&call.signed(self.now))
    }

    #[track_caller]
    pub(crate) fn forward(&self, line: &str, headers: &[(&str, &str)]) -> Box<Forward> {
        match self.decide_call(&call(line, headers)) {
            Ok(Decision::Forward(forward)) => forward,
            other => panic!("{line}: {other:?}"),
        }
    }

    /// `<mount> <operation> <key>` of what is sent, or the rule that refuses.
    pub(crate) fn outcome(&self, parts: &Parts) -> String {
        match self.decide(parts) {
            Ok(Decision::Forward(forward)) => {
                let key = forward.permit.key().map(|key| format!(" {key}")).unwrap_or_default();
                format!("{} {}{key}", forward.route.spec().id, forward.permit.action().name())
            }
            Ok(Decision::Local(answer)) => format!("local {}", answer.operation),
            Err(denied) => format!("refused {}", denied.rule()),
        }
    }
}
