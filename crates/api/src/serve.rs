//! The socket's side: HTTP/1.1 with bounds on what one client can hold.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use sandpail_daemon::Daemon;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::peers::{Peers, Pending};

/// Connections at the same time; more wait in the kernel's queue.
const CONNECTION_COUNT_MAX: usize = 1024;

/// From a connection's start, or its last answer, until a request's headers are complete. Clients keep idle connections for
/// 15 s (aiohttp) or less; one that is closed under them fails a call.
const HEADER_READ_MAX: Duration = Duration::from_secs(20);

/// Bytes of a request line with its headers. Paths are at most 4 KiB, but percent-encoded they are three times that.
const HEADER_LEN_MAX: usize = 64 << 10;

const HEADER_COUNT_MAX: usize = 100;

/// How long answers that are under way may take after the shutdown began.
const GRACE: Duration = Duration::from_secs(10);

/// A pause after the system refused a connection (too many files): it would refuse the next one at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the API until `shutdown` completes, then lets answers that are under way end, for ten seconds at most.
///
/// # Errors
/// When the listener cannot be used.
pub async fn serve(
    daemon: Daemon,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    serve_router(crate::router(daemon), listener, shutdown).await
}

/// The same for a router that holds more than the API.
pub async fn serve_router(
    router: axum::Router,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    listener.local_addr()?;
    let (stopping, _) = watch::channel(false);
    let permits = Arc::new(Semaphore::new(CONNECTION_COUNT_MAX));
    let peers = Peers::default();
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accept = async {
            // Closed never: this function owns the semaphore.
            let permit = Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other)?;
            listener.accept().await.map(|(stream, peer)| (stream, peer, permit))
        };
        let accepted = tokio::select! {
            accepted = accept => accepted,
            () = &mut shutdown => break,
            Some(_ended) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, peer, permit)) => {
                let Some(pending) = peers.enter(peer.ip()) else {
                    tracing::debug!(%peer, "too many connections without a key: one more is closed");
                    continue;
                };
                let connection = serve_connection(router.clone(), stream, pending, stopping.subscribe());
                connections.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    stopping.send_replace(true);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, all_ended).await.is_err() {
        tracing::debug!("connections are cut off: their answers did not end in time");
    }
    connections.shutdown().await;
    Ok(())
}

async fn serve_connection(
    router: axum::Router,
    stream: tokio::net::TcpStream,
    pending: Pending,
    mut stopping: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        // Slower, not wrong.
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_MAX)
        .max_headers(HEADER_COUNT_MAX)
        .max_header_size(HEADER_LEN_MAX);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(pending.clone());
        router.call(request)
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let stopped = async move {
        // The sender lives as long as the connections do.
        stopping.wait_for(|stopping| *stopping).await.is_ok()
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopped => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Clients go away, and answers that broke off are cut on purpose.
        tracing::debug!(%error, "a connection ended");
    }
}
