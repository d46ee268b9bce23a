//! Programs on the simulated machine: what they map, touch and share is what they find there.

use kernmm::addr::VirtAddr;
use kernmm::fault::Signal;
use kernmm::flags::{MapFlags, Prot};
use kernmm::memory::{Memory, Process, Refused, User, Vm, VmError};
use kernmm::mm::{ProtectionKeys, Sysctl};
use kernmm::platform::CpuId;
use kernmm::platform::hosted::Machine;
use kernmm::syscall::MmapArgs;
use kernmm::table::Pae;

const PAGE: u64 = 4096;

type Proc<'v, 'a, 'm> = Process<'v, 'a, Memory<'m, Machine>>;

/// Runs a test on a machine with so many bytes of RAM, and looks afterwards whether all frames are back.
fn on_machine(ram: u64, test: impl FnOnce(&Vm<'_, Memory<'_, Machine>>)) {
    on_machine_with(ram, Sysctl::default(), test);
}

fn on_machine_with(ram: u64, sysctl: Sysctl, test: impl FnOnce(&Vm<'_, Memory<'_, Machine>>)) {
    let machine = Machine::pc(ram).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on_with(&memory, sysctl).unwrap();
    let before = free(&memory);
    test(&vm);
    assert_eq!(free(&memory), before, "frames were lost");
}

fn free(memory: &Memory<'_, Machine>) -> u64 {
    memory.phys().drain_all(&memory.pin());
    memory.phys().free_pages_total()
}

fn anonymous(process: &Proc<'_, '_, '_>, pages: u64, prot: Prot, sharing: MapFlags) -> u64 {
    let flags = sharing | MapFlags::ANONYMOUS;
    let args = MmapArgs { addr: 0, len: pages * PAGE, prot, flags, file: Ok(None), offset: 0 };
    process.mmap(&args).unwrap().get()
}

fn signal<T>(result: Result<T, Refused>) -> Signal {
    match result {
        Err(Refused::Signal(signal)) => signal,
        Err(Refused::OutOfMemory) => panic!("out of memory"),
        Ok(_) => panic!("the access was allowed"),
    }
}

fn at(addr: u64) -> VirtAddr {
    VirtAddr::from(addr)
}

const RW: Prot = Prot::READ.union(Prot::WRITE);

#[test]
fn what_is_stored_is_loaded_and_what_is_unmapped_faults() {
    on_machine(16 << 20, |vm| {
        let process = Process::new(vm).unwrap();
        let user = User::new(&process);
        let start = anonymous(&process, 3, RW, MapFlags::PRIVATE);
        assert_eq!(user.load_u32(at(start)), Ok(0));
        user.store_u32(at(start), 0xdead_beef).unwrap();
        user.store(at(start + PAGE - 2), b"across").unwrap();
        let mut bytes = [0; 6];
        user.load(at(start + PAGE - 2), &mut bytes).unwrap();
        assert_eq!(&bytes, b"across");
        assert_eq!(user.load_u32(at(start)), Ok(0xdead_beef));
        assert_eq!(process.with(|mm| mm.shared().resident()), 2);
        process.munmap(start, PAGE).unwrap();
        assert_eq!(signal(user.load_byte(at(start))), Signal::NotMapped);
        assert_eq!(user.load_byte(at(start + PAGE)), Ok(b'r'));
        process.mprotect(start + PAGE, PAGE, Prot::READ).unwrap();
        assert_eq!(signal(user.store_u32(at(start + PAGE), 1)), Signal::Denied);
        process.mprotect(start + PAGE, PAGE, Prot::empty()).unwrap();
        assert_eq!(signal(user.load_byte(at(start + PAGE))), Signal::Denied);
        process.mprotect(start + PAGE, PAGE, RW).unwrap();
        assert_eq!(user.load_byte(at(start + PAGE)), Ok(b'r'));
        user.store_u32(at(start + PAGE), 1).unwrap();
    });
}

#[test]
fn a_child_has_its_parents_memory_and_neither_sees_what_the_other_writes_later() {
    on_machine(16 << 20, |vm| {
        let parent = Process::new(vm).unwrap();
        let private = anonymous(&parent, 2, RW, MapFlags::PRIVATE);
        let shared = anonymous(&parent, 2, RW, MapFlags::SHARED);
        let user = User::new(&parent);
        user.store_u32(at(private), 1).unwrap();
        user.store_u32(at(shared), 2).unwrap();
        let child = parent.fork().unwrap();
        let son = User::new(&child);
        assert_eq!((son.load_u32(at(private)), son.load_u32(at(shared))), (Ok(1), Ok(2)));
        son.store_u32(at(private), 10).unwrap();
        son.store_u32(at(shared), 20).unwrap();
        assert_eq!((user.load_u32(at(private)), user.load_u32(at(shared))), (Ok(1), Ok(20)));
        user.store_u32(at(private), 100).unwrap();
        user.store_u32(at(shared + PAGE), 200).unwrap();
        assert_eq!((son.load_u32(at(private)), son.load_u32(at(shared + PAGE))), (Ok(10), Ok(200)));
    });
}

