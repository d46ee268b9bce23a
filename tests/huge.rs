//! Pages of 2 MiB for anonymous memory, on the simulated machine: who gets them, what makes small ones of them, and that nothing is lost or
//! counted wrongly by that. The answers are those of Linux 6.18.

use std::collections::BTreeMap;

use kernmm::addr::{PageOrder, Pfn, VirtAddr, VirtRange};
use kernmm::fault::{Access, Attempt, Fault, PageState, PinTerm, PinUse, Resolved, Signal};
use kernmm::flags::{Advice, GfpFlags, MapFlags, MremapFlags, PageFlags, Prot};
use kernmm::memory::{Memory, Process, Refused, User, Vm};
use kernmm::mm::{HugePages, MmError, RssKind, Sysctl};
use kernmm::phys::FailRule;
use kernmm::platform::hosted::{Machine, Mmu};
use kernmm::platform::{CpuId, FlushScope};
use kernmm::syscall::MmapArgs;
use kernmm::table::{EntryFormat, Found, Pae, PageTable, Pte, PteBits, Sv39, X86_64};

const PAGE: u64 = 4096;
const HUGE: u64 = 2 << 20;
const PAGES: u64 = HUGE / PAGE;
/// Where huge pages are tried: addresses of their own in every format.
const AT: u64 = 0x1000_0000;
const RW: Prot = Prot::READ.union(Prot::WRITE);
const FIXED: MremapFlags = MremapFlags::MAYMOVE.union(MremapFlags::FIXED);

/// A format and the machine that has it.
trait Arch: EntryFormat {
    const MMU: Mmu;
}
impl Arch for X86_64 {
    const MMU: Mmu = Mmu::X86_64;
}
impl Arch for Pae {
    const MMU: Mmu = Mmu::Pae;
}
impl Arch for Sv39 {
    const MMU: Mmu = Mmu::Sv39;
}

type Mem<'m> = Memory<'m, Machine>;
type Virt<'a, 'm, F> = Vm<'a, Mem<'m>, F>;
type Proc<'v, 'a, 'm, F> = Process<'v, 'a, Mem<'m>, F>;

fn sysctl<F: Arch>(huge_pages: HugePages) -> Sysctl {
    let linux = Sysctl::default();
    Sysctl { task_size: linux.task_size.min(F::USER_END - PAGE), huge_pages, ..linux }
}

/// Runs a test on a machine with so much RAM and one CPU or two, and looks afterwards whether all frames are back.
fn on_machine<F: Arch>(huge_pages: HugePages, test: impl FnOnce(&Virt<'_, '_, F>)) {
    let machine = Machine::pc(64 << 20).mmu(F::MMU).cpus(2).build().unwrap();
    let _cpus = machine.all_cpus().unwrap();
    let memory = Memory::on(&machine).unwrap();
    let vm: Virt<'_, '_, F> = Vm::on_with(&memory, sysctl::<F>(huge_pages)).unwrap();
    let before = free(&memory);
    test(&vm);
    assert_eq!(free(&memory), before, "frames were lost");
    assert_eq!(vm.huge_zero_page().pfn(), None);
    memory.phys().check(&memory.pin()).unwrap();
    assert_eq!(vm.context().anon_vmas().used(), 0);
}

/// Runs a test in all three formats, with huge pages for memory that is advised to have them.
macro_rules! in_every_format {
    ($($name:ident = $test:ident;)*) => { $(
        #[test]
        fn $name() {
            on_machine::<X86_64>(HugePages::Madvise, $test);
            on_machine::<Pae>(HugePages::Madvise, $test);
            on_machine::<Sv39>(HugePages::Madvise, $test);
        }
    )* };
}

fn free(memory: &Mem<'_>) -> u64 {
    memory.phys().drain_all(&memory.pin());
    memory.phys().free_pages_total()
}

fn at(addr: u64) -> VirtAddr {
    VirtAddr::from(addr)
}

/// Private anonymous memory.
fn map<F: Arch>(process: &Proc<'_, '_, '_, F>, addr: u64, len: u64, prot: Prot) {
    let flags = MapFlags::PRIVATE | MapFlags::ANONYMOUS | MapFlags::FIXED;
    let args = MmapArgs { addr, len, prot, flags, file: Ok(None), offset: 0 };
    assert_eq!(process.mmap(&args).unwrap().get(), addr);
}

/// Private anonymous memory that is advised to have huge pages.
fn map_huge<F: Arch>(process: &Proc<'_, '_, '_, F>, addr: u64, len: u64) {
    map(process, addr, len, RW);
    process.madvise(addr, len, Advice::HugePage as i32).unwrap();
}

fn entries<F: Arch>(process: &Proc<'_, '_, '_, F>) -> Vec<Found> {
    let mut all = vec![];
    let pgd = process.with(|mm| mm.shared().pgd()).unwrap();
    let table = PageTable::<_, F>::at(process.vm().source(), pgd);
    table.check().unwrap();
    table.visit_range(VirtRange::new(at(0), at(F::USER_END)).unwrap(), |found| all.push(found));
    all
}

/// How many huge entries map pages of the process's own (Linux: AnonHugePages), and how many map zeros.
fn huge<F: Arch>(process: &Proc<'_, '_, '_, F>) -> (usize, usize) {
    let huge = entries(process).into_iter().filter(|found| found.order == PageOrder::MAX);
    let (zero, own): (Vec<_>, Vec<_>) =
        huge.partition(|found| found.pte.mapped().unwrap().bits.contains(PteBits::SPECIAL));
    (own.len(), zero.len())
}

/// Resident pages.
fn rss<F: Arch>(process: &Proc<'_, '_, '_, F>) -> u64 {
    process.with(|mm| mm.shared().resident())
}

