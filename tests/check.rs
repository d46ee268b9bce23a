//! Each law broken on purpose, by what anybody with the machine's metadata could do, and named by the check.

use std::mem::ManuallyDrop;

use kernmm::addr::{PageOrder, Pfn, VirtAddr};
use kernmm::cache::{CacheCheckError, FileId};
use kernmm::collections::Slot;
use kernmm::fault::{FrameTally, PagesCheckError};
use kernmm::flags::{GfpFlags, MapFlags, PageFlags, Prot};
use kernmm::memory::{Broken, Memory, Process, User, Vm};
use kernmm::mm::{FileKind, FileRef};
use kernmm::phys::PageSource;
use kernmm::platform::CpuId;
use kernmm::platform::hosted::{Disk, Latency, Machine};
use kernmm::rmap::{AnonFault, AnonVmaId};
use kernmm::syscall::{MapFile, MmapArgs, OpenMode};
use kernmm::table::{Caching, Leaf, Mapped, PageTable, Pte, PteBits, X86_64};

const PAGE: u64 = 4096;
const RW: Prot = Prot::READ.union(Prot::WRITE);

type Mem<'m> = Memory<'m, Machine>;
type Proc<'v, 'a, 'm> = Process<'v, 'a, Mem<'m>>;

/// A machine with two processes that have a little of everything.
struct Scene<'s, 'v, 'a, 'm> {
    memory: &'a Mem<'m>,
    vm: &'v Vm<'a, Mem<'m>>,
    parent: &'s Proc<'v, 'a, 'm>,
    child: &'s Proc<'v, 'a, 'm>,
    file: FileId,
    /// A page that both have, one that the parent alone has, the page of zeros.
    private: u64,
    /// Pages of a file of a store: the first was written through the mapping, the second read.
    shared: u64,
    /// One page of shared memory.
    shmem: u64,
}

impl<'a, 'm> Scene<'_, '_, 'a, 'm> {
    fn check(&self) -> Result<(), Broken> {
        let mut tallies = vec![FrameTally::new(); self.memory.phys().slots()];
        self.vm.check(&[self.parent, self.child], |_| 0, &mut tallies)
    }

    fn root(&self) -> Pfn {
        self.parent.with(|mm| mm.shared().pgd()).unwrap()
    }

    fn entry(&self, at: u64) -> Mapped {
        let table = PageTable::<_, X86_64>::at(self.memory, self.root());
        table.get(&self.memory.pin(), VirtAddr::from(at)).mapped().unwrap()
    }

    fn pfn(&self, at: u64) -> Pfn {
        self.entry(at).pfn
    }

    fn page(&self, at: u64) -> &kernmm::phys::Page {
        self.memory.page(self.pfn(at)).unwrap()
    }

    /// Writes an entry of the parent's and says no more about it.
    fn set(&self, at: u64, pte: Pte) {
        let table = PageTable::<_, X86_64>::at(self.memory, self.root());
        let addr = VirtAddr::from(at);
        table.ensure(addr, GfpFlags::KERNEL).unwrap();
        let pin = self.memory.pin();
        let Leaf::Table(leaf) = table.lock(&pin, addr) else { panic!("no table at {at:#x}") };
        leaf.set(addr, pte);
    }

    fn set_bits(&self, at: u64, change: impl FnOnce(PteBits) -> PteBits) {
        let entry = self.entry(at);
        self.set(at, Pte::mapping(entry.pfn, change(entry.bits)));
    }
}

fn map(process: &Proc<'_, '_, '_>, pages: u64, flags: MapFlags, file: Option<MapFile>) -> u64 {
    let flags = if file.is_some() { flags } else { flags | MapFlags::ANONYMOUS };
    process
        .mmap(&MmapArgs { addr: 0, len: pages * PAGE, prot: RW, flags, file: Ok(file), offset: 0 })
        .unwrap()
        .get()
}

/// Sets the scene, breaks something, and answers with what the check says. The machine is given up as it is.
fn broken(wreck: impl FnOnce(&Scene<'_, '_, '_, '_>)) -> Broken {
    try_break(wreck).expect_err("the check finds nothing")
}

fn pages_broken(wreck: impl FnOnce(&Scene<'_, '_, '_, '_>)) -> PagesCheckError {
    match broken(wreck) {
        Broken::Pages(error) => error,
        other => panic!("{other}"),
    }
}

