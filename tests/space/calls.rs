//! What each call does to the pages of the model.

use kernmm::flags::{Advice, MremapFlags};

use super::*;

impl Space<'_> {
    pub(super) fn mmap(&mut self, args: &MmapArgs) {
        let len = page_align(args.len);
        let at = match syscall::mmap(&mut self.mm, &mut self.tables, args) {
            Ok(at) => at,
            Err(error) => {
                let expected = !self.may_be_mapped(args) || self.is_short(error, len / PAGE, 1);
                assert!(expected, "{args:?}: {error}");
                return;
            }
        };
        let (from, to) = (at.get() / PAGE, (at.get() + len) / PAGE);
        let fixed = args.flags.contains(MapFlags::FIXED);
        let free = !(from..to).any(|page| self.pages.contains_key(&page));
        assert!(fixed || free, "{args:?} was placed over something");
        assert!(!fixed || at.get() == args.addr);
        let anonymous = args.flags.contains(MapFlags::ANONYMOUS);
        let shared = args.flags.bits() & 15 != 2 && args.flags.bits() & 15 != 8;
        let slot = self.mm.lookup(at).expect("what was mapped is there");
        // What a file's opening allows is checked against the rule, the rest comes from the arguments.
        let mut flags = args.prot.vm_flags() | VmFlags::MAY_ACCESS | self.mm.def_flags();
        let opened = if anonymous { None } else { args.file.ok().flatten() };
        if shared {
            flags |= VmFlags::SHARED | VmFlags::MAYSHARE;
            if opened.is_some_and(|opened| opened.mode == OpenMode::ReadOnly) {
                flags -= VmFlags::SHARED | VmFlags::MAYWRITE;
            }
        }
        if opened.is_some_and(|opened| !opened.tells_residency) {
            flags |= VmFlags::RESIDENCY_HIDDEN;
        }
        for (flag, means) in [
            (MapFlags::GROWSDOWN, VmFlags::GROWSDOWN),
            (MapFlags::LOCKED, VmFlags::LOCKED),
            (MapFlags::NORESERVE, VmFlags::NORESERVE),
            (MapFlags::STACK, VmFlags::NOHUGEPAGE),
            (MapFlags::SYNC, VmFlags::SYNC),
        ] {
            if args.flags.contains(flag) {
                flags |= means;
            }
        }
        if self.context.overcommit().mode() == OvercommitMode::Never {
            // All is reserved.
            flags -= VmFlags::NORESERVE;
        }
        if args.flags.bits() & 15 == 8 {
            flags |= VmFlags::DROPPABLE | VmFlags::NORESERVE | VmFlags::WIPEONFORK | VmFlags::DONTDUMP;
            // What mlockall asks for all to come does not reach these.
            flags -= VmFlags::LOCKED_MASK;
        }
        let object = self.mm.vma(slot).backing.file().map(|file| file.open.0.get());
        let first = if anonymous { 0 } else { args.offset / PAGE };
        self.clear(from, to);
        self.fill(from, to, |page| Page { flags, file: object.map(|object| (object, first + page - from)) });
    }

    pub(super) fn munmap(&mut self, addr: u64, len: u64) {
        let may = Self::may_be_unmapped(addr, len);
        match syscall::munmap(&mut self.mm, &mut self.tables, addr, len) {
            Ok(()) => {
                assert!(may, "munmap of {len:#x} bytes from {addr:#x}");
                self.clear(addr / PAGE, (addr + page_align(len)) / PAGE);
            }
            Err(error) => {
                let expected = !may || self.is_short(error, 0, 1);
                assert!(expected, "munmap of {len:#x} bytes from {addr:#x}: {error}");
            }
        }
    }

    pub(super) fn mprotect(&mut self, addr: u64, len: u64, prot: Prot) {
        let expected = self.protected(addr, len, prot);
        let result = syscall::mprotect(&mut self.mm, &mut self.tables, addr, len, prot);
        if let Some(expected) = expected {
            let short = result.is_err_and(|error| self.is_short(error, page_align(len) / PAGE, 2));
            assert!(short || result == expected, "mprotect of {len:#x} bytes from {addr:#x}: {result:?}");
        }
        let end = addr.wrapping_add(page_align(len)) / PAGE;
        let grows = prot.intersects(Prot::GROWSDOWN | Prot::GROWSUP);
        match result {
            Ok(()) | Err(MmError::NotMapped | MmError::Denied) if !grows => {
                let may = |page: &Page| {
                    page.flags.contains(VmFlags::from_bits_truncate(prot.vm_flags().bits() << 4))
                };
                for at in addr / PAGE..end {
                    match self.pages.get_mut(&at).filter(|page| may(page)) {
                        Some(page) => page.flags = (page.flags - VmFlags::ACCESS) | prot.vm_flags(),
                        None => break,
                    }
                }
            }
            Ok(()) => self.resync(true),
            Err(_) => self.resync(true),
        }
    }

    pub(super) fn mremap(&mut self, addr: u64, old: u64, new: u64, flags: u64, to: u64) {
        let bits = MremapFlags::from_bits_retain(flags);
        let several = bits.contains(MremapFlags::FIXED) && page_align(old) == page_align(new);
        let result = syscall::mremap(&mut self.mm, &mut self.tables, addr, old, new, bits, to);
        let Ok(at) = result else {
            // Several VMAs move one by one.
            return self.resync(several);
        };
        let (old, new) = (page_align(old) / PAGE, page_align(new) / PAGE);
        let (from, at) = (addr / PAGE, at.get() / PAGE);
        let source: Vec<(u64, Page)> =
            self.pages.range(from..from + old.min(new)).map(|(&page, &what)| (page, what)).collect();
        let shape = self.pages.get(&from).copied().or_else(|| source.first().map(|&(_, page)| page));
        if at == from {
            self.clear(from + new, from + old);
        } else if !several {
            assert!(
                bits.contains(MremapFlags::FIXED)
                    || (at..at + new).all(|page| !self.pages.contains_key(&page))
            );
            self.clear(at, at + new);
        }
        let keep = bits.contains(MremapFlags::DONTUNMAP);
        if at != from {
            if !keep {
                self.clear(from, from + old);
            }
            for &(page, what) in &source {
                self.pages.insert(page - from + at, what);
            }
            if keep {
                self.resync_locks(&source);
            }
        }
        // What is new continues the file.
        let Some(shape) = shape else { return };
        for page in old.min(new)..new {
            let file = shape.file.map(|(object, first)| (object, first + page));
            self.pages.insert(at + page, Page { file, ..shape });
        }
    }

    /// What stays mapped without its pages is no longer locked, and with it the VMA that it was or has become part of.
    fn resync_locks(&mut self, source: &[(u64, Page)]) {
        if source.iter().any(|(_, page)| page.flags.contains(VmFlags::LOCKED)) {
            let seen = self.seen();
            for (page, what) in &mut self.pages {
                if let Some(seen) = seen.get(page) {
                    what.flags = (what.flags - VmFlags::LOCKED_MASK) | (seen.flags & VmFlags::LOCKED_MASK);
                }
            }
        }
    }

    pub(super) fn madvise(&mut self, addr: u64, len: u64, advice: i32) {
        let result = syscall::madvise(&mut self.mm, &mut self.tables, addr, len, advice);
        let end = addr.wrapping_add(page_align(len)) / PAGE;
        let change = |flags: VmFlags| match Advice::from_raw(advice) {
            Some(Advice::Normal) => flags - VmFlags::RAND_READ - VmFlags::SEQ_READ,
            Some(Advice::Random) => (flags - VmFlags::SEQ_READ) | VmFlags::RAND_READ,
            Some(Advice::Sequential) => (flags - VmFlags::RAND_READ) | VmFlags::SEQ_READ,
            Some(Advice::DontFork) => flags | VmFlags::DONTCOPY,
            Some(Advice::DoFork) => flags - VmFlags::DONTCOPY,
            Some(Advice::WipeOnFork) => flags | VmFlags::WIPEONFORK,
            Some(Advice::KeepOnFork) => flags - VmFlags::WIPEONFORK,
            Some(Advice::DontDump) => flags | VmFlags::DONTDUMP,
            Some(Advice::DoDump) => flags - VmFlags::DONTDUMP,
            Some(Advice::Mergeable) if !flags.intersects(VmFlags::MAYSHARE | VmFlags::DROPPABLE) => {
                flags | VmFlags::MERGEABLE
            }
            Some(Advice::Unmergeable) => flags - VmFlags::MERGEABLE,
            Some(Advice::HugePage) => (flags - VmFlags::NOHUGEPAGE) | VmFlags::HUGEPAGE,
            Some(Advice::NoHugePage) => (flags - VmFlags::HUGEPAGE) | VmFlags::NOHUGEPAGE,
            _ => flags,
        };
        match result {
            Ok(()) | Err(MmError::NotMapped) => {
                for (_, page) in self.pages.range_mut(addr / PAGE..end.max(addr / PAGE)) {
                    page.flags = change(page.flags);
                }
            }
            // A VMA that cannot follow ends the call.
            Err(_) => self.resync(true),
        }
    }

    /// Sets lock flags up to the first hole.
    pub(super) fn lock(&mut self, addr: u64, len: u64, lock: VmFlags) {
        let start = addr & !(PAGE - 1);
        let len = page_align(len.wrapping_add(addr & (PAGE - 1)));
        self.lock_until_hole(start / PAGE, start.wrapping_add(len) / PAGE, lock);
    }

    pub(super) fn lock_until_hole(&mut self, from: u64, to: u64, lock: VmFlags) {
        for at in from..to {
            match self.pages.get_mut(&at) {
                Some(page) => page.flags = (page.flags - VmFlags::LOCKED_MASK) | lock,
                None => break,
            }
        }
    }

    pub(super) fn lock_pages(&mut self, from: u64, to: u64, lock: VmFlags) {
        // A VMA that could not be changed for want of anything is passed over; whole VMAs never want anything.
        for (_, page) in self.pages.range_mut(from..to) {
            // What may be dropped is never locked.
            if !page.flags.contains(VmFlags::DROPPABLE) {
                page.flags = (page.flags - VmFlags::LOCKED_MASK) | lock;
            }
        }
    }

    pub(super) fn touch(&mut self, addr: u64, touch: Touch) {
        let at = VirtAddr::from(addr);
        let lowest = self.pages.range(addr / PAGE..).next().map(|(&page, &what)| (page, what));
        let Ok(slot) = self.mm.find_vma_or_grow(at) else { return };
        let vma = self.mm.vma(slot);
        assert!(vma.range().contains(at));
        if let Some((page, what)) = lowest.filter(|&(page, _)| page > addr / PAGE) {
            assert!(what.flags.contains(VmFlags::GROWSDOWN), "only what grows down grows");
            self.fill(addr / PAGE, page, |_| what);
        }
        if self.mm.touch_needs_anon(&vma, at, touch) {
            let _ = self.mm.prepare_anon(slot);
        }
    }
}
