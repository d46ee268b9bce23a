//! What a call may refuse: the model decides, and a want that is named must be there.

use super::*;

/// Flags of mmap that the model knows to forbid nothing.
const PLAIN: MapFlags = MapFlags::PRIVATE
    .union(MapFlags::SHARED)
    .union(MapFlags::ANONYMOUS)
    .union(MapFlags::FIXED)
    .union(MapFlags::NORESERVE);
const PROTECTIONS: u64 = 15;

impl Space<'_> {
    /// Whether there is as little of something as an error says, for a call that wants at most so many pages and VMAs more.
    pub(super) fn is_short(&self, error: MmError, pages: u64, vmas: u32) -> bool {
        let (limits, totals) = (self.mm.rlimits(), self.mm.totals());
        let exceeds = |now: u64, limit: u64| now + pages > limit / PAGE;
        // A call takes at most as many before it knows how many it needs.
        let few = |used: u32, all: usize| used as usize + 4 > all;
        match error {
            MmError::TooManyVmas => self.mm.map_count() + vmas > self.context.sysctl().max_map_count,
            MmError::OutOfSlots => {
                let (pool, owners) = (self.context.pool(), self.context.anon_vmas());
                few(pool.used(), pool.capacity()) || few(owners.used(), pool.capacity())
            }
            MmError::AddressSpaceLimit => {
                exceeds(totals.total_vm, limits.address_space) || exceeds(totals.data_vm, limits.data)
            }
            MmError::LockLimit => exceeds(totals.locked_vm, limits.memlock),
            MmError::Overcommit => {
                let overcommit = self.context.overcommit();
                overcommit.mode() == OvercommitMode::Never
                    && overcommit.committed() + pages >= overcommit.limit()
            }
            _ => false,
        }
    }

    /// Whether munmap takes these arguments.
    pub(super) fn may_be_unmapped(addr: u64, len: u64) -> bool {
        addr % PAGE == 0 && len != 0 && addr <= TASK && len <= TASK - addr
    }

    /// Whether nothing but a want can forbid this mapping.
    pub(super) fn may_be_mapped(&self, args: &MmapArgs) -> bool {
        let kind = args.flags.bits() & 15;
        PLAIN.contains(args.flags)
            && args.flags.contains(MapFlags::ANONYMOUS | MapFlags::FIXED)
            && (kind == MapFlags::PRIVATE.bits() || kind == MapFlags::SHARED.bits())
            && args.prot.bits() & !PROTECTIONS == 0
            && args.offset % PAGE == 0
            && args.offset <= TASK
            && args.addr >= self.context.sysctl().mmap_min_addr
            && Self::may_be_unmapped(args.addr, args.len)
    }

    /// What mprotect answers where nothing is wanting; `None` for what the model does not know.
    pub(super) fn protected(&self, addr: u64, len: u64, prot: Prot) -> Option<Result<(), MmError>> {
        let known = prot.bits() & !PROTECTIONS == 0 && (len == 0 || Self::may_be_unmapped(addr, len));
        if !known || addr % PAGE != 0 {
            return None;
        }
        let needed = VmFlags::from_bits_truncate(prot.vm_flags().bits() << 4);
        let first_wrong =
            (addr / PAGE..(addr + page_align(len)) / PAGE).find_map(|at| match self.pages.get(&at) {
                None => Some(MmError::NotMapped),
                Some(page) => (!page.flags.contains(needed)).then_some(MmError::Denied),
            });
        Some(first_wrong.map_or(Ok(()), Err))
    }
}
