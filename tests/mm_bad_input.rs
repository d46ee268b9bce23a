//! Arguments at every boundary: the right error, and nothing changed.

#[path = "space/digest.rs"]
mod digest;
mod space;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "space/asked.rs"]
mod asked;
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[path = "space/unasked.rs"]
mod asked;

use digest::digest;
use kernmm::addr::VirtAddr;
use kernmm::error::Errno;
use kernmm::flags::{Advice, MapFlags, MlockFlags, MlockallFlags, MremapFlags, MsyncFlags, Prot, VmFlags};
use kernmm::mm::{FileKind, FileRef, Image, Mm, MmError, NullTables, Rlimits, Sysctl};
use kernmm::syscall::{self, MapFile, MmapArgs, OpenMode, Seals};
use space::{PAGE, Stores, anonymous, context, map};

use asked::Linux;

const TASK: u64 = (1 << 47) - PAGE;
const MAX: u64 = u64::MAX;
const BOUNDARIES: [u64; 14] = [
    0,
    1,
    PAGE - 1,
    PAGE,
    PAGE + 1,
    TASK - PAGE,
    TASK,
    TASK + PAGE,
    MAX - PAGE,
    MAX - PAGE + 1,
    MAX - PAGE + 2,
    MAX - 1,
    MAX,
    MAPPED,
];
/// An address with something there.
const MAPPED: u64 = 0x10_0000_0000;

