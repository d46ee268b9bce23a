//! A zone's stock of full magazines, between CPUs that free and CPUs that allocate.

use super::cpu_pages::{Chain, LISTS};
use super::page::{NIL, Page};

/// Full magazines of each list, last in first out.
///
/// Magazines are linked through the `prev` link of their first page, which a chain does not use; its length is kept in
/// that page's mapping, which nobody outside sets while the page is free.
#[derive(Debug)]
pub(super) struct Depot {
    heads: [u32; LISTS],
    /// A bit a list, set while it has a magazine.
    stocked: u64,
    pages: u64,
    /// The most pages that all magazines together may hold.
    limit: u64,
}

impl Depot {
    pub(super) const fn new() -> Self {
        Self { heads: [NIL; LISTS], stocked: 0, pages: 0, limit: 0 }
    }

    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// A bit a list, set while it has a magazine.
    pub(super) fn stocked(&self) -> u64 {
        self.stocked
    }

    pub(super) fn set_limit(&mut self, pages: u64) {
        self.limit = pages;
    }

    /// Adds a magazine to a list; `false` if that would pass the limit.
    pub(super) fn put(&mut self, map: &[Page], list: usize, chain: Chain) -> bool {
        let pages = pages_in(list, chain);
        let (Some(first), Some(head)) = (map.get(chain.head as usize), self.heads.get_mut(list)) else {
            return false;
        };
        if self.pages.saturating_add(pages) > self.limit {
            return false;
        }
        first.set_chain_len(chain.len);
        first.set_prev(*head);
        *head = chain.head;
        self.stocked |= 1 << list;
        self.pages += pages;
        true
    }

    /// Takes the magazine that came last.
    pub(super) fn take(&mut self, map: &[Page], list: usize) -> Option<Chain> {
        let head = self.heads.get_mut(list)?;
        let first = map.get(*head as usize)?;
        let chain = Chain { head: *head, len: first.chain_len() };
        *head = first.prev();
        if *head == NIL {
            self.stocked &= !(1 << list);
        }
        self.pages = self.pages.saturating_sub(pages_in(list, chain));
        Some(chain)
    }

    /// The magazines of a list.
    pub(super) fn iter<'a>(&self, map: &'a [Page], list: usize) -> impl Iterator<Item = Chain> + use<'a> {
        let mut at = self.heads.get(list).copied().unwrap_or(NIL);
        core::iter::from_fn(move || {
            let first = map.get(at as usize)?;
            let chain = Chain { head: at, len: first.chain_len() };
            at = first.prev();
            Some(chain)
        })
    }
}

fn pages_in(list: usize, chain: Chain) -> u64 {
    u64::from(chain.len) << (list >> 2)
}