fn incore<F: Arch>(process: &Proc<'_, '_, '_, F>, addr: u64, pages: u64) -> usize {
    let mut answers = vec![0_u8; pages as usize];
    process.mincore(addr, pages * PAGE, answers.as_mut_slice()).unwrap();
    answers.iter().filter(|&&answer| answer == 1).count()
}

/// Recounts everything, and what the processes, all that there are, have of anonymous pages in a way of its own.
fn check<'v, 'a, 'm, F: Arch>(processes: &[&Proc<'v, 'a, 'm, F>]) {
    recount(processes);
    processes[0].vm().assert_sound(processes);
}

fn recount<F: Arch>(processes: &[&Proc<'_, '_, '_, F>]) {
    let vm = processes[0].vm();
    let mut mapped = BTreeMap::<Pfn, u32>::new();
    for process in processes {
        let (mut resident, mut owned) = (0, vec![]);
        for found in entries(process) {
            let Pte::Present(entry) = found.pte else { continue };
            let pages = found.order.pages();
            let range = VirtRange::with_len(found.addr, pages * PAGE).unwrap();
            process.with(|mm| {
                mm.check().unwrap();
                let vma = mm.vma(mm.lookup(found.addr).expect("an entry outside all VMAs"));
                assert!(vma.range().encloses(range), "a huge page lies in one VMA");
                assert!(
                    vma.flags.contains(kernmm::flags::VmFlags::WRITE) || !entry.bits.contains(PteBits::WRITE)
                );
            });
            if entry.bits.contains(PteBits::SPECIAL) {
                assert!(!entry.bits.contains(PteBits::WRITE), "zeros may be written");
                assert!(entry.pfn == vm.zero_page() || Some(entry.pfn) == vm.huge_zero_page().pfn());
                continue;
            }
            resident += pages;
            for index in 0..pages {
                let pfn = entry.pfn.checked_add(index).unwrap();
                *mapped.entry(pfn).or_default() += 1;
                owned.push((pfn, found.addr.get() + index * PAGE, entry.bits));
            }
        }
        assert_eq!(process.with(|mm| mm.shared().rss(RssKind::Anon)), resident);
        for (pfn, addr, bits) in owned {
            let page = vm.source().phys().page(pfn).unwrap();
            assert!(page.flags().contains(PageFlags::ANON | PageFlags::SWAP_BACKED));
            let vma = process.with(|mm| mm.vma(mm.lookup(at(addr)).unwrap()));
            assert_eq!(page.index(), vma.pgoff_at(at(addr)).get());
            let exclusive = page.flags().contains(PageFlags::ANON_EXCLUSIVE);
            assert!(!bits.contains(PteBits::WRITE) || exclusive, "a page that others may have is written");
        }
    }
    for (pfn, entries) in mapped {
        let page = vm.source().phys().page(pfn).unwrap();
        assert_eq!((page.count(), page.map_count(), page.order()), (entries, entries, Some(PageOrder::ZERO)));
    }
}

fn signal<T>(result: Result<T, Refused>) -> Signal {
    match result {
        Err(Refused::Signal(signal)) => signal,
        Err(Refused::OutOfMemory) => panic!("out of memory"),
        Ok(_) => panic!("the access was allowed"),
    }
}

/// Writes a number of its own into each page.
fn fill<F: Arch>(user: &User<'_, '_, '_, '_, F>, addr: u64, pages: u64) {
    for page in 0..pages {
        user.store_u32(at(addr + page * PAGE + 8), page as u32 + 1).unwrap();
    }
}

/// Whether each page has the number that [`fill`] gave it, by the memory management unit.
fn assert_filled<F: Arch>(user: &User<'_, '_, '_, '_, F>, addr: u64, pages: std::ops::Range<u64>) {
    for page in pages {
        assert_eq!(user.load_u32(at(addr + page * PAGE + 8)), Ok(page as u32 + 1), "page {page}");
    }
}

in_every_format! {
    one_store_maps_two_mebibytes = one_store;
    a_load_maps_zeros_which_are_no_resident_pages_and_a_store_replaces_them = zeros;
    what_takes_a_part_makes_small_pages_of_the_rest = parts;
    what_takes_all_of_it_leaves_it_huge = wholes;
    a_huge_page_moves_as_one_where_it_can = moves;
    what_moves_onto_a_huge_page_is_all_there = moves_onto_huge;
    a_child_shares_huge_pages_until_one_of_the_two_writes = forks;
    translations_are_forgotten_exactly_where_that_is_needed = flushes;
    without_a_block_small_pages_do = no_block;
    a_table_that_is_empty_again_lets_huge_pages_come = tables_go;
    every_allocation_may_fail = failures;
}

fn one_store<F: Arch>(vm: &Virt<'_, '_, F>) {
    let process = Process::new(vm).unwrap();
    let user = User::new(&process);
    map_huge(&process, AT, 2 * HUGE);
    user.store_u32(at(AT + 5 * PAGE), 7).unwrap();
    assert_eq!((rss(&process), huge(&process)), (PAGES, (1, 0)));
    // No other page of it faults.
    let machine = vm.source().platform();
    machine.store(at(AT + HUGE - 4), &[1, 2, 3, 4]).unwrap();
    machine.load(at(AT), &mut [0; 8]).unwrap();
    assert!(machine.load(at(AT + HUGE), &mut [0]).is_err());
    let mut all = vec![0xff; HUGE as usize];
    user.load(at(AT), &mut all).unwrap();
    let set: Vec<_> =
        all.iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(at, _)| at as u64).collect();
    assert_eq!(set, [5 * PAGE, HUGE - 4, HUGE - 3, HUGE - 2, HUGE - 1]);
    // The kernel's copies cross from the huge page into what is not there yet, and back.
    let bytes: Vec<u8> = (0..3 * PAGE).map(|n| (n % 251) as u8).collect();
    process.copy_to_user(at(AT + HUGE - PAGE - 100), &bytes).unwrap();
    let mut back = vec![0; bytes.len()];
    process.copy_from_user(at(AT + HUGE - PAGE - 100), &mut back).unwrap();
    assert_eq!(back, bytes);
    user.load(at(AT + HUGE - PAGE - 100), &mut back).unwrap();
    assert_eq!(back, bytes);
    assert_eq!((rss(&process), huge(&process), incore(&process, AT, 2 * PAGES)), (2 * PAGES, (2, 0), 1024));
    assert_eq!(signal(user.fetch(at(AT), &mut [0])), Signal::Denied, "it may not be executed");
    check(&[&process]);
    // Both go as blocks, at once.
    let blocks: Vec<_> = entries(&process).iter().map(|found| found.pte.mapped().unwrap().pfn).collect();
    process.munmap(AT, 2 * HUGE).unwrap();
    for block in blocks {
        assert_ne!(vm.source().phys().page(block).unwrap().order(), Some(PageOrder::ZERO));
    }
    assert_eq!((rss(&process), entries(&process).len()), (0, 0));
}

