//! A proxy on a local address, with one mount, and clients of it.
#![allow(dead_code, unreachable_pub, reason = "every test program uses another part")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body_util::{BodyExt, Full};
use sandpail_proxy::{Access, Arrival, Audit, AuditRecord, DummyKey, Guest, OpenRoute, RouteSpec, Upstream, serve};
use sandpail_s3d::{KeyPair, Server, ServerOptions};
use sandpail_spec::{Credentials, KeyPrefix, SecretKey};
use sandpail_store::Store;
use sandpail_store::http::{HttpStore, HttpStoreBuilder, Relay, RelayBody, RelayRequest, StaticCredentials};
use tokio::net::TcpListener;

/// The key that must stay outside.
pub const REAL_ID: &str = "REALKEYID";
pub const REAL_SECRET: &str = "real-secret-that-stays-outside";

/// What was told of requests.
#[derive(Debug, Default)]
pub struct Log(Mutex<Vec<AuditRecord>>);

impl Audit for Log {
    fn record(&self, record: AuditRecord) {
        self.0.lock().unwrap().push(record);
    }
}

impl Log {
    pub fn records(&self) -> Vec<AuditRecord> {
        self.0.lock().unwrap().clone()
    }

    /// Waits for the record that `wanted` knows.
    pub async fn wait(&self, wanted: impl Fn(&AuditRecord) -> bool) -> AuditRecord {
        for _ in 0..500 {
            if let Some(record) = self.records().into_iter().find(&wanted) {
                return record;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no such record: {:?}", self.records());
    }
}

pub fn credentials(id: &str, secret: &str) -> Arc<StaticCredentials> {
    Arc::new(StaticCredentials::new(Credentials {
        access_key_id: id.into(),
        secret_access_key: SecretKey::new(secret),
        session_token: None,
    }))
}

/// A service behind the proxy.
pub async fn service(store: Arc<dyn Store>) -> Server {
    let options = ServerOptions::new(KeyPair::new(REAL_ID, REAL_SECRET)).bucket("bucket", store);
    Server::bind("127.0.0.1:0".parse().unwrap(), options).await.unwrap()
}

/// A bucket behind `server`, by the real key.
pub fn remote(endpoint: &str) -> Arc<dyn Upstream> {
    let builder =
        HttpStore::builder(endpoint.parse().unwrap(), "bucket").credentials(credentials(REAL_ID, REAL_SECRET));
    Arc::new(builder.build_relay().unwrap())
}

/// A running proxy.
pub struct Proxy {
    pub addr: SocketAddr,
    pub guest: Arc<Guest>,
    pub log: Arc<Log>,
    pub route: Option<OpenRoute>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Proxy {
    pub async fn start(upstream: Arc<dyn Upstream>, prefix: &str, access: Access) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let log = Arc::new(Log::default());
        let key = DummyKey { id: "SBXDUMMY".into(), secret: SecretKey::new("dummy-secret") };
        let guest = Arc::new(Guest::new("sandbox-1", key, Arc::clone(&log) as Arc<dyn Audit>));
        let known = Arc::clone(&guest);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let arrival = Arrival { host: "127.0.0.1".into(), is_tls: false, port: addr.port() };
                tokio::spawn(serve(stream, arrival, Arc::clone(&known)));
            }
        });
        let mut proxy = Self { addr, guest, log, route: None, accepting };
        proxy.open(upstream, prefix, access);
        proxy
    }

    /// Opens the mount anew, as after a restart.
    pub fn open(&mut self, upstream: Arc<dyn Upstream>, prefix: &str, access: Access) {
        self.route = None;
        let spec = RouteSpec {
            id: "mount1".into(),
            binding: None,
            bucket: "bucket".into(),
            prefix: KeyPrefix::parse(prefix).unwrap(),
            access,
            endpoint: Some(self.endpoint().parse().unwrap()),
            allow_unsigned: false,
        };
        self.route = Some(self.guest.open(spec, upstream));
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    fn builder(&self) -> HttpStoreBuilder {
        HttpStore::builder(self.endpoint().parse().unwrap(), "bucket")
            .credentials(credentials("SBXDUMMY", "dummy-secret"))
    }

    /// A client that knows S3.
    pub fn store(&self, adjust: impl FnOnce(HttpStoreBuilder) -> HttpStoreBuilder) -> HttpStore {
        adjust(self.builder()).build().unwrap()
    }

    /// A client that sends what it is told, signed.
    pub fn client(&self) -> Relay {
        self.builder().build_relay().unwrap()
    }
}

pub fn bytes(bytes: impl Into<Bytes>) -> RelayBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub fn request(method: Method, key: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> RelayRequest {
    let body = body.into();
    let headers: HeaderMap = headers
        .iter()
        .map(|(name, value)| (HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap()))
        .collect();
    RelayRequest {
        method,
        key: Some(key.into()),
        query: Vec::new(),
        headers,
        payload_hash: None,
        len: body.len() as u64,
        body: bytes(body),
        trailer: None,
        is_slow: false,
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Got {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

pub async fn ask(client: &Relay, request: RelayRequest) -> Got {
    let (parts, body) = client.send(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Got { status: parts.status.as_u16(), headers: parts.headers, body }
}
