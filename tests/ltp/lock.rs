//! mlock and its kin, madvise.

use kernmm::error::Errno;
use kernmm::flags::{Advice, MapFlags, MlockFlags, MlockallFlags, Prot};

use crate::scene::*;

#[test]
fn mlock_01_any_length_locks_the_pages_that_hold_it() {
    on_machine(|vm, _| {
        let process = process(vm);
        for (len, whole) in [(1, 1), (1024, 1), (PAGE, 1), (PAGE + 1, 2), (16 * PAGE, 16)] {
            map_at(&process, ARENA, 16, RW, PRIVATE);
            process.mlock(ARENA, len).unwrap();
            assert_eq!(locked(&process), whole, "{len}");
            let expected = "a".repeat(whole as usize) + &".".repeat(16 - whole as usize);
            assert_eq!(pages(&process, ARENA, 16), expected);
            process.munmap(ARENA, 16 * PAGE).unwrap();
            assert_eq!(locked(&process), 0);
        }
    });
}

#[test]
fn mlock_02_a_hole_and_the_limit_are_enomem_and_no_right_is_eperm() {
    on_machine(|vm, _| {
        let process = process(vm);
        map_at(&process, ARENA, 8, RW, PRIVATE);
        assert_eq!(errno(process.mlock(ARENA + 8 * PAGE, PAGE)), Errno::ENOMEM);
        limit(&process, |rlimits| rlimits.memlock = 7 * PAGE);
        assert_eq!(errno(process.mlock(ARENA, 8 * PAGE)), Errno::ENOMEM);
        assert_eq!(locked(&process), 0);
        assert_eq!(process.mlock(ARENA, 7 * PAGE), Ok(()));
        limit(&process, |rlimits| rlimits.memlock = 0);
        assert_eq!(errno(process.mlock(ARENA, PAGE)), Errno::EPERM);
        assert_eq!(locked(&process), 7);
    });
}

#[test]
fn mlock_03_a_stack_that_was_locked_in_part_is_as_long_as_before() {
    on_machine(|vm, _| {
        let process = process(vm);
        let stack = ARENA + 1024 * PAGE;
        map_at(&process, stack, 4, RW, PRIVATE | MapFlags::GROWSDOWN);
        store(&process, stack - 8 * PAGE, 1).unwrap();
        let extent = || {
            let parts = layout(&process);
            (parts[0].0, parts.iter().map(|part| part.1).sum::<u64>())
        };
        let before = extent();
        process.mlock(stack - 8 * PAGE, 2 * PAGE).unwrap();
        process.munlock(stack - 8 * PAGE, 2 * PAGE).unwrap();
        assert_eq!((extent(), layout(&process).len()), (before, 1));
        assert_eq!(store(&process, stack - 20 * PAGE, 1), Ok(()), "it still grows");
    });
}

#[test]
fn mlock_04_memory_that_may_be_written_and_not_read_is_locked() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let start = map_file(&process, &file, 3, Prot::WRITE, SHARED);
        process.mlock(start, 3 * PAGE).unwrap();
        assert_eq!((pages(&process, start, 3).as_str(), locked(&process)), ("fff", 3));
    });
}

#[test]
fn mlock_05_what_is_locked_is_resident_and_counted_once() {
    on_machine(|vm, _| {
        let process = process(vm);
        let start = map(&process, 64, RW, PRIVATE);
        process.mlock(start, 64 * PAGE).unwrap();
        let mut text = String::new();
        process.smaps(&mut text, &crate::Anonymous).unwrap();
        let kilobytes = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        assert_eq!((kilobytes("Rss:"), kilobytes("Locked:")), (256, 256));
    });
}

#[test]
fn mlock2_01_locked_on_fault_makes_nothing_resident_until_it_is_touched() {
    on_machine(|vm, _| {
        let process = process(vm);
        let start = map(&process, 8, RW, PRIVATE);
        process.mlock2(start, 8 * PAGE, MlockFlags::ONFAULT).unwrap();
        assert_eq!((locked(&process), pages(&process, start, 8).as_str()), (8, "........"));
        store(&process, start + 2 * PAGE, 1).unwrap();
        assert_eq!(pages(&process, start, 8), "..a.....");
        process.mlock2(start, 4 * PAGE, MlockFlags::empty()).unwrap();
        assert_eq!(pages(&process, start, 8), "aaaa....");
    });
}

