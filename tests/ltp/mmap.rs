//! mmap, munmap, mprotect.

use kernmm::addr::VirtAddr;
use kernmm::error::Errno;
use kernmm::flags::{MapFlags, MsyncFlags, Prot, VmFlags};
use kernmm::mm::{MmError, Sysctl};
use kernmm::syscall::{MmapArgs, OpenMode};

use crate::scene::*;

/// The first address that is not the user's.
const TASK: u64 = (1 << 47) - PAGE;

#[test]
fn mmap_01_the_tail_behind_the_end_of_a_file_is_zero_and_not_written_back() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let start = map_file(&process, &file, 4, RW, SHARED);
        assert!(load_all(&process, start + 3 * PAGE + 100, PAGE - 100).iter().all(|&byte| byte == 0));
        store(&process, start + 3 * PAGE + 99, b'L').unwrap();
        store(&process, start + 3 * PAGE + 100, b'X').unwrap();
        process.msync(start, 4 * PAGE, MsyncFlags::SYNC).unwrap();
        let mut expected = contents();
        expected[3 * PAGE as usize + 99] = b'L';
        assert_eq!(disk.files().contents(INODE).unwrap(), expected);
        assert_eq!(file.size(), Ok(3 * PAGE + 100));
    });
}

#[test]
fn mmap_02_a_file_is_read_through_a_mapping_that_cannot_be_written() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let start = map_file(&process, &file, 4, Prot::READ, SHARED);
        assert_eq!(load_all(&process, start, 3 * PAGE + 100), contents());
        assert_eq!(store(&process, start, 1), Err(DENIED));
    });
}

#[test]
fn mmap_03_a_file_is_executed_through_a_mapping_and_read_without_keys() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let start = map_file(&process, &file, 4, Prot::EXEC, SHARED);
        assert_eq!(fetch(&process, start), Ok(()));
        assert_eq!(load_all(&process, start, 3 * PAGE), contents()[..3 * PAGE as usize]);
        assert_eq!(store(&process, start, 1), Err(DENIED));
    });
}

#[test]
fn mmap_04_maps_shows_the_permissions_that_were_asked_for() {
    on_machine(|vm, _| {
        let process = process(vm);
        for bits in 0..8 {
            let prot = Prot::from_bits_retain(bits);
            for (sharing, letter) in [(PRIVATE, 'p'), (SHARED, 's')] {
                map_at(&process, ARENA, 2, prot, sharing);
                let mut text = String::new();
                process.maps(&mut text, &crate::Anonymous).unwrap();
                let letters = [('r', Prot::READ), ('w', Prot::WRITE), ('x', Prot::EXEC)]
                    .map(|(letter, bit)| if prot.contains(bit) { letter } else { '-' });
                let permissions: String = letters.into_iter().chain([letter]).collect();
                assert!(text.starts_with(&format!("40000000-40002000 {permissions} ")), "{text}");
            }
        }
    });
}

#[test]
fn mmap_05_memory_without_access_faults() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let start = map_file(&process, &file, 1, Prot::NONE, SHARED);
        assert_eq!(load(&process, start), Err(DENIED));
        assert_eq!(store(&process, start, 1), Err(DENIED));
        assert_eq!(fetch(&process, start), Err(DENIED));
    });
}

#[test]
fn mmap_06_what_the_open_mode_denies_is_eacces_and_bad_arguments_einval() {
    on_machine(|vm, disk| {
        let process = process(vm);
        let [read, write, both] = [OpenMode::ReadOnly, OpenMode::WriteOnly, OpenMode::ReadWrite]
            .map(|mode| vm.open_file(disk, INODE, mode).unwrap());
        let call =
            |file, len, prot, flags| process.mmap(&MmapArgs { len, ..of_file(file, 0, 1, prot, flags) });
        assert_eq!(errno(call(&write, PAGE, Prot::READ, SHARED)), Errno::EACCES);
        assert_eq!(errno(call(&write, PAGE, Prot::WRITE, PRIVATE)), Errno::EACCES);
        assert_eq!(errno(call(&write, PAGE, Prot::WRITE, SHARED)), Errno::EACCES);
        assert_eq!(errno(call(&read, PAGE, RW, SHARED)), Errno::EACCES);
        assert_eq!(errno(call(&both, 0, RW, SHARED)), Errno::EINVAL);
        assert_eq!(errno(call(&both, PAGE, RW, MapFlags::empty())), Errno::EINVAL);
        let odd = MmapArgs { offset: 1, ..of_file(&both, 0, 1, RW, SHARED) };
        assert_eq!(errno(process.mmap(&odd)), Errno::EINVAL);
        assert_eq!(vmas(&process), []);
        call(&read, PAGE, RW, PRIVATE).unwrap();
        call(&both, PAGE, RW, SHARED).unwrap();
    });
}

