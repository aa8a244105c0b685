//! A bucket prefix seen as a POSIX tree.
#![forbid(unsafe_code)]

pub mod cache;
mod error;
pub mod read;
pub mod write;

pub use error::{FsError, FsResult};
