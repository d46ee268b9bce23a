//! Pages of 2 MiB for anonymous memory, on the simulated machine: who gets them, what makes small ones of them, and that nothing is lost or
//! counted wrongly by that. The answers are those of Linux 6.18.

#[path = "huge/failures.rs"]
mod failures;
#[path = "huge/faults.rs"]
mod faults;
#[path = "huge/flushes.rs"]
mod flushes;
#[path = "huge/fork.rs"]
mod fork;
#[path = "huge/moves.rs"]
mod moves;
#[path = "huge/parts.rs"]
mod parts;
#[path = "huge/reports.rs"]
mod reports;

use std::collections::BTreeMap;

use kernmm::addr::{PageOrder, Pfn, VirtAddr, VirtRange};
use kernmm::fault::{Access, Attempt, EntryState, Fault, PinTerm, PinUse, Resolved, Signal};
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
    ($($name:ident = $test:path;)*) => { $(
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
    one_store_maps_two_mebibytes = faults::one_store;
    a_load_maps_zeros_which_are_no_resident_pages_and_a_store_replaces_them = faults::zeros;
    what_takes_a_part_makes_small_pages_of_the_rest = parts::parts;
    what_takes_all_of_it_leaves_it_huge = parts::wholes;
    a_huge_page_moves_as_one_where_it_can = moves::moves;
    what_moves_onto_a_huge_page_is_all_there = moves::moves_onto_huge;
    a_child_shares_huge_pages_until_one_of_the_two_writes = fork::forks;
    translations_are_forgotten_exactly_where_that_is_needed = flushes::flushes;
    without_a_block_small_pages_do = faults::no_block;
    a_table_that_is_empty_again_lets_huge_pages_come = flushes::tables_go;
    every_allocation_may_fail = failures::failures;
    what_becomes_of_huge_pages_is_counted_by_linux_names = reports::counts;
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
