//! Where VMAs live: slots that stay VMA slots for ever.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use static_assertions::const_assert;

use super::anon::{AnonVma, packed};
use super::set::{ByAddress, MmRb};
use super::vma::{Backing, FileKind, FileRef, Vma};
use crate::addr::{PgOff, VirtAddr};
use crate::collections::{HasListLink, ListId, ListLink, TreeLink};
use crate::flags::VmFlags;

/// Room for one VMA.
///
/// All fields are atomics, so that a reader that lost a race reads a wrong value and not an undefined one; what makes
/// the values belong together is the lock of the address space. What a look-up touches lies in the first cache line.
#[derive(Debug, Default)]
#[repr(C, align(64))]
#[doc(alias = "vm_area_struct")]
pub struct VmaSlot {
    start: AtomicU64,
    end: AtomicU64,
    flags: AtomicU64,
    pgoff: AtomicU64,
    rb: TreeLink,
    list: ListLink,
    /// The address space whose list it is on, 0 for none.
    owner: AtomicU32,
    /// Counts how often the slot was given out and taken back: odd while it is in use.
    generation: AtomicU32,
    /// The next free slot, plus one.
    free: AtomicU32,
    /// The file in the lower half, the opening in the upper; or the number of a special mapping.
    backing: AtomicU64,
    anon: AtomicU64,
    backing_kind: AtomicU32,
    /// 1 if the VMA below may be left unmerged though it is alike; see [`VmaSlot::set_seam`].
    seam: AtomicU32,
}

const_assert!(size_of::<VmaSlot>() <= 128);

impl VmaSlot {
    /// Room for one VMA.
    pub const fn new() -> Self {
        Self {
            start: AtomicU64::new(0),
            end: AtomicU64::new(0),
            flags: AtomicU64::new(0),
            pgoff: AtomicU64::new(0),
            rb: TreeLink::new(),
            list: ListLink::new(),
            owner: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            free: AtomicU32::new(0),
            backing: AtomicU64::new(0),
            anon: AtomicU64::new(0),
            backing_kind: AtomicU32::new(0),
            seam: AtomicU32::new(0),
        }
    }

    pub(super) fn start(&self) -> VirtAddr {
        VirtAddr::from(self.start.load(Relaxed))
    }

    pub(super) fn end(&self) -> VirtAddr {
        VirtAddr::from(self.end.load(Relaxed))
    }

    pub(super) fn flags(&self) -> VmFlags {
        VmFlags::from_bits_retain(self.flags.load(Relaxed))
    }

    pub(super) fn set_flags(&self, flags: VmFlags) {
        self.flags.store(flags.bits(), Relaxed);
    }

    pub(super) fn set_range(&self, start: VirtAddr, end: VirtAddr, pgoff: PgOff) {
        if self.start() != start {
            self.seam.store(0, Relaxed);
        }
        self.start.store(start.get(), Relaxed);
        self.end.store(end.get(), Relaxed);
        self.pgoff.store(pgoff.get(), Relaxed);
    }

    /// Notes that this VMA and the one below came to be alike, or to touch, by something that merges nothing: fork, the
    /// growth of a stack or the first of a heap, a move that leaves its source, a loader. It holds until the VMA begins
    /// elsewhere.
    pub(super) fn set_seam(&self) {
        self.seam.store(1, Relaxed);
    }

    pub(super) fn has_seam(&self) -> bool {
        self.seam.load(Relaxed) != 0
    }

    pub(super) fn load(&self) -> Vma {
        Vma {
            start: self.start(),
            end: self.end(),
            flags: self.flags(),
            pgoff: PgOff::new(self.pgoff.load(Relaxed)).unwrap_or(PgOff::MAX),
            backing: unpack_backing(self.backing_kind.load(Relaxed), self.backing.load(Relaxed)),
            anon: packed::unpack(self.anon.load(Relaxed)),
        }
    }

    /// Fills the slot anew.
    pub(super) fn init(&self, vma: &Vma) {
        self.store(vma);
        self.seam.store(0, Relaxed);
    }

    pub(super) fn store(&self, vma: &Vma) {
        self.set_range(vma.start, vma.end, vma.pgoff);
        self.set_flags(vma.flags);
        let (kind, word) = pack_backing(vma.backing);
        self.backing_kind.store(kind, Relaxed);
        self.backing.store(word, Relaxed);
        self.anon.store(packed::pack(vma.anon), Relaxed);
    }

    /// Gives the VMA an owner of anonymous pages, unless another CPU has just done so.
    pub(super) fn claim_anon(&self, anon: AnonVma) {
        // Relaxed: the word is all there is to it. The loser uses what the winner has put there.
        let _ = self.anon.compare_exchange(0, packed::pack(Some(anon)), Relaxed, Relaxed);
    }

    /// The word that a pool links free slots by.
    pub(super) fn free_link(&self) -> &AtomicU32 {
        &self.free
    }

    /// Notes that the slot was given out, or taken back.
    pub(super) fn next_generation(&self) {
        self.generation.fetch_add(1, Relaxed);
    }

    pub(super) fn owner(&self) -> u32 {
        self.owner.load(Relaxed)
    }

    /// Counts how often the slot was given out and taken back; odd while it is in use.
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Relaxed)
    }
}

crate::tree_link!(VmaSlot, MmRb => rb);

impl HasListLink<ByAddress> for VmaSlot {
    fn list_link(&self) -> &ListLink {
        &self.list
    }

    fn list_id(&self) -> Option<ListId> {
        ListId::new(self.owner())
    }

    fn set_list_id(&self, id: Option<ListId>) {
        self.owner.store(id.map_or(0, ListId::get), Relaxed);
    }
}

const KIND_ANONYMOUS: u32 = 0;
const KIND_REGULAR: u32 = 1;
const KIND_MEMORY: u32 = 2;
const KIND_SHARED_ANONYMOUS: u32 = 3;
const KIND_SPECIAL: u32 = 4;

fn pack_backing(backing: Backing) -> (u32, u64) {
    match backing {
        Backing::Anonymous => (KIND_ANONYMOUS, 0),
        Backing::Special(id) => (KIND_SPECIAL, u64::from(id)),
        Backing::File(file) => {
            let kind = match file.kind {
                FileKind::Regular => KIND_REGULAR,
                FileKind::Memory => KIND_MEMORY,
                FileKind::SharedAnonymous => KIND_SHARED_ANONYMOUS,
            };
            (kind, u64::from(file.open.0.get()) << 32 | u64::from(file.file.0.get()))
        }
    }
}

fn unpack_backing(kind: u32, word: u64) -> Backing {
    let kind = match kind {
        KIND_SPECIAL => return Backing::Special(word as u32),
        KIND_REGULAR => FileKind::Regular,
        KIND_MEMORY => FileKind::Memory,
        KIND_SHARED_ANONYMOUS => FileKind::SharedAnonymous,
        _ => return Backing::Anonymous,
    };
    FileRef::new(word as u32, (word >> 32) as u32, kind).map_or(Backing::Anonymous, Backing::File)
}
