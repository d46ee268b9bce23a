//! What a kernel needs to give the library its machine: metadata in the map itself, addresses that its tables translate.

use std::alloc::GlobalAlloc;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use kernmm::addr::{PAGE_SIZE, PageOrder, Pfn, VirtAddr};
use kernmm::fault::{Access, Attempt, Fault, Pager, Signal};
use kernmm::flags::{GfpFlags, MapFlags, Prot};
use kernmm::memory::{Memory, Options, Process, User, Vm, VmError, VmLimits};
use kernmm::mm::{FileKind, FileRef};
use kernmm::mm::{HugePages, Mm, MmError, Sysctl};
use kernmm::phys::{Config, FailRule, InitError, PageState, Plan};
use kernmm::platform::hosted::{Asids, Disk, Machine, Mmu};
use kernmm::platform::{CpuId, CpuMask, MemoryMap, Platform, TlbFlush};
use kernmm::slab::GlobalHeap;
use kernmm::syscall::{self, Binary, ElfType, ExecImage, MmapArgs, OpenMode, StackImage};
use kernmm::table::{EntryFormat, Pae, PageTable, Sv39, X86_64};

const MIB: u64 = 1 << 20;

#[test]
fn metadata_of_virtual_memory_may_lie_in_the_map_too() {
    let machine = Machine::pc(24 * MIB).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let map = machine.take_map().unwrap();
    let config = Config::from(&machine);
    let plan = Plan::new(map.ranges(), &config).unwrap();
    let limits = VmLimits::for_frames(plan.managed_pages());
    let room = limits.layout(&plan).size();
    let (memory, metadata) = Memory::boot_in_map_with_room(map, &config, Options::default(), room).unwrap();
    let needed = Vm::<Memory<'_, Machine>>::metadata_layout(memory.phys(), &limits);
    assert!(needed.size() <= room && room <= metadata.len() && metadata.len() < room + PAGE_SIZE);
    assert_eq!(metadata.as_ptr().addr() % PAGE_SIZE, 0);
    metadata.fill(MaybeUninit::new(0xa5));
    memory.phys().check(&memory.pin()).expect("what is written there is nobody else's");
    let vm: Vm<'_, _> = Vm::new(&memory, &limits, Sysctl::default(), metadata).unwrap();
    let process: Process<'_, '_, _> = Process::new(&vm).unwrap();
    let (prot, flags) = (Prot::READ | Prot::WRITE, MapFlags::PRIVATE | MapFlags::ANONYMOUS);
    let args = MmapArgs { addr: 0, len: 1, prot, flags, file: Ok(None), offset: 0 };
    let at = process.mmap(&args).unwrap();
    process.copy_to_user(at, b"there").unwrap();
    let mut back = [0; 5];
    process.copy_from_user(at, &mut back).unwrap();
    assert_eq!(&back, b"there");
}

#[test]
fn no_room_is_given_that_the_map_does_not_have() {
    for room in [24 * MIB as usize, usize::MAX - 4096, usize::MAX] {
        let machine = Machine::pc(24 * MIB).build().unwrap();
        let _boot = machine.cpu(CpuId::BOOT).unwrap();
        let map = machine.take_map().unwrap();
        let config = Config::from(&machine);
        let booted = Memory::boot_in_map_with_room(map, &config, Options::default(), room);
        assert!(matches!(booted, Err(InitError::NoRoomForMetadata)), "{room}");
    }
}

