//! Page tables for replays: no contents.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::rc::Rc;

use kernmm::addr::{VirtAddr, VirtRange};
use kernmm::cache::Step;
use kernmm::collections::Slot;
use kernmm::flags::{Advice, VmFlags};
use kernmm::mm::{Advised, Backing, EmptyTables, FileRef, Mm, MmError, NullTables, Tables, Touch, Vma};

/// Page tables that know only why a page cannot be made resident: it lies beyond its file, or in a guard region.
#[derive(Clone, Default)]
pub(crate) struct Pages {
    /// Numbers objects, for parent and child.
    objects: Rc<RefCell<NullTables>>,
    guards: BTreeSet<u64>,
    /// Sizes of files and objects in pages, shared by parent and child.
    sizes: Rc<RefCell<HashMap<u32, u64>>>,
}

impl Pages {
    /// Notes the size of a file, in pages.
    pub(crate) fn set_size(&self, file: u32, pages: u64) {
        self.sizes.borrow_mut().insert(file, pages);
    }

    /// Those of a child, before anything is copied to it.
    pub(crate) fn of_child(&self) -> Self {
        Self { guards: BTreeSet::new(), ..self.clone() }
    }

    /// Whether the byte lies in a guard region.
    pub(crate) fn is_guard(&self, addr: VirtAddr) -> bool {
        self.guards.contains(&addr.vpn().get())
    }

    /// Whether the page, which is mapped by `vma`, lies in its file.
    pub(crate) fn lies_in_file(&self, vma: &Vma, page: u64) -> bool {
        let Backing::File(file) = vma.backing else { return true };
        let pgoff = vma.pgoff.get() + (page - vma.start.vpn().get());
        self.sizes.borrow().get(&file.file.0.get()).is_none_or(|&pages| pgoff < pages)
    }

    fn pages(range: VirtRange) -> Range<u64> {
        range.start().vpn().get()..range.end().vpn().get()
    }
}

impl Tables for Pages {
    fn unmap(&mut self, parts: impl Iterator<Item = VirtRange>, _emptied: Option<EmptyTables>) {
        for part in parts {
            self.guards.retain(|page| !Self::pages(part).contains(page));
        }
    }

    fn move_pages(&mut self, _vma: &Vma, from: VirtRange, to: VirtAddr) {
        let moved: Vec<u64> = self.guards.range(Self::pages(from)).copied().collect();
        for page in moved {
            self.guards.remove(&page);
            self.guards.insert(page - from.start().vpn().get() + to.vpn().get());
        }
    }

    fn populate(
        &mut self,
        mm: &Mm<'_>,
        slot: Slot,
        rest: &mut VirtRange,
        touch: Touch,
    ) -> Result<Step, MmError> {
        let vma = mm.vma(slot);
        // A guard is met before memory is asked for; the end of a file is after that.
        if Self::pages(*rest).next().is_some_and(|first| self.guards.contains(&first)) {
            return Err(MmError::Unreachable);
        }
        let _done = self.objects.borrow_mut().populate(mm, slot, rest, touch)?;
        let reachable = |page| !self.guards.contains(&page) && self.lies_in_file(&vma, page);
        if Self::pages(*rest).all(reachable) { Ok(Step::Done) } else { Err(MmError::Unreachable) }
    }

    fn advise(&mut self, _vma: &Vma, range: VirtRange, advice: Advice) -> Result<Advised, MmError> {
        match advice {
            Advice::GuardInstall => self.guards.extend(Self::pages(range)),
            Advice::GuardRemove => self.guards.retain(|page| !Self::pages(range).contains(page)),
            _ => {}
        }
        Ok(Advised::Done)
    }

    fn fork(&mut self, child: &mut Self, vma: &Vma) -> Result<(), MmError> {
        child.guards.extend(self.guards.range(Self::pages(vma.range())));
        Ok(())
    }

    fn shared_anonymous(&mut self, mm: &Mm<'_>, pages: u64, flags: VmFlags) -> Result<FileRef, MmError> {
        let object = self.objects.borrow_mut().shared_anonymous(mm, pages, flags)?;
        self.sizes.borrow_mut().insert(object.file.0.get(), pages);
        Ok(object)
    }
}
