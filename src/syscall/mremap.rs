//! mremap.

use super::{is_aligned, page_align, range};
use crate::addr::{PAGE_SHIFT, VirtAddr, VirtRange};
use crate::flags::{MremapFlags, VmFlags};
use crate::mm::{Exact, Mm, MmError, Purpose, Sharing, SourceFate, Tables, Vma, Wish, clip};

/// The arguments, with the lengths rounded up to whole pages.
#[derive(Clone, Copy)]
struct Remap {
    addr: u64,
    old_len: u64,
    new_len: u64,
    flags: MremapFlags,
    new_addr: u64,
}

/// Grows, shrinks or moves what is mapped at `addr`, and answers where it is then.
///
/// With `MREMAP_FIXED` and the same length, several VMAs and the holes between them may be moved at once.
///
/// # Errors
/// [`MmError::BadFlags`], [`MmError::Unaligned`], [`MmError::ZeroLength`], [`MmError::OutOfRange`], [`MmError::Overlap`],
/// [`MmError::TooManyVmas`], [`MmError::NotMappedFault`], [`MmError::PrivateAlias`], [`MmError::NotExpandable`],
/// [`MmError::LockLimit`], [`MmError::AddressSpaceLimit`], [`MmError::CannotExpand`], [`MmError::NoGap`],
/// [`MmError::BelowMinimum`], [`MmError::NotDivisible`], [`MmError::Overcommit`], [`MmError::OutOfSlots`], [`MmError::OutOfMemory`]. Nothing is
/// changed then, except that of several VMAs those before the one that failed have moved, as in Linux.
///
/// # Linux
/// `do_mremap` in `mm/mremap.c` (6.18).
pub fn mremap(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    addr: u64,
    old_len: u64,
    new_len: u64,
    flags: MremapFlags,
    new_addr: u64,
) -> Result<VirtAddr, MmError> {
    let remap = Remap { addr, old_len: page_align(old_len), new_len: page_align(new_len), flags, new_addr };
    check_arguments(mm, &remap)?;
    if flags.contains(MremapFlags::FIXED) && remap.old_len == remap.new_len {
        return move_all(mm, tables, &remap);
    }
    let vma = check_vma(mm, &remap)?;
    if remap.names_new_addr() { move_to(mm, tables, &vma, &remap) } else { resize(mm, tables, &vma, &remap) }
}

impl Remap {
    const fn names_new_addr(&self) -> bool {
        self.flags.intersects(MremapFlags::FIXED.union(MremapFlags::DONTUNMAP))
    }

    const fn delta_pages(&self) -> u64 {
        self.new_len.abs_diff(self.old_len) >> PAGE_SHIFT
    }
}

#[doc(alias = "check_mremap_params")]
fn check_arguments(mm: &Mm<'_>, remap: &Remap) -> Result<(), MmError> {
    let Remap { addr, old_len, new_len, flags, new_addr } = *remap;
    let task_size = mm.sysctl().task_size;
    if !(MremapFlags::MAYMOVE | MremapFlags::FIXED | MremapFlags::DONTUNMAP).contains(flags) {
        return Err(MmError::BadFlags);
    }
    if !is_aligned(addr) {
        return Err(MmError::Unaligned);
    }
    if new_len == 0 {
        return Err(MmError::ZeroLength);
    }
    if new_len > task_size {
        return Err(MmError::OutOfRange);
    }
    if !remap.names_new_addr() {
        return Ok(());
    }
    if new_addr > task_size - new_len {
        return Err(MmError::OutOfRange);
    }
    if !is_aligned(new_addr) {
        return Err(MmError::Unaligned);
    }
    if !flags.contains(MremapFlags::MAYMOVE) || (flags.contains(MremapFlags::DONTUNMAP) && old_len != new_len)
    {
        return Err(MmError::BadFlags);
    }
    if addr.wrapping_add(old_len) > new_addr && new_addr + new_len > addr {
        return Err(MmError::Overlap);
    }
    // Room for the two VMAs that the worst case leaves behind, before anything is unmapped.
    if u64::from(mm.map_count()) + 2 + 3 >= u64::from(mm.sysctl().max_map_count) {
        return Err(MmError::TooManyVmas);
    }
    Ok(())
}