fn zeros<F: Arch>(vm: &Virt<'_, '_, F>) {
    let process = Process::new(vm).unwrap();
    let user = User::new(&process);
    map_huge(&process, AT, 3 * HUGE);
    assert_eq!(user.load_byte(at(AT + 9 * PAGE)), Ok(0));
    assert_eq!(user.load_byte(at(AT + HUGE)), Ok(0));
    assert_eq!((rss(&process), huge(&process), incore(&process, AT, 3 * PAGES)), (0, (0, 2), 1024));
    let zero = vm.huge_zero_page().pfn().unwrap();
    // The other CPU knows the zeros, and must not go on with them after the store.
    let machine = vm.source().platform();
    machine.run_on(CpuId(1), || assert_eq!(user.load_byte(at(AT + 20 * PAGE)), Ok(0))).unwrap();
    user.store(at(AT + 20 * PAGE), &[5]).unwrap();
    machine.run_on(CpuId(1), || assert_eq!(user.load_byte(at(AT + 20 * PAGE)), Ok(5))).unwrap();
    machine.run_on(CpuId(1), || process.deactivate()).unwrap();
    machine.store(at(AT + 21 * PAGE), &[6]).unwrap();
    assert_eq!((rss(&process), huge(&process)), (PAGES, (1, 1)));
    check(&[&process]);
    // A part of the zeros that is unmapped leaves small zeros, of which each page is replaced alone.
    process.munmap(AT + HUGE + 4 * PAGE, PAGE).unwrap();
    assert_eq!((rss(&process), huge(&process), incore(&process, AT + HUGE, 4)), (PAGES, (1, 0), 4));
    assert_eq!(signal(user.load_byte(at(AT + HUGE + 4 * PAGE))), Signal::NotMapped);
    assert_eq!(user.load_byte(at(AT + HUGE + 5 * PAGE)), Ok(0));
    user.store(at(AT + HUGE + 5 * PAGE), &[7]).unwrap();
    assert_eq!(user.load_byte(at(AT + HUGE + 6 * PAGE)), Ok(0));
    assert_eq!(rss(&process), PAGES + 1);
    // Zeros that were protected and are writable again are replaced as one.
    assert_eq!(user.load_byte(at(AT + 2 * HUGE)), Ok(0));
    process.mprotect(AT + 2 * HUGE, HUGE, Prot::empty()).unwrap();
    assert_eq!(signal(user.load_byte(at(AT + 2 * HUGE))), Signal::Denied);
    process.mprotect(AT + 2 * HUGE, HUGE, RW).unwrap();
    assert_eq!(huge(&process), (1, 1));
    check(&[&process]);
    user.store(at(AT + 2 * HUGE), &[8]).unwrap();
    assert_eq!(huge(&process), (2, 0));
    // There is one page of zeros for all, as long as somebody uses it.
    let child = process.fork().unwrap();
    drop(process);
    assert_eq!(vm.huge_zero_page().pfn(), None, "the child has mapped none");
    let son = User::new(&child);
    map_huge(&child, AT + 4 * HUGE, HUGE);
    assert_eq!(son.load_byte(at(AT + 4 * HUGE)), Ok(0));
    assert!(vm.huge_zero_page().pfn().is_some());
    let grandchild = child.fork().unwrap();
    drop(child);
    assert!(vm.huge_zero_page().pfn().is_some(), "{zero:?}");
    let user = User::new(&grandchild);
    assert_eq!(huge(&grandchild).1, 1);
    user.store(at(AT + 4 * HUGE + 1), &[9]).unwrap();
    assert_eq!((user.load_byte(at(AT + 4 * HUGE)), huge(&grandchild).1), (Ok(0), 0));
    check(&[&grandchild]);
}