/// Processes on a machine with this memory management unit: their first mapping, the last page that one can have, and what lies behind.
fn has_the_addresses_of_its_tables<F: EntryFormat>(mmu: Mmu) {
    let machine = Machine::pc(24 * MIB).mmu(mmu).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _, F> = Vm::on(&memory).unwrap();
    let process: Process<'_, '_, _, F> = Process::new(&vm).unwrap();
    let user = User::new(&process);
    let (prot, flags) = (Prot::READ | Prot::WRITE, MapFlags::PRIVATE | MapFlags::ANONYMOUS);
    let args = MmapArgs { addr: 0, len: 3 * MIB, prot, flags, file: Ok(None), offset: 0 };
    let last = F::TASK_SIZE - PAGE_SIZE as u64;
    let at_the_end = MmapArgs { addr: last, len: 1, flags: flags | MapFlags::FIXED, ..args };
    for at in [process.mmap(&args).unwrap(), process.mmap(&at_the_end).unwrap()] {
        user.store(at, b"there").unwrap();
        assert_eq!(user.load_byte(at).unwrap(), b't', "{}", F::NAME);
    }
    let beyond = MmapArgs { addr: F::TASK_SIZE, ..at_the_end };
    assert_eq!(process.mmap(&beyond), Err(MmError::NoGap), "{}", F::NAME);
    for beyond in [F::TASK_SIZE, F::KERNEL_START, 1 << 60] {
        let fault = process.handle_fault(VirtAddr::from(beyond), Access::Read, Attempt::First);
        assert!(matches!(fault, Fault::Signal(_)), "{} {beyond:#x}: {fault:?}", F::NAME);
    }
}

#[test]
fn processes_have_the_addresses_that_their_tables_translate() {
    has_the_addresses_of_its_tables::<X86_64>(Mmu::X86_64);
    has_the_addresses_of_its_tables::<Pae>(Mmu::Pae);
    has_the_addresses_of_its_tables::<Sv39>(Mmu::Sv39);
}

#[test]
fn addresses_that_tables_cannot_translate_are_refused_at_boot() {
    let machine = Machine::pc(24 * MIB).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let linux = Sysctl::default();
    let with = |task_size| Vm::<_, Sv39>::on_with(&memory, Sysctl { task_size, ..linux }).map(drop);
    let bad = Err(VmError::BadTaskSize(Sv39::TASK_SIZE));
    let page = PAGE_SIZE as u64;
    for task_size in [linux.task_size, Sv39::TASK_SIZE + page, Sv39::TASK_SIZE - 1, 0] {
        assert_eq!(with(task_size), bad, "{task_size:#x}");
    }
    assert_eq!((with(Sv39::TASK_SIZE), with(Sv39::TASK_SIZE - page)), (Ok(()), Ok(())));
    let larger = Sysctl { task_size: X86_64::USER_END, ..linux };
    assert_eq!(
        Vm::<_, X86_64>::on_with(&memory, larger).map(drop),
        Err(VmError::BadTaskSize(linux.task_size))
    );
}

#[test]
fn a_vma_where_the_tables_translate_nothing_is_a_signal_and_not_out_of_memory() {
    let machine = Machine::pc(24 * MIB).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let sysctl = Sysctl { huge_pages: HugePages::Always, ..Sysctl::default() };
    let vm: Vm<'_, _> = Vm::on_with(&memory, sysctl).unwrap();
    // Whoever puts the parts together himself may have the addresses of one format and the tables of another.
    let pager: Pager<'_, '_, _, Sv39> =
        Pager::new(&memory, vm.context(), vm.cache(), vm.zero_page(), vm.huge_zero_page());
    let mut mm = Mm::new(vm.context()).unwrap();
    let table = PageTable::<_, Sv39>::create(&memory, None).unwrap();
    mm.shared().set_pgd(Some(table.pgd()));
    let mut pages = pager.of(&mm).unwrap();
    let (prot, flags) = (Prot::READ | Prot::WRITE, MapFlags::PRIVATE | MapFlags::ANONYMOUS);
    let args = MmapArgs { addr: 0, len: 4 * MIB, prot, flags, file: Ok(None), offset: 0 };
    let at = syscall::mmap(&mut mm, &mut pages, &args).unwrap();
    for access in [Access::Read, Access::Write] {
        assert_eq!(
            pages.handle_fault(&mm, at, access),
            Some(Fault::Signal(Signal::NonCanonical)),
            "{access:?}"
        );
    }
    syscall::exit(&mut mm, &mut pages);
    pages.destroy();
    mm.shared().set_pgd(None);
}