#[test]
fn mlock2_02_errors() {
    on_machine(|vm, _| {
        let process = process(vm);
        map_at(&process, ARENA, 2, RW, PRIVATE);
        assert_eq!(errno(process.mlock2(ARENA, PAGE, MlockFlags::from_bits_retain(2))), Errno::EINVAL);
        assert_eq!(errno(process.mlock2(ARENA + 2 * PAGE, PAGE, MlockFlags::ONFAULT)), Errno::ENOMEM);
        assert_eq!(errno(process.mlock2(ARENA, 0u64.wrapping_sub(PAGE), MlockFlags::ONFAULT)), Errno::ENOMEM);
        limit(&process, |rlimits| rlimits.memlock = 0);
        assert_eq!(errno(process.mlock2(ARENA, PAGE, MlockFlags::ONFAULT)), Errno::EPERM);
        assert_eq!(locked(&process), 0);
    });
}

#[test]
fn mlock2_03_what_is_locked_twice_is_counted_once() {
    on_machine(|vm, _| {
        let process = process(vm);
        let start = map(&process, 8, RW, PRIVATE);
        limit(&process, |rlimits| rlimits.memlock = 8 * PAGE);
        for flags in [MlockFlags::empty(), MlockFlags::ONFAULT, MlockFlags::empty()] {
            assert_eq!(process.mlock2(start, 8 * PAGE, flags), Ok(()));
            assert_eq!(process.mlock2(start + 2 * PAGE, 3 * PAGE, MlockFlags::ONFAULT), Ok(()));
            assert_eq!(locked(&process), 8);
        }
    });
}

#[test]
fn munlock_01_what_was_locked_is_unlocked_and_stays_resident() {
    on_machine(|vm, _| {
        let process = process(vm);
        for len in [1, 1024, PAGE, 16 * PAGE] {
            map_at(&process, ARENA, 16, RW, PRIVATE);
            process.mlock(ARENA, len).unwrap();
            process.munlock(ARENA, len).unwrap();
            assert_eq!((locked(&process), layout(&process)), (0, vec![(ARENA, 16)]));
            assert!(pages(&process, ARENA, 16).starts_with('a'));
        }
    });
}

#[test]
fn munlock_02_a_hole_is_enomem_and_what_lies_before_it_is_unlocked() {
    on_machine(|vm, _| {
        let process = process(vm);
        map_at(&process, ARENA, 2, RW, PRIVATE | MapFlags::LOCKED);
        map_at(&process, ARENA + 3 * PAGE, 1, RW, PRIVATE | MapFlags::LOCKED);
        assert_eq!(errno(process.munlock(ARENA, 4 * PAGE)), Errno::ENOMEM);
        assert_eq!(locked(&process), 1);
        assert_eq!(errno(process.munlock(ARENA + 2 * PAGE, PAGE)), Errno::ENOMEM);
    });
}

#[test]
fn mlockall_01_locks_what_is_there_what_will_be_or_both() {
    on_machine(|vm, _| {
        let process = process(vm);
        let start = map(&process, 3, RW, PRIVATE);
        process.mlockall(MlockallFlags::CURRENT).unwrap();
        assert_eq!((locked(&process), pages(&process, start, 3).as_str()), (3, "aaa"));
        map(&process, 2, Prot::READ, PRIVATE);
        assert_eq!(locked(&process), 3);
        process.mlockall(MlockallFlags::FUTURE).unwrap();
        let later = map(&process, 4, RW, PRIVATE);
        assert_eq!((locked(&process), pages(&process, later, 4).as_str()), (7, "aaaa"));
        process.mlockall(MlockallFlags::CURRENT | MlockallFlags::FUTURE | MlockallFlags::ONFAULT).unwrap();
        let on_fault = map(&process, 2, RW, PRIVATE);
        assert_eq!((locked(&process), pages(&process, on_fault, 2).as_str()), (11, ".."));
    });
}

