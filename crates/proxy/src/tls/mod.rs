//! How TLS from inside a sandbox is ended here: a certificate authority for each sandbox, which only that sandbox trusts,
//! and certificates that it makes for the hosts that are intercepted. Its key never leaves the daemon.

mod ca;
mod mint;

pub use ca::{BUNDLE_PATH, BUNDLE_PATHS, Ca, CaError, TRUST_VARIABLES};
pub(crate) use mint::{Mint, provider};
