//! What the tests of several crates share.
//!
//! - [`world`]: S3 servers of one's own, ours and SeaweedFS, that end with the test.
//! - [`faults`]: a store that fails by seed, and one that counts.
//! - [`gate`]: a store whose next operation waits until it is let on.
//! - [`weather`]: a bucket behind a network with latency, storms, duplicates and deaths, in virtual time.
//! - [`ports`]: ports that stay free while their server is down.
//! - [`model`]: a plain tree in memory that says what a file system must answer.
#![forbid(unsafe_code)]

pub mod faults;
pub mod gate;
mod hook;
pub mod model;
pub mod ports;
pub mod weather;
pub mod world;
