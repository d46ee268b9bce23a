//! mremap, msync, mincore.

use kernmm::error::Errno;
use kernmm::flags::{MapFlags, MremapFlags, MsyncFlags, PageFlags, Prot};
use kernmm::mm::MmError;
use kernmm::syscall::MmapArgs;
use kernmm::table::PteBits;

use crate::scene::*;

const MAYMOVE: MremapFlags = MremapFlags::MAYMOVE;
const TO: MremapFlags = MremapFlags::MAYMOVE.union(MremapFlags::FIXED);

#[test]
fn mremap_01_a_mapping_of_a_file_grows_and_shows_more_of_it() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let start = map_file(&process, &file, 1, RW, SHARED);
        let grown = process.mremap(start, PAGE, 3 * PAGE, MAYMOVE, 0).unwrap().get();
        assert_eq!(load_all(&process, grown, 3 * PAGE), contents()[..3 * PAGE as usize]);
        store(&process, grown + 2 * PAGE, b'G').unwrap();
        process.msync(grown, 3 * PAGE, MsyncFlags::SYNC).unwrap();
        assert_eq!(disk.files().contents(INODE).unwrap()[2 * PAGE as usize], b'G');
    });
}

#[test]
fn mremap_02_an_odd_address_is_einval() {
    on_machine(|vm, _| {
        let process = process(vm);
        map_at(&process, ARENA, 2, RW, PRIVATE);
        assert_eq!(errno(process.mremap(ARENA + 8, PAGE, 3 * PAGE, MAYMOVE, 0)), Errno::EINVAL);
        assert_eq!(layout(&process), [(ARENA, 2)]);
    });
}

#[test]
fn mremap_03_what_is_not_mapped_is_efault() {
    on_machine(|vm, _| {
        let process = process(vm);
        map_at(&process, ARENA, 1, RW, PRIVATE);
        assert_eq!(errno(process.mremap(ARENA + PAGE, PAGE, 3 * PAGE, MAYMOVE, 0)), Errno::EFAULT);
        assert_eq!(errno(process.mremap(ARENA, 2 * PAGE, 3 * PAGE, MAYMOVE, 0)), Errno::EFAULT);
        assert_eq!(layout(&process), [(ARENA, 1)]);
    });
}

#[test]
fn mremap_04_what_cannot_grow_where_it_is_and_may_not_move_is_enomem() {
    on_machine(|vm, _| {
        let process = process(vm);
        map_at(&process, ARENA, 2, RW, PRIVATE);
        map_at(&process, ARENA + 2 * PAGE, 1, RW, SHARED);
        store(&process, ARENA, 1).unwrap();
        let none = MremapFlags::empty();
        assert_eq!(errno(process.mremap(ARENA, 2 * PAGE, 4 * PAGE, none, 0)), Errno::ENOMEM);
        assert_eq!(layout(&process), [(ARENA, 2), (ARENA + 2 * PAGE, 1)]);
        process.munmap(ARENA + 2 * PAGE, PAGE).unwrap();
        assert_eq!(process.mremap(ARENA, 2 * PAGE, 4 * PAGE, none, 0), Ok(at(ARENA)));
        assert_eq!((load(&process, ARENA), load(&process, ARENA + 3 * PAGE)), (Ok(1), Ok(0)));
    });
}

#[test]
fn mremap_05_rules_of_a_move_to_an_address() {
    on_machine(|vm, _| {
        let process = process(vm);
        let (old, new) = (ARENA, ARENA + 64 * PAGE);
        map_at(&process, old, 4, RW, PRIVATE);
        store(&process, old + 3 * PAGE, 7).unwrap();
        let call = |flags, to| process.mremap(old, 4 * PAGE, 4 * PAGE, flags, to);
        assert_eq!(errno(call(MremapFlags::FIXED, new)), Errno::EINVAL, "without MAYMOVE");
        assert_eq!(errno(call(TO, new + 1)), Errno::EINVAL, "odd");
        for overlap in [old, old + PAGE, old - 3 * PAGE] {
            assert_eq!(errno(call(TO, overlap)), Errno::EINVAL);
        }
        assert_eq!(layout(&process), [(old, 4)]);
        assert_eq!(call(TO, new), Ok(at(new)), "to a free place");
        assert_eq!((load(&process, new + 3 * PAGE), load(&process, old)), (Ok(7), Err(NOT_MAPPED)));
        map_at(&process, old, 4, RW, PRIVATE);
        store(&process, old, 1).unwrap();
        store(&process, old + 3 * PAGE, 8).unwrap();
        assert_eq!(call(TO, new), Ok(at(new)), "in the place of another");
        assert_eq!((load(&process, new), load(&process, new + 3 * PAGE)), (Ok(1), Ok(8)));
        assert_eq!(layout(&process), [(new, 4)]);
    });
}

