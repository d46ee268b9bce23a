//! What Linux does by halves: a call is refused and has done a part of what it was to do. Each has a test.
//!
//! | Call | What is done all the same | Test |
//! |---|---|---|
//! | mprotect | what lies before a hole, before memory that denies it, before a limit is reached | `mprotect_changes_…` |
//! | mlock, mlock2 | what lies before a hole is locked, and not made resident | `mlock_locks_…`, `mlock2_locks_…` |
//! | | all is locked where only a page cannot be made resident | `mlock_of_memory_without_access_…`, `mlock_of_a_page_…` |
//! | munlock | what lies before a hole | `munlock_unlocks_…` |
//! | madvise | all around a hole | `madvise_advises_…`, `madvise_asks_for_pages_around_…` |
//! | | what lies before memory that cannot follow | `madvise_follows_…` |
//! | | populating: what lies before a hole, before a page that cannot be had | `madvise_populates_…` |
//! | msync | all around a hole is written; what lies before locked memory | `msync_writes_…` |
//! | mincore | the answers before a hole, before the end of the vector | `mincore_answers_…` |
//! | mremap of several | those before the one that cannot be moved | `mremap_moves_…` |
//! | mmap, mlockall | all, though a page cannot be made resident: no error is told | `mmap_…`, `mlockall_…` |
//!
//! The running kernel is asked for those of holes with everything else (`madvise`, `mlock_…`, `munmap_mprotect_…`), and its layouts are equal then. That a
//! stack may have an owner of anonymous pages and not grow is shown in `mm_failures`; that a device's mapping may replace another and then lack a table, in
//! `device`.

use kernmm::addr::{PgOff, VirtAddr};
use kernmm::flags::{Advice, MapFlags, MlockFlags, MlockallFlags, MremapFlags, MsyncFlags, Prot, VmFlags};
use kernmm::mm::{Backing, FileKind, FileRef, Mm, MmError, Rlimits, Sysctl, Vma};
use kernmm::syscall::{self, MapFile, MmapArgs, OpenMode, Residency};

use super::ours::{MAPPED, Objects, with_settings, with_space};
use super::space::{PAGE, anonymous, map};

/// The flags of the VMAs that hold these pages.
fn flags<const N: usize>(mm: &Mm<'_>, pages: [u64; N]) -> [VmFlags; N] {
    pages.map(|page| mm.vma(mm.lookup(VirtAddr::from(at(page))).expect("it is mapped")).flags)
}

/// Which of them have a flag.
fn have<const N: usize>(mm: &Mm<'_>, flag: VmFlags, pages: [u64; N]) -> [bool; N] {
    flags(mm, pages).map(|flags| flags.contains(flag))
}

const fn at(page: u64) -> u64 {
    MAPPED + page * PAGE
}

/// Maps a file, shared.
fn map_file(mm: &mut Mm<'_>, tables: &mut Objects, page: u64, pages: u64, mode: OpenMode) {
    let file = MapFile::new(FileRef::new(1, 1, FileKind::Memory).unwrap(), mode);
    let prot = if mode == OpenMode::ReadWrite { Prot::READ | Prot::WRITE } else { Prot::READ };
    syscall::mmap(mm, tables, &MmapArgs::file(file, pages * PAGE, prot, MapFlags::SHARED).fixed(at(page)))
        .unwrap();
}

#[test]
fn mprotect_changes_what_lies_before_a_hole() {
    with_space(|mm, tables| {
        let result = syscall::mprotect(mm, tables, at(3), 6 * PAGE, Prot::NONE);
        assert_eq!(result, Err(MmError::NotMapped));
        assert_eq!(have(mm, VmFlags::READ, [2, 3, 4, 8]), [true, false, false, true]);
    });
}

#[test]
fn mprotect_changes_what_lies_before_memory_that_denies_it() {
    with_space(|mm, tables| {
        map_file(mm, tables, 5, 1, OpenMode::ReadOnly);
        let all = Prot::READ | Prot::WRITE | Prot::EXEC;
        assert_eq!(syscall::mprotect(mm, tables, at(0), 6 * PAGE, all), Err(MmError::Denied));
        let vma = mm.vma(mm.lookup(VirtAddr::from(at(0))).unwrap());
        assert_eq!((vma.pages(), vma.flags & VmFlags::ACCESS), (5, VmFlags::ACCESS));
        assert_eq!(have(mm, VmFlags::WRITE, [5]), [false]);
    });
}