fn try_break(wreck: impl FnOnce(&Scene<'_, '_, '_, '_>)) -> Result<(), Broken> {
    let machine = Machine::pc(8 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let disk = Disk::new(&machine);
    disk.put(7, &[5; 4 * PAGE as usize]);
    let memory = Memory::on(&machine).unwrap();
    // Past tidying up, it is left as it is.
    let vm: ManuallyDrop<Vm<'_, _>> = ManuallyDrop::new(Vm::on(&memory).unwrap());
    let parent = Process::new(&vm).unwrap();
    let user = User::new(&parent);
    let file = vm.cache().open(&memory, &disk, 7).unwrap();
    let mapped = FileRef::new(file.0.get(), 1, FileKind::Regular).unwrap();
    let mapped = MapFile::new(mapped, OpenMode::ReadWrite);
    let at = VirtAddr::from;
    let private = map(&parent, 4, MapFlags::PRIVATE, None);
    let shared = map(&parent, 3, MapFlags::SHARED, Some(mapped));
    let shmem = map(&parent, 1, MapFlags::SHARED, None);
    user.store(at(private), b"both").unwrap();
    user.store(at(shared), b"x").unwrap();
    user.load_byte(at(shared + PAGE)).unwrap();
    user.store(at(shmem), b"y").unwrap();
    let child = parent.fork().unwrap();
    user.store(at(private + PAGE), b"mine").unwrap();
    user.load_byte(at(private + 2 * PAGE)).unwrap();
    disk.set_latency(Latency::Polls(1000));
    let scene =
        Scene { memory: &memory, vm: &vm, parent: &parent, child: &child, file, private, shared, shmem };
    scene.check().unwrap_or_else(|broken| panic!("before anything is broken: {broken}"));
    wreck(&scene);
    let result = scene.check();
    parent.deactivate();
    std::mem::forget((parent, child));
    result
}

#[test]
fn an_entry_where_no_vma_is() {
    let error =
        pages_broken(|scene| scene.set(0x10_0000, Pte::mapping(scene.vm.zero_page(), PteBits::SPECIAL)));
    assert!(matches!(error, PagesCheckError::NoVma(_, at) if at.get() == 0x10_0000), "{error}");
}

#[test]
fn an_entry_that_allows_more_than_its_vma() {
    let error = pages_broken(|scene| scene.set_bits(scene.private + PAGE, |bits| bits | PteBits::EXEC));
    assert!(matches!(error, PagesCheckError::TooMuch(_, _, PteBits::EXEC)), "{error}");
    let error = pages_broken(|scene| {
        scene.parent.mprotect(scene.private, 4 * PAGE, Prot::READ).unwrap();
        scene.set_bits(scene.private + PAGE, |bits| bits | PteBits::WRITE);
    });
    assert!(matches!(error, PagesCheckError::TooMuch(_, _, PteBits::WRITE)), "{error}");
    let error = pages_broken(|scene| {
        let before = scene.entry(scene.private + PAGE);
        scene.parent.mprotect(scene.private, 4 * PAGE, Prot::NONE).unwrap();
        scene.set(scene.private + PAGE, Pte::mapping(before.pfn, PteBits::READ | PteBits::USER));
    });
    assert!(matches!(error, PagesCheckError::TooMuch(_, _, PteBits::READ)), "{error}");
}

#[test]
fn a_private_page_that_may_be_written_and_is_not_exclusive() {
    let error = pages_broken(|scene| scene.set_bits(scene.private, |bits| bits | PteBits::WRITE));
    assert!(matches!(error, PagesCheckError::WritableShared(..)), "{error}");
}

#[test]
fn a_page_that_says_it_is_exclusive_and_is_mapped_twice() {
    let error = pages_broken(|scene| {
        scene.page(scene.private).set_flags(PageFlags::ANON_EXCLUSIVE);
    });
    assert!(matches!(error, PagesCheckError::NotExclusive(_)), "{error}");
}

#[test]
fn a_page_of_a_file_that_may_be_written_unnoticed() {
    let error = pages_broken(|scene| scene.set_bits(scene.shared + PAGE, |bits| bits | PteBits::WRITE));
    assert!(matches!(error, PagesCheckError::WritableClean(..)), "{error}");
}

#[test]
fn a_page_of_zeros_that_may_be_written_or_was() {
    let error = pages_broken(|scene| scene.set_bits(scene.private + 2 * PAGE, |bits| bits | PteBits::WRITE));
    assert!(matches!(error, PagesCheckError::Special(..)), "{error}");
    let error = pages_broken(|scene| scene.memory.write_frame(scene.vm.zero_page(), 77, b"1").unwrap());
    assert_eq!(error, PagesCheckError::ZeroPage(77));
}

#[test]
fn an_entry_that_leads_to_a_free_frame_a_table_or_another_page() {
    let error = pages_broken(|scene| {
        let free = scene.memory.alloc_pages(GfpFlags::KERNEL, PageOrder::ZERO).unwrap();
        scene.memory.free_pages(free, PageOrder::ZERO).unwrap();
        scene.set(scene.private + 3 * PAGE, Pte::mapping(free, PteBits::READ | PteBits::USER));
    });
    assert!(matches!(error, PagesCheckError::NotAPage(..)), "{error}");
    let error = pages_broken(|scene| {
        scene.set(scene.private + 3 * PAGE, Pte::mapping(scene.root(), PteBits::READ | PteBits::USER));
    });
    assert!(matches!(error, PagesCheckError::NotAPage(..)), "{error}");
    let error = pages_broken(|scene| {
        let other = scene.entry(scene.shared + PAGE);
        scene.set(scene.shared + 2 * PAGE, Pte::Present(other));
    });
    assert!(matches!(error, PagesCheckError::WrongPage(..)), "{error}");
    let error = pages_broken(|scene| assert!(scene.page(scene.private).set_index(3)));
    assert!(matches!(error, PagesCheckError::WrongPage(..)), "{error}");
}

#[test]
fn counts_of_a_page_that_are_not_what_uses_it() {
    let error = pages_broken(|scene| assert!(scene.page(scene.private).try_get()));
    assert!(matches!(error, PagesCheckError::Count(_, 3, 2)), "{error}");
    let error = pages_broken(|scene| assert!(scene.page(scene.shared).put_unless_last()));
    assert!(matches!(error, PagesCheckError::Count(..)), "{error}");
    // Who holds a page may say so.
    assert_eq!(
        try_break(|scene| {
            assert!(scene.page(scene.private).try_get());
            let mut tallies = vec![FrameTally::new(); scene.memory.phys().slots()];
            let held = |pfn| u32::from(pfn == scene.pfn(scene.private));
            scene.vm.check(&[scene.parent, scene.child], held, &mut tallies).unwrap();
            assert!(scene.page(scene.private).put_unless_last());
        }),
        Ok(())
    );
}

#[test]
fn a_frame_that_nobody_has() {
    let error = pages_broken(|scene| {
        let lost = scene.memory.alloc_pages(GfpFlags::HIGHUSER, PageOrder::ZERO).unwrap();
        assert_ne!(lost, scene.root());
    });
    assert!(matches!(error, PagesCheckError::Leaked(_)), "{error}");
}

#[test]
fn what_the_kernel_has_mapped_is_not_lost_and_counted() {
    let sound = try_break(|scene| {
        let kernel = scene.vm.kernel_tables();
        let at = kernel.vmalloc(3 * PAGE, GfpFlags::KERNEL).unwrap();
        kernel.vmap(&[kernel.frame_at(at).unwrap(), scene.pfn(scene.private)], Caching::WriteBack).unwrap();
        scene.check().unwrap();
        kernel.vfree(at).unwrap();
    });
    assert_eq!(sound, Ok(()));
    let error = pages_broken(|scene| {
        let kernel = scene.vm.kernel_tables();
        let at = kernel.vmalloc(PAGE, GfpFlags::KERNEL).unwrap();
        assert!(scene.memory.page(kernel.frame_at(at).unwrap()).unwrap().try_get());
    });
    assert!(matches!(error, PagesCheckError::Count(_, 2, 1)), "{error}");
}

#[test]
fn a_table_that_hangs_on_nothing() {
    let error = pages_broken(|scene| {
        let _lost =
            PageTable::<_, X86_64>::create(scene.memory, Some(scene.vm.kernel_tables().pgd())).unwrap();
    });
    assert!(matches!(error, PagesCheckError::Table(_, 0)), "{error}");
}

#[test]
fn an_owner_of_anonymous_pages_that_counts_another_number() {
    let error = pages_broken(|scene| {
        let owner = AnonVmaId::new(scene.page(scene.private).mapping()).unwrap();
        scene.vm.context().anon_vmas().add_page(owner);
    });
    assert!(matches!(error, PagesCheckError::Anon(AnonFault::Pages(_, 3, 2))), "{error}");
}

#[test]
fn a_page_whose_owner_does_not_lead_to_all_that_map_it() {
    // Given to the child's owner, the parent's entry is not found any more.
    let error = pages_broken(|scene| {
        let owner_of = |process: &Proc<'_, '_, '_>| {
            process.with(|mm| mm.vma(mm.lookup(VirtAddr::from(scene.private)).unwrap()).anon.unwrap().id())
        };
        let (parent, child) = (owner_of(scene.parent), owner_of(scene.child));
        assert_ne!(parent, child);
        let anon_vmas = scene.vm.context().anon_vmas();
        anon_vmas.add_page(child);
        assert!(anon_vmas.remove_page(parent));
        assert!(scene.page(scene.private).set_mapping(child.get()));
    });
    assert!(matches!(error, PagesCheckError::Unreached(_, 2, 1)), "{error}");
}

