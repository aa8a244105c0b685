//! A bucket prefix seen as a POSIX tree.
//!
//! [`engine`] holds the operations, free of any kernel's types; [`adapter`] is the kernel's side, by
//! `sandpail-fuse`, so that another transport can replace it. [`tree`] is what is known of names, [`read`] and
//! [`write`] move bytes, [`cache`] keeps them on disk, [`receipt`] says where they are, and [`errno`] alone chooses
//! error numbers. [`recover`] puts back what a process that died had not stored, and [`ledger`] is for the process that takes
//! its mount up.
#![forbid(unsafe_code)]

pub mod adapter;
pub mod attr;
pub mod cache;
pub mod content;
pub mod engine;
pub mod errno;
mod error;
mod frames;
mod ids;
pub mod ledger;
pub mod local;
pub mod patience;
pub mod read;
pub mod receipt;
pub mod recover;
mod replay;
pub mod tree;
pub mod write;

pub use error::{FsError, FsResult};

/// Locks, also after a panic of another holder: what these locks guard is right between any two statements.
fn guard<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