#[test]
fn mlockall_02_the_limit_is_enomem_and_no_right_is_eperm() {
    on_machine(|vm, _| {
        let process = process(vm);
        map(&process, 8, RW, PRIVATE);
        limit(&process, |rlimits| rlimits.memlock = 7 * PAGE);
        assert_eq!(errno(process.mlockall(MlockallFlags::CURRENT)), Errno::ENOMEM);
        assert_eq!(process.mlockall(MlockallFlags::FUTURE), Ok(()));
        assert_eq!(errno(process.mmap(&anonymous(0, 8, RW, PRIVATE))), Errno::EAGAIN);
        limit(&process, |rlimits| rlimits.memlock = 0);
        assert_eq!(errno(process.mlockall(MlockallFlags::CURRENT)), Errno::EPERM);
        assert_eq!(locked(&process), 0);
    });
}

#[test]
fn mlockall_03_no_flag_and_unknown_flags_are_einval() {
    on_machine(|vm, _| {
        let process = process(vm);
        map(&process, 1, RW, PRIVATE);
        for bits in [0, 4, 8, 9, u32::MAX] {
            assert_eq!(
                errno(process.mlockall(MlockallFlags::from_bits_retain(bits as _))),
                Errno::EINVAL,
                "{bits}"
            );
        }
        assert_eq!(locked(&process), 0);
    });
}

#[test]
fn munlockall_01_nothing_is_locked_afterwards_nor_what_is_mapped_later() {
    on_machine(|vm, _| {
        let process = process(vm);
        map(&process, 3, RW, PRIVATE);
        process.mlockall(MlockallFlags::CURRENT | MlockallFlags::FUTURE).unwrap();
        map(&process, 3, RW, PRIVATE);
        assert_eq!(locked(&process), 6);
        process.munlockall().unwrap();
        let later = map(&process, 2, RW, PRIVATE);
        assert_eq!((locked(&process), pages(&process, later, 2).as_str()), (0, ".."));
    });
}

#[test]
fn madvise_01_all_advice_is_accepted_where_it_can_be_followed() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let shared = map_file(&process, &file, 3, RW, SHARED);
        let private = map(&process, 3, RW, PRIVATE);
        let everywhere = [
            Advice::Normal,
            Advice::Random,
            Advice::Sequential,
            Advice::WillNeed,
            Advice::DontNeed,
            Advice::DontFork,
            Advice::DoFork,
            Advice::DontDump,
            Advice::DoDump,
            Advice::Cold,
            Advice::PageOut,
            Advice::PopulateRead,
            Advice::PopulateWrite,
        ];
        for advice in everywhere {
            for start in [shared, private] {
                assert_eq!(advise(&process, start, 3, advice), Ok(()), "{advice:?}");
            }
        }
        for advice in [Advice::Free, Advice::WipeOnFork, Advice::KeepOnFork, Advice::HugePage] {
            assert_eq!(advise(&process, private, 3, advice), Ok(()), "{advice:?}");
        }
        assert_eq!(load(&process, shared), Ok(content(0)));
    });
}

#[test]
fn madvise_02_errors() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        map_at(&process, ARENA, 4, RW, PRIVATE);
        let shared = map_file(&process, &file, 1, RW, SHARED);
        assert_eq!(errno(advise(&process, ARENA + 1, 1, Advice::Normal)), Errno::EINVAL);
        assert_eq!(errno(process.madvise(ARENA, PAGE, 1212)), Errno::EINVAL);
        assert_eq!(errno(process.madvise(ARENA, u64::MAX, Advice::Normal as i32)), Errno::EINVAL);
        assert_eq!(errno(advise(&process, ARENA + 3 * PAGE, 2, Advice::DontNeed)), Errno::ENOMEM);
        for advice in [Advice::Free, Advice::WipeOnFork] {
            assert_eq!(errno(advise(&process, shared, 1, advice)), Errno::EINVAL, "{advice:?}");
        }
        store(&process, ARENA, 1).unwrap();
        process.mlock(ARENA, PAGE).unwrap();
        for advice in [Advice::DontNeed, Advice::Free, Advice::GuardInstall] {
            assert_eq!(errno(advise(&process, ARENA, 1, advice)), Errno::EINVAL, "{advice:?}");
        }
        assert_eq!(load(&process, ARENA), Ok(1));
    });
}