#[test]
fn mprotect_changes_what_lies_before_the_limit_on_data() {
    with_space(|mm, tables| {
        mm.set_rlimits(Rlimits { data: 4 * PAGE, ..*mm.rlimits() });
        let all = Prot::READ | Prot::WRITE | Prot::EXEC;
        assert_eq!(syscall::mprotect(mm, tables, at(3), 2 * PAGE, all), Err(MmError::AddressSpaceLimit));
        assert_eq!(have(mm, VmFlags::EXEC, [2, 3, 4]), [false, true, false]);
    });
}

/// Runs `test` where there are as many VMAs as there may be.
fn with_no_room(test: impl FnOnce(&mut Mm<'_>, &mut Objects)) {
    let mut settings = Sysctl::default();
    with_space(|mm, _| settings.max_map_count = mm.map_count());
    with_settings(settings, test);
}

#[test]
fn mprotect_changes_what_lies_before_the_limit_on_vmas() {
    with_no_room(|mm, tables| {
        // The single page is changed as a whole, one of the two would be split off.
        syscall::munmap(mm, tables, at(4), PAGE).unwrap();
        map(mm, tables, at(7), 1, Prot::READ).unwrap();
        let result = syscall::mprotect(mm, tables, at(7), 2 * PAGE, Prot::NONE);
        assert_eq!(result, Err(MmError::TooManyVmas));
        assert_eq!(have(mm, VmFlags::READ, [7, 8, 9]), [false, true, true]);
    });
}

#[test]
fn mlock_locks_what_lies_before_a_hole() {
    with_space(|mm, tables| {
        assert_eq!(syscall::mlock(mm, tables, at(0), 10 * PAGE), Err(MmError::NotMapped));
        assert_eq!(have(mm, VmFlags::LOCKED, [0, 3, 4, 8]), [true, true, true, false]);
        assert_eq!((mm.totals().locked_vm, &tables.asked[..]), (5, &[][..]));
    });
}

#[test]
fn mlock2_locks_what_lies_before_a_hole() {
    with_space(|mm, tables| {
        let result = syscall::mlock2(mm, tables, at(4), 5 * PAGE, MlockFlags::ONFAULT);
        assert_eq!(result, Err(MmError::NotMapped));
        assert_eq!(have(mm, VmFlags::LOCKED_MASK, [3, 4, 8]), [false, true, false]);
    });
}

#[test]
fn mlock_locks_what_lies_before_the_limit_on_vmas() {
    with_no_room(|mm, tables| {
        // The two are locked as a whole, one of the four would be split off.
        syscall::munmap(mm, tables, at(4), PAGE).unwrap();
        map(mm, tables, at(0) - PAGE, 1, Prot::READ).unwrap();
        let result = syscall::mlock(mm, tables, at(0) - PAGE, 2 * PAGE);
        assert_eq!(result, Err(MmError::TooManyVmas));
        assert_eq!((mm.totals().locked_vm, have(mm, VmFlags::LOCKED, [0])), (1, [false]));
    });
}

#[test]
fn mlock_of_memory_without_access_fails_and_locks_it() {
    with_space(|mm, tables| {
        syscall::mprotect(mm, tables, at(0), PAGE, Prot::NONE).unwrap();
        assert_eq!(syscall::mlock(mm, tables, at(0), PAGE), Err(MmError::NotMapped));
        assert_eq!(mm.totals().locked_vm, 1);
    });
}

#[test]
fn mlock_of_a_page_that_cannot_be_made_resident_fails_and_locks_all() {
    with_space(|mm, tables| {
        tables.unreachable = Some(2);
        assert_eq!(syscall::mlock(mm, tables, at(0), 5 * PAGE), Err(MmError::NotMapped));
        assert_eq!((mm.totals().locked_vm, &tables.asked[..]), (5, &[("populate", 0..2)][..]));
    });
}

#[test]
fn munlock_unlocks_what_lies_before_a_hole() {
    with_space(|mm, tables| {
        for (page, pages) in [(0, 5), (8, 2)] {
            syscall::mlock(mm, tables, at(page), pages * PAGE).unwrap();
        }
        assert_eq!(syscall::munlock(mm, tables, at(3), 6 * PAGE), Err(MmError::NotMapped));
        assert_eq!(have(mm, VmFlags::LOCKED, [2, 3, 4, 8]), [true, false, false, true]);
        assert_eq!(mm.totals().locked_vm, 5);
    });
}

#[test]
fn madvise_advises_around_a_hole_and_reports_it() {
    with_space(|mm, tables| {
        let result = syscall::madvise(mm, tables, at(0), 10 * PAGE, Advice::DontFork as i32);
        assert_eq!(result, Err(MmError::NotMapped));
        assert_eq!(have(mm, VmFlags::DONTCOPY, [0, 3, 4, 8, 9]), [true; 5]);
    });
}

#[test]
fn madvise_asks_for_pages_around_a_hole_and_reports_it() {
    with_space(|mm, tables| {
        let advices =
            [(Advice::DontNeed, "advise"), (Advice::Cold, "advise"), (Advice::WillNeed, "read ahead")];
        for (advice, what) in advices {
            tables.asked.clear();
            let result = syscall::madvise(mm, tables, at(3), 6 * PAGE, advice as i32);
            assert_eq!(result, Err(MmError::NotMapped), "{advice:?}");
            assert_eq!(tables.asked.last(), Some(&(what, 8..9)), "{advice:?}");
        }
    });
}

#[test]
fn madvise_follows_up_to_memory_that_is_locked() {
    with_space(|mm, tables| {
        syscall::mlock(mm, tables, at(4), PAGE).unwrap();
        tables.asked.clear();
        let result = syscall::madvise(mm, tables, at(2), 7 * PAGE, Advice::DontNeed as i32);
        // Not even the hole is told then.
        assert_eq!((result, &tables.asked[..]), (Err(MmError::LockedMemory), &[("advise", 2..4)][..]));
    });
}

#[test]
fn madvise_follows_up_to_memory_that_is_of_another_kind() {
    with_space(|mm, tables| {
        map(mm, tables, at(7), 1, Prot::READ).unwrap();
        let result = syscall::madvise(mm, tables, at(7), 3 * PAGE, Advice::WipeOnFork as i32);
        assert_eq!(result, Err(MmError::BadAdvice));
        assert_eq!(have(mm, VmFlags::WIPEONFORK, [7, 8]), [true, false]);
        let result = syscall::madvise(mm, tables, at(7), 3 * PAGE, Advice::Free as i32);
        assert_eq!((result, &tables.asked[..]), (Err(MmError::BadAdvice), &[("advise", 7..8)][..]));
    });
}

#[test]
fn madvise_follows_up_to_memory_that_denies_it() {
    with_space(|mm, tables| {
        map_file(mm, tables, 6, 1, OpenMode::ReadWrite);
        map_file(mm, tables, 7, 1, OpenMode::ReadOnly);
        let result = syscall::madvise(mm, tables, at(6), 2 * PAGE, Advice::Remove as i32);
        assert_eq!((result, &tables.asked[..]), (Err(MmError::Denied), &[("advise", 6..7)][..]));
    });
}

#[test]
fn madvise_follows_up_to_a_vma_that_cannot_be_split() {
    with_no_room(|mm, tables| {
        syscall::munmap(mm, tables, at(4), PAGE).unwrap();
        map(mm, tables, at(0) - PAGE, 1, Prot::READ).unwrap();
        let result = syscall::madvise(mm, tables, at(0) - PAGE, 2 * PAGE, Advice::DontFork as i32);
        assert_eq!(result, Err(MmError::TryAgain));
        let below = mm.vma(mm.lookup(VirtAddr::from(at(0) - PAGE)).unwrap());
        assert!(below.flags.contains(VmFlags::DONTCOPY));
        assert_eq!(have(mm, VmFlags::DONTCOPY, [0]), [false]);
    });
}

#[test]
fn madvise_populates_up_to_a_hole() {
    with_space(|mm, tables| {
        let result = syscall::madvise(mm, tables, at(3), 6 * PAGE, Advice::PopulateRead as i32);
        let asked = [("populate", 3..4), ("populate", 4..5)];
        assert_eq!((result, &tables.asked[..]), (Err(MmError::NotMapped), &asked[..]));
    });
}

#[test]
fn madvise_populates_up_to_memory_that_forbids_it() {
    with_space(|mm, tables| {
        let result = syscall::madvise(mm, tables, at(2), 3 * PAGE, Advice::PopulateWrite as i32);
        assert_eq!((result, &tables.asked[..]), (Err(MmError::BadAdvice), &[("populate", 2..4)][..]));
    });
}

#[test]
fn madvise_populates_up_to_a_page_that_cannot_be_had() {
    with_space(|mm, tables| {
        tables.unreachable = Some(2);
        let result = syscall::madvise(mm, tables, at(0), 5 * PAGE, Advice::PopulateRead as i32);
        assert_eq!((result, &tables.asked[..]), (Err(MmError::Unreachable), &[("populate", 0..2)][..]));
    });
}

#[test]
fn msync_writes_around_a_hole_and_reports_it() {
    with_space(|mm, tables| {
        map_file(mm, tables, 6, 1, OpenMode::ReadWrite);
        let result = syscall::msync(mm, tables, at(6), 4 * PAGE, MsyncFlags::SYNC);
        let asked = [("sync", 6..7), ("sync", 8..10)];
        assert_eq!((result, &tables.asked[..]), (Err(MmError::NotMapped), &asked[..]));
    });
}

#[test]
fn msync_writes_up_to_memory_that_is_locked() {
    with_space(|mm, tables| {
        map_file(mm, tables, 6, 1, OpenMode::ReadWrite);
        syscall::mlock(mm, tables, at(8), 2 * PAGE).unwrap();
        tables.asked.clear();
        let flags = MsyncFlags::SYNC | MsyncFlags::INVALIDATE;
        let result = syscall::msync(mm, tables, at(6), 4 * PAGE, flags);
        // It beats the hole before it.
        assert_eq!((result, &tables.asked[..]), (Err(MmError::LockedBusy), &[("sync", 6..7)][..]));
    });
}

#[test]
fn mincore_answers_up_to_a_hole() {
    with_space(|mm, tables| {
        let mut answers = [9; 16];
        let result = syscall::mincore(mm, tables, at(3), 5 * PAGE, answers.as_mut_slice());
        assert_eq!((result, &answers[..3]), (Err(MmError::NotMapped), &[0, 0, 9][..]));
    });
}

#[test]
fn mincore_answers_up_to_the_end_of_what_can_be_written() {
    /// A vector of which two bytes can be written.
    struct Short(Vec<bool>);
    impl Residency for Short {
        fn can_hold(&self, _pages: u64) -> bool {
            true
        }
        fn put(&mut self, _index: u64, resident: bool) -> Result<(), MmError> {
            if self.0.len() == 2 {
                return Err(MmError::BadVector);
            }
            self.0.push(resident);
            Ok(())
        }
    }
    with_space(|mm, tables| {
        let mut answers = Short(vec![]);
        let result = syscall::mincore(mm, tables, at(0), 5 * PAGE, &mut answers);
        assert_eq!((result, answers.0.len()), (Err(MmError::BadVector), 2));
    });
}

#[test]
fn mremap_moves_the_vmas_before_the_one_that_cannot() {
    with_space(|mm, tables| {
        let to = at(0x100);
        let fixed = MremapFlags::MAYMOVE | MremapFlags::FIXED | MremapFlags::DONTUNMAP;
        // The last VMA may not be moved without being unmapped.
        let special = Vma {
            start: VirtAddr::from(at(5)),
            end: VirtAddr::from(at(6)),
            flags: VmFlags::READ | VmFlags::MAYREAD | VmFlags::DONTEXPAND,
            pgoff: PgOff::ZERO,
            backing: Backing::Special(1),
            anon: None,
        };
        mm.insert_vma(tables, &special).unwrap();
        let result = syscall::mremap(mm, tables, at(0), 6 * PAGE, 6 * PAGE, fixed, to);
        assert_eq!(result, Err(MmError::BadFlags));
        let there = |page| mm.lookup(VirtAddr::from(to + page * PAGE)).is_some();
        assert_eq!([0, 3, 4, 5].map(there), [true, true, true, false]);
    });
}

#[test]
fn mmap_tells_nothing_of_a_page_that_cannot_be_made_resident() {
    with_space(|mm, tables| {
        tables.unreachable = Some(17);
        for flags in [MapFlags::POPULATE, MapFlags::LOCKED] {
            tables.asked.clear();
            let args = anonymous(at(16), 3, Prot::READ, flags | MapFlags::FIXED);
            assert_eq!(syscall::mmap(mm, tables, &args), Ok(VirtAddr::from(at(16))));
            assert_eq!(tables.asked, [("populate", 16..17)]);
        }
        assert_eq!(mm.totals().locked_vm, 3);
    });
}

#[test]
fn mlockall_tells_nothing_of_a_page_that_cannot_be_made_resident() {
    with_space(|mm, tables| {
        tables.unreachable = Some(2);
        syscall::mlockall(mm, tables, MlockallFlags::FUTURE).unwrap();
        assert_eq!(syscall::mlockall(mm, tables, MlockallFlags::CURRENT), Ok(()));
        assert_eq!(mm.totals().locked_vm, mm.totals().total_vm);
        assert!(tables.asked.contains(&("populate", 0..2)) && tables.asked.contains(&("populate", 8..10)));
        // What is to come is no longer locked.
        assert_eq!(mm.def_flags(), VmFlags::empty());
    });
}
