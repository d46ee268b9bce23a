//! Where VMAs live: slots that stay VMA slots for ever, given out and taken back by number.

use core::num::NonZeroU32;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use static_assertions::const_assert;

use super::anon::packed;
use super::error::MmError;
use super::vma::{Backing, FileKind, FileRef, Vma};
use crate::addr::{PgOff, VirtAddr};
use crate::flags::VmFlags;

/// The number of a VMA's slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Slot(NonZeroU32);

impl Slot {
    /// Makes a slot of an index that counts from 0.
    pub const fn new(index: u32) -> Option<Self> {
        if index >= u32::MAX - 3 { None } else { Self::from_code(index + 1) }
    }

    /// The index, from 0.
    pub const fn index(self) -> usize {
        self.0.get() as usize - 1
    }

    const fn code(self) -> u32 {
        self.0.get()
    }

    const fn from_code(code: u32) -> Option<Self> {
        match NonZeroU32::new(code) {
            Some(code) => Some(Self(code)),
            None => None,
        }
    }

    const fn code_of(slot: Option<Self>) -> u32 {
        match slot {
            Some(slot) => slot.code(),
            None => 0,
        }
    }
}

impl core::fmt::Debug for Slot {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Slot({})", self.index())
    }
}

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
    prev: AtomicU32,
    next: AtomicU32,
    /// Counts how often the slot was given out and taken back: odd while it is in use.
    generation: AtomicU32,
    /// The address space, or the next free slot.
    owner: AtomicU32,
    /// The file in the lower half, the opening in the upper; or the number of a special mapping.
    backing: AtomicU64,
    anon: AtomicU64,
    backing_kind: AtomicU32,
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
            prev: AtomicU32::new(0),
            next: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            owner: AtomicU32::new(0),
            backing: AtomicU64::new(0),
            anon: AtomicU64::new(0),
            backing_kind: AtomicU32::new(0),
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
        self.start.store(start.get(), Relaxed);
        self.end.store(end.get(), Relaxed);
        self.pgoff.store(pgoff.get(), Relaxed);
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

    pub(super) fn store(&self, vma: &Vma) {
        self.set_range(vma.start, vma.end, vma.pgoff);
        self.set_flags(vma.flags);
        let (kind, word) = pack_backing(vma.backing);
        self.backing_kind.store(kind, Relaxed);
        self.backing.store(word, Relaxed);
        self.anon.store(packed::pack(vma.anon), Relaxed);
    }

    pub(super) fn next(&self) -> Option<Slot> {
        Slot::from_code(self.next.load(Relaxed))
    }

    pub(super) fn prev(&self) -> Option<Slot> {
        Slot::from_code(self.prev.load(Relaxed))
    }

    pub(super) fn set_next(&self, slot: Option<Slot>) {
        self.next.store(Slot::code_of(slot), Relaxed);
    }

    pub(super) fn set_prev(&self, slot: Option<Slot>) {
        self.prev.store(Slot::code_of(slot), Relaxed);
    }

    pub(super) fn owner(&self) -> u32 {
        self.owner.load(Relaxed)
    }

    pub(super) fn set_owner(&self, owner: u32) {
        self.owner.store(owner, Relaxed);
    }

    /// Counts how often the slot was given out and taken back; odd while it is in use.
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Relaxed)
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

/// Gives out slots. One serves all address spaces of a memory.
///
/// # Locking
/// None: the free slots are a stack that is changed by one compare-and-exchange of its head, whose upper half counts the
/// changes, so that a head that left and came back is not taken for one that stayed.
#[derive(Debug)]
pub struct VmaPool<'p> {
    slots: &'p [VmaSlot],
    free: AtomicU64,
    /// How many slots were given out at least once.
    touched: AtomicU32,
    used: AtomicU32,
}

impl<'p> VmaPool<'p> {
    /// A pool of these slots, all free. Slots beyond 2^32 - 4 are not used.
    pub const fn new(slots: &'p [VmaSlot]) -> Self {
        Self { slots, free: AtomicU64::new(0), touched: AtomicU32::new(0), used: AtomicU32::new(0) }
    }

    /// How many slots are in use.
    pub fn used(&self) -> u32 {
        self.used.load(Relaxed)
    }

    /// How many slots there are.
    pub const fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// The slot with this number. The number comes from this pool, so that there is one.
    pub(super) fn at(&self, slot: Slot) -> &'p VmaSlot {
        &self.slots[slot.index()]
    }

    /// Takes a free slot.
    ///
    /// # Errors
    /// [`MmError::OutOfSlots`].
    pub(super) fn take(&self) -> Result<Slot, MmError> {
        let slot = self.pop().or_else(|| self.touch()).ok_or(MmError::OutOfSlots)?;
        self.at(slot).generation.fetch_add(1, Relaxed);
        self.used.fetch_add(1, Relaxed);
        Ok(slot)
    }

    /// Takes a slot back.
    pub(super) fn give(&self, slot: Slot) {
        let at = self.at(slot);
        at.generation.fetch_add(1, Relaxed);
        self.used.fetch_sub(1, Relaxed);
        let mut head = self.free.load(Relaxed);
        loop {
            at.set_owner(head as u32);
            // Release pairs with the acquire in `pop`: who gets the slot sees its link.
            match self.free.compare_exchange_weak(
                head,
                bumped(head, slot.code()),
                core::sync::atomic::Ordering::Release,
                Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    fn pop(&self) -> Option<Slot> {
        use core::sync::atomic::Ordering::Acquire;
        let mut head = self.free.load(Acquire);
        loop {
            let slot = Slot::from_code(head as u32)?;
            let next = self.at(slot).owner();
            match self.free.compare_exchange_weak(head, bumped(head, next), Acquire, Acquire) {
                Ok(_) => return Some(slot),
                Err(now) => head = now,
            }
        }
    }

    fn touch(&self) -> Option<Slot> {
        let limit = self.slots.len().min(u32::MAX as usize - 4) as u32;
        let index = self.touched.fetch_update(Relaxed, Relaxed, |n| (n < limit).then(|| n + 1)).ok()?;
        Slot::new(index)
    }
}

const fn bumped(head: u64, code: u32) -> u64 {
    ((head >> 32).wrapping_add(1) << 32) | code as u64
}

/// The most slots that one step needs: a part split out of the middle of a VMA leaves two rests.
const MAX_RESERVED: usize = 2;

/// Slots taken ahead of need, so that what follows cannot fail. What is left over goes back.
#[derive(Debug)]
#[must_use]
pub(super) struct Reserved<'p> {
    pool: &'p VmaPool<'p>,
    slots: [Option<Slot>; MAX_RESERVED],
}

impl<'p> Reserved<'p> {
    /// Takes `n` slots, at most [`MAX_RESERVED`].
    ///
    /// # Errors
    /// [`MmError::OutOfSlots`]; then none is taken.
    pub(super) fn new(pool: &'p VmaPool<'p>, n: usize) -> Result<Self, MmError> {
        let mut reserved = Self { pool, slots: [None; MAX_RESERVED] };
        for place in reserved.slots.iter_mut().take(n) {
            *place = Some(pool.take()?);
        }
        Ok(reserved)
    }

    /// One of them. There are as many as were asked for.
    pub(super) fn pop(&mut self) -> Slot {
        match self.slots.iter_mut().find_map(Option::take) {
            Some(slot) => slot,
            None => unreachable!("more slots used than reserved"),
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        for slot in self.slots.iter().flatten() {
            self.pool.give(*slot);
        }
    }
}