/// A process with one huge page, filled.
fn with_one<F: Arch, R>(
    vm: &Virt<'_, '_, F>,
    work: impl FnOnce(&Proc<'_, '_, '_, F>, User<'_, '_, '_, '_, F>) -> R,
) -> R {
    let process = Process::new(vm).unwrap();
    let user = User::new(&process);
    map_huge(&process, AT, HUGE);
    fill(&user, AT, PAGES);
    assert_eq!((rss(&process), huge(&process)), (PAGES, (1, 0)));
    let result = work(&process, user);
    check(&[&process]);
    result
}

fn parts<F: Arch>(vm: &Virt<'_, '_, F>) {
    let (part, len) = (AT + 100 * PAGE, 56 * PAGE);
    let rest = |user: User<'_, '_, '_, '_, F>| {
        assert_filled(&user, AT, 0..100);
        assert_filled(&user, AT, 156..PAGES);
    };
    let all_left = |advice: Advice| {
        with_one(vm, |process, user| {
            process.madvise(part, len, advice as i32).unwrap();
            assert_eq!((rss(process), huge(process)), (PAGES, (0, 0)), "{advice:?}");
            assert_filled(&user, AT, 0..PAGES);
        });
    };
    with_one(vm, |process, user| {
        let free_before = free(vm.source());
        process.munmap(part, len).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES - 56, (0, 0)));
        // The table was kept for this, and the pages are free at once.
        assert_eq!(free(vm.source()), free_before + 56);
        assert_eq!(signal(user.load_byte(at(part))), Signal::NotMapped);
        assert_eq!(signal(user.load_byte(at(part + len - 1))), Signal::NotMapped);
        rest(user);
    });
    with_one(vm, |process, user| {
        process.mprotect(part, len, Prot::READ).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES, (0, 0)));
        assert_eq!(signal(user.store(at(part), &[1])), Signal::Denied);
        assert_eq!(signal(user.store(at(part + len - 1), &[1])), Signal::Denied);
        user.store(at(part - 1), &[1]).unwrap();
        user.store(at(part + len), &[1]).unwrap();
        assert_filled(&user, AT, 0..PAGES);
        process.mprotect(part, len, RW).unwrap();
        user.store(at(part), &[1]).unwrap();
    });
    with_one(vm, |process, user| {
        process.madvise(part, len, Advice::DontNeed as i32).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES - 56, (0, 0)));
        assert_eq!(incore(process, AT, PAGES), 512 - 56);
        assert_eq!((user.load_u32(at(part + 8)), user.load_u32(at(part + len - PAGE + 8))), (Ok(0), Ok(0)));
        rest(user);
        user.store(at(part), &[1]).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES - 55, (0, 0)), "a table is there");
    });
    with_one(vm, |process, user| {
        process.madvise(part, len, Advice::GuardInstall as i32).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES - 56, (0, 0)));
        assert_eq!(signal(user.load_byte(at(part))), Signal::NotMapped);
        assert_eq!(signal(user.load_byte(at(part + len - 1))), Signal::NotMapped);
        rest(user);
        process.madvise(AT, HUGE, Advice::GuardRemove as i32).unwrap();
        assert_eq!(user.load_byte(at(part)), Ok(0));
    });
    with_one(vm, |process, user| {
        process.mlock(part, len).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES, (0, 0)));
        assert_filled(&user, AT, 0..PAGES);
    });
    for advice in [Advice::DontFork, Advice::NoHugePage, Advice::Free, Advice::Cold, Advice::PageOut] {
        all_left(advice);
    }
    // One end of it is enough.
    for (part, len) in [(AT, PAGE), (AT + HUGE - PAGE, PAGE)] {
        with_one(vm, |process, _| {
            process.munmap(part, len).unwrap();
            assert_eq!((rss(process), huge(process)), (PAGES - 1, (0, 0)));
        });
    }
    // What others have too is left alone by advice about one's own pages.
    with_one(vm, |process, _| {
        let child = process.fork().unwrap();
        process.madvise(part, len, Advice::Free as i32).unwrap();
        assert_eq!((huge(process), huge(&child)), ((1, 0), (1, 0)));
        drop(child);
        process.madvise(part, len, Advice::Free as i32).unwrap();
        assert_eq!(huge(process), (0, 0));
    });
}

fn wholes<F: Arch>(vm: &Virt<'_, '_, F>) {
    with_one(vm, |process, user| {
        process.mprotect(AT, HUGE, Prot::READ).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES, (1, 0)));
        assert_eq!(signal(user.store(at(AT + 3 * PAGE), &[1])), Signal::Denied);
        assert_filled(&user, AT, 0..PAGES);
        process.mprotect(AT, HUGE, Prot::empty()).unwrap();
        assert_eq!(signal(user.load_byte(at(AT + 3 * PAGE))), Signal::Denied);
        process.mprotect(AT, HUGE, RW).unwrap();
        // Nobody else has it: no fault is needed to write.
        vm.source().platform().store(at(AT + 4 * PAGE), &[1]).unwrap();
        process.mlock(AT, HUGE).unwrap();
        process.munlock(AT, HUGE).unwrap();
        for advice in [Advice::Free, Advice::Cold, Advice::PageOut, Advice::DontFork, Advice::NoHugePage] {
            process.madvise(AT, HUGE, advice as i32).unwrap();
        }
        assert_eq!((rss(process), huge(process)), (PAGES, (1, 0)));
        process.madvise(AT, HUGE, Advice::DontNeed as i32).unwrap();
        assert_eq!((rss(process), huge(process), incore(process, AT, PAGES)), (0, (0, 0), 0));
        assert_eq!(user.load_u32(at(AT + 8)), Ok(0));
    });
    with_one(vm, |process, user| {
        process.madvise(AT, HUGE, Advice::GuardInstall as i32).unwrap();
        assert_eq!((rss(process), huge(process)), (0, (0, 0)));
        assert_eq!(signal(user.load_byte(at(AT + 77 * PAGE))), Signal::NotMapped);
    });
    // mlock brings huge pages as a store does.
    let process = Process::new(vm).unwrap();
    map_huge(&process, AT, HUGE);
    User::new(&process).store(at(AT), &[1]).unwrap();
    process.madvise(AT, HUGE, Advice::DontNeed as i32).unwrap();
    process.mlock(AT, PAGE).unwrap();
    assert_eq!(huge(&process), (0, 0), "the locked VMA is too small");
    check(&[&process]);
}
fn moves_onto_huge<F: Arch>(vm: &Virt<'_, '_, F>) {
    let to = AT + 4 * HUGE;
    // Small pages onto a huge one, a huge one onto two halves, small pages onto a huge page of zeros.
    for (source, target, zeros) in [(0, 0, false), (HUGE, PAGE, false), (0, 0, true)] {
        let process = Process::new(vm).unwrap();
        let user = User::new(&process);
        map(&process, AT, HUGE, RW);
        if source != 0 {
            process.madvise(AT, HUGE, Advice::HugePage as i32).unwrap();
        }
        for page in 0..PAGES {
            user.store_u32(at(AT + page * PAGE), page as u32 + 1).unwrap();
        }
        map_huge(&process, to, 2 * HUGE);
        for index in 0..2 {
            match zeros {
                true => assert_eq!(user.load_u32(at(to + index * HUGE)), Ok(0)),
                false => user.store_u32(at(to + index * HUGE), 99).unwrap(),
            }
        }
        process.mremap(AT, HUGE, HUGE, FIXED, to + target).unwrap();
        for page in 0..PAGES {
            assert_eq!(user.load_u32(at(to + target + page * PAGE)), Ok(page as u32 + 1), "page {page}");
        }
        check(&[&process]);
    }
}

