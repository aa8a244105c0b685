//! Serves [`Store`]s as S3 on a local address.
//!
//! The protocol (XML, signatures, chunked uploads) is the `s3s` crate's; this crate connects it to
//! [`Store`]: [`service`] has one method per S3 operation, [`body`] takes uploads in and checks their
//! sums, [`convert`] translates words and errors, [`log`] counts requests for tests and logs; [`Local`] serves
//! without an address, inside this process.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use sandpail_s3d::{KeyPair, Server, ServerOptions};
//! use sandpail_store::dir::DirStore;
//!
//! let options = ServerOptions::new(KeyPair::new("test", "testtest"))
//!     .bucket("photos", Arc::new(DirStore::create("/srv/photos")?));
//! let server = Server::bind("127.0.0.1:0".parse()?, options).await?;
//! println!("http://{}", server.local_addr());
//! server.shutdown().await;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod body;
mod convert;
mod local;
mod log;
mod service;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, header};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use sandpail_store::{Store, StoreResult};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use crate::local::{Local, LocalBody};
use crate::log::Gate;
pub use crate::log::{RequestLog, RequestRecord};
use crate::service::{Buckets, Service};

/// How long connections may finish what they are doing when the server is shut down.
const GRACE: Duration = Duration::from_secs(5);

/// An access key that the server takes.
#[derive(Clone)]
pub struct KeyPair {
    id: String,
    secret: String,
}

impl KeyPair {
    /// A pair of access key id and secret access key.
    pub fn new(id: impl Into<String>, secret: impl Into<String>) -> Self {
        Self { id: id.into(), secret: secret.into() }
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("id", &self.id).field("secret", &"…").finish()
    }
}

/// Makes the store of a bucket that a client creates.
pub type BucketMaker = Arc<dyn Fn(&str) -> StoreResult<Arc<dyn Store>> + Send + Sync>;

/// What to serve, and how.
#[derive(Clone)]
pub struct ServerOptions {
    buckets: BTreeMap<String, Arc<dyn Store>>,
    keys: Vec<KeyPair>,
    spool_directory: PathBuf,
    latency: Duration,
    maker: Option<BucketMaker>,
}

impl fmt::Debug for ServerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerOptions")
            .field("buckets", &self.buckets)
            .field("keys", &self.keys)
            .field("spool_directory", &self.spool_directory)
            .field("latency", &self.latency)
            .finish_non_exhaustive()
    }
}

impl ServerOptions {
    /// No buckets yet, and one key that may do everything.
    pub fn new(key: KeyPair) -> Self {
        Self {
            buckets: BTreeMap::new(),
            keys: vec![key],
            spool_directory: std::env::temp_dir(),
            latency: Duration::ZERO,
            maker: None,
        }
    }

    /// Serves `store` under `name`.
    #[must_use]
    pub fn bucket(mut self, name: impl Into<String>, store: Arc<dyn Store>) -> Self {
        self.buckets.insert(name.into(), store);
        self
    }

    /// Takes one more key.
    #[must_use]
    pub fn key(mut self, key: KeyPair) -> Self {
        self.keys.push(key);
        self
    }

    /// Where uploads over 8 MiB wait until they are whole; the system's directory for temporary files if not given.
    /// The files have no names there, so nothing is left behind.
    #[must_use]
    pub fn spool_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.spool_directory = directory.into();
        self
    }

    /// Lets every request wait first, as a distant server would.
    #[must_use]
    pub fn latency(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    /// Lets clients create buckets; without it they are refused.
    #[must_use]
    pub fn bucket_maker(mut self, maker: BucketMaker) -> Self {
        self.maker = Some(maker);
        self
    }
}

/// A server that runs until it is shut down or dropped.
pub struct Server {
    local_addr: SocketAddr,
    buckets: Arc<Buckets>,
    log: Arc<RequestLog>,
    stop: watch::Sender<bool>,
    accepting: tokio::task::JoinHandle<()>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens on `addr` (port 0 takes a free one) and serves from now on.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(addr: SocketAddr, options: ServerOptions) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let local_addr = listener.local_addr()?;
        let log = Arc::new(RequestLog::default());
        let buckets = Arc::new(Buckets::new(options.buckets, options.maker));
        let service = Service::new(Arc::clone(&buckets), options.spool_directory);
        let service = build(service, options.keys, Gate { log: Arc::clone(&log), latency: options.latency });
        let (stop, stopped) = watch::channel(false);
        let accepting = tokio::spawn(accept(listener, service, stopped));
        Ok(Self { local_addr, buckets, log, stop, accepting })
    }

    /// Where the server listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The URL of the endpoint.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.local_addr)
    }

    /// Serves one more bucket from now on.
    pub fn add_bucket(&self, name: impl Into<String>, store: Arc<dyn Store>) {
        self.buckets.insert(name.into(), store);
    }

    /// What was asked of the server.
    pub fn log(&self) -> &Arc<RequestLog> {
        &self.log
    }

    /// Stops to listen, lets running requests finish for a few seconds, and returns.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        if let Err(error) = (&mut self.accepting).await
            && error.is_panic()
        {
            tracing::error!("the server's task panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After a shutdown the task has ended and this does nothing.
        self.accepting.abort();
    }
}

fn build(service: Service, keys: Vec<KeyPair>, gate: Gate) -> S3Service {
    let mut auth = SimpleAuth::new();
    for key in keys {
        auth.register(key.id, key.secret.into());
    }
    let mut builder = S3ServiceBuilder::new(service);
    builder.set_auth(log::KnownKeys(auth));
    builder.set_access(gate);
    builder.build()
}

async fn accept(listener: TcpListener, service: S3Service, mut stopped: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // Reap, so that the set does not grow for ever.
            Some(_) = connections.join_next() => continue,
            () = wait_for_stop(&mut stopped) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                // Answers are written in pieces: head, then body.
                let _ = stream.set_nodelay(true);
                connections.spawn(serve(stream, service.clone(), stopped.clone()));
            }
            Err(error) => {
                // Out of descriptors, mostly: give the others time to end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, ended).await.is_err() {
        tracing::warn!("connections were cut while they were busy");
    }
}

async fn wait_for_stop(stopped: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which is a stop, too.
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn serve(stream: tokio::net::TcpStream, service: S3Service, mut stopped: watch::Receiver<bool>) {
    let handler = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let service = service.clone();
        async move {
            let awaits_word = request.headers().contains_key(header::EXPECT);
            let mut response = service.call(request.map(s3s::Body::from)).await?;
            if awaits_word && !response.status().is_success() {
                // The client keeps the body, and hyper would take the next request for it.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, s3s::HttpError>(response)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), handler);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = wait_for_stop(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection broke");
    }
}
