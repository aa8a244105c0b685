//! The HTTP API over the daemon.
//!
//! A request goes `auth` (the key) → `routes` (ids, paths, queries) → `wire` (JSON becomes a checked command) → the
//! daemon → `wire` or `sse` (what it said becomes JSON or a stream). Whatever fails on the way becomes an answer in
//! `error`: an HTTP status is chosen there and nowhere else. `serve` is the socket's side: limits, time, shutdown.
//!
//! Nothing that a client sent is trusted, and no header, query or body is ever logged: they may hold keys.
#![forbid(unsafe_code)]

mod auth;
mod error;
mod extract;
mod linger;
mod openapi;
mod path;
mod peers;
mod routes;
mod serve;
mod sse;
mod state;
mod trace;
pub mod wire;

pub use openapi::document as openapi_document;
pub use serve::{serve, serve_router};

/// The whole API of `daemon`, to be served or merged with more routes.
pub fn router(daemon: sandpail_daemon::Daemon) -> axum::Router {
    routes::router(state::Api::new(daemon))
}