/// The VMA at the old address, if it may be remapped like this.
#[doc(alias = "check_prep_vma")]
fn check_vma(mm: &Mm<'_>, remap: &Remap) -> Result<Vma, MmError> {
    let addr = VirtAddr::from(remap.addr);
    let vma = mm.vma(mm.lookup(addr).ok_or(MmError::NotMappedFault)?);
    if remap.new_len <= remap.old_len && !remap.names_new_addr() {
        return Ok(vma);
    }
    if remap.old_len == 0 && !vma.flags.intersects(VmFlags::SHARED | VmFlags::MAYSHARE) {
        return Err(MmError::PrivateAlias);
    }
    let fixed_size = vma.flags.intersects(VmFlags::DONTEXPAND | VmFlags::PFNMAP);
    if remap.flags.contains(MremapFlags::DONTUNMAP) && fixed_size {
        return Err(MmError::BadFlags);
    }
    if remap.old_len.min(remap.new_len) > vma.end.get() - remap.addr {
        return Err(MmError::NotMappedFault);
    }
    if remap.new_len <= remap.old_len {
        return Ok(vma);
    }
    if fixed_size {
        return Err(MmError::NotExpandable);
    }
    mm.may_lock_future(vma.flags, remap.delta_pages() << PAGE_SHIFT)?;
    mm.may_expand(vma.flags, remap.delta_pages())?;
    Ok(vma)
}

/// Moves all VMAs of the old range, each to where it keeps its distance to the first.
#[doc(alias = "remap_move")]
fn move_all(mm: &mut Mm<'_>, tables: &mut impl Tables, remap: &Remap) -> Result<VirtAddr, MmError> {
    let end = remap.addr.wrapping_add(remap.old_len);
    let whole = range(remap.addr, end).ok_or(MmError::NotMappedFault)?;
    let mut at = whole.start();
    let mut moved_any = false;
    while at < whole.end() {
        let Some(slot) = mm.find_vma_intersection(at, whole.end()) else { break };
        let part = clip(&mm.vma(slot), VirtRange::new(at, whole.end()).ok_or(MmError::OutOfRange)?);
        if !moved_any && part.start > whole.start() {
            return Err(MmError::NotMappedFault);
        }
        let len = part.range().len();
        let new_addr = remap.new_addr + (part.start.get() - remap.addr);
        let one = Remap { addr: part.start.get(), old_len: len, new_len: len, new_addr, ..*remap };
        let vma = check_vma(mm, &one)?;
        move_to(mm, tables, &vma, &one)?;
        moved_any = true;
        at = part.end;
    }
    if moved_any { Ok(VirtAddr::from(remap.new_addr)) } else { Err(MmError::NotMappedFault) }
}

/// Moves to an address that the caller has named, or one near it.
#[doc(alias = "mremap_to")]
fn move_to(mm: &mut Mm<'_>, tables: &mut impl Tables, vma: &Vma, remap: &Remap) -> Result<VirtAddr, MmError> {
    let fixed = remap.flags.contains(MremapFlags::FIXED);
    let keep = remap.flags.contains(MremapFlags::DONTUNMAP);
    let moved_len = remap.old_len.min(remap.new_len);
    let from = range(remap.addr, remap.addr + moved_len).ok_or(MmError::OutOfRange)?;
    if fixed && remap.addr.checked_sub(remap.new_addr).is_some_and(|distance| distance < remap.new_len) {
        // An alias in the place of what it is an alias of, or a range that wraps: the source would be unmapped with what lies there.
        return Err(MmError::NotMappedFault);
    }
    // A tail that is cut off may span VMAs and holes.
    let cut = if remap.old_len > remap.new_len { Some(user_tail(mm, remap)?) } else { None };
    let tail = cut.map(|cut| mm.prepare_unmap(cut)).transpose()?;
    let named = range(remap.new_addr, remap.new_addr + remap.new_len).filter(|_| fixed);
    let mut target = named.map(|named| mm.prepare_unmap(named)).transpose()?;
    if keep {
        mm.may_expand_beside(target.as_ref(), vma.flags, remap.old_len >> PAGE_SHIFT)?;
    }
    let to = new_range(mm, vma, remap, if fixed { Exact::Fixed } else { Exact::Hint })?;
    let fate = if keep || from.is_empty() { SourceFate::Keep } else { SourceFate::Unmap };
    let prepared = mm.prepare_move(tables, vma, from, to, fate, target.as_mut())?;
    // The tables that the move needs are there already, empty.
    for unmap in [target, tail].into_iter().flatten() {
        mm.commit_unmap_keeping_tables(tables, unmap);
    }
    mm.commit_move(tables, prepared);
    if let Some(cut) = cut {
        mm.free_tables_if_free(tables, cut);
    }
    populate_growth(mm, tables, vma, remap, to.start());
    Ok(to.start())
}