#[test]
fn mmap_08_without_an_open_file_it_is_ebadf() {
    on_machine(|vm, _| {
        let process = process(vm);
        let none = MmapArgs { flags: SHARED, ..anonymous(0, 1, RW, SHARED) };
        assert_eq!(errno(process.mmap(&none)), Errno::EBADF);
        let closed = MmapArgs { file: Err(MmError::BadDescriptor), ..none };
        assert_eq!(errno(process.mmap(&closed)), Errno::EBADF);
        // With MAP_ANONYMOUS nobody looks at the descriptor.
        let flags = SHARED | MapFlags::ANONYMOUS;
        assert!(process.mmap(&MmapArgs { flags, ..closed }).is_ok());
    });
}

#[test]
fn mmap_09_a_file_changes_its_size_under_its_mapping() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let start = map_file(&process, &file, 8, RW, SHARED);
        assert_eq!(load(&process, start + 2 * PAGE), Ok(content(2 * PAGE)));
        file.truncate(PAGE + 10).unwrap();
        assert_eq!(load(&process, start + 2 * PAGE), Err(NO_PAGE));
        assert_eq!(load(&process, start + PAGE + 9), Ok(content(PAGE + 9)));
        assert_eq!(load(&process, start + PAGE + 10), Ok(0));
        file.truncate(8 * PAGE).unwrap();
        assert_eq!(load(&process, start + 2 * PAGE), Ok(0), "what was cut does not come back");
        store(&process, start + 7 * PAGE, 9).unwrap();
        file.truncate(0).unwrap();
        assert_eq!(load(&process, start), Err(NO_PAGE));
        assert_eq!(pages(&process, start, 8), "........");
    });
}

#[test]
fn mmap_10_memory_of_zeros_is_ones_own_after_fork_and_goes_with_munmap() {
    on_machine(|vm, _| {
        let parent = process(vm);
        let start = map(&parent, 4, RW, PRIVATE);
        assert!(load_all(&parent, start, 4 * PAGE).iter().all(|&byte| byte == 0));
        store(&parent, start + PAGE, 1).unwrap();
        let child = parent.fork().unwrap();
        store(&child, start + PAGE, 2).unwrap();
        child.munmap(start, 4 * PAGE).unwrap();
        assert_eq!(load(&child, start + PAGE), Err(NOT_MAPPED));
        assert_eq!(load(&parent, start + PAGE), Ok(1));
    });
}

#[test]
fn mmap_11_one_munmap_takes_many_mappings() {
    on_machine(|vm, _| {
        let process = process(vm);
        for page in 0..128 {
            let prot = if page % 2 == 0 { RW } else { Prot::READ };
            map_at(&process, ARENA + page * PAGE, 1, prot, PRIVATE);
            load(&process, ARENA + page * PAGE).unwrap();
        }
        assert_eq!(vmas(&process).len(), 128);
        process.munmap(ARENA + PAGE, 126 * PAGE).unwrap();
        assert_eq!(layout(&process), [(ARENA, 1), (ARENA + 127 * PAGE, 1)]);
        assert_eq!(load(&process, ARENA + 64 * PAGE), Err(NOT_MAPPED));
        assert_eq!(load(&process, ARENA + 127 * PAGE), Ok(0));
    });
}

#[test]
fn mmap_12_what_is_populated_is_resident_at_once() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let start = map_file(&process, &file, 4, RW, SHARED | MapFlags::POPULATE);
        assert_eq!(pages(&process, start, 4), "ffff");
        let start = map(&process, 4, RW, PRIVATE | MapFlags::POPULATE);
        assert_eq!(pages(&process, start, 4), "aaaa");
        let start = map(&process, 4, RW, PRIVATE);
        assert_eq!(pages(&process, start, 4), "....");
    });
}

#[test]
fn mmap_13_an_access_to_a_page_beyond_the_end_of_the_file_is_sigbus() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        for sharing in [SHARED, PRIVATE] {
            let start = map_file(&process, &file, 6, RW, sharing);
            assert_eq!(load(&process, start + 4 * PAGE - 1), Ok(0));
            assert_eq!(load(&process, start + 4 * PAGE), Err(NO_PAGE));
            assert_eq!(store(&process, start + 4 * PAGE, 1), Err(NO_PAGE));
            assert_eq!(load(&process, start + 6 * PAGE - 1), Err(NO_PAGE));
        }
    });
}

