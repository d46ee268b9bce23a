//! Translations that tables do not bear out any more: what a flush was missed for.

use super::format::{Rights, Seen};
use super::tlb::Entry;
use super::{Machine, Unit, locked, shift};
use crate::addr::{Pfn, VirtAddr};
use crate::platform::CpuId;
use crate::platform::hosted::ram::Ram;
use std::sync::atomic::Ordering::Acquire;

/// A translation that a CPU remembers, and that the tables contradict: it leads elsewhere, allows more, or lets a write go unnoted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stale {
    /// The CPU.
    pub cpu: CpuId,
    /// The root of the tables that it came from.
    pub root: Pfn,
    /// The address.
    pub addr: VirtAddr,
    /// The frame that the CPU would reach.
    pub frame: Pfn,
}

/// What the tables say of an address now.
struct Now {
    frame: Pfn,
    rights: Rights,
    dirty: bool,
}

impl Unit {
    fn peek(&self, ram: &Ram, root: Pfn, addr: u64) -> Option<Now> {
        let (mut table, mut level, mut allowed) = (root, self.format.top(), Rights::ALL);
        loop {
            let index = self.format.index(addr, level);
            let raw =
                ram.with_frame(table, |frame| frame.entry(index).map(|entry| entry.load(Acquire)))??;
            match self.format.see(level, raw) {
                Seen::NotPresent | Seen::Corrupt => return None,
                Seen::Table { target, rights } => {
                    (table, allowed, level) = (target, allowed.and(rights), level.checked_sub(1)?);
                }
                Seen::Page { target, rights, .. } => {
                    let inside = (addr >> shift(0)) & ((1 << (9 * u32::from(level))) - 1);
                    let frame = target.checked_add(inside)?;
                    let (rights, dirty) = (allowed.and(rights), self.format.is_dirty(raw));
                    return Some(Now { frame, rights, dirty });
                }
            }
        }
    }

    /// The first page of a translation that the tables contradict.
    fn contradiction(&self, ram: &Ram, entry: &Entry) -> Option<(u64, Pfn)> {
        let pages = 1_u64 << (9 * u32::from(entry.size));
        let first = entry.number << shift(entry.level);
        (0..pages).find_map(|page| {
            let (addr, frame) = (first + (page << shift(0)), entry.target.checked_add(page)?);
            let now = self.peek(ram, entry.root, addr);
            let agrees = now.is_some_and(|now| {
                now.frame == frame
                    && now.rights.and(entry.rights) == entry.rights
                    && (now.dirty || !entry.dirty)
            });
            (!agrees).then_some((addr, frame))
        })
    }
}

impl Machine {
    /// A translation of any CPU's that the tables contradict, with no flush under way: that it exists means that a flush is missing. What
    /// allows less than the tables do is none.
    pub fn stale_translation(&self) -> Option<Stale> {
        (0..).map(CpuId).zip(&self.mmu.tlbs).find_map(|(cpu, tlb)| {
            let tlb = locked(tlb);
            tlb.translations().find_map(|entry| {
                let (addr, frame) = self.mmu.contradiction(&self.ram, entry)?;
                Some(Stale { cpu, root: entry.root, addr: VirtAddr::from(addr), frame })
            })
        })
    }
}
