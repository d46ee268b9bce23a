//! Where VMAs live: slots that stay VMA slots for ever.
//!
//! A slot has two parts, in two arrays. What a way down the tree touches is in one, two to a cache line ([`VmaNode`]): addresses and links. The
//! other ([`VmaSlot`]) has what only those ask for who have to do with this VMA, in the order in which they do.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::sync::words::{Word32, Word64};

#[cfg(not(shuttle))]
use static_assertions::const_assert;

use super::anon::{AnonVma, packed};
use super::set::{ByAddress, MmRb};
use super::vma::{Backing, FileKind, FileRef, Vma, pgoff_after, pgoff_before};
use super::vma_lock::VmaLock;
use crate::addr::{PAGE_SHIFT, PgOff, VirtAddr, VirtRange};
use crate::collections::{HasListLink, ListId, ListLink, Slot, TreeLink, TreeMark};
use crate::flags::VmFlags;
use crate::rmap::{Place, RmapLinks};

/// Where one VMA lies and its place in the tree: all that a look-up touches of the VMAs that it comes by, in half a cache line.
///
/// All fields are atomics, so that a reader that lost a race reads a wrong value and not an undefined one; what makes
/// the values belong together is the lock of the address space, or the VMA's own.
#[derive(Debug, Default)]
#[repr(C, align(32))]
#[doc(alias = "vm_rb")]
pub struct VmaNode {
    start: Word64,
    end: Word64,
    rb: TreeLink,
    tree: TreeMark,
}

#[cfg(not(shuttle))]
const_assert!(size_of::<VmaNode>() == 32);

impl VmaNode {
    /// Room for one VMA's addresses.
    pub const fn new() -> Self {
        Self { start: Word64::new(0), end: Word64::new(0), rb: TreeLink::new(), tree: TreeMark::new() }
    }

    /// The first byte of the VMA.
    #[doc(alias = "vm_start")]
    #[inline]
    pub fn start(&self) -> VirtAddr {
        VirtAddr::from(self.start.load(Relaxed))
    }

    /// The first byte after it.
    #[doc(alias = "vm_end")]
    #[inline]
    pub fn end(&self) -> VirtAddr {
        VirtAddr::from(self.end.load(Relaxed))
    }

    /// Its addresses.
    #[inline]
    pub(super) fn range(&self) -> VirtRange {
        VirtRange::new(self.start(), self.end()).unwrap_or_default()
    }

    /// Whether `addr` lies in the VMA that is kept here.
    #[inline]
    pub(super) fn holds(&self, addr: VirtAddr) -> bool {
        // Which side it lies on is anybody's guess: so this is one comparison.
        let start = self.start().get();
        addr.get().wrapping_sub(start) < self.end().get().wrapping_sub(start)
    }
}

crate::tree_link!(VmaNode, MmRb => rb, tree);

/// The rest of one VMA.
///
/// All fields are atomics, as those of [`VmaNode`] are. The first 32 bytes are all that a change of a neighbour and the lock touch; what kind of memory it
/// is comes next, and last what only pages of files and of anonymous memory with an owner ask for.
#[derive(Debug, Default)]
#[repr(C, align(32))]
#[doc(alias = "vm_area_struct")]
pub struct VmaSlot {
    list: ListLink,
    /// The address space whose list it is on, 0 for none.
    owner: Word32,
    /// Counts how often the slot was given out and taken back: odd while it is in use.
    generation: AtomicU32,
    lock: VmaLock,
    flags: Word64,
    /// What is to be added to the number of a page for its offset. It stays the same when borders move.
    shift: Word64,
    /// The file in the lower half, the opening in the upper; or the number of a special mapping or of a device.
    backing: AtomicU64,
    anon: AtomicU64,
    backing_kind: AtomicU8,
    /// 1 if the VMA below is alike and was left unmerged; see [`VmaSlot::set_seam`].
    seam: AtomicU8,
    /// The next free slot, plus one.
    free: AtomicU32,
    rmap: RmapLinks,
    readahead: AtomicU64,
}

#[cfg(not(shuttle))]
const_assert!(size_of::<VmaNode>() + size_of::<VmaSlot>() <= 128);

impl HasListLink<ByAddress> for VmaSlot {
    #[inline]
    fn list_link(&self) -> &ListLink {
        &self.list
    }