#[test]
fn mmap_14_memory_mapped_locked_is_counted_as_locked_and_resident() {
    on_machine(|vm, _| {
        let process = process(vm);
        map(&process, 3, RW, PRIVATE);
        assert_eq!(locked(&process), 0);
        let start = map(&process, 7, RW, PRIVATE | MapFlags::LOCKED);
        assert_eq!((locked(&process), pages(&process, start, 7).as_str()), (7, "aaaaaaa"));
        process.munmap(start, 3 * PAGE).unwrap();
        assert_eq!(locked(&process), 4);
    });
}

#[test]
fn mmap_15_an_address_beyond_the_users_is_refused_and_a_hint_there_is_not_followed() {
    on_machine(|vm, _| {
        let process = process(vm);
        let fixed = |addr| process.mmap(&anonymous(addr, 1, RW, PRIVATE | MapFlags::FIXED));
        assert_eq!(fixed(TASK - PAGE), Ok(at(TASK - PAGE)));
        for addr in [TASK, TASK + PAGE, 1 << 63, 0u64.wrapping_sub(PAGE)] {
            assert_eq!(errno(fixed(addr)), Errno::ENOMEM, "{addr:#x}");
            let hinted = process.mmap(&anonymous(addr, 1, RW, PRIVATE)).unwrap();
            assert!(hinted.get() < TASK);
        }
    });
}

#[test]
fn mmap_16_a_store_that_is_full_loses_no_byte_and_msync_tells_of_it() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        file.truncate(8 * PAGE).unwrap();
        file.sync().unwrap();
        disk.set_capacity(Some(4));
        let start = map_file(&process, &file, 8, RW, SHARED);
        store(&process, start + 6 * PAGE, b'S').unwrap();
        store(&process, start, b'T').unwrap();
        assert_eq!(errno(process.msync(start, 8 * PAGE, MsyncFlags::SYNC)), Errno::ENOSPC);
        assert_eq!((load(&process, start + 6 * PAGE), load(&process, start)), (Ok(b'S'), Ok(b'T')));
        disk.set_capacity(None);
        process.msync(start, 8 * PAGE, MsyncFlags::SYNC).unwrap();
        let written = disk.files().contents(INODE).unwrap();
        assert_eq!((written[6 * PAGE as usize], written[0]), (b'S', b'T'));
    });
}

#[test]
fn mmap_17_noreplace_is_eexist_where_something_is_mapped() {
    on_machine(|vm, _| {
        let process = process(vm);
        let call = |addr, pages, flags| process.mmap(&anonymous(addr, pages, RW, PRIVATE | flags));
        assert_eq!(call(ARENA, 3, MapFlags::FIXED_NOREPLACE), Ok(at(ARENA)));
        store(&process, ARENA + 2 * PAGE, 5).unwrap();
        for (addr, pages) in [(ARENA, 3), (ARENA + 2 * PAGE, 2), (ARENA - PAGE, 2), (ARENA + PAGE, 1)] {
            assert_eq!(errno(call(addr, pages, MapFlags::FIXED_NOREPLACE)), Errno::EEXIST);
        }
        assert_eq!(load(&process, ARENA + 2 * PAGE), Ok(5));
        assert_eq!(call(ARENA + 3 * PAGE, 1, MapFlags::FIXED_NOREPLACE), Ok(at(ARENA + 3 * PAGE)));
        assert_eq!(call(ARENA + 2 * PAGE, 1, MapFlags::FIXED), Ok(at(ARENA + 2 * PAGE)));
        assert_eq!(load(&process, ARENA + 2 * PAGE), Ok(0));
    });
}

#[test]
fn mmap_18_memory_that_grows_down_grows_until_it_is_within_the_gap_of_another() {
    on_machine(|vm, _| {
        let process = process(vm);
        let stack = ARENA + 1024 * PAGE;
        map_at(&process, stack, 1, RW, PRIVATE | MapFlags::GROWSDOWN);
        for page in 1..=300 {
            store(&process, stack - page * PAGE, 1).unwrap();
        }
        assert_eq!(layout(&process), [(stack - 300 * PAGE, 301)]);
        let below = stack - (300 + 256 + 2) * PAGE;
        map_at(&process, below, 1, RW, PRIVATE);
        assert_eq!(store(&process, stack - 301 * PAGE, 1), Ok(()));
        assert_eq!(store(&process, stack - 302 * PAGE, 1), Err(NOT_MAPPED));
        // What is no neighbour of use does not stop it.
        process.mprotect(below, PAGE, Prot::NONE).unwrap();
        assert_eq!(store(&process, stack - 302 * PAGE, 1), Ok(()));
    });
}

