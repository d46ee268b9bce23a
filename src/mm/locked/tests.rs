//! What is found without the address space's lock, and when nothing is.

use std::vec::Vec;

use crate::addr::{PAGE_SIZE_U64 as PAGE, VirtAddr, VirtRange};
use crate::collections::Slot;
use crate::flags::{Advice, MapFlags, MremapFlags, Prot, VmFlags};
use crate::mm::{
    Advised, EmptyTables, FileRef, GapRoom, Mm, MmContext, MmError, MmSlot, MmStores, NullTables, Overcommit,
    OvercommitMode, Sysctl, Tables, Vma, VmaNode, VmaSlot,
};
use crate::rmap::AnonNode;
use crate::syscall::{self, MmapArgs};

const AT: u64 = 0x10_0000_0000;
const RW: Prot = Prot::READ.union(Prot::WRITE);

fn some<T: Default>(n: usize) -> Vec<T> {
    (0..n).map(|_| T::default()).collect()
}

fn with_context(test: impl FnOnce(&MmContext<'_>)) {
    let (mms, vma_nodes, vmas): (Vec<MmSlot>, Vec<VmaNode>, Vec<VmaSlot>) = (some(4), some(64), some(64));
    let (anon_vmas, gaps): (Vec<AnonNode>, Vec<GapRoom>) = (some(64), some(8));
    let stores =
        MmStores { mms: &mms, vma_nodes: &vma_nodes, vmas: &vmas, anon_vmas: &anon_vmas, gaps: &gaps };
    let overcommit = Overcommit::new(OvercommitMode::Guess, 1 << 20, 0);
    test(&MmContext::new(stores, Sysctl::default(), overcommit));
}

fn page(page: u64) -> VirtAddr {
    VirtAddr::from(AT + page * PAGE)
}

fn map(mm: &mut Mm<'_>, tables: &mut impl Tables, from: u64, pages: u64, prot: Prot) {
    let flags = MapFlags::PRIVATE | MapFlags::ANONYMOUS | MapFlags::FIXED;
    let args = MmapArgs { addr: page(from).get(), len: pages * PAGE, prot, flags, file: Ok(None), offset: 0 };
    syscall::mmap(mm, tables, &args).unwrap();
}

/// Whether the VMA that holds a page can be locked.
fn open(mm: &Mm<'_>, at: u64) -> bool {
    let locked = mm.context().lock_vma(mm.id(), page(at));
    locked.is_some_and(|locked| locked.vma() == mm.vma(mm.lookup(page(at)).unwrap()))
}

#[test]
fn a_vma_is_found_without_the_lock_unless_it_changed_in_this_section() {
    with_context(|context| {
        let (mut mm, mut tables) = (Mm::new(context).unwrap(), NullTables::default());
        for at in [0, 10, 20] {
            map(&mut mm, &mut tables, at, 4, RW);
        }
        assert!(!open(&mm, 0) && !open(&mm, 10));
        mm.end_section();
        assert!(open(&mm, 0) && open(&mm, 13) && open(&mm, 20));
        assert!(context.lock_vma(mm.id(), page(4)).is_none() && context.lock_vma(mm.id(), page(9)).is_none());
        syscall::mprotect(&mut mm, &mut tables, page(11).get(), PAGE, Prot::READ).unwrap();
        assert!(open(&mm, 0) && !open(&mm, 10) && !open(&mm, 11) && !open(&mm, 12) && open(&mm, 20));
        mm.end_section();
        assert!((10..14).all(|at| open(&mm, at)));
        // Found by the tree, and then by what was found last.
        mm.shared().recent().clear();
        assert!(open(&mm, 21) && mm.shared().recent().slots().count() == 2 && open(&mm, 21));
        syscall::munmap(&mut mm, &mut tables, page(20).get(), 4 * PAGE).unwrap();
        mm.end_section();
        assert!(context.lock_vma(mm.id(), page(21)).is_none());
        syscall::exit(&mut mm, &mut tables);
    });
}

#[test]
fn a_slot_that_became_another_address_spaces_is_not_taken_for_the_old_ones() {
    with_context(|context| {
        let (mut mm, mut tables) = (Mm::new(context).unwrap(), NullTables::default());
        map(&mut mm, &mut tables, 0, 4, RW);
        mm.end_section();
        let (id, slot) = (mm.id(), mm.lookup(page(0)).unwrap());
        syscall::exit(&mut mm, &mut tables);
        let mut other = Mm::new(context).unwrap();
        map(&mut other, &mut tables, 0, 4, RW);
        other.end_section();
        assert_eq!(other.lookup(page(0)), Some(slot));
        // As if a look-up had come by just before it went.
        mm.shared().recent().note(page(0), slot);
        assert!(context.lock_vma(id, page(0)).is_none() && open(&other, 0));
        mm.shared().recent().clear();
        syscall::exit(&mut other, &mut tables);
        drop((mm, other));
        // Nor is an address space that has the slot of an old one.
        let mut heir = Mm::new(context).unwrap();
        map(&mut heir, &mut tables, 0, 4, RW);
        heir.end_section();
        let names = [id, heir.id()].map(|id| context.lock_vma(id, page(0)).is_some());
        assert_eq!(names, [false, true], "{:?} after {id:?}", heir.id());
        syscall::exit(&mut heir, &mut tables);
    });
}

#[test]
fn vmas_forget_their_sections_when_the_count_wraps() {
    with_context(|context| {
        let (mut mm, mut tables) = (Mm::new(context).unwrap(), NullTables::default());
        mm.shared().sections().set(1);
        map(&mut mm, &mut tables, 0, 4, RW);
        mm.end_section();
        // Four thousand million sections later.
        mm.shared().sections().set(u32::MAX);
        map(&mut mm, &mut tables, 10, 4, RW);
        assert!(open(&mm, 0) && !open(&mm, 10));
        mm.end_section();
        assert!(open(&mm, 0) && open(&mm, 10));
        syscall::exit(&mut mm, &mut tables);
    });
}

/// Tables that look whether faults can get in while pages change.
struct Watch<'c> {
    context: &'c MmContext<'c>,
    mm: crate::mm::MmId,
    asked: u32,
    objects: NullTables,
}

