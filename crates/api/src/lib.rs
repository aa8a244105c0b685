//! The HTTP API over the daemon. An HTTP status is chosen here, in `error`, and nowhere else.
#![forbid(unsafe_code)]