#[test]
fn mremap_06_what_is_moved_back_merges_and_every_page_is_that_of_its_offset() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        for sharing in [SHARED, PRIVATE] {
            process.mmap(&of_file(&file, ARENA, 3, RW, sharing | MapFlags::FIXED)).unwrap();
            let away = ARENA + 64 * PAGE;
            process.mremap(ARENA + PAGE, 2 * PAGE, 2 * PAGE, TO, away).unwrap();
            assert_eq!(load(&process, away + PAGE), Ok(content(2 * PAGE)));
            // Not beside its neighbour, though the addresses touch.
            process.mremap(away + PAGE, PAGE, PAGE, TO, ARENA + PAGE).unwrap();
            assert_eq!(layout(&process).len(), 3);
            assert_eq!(load(&process, ARENA + PAGE), Ok(content(2 * PAGE)));
            process.mremap(ARENA + PAGE, PAGE, PAGE, TO, ARENA + 2 * PAGE).unwrap();
            process.mremap(away, PAGE, PAGE, TO, ARENA + PAGE).unwrap();
            assert_eq!(layout(&process), [(ARENA, 3)]);
            assert_eq!(load_all(&process, ARENA, 3 * PAGE), contents()[..3 * PAGE as usize]);
            assert_eq!(process.with(|mm| mm.vma(mm.vmas().first().unwrap()).pgoff.get()), 0);
        }
    });
}

#[test]
fn msync_01_what_is_synced_is_in_the_file_and_the_rest_still_in_memory() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let start = map_file(&process, &file, 3, RW, SHARED);
        (0..3).for_each(|page| store(&process, start + page * PAGE, b'm').unwrap());
        let written = || {
            let now = disk.files().contents(INODE).unwrap();
            [0, 1, 2].map(|page| now[page * PAGE as usize] == b'm')
        };
        assert_eq!(written(), [false; 3]);
        process.msync(start + PAGE, PAGE, MsyncFlags::SYNC).unwrap();
        assert_eq!(written(), [false, true, false]);
        process.msync(start, 3 * PAGE, MsyncFlags::SYNC).unwrap();
        assert_eq!(written(), [true; 3]);
    });
}

#[test]
fn msync_02_with_invalidate_read_and_mapping_agree() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let start = map_file(&process, &file, 2, RW, SHARED);
        store(&process, start + PAGE, b'i').unwrap();
        process.msync(start, 2 * PAGE, MsyncFlags::INVALIDATE).unwrap();
        let mut byte = [0];
        file.read_at(PAGE, &mut byte).unwrap();
        assert_eq!(byte, [b'i']);
        file.write_at(PAGE, b"w").unwrap();
        process.msync(start, 2 * PAGE, MsyncFlags::SYNC | MsyncFlags::INVALIDATE).unwrap();
        assert_eq!(load(&process, start + PAGE), Ok(b'w'));
        assert_eq!(disk.files().contents(INODE).unwrap()[PAGE as usize], b'w');
    });
}

