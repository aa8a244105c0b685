//! What the tests of several crates share.
//!
//! - [`world`]: S3 servers of one's own, ours and SeaweedFS, that end with the test.
//! - [`faults`]: a store that fails by seed, and one that counts.
//! - [`model`]: a plain tree in memory that says what a file system must answer.
#![forbid(unsafe_code)]

pub mod faults;
mod hook;
pub mod model;
pub mod world;