#[test]
fn a_vma_that_is_not_on_its_files_list() {
    let slot_at =
        |scene: &Scene<'_, '_, '_, '_>, at| scene.parent.with(|mm| mm.lookup(VirtAddr::from(at)).unwrap());
    let error =
        pages_broken(|scene| scene.vm.cache().unshare(scene.file, slot_at(scene, scene.shared)).unwrap());
    assert!(matches!(error, PagesCheckError::Unlisted(4, 3)), "{error}");
    let error = pages_broken(|scene| {
        let slot = slot_at(scene, scene.shmem);
        let other = scene.page(scene.shmem).mapping();
        let other = FileId(core::num::NonZeroU32::new(other).unwrap());
        scene.vm.cache().unshare(other, slot).unwrap();
        scene.vm.cache().share(scene.file, slot).unwrap();
    });
    assert!(matches!(error, PagesCheckError::Cache(CacheCheckError::Sharers(..))), "{error}");
}

#[test]
fn a_page_of_a_file_that_says_it_is_elsewhere() {
    let error = pages_broken(|scene| {
        // Not mapped, so that the entries do not tell first.
        let page =
            scene.vm.cache().find(scene.memory, scene.file, kernmm::addr::PgOff::new(3).unwrap()).unwrap();
        assert!(scene.memory.page(page).unwrap().set_index(1));
    });
    assert!(matches!(error, PagesCheckError::Cache(CacheCheckError::Foreign(_, 3))), "{error}");
}