#[test]
fn a_small_user_half_has_its_layout_too() {
    let machine = Machine::pc(24 * MIB).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on_with(&memory, Sysctl { task_size: 16 * MIB, ..Sysctl::default() }).unwrap();
    let process: Process<'_, '_, _> = Process::new(&vm).unwrap();
    process.with_mut(|mm| mm.randomize_mmap_base(0));
    let base = process.with(|mm| mm.mmap_base().get());
    assert!((1..16 * MIB).contains(&base), "{base:#x}");
}

#[test]
fn a_context_switch_may_load_the_next_tables_before_or_after_it_leaves_the_previous() {
    let machine = Machine::pc(24 * MIB).asids(Asids::Off).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let [prev, next]: [Process<'_, '_, _>; 2] = [(), ()].map(|()| Process::new(&vm).unwrap());
    let root = |process: &Process<'_, '_, _>| process.with(|mm| mm.shared().pgd());
    let cpus = |process: &Process<'_, '_, _>| process.with(|mm| mm.shared().cpus().load().len());
    prev.activate().unwrap();
    next.activate().unwrap();
    assert_eq!((machine.tables(), cpus(&prev), cpus(&next)), (root(&next), 1, 1));
    prev.deactivate();
    assert_eq!((machine.tables(), cpus(&prev), cpus(&next)), (root(&next), 0, 1), "it walks the next one's");
    next.deactivate();
    assert_eq!((machine.tables(), cpus(&next)), (None, 0));
    prev.activate().unwrap();
    assert_eq!((machine.tables(), cpus(&prev)), (root(&prev), 1));
    next.activate().unwrap();
    drop(prev);
    assert_eq!(machine.tables(), root(&next), "whoever ends takes nobody else's tables away");
    drop(next);
    assert_eq!(machine.tables(), None);
}

/// A machine that forgets to say which tables its CPU walks.
struct Forgetful(Machine);

// SAFETY: what it answers is the machine's; a process whose tables it may walk unnoticed is what the test is about.
unsafe impl Platform for Forgetful {
    fn direct_map(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        self.0.direct_map(pfn)
    }

    fn switch_tables(&self, pgd: Option<Pfn>) {
        self.0.switch_tables(pgd);
    }
}

#[test]
fn a_platform_that_does_not_know_which_tables_it_walks_gets_none() {
    let forgetful = Forgetful(Machine::pc(24 * MIB).build().unwrap());
    let machine = &forgetful.0;
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let ranges: Vec<_> = machine.map().collect();
    let config = Config::from(machine);
    // SAFETY: nobody else uses the machine.
    let map = unsafe { MemoryMap::new(&forgetful, ranges.iter().copied()) };
    let limits = VmLimits::for_frames(24 * MIB / PAGE_SIZE as u64);
    let plan = Plan::new(map.ranges(), &config).unwrap();
    let room = limits.layout(&plan).size();
    let (memory, room) = Memory::boot_in_map_with_room(map, &config, Options::default(), room).unwrap();
    let vm: Vm<'_, _> = Vm::new(&memory, &limits, Sysctl::default(), room).unwrap();
    let process: Process<'_, '_, _> = Process::new(&vm).unwrap();
    assert_eq!(process.activate(), Err(MmError::TablesUnknown));
    assert_eq!(machine.tables(), None, "the tables can be freed");
    assert!(process.with(|mm| mm.shared().cpus().load().is_empty()));
}

/// A machine whose timer strikes whenever interrupts are unmasked.
struct Ticking<'t> {
    machine: Machine,
    masked: AtomicUsize,
    /// What the tick does; none while one is under way.
    tick: Mutex<Option<&'t (dyn Fn() + Sync)>>,
}

