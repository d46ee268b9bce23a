//! A Linux-style memory manager as a `no_std` library.
#![cfg_attr(not(feature = "std"), no_std)]
#![deny(unsafe_code)]

pub mod addr;
pub mod collections;
pub mod error;
pub mod flags;
pub mod mm;
pub mod report;
pub mod syscall;