#[test]
fn memory_moves_with_its_bytes() {
    on_machine(16 << 20, |vm| {
        let process = Process::new(vm).unwrap();
        let user = User::new(&process);
        let start = anonymous(&process, 8, RW, MapFlags::PRIVATE);
        for page in 0..8 {
            user.store_u32(at(start + page * PAGE), page as u32 + 1).unwrap();
        }
        let target = anonymous(&process, 16, RW, MapFlags::PRIVATE);
        let flags = kernmm::flags::MremapFlags::MAYMOVE | kernmm::flags::MremapFlags::FIXED;
        let moved = process.mremap(start, 8 * PAGE, 12 * PAGE, flags, target + PAGE).unwrap().get();
        assert_eq!(moved, target + PAGE);
        for page in 0..12 {
            let expected = if page < 8 { page as u32 + 1 } else { 0 };
            assert_eq!(user.load_u32(at(moved + page * PAGE)), Ok(expected));
        }
        assert_eq!(signal(user.load_byte(at(start))), Signal::NotMapped);
    });
}

#[test]
fn the_kernel_copies_to_and_from_a_process() {
    on_machine(16 << 20, |vm| {
        let process = Process::new(vm).unwrap();
        let start = anonymous(&process, 4, RW, MapFlags::PRIVATE);
        let bytes: Vec<u8> = (0..3 * PAGE).map(|n| (n % 251) as u8).collect();
        process.copy_to_user(at(start + 100), &bytes).unwrap();
        let mut back = vec![0; bytes.len()];
        process.copy_from_user(at(start + 100), &mut back).unwrap();
        assert_eq!(back, bytes);
        let mut loaded = vec![0; bytes.len()];
        User::new(&process).load(at(start + 100), &mut loaded).unwrap();
        assert_eq!(loaded, bytes);
        assert_eq!(signal(process.copy_to_user(at(start + 3 * PAGE), &bytes)), Signal::NotMapped);
    });
}

#[test]
fn memory_that_may_be_executed_only_cannot_be_read_resident_or_not() {
    let keys = ProtectionKeys::Present;
    on_machine_with(16 << 20, Sysctl { protection_keys: keys, ..Sysctl::default() }, |vm| {
        let process = Process::new(vm).unwrap();
        let user = User::new(&process);
        let start = anonymous(&process, 2, RW, MapFlags::PRIVATE);
        user.store(at(start), &[7]).unwrap();
        process.mprotect(start, 2 * PAGE, Prot::EXEC).unwrap();
        for addr in [start, start + PAGE] {
            assert_eq!(signal(user.load(at(addr), &mut [0])), Signal::DeniedByKey);
            assert_eq!(signal(user.store(at(addr), &[1])), Signal::DeniedByKey);
            assert_eq!(signal(process.copy_from_user(at(addr), &mut [0])), Signal::DeniedByKey);
            user.fetch(at(addr), &mut [0]).unwrap();
            // Now it is resident.
            assert_eq!(signal(user.load(at(addr), &mut [0])), Signal::DeniedByKey);
        }
        let child = process.fork().unwrap();
        assert_eq!(signal(User::new(&child).load(at(start), &mut [0])), Signal::DeniedByKey);
        process.mprotect(start, 2 * PAGE, RW).unwrap();
        assert_eq!(user.load_byte(at(start)), Ok(7));
        assert_eq!(user.load_byte(at(start + PAGE)), Ok(0));
    });
}

#[test]
fn without_keys_memory_that_may_be_executed_can_be_read() {
    on_machine(16 << 20, |vm| {
        let process = Process::new(vm).unwrap();
        let start = anonymous(&process, 1, Prot::EXEC, MapFlags::PRIVATE);
        assert_eq!(User::new(&process).load_byte(at(start)), Ok(0));
    });
    let machine = Machine::pc(16 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let sysctl = Sysctl { protection_keys: ProtectionKeys::Present, ..Sysctl::for_format::<Pae>() };
    let refused = Vm::<_, Pae>::on_with(&memory, sysctl).err();
    assert_eq!(refused, Some(VmError::NoProtectionKeys));
}