#[test]
fn mmap_19_a_mapping_that_replaces_another_is_what_is_read_at_once() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        map_at(&process, ARENA, 2, RW, PRIVATE);
        for round in 0..8 {
            store(&process, ARENA, 200 + round).unwrap();
            assert_eq!(load(&process, ARENA), Ok(200 + round));
            process.mmap(&of_file(&file, ARENA, 2, Prot::READ, SHARED | MapFlags::FIXED)).unwrap();
            assert_eq!(load(&process, ARENA), Ok(content(0)));
            assert_eq!(store(&process, ARENA, 1), Err(DENIED));
            map_at(&process, ARENA, 2, RW, PRIVATE);
            assert_eq!(load(&process, ARENA), Ok(0));
        }
    });
}

#[test]
fn mmap_20_a_flag_that_is_unknown_is_refused_only_where_it_is_to_be_validated() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let unknown = MapFlags::from_bits_retain(1 << 9);
        let validate = SHARED | PRIVATE;
        let call = |flags| process.mmap(&of_file(&file, 0, 1, RW, flags));
        assert_eq!(errno(call(validate | unknown)), Errno::EOPNOTSUPP);
        assert_eq!(errno(call(validate | MapFlags::SYNC)), Errno::EOPNOTSUPP);
        assert!(call(validate).is_ok());
        assert!(call(SHARED | unknown).is_ok());
    });
}

#[test]
fn mmap_21_the_pages_of_a_large_file_are_where_its_offsets_say() {
    on_machine(|vm, _| {
        let (process, large) = (process(vm), 5u64 << 30);
        let file = vm.memory_file(large).unwrap();
        let start = map_file(&process, &file, large / PAGE, RW, SHARED);
        for offset in [0, (2 << 30) - 1, 2 << 30, (4 << 30) - 1, 4 << 30, large - 1] {
            store(&process, start + offset, (offset >> 30) as u8 + 10).unwrap();
            let mut byte = [0];
            file.read_at(offset, &mut byte).unwrap();
            assert_eq!(byte, [(offset >> 30) as u8 + 10], "{offset:#x}");
        }
        let half = MmapArgs { offset: 4 << 30, ..of_file(&file, 0, 1, RW, SHARED) };
        let part = process.mmap(&half).unwrap().get();
        assert_eq!(load(&process, part), Ok(14));
    });
}

#[test]
fn munmap_01_what_is_unmapped_in_part_or_whole_faults() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let start = map_file(&process, &file, 3, RW, SHARED);
        (0..3).for_each(|page| store(&process, start + page * PAGE, 1).unwrap());
        process.munmap(start, 2 * PAGE).unwrap();
        assert_eq!(load(&process, start), Err(NOT_MAPPED));
        assert_eq!(load(&process, start + PAGE), Err(NOT_MAPPED));
        assert_eq!(load(&process, start + 2 * PAGE), Ok(1));
        process.munmap(start, 3 * PAGE).unwrap();
        assert_eq!(load(&process, start + 2 * PAGE), Err(NOT_MAPPED));
        assert_eq!(process.munmap(start, 3 * PAGE), Ok(()), "nothing to unmap is no error");
    });
}

#[test]
fn munmap_03_no_length_an_odd_address_and_what_is_not_the_users_are_einval() {
    on_machine(|vm, _| {
        let process = process(vm);
        map_at(&process, ARENA, 3, RW, PRIVATE);
        assert_eq!(errno(process.munmap(ARENA, 0)), Errno::EINVAL);
        assert_eq!(errno(process.munmap(ARENA + 1, PAGE)), Errno::EINVAL);
        assert_eq!(errno(process.munmap(TASK, PAGE)), Errno::EINVAL);
        assert_eq!(errno(process.munmap(ARENA, TASK)), Errno::EINVAL);
        assert_eq!(layout(&process), [(ARENA, 3)]);
    });
}

#[test]
fn munmap_04_at_the_limit_of_mappings_a_hole_is_enomem_and_an_end_is_not() {
    let sysctl = Sysctl { max_map_count: 40, ..Sysctl::default() };
    on_machine_with(Wishes { sysctl, ..Wishes::default() }, |vm, _| {
        let process = process(vm);
        let mut count = 0;
        while process.mmap(&anonymous(ARENA + count * 8 * PAGE, 3, RW, PRIVATE | MapFlags::FIXED)).is_ok() {
            count += 1;
        }
        assert_eq!(count, 41, "one more than the limit, as in Linux");
        store(&process, ARENA + PAGE, 4).unwrap();
        assert_eq!(errno(process.munmap(ARENA + PAGE, PAGE)), Errno::ENOMEM);
        assert_eq!(load(&process, ARENA + PAGE), Ok(4));
        process.munmap(ARENA + 2 * PAGE, PAGE).unwrap();
        process.munmap(ARENA + 8 * PAGE, 19 * PAGE).unwrap();
        process.munmap(ARENA + 32 * PAGE + PAGE, PAGE).unwrap();
    });
}