/// Runs `test` on an address space with a few VMAs.
fn with_space(test: impl FnOnce(&mut Mm<'_>, &mut NullTables)) {
    let stores = Stores::new(64, 8);
    let context = context(&stores, Sysctl::default());
    let mut mm = Mm::new(&context).unwrap();
    let mut tables = NullTables::default();
    furnish(&mut mm, &mut tables);
    test(&mut mm, &mut tables);
    syscall::exit(&mut mm, &mut tables);
    assert_eq!((context.pool().used(), context.overcommit().committed()), (0, 0));
}

fn furnish(mm: &mut Mm<'_>, tables: &mut NullTables) {
    map(mm, tables, MAPPED, 4, Prot::READ | Prot::WRITE).unwrap();
    map(mm, tables, MAPPED + 4 * PAGE, 1, Prot::READ).unwrap();
    syscall::mmap(
        mm,
        tables,
        &anonymous(MAPPED + 8 * PAGE, 2, Prot::READ, MapFlags::SHARED | MapFlags::FIXED),
    )
    .unwrap();
    let heap = VirtAddr::from(MAPPED + 64 * PAGE);
    mm.set_image(Image { start_brk: heap, brk: heap, ..Image::default() });
}

/// Performs calls with all boundaries as arguments: a refused one changes nothing, unless `partial` names its error; a
/// successful one is undone by starting over. Each refusal is that of the running kernel, if `linux` says what to ask it.
fn try_all<const N: usize>(
    linux: Option<&Linux<'_, N>>,
    partial: &[MmError],
    mut call: impl FnMut(&mut Mm<'_>, &mut NullTables, [u64; N]) -> Result<(), MmError>,
) {
    let mut refused = Vec::new();
    with_space(|mm, tables| {
        for n in 0..BOUNDARIES.len().pow(N as u32) {
            let args: [u64; N] =
                core::array::from_fn(|i| BOUNDARIES[n / BOUNDARIES.len().pow(i as u32) % BOUNDARIES.len()]);
            let before = digest(mm);
            let result = call(mm, tables, args);
            mm.check().unwrap_or_else(|violation| panic!("{args:x?}: {violation:?}"));
            match result {
                Err(error) if !partial.contains(&error) => {
                    refused.push((args, error));
                    assert_eq!(digest(mm), before, "{args:x?}: {error:?}");
                }
                result => {
                    refused.extend(result.err().map(|error| (args, error)));
                    syscall::exit(mm, tables);
                    furnish(mm, tables);
                }
            }
        }
    });
    assert!(!refused.is_empty());
    if let Some(linux) = linux {
        asked::compare(linux, &refused);
    }
}

#[test]
fn mmap_refuses_without_a_trace() {
    for flags in [0x22, 0x32, 0x10_0022, 0x21, 0x31, 0x122, 0x20, 0x23] {
        let linux =
            Linux::new(asked::number::SYS_mmap, |[addr, len, offset]| [addr, len, 3, flags, MAX, offset]);
        try_all(Some(&linux), &[], |mm, tables, [addr, len, offset]| {
            let flags = MapFlags::from_bits_retain(flags);
            let args = MmapArgs { addr, len, prot: Prot::READ | Prot::WRITE, flags, file: Ok(None), offset };
            syscall::mmap(mm, tables, &args).map(drop)
        });
    }
}

#[test]
fn mmap_of_files_refuses_without_a_trace() {
    for (flags, mode) in [
        (2, OpenMode::ReadOnly),
        (1, OpenMode::ReadWrite),
        (3, OpenMode::WriteOnly),
        (0x12, OpenMode::ReadWrite),
    ] {
        let file = MapFile::new(FileRef::new(1, 1, FileKind::Regular).unwrap(), mode);
        let fd = asked::file(mode);
        let linux =
            Linux::new(asked::number::SYS_mmap, |[addr, len, offset]| [addr, len, 1, flags, fd, offset]);
        try_all(Some(&linux), &[], |mm, tables, [addr, len, offset]| {
            let flags = MapFlags::from_bits_retain(flags);
            let args = MmapArgs { addr, len, prot: Prot::READ, flags, file: Ok(Some(file)), offset };
            syscall::mmap(mm, tables, &args).map(drop)
        });
        try_all(None, &[], |mm, tables, [addr, len, offset]| {
            let flags = MapFlags::from_bits_retain(flags);
            let args = MmapArgs { addr, len, prot: Prot::READ, flags, file: Ok(Some(file)), offset };
            syscall::mmap2(mm, tables, &args).map(drop)
        });
    }
}

#[test]
fn munmap_and_brk_refuse_without_a_trace() {
    let linux = Linux::new(asked::number::SYS_munmap, |[addr, len]| [addr, len, 0, 0, 0, 0]);
    try_all(Some(&linux), &[], |mm, tables, [addr, len]| syscall::munmap(mm, tables, addr, len));
    try_all(None, &[], |mm, tables, [addr]| {
        let before = mm.image().brk;
        let after = syscall::brk(mm, tables, addr);
        if after == before && addr != before.get() { Err(MmError::NoGap) } else { Ok(()) }
    });
    try_all(None, &[], |mm, tables, [delta]| syscall::sbrk(mm, tables, delta as i64).map(drop));
}

#[test]
fn mremap_refuses_without_a_trace() {
    for flags in 0..16 {
        let linux =
            Linux::new(asked::number::SYS_mremap, |[addr, old, new, to]| [addr, old, new, flags, to, 0]);
        try_all(Some(&linux), &[], |mm, tables, [addr, old, new, to]| {
            syscall::mremap(mm, tables, addr, old, new, MremapFlags::from_bits_retain(flags), to).map(drop)
        });
    }
}

#[test]
fn calls_that_go_vma_by_vma_refuse_bad_arguments_without_a_trace() {
    let partial = [MmError::NotMapped, MmError::Denied, MmError::BadAdvice];
    for prot in [0, 1, 3, 7, 0x10, 0x0100_0000, 0x0200_0001, 0x0300_0001] {
        let linux = Linux::new(asked::number::SYS_mprotect, |[addr, len]| [addr, len, prot, 0, 0, 0]);
        try_all(Some(&linux), &partial[..2], |mm, tables, [addr, len]| {
            syscall::mprotect(mm, tables, addr, len, Prot::from_bits_retain(prot))
        });
    }
    for &advice in
        Advice::ALL.iter().filter(|advice| !matches!(advice, Advice::HwPoison | Advice::SoftOffline))
    {
        let linux = Linux::new(asked::number::SYS_madvise, |[addr, len]| [addr, len, advice as u64, 0, 0, 0]);
        try_all(Some(&linux), &partial, |mm, tables, [addr, len]| {
            syscall::madvise(mm, tables, addr, len, advice as i32)
        });
    }
    for advice in [-1, 5, 99, 100, 101, i32::MAX] {
        let linux = Linux::new(asked::number::SYS_madvise, |[addr, len]| [addr, len, advice as u64, 0, 0, 0]);
        try_all(Some(&linux), &[], |mm, tables, [addr, len]| syscall::madvise(mm, tables, addr, len, advice));
    }
    let linux = Linux::new(asked::number::SYS_mlock, |[addr, len]| [addr, len, 0, 0, 0, 0]);
    try_all(Some(&linux), &partial[..1], |mm, tables, [addr, len]| syscall::mlock(mm, tables, addr, len));
    let linux = Linux::new(asked::number::SYS_munlock, |[addr, len]| [addr, len, 0, 0, 0, 0]);
    try_all(Some(&linux), &partial[..1], |mm, tables, [addr, len]| syscall::munlock(mm, tables, addr, len));
    for bits in 0..4 {
        let flags = MlockFlags::from_bits_retain(bits);
        let linux = Linux::new(asked::number::SYS_mlock2, |[addr, len]| [addr, len, bits, 0, 0, 0]);
        try_all(Some(&linux), &partial[..1], |mm, tables, [addr, len]| {
            syscall::mlock2(mm, tables, addr, len, flags)
        });
    }
}

#[test]
fn calls_that_only_look_change_nothing() {
    for flags in 0..16 {
        let linux = Linux::new(asked::number::SYS_msync, |[addr, len]| [addr, len, flags, 0, 0, 0]);
        try_all(Some(&linux), &[], |mm, tables, [addr, len]| {
            syscall::msync(mm, tables, addr, len, MsyncFlags::from_bits_retain(flags))
        });
    }
    let mut answers = [0; 64];
    try_all(None, &[], |mm, tables, [addr, len]| {
        syscall::mincore(mm, tables, addr, len, answers.as_mut_slice())
    });
}

/// The order in which Linux checks, from its documentation of results.
#[test]
fn mmap_checks_in_the_order_of_linux() {
    with_space(|mm, tables| {
        let good = anonymous(0, 1, Prot::READ, MapFlags::empty());
        let file = FileRef::new(1, 1, FileKind::Memory).unwrap();
        let opened = |mode| Ok(Some(MapFile::new(file, mode)));
        let shared_write = MmapArgs {
            flags: MapFlags::SHARED,
            prot: Prot::READ | Prot::WRITE,
            file: opened(OpenMode::ReadOnly),
            ..good
        };
        let bad_fd = Err(MmError::BadDescriptor);
        let noexec = Ok(Some(MapFile { noexec: true, ..MapFile::new(file, OpenMode::ReadOnly) }));
        let sealed = Ok(Some(MapFile { seals: Seals::WRITE, ..MapFile::new(file, OpenMode::ReadWrite) }));
        let device = Ok(Some(MapFile { mappable: false, ..MapFile::new(file, OpenMode::ReadOnly) }));
        let validate = MapFlags::from_bits_retain(3);
        let private = MapFlags::PRIVATE;
        let cases = [
            (MmapArgs { flags: private, file: bad_fd, offset: 1, ..good }, Errno::EINVAL),
            (MmapArgs { flags: private, file: bad_fd, len: 0, ..good }, Errno::EBADF),
            (MmapArgs { len: 0, ..good }, Errno::EINVAL),
            (MmapArgs { len: MAX, ..good }, Errno::ENOMEM),
            (MmapArgs { len: TASK + PAGE, ..good }, Errno::ENOMEM),
            (MmapArgs { addr: TASK + 1, flags: good.flags | MapFlags::FIXED, ..good }, Errno::ENOMEM),
            (MmapArgs { addr: MAPPED + 1, flags: good.flags | MapFlags::FIXED, ..good }, Errno::EINVAL),
            (MmapArgs { addr: 0, flags: good.flags | MapFlags::FIXED, ..good }, Errno::EPERM),
            (MmapArgs { addr: MAPPED, flags: good.flags | MapFlags::FIXED_NOREPLACE, ..good }, Errno::EEXIST),
            (MmapArgs { flags: validate | MapFlags::SYNC, ..shared_write }, Errno::EOPNOTSUPP),
            (
                MmapArgs {
                    flags: validate | MapFlags::FIXED_NOREPLACE,
                    addr: MAPPED + PAGE * 32,
                    ..shared_write
                },
                Errno::EOPNOTSUPP,
            ),
            (shared_write, Errno::EACCES),
            (
                MmapArgs { flags: private, file: opened(OpenMode::WriteOnly), prot: Prot::NONE, ..good },
                Errno::EACCES,
            ),
            (MmapArgs { flags: private, file: noexec, prot: Prot::EXEC, ..good }, Errno::EPERM),
            (MmapArgs { flags: private, file: device, ..good }, Errno::ENODEV),
            (
                MmapArgs { flags: private | MapFlags::GROWSDOWN, file: opened(OpenMode::ReadOnly), ..good },
                Errno::EINVAL,
            ),
            (MmapArgs { flags: MapFlags::empty(), file: opened(OpenMode::ReadOnly), ..good }, Errno::EINVAL),
            (MmapArgs { file: sealed, ..shared_write }, Errno::EPERM),
            (MmapArgs { flags: validate | MapFlags::ANONYMOUS, ..good }, Errno::EINVAL),
            (
                MmapArgs { flags: MapFlags::SHARED | MapFlags::ANONYMOUS | MapFlags::GROWSDOWN, ..good },
                Errno::EINVAL,
            ),
        ];
        for (args, errno) in cases {
            let before = digest(mm);
            assert_eq!(syscall::mmap(mm, tables, &args).map_err(MmError::errno), Err(errno), "{args:x?}");
            assert_eq!(digest(mm), before);
        }
        let huge_offset = MmapArgs { flags: private, file: opened(OpenMode::ReadOnly), offset: MAX, ..good };
        assert_eq!(syscall::mmap2(mm, tables, &huge_offset), Err(MmError::OffsetOverflow));
    });
}

#[test]
fn a_lock_limit_of_nothing_beats_a_limit_that_is_reached() {
    with_space(|mm, tables| {
        let locked = anonymous(0, 2, Prot::READ, MapFlags::LOCKED);
        mm.set_rlimits(Rlimits { memlock: PAGE, ..*mm.rlimits() });
        assert_eq!(syscall::mmap(mm, tables, &locked), Err(MmError::LockLimit));
        assert_eq!(syscall::mlock(mm, tables, MAPPED, 2 * PAGE), Err(MmError::LockLimitNoMemory));
        mm.set_rlimits(Rlimits { memlock: 0, ..*mm.rlimits() });
        assert_eq!(syscall::mmap(mm, tables, &locked), Err(MmError::MayNotLock));
        assert_eq!(syscall::mlock(mm, tables, MAPPED, 0), Err(MmError::MayNotLock));
        assert_eq!(syscall::mlockall(mm, tables, MlockallFlags::CURRENT), Err(MmError::MayNotLock));
        assert_eq!(syscall::mlockall(mm, tables, MlockallFlags::ONFAULT), Err(MmError::BadFlags));
    });
}

// What Linux does by halves, each with its own test.

#[test]
fn mprotect_changes_what_lies_before_a_hole() {
    with_space(|mm, tables| {
        let result = syscall::mprotect(mm, tables, MAPPED + 3 * PAGE, 6 * PAGE, Prot::NONE);
        assert_eq!(result, Err(MmError::NotMapped));
        let changed = |page| {
            let slot = mm.lookup(VirtAddr::from(MAPPED + page * PAGE)).unwrap();
            mm.vma(slot).flags.is_accessible()
        };
        assert_eq!([2, 3, 4, 8].map(changed), [true, false, false, true]);
    });
}

#[test]
fn mprotect_changes_what_lies_before_a_vma_that_denies() {
    with_space(|mm, tables| {
        let file = MapFile::new(FileRef::new(1, 1, FileKind::Memory).unwrap(), OpenMode::ReadOnly);
        let args = MmapArgs {
            file: Ok(Some(file)),
            flags: MapFlags::SHARED | MapFlags::FIXED,
            ..anonymous(MAPPED + 5 * PAGE, 1, Prot::READ, MapFlags::SHARED)
        };
        let args = MmapArgs { flags: args.flags - MapFlags::ANONYMOUS, ..args };
        syscall::mmap(mm, tables, &args).unwrap();
        let all = Prot::READ | Prot::WRITE | Prot::EXEC;
        assert_eq!(syscall::mprotect(mm, tables, MAPPED, 6 * PAGE, all), Err(MmError::Denied));
        let vma = mm.vma(mm.lookup(VirtAddr::from(MAPPED)).unwrap());
        assert_eq!((vma.pages(), vma.flags & VmFlags::ACCESS), (5, VmFlags::ACCESS));
    });
}

#[test]
fn madvise_advises_around_a_hole_and_reports_it() {
    with_space(|mm, tables| {
        let result = syscall::madvise(mm, tables, MAPPED, 10 * PAGE, Advice::DontFork as i32);
        assert_eq!(result, Err(MmError::NotMapped));
        assert!(mm.vmas().iter().all(|(_, vma)| vma.flags.contains(VmFlags::DONTCOPY)));
    });
}

#[test]
fn mlock_locks_what_lies_before_a_hole() {
    with_space(|mm, tables| {
        assert_eq!(syscall::mlock(mm, tables, MAPPED, 10 * PAGE), Err(MmError::NotMapped));
        assert_eq!(mm.totals().locked_vm, 5);
        assert_eq!(syscall::munlock(mm, tables, MAPPED + 4 * PAGE, 6 * PAGE), Err(MmError::NotMapped));
        assert_eq!(mm.totals().locked_vm, 4);
    });
}

#[test]
fn mlock_of_memory_without_access_fails_and_locks_it() {
    with_space(|mm, tables| {
        syscall::mprotect(mm, tables, MAPPED, PAGE, Prot::NONE).unwrap();
        assert_eq!(syscall::mlock(mm, tables, MAPPED, PAGE), Err(MmError::NotMapped));
        assert_eq!(mm.totals().locked_vm, 1);
    });
}

#[test]
fn mincore_answers_up_to_a_hole() {
    with_space(|mm, tables| {
        let mut answers = [9; 16];
        let result = syscall::mincore(mm, tables, MAPPED + 3 * PAGE, 5 * PAGE, answers.as_mut_slice());
        assert_eq!((result, &answers[..3]), (Err(MmError::NotMapped), &[0, 0, 9][..]));
    });
}

#[test]
fn mremap_moves_the_vmas_before_the_one_that_cannot() {
    with_space(|mm, tables| {
        let to = MAPPED + 0x100 * PAGE;
        let fixed = MremapFlags::MAYMOVE | MremapFlags::FIXED | MremapFlags::DONTUNMAP;
        // The second VMA may not be moved without being unmapped.
        let end = VirtAddr::from(MAPPED + 6 * PAGE);
        let special = kernmm::mm::Vma {
            start: VirtAddr::from(MAPPED + 5 * PAGE),
            end,
            flags: VmFlags::READ | VmFlags::DONTEXPAND,
            pgoff: kernmm::addr::PgOff::ZERO,
            backing: kernmm::mm::Backing::Special(1),
            anon: None,
        };
        mm.insert_vma(tables, &special).unwrap();
        let result = syscall::mremap(mm, tables, MAPPED, 6 * PAGE, 6 * PAGE, fixed, to);
        assert_eq!(result, Err(MmError::BadFlags));
        assert!(mm.lookup(VirtAddr::from(to)).is_some());
        assert!(mm.lookup(VirtAddr::from(to + 5 * PAGE)).is_none());
    });
}

#[test]
fn an_alias_does_not_take_the_place_of_its_source() {
    with_space(|mm, tables| {
        let args = MmapArgs {
            addr: MAPPED + 0x100 * PAGE,
            len: 4 * PAGE,
            prot: Prot::READ,
            flags: MapFlags::SHARED | MapFlags::ANONYMOUS | MapFlags::FIXED,
            file: Ok(None),
            offset: 0,
        };
        let source = syscall::mmap(mm, tables, &args).unwrap().get();
        let fixed = MremapFlags::MAYMOVE | MremapFlags::FIXED;
        let before = digest(mm);
        let result = syscall::mremap(mm, tables, source, 0, 2 * PAGE, fixed, source);
        assert_eq!(result, Err(MmError::NotMappedFault));
        assert_eq!(digest(mm), before);
        // Behind its first page it may.
        let result = syscall::mremap(mm, tables, source, 0, 2 * PAGE, fixed, source + PAGE);
        assert_eq!(result, Ok(VirtAddr::from(source + PAGE)));
    });
}