// SAFETY: what it answers is the machine's; the tick comes when interrupts are no longer masked.
unsafe impl Platform for Ticking<'_> {
    fn direct_map(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        self.machine.direct_map(pfn)
    }

    fn irq_save(&self) -> usize {
        self.masked.fetch_add(1, Relaxed);
        self.machine.irq_save()
    }

    unsafe fn irq_restore(&self, flags: usize) {
        // SAFETY: as the caller promises.
        unsafe { self.machine.irq_restore(flags) };
        if self.masked.fetch_sub(1, Relaxed) == 1 {
            let tick = self.tick.lock().unwrap().take();
            if let Some(strike) = tick {
                strike();
                *self.tick.lock().unwrap() = tick;
            }
        }
    }

    fn switch_tables(&self, pgd: Option<Pfn>) {
        assert_ne!(self.masked.load(Relaxed), 0, "a tick here would find tables that are half switched");
        self.machine.switch_tables(pgd);
    }

    fn tables(&self) -> Option<Pfn> {
        self.machine.tables()
    }

    fn flush_tlb(&self, cpus: &CpuMask, flush: &TlbFlush) {
        self.machine.flush_tlb(cpus, flush);
    }
}

#[test]
fn a_scheduler_may_switch_at_any_moment_of_an_exec() {
    let machine = Machine::pc(24 * MIB).asids(Asids::Off).build().unwrap();
    let ticking = forever(Ticking { machine, masked: AtomicUsize::new(0), tick: Mutex::new(None) });
    let _boot = ticking.machine.cpu(CpuId::BOOT).unwrap();
    let ranges: Vec<_> = ticking.machine.map().collect();
    let config = Config::from(&ticking.machine);
    // SAFETY: nobody else uses the machine.
    let map = unsafe { MemoryMap::new(ticking, ranges.iter().copied()) };
    let limits = VmLimits::for_frames(24 * MIB / PAGE_SIZE as u64);
    let plan = Plan::new(map.ranges(), &config).unwrap();
    let room = limits.layout(&plan).size();
    let (memory, room) = Memory::boot_in_map_with_room(map, &config, Options::default(), room).unwrap();
    let memory = forever(memory);
    let vm: &Vm<'_, _> = forever(Vm::new(memory, &limits, Sysctl::default(), room).unwrap());
    let process: &Process<'_, '_, _> = forever(Process::new(vm).unwrap());
    process.activate().unwrap();
    let old = process.with(|mm| mm.shared());
    let (old_root, ticks, news) = (old.pgd().unwrap(), AtomicUsize::new(0), AtomicUsize::new(0));
    let (ticks, news) = (forever(ticks), forever(news));
    // Away to a thread of the kernel, and back.
    let tick = forever(move || {
        process.deactivate();
        assert_eq!(ticking.tables(), None, "tables are kept that the scheduler has left");
        assert!(old.cpus().load().is_empty());
        process.activate().unwrap();
        ticks.fetch_add(1, Relaxed);
        news.fetch_add(usize::from(ticking.tables() != Some(old_root)), Relaxed);
    });
    *ticking.tick.lock().unwrap() = Some(tick);
    let (top, prot) = (0x7000_0000, Prot::READ | Prot::WRITE);
    let stack = StackImage { top, path_bytes: 8, arg_bytes: 8, env_bytes: 8, vector_bytes: 256, prot };
    let file = FileRef::new(1, 1, FileKind::Regular).unwrap();
    let program = Binary { file, kind: ElfType::Fixed, align: 0, segments: &[] };
    let image = ExecImage { program, interpreter: None, stack, seed: 0 };
    process.exec(&image).unwrap();
    *ticking.tick.lock().unwrap() = None;
    let (ticks, news) = (ticks.load(Relaxed), news.load(Relaxed));
    assert!(ticks > news && news > 0, "{ticks} ticks, {news} of them with the new program's tables");
    assert_eq!(ticking.tables(), process.with(|mm| mm.shared().pgd()));
    assert_ne!(ticking.tables(), Some(old_root));
    process.deactivate();
}

