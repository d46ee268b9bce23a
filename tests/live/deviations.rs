//! Where ours differs from Linux on purpose: such operations are left out.

use std::ops::Range;

use kernmm::flags::{MapFlags, MremapFlags, VmFlags};
use kernmm::mm::Vma;

use super::call::Call;
use super::ops::Op;
use super::world::World;

const PAGE: u64 = 4096;

impl World<'_> {
    /// What we answer otherwise than Linux on purpose: it forgets to take locked memory out of its sum when that stays mapped
    /// without its pages; and it cuts off a range's tail, and unmaps what lies where the range is to go, before it sees that it may not go to
    /// the lowest addresses, that its source has gone with the target, that a limit forbids to leave the source mapped, or that the vdso would be divided.
    pub(super) fn meets_known_bug(&self, op: &Op) -> bool {
        if self.divides_in_vain(op) {
            return true;
        }
        if let Op::Call(Call::Mmap { addr, len, flags, .. }) | Op::Mmap2 { addr, len, flags, .. } = *op {
            return flags & MapFlags::FIXED.bits() != 0 && self.leaves_cuts(addr, len);
        }
        let Op::Call(Call::Mremap { addr, old, new, flags, to }) = *op else { return false };
        let end = addr.saturating_add(old);
        let locked = |vma: &Vma| vma.flags.contains(VmFlags::LOCKED);
        let touched = |vma: &Vma| vma.start.get() < end && addr < vma.end.get();
        let forgets = flags & 4 != 0 && self.arena().any(|vma| locked(&vma) && touched(&vma));
        let fixed = flags & 2 != 0;
        let unmaps = to.saturating_add(new) > self.mm.context().sysctl().mmap_min_addr;
        let is_alias = old.wrapping_add(PAGE - 1) < PAGE;
        let on_itself = is_alias && (to..to.saturating_add(new)).contains(&addr);
        let unmaps_in_vain = flags & 4 != 0 && self.unmaps_in_vain(addr..end, to);
        forgets || fixed && (on_itself || unmaps_in_vain || to < PAGE && (new < old || unmaps))
    }

    /// Whether a limit forbids to leave mapped what is to go to `to` as well, once what lies there is unmapped. Several VMAs go one by one.
    fn unmaps_in_vain(&self, from: Range<u64>, to: u64) -> bool {
        let part = |vma: &Vma, start: u64, end: u64| {
            vma.end.get().min(end).saturating_sub(vma.start.get().max(start)) / PAGE
        };
        let limits = self.mm.rlimits();
        let (mut total_vm, mut data_vm) = (self.mm.totals().total_vm, self.mm.totals().data_vm);
        for vma in self.arena() {
            let pages = part(&vma, from.start, from.end);
            let start = to.saturating_add(vma.start.get().saturating_sub(from.start));
            let end = start.saturating_add(pages * PAGE);
            let freed: u64 = self.arena().map(|old| part(&old, start, end)).sum();
            let data = self.arena().filter(|old| old.flags.is_data()).map(|old| part(&old, start, end));
            let data_pages = if vma.flags.is_data() { pages } else { 0 };
            total_vm = total_vm - freed + pages;
            data_vm = data_vm - data.sum::<u64>() + data_pages;
            let most = if limits.data == 0 { limits.data_max } else { limits.data };
            let is_data_forbidden = data_pages != 0 && data_vm > most / PAGE;
            if pages != 0 && (total_vm > limits.address_space / PAGE || is_data_forbidden) {
                return freed != 0;
            }
        }
        false
    }

    fn is_limited(&self) -> bool {
        let limits = self.mm.rlimits();
        (limits.address_space, limits.data) != (u64::MAX, u64::MAX)
    }

    /// Whether Linux has cut or unmapped something by the time that it meets a border inside the vdso, which it does not divide.
    fn divides_in_vain(&self, op: &Op) -> bool {
        let at = |at: u64| self.arena().find(|vma| vma.start.get() < at && at < vma.end.get());
        let is_piece = |border: u64| at(border).is_some_and(|vma| !vma.may_split());
        let end = |addr: u64, len: u64| addr.saturating_add(len.checked_next_multiple_of(PAGE).unwrap_or(0));
        let cuts = |start: u64, end: u64| at(start).is_some_and(|vma| vma.may_split()) && is_piece(end);
        match *op {
            Op::Call(Call::Munmap { addr, len }) => cuts(addr, end(addr, len)),
            Op::Call(Call::Mmap { addr, len, flags, .. }) | Op::Mmap2 { addr, len, flags, .. } => {
                flags & MapFlags::FIXED.bits() != 0 && cuts(addr, end(addr, len))
            }
            Op::Call(Call::Mremap { addr, old, new, flags, to })
                if flags & MremapFlags::FIXED.bits() != 0 =>
            {
                // Each VMA of the range goes to a part of the target that is unmapped for it.
                let borders = self.arena().flat_map(|vma| [vma.start.get(), vma.end.get()]);
                let inside = borders.filter(|border| (addr..end(addr, old)).contains(border));
                let parts = inside.map(|border| to.saturating_add(border - addr));
                let ends = [addr, end(addr, old), end(addr, new), to, end(to, new)];
                parts.chain(ends).any(is_piece)
            }
            Op::Call(Call::Mremap { addr, old, new, .. }) => {
                new < old && cuts(end(addr, new), end(addr, old))
            }
            _ => false,
        }
    }

    /// Whether Linux, if a limit forbids what is to be mapped there, leaves the VMAs at both ends of the range cut in two.
    fn leaves_cuts(&self, addr: u64, len: u64) -> bool {
        let inside = |vma: &Vma, at: u64| vma.start.get() < at && at < vma.end.get();
        let ends = [addr, addr.saturating_add(len.checked_next_multiple_of(PAGE).unwrap_or(0))];
        self.is_limited() && self.arena().any(|vma| ends.iter().any(|&end| inside(&vma, end)))
    }
}
