//! The laws of frames, recounted: every one is in exactly one place.

use crate::addr::{PageOrder, Pfn};
use crate::platform::CpuPin;

use super::Phys;
use super::buddy::{Buddy, heads};
use super::cpu_pages::{Chain, lists};
use super::depot::Depot;
use super::mem_map::BLOCK_PAGES;
use super::migrate::MigrateType;
use super::page::{BlockWord, PageState};
use super::zone::Zone;

/// What [`Phys::check`] found wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CheckError {
    /// A page on a list is not what the list says.
    Misplaced(Pfn),
    /// A list is longer than its zone, or its links do not agree.
    BrokenList(Pfn),
    /// A page's state says that it is on a list, and it is on none, or on two.
    Unlisted(Pfn),
    /// A block is not aligned to its size.
    Misaligned(Pfn),
    /// A page lies in two blocks, or in none.
    Overlap(Pfn),
    /// Two free buddies were not merged although neither is deferred.
    Unmerged(Pfn),
    /// A counter differs from a recount: its name, the counter, the recount.
    Count(&'static str, u64, u64),
}

impl core::fmt::Display for CheckError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Misplaced(pfn) => write!(f, "frame {pfn:#x} is on a list that it does not belong to"),
            Self::BrokenList(pfn) => write!(f, "the list is broken at frame {pfn:#x}"),
            Self::Unlisted(pfn) => write!(f, "frame {pfn:#x} is on no list, or on two"),
            Self::Misaligned(pfn) => write!(f, "the block at frame {pfn:#x} is misaligned"),
            Self::Overlap(pfn) => write!(f, "frame {pfn:#x} is in two blocks or in none"),
            Self::Unmerged(pfn) => write!(f, "the free block at frame {pfn:#x} has a free buddy"),
            Self::Count(what, counter, recount) => write!(f, "{what}: counted {counter}, found {recount}"),
        }
    }
}

impl core::error::Error for CheckError {}

/// What a walk over a zone's map finds.
#[derive(Default)]
struct Recount {
    free_pages: u64,
    deferred_pages: u64,
    on_cpu_pages: u64,
    allocated_pages: u64,
    /// Blocks on free lists and deferred lists, by order and migrate type.
    free: [[u64; MigrateType::COUNT]; PageOrder::COUNT],
    deferred: [[u64; MigrateType::COUNT]; PageOrder::COUNT],
    /// Blocks in use or on CPUs' lists, by order.
    in_use: [u64; PageOrder::COUNT],
}

impl Phys<'_> {
    /// Recounts everything that is cached, from scratch.
    ///
    /// No other CPU may allocate or free meanwhile: its lists would change under the count.
    ///
    /// # Errors
    /// The first thing found wrong.
    ///
    /// # Locking
    /// Takes each zone's depot lock and lock.
    pub fn check(&self, pin: &CpuPin<'_>) -> Result<(), CheckError> {
        self.zones.iter().try_for_each(|zone| check_zone(zone, pin))
    }
}

fn check_zone(zone: &Zone<'_>, pin: &CpuPin<'_>) -> Result<(), CheckError> {
    let depot = zone.depot(pin);
    let buddy = zone.lock(pin);
    let recount = walk(zone)?;
    let managed =
        recount.free_pages + recount.deferred_pages + recount.on_cpu_pages + recount.allocated_pages;
    equal("managed pages", zone.span().managed_pages, managed)?;
    equal("free pages", buddy.free_pages(), recount.free_pages + recount.deferred_pages)?;
    equal("published free pages", zone.free_pages(), buddy.free_pages())?;
    equal("deferred pages", buddy.deferred.pages(), recount.deferred_pages)?;
    if buddy.deferred.pages() > buddy.deferred.bound() {
        return Err(CheckError::Count(
            "bound on deferred pages",
            buddy.deferred.bound(),
            buddy.deferred.pages(),
        ));
    }
    for order in PageOrder::all() {
        for (counter, recount) in buddy.free_blocks(order).into_iter().zip(recount.free[order.index()]) {
            equal("free blocks", counter, recount)?;
        }
        equal("deferred blocks", buddy.deferred.blocks(order), recount.deferred[order.index()].iter().sum())?;
        equal("blocks in use", buddy.in_use(order), recount.in_use[order.index()])?;
        for migrate in MigrateType::ALL {
            check_lists(zone, &buddy, &recount, order, migrate)?;
        }
    }
    check_cpus(zone, &depot, recount.on_cpu_pages)
}

/// Walks all pages of a zone, block by block.
fn walk(zone: &Zone<'_>) -> Result<Recount, CheckError> {
    let mut recount = Recount::default();
    for start in zone.map.own().step_by(BLOCK_PAGES) {
        let mut next = start;
        for (head, word) in heads(&zone.map, start) {
            no_block(zone, next, head)?;
            let pages = word.order().pages();
            next = head + pages as u32;
            check_block(zone, head, word)?;
            let order = word.order().index();
            match word.state() {
                PageState::Free => {
                    recount.free_pages += pages;
                    recount.free[order][word.migrate() as usize] += 1;
                }
                PageState::Deferred => {
                    recount.deferred_pages += pages;
                    recount.deferred[order][word.migrate() as usize] += 1;
                }
                PageState::OnCpu => {
                    recount.on_cpu_pages += pages;
                    recount.in_use[order] += 1;
                }
                _ => {
                    recount.allocated_pages += pages;
                    recount.in_use[order] += 1;
                }
            }
        }
        no_block(zone, next, start + BLOCK_PAGES as u32)?;
    }
    Ok(recount)
}

