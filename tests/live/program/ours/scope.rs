//! What is not tried, since the two sides are known to differ there.

use kernmm::phys::PageSource;

use super::*;

impl Ours<'_, '_, '_> {
    /// Whether the two sides are known to differ here, or the outcome is left open.
    pub(crate) fn is_out_of_scope(&self, by: usize, op: &Op) -> bool {
        let touched = |addr: u64, len: u64| {
            let end = addr.saturating_add(len.max(1)).saturating_add(PAGE - 1) & !(PAGE - 1);
            let vmas = self.arena(by).into_iter();
            vmas.filter(move |vma| vma.start.get() < end && addr < vma.end.get())
        };
        match *op {
            // Linux forgets to take locked memory out of its sum; and it cuts off the tail of a range, and unmaps what lies where the range is to
            // go, before it sees that it may not go to the lowest addresses, or that its source has gone with the target.
            Op::Call(Call::Mremap { addr, old, new, flags, to }) => {
                let forgets = touched(addr, old).any(|vma| vma.flags.contains(VmFlags::LOCKED));
                let is_alias = old.wrapping_add(PAGE - 1) < PAGE;
                let on_itself = is_alias && (to..to.saturating_add(new)).contains(&addr);
                flags & 4 != 0 && forgets || flags & 2 != 0 && (to < BASE || on_itself)
            }
            // Files of the host have no holes made in them.
            Op::Call(Call::Madvise { addr, len, advice }) if advice == Advice::Remove as i32 => {
                touched(addr, len).any(|vma| is_kind(&vma, FileKind::Regular))
            }
            // A file grows up to the place where Linux would have written what it then cannot read.
            Op::WriteFile { file, addr, len, offset }
                if offset > self.size(OPENINGS[file].0) && !self.can_be_read(by, addr, len) =>
            {
                true
            }
            // And a file in memory gets the page.
            Op::WriteFile { file, addr, len, .. }
                if OPENINGS[file].0 != REGULAR && !self.can_be_read(by, addr, len) =>
            {
                true
            }
            // What was written behind the end of a file in memory becomes part of it there when the file grows.
            Op::WriteFile { file, len, offset, .. }
                if self.grows_over_tail(file, offset.saturating_add(len)) =>
            {
                true
            }
            Op::OtherWrites { file, bytes, offset } => {
                self.grows_over_tail(file, offset.saturating_add(bytes.get().len() as u64))
            }
            Op::Truncate { file, size } => self.grows_over_tail(file, size),
            // What copies a file to itself depends on the order of the copying.
            Op::ReadFile { file, addr, len, .. } | Op::WriteFile { file, addr, len, .. } => {
                let id = self.files[OPENINGS[file].0];
                touched(addr, len).any(|vma| vma.backing.file().is_some_and(|other| other.file == id))
            }
            // Which pages besides those that are asked for a file system writes, and so what becomes of the bytes behind the end, is its affair.
            Op::Call(Call::Msync { addr, len, flags }) if flags & 4 != 0 && self.has_tail(REGULAR) => {
                touched(addr, len).any(|vma| is_kind(&vma, FileKind::Regular))
            }
            // To find out what stands there would be a load.
            Op::Fetch { addr } => touched(addr, 1).any(|vma| vma.flags.contains(VmFlags::EXECUTE_ONLY_KEY)),
            _ => false,
        }
    }

    /// What is done for an operation: only what is known can be executed, else it is loaded.
    pub(crate) fn instead(&self, by: usize, op: Op) -> Op {
        let Op::Fetch { addr } = op else { return op };
        let mut bytes = [0; 2];
        let user = User::new(self.process(by));
        // Both lie in one page: the second fetch finds what the first has brought.
        let there = user.fetch(at(addr), &mut bytes[..1]).is_ok();
        let known = !there || user.fetch(at(addr + 1), &mut bytes[1..]).is_ok() && place::is_code(bytes);
        if known { op } else { Op::Load { addr, len: 1 } }
    }

    /// Whether all bytes of a range can be read, without touching them.
    fn can_be_read(&self, by: usize, addr: u64, len: u64) -> bool {
        let mut pages = pieces(addr, len as usize).map(|(start, _)| start);
        pages.all(|page| {
            let look = self.look(by, page);
            let Some(vma) = look.vma else { return false };
            let in_file = vma.backing.file().is_none_or(|file| {
                let size = self.vm.cache().size(self.vm.source(), file.file).unwrap_or(0);
                vma.pgoff_at(at(page)).get() < size.div_ceil(PAGE)
            });
            in_file && vma.flags.intersects(VmFlags::ACCESS) && look.state != Some(EntryState::Guard)
        })
    }

    /// Whether a file in memory is to grow, behind whose end something was written through a mapping.
    fn grows_over_tail(&self, opening: usize, to: u64) -> bool {
        let file = OPENINGS[opening].0;
        file != REGULAR && to > self.size(file) && self.has_tail(file)
    }

    /// Whether something was written behind the end of a file, in its last page.
    fn has_tail(&self, file: usize) -> bool {
        let size = self.size(file);
        let (cache, memory) = (self.vm.cache(), self.vm.source());
        let last = PgOff::new(size / PAGE).and_then(|page| cache.find(memory, self.files[file], page));
        last.is_some_and(|pfn| {
            let mut bytes = [0; PAGE as usize];
            let read = memory.read_frame(pfn, 0, &mut bytes).is_ok();
            // `find` has taken a reference.
            read && memory.put_page(pfn).is_ok()
                && bytes[(size % PAGE) as usize..].iter().any(|&byte| byte != 0)
        })
    }
}
