//! The HTTP API over the daemon. An HTTP status is chosen here, in `error`, and nowhere else.
#![forbid(unsafe_code)]

/// Serves the API of `daemon` until `shutdown` is over.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    daemon: sandpail_daemon::Daemon,
    listener: tokio::net::TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    // Held until the end: the routes are not here yet.
    let _held = (daemon, listener);
    shutdown.await;
    Ok(())
}