#[test]
fn counts_and_flags_of_a_files_pages_that_are_wrong() {
    let cache_error = |flags: PageFlags, clear: PageFlags| match pages_broken(|scene| {
        let page =
            scene.vm.cache().find(scene.memory, scene.file, kernmm::addr::PgOff::new(3).unwrap()).unwrap();
        scene.memory.page(page).unwrap().set_flags(flags);
        scene.memory.page(page).unwrap().clear_flags(clear);
    }) {
        PagesCheckError::Cache(error) => error,
        other => panic!("{other}"),
    };
    let none = PageFlags::empty();
    assert!(matches!(cache_error(PageFlags::DIRTY, none), CacheCheckError::Dirty(_, 1, 2)));
    assert!(matches!(cache_error(PageFlags::WRITEBACK, none), CacheCheckError::Io(_, 3)));
    assert!(matches!(cache_error(PageFlags::LOCKED, none), CacheCheckError::Flags(_, 3, _)));
    assert!(matches!(cache_error(PageFlags::LOCKED, PageFlags::UPTODATE), CacheCheckError::Io(_, 3)));
    assert!(matches!(cache_error(PageFlags::ANON, none), CacheCheckError::NotAPage(_, 3)));
    assert!(matches!(cache_error(PageFlags::SWAP_BACKED, none), CacheCheckError::Flags(_, 3, _)));
}

#[test]
fn a_file_with_fewer_users_than_mappings() {
    let error = pages_broken(|scene| {
        // The test's own, and then one of a mapping.
        scene.vm.cache().put_user(scene.memory, scene.file).unwrap();
        scene.vm.cache().put_user(scene.memory, scene.file).unwrap();
    });
    assert!(matches!(error, PagesCheckError::Cache(CacheCheckError::Users(_))), "{error}");
}

#[test]
fn address_spaces_that_nobody_names() {
    let machine = Machine::pc(8 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let (one, two) = (Process::new(&vm).unwrap(), Process::new(&vm).unwrap());
    let mut tallies = vec![FrameTally::new(); memory.phys().slots()];
    let named: &[&Proc<'_, '_, '_>] = &[&one];
    assert_eq!(vm.check(named, |_| 0, &mut tallies), Err(Broken::Spaces(2, 1)));
    assert_eq!(
        vm.check(&[&one, &two], |_| 0, &mut tallies[1..]),
        Err(Broken::Pages(PagesCheckError::TooFewTallies))
    );
    assert!(Slot::from_index(0).is_some());
    vm.assert_sound(&[&one, &two]);
}
