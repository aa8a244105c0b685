//! The S3 dialects as functions on bytes. Pure: no socket, file or clock; time comes in as an argument.
#![forbid(unsafe_code)]

pub mod address;
pub mod call;
pub mod checksum;
pub mod list;
pub mod metadata;
pub mod quirks;
pub mod sign;
pub mod time;
pub mod xml;

pub use address::Address;
pub use call::{Call, Operation};
pub use checksum::{ChecksumKind, Checksummer};
pub use quirks::Quirks;
pub use sign::Signer;