#[test]
fn msync_03_errors() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let start = map_file(&process, &file, 2, RW, SHARED);
        process.mlock(start, PAGE).unwrap();
        let (sync, asynchronous, invalidate) = (MsyncFlags::SYNC, MsyncFlags::ASYNC, MsyncFlags::INVALIDATE);
        assert_eq!(errno(process.msync(start, 2 * PAGE, invalidate)), Errno::EBUSY);
        assert_eq!(process.msync(start + PAGE, PAGE, invalidate), Ok(()));
        assert_eq!(errno(process.msync(start, PAGE, sync | asynchronous)), Errno::EINVAL);
        assert_eq!(errno(process.msync(start, PAGE, MsyncFlags::from_bits_retain(0x10))), Errno::EINVAL);
        assert_eq!(errno(process.msync(start + 1, PAGE, sync)), Errno::EINVAL);
        assert_eq!(errno(process.msync(ARENA, PAGE, sync)), Errno::ENOMEM);
        assert_eq!(errno(process.msync(start, 3 * PAGE, sync)), Errno::ENOMEM);
    });
}

#[test]
fn msync_04_a_page_is_dirty_until_it_is_synced_and_again_when_it_is_written() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let start = map_file(&process, &file, 1, RW, SHARED);
        let dirty = || {
            let page = resident(&process, start).unwrap();
            page.flags.contains(PageFlags::DIRTY) || page.bits.contains(PteBits::DIRTY)
        };
        load(&process, start).unwrap();
        assert!(!dirty());
        store(&process, start, 1).unwrap();
        assert!(dirty());
        process.msync(start, PAGE, MsyncFlags::SYNC).unwrap();
        assert!(!dirty());
        store(&process, start, 2).unwrap();
        assert!(dirty());
        process.msync(start, PAGE, MsyncFlags::ASYNC).unwrap();
        assert!(dirty(), "MS_ASYNC writes nothing, as in Linux");
    });
}

#[test]
fn mincore_01_errors() {
    on_machine(|vm, _| {
        let process = process(vm);
        map_at(&process, ARENA, 2, RW, PRIVATE);
        let mut answers = [7; 4];
        let mut call = |addr, len, room: usize| process.mincore(addr, len, &mut answers[..room]);
        assert_eq!(errno(call(ARENA + 1, PAGE, 4)), Errno::EINVAL);
        assert_eq!(errno(call(ARENA, 2 * PAGE, 1)), Errno::EFAULT);
        assert_eq!(errno(call(ARENA, 3 * PAGE, 4)), Errno::ENOMEM);
        assert_eq!(errno(call(ARENA, u64::MAX - ARENA, 4)), Errno::ENOMEM);
        assert_eq!(call(ARENA, 0, 0), Ok(()));
    });
}

#[test]
fn mincore_02_all_pages_of_a_locked_file_are_resident() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let start = map_file(&process, &file, 4, Prot::READ, SHARED);
        assert_eq!(incore(&process, start, 4), "0000");
        process.mlock(start, 4 * PAGE).unwrap();
        assert_eq!(incore(&process, start, 4), "1111");
    });
}

#[test]
fn mincore_03_anonymous_pages_are_resident_when_they_were_touched() {
    on_machine(|vm, _| {
        let process = process(vm);
        let start = map(&process, 4, RW, PRIVATE);
        assert_eq!(incore(&process, start, 4), "0000");
        store(&process, start + PAGE, 1).unwrap();
        load(&process, start + 3 * PAGE).unwrap();
        assert_eq!(incore(&process, start, 4), "0101");
    });
}

#[test]
fn mincore_04_what_a_child_has_touched_of_shared_memory_is_resident_for_its_parent() {
    on_machine(|vm, _| {
        let parent = process(vm);
        let start = map(&parent, 4, RW, SHARED);
        let child = parent.fork().unwrap();
        (0..3).for_each(|page| store(&child, start + page * PAGE, 1).unwrap());
        assert_eq!(incore(&parent, start, 4), "1110");
        assert_eq!(pages(&parent, start, 4), "....");
        drop(child);
        assert_eq!(incore(&parent, start, 4), "1110");
    });
}

#[test]
fn a_mapping_beyond_the_largest_offset_is_refused() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let args = MmapArgs { offset: 0u64.wrapping_sub(PAGE), ..of_file(&file, 0, 2, RW, SHARED) };
        assert_eq!(process.mmap2(&MmapArgs { offset: u64::MAX, ..args }), Err(MmError::OffsetOverflow));
        assert!(process.mmap(&args).is_err());
    });
}