fn moves<F: Arch>(vm: &Virt<'_, '_, F>) {
    let to = AT + 16 * HUGE;
    with_one(vm, |process, user| {
        process.mremap(AT, HUGE, HUGE, FIXED, to).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES, (1, 0)));
        assert_filled(&user, to, 0..PAGES);
        assert_eq!(signal(user.load_byte(at(AT))), Signal::NotMapped);
        // Onto memory that has a table, which is empty by then.
        map(process, AT, HUGE, RW);
        fill(&user, AT, 3);
        process.mremap(to, HUGE, HUGE, FIXED, AT).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES, (1, 0)));
        assert_filled(&user, AT, 0..PAGES);
        // To where it would lie across two.
        process.mremap(AT, HUGE, HUGE, FIXED, to + PAGE).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES, (0, 0)));
        assert_filled(&user, to + PAGE, 0..PAGES);
    });
    with_one(vm, |process, user| {
        // A part moves, the rest stays.
        process.mremap(AT + 8 * PAGE, 16 * PAGE, 16 * PAGE, FIXED, to).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES, (0, 0)));
        for page in 8..24 {
            assert_eq!(user.load_u32(at(to + (page - 8) * PAGE + 8)), Ok(page as u32 + 1));
        }
        assert_filled(&user, AT, 0..8);
        assert_filled(&user, AT, 24..PAGES);
    });
    // Two that move together with what lies around them.
    let process = Process::new(vm).unwrap();
    let user = User::new(&process);
    map_huge(&process, AT - 4 * PAGE, 2 * HUGE + 8 * PAGE);
    fill(&user, AT - 4 * PAGE, 2 * PAGES + 8);
    assert_eq!((rss(&process), huge(&process)), (2 * PAGES + 8, (2, 0)));
    process.mremap(AT - 4 * PAGE, 2 * HUGE + 8 * PAGE, 2 * HUGE + 8 * PAGE, FIXED, to - 4 * PAGE).unwrap();
    assert_eq!((rss(&process), huge(&process)), (2 * PAGES + 8, (2, 0)));
    assert_filled(&user, to - 4 * PAGE, 0..2 * PAGES + 8);
    // The zeros move too, and DONTUNMAP leaves the old place empty.
    map_huge(&process, AT, HUGE);
    user.load_byte(at(AT)).unwrap();
    let keep = FIXED | MremapFlags::DONTUNMAP;
    process.mremap(AT, HUGE, HUGE, keep, to + 8 * HUGE).unwrap();
    assert_eq!((incore(&process, AT, PAGES), incore(&process, to + 8 * HUGE, PAGES)), (0, 512));
    assert_eq!(huge(&process), (2, 1));
    check(&[&process]);
    // Growing where that means to move.
    map(&process, to + 9 * HUGE, PAGE, RW);
    let grown = process.mremap(to, 2 * HUGE, 5 * HUGE, MremapFlags::MAYMOVE, 0).unwrap().get();
    for page in 0..2 * PAGES {
        assert_eq!(user.load_u32(at(grown + page * PAGE + 8)), Ok(page as u32 + 5));
    }
    check(&[&process]);
}