/// Resizes in place, or moves to wherever there is room.
#[doc(alias = "mremap_at")]
fn resize(mm: &mut Mm<'_>, tables: &mut impl Tables, vma: &Vma, remap: &Remap) -> Result<VirtAddr, MmError> {
    let addr = VirtAddr::from(remap.addr);
    if remap.new_len == remap.old_len {
        return Ok(addr);
    }
    if remap.new_len < remap.old_len {
        let prepared = mm.prepare_unmap(user_tail(mm, remap)?)?;
        mm.commit_unmap(tables, prepared);
        return Ok(addr);
    }
    let new_end = vma.end.checked_add(remap.new_len - remap.old_len).ok_or(MmError::CannotExpand)?;
    if vma.end.get() - remap.addr == remap.old_len && mm.is_expandable(vma, new_end) {
        mm.expand_in_place(tables, vma, new_end)?;
        populate_growth(mm, tables, vma, remap, addr);
        return Ok(addr);
    }
    if !remap.flags.contains(MremapFlags::MAYMOVE) {
        return Err(MmError::CannotExpand);
    }
    let to = new_range(mm, vma, &Remap { new_addr: 0, ..*remap }, Exact::Hint)?;
    let from = range(remap.addr, remap.addr + remap.old_len).ok_or(MmError::OutOfRange)?;
    let fate = if from.is_empty() { SourceFate::Keep } else { SourceFate::Unmap };
    let prepared = mm.prepare_move(tables, vma, from, to, fate, None)?;
    mm.commit_move(tables, prepared);
    populate_growth(mm, tables, vma, remap, to.start());
    Ok(to.start())
}

/// What a shrink cuts off, if munmap would take it for a range.
fn user_tail(mm: &Mm<'_>, remap: &Remap) -> Result<VirtRange, MmError> {
    let start = remap.addr + remap.new_len;
    let task_size = mm.sysctl().task_size;
    if start > task_size || remap.old_len - remap.new_len > task_size - start {
        return Err(MmError::OutOfRange);
    }
    range(start, remap.addr + remap.old_len).ok_or(MmError::OutOfRange)
}

#[doc(alias = "vrm_set_new_addr")]
fn new_range(mm: &mut Mm<'_>, vma: &Vma, remap: &Remap, exact: Exact) -> Result<VirtRange, MmError> {
    let shared = vma.flags.contains(VmFlags::MAYSHARE);
    let addr = mm.get_unmapped_area(&Wish {
        addr: remap.new_addr,
        len: remap.new_len,
        file: vma.backing.file().map(|file| file.kind),
        pgoff: vma.pgoff_at(VirtAddr::from(remap.addr)).get(),
        sharing: if shared { Sharing::Shared } else { Sharing::Private },
        exact,
    })?;
    VirtRange::with_len(addr, remap.new_len).ok_or(MmError::NoGap)
}

/// Locked memory that has grown is resident at once.
fn populate_growth(mm: &mut Mm<'_>, tables: &mut impl Tables, vma: &Vma, remap: &Remap, at: VirtAddr) {
    if remap.new_len <= remap.old_len || !vma.flags.contains(VmFlags::LOCKED) {
        return;
    }
    if let Some(grown) = range(at.get() + remap.old_len, at.get() + remap.new_len) {
        let _ = mm.populate(tables, grown, Purpose::Mapping);
    }
}
