//! What a kernel needs to give the library its machine: metadata in the map itself.

use std::mem::MaybeUninit;

use kernmm::addr::PAGE_SIZE;
use kernmm::flags::{MapFlags, Prot};
use kernmm::memory::{Memory, Options, Process, Vm, VmLimits};
use kernmm::mm::Sysctl;
use kernmm::phys::{Config, InitError, Plan};
use kernmm::platform::CpuId;
use kernmm::platform::hosted::Machine;
use kernmm::syscall::MmapArgs;

const MIB: u64 = 1 << 20;

#[test]
fn metadata_of_virtual_memory_may_lie_in_the_map_too() {
    let machine = Machine::pc(24 * MIB).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let map = machine.take_map().unwrap();
    let config = Config::from(&machine);
    let plan = Plan::new(map.ranges(), &config).unwrap();
    let limits = VmLimits::for_frames(plan.managed_pages());
    let room = Vm::<Memory<'_, Machine>>::metadata_layout_of(&plan, &limits).size();
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
