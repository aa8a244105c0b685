//! The product's words, parsed and checked. Pure: no socket, file or clock.
#![forbid(unsafe_code)]

mod bucket;
mod credentials;
mod endpoint;
mod prefix;
mod provider;
mod quantity;

pub use bucket::{BucketName, InvalidBucketName};
pub use credentials::{Credentials, SecretKey};
pub use endpoint::{Endpoint, InvalidEndpoint};
pub use prefix::{InvalidPrefix, KeyPrefix};
pub use provider::{Provider, UnknownProvider};
pub use quantity::{ByteSize, InvalidByteSize, InvalidDuration, parse_duration};