fn free(memory: &Memory<'_, Machine>) -> u64 {
    memory.phys().drain_all(&memory.pin());
    memory.check().unwrap();
    memory.phys().free_pages_total()
}

/// Virtual memory in use and in disuse again, on a kernel's own tables or on the library's; its CPUs walk the kernel's half meanwhile.
fn comes_and_goes<F: EntryFormat>(mmu: Mmu, boot: Option<u64>) {
    let machine = Machine::pc(24 * MIB).cpus(2).mmu(mmu).build().unwrap();
    let cpus = machine.all_cpus().unwrap();
    let memory = Memory::on(&machine).unwrap();
    let disk = Disk::new(&machine);
    disk.put(7, b"Hello, disk");
    let root = boot.and_then(|_| memory.alloc_pages(GfpFlags::KERNEL | GfpFlags::ZERO, PageOrder::ZERO).ok());
    let before = free(&memory);
    {
        let mut vm: Vm<'_, _, F> = Vm::on(&memory).unwrap();
        if let Some(root) = root {
            vm.adopt_kernel_half(root, F::VMALLOC).unwrap();
        }
        let kernel = vm.kernel_tables();
        for cpu in &cpus {
            cpu.run(|| machine.switch_tables(Some(kernel.pgd())));
        }
        let area = kernel.vmalloc(5 * PAGE_SIZE as u64, GfpFlags::KERNEL).unwrap();
        for cpu in &cpus {
            cpu.run(|| machine.kernel_store(area, b"kernel")).unwrap();
        }
        kernel.vfree(area).unwrap();
        let process: Process<'_, '_, _, F> = Process::new(&vm).unwrap();
        let file = vm.open_file(&disk, 7, OpenMode::ReadWrite).unwrap();
        file.write_at(0, b"J").unwrap();
        let (prot, flags) = (Prot::READ | Prot::WRITE, MapFlags::SHARED);
        let args = MmapArgs { addr: 0, len: 11, prot, flags, file: Ok(Some(file.map_file())), offset: 0 };
        let at = process.mmap(&args).unwrap();
        drop(file);
        User::new(&process).store(VirtAddr::from(at.get() + 1), b"u").unwrap();
        drop(process);
        cpus[1].run(|| machine.switch_tables(None));
        machine.switch_tables(Some(vm.kernel_tables().pgd()));
        let (held, old) = (free(&memory), disk.files().contents(7));
        assert_eq!(old.as_deref(), Some(&b"Hello, disk"[..]), "nobody has written it yet");
        while vm.reap() != 0 {
            machine.relax();
        }
        assert!(free(&memory) > held, "its page is free once it is written");
        assert_eq!(disk.files().contents(7).as_deref(), Some(&b"Jullo, disk"[..]));
    }
    assert_eq!(machine.tables(), None, "the caller's CPU has left the kernel's tables, which are gone");
    assert_eq!(free(&memory), before, "{}: frames were lost", F::NAME);
    if let Some(root) = root {
        let pin = memory.pin();
        let root = memory.kmap(&pin, root).unwrap();
        let mut entries = [1; PAGE_SIZE];
        assert!(
            root.read(0, &mut entries) && entries == [0; PAGE_SIZE],
            "nothing leads to tables that are gone"
        );
    }
}

#[test]
fn all_frames_are_back_when_virtual_memory_is_dropped() {
    comes_and_goes::<X86_64>(Mmu::X86_64, None);
    comes_and_goes::<Pae>(Mmu::Pae, None);
    comes_and_goes::<Sv39>(Mmu::Sv39, None);
    comes_and_goes::<X86_64>(Mmu::X86_64, Some(0));
    comes_and_goes::<Sv39>(Mmu::Sv39, Some(0));
}

