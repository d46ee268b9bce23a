//! Address spaces.

pub mod gap;