#[test]
fn mprotect_01_errors() {
    on_machine(|vm, disk| {
        let process = process(vm);
        assert_eq!(errno(process.mprotect(ARENA, PAGE, Prot::READ)), Errno::ENOMEM);
        map_at(&process, ARENA, 1, RW, PRIVATE);
        assert_eq!(errno(process.mprotect(ARENA + 1, PAGE, Prot::READ)), Errno::EINVAL);
        assert_eq!(errno(process.mprotect(ARENA, PAGE, Prot::from_bits_retain(0x40))), Errno::EINVAL);
        let file = vm.open_file(disk, INODE, OpenMode::ReadOnly).unwrap();
        let start = map_file(&process, &file, 1, Prot::READ, SHARED);
        assert_eq!(errno(process.mprotect(start, PAGE, Prot::WRITE)), Errno::EACCES);
        assert_eq!(store(&process, start, 1), Err(DENIED));
        let copy = map_file(&process, &file, 1, Prot::READ, PRIVATE);
        assert_eq!(process.mprotect(copy, PAGE, RW), Ok(()));
    });
}

#[test]
fn mprotect_02_memory_that_may_be_read_only_is_written_after_it_may() {
    on_machine(|vm, _| {
        let process = process(vm);
        let start = map(&process, 1, Prot::READ, PRIVATE);
        assert_eq!(load(&process, start), Ok(0));
        assert_eq!(store(&process, start, 3), Err(DENIED));
        process.mprotect(start, PAGE, Prot::WRITE).unwrap();
        assert_eq!(store(&process, start, 3), Ok(()));
        assert_eq!(load(&process, start), Ok(3));
    });
}

#[test]
fn mprotect_03_shared_memory_that_may_no_longer_be_written_faults() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let start = map_file(&process, &file, 2, RW, SHARED);
        store(&process, start, 3).unwrap();
        process.mprotect(start, 2 * PAGE, Prot::READ).unwrap();
        assert_eq!(store(&process, start, 4), Err(DENIED));
        assert_eq!(store(&process, start + PAGE, 4), Err(DENIED));
        assert_eq!(load(&process, start), Ok(3));
    });
}

#[test]
fn mprotect_04_nothing_can_be_done_without_access_and_code_runs_where_it_may() {
    on_machine(|vm, _| {
        let process = process(vm);
        let start = map(&process, 2, RW, PRIVATE);
        store(&process, start, 0xc3).unwrap();
        assert_eq!(fetch(&process, start), Err(DENIED));
        process.mprotect(start, PAGE, Prot::NONE).unwrap();
        assert_eq!((load(&process, start), store(&process, start, 1)), (Err(DENIED), Err(DENIED)));
        assert_eq!(load(&process, start + PAGE), Ok(0));
        process.mprotect(start, PAGE, Prot::READ | Prot::EXEC).unwrap();
        let mut code = [0];
        kernmm::memory::User::new(&process).fetch(VirtAddr::from(start), &mut code).unwrap();
        assert_eq!(code, [0xc3]);
        assert_eq!(store(&process, start, 1), Err(DENIED));
    });
}

#[test]
fn mprotect_05_splits_and_merges_again() {
    on_machine(|vm, _| {
        let process = process(vm);
        map_at(&process, ARENA, 6, RW, PRIVATE);
        (0..6).for_each(|page| store(&process, ARENA + page * PAGE, page as u8).unwrap());
        process.mprotect(ARENA + 2 * PAGE, 2 * PAGE, Prot::READ).unwrap();
        let parts = [(ARENA, 2), (ARENA + 2 * PAGE, 2), (ARENA + 4 * PAGE, 2)];
        assert_eq!(layout(&process), parts);
        assert!(!vmas(&process)[1].2.contains(VmFlags::WRITE));
        assert_eq!(store(&process, ARENA + 3 * PAGE, 9), Err(DENIED));
        process.mprotect(ARENA + 2 * PAGE, 2 * PAGE, RW).unwrap();
        assert_eq!(layout(&process), [(ARENA, 6)]);
        let found: Vec<_> = (0..6).map(|page| load(&process, ARENA + page * PAGE).unwrap()).collect();
        assert_eq!(found, [0, 1, 2, 3, 4, 5]);
        store(&process, ARENA + 3 * PAGE, 9).unwrap();
    });
}