/// No page from `from` up to `to` is managed.
fn no_block(zone: &Zone<'_>, from: u32, to: u32) -> Result<(), CheckError> {
    let managed =
        |index: &u32| !matches!(zone.map.page(*index).state(), PageState::Absent | PageState::Reserved);
    (from..to).find(managed).map_or(Ok(()), |index| Err(CheckError::Overlap(zone.pfn(index))))
}

/// A block is aligned, its other pages are interior, its buddy is not free too, and a free one is of its page block's type.
fn check_block(zone: &Zone<'_>, head: u32, word: BlockWord) -> Result<(), CheckError> {
    let pages = word.order().pages() as u32;
    if head % pages != 0 {
        return Err(CheckError::Misaligned(zone.pfn(head)));
    }
    if let Some(index) =
        (head + 1..head + pages).find(|&index| zone.map.page(index).state() != PageState::Interior)
    {
        return Err(CheckError::Overlap(zone.pfn(index)));
    }
    let buddy = zone.map.pages().get((head ^ pages) as usize);
    let free = word.state() == PageState::Free && word.order() < PageOrder::MAX;
    if free && buddy.is_some_and(|buddy| buddy.word().is(PageState::Free, word.order())) {
        return Err(CheckError::Unmerged(zone.pfn(head)));
    }
    let listed = matches!(word.state(), PageState::Free | PageState::Deferred);
    if listed && word.migrate() != zone.map.block_of(head).migrate() {
        return Err(CheckError::Misplaced(zone.pfn(head)));
    }
    Ok(())
}

/// The free and the deferred list of an order and type hold the blocks that say so.
fn check_lists(
    zone: &Zone<'_>,
    buddy: &Buddy,
    recount: &Recount,
    order: PageOrder,
    migrate: MigrateType,
) -> Result<(), CheckError> {
    let of = |state| BlockWord::new(state, order, migrate);
    let free = buddy.iter_free(&zone.map, order, migrate);
    let free = check_list(zone, free, of(PageState::Free))?;
    let deferred = buddy.deferred.iter(zone.map.pages(), order, migrate);
    let deferred = check_list(zone, deferred, of(PageState::Deferred))?;
    equal("list of free blocks", free, recount.free[order.index()][migrate as usize])?;
    equal("list of deferred blocks", deferred, recount.deferred[order.index()][migrate as usize])?;
    let claimed = (
        buddy.nonempty(migrate) >> order.get() & 1,
        buddy.deferred.nonempty[migrate as usize] >> order.get() & 1,
    );
    equal("mark of free blocks", u64::from(claimed.0), u64::from(free != 0))?;
    equal("mark of deferred blocks", u64::from(claimed.1), u64::from(deferred != 0))
}

/// Walks a list whose pages must all carry `word`; answers with its length.
fn check_list(zone: &Zone<'_>, list: impl Iterator<Item = u32>, word: BlockWord) -> Result<u64, CheckError> {
    let (mut len, mut last) = (0, super::page::NIL);
    for index in list {
        let page =
            zone.map.pages().get(index as usize).ok_or(CheckError::BrokenList(zone.span().span.start()))?;
        if page.word() != word {
            return Err(CheckError::Misplaced(zone.pfn(index)));
        }
        len += 1;
        if page.prev() != last || len > zone.map.pages().len() as u64 {
            return Err(CheckError::BrokenList(zone.pfn(index)));
        }
        last = index;
    }
    Ok(len)
}

/// What the CPUs and the depot keep is what says that it is kept.
fn check_cpus(zone: &Zone<'_>, depot: &Depot, found: u64) -> Result<(), CheckError> {
    let (mut kept, mut stocked, mut marks) = (0, 0, 0);
    for (list, order, migrate) in lists() {
        let word = BlockWord::new(PageState::OnCpu, order, migrate);
        for chain in depot.iter(zone.map.pages(), list) {
            stocked += check_chain(zone, chain, word)? << order.get();
            marks |= 1 << list;
        }
        for cpu in zone.cpu_pages.iter() {
            let magazines = &cpu.lists[list];
            for chain in [magazines.loaded_chain(), magazines.spare_chain()] {
                kept += check_chain(zone, chain, word)? << order.get();
            }
        }
    }
    equal("pages in the depot", depot.pages(), stocked)?;
    equal("marks of the depot's lists", depot.stocked(), marks)?;
    equal("published marks of the depot's lists", zone.stocked(), marks)?;
    equal("pages on CPUs' lists", kept + stocked, found)
}

fn check_chain(zone: &Zone<'_>, chain: Chain, word: BlockWord) -> Result<u64, CheckError> {
    let mut len = 0;
    for index in chain.iter(zone.map.pages()) {
        if zone.map.page(index).word() != word {
            return Err(CheckError::Misplaced(zone.pfn(index)));
        }
        len += 1;
    }
    equal("length of a magazine", u64::from(chain.len), len)?;
    Ok(len)
}

fn equal(what: &'static str, counter: u64, recount: u64) -> Result<(), CheckError> {
    if counter == recount { Ok(()) } else { Err(CheckError::Count(what, counter, recount)) }
}