fn forks<F: Arch>(vm: &Virt<'_, '_, F>) {
    let parent = Process::new(vm).unwrap();
    let user = User::new(&parent);
    map_huge(&parent, AT, 2 * HUGE);
    fill(&user, AT, 2 * PAGES);
    let (tables, free_before) = (entries(&parent).len(), free(vm.source()));
    let child = parent.fork().unwrap();
    let son = User::new(&child);
    assert_eq!((huge(&parent), huge(&child), rss(&child), tables), ((2, 0), (2, 0), 2 * PAGES, 2));
    assert!(free_before - free(vm.source()) <= 8, "tables alone were allocated");
    check(&[&parent, &child]);
    assert_filled(&son, AT, 0..2 * PAGES);
    // The child's write costs it one page, and its huge entry; the parent's stays.
    let before = free(vm.source());
    son.store_u32(at(AT + 8), 1000).unwrap();
    son.store_u32(at(AT + 3 * PAGE + 8), 1003).unwrap();
    assert_eq!(free(vm.source()), before - 2);
    assert_eq!((huge(&parent), huge(&child)), ((2, 0), (1, 0)));
    assert_eq!((rss(&parent), rss(&child)), (2 * PAGES, 2 * PAGES));
    check(&[&parent, &child]);
    assert_filled(&user, AT, 0..2 * PAGES);
    assert_eq!((son.load_u32(at(AT + 8)), son.load_u32(at(AT + 3 * PAGE + 8))), (Ok(1000), Ok(1003)));
    assert_filled(&son, AT, 4..2 * PAGES);
    // A grandchild shares both kinds.
    let grandchild = child.fork().unwrap();
    check(&[&parent, &child, &grandchild]);
    drop(grandchild);
    // What the child gives back is the parent's alone, and the next write finds that for all of it.
    child.munmap(AT + HUGE, HUGE).unwrap();
    user.store_u32(at(AT + HUGE + 8), 513).unwrap();
    assert_eq!(huge(&parent), (2, 0), "nobody else has the second");
    vm.source().platform().store(at(AT + HUGE + 9 * PAGE), &[0]).unwrap();
    // Of the first the child has all but two: one more is copied.
    let before = free(vm.source());
    user.store_u32(at(AT + 5 * PAGE + 8), 6).unwrap();
    assert_eq!(huge(&parent), (1, 0));
    user.store_u32(at(AT + 8), 1).unwrap();
    assert_eq!(free(vm.source()), before - 1, "the page that the child has copied is the parent's alone");
    check(&[&parent, &child]);
    assert_filled(&son, AT, 4..PAGES);
    drop(child);
    assert_filled(&user, AT, 0..2 * PAGES);
    user.store_u32(at(AT + 6 * PAGE + 8), 7).unwrap();
    assert_eq!(rss(&parent), 2 * PAGES);
    check(&[&parent]);
}

/// What a call makes CPUs forget.
fn flushed<F: Arch>(vm: &Virt<'_, '_, F>, call: impl FnOnce()) -> Vec<(u64, u64)> {
    let machine = vm.source().platform();
    machine.record_flushes();
    machine.take_flushes();
    call();
    let span = |scope| match scope {
        FlushScope::Page(addr) => (addr.get(), PAGE),
        FlushScope::Range(range) => (range.start().get(), range.len()),
        FlushScope::All | FlushScope::Kernel(_) => (0, u64::MAX),
    };
    machine.take_flushes().into_iter().map(|(_, flush)| span(flush.scope)).collect()
}

fn flushes<F: Arch>(vm: &Virt<'_, '_, F>) {
    let process = Process::new(vm).unwrap();
    let user = User::new(&process);
    map_huge(&process, AT, 2 * HUGE);
    assert_eq!(flushed(vm, || user.store(at(AT), &[1]).unwrap()), []);
    assert_eq!(flushed(vm, || assert_eq!(user.load_byte(at(AT + HUGE)), Ok(0))), []);
    assert_eq!(flushed(vm, || user.store(at(AT + HUGE), &[1]).unwrap()), [(AT + HUGE, HUGE)], "the zeros");
    assert_eq!(flushed(vm, || process.mprotect(AT, HUGE, Prot::READ).unwrap()), [(AT, HUGE)]);
    assert_eq!(flushed(vm, || process.mprotect(AT, HUGE, RW).unwrap()), [], "rights that come");
    let mut child = None;
    let both = flushed(vm, || child = process.fork().ok());
    assert_eq!(both, [(AT, 2 * HUGE)]);
    assert_eq!(
        flushed(vm, || user.store(at(AT + 9 * PAGE), &[1]).unwrap()),
        [(AT + 9 * PAGE, PAGE)],
        "one copy"
    );
    drop(child);
    assert_eq!(
        flushed(vm, || process.mprotect(AT + HUGE, PAGE, Prot::READ).unwrap()),
        [],
        "nothing was writable"
    );
    process.munmap(AT, 2 * HUGE).unwrap();
    map_huge(&process, AT, HUGE);
    user.store(at(AT), &[1]).unwrap();
    let moved = flushed(vm, || assert!(process.mremap(AT, HUGE, HUGE, FIXED, AT + 5 * HUGE).is_ok()));
    assert_eq!(moved, [(AT, HUGE)]);
    user.load_byte(at(AT + 5 * HUGE)).unwrap();
    let part = flushed(vm, || process.munmap(AT + 5 * HUGE + 4 * PAGE, 2 * PAGE).unwrap());
    assert_eq!(part, [(AT + 5 * HUGE + 4 * PAGE, 2 * PAGE)]);
    let rest = flushed(vm, || process.madvise(AT + 5 * HUGE, 4 * PAGE, Advice::DontNeed as i32).unwrap());
    assert_eq!(rest, [(AT + 5 * HUGE, 4 * PAGE)]);
    check(&[&process]);
}

