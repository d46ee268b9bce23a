//! Flag sets: what an allocation may do ([`GfpFlags`]) and what a page is ([`PageFlags`]).

mod gfp;
mod page;

pub use gfp::GfpFlags;
pub use page::PageFlags;
