//! Reports as Linux's `/proc` prints them.

mod slabinfo;

pub use slabinfo::{SlabReport, slabinfo};