#[test]
fn virtual_memory_that_there_is_no_room_for_takes_nothing() {
    let machine = Machine::pc(24 * MIB).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let before = free(&memory);
    let mut failures = 0;
    for nth in 1.. {
        memory.phys().set_fail_rule(&memory.pin(), FailRule::Nth(nth));
        let made = Vm::<_, X86_64>::on(&memory).map(drop);
        memory.phys().set_fail_rule(&memory.pin(), FailRule::Never);
        assert_eq!(free(&memory), before, "with allocation {nth} refused");
        match made {
            Ok(()) => break,
            Err(error) if failures == 0 => assert_eq!(error, VmError::NoZeroPage),
            Err(error) => assert_eq!(error, VmError::NoKernelTables),
        }
        failures += 1;
    }
    assert!(failures >= 3, "the page of zeros, a root, a table: {failures}");
}

#[test]
fn what_is_still_held_when_virtual_memory_is_dropped_is_told_and_stays() {
    let machine = Machine::pc(24 * MIB).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let zero_page = vm.zero_page();
    std::mem::forget(vm.process().unwrap());
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(vm)));
    assert_eq!(dropped.is_err(), cfg!(feature = "check"));
    assert!(machine.take_reports().contains("1 address spaces, 0 pages of files and 0 areas"));
    let page = memory.phys().page(zero_page).unwrap();
    assert_eq!(page.state(), PageState::Allocated, "a CPU may still walk to it");
}

/// Things that are there for as long as a kernel is.
fn forever<T>(thing: T) -> &'static T {
    Box::leak(Box::new(thing))
}

#[test]
fn files_that_nobody_uses_are_freed_when_memory_is_short_as_soon_as_they_are_written() {
    let machine = forever(Machine::pc(16 * MIB).build().unwrap());
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = forever(Memory::on(machine).unwrap());
    let disk = forever(Disk::new(machine));
    disk.put(7, b"Hello, disk");
    let vm: &Vm<'_, _> = forever(Vm::on(memory).unwrap());
    memory.register_shrinker(vm).unwrap();
    vm.open_file(disk, 7, OpenMode::ReadWrite).unwrap().write_at(0, b"J").unwrap();
    let quiet = GfpFlags::KERNEL | GfpFlags::NOWARN;
    while memory.alloc_pages(quiet, PageOrder::ZERO).is_ok() {}
    assert_eq!(vm.cache().pages(memory), 1, "an allocation does not write: who asks may hold a lock");
    assert!(vm.write_out(), "who holds none has the page written");
    memory.alloc_pages(quiet, PageOrder::ZERO).expect("it is free");
    assert!(!vm.write_out(), "nothing is left to be written");
    assert_eq!(vm.cache().pages(memory), 0);
    assert_eq!(disk.files().contents(7).as_deref(), Some(&b"Jello, disk"[..]));
}

#[test]
fn a_global_heap_shares_the_facades_slab_allocator() {
    static HEAP: GlobalHeap<Memory<'static, Machine>> = GlobalHeap::new();
    let machine = forever(Machine::pc(16 * MIB).build().unwrap());
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = forever(Memory::on(machine).unwrap());
    let layout = std::alloc::Layout::new::<[u64; 9]>();
    // SAFETY: the layout has a size.
    assert!(unsafe { HEAP.alloc(layout) }.is_null(), "it has no memory yet");
    HEAP.share(memory.slabs().unwrap(), memory);
    // SAFETY: the layout has a size.
    let object = NonNull::new(unsafe { HEAP.alloc(layout) }).unwrap();
    // SAFETY: nobody uses it any more.
    unsafe { memory.kfree(object) }.expect("it is the façade's");
    let object = memory.kmalloc(72, GfpFlags::KERNEL).unwrap();
    // SAFETY: nobody uses it any more.
    unsafe { HEAP.dealloc(object.as_ptr(), layout) };
    memory.check().unwrap();
    // SAFETY: it is refused.
    assert!(unsafe { memory.kfree(object) }.is_err(), "the heap has freed it");
}