    #[inline]
    fn list_id(&self) -> Option<ListId> {
        ListId::new(self.owner())
    }

    #[inline]
    fn set_list_id(&self, id: Option<ListId>) {
        self.owner.store(id.map_or(0, ListId::get), Relaxed);
    }
}

impl VmaSlot {
    /// Room for the rest of one VMA.
    pub const fn new() -> Self {
        Self {
            list: ListLink::new(),
            owner: Word32::new(0),
            generation: AtomicU32::new(0),
            lock: VmaLock::new(Word64::new(0)),
            flags: Word64::new(0),
            shift: Word64::new(0),
            backing: AtomicU64::new(0),
            anon: AtomicU64::new(0),
            backing_kind: AtomicU8::new(0),
            seam: AtomicU8::new(0),
            free: AtomicU32::new(0),
            rmap: RmapLinks::new(),
            readahead: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(super) fn flags(&self) -> VmFlags {
        VmFlags::from_bits_retain(self.flags.load(Relaxed))
    }

    #[inline]
    pub(super) const fn lock(&self) -> &VmaLock {
        &self.lock
    }

    #[inline]
    pub(super) fn owner(&self) -> u32 {
        self.owner.load(Relaxed)
    }

    /// Counts how often the slot was given out and taken back; odd while it is in use.
    pub fn generation(&self) -> u32 {
        self.generation.load(Relaxed)
    }

    /// The word that a pool links free slots by.
    pub(super) const fn free_link(&self) -> &AtomicU32 {
        &self.free
    }

    /// Notes that the slot was given out, or taken back.
    pub(super) fn next_generation(&self) {
        // Only who has the slot counts.
        self.generation.store(self.generation().wrapping_add(1), Relaxed);
    }

    pub(super) fn set_flags(&self, flags: VmFlags) {
        self.flags.store(flags.bits(), Relaxed);
    }

    /// Notes that there may be guard markers, beside others who do or who read the flags.
    pub(super) fn note_guards(&self) {
        self.flags.fetch_or(VmFlags::MAYBE_GUARD.bits(), Relaxed);
    }

    fn backing(&self) -> Backing {
        unpack_backing(self.backing_kind.load(Relaxed), self.backing.load(Relaxed))
    }

    /// The file that the VMA maps, if it is one of an address space and maps one.
    pub(super) fn file(&self) -> Option<FileRef> {
        if self.owner() == 0 { None } else { self.backing().file() }
    }

    pub(super) fn anon(&self) -> Option<AnonVma> {
        packed::unpack(self.anon.load(Relaxed))
    }

    pub(super) fn rmap_links(&self) -> &RmapLinks {
        &self.rmap
    }

    /// Where reading ahead stands, in the words of whoever reads ahead; 0 at first.
    #[doc(alias = "file_ra_state")]
    pub fn readahead(&self) -> u64 {
        self.readahead.load(Relaxed)
    }

    /// Notes where reading ahead stands.
    pub fn set_readahead(&self, position: u64) {
        self.readahead.store(position, Relaxed);
    }

    /// Where the VMA lies, now or before or after a move of its borders that is under way; `None` if it is on no address space's list.
    ///
    /// # Locking
    /// The lock of a list of who maps a page, so that the slot stays this VMA's; not that of the address space.
    pub(super) fn place(&self, node: &VmaNode) -> Option<Place> {
        let (start, end) = (node.start(), node.end());
        let mm = Slot::from_code(self.owner())?;
        let pages = end.get().checked_sub(start.get())? >> PAGE_SHIFT;
        Some(Place { mm, start, pages, pgoff: self.pgoff(start) })
    }

    /// Where in what backs the VMA its first page lies.
    #[inline]
    fn pgoff(&self, start: VirtAddr) -> PgOff {
        pgoff_after(PgOff::new(self.shift.load(Relaxed)).unwrap_or(PgOff::MAX), start.vpn().get())
    }

    /// Moves the borders. A VMA whose pages somebody may come from keeps some of its pages, and each its offset: so whoever reads one border
    /// before and one after finds a range that lies between the two, and right offsets.
    pub(super) fn set_range(&self, node: &VmaNode, start: VirtAddr, end: VirtAddr, pgoff: PgOff) {
        if node.start() != start {
            self.clear_seam();
        }
        node.start.store(start.get(), Relaxed);
        node.end.store(end.get(), Relaxed);
        self.shift.store(pgoff_before(pgoff, start.vpn().get()).get(), Relaxed);
    }

    /// Notes that this VMA and the one below are alike, and came to be so by something that merges nothing: fork, the
    /// growth of a stack or the first of a heap, a move that leaves its source, a loader. It holds until the VMA begins
    /// elsewhere, or the two are asked again whether they merge.
    pub(super) fn set_seam(&self) {
        self.seam.store(1, Relaxed);
    }

    /// Notes that this VMA and the one below were asked whether they merge, or are not alike.
    pub(super) fn clear_seam(&self) {
        self.seam.store(0, Relaxed);
    }

    pub(super) fn has_seam(&self) -> bool {
        self.seam.load(Relaxed) != 0
    }

    #[inline]
    pub(super) fn load(&self, node: &VmaNode) -> Vma {
        Vma {
            start: node.start(),
            end: node.end(),
            flags: self.flags(),
            pgoff: self.pgoff(node.start()),
            backing: self.backing(),
            anon: self.anon(),
        }
    }

    /// Fills the slot anew.
    pub(super) fn init(&self, node: &VmaNode, vma: &Vma) {
        self.set_range(node, vma.start, vma.end, vma.pgoff);
        self.set_attributes(vma);
        self.clear_seam();
        self.set_readahead(0);
    }

    /// Replaces all but the borders.
    pub(super) fn set_attributes(&self, vma: &Vma) {
        let (kind, word) = pack_backing(vma.backing);
        self.backing_kind.store(kind, Relaxed);
        self.backing.store(word, Relaxed);
        self.set_flags(vma.flags);
        self.anon.store(packed::pack(vma.anon), Relaxed);
    }

    /// The VMA has no owner of anonymous pages any more, for it goes.
    pub(super) fn forget_anon(&self) {
        self.anon.store(0, Relaxed);
    }

    /// Gives the VMA an owner of anonymous pages; `false` if another CPU has just done so.
    pub(super) fn claim_anon(&self, anon: AnonVma) -> bool {
        // Relaxed: the word is all there is to it. The loser uses what the winner has put there.
        self.anon.compare_exchange(0, packed::pack(Some(anon)), Relaxed, Relaxed).is_ok()
    }
}

const KIND_ANONYMOUS: u8 = 0;
const KIND_REGULAR: u8 = 1;
const KIND_MEMORY: u8 = 2;
const KIND_SHARED_ANONYMOUS: u8 = 3;
const KIND_SPECIAL: u8 = 4;
const KIND_DEVICE: u8 = 5;
/// Beside the kind of a file: its opening cannot write.
const READ_ONLY: u8 = 0x80;

fn pack_backing(backing: Backing) -> (u8, u64) {
    match backing {
        Backing::Anonymous => (KIND_ANONYMOUS, 0),
        Backing::Special(id) => (KIND_SPECIAL, u64::from(id)),
        Backing::Device(id) => (KIND_DEVICE, u64::from(id)),
        Backing::File(file) => {
            let kind = match file.kind {
                FileKind::Regular => KIND_REGULAR,
                FileKind::Memory => KIND_MEMORY,
                FileKind::SharedAnonymous => KIND_SHARED_ANONYMOUS,
            };
            let kind = if file.read_only { kind | READ_ONLY } else { kind };
            (kind, u64::from(file.open.0.get()) << 32 | u64::from(file.file.0.get()))
        }
    }
}

fn unpack_backing(kind: u8, word: u64) -> Backing {
    let read_only = kind & READ_ONLY != 0;
    let kind = match kind & !READ_ONLY {
        KIND_SPECIAL => return Backing::Special(word as u32),
        KIND_DEVICE => return Backing::Device(word as u32),
        KIND_REGULAR => FileKind::Regular,
        KIND_MEMORY => FileKind::Memory,
        KIND_SHARED_ANONYMOUS => FileKind::SharedAnonymous,
        _ => return Backing::Anonymous,
    };
    let file = FileRef::new(word as u32, (word >> 32) as u32, kind);
    file.map_or(Backing::Anonymous, |file| Backing::File(FileRef { read_only, ..file }))
}
