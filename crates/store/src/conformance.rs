//! Behaviour that every store must share, as a suite that runs on any of them.
