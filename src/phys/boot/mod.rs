//! From the firmware's memory map to zones of free frames.
//!
//! First a [`Plan`] counts what the metadata take; then [`Phys::init`] builds them in memory that the caller supplies, or
//! [`Phys::init_in_map`] in frames taken from the map itself. The state depends on the map's meaning alone, not on the order or the cutting of its lines.

mod build;
mod carve;
mod map;
mod plan;

pub(crate) use carve::{Carver, Sizes};
pub use map::ZoneLimits;
pub use plan::{Config, Plan};

#[cfg(doc)]
use super::Phys;