fn no_block<F: Arch>(vm: &Virt<'_, '_, F>) {
    let memory = vm.source();
    let process = Process::new(vm).unwrap();
    let user = User::new(&process);
    map_huge(&process, AT, 4 * HUGE);
    user.store(at(AT), &[1]).unwrap();
    user.load_byte(at(AT + HUGE)).unwrap();
    // All blocks are taken, and of one half the pages given back, every second one.
    let mut blocks = vec![];
    while let Ok(block) = memory.alloc_pages(GfpFlags::HIGHUSER_MOVABLE | GfpFlags::NOWARN, PageOrder::MAX) {
        blocks.push(block);
    }
    let last = blocks.pop().unwrap();
    memory.phys().split_pages(&memory.pin(), last, PageOrder::MAX, PageOrder::ZERO).unwrap();
    let parts: Vec<_> = (0..PAGES).map(|page| last.checked_add(page).unwrap()).collect();
    for pair in parts.chunks(2) {
        memory.free_pages(pair[0], PageOrder::ZERO).unwrap();
    }
    // Nothing there: a small page. Zeros there: small zeros, one of which is replaced.
    user.store(at(AT + 2 * HUGE), &[2]).unwrap();
    assert_eq!((rss(&process), huge(&process)), (PAGES + 1, (1, 1)));
    user.store(at(AT + HUGE + 3 * PAGE), &[3]).unwrap();
    assert_eq!((rss(&process), huge(&process)), (PAGES + 2, (1, 0)));
    assert_eq!((user.load_byte(at(AT + HUGE)), user.load_byte(at(AT + HUGE + 3 * PAGE))), (Ok(0), Ok(3)));
    // The page of zeros stays for the one that it has; another process has small ones.
    let other = Process::new(vm).unwrap();
    let another = User::new(&other);
    map_huge(&other, AT, HUGE);
    assert_eq!((another.load_byte(at(AT)), huge(&other)), (Ok(0), (0, 1)));
    drop(process);
    assert_eq!((another.load_byte(at(AT + PAGE)), huge(&other)), (Ok(0), (0, 1)));
    recount(&[&other]);
    drop(other);
    // What no block can be had for is no failure, nor reported as one.
    assert_eq!(memory.platform().take_reports(), "");
    for pair in parts.chunks(2) {
        memory.free_pages(pair[1], PageOrder::ZERO).unwrap();
    }
    for block in blocks {
        memory.free_pages(block, PageOrder::MAX).unwrap();
    }
}

fn tables_go<F: Arch>(vm: &Virt<'_, '_, F>) {
    let process = Process::new(vm).unwrap();
    let user = User::new(&process);
    map(&process, AT, 2 * HUGE, RW);
    user.store(at(AT), &[1]).unwrap();
    user.store(at(AT + HUGE), &[1]).unwrap();
    process.madvise(AT, 2 * HUGE, Advice::HugePage as i32).unwrap();
    user.store(at(AT + PAGE), &[1]).unwrap();
    assert_eq!((rss(&process), huge(&process)), (3, (0, 0)), "where a table is, small pages come");
    process.madvise(AT, 2 * PAGE, Advice::DontNeed as i32).unwrap();
    user.store(at(AT + PAGE), &[1]).unwrap();
    assert_eq!((rss(&process), huge(&process)), (2, (0, 0)), "the table stays if only its pages were named");
    process.madvise(AT, HUGE, Advice::DontNeed as i32).unwrap();
    assert_eq!(user.load_byte(at(AT + PAGE)), Ok(0));
    user.store(at(AT + PAGE), &[1]).unwrap();
    assert_eq!((rss(&process), huge(&process)), (PAGES + 1, (1, 0)));
    check(&[&process]);
}

/// Lets the n-th allocation of `work` fail, for every n that there is; `check` looks at what is left then.
fn failures<F: Arch>(vm: &Virt<'_, '_, F>) {
    let memory = vm.source();
    let phys = memory.phys();
    let failing = |n: u64| phys.set_fail_rule(&memory.pin(), FailRule::Nth(n));
    let calm = || phys.set_fail_rule(&memory.pin(), FailRule::Never);
    let (mut stored, mut loaded, mut forked, mut moved) = ([0; 2], [0; 2], [0; 2], [0; 2]);
    for n in 1..12 {
        let process = Process::new(vm).unwrap();
        let user = User::new(&process);
        map_huge(&process, AT, 2 * HUGE);
        failing(n);
        let store = process.handle_fault(at(AT), Access::Write, Attempt::First);
        calm();
        match store {
            Fault::Done(Resolved::Minor) => stored[0] += 1,
            Fault::OutOfMemory => stored[1] += 1,
            other => panic!("{other:?}"),
        }
        check(&[&process]);
        assert!(rss(&process) == if store == Fault::OutOfMemory { 0 } else { rss(&process) });
        user.store(at(AT), &[1]).unwrap();

        failing(n);
        let load = process.handle_fault(at(AT + HUGE), Access::Read, Attempt::First);
        calm();
        loaded[usize::from(load == Fault::OutOfMemory)] += 1;
        check(&[&process]);
        assert_eq!(user.load_byte(at(AT + HUGE)), Ok(0));
        failing(n);
        let replace = process.handle_fault(at(AT + HUGE), Access::Write, Attempt::First);
        calm();
        assert!(matches!(replace, Fault::Done(_) | Fault::OutOfMemory));
        check(&[&process]);
        user.store(at(AT + HUGE), &[2]).unwrap();
        assert_eq!((user.load_byte(at(AT)), user.load_byte(at(AT + HUGE))), (Ok(1), Ok(2)));

        failing(n);
        let child = process.fork();
        calm();
        match &child {
            Ok(child) => {
                forked[0] += 1;
                check(&[&process, child]);
                failing(n);
                let copied = child.handle_fault(at(AT), Access::Write, Attempt::First);
                calm();
                assert!(matches!(copied, Fault::Done(_) | Fault::OutOfMemory));
                check(&[&process, child]);
                assert_eq!(User::new(child).load_byte(at(AT)), Ok(1));
            }
            Err(error) => {
                assert_eq!(*error, MmError::OutOfMemory);
                forked[1] += 1;
                check(&[&process]);
            }
        }
        drop(child);
        for to in [AT + 512 * HUGE, AT + 600 * HUGE + PAGE] {
            let before = (rss(&process), huge(&process));
            failing(n);
            let result = process.mremap(AT, 2 * HUGE, 2 * HUGE, FIXED, to);
            calm();
            check(&[&process]);
            match result {
                Ok(_) => {
                    moved[0] += 1;
                    assert_eq!((user.load_byte(at(to)), user.load_byte(at(to + HUGE))), (Ok(1), Ok(2)));
                    process.mremap(to, 2 * HUGE, 2 * HUGE, FIXED, AT).unwrap();
                }
                Err(error) => {
                    assert_eq!(error, MmError::OutOfMemory);
                    moved[1] += 1;
                    assert_eq!((rss(&process), huge(&process)), before);
                }
            }
        }
        // What needs no allocation does not care.
        phys.set_fail_rule(&memory.pin(), FailRule::Every(1));
        process.mprotect(AT + 7 * PAGE, PAGE, Prot::READ).unwrap();
        process.munmap(AT + HUGE + 3 * PAGE, PAGE).unwrap();
        calm();
        check(&[&process]);
    }
    for tried in [stored, loaded, forked, moved] {
        assert!(tried[0] > 0 && tried[1] > 0, "{tried:?}");
    }
}

