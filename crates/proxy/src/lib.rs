//! Lets a sandbox reach S3, and as much of the network as its policy says, without holding a key.
//!
//! ```text
//! connection ─► accept ─┬─► s3: parse ─► verify ─► scope ─► Permit ─► forward ─► bucket
//!                       └─► egress: policy ─► dial
//! ```
//!
//! A request is known by the sandbox whose socket it came through ([`Guest`]), never by what it says. What it may reach
//! there is a table of [`Route`]s, one for each mount. Default is refuse.
#![forbid(unsafe_code)]

mod answer;
#[cfg(test)]
mod attack_tests;
mod audit;
mod body;
mod chunked;
#[cfg(test)]
mod client_tests;
mod decide;
mod denied;
mod deny;
mod documents;
mod egress;
mod embedded;
mod forward;
mod framing;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gate;
mod guest;
mod headers;
mod limits;
mod lists;
mod local;
mod memory;
mod meter;
#[cfg(any(test, feature = "fuzzing"))]
mod nowhere;
mod operation;
mod permit;
mod query;
mod quiet;
mod rewrite;
mod route;
mod scope;
mod serve;
mod signature;
mod target;
#[cfg(test)]
mod testing;
mod threads;
mod tls;
mod token;
mod upload;
mod upstream;

pub use audit::{Audit, AuditRecord};
pub use body::{BodyCheck, Checked, Payload, Streaming};
pub use decide::{Arrival, BodyRule, Decision, Document, Forward, LocalAnswer, View, decide};
pub use denied::Denied;
pub use deny::ErrorAnswer;
pub use egress::{
    EgressPolicy, Forbidden, HeaderSecret, HostName, HostPattern, InvalidPattern, InvalidPolicy, Network, NetworkError,
    Outbound, Serve, ShownPolicy, Sockets, Stream,
};
pub use embedded::Embedded;
pub use gate::Gate;
pub use guest::{DummyKey, Guest};
pub use permit::{Action, Permit};
pub use rewrite::{BadAnswer, Rewritten};
pub use route::{Access, OpenRoute, Route, RouteSpec};
pub use serve::serve;
pub use threads::Threads;
pub use tls::{BUNDLE_PATH, BUNDLE_PATHS, Ca, CaError, TRUST_VARIABLES};
pub use upstream::Upstream;
