//! The product's words, parsed and checked. Pure: no socket, file or clock.
#![forbid(unsafe_code)]

mod bucket;
mod credentials;
mod endpoint;
mod prefix;
mod provider;
mod units;

pub use bucket::{BucketName, InvalidBucket};
pub use credentials::{Credentials, SecretKey};
pub use endpoint::{Endpoint, InvalidEndpoint};
pub use prefix::{InvalidPrefix, KeyPrefix};
pub use provider::{Provider, UnknownProvider};
pub use units::{InvalidUnit, parse_bytes, parse_duration, parse_mode};
