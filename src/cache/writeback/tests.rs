use super::*;
use crate::cache::CacheCheckError;
use crate::memory::{File, Memory, Vm};
use crate::platform::CpuId;
use crate::platform::hosted::{Disk, Latency, Machine};
use crate::syscall::OpenMode;
use std::vec;
use std::vec::Vec;

const PAGES: u32 = 1500;
const INODE: u64 = 7;

type Mem<'m> = Memory<'m, Machine>;

/// A file of many pages in memory, of which these are newer than the disk.
fn with_dirty(
    dirty: &[u32],
    test: impl for<'a, 'm> FnOnce(&Vm<'a, Mem<'m>>, &'a Disk<'m>, &File<'_, 'a, Mem<'m>>),
) {
    let machine = Machine::pc(32 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let disk = Disk::new(&machine);
    disk.put(INODE, &vec![1; PAGES as usize * PAGE_SIZE_U64 as usize]);
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let file = vm.open_file(&disk, INODE, OpenMode::ReadWrite).unwrap();
    let mut byte = [0];
    (0..PAGES).for_each(|page| assert_eq!(file.read_at(start(page), &mut byte), Ok(1)));
    dirty.iter().for_each(|&page| assert_eq!(file.write_at(start(page), b"x"), Ok(1)));
    test(&vm, &disk, &file);
}

fn start(page: u32) -> u64 {
    u64::from(page) * PAGE_SIZE_U64
}

/// Fails if clean pages are looked at: there are more than one look at the file was for.
#[test]
fn dirty_pages_among_clean_ones_are_found_with_one_look_at_the_file() {
    with_dirty(&[700, 701, 1400], |vm, _, file| {
        let pin = vm.source().platform().pin();
        let pages = vm.cache().lock(vm.source(), &pin, file.id()).unwrap();
        let runs = [(0, 700, 2), (701, 701, 1), (702, 1400, 1)];
        for (next, first, count) in runs {
            let Collected::Pages(found) = Dirty::collect(&pages, next, u32::MAX, u32::MAX) else {
                panic!("from {next} on");
            };
            assert_eq!((found.first, found.count), (first, count));
        }
        assert!(matches!(Dirty::collect(&pages, 1401, u32::MAX, u32::MAX), Collected::None));
        assert!(matches!(Dirty::collect(&pages, 702, 1400, u32::MAX), Collected::None));
    });
}

/// Fails if a page keeps a mark that it has lost the flag of, or the other way round.
#[test]
fn marks_come_and_go_with_the_flags_while_pages_are_written_fail_and_leave() {
    with_dirty(&[3, 4, 900], |vm, disk, file| {
        let (source, cache) = (vm.source(), vm.cache());
        let tagged = |tag| {
            let pin = source.platform().pin();
            let pages = cache.lock(source, &pin, file.id()).unwrap();
            let next = |page: &u32| pages.tagged_from(page + 1, tag).map(|page| page.index);
            core::iter::successors(pages.tagged_from(0, tag).map(|page| page.index), next).collect::<Vec<_>>()
        };
        let sound = || vm.assert_sound::<spin::RwLock<()>>(&[]);
        let is = |dirty: &[u32], writeback: &[u32]| {
            sound();
            assert_eq!((tagged(Tag::Dirty), tagged(Tag::Writeback)), (dirty.to_vec(), writeback.to_vec()));
        };
        is(&[3, 4, 900], &[]);
        disk.set_latency(Latency::Polls(100));
        let mut job = WriteBack::all(file.id(), SyncMode::Start);
        while cache.write_back(source, &vm.pager().entries(), &mut job).unwrap() != Step::Done {}
        is(&[], &[3, 4, 900]);
        // One is written to meanwhile.
        assert_eq!(file.write_at(start(4), b"y"), Ok(1));
        is(&[4], &[3, 4, 900]);
        while cache.reap(source) != 0 {
            source.platform().relax();
        }
        is(&[4], &[]);
        file.truncate(start(4)).unwrap();
        is(&[], &[]);
        file.sync().unwrap();
        is(&[], &[]);
    });
}

#[test]
fn check_finds_a_page_whose_mark_is_not_what_its_flag_is() {
    with_dirty(&[3, 900], |vm, _, file| {
        let (source, cache) = (vm.source(), vm.cache());
        let check = || cache.check(source, |_| None, |_| {}).map(drop);
        let set = |page: u32, flag: PageFlags, is: bool| {
            let pin = source.platform().pin();
            let pages = cache.lock(source, &pin, file.id()).unwrap();
            let page = pages.at(page).unwrap();
            match is {
                true => drop(page.page.set_flags(flag)),
                false => drop(page.page.clear_flags(flag)),
            }
        };
        assert_eq!(check(), Ok(()));
        // As many are dirty as before: only which they are is another matter.
        for (lost, got) in [(3, 4), (900, 0)] {
            set(lost, PageFlags::DIRTY, false);
            set(got, PageFlags::DIRTY, true);
            assert_eq!(check(), Err(CacheCheckError::Tag(file.id(), lost.min(got))));
            set(lost, PageFlags::DIRTY, true);
            set(got, PageFlags::DIRTY, false);
        }
        assert_eq!(check(), Ok(()));
    });
}