impl Watch<'_> {
    fn look(&mut self, range: VirtRange) {
        self.asked += 1;
        assert!(!range.is_empty(), "no pages");
        assert!(self.context.lock_vma(self.mm, range.start()).is_none(), "a fault got in");
    }
}

impl Tables for Watch<'_> {
    fn unmap(&mut self, parts: impl Iterator<Item = VirtRange>, _: Option<EmptyTables>) {
        parts.for_each(|part| self.look(part));
    }

    fn protect(&mut self, _: &Vma, range: VirtRange) {
        self.look(range);
    }

    fn prepare_move(&mut self, _: &Vma, from: VirtRange, _: VirtAddr) -> Result<(), MmError> {
        self.look(from);
        Ok(())
    }

    fn move_pages(&mut self, _: &Vma, from: VirtRange, to: VirtAddr) {
        self.look(from);
        self.look(VirtRange::with_len(to, PAGE).unwrap());
    }

    fn advise(&mut self, _: &Vma, range: VirtRange, _: Advice) -> Result<Advised, MmError> {
        self.look(range);
        Ok(Advised::Done)
    }

    fn fork(&mut self, _: &mut Self, vma: &Vma) -> Result<(), MmError> {
        self.look(vma.range());
        Ok(())
    }

    fn shared_anonymous(&mut self, mm: &Mm<'_>, pages: u64, flags: VmFlags) -> Result<FileRef, MmError> {
        self.objects.shared_anonymous(mm, pages, flags)
    }

    fn close(&mut self, _: Slot, vma: &Vma) {
        self.look(vma.range());
    }
}

#[test]
fn no_fault_is_in_a_vma_whose_pages_change() {
    type Call = fn(&mut Mm<'_>, &mut Watch<'_>) -> Result<(), MmError>;
    let calls: [(&str, Call); 9] = [
        ("munmap", |mm, tables| syscall::munmap(mm, tables, page(1).get(), 2 * PAGE)),
        ("munmap up to the next", |mm, tables| {
            map(mm, tables, 6, 2, RW);
            syscall::munmap(mm, tables, page(2).get(), 4 * PAGE)
        }),
        ("mmap over it", |mm, tables| {
            map(mm, tables, 1, 1, Prot::READ);
            Ok(())
        }),
        ("mprotect", |mm, tables| syscall::mprotect(mm, tables, page(1).get(), PAGE, Prot::READ)),
        ("mremap", |mm, tables| {
            let flags = MremapFlags::MAYMOVE | MremapFlags::FIXED;
            syscall::mremap(mm, tables, page(0).get(), PAGE, PAGE, flags, page(30).get()).map(drop)
        }),
        ("mremap, keeping the source", |mm, tables| {
            let flags = MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP;
            syscall::mremap(mm, tables, page(0).get(), 4 * PAGE, 4 * PAGE, flags, 0).map(drop)
        }),
        ("madvise", |mm, tables| syscall::madvise(mm, tables, page(0).get(), PAGE, 4)),
        ("fork", |mm, tables| {
            let mut child = mm.new_child()?;
            let mut theirs = Watch { mm: child.id(), objects: NullTables::default(), ..*tables };
            syscall::fork(mm, tables, &mut child, &mut theirs)?;
            syscall::exit(&mut child, &mut theirs);
            Ok(())
        }),
        ("exit", |mm, tables| {
            syscall::exit(mm, tables);
            Ok(())
        }),
    ];
    for (name, call) in calls {
        with_context(|context| {
            let mut mm = Mm::new(context).unwrap();
            let mut tables = Watch { context, mm: mm.id(), asked: 0, objects: NullTables::default() };
            map(&mut mm, &mut tables, 0, 4, RW);
            mm.prepare_anon(mm.lookup(page(0)).unwrap()).unwrap();
            mm.end_section();
            assert!(open(&mm, 0), "{name}");
            call(&mut mm, &mut tables).unwrap();
            assert!(tables.asked > 0, "{name} changed no pages");
            syscall::exit(&mut mm, &mut tables);
        });
    }
}