#[test]
fn huge_pages_come_where_setting_advice_and_room_say_so() {
    for (setting, unadvised, advised) in
        [(HugePages::Never, 0, 0), (HugePages::Madvise, 0, 1), (HugePages::Always, 1, 1)]
    {
        on_machine::<X86_64>(setting, |vm| {
            // Whether a store and a load each get a huge page, in memory of this extent with this advice.
            let gets = |start: u64, len: u64, advice: Option<Advice>, touched: u64| {
                let process = Process::new(vm).unwrap();
                let user = User::new(&process);
                map(&process, start, len, RW);
                if let Some(advice) = advice {
                    process.madvise(start, len, advice as i32).unwrap();
                }
                user.load_byte(at(touched)).unwrap();
                let zero = huge(&process).1;
                user.store(at(touched), &[1]).unwrap();
                check(&[&process]);
                assert_eq!(huge(&process).0, zero);
                assert_eq!(rss(&process), if zero == 0 { 1 } else { PAGES });
                zero
            };
            assert_eq!(gets(AT, HUGE, None, AT), unadvised);
            assert_eq!(gets(AT, HUGE, Some(Advice::HugePage), AT + HUGE - 1), advised);
            assert_eq!(gets(AT, HUGE, Some(Advice::NoHugePage), AT), 0);
            let around = (AT - PAGE, HUGE + 2 * PAGE);
            assert_eq!(gets(around.0, around.1, Some(Advice::HugePage), AT + PAGE), advised);
            assert_eq!(gets(around.0, around.1, Some(Advice::HugePage), AT - PAGE), 0);
            assert_eq!(gets(around.0, around.1, Some(Advice::HugePage), AT + HUGE), 0);
            assert_eq!(gets(AT + PAGE, HUGE, Some(Advice::HugePage), AT + PAGE), 0);
            assert_eq!(gets(AT, HUGE - PAGE, Some(Advice::HugePage), AT), 0);
        });
    }
}

#[test]
fn a_wish_for_huge_pages_is_granted_where_they_are_and_refused_elsewhere() {
    on_machine::<X86_64>(HugePages::Madvise, |vm| {
        let process = Process::new(vm).unwrap();
        let user = User::new(&process);
        let collapse = |addr: u64, len: u64| process.madvise(addr, len, Advice::Collapse as i32);
        map(&process, AT, 3 * HUGE, RW);
        assert_eq!(collapse(AT, HUGE), Err(MmError::BadAdvice), "untouched");
        user.store(at(AT), &[1]).unwrap();
        assert_eq!(collapse(AT, HUGE), Err(MmError::OutOfMemory), "a small page");
        assert_eq!(collapse(AT, HUGE - PAGE), Ok(()), "no whole one was named");
        assert_eq!(collapse(AT + HUGE, HUGE), Err(MmError::BadAdvice), "nothing is there");
        process.madvise(AT, 3 * HUGE, Advice::HugePage as i32).unwrap();
        user.store(at(AT + HUGE), &[1]).unwrap();
        assert_eq!(collapse(AT + HUGE, HUGE), Ok(()), "there is one");
        assert_eq!(collapse(AT + HUGE, 2 * HUGE), Err(MmError::BadAdvice));
        process.madvise(AT, 3 * HUGE, Advice::NoHugePage as i32).unwrap();
        assert_eq!(collapse(AT + HUGE, HUGE), Err(MmError::BadAdvice));
        check(&[&process]);
    });
}

#[test]
fn a_pinned_page_of_a_huge_one_stays_its_owners_and_the_child_gets_a_copy() {
    on_machine::<X86_64>(HugePages::Madvise, |vm| {
        with_one(vm, |process, user| {
            let mut pinned = [Pfn::ZERO];
            let (term, place) = (PinTerm::Long, at(AT + 9 * PAGE));
            assert_eq!(process.pin_pages(place, Access::Write, term, &mut pinned), Ok(1));
            let child = process.fork().unwrap();
            assert_eq!((huge(process), huge(&child)), ((0, 0), (0, 0)));
            user.store_u32(place, 77).unwrap();
            let own = process.page_state(place).and_then(PageState::resident).map(|page| page.pfn);
            assert_eq!(own, Some(pinned[0]), "a write goes to the page that is pinned");
            let son = User::new(&child);
            assert_eq!((son.load_u32(place), son.load_u32(at(AT + 9 * PAGE + 8))), (Ok(0), Ok(10)));
            assert_eq!(vm.unpin_pages(&pinned, PinUse::Dirtied), 1);
        });
    });
}

#[test]
fn shared_memory_has_small_pages() {
    on_machine::<X86_64>(HugePages::Always, |vm| {
        let process = Process::new(vm).unwrap();
        let flags = MapFlags::SHARED | MapFlags::ANONYMOUS | MapFlags::FIXED;
        let args = MmapArgs { addr: AT, len: HUGE, prot: RW, flags, file: Ok(None), offset: 0 };
        process.mmap(&args).unwrap();
        User::new(&process).store(at(AT), &[1]).unwrap();
        assert_eq!((rss(&process), huge(&process)), (1, (0, 0)));
    });
}