#[test]
fn madvise_03_what_is_not_needed_is_zero_or_what_the_file_has() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let memory = map(&process, 2, RW, PRIVATE);
        let copy = map_file(&process, &file, 2, RW, PRIVATE);
        let shared = map_file(&process, &file, 2, RW, SHARED);
        for start in [memory, copy, shared] {
            store(&process, start + PAGE, 255).unwrap();
            advise(&process, start, 2, Advice::DontNeed).unwrap();
            assert_eq!(pages(&process, start, 2), "..");
        }
        assert_eq!(load(&process, memory + PAGE), Ok(0));
        assert_eq!(load(&process, shared + PAGE), Ok(255), "shared memory forgets nothing");
        assert_eq!(load(&process, copy + PAGE), Ok(255), "what the other mapping has written");
        assert_eq!(load(&process, copy), Ok(content(0)));
    });
}

#[test]
fn madvise_05_advice_that_a_file_will_be_needed_is_taken_where_nothing_can_be_accessed() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let start = map_file(&process, &file, 4, Prot::NONE, SHARED);
        assert_eq!(advise(&process, start, 4, Advice::WillNeed), Ok(()));
        assert_eq!(load(&process, start), Err(DENIED));
        assert_eq!(pages(&process, start, 4), "....");
    });
}

#[test]
fn madvise_09_what_is_written_after_it_was_freed_is_kept() {
    on_machine(|vm, _| {
        let process = process(vm);
        let start = map(&process, 8, RW, PRIVATE);
        (0..8).for_each(|page| store(&process, start + page * PAGE, 5).unwrap());
        advise(&process, start, 8, Advice::Free).unwrap();
        store(&process, start + 3 * PAGE, 6).unwrap();
        // Until memory is short: the old byte or zero, nothing else.
        for page in 0..8 {
            let found = load(&process, start + page * PAGE).unwrap();
            assert!(if page == 3 { found == 6 } else { matches!(found, 0 | 5) });
        }
    });
}

#[test]
fn madvise_10_a_child_finds_zeros_where_its_parent_wants_it_to() {
    on_machine(|vm, _| {
        let parent = process(vm);
        let start = map(&parent, 4, RW, PRIVATE);
        (0..4).for_each(|page| store(&parent, start + page * PAGE, 5).unwrap());
        advise(&parent, start + PAGE, 2, Advice::WipeOnFork).unwrap();
        advise(&parent, start + 2 * PAGE, 1, Advice::KeepOnFork).unwrap();
        let child = parent.fork().unwrap();
        let look =
            |process: &Proc<'_, '_, '_>| [0, 1, 2, 3].map(|page| load(process, start + page * PAGE).unwrap());
        assert_eq!((look(&parent), look(&child)), ([5; 4], [5, 0, 5, 5]));
        // The grandchild too.
        store(&child, start + PAGE, 6).unwrap();
        assert_eq!(look(&child.fork().unwrap()), [5, 0, 5, 5]);
    });
}

#[test]
fn madvise_12_a_guarded_page_faults_until_the_guard_is_removed_and_is_then_zero() {
    on_machine(|vm, _| {
        let process = process(vm);
        let start = map(&process, 3, RW, PRIVATE);
        (0..3).for_each(|page| store(&process, start + page * PAGE, 5).unwrap());
        advise(&process, start + PAGE, 1, Advice::GuardInstall).unwrap();
        assert_eq!(pages(&process, start, 3), "aga");
        assert_eq!(load(&process, start + PAGE), Err(NOT_MAPPED));
        assert_eq!(store(&process, start + PAGE, 1), Err(NOT_MAPPED));
        advise(&process, start, 3, Advice::DontNeed).unwrap();
        assert_eq!(pages(&process, start, 3), ".g.", "a guard stays");
        assert_eq!(layout(&process).len(), 1, "and splits nothing");
        advise(&process, start, 3, Advice::GuardRemove).unwrap();
        assert_eq!(load(&process, start + PAGE), Ok(0));
    });
}
