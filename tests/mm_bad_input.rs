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
use kernmm::addr::{PgOff, VirtAddr};
use kernmm::error::Errno;
use kernmm::flags::{Advice, MapFlags, MlockFlags, MlockallFlags, MremapFlags, MsyncFlags, Prot, VmFlags};
use kernmm::mm::{Backing, FileKind, FileRef, Image, Mm, MmError, NullTables, Rlimits, Sysctl, Vma};
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
        let special = Vma {
            start: VirtAddr::from(MAPPED + 5 * PAGE),
            end,
            flags: VmFlags::READ | VmFlags::DONTEXPAND,
            pgoff: PgOff::ZERO,
            backing: Backing::Special(1),
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

/// What the kernel maps for itself, with code in it.
fn put_vdso(mm: &mut Mm<'_>, tables: &mut NullTables, start: u64, pages: u64, flags: VmFlags) {
    let vdso = Vma {
        start: VirtAddr::from(start),
        end: VirtAddr::from(start + pages * PAGE),
        flags: VmFlags::READ | VmFlags::EXEC | VmFlags::MAY_ACCESS | VmFlags::DONTEXPAND | flags,
        pgoff: PgOff::ZERO,
        backing: Backing::Special(1),
        anon: None,
    };
    mm.insert_vma(tables, &vdso).unwrap();
}

type Call = fn(&mut Mm<'_>, &mut NullTables, u64) -> Result<(), MmError>;

/// Calls that would divide a mapping of two pages.
const DIVIDING: [(&str, Call); 14] = [
    ("munmap of the first", |mm, tables, at| syscall::munmap(mm, tables, at, PAGE)),
    ("munmap of the second", |mm, tables, at| syscall::munmap(mm, tables, at + PAGE, PAGE)),
    ("munmap from below", |mm, tables, at| syscall::munmap(mm, tables, at - 4 * PAGE, 5 * PAGE)),
    ("mmap over it", |mm, tables, at| {
        syscall::mmap(mm, tables, &MmapArgs::anonymous(PAGE, Prot::READ).fixed(at + PAGE)).map(drop)
    }),
    ("mprotect", |mm, tables, at| syscall::mprotect(mm, tables, at, PAGE, Prot::READ)),
    ("mprotect to write", |mm, tables, at| syscall::mprotect(mm, tables, at + PAGE, PAGE, Prot::WRITE)),
    ("mremap that shrinks", |mm, tables, at| {
        syscall::mremap(mm, tables, at, 2 * PAGE, PAGE, MremapFlags::empty(), 0).map(drop)
    }),
    ("mremap of a part", |mm, tables, at| {
        let fixed = MremapFlags::MAYMOVE | MremapFlags::FIXED;
        syscall::mremap(mm, tables, at, PAGE, PAGE, fixed, at + 0x100 * PAGE).map(drop)
    }),
    ("mremap over it", |mm, tables, at| {
        let fixed = MremapFlags::MAYMOVE | MremapFlags::FIXED;
        syscall::mremap(mm, tables, MAPPED, PAGE, PAGE, fixed, at).map(drop)
    }),
    ("DONTFORK", |mm, tables, at| syscall::madvise(mm, tables, at, PAGE, Advice::DontFork as i32)),
    ("DONTDUMP", |mm, tables, at| syscall::madvise(mm, tables, at + PAGE, PAGE, Advice::DontDump as i32)),
    ("WIPEONFORK", |mm, tables, at| syscall::madvise(mm, tables, at, PAGE, Advice::WipeOnFork as i32)),
    ("HUGEPAGE", |mm, tables, at| syscall::madvise(mm, tables, at, PAGE, Advice::HugePage as i32)),
    ("SEQUENTIAL", |mm, tables, at| syscall::madvise(mm, tables, at, PAGE, Advice::Sequential as i32)),
];

const VDSO: u64 = MAPPED + 0x200 * PAGE;

#[test]
fn a_vdso_is_one_piece() {
    with_space(|mm, tables| {
        put_vdso(mm, tables, VDSO, 2, VmFlags::empty());
        for (what, call) in DIVIDING {
            let before = digest(mm);
            assert_eq!(call(mm, tables, VDSO), Err(MmError::NotDivisible), "{what}");
            assert_eq!(digest(mm), before, "{what}");
            mm.check().unwrap();
        }
        assert_eq!(MmError::NotDivisible.errno(), Errno::EINVAL);
    });
}

#[test]
fn a_vdso_is_changed_moved_and_unmapped_as_a_whole() {
    with_space(|mm, tables| {
        put_vdso(mm, tables, VDSO, 2, VmFlags::empty());
        let flags = |mm: &Mm<'_>, at| mm.vma(mm.lookup(VirtAddr::from(at)).unwrap()).flags;
        // What has it already needs no border.
        let code = Prot::READ | Prot::EXEC;
        assert_eq!(syscall::mprotect(mm, tables, VDSO, PAGE, code), Ok(()));
        assert_eq!(syscall::madvise(mm, tables, VDSO, 2 * PAGE, Advice::DontFork as i32), Ok(()));
        assert!(flags(mm, VDSO).contains(VmFlags::DONTCOPY));
        // It is not memory of a device, which never is the child's.
        assert_eq!(syscall::madvise(mm, tables, VDSO, 2 * PAGE, Advice::DoFork as i32), Ok(()));
        assert!(!flags(mm, VDSO).contains(VmFlags::DONTCOPY));
        assert_eq!(syscall::mprotect(mm, tables, VDSO, 2 * PAGE, Prot::READ), Ok(()));
        let (to, fixed) = (VDSO + 0x100 * PAGE, MremapFlags::MAYMOVE | MremapFlags::FIXED);
        assert_eq!(syscall::mremap(mm, tables, VDSO, 2 * PAGE, 2 * PAGE, fixed, to), Ok(VirtAddr::from(to)));
        assert_eq!(syscall::munmap(mm, tables, to - PAGE, 4 * PAGE), Ok(()));
        assert!(mm.lookup(VirtAddr::from(to)).is_none());
    });
}

#[test]
fn bare_frames_of_a_device_may_be_divided_and_not_be_given_to_a_child() {
    with_space(|mm, tables| {
        put_vdso(mm, tables, VDSO, 2, VmFlags::PFNMAP | VmFlags::IO);
        let answer = syscall::madvise(mm, tables, VDSO, 2 * PAGE, Advice::DoFork as i32);
        assert_eq!(answer, Err(MmError::BadAdvice));
        assert_eq!(syscall::mprotect(mm, tables, VDSO, PAGE, Prot::READ), Ok(()));
        assert_eq!(syscall::munmap(mm, tables, VDSO + PAGE, PAGE), Ok(()));
        assert_eq!(mm.lookup(VirtAddr::from(VDSO)).map(|slot| mm.vma(slot).pages()), Some(1));
    });
}

#[test]
fn no_room_for_a_vma_beats_a_vdso_that_is_one_piece() {
    let stores = Stores::new(64, 8);
    let context = context(&stores, Sysctl { max_map_count: 8, ..Sysctl::default() });
    let mut mm = Mm::new(&context).unwrap();
    let mut tables = NullTables::default();
    let (mm, tables) = (&mut mm, &mut tables);
    put_vdso(mm, tables, VDSO, 3, VmFlags::empty());
    let middle = |mm: &mut Mm<'_>, tables: &mut NullTables| {
        let protected = syscall::mprotect(mm, tables, VDSO + PAGE, PAGE, Prot::READ);
        (syscall::munmap(mm, tables, VDSO + PAGE, PAGE), protected)
    };
    for n in 0..6 {
        map(mm, tables, MAPPED + 2 * n * PAGE, 1, Prot::READ).unwrap();
    }
    // Room for one of the two that mprotect would make.
    assert_eq!(mm.map_count(), 7);
    assert_eq!(middle(mm, tables), (Err(MmError::NotDivisible), Err(MmError::NotDivisible)));
    map(mm, tables, MAPPED + 32 * PAGE, 1, Prot::READ).unwrap();
    assert_eq!(middle(mm, tables), (Err(MmError::TooManyVmas), Err(MmError::TooManyVmas)));
    // At its end munmap needs none, mprotect one.
    assert_eq!(syscall::munmap(mm, tables, VDSO, PAGE), Err(MmError::NotDivisible));
    assert_eq!(syscall::mprotect(mm, tables, VDSO, PAGE, Prot::READ), Err(MmError::TooManyVmas));
    syscall::exit(mm, tables);
}

/// Droppable memory of four pages, at an address.
fn droppable(at: u64, flags: MapFlags) -> MmapArgs {
    let kind = MapFlags::from_bits_retain(8) | MapFlags::ANONYMOUS;
    MmapArgs { flags: kind | flags, ..MmapArgs::anonymous(4 * PAGE, Prot::READ | Prot::WRITE) }.fixed(at)
}

#[test]
fn droppable_memory_is_never_locked() {
    with_space(|mm, tables| {
        let at = VDSO;
        syscall::mmap(mm, tables, &droppable(at, MapFlags::empty())).unwrap();
        let flags = |mm: &Mm<'_>| mm.vma(mm.lookup(VirtAddr::from(at)).unwrap()).flags;
        let before = (flags(mm), *mm.totals(), mm.map_count());
        assert_eq!(syscall::mlock(mm, tables, at, PAGE), Ok(()));
        assert_eq!(syscall::mlock2(mm, tables, at, 4 * PAGE, MlockFlags::ONFAULT), Ok(()));
        // It is made resident all the same.
        assert_eq!((flags(mm), *mm.totals(), mm.map_count()), before);
        syscall::mlockall(mm, tables, MlockallFlags::CURRENT | MlockallFlags::FUTURE).unwrap();
        let locked = mm.totals().locked_vm;
        // What comes is not locked either, nor is it merged: it was compared as if it were.
        assert_eq!(
            syscall::mmap(mm, tables, &droppable(at + 4 * PAGE, MapFlags::empty())),
            Ok(VirtAddr::from(at + 4 * PAGE))
        );
        mm.check().unwrap();
        assert_eq!((mm.totals().locked_vm, mm.map_count()), (locked, 5));
        for at in [at, at + 4 * PAGE] {
            let vma = mm.vma(mm.lookup(VirtAddr::from(at)).unwrap());
            assert!(!vma.flags.intersects(VmFlags::LOCKED_MASK) && vma.pages() == 4, "{vma:?}");
        }
        syscall::munlockall(mm, tables);
        syscall::mmap(mm, tables, &droppable(at + 8 * PAGE, MapFlags::empty())).unwrap();
        assert_eq!(mm.map_count(), 5);
    });
}

#[test]
fn droppable_memory_is_refused_where_it_is_to_be_locked_or_huge_or_to_grow() {
    with_space(|mm, tables| {
        for flags in [MapFlags::LOCKED, MapFlags::HUGETLB, MapFlags::GROWSDOWN] {
            let before = digest(mm);
            assert_eq!(syscall::mmap(mm, tables, &droppable(VDSO, flags)), Err(MmError::BadFlags));
            assert_eq!(digest(mm), before);
        }
    });
}

#[test]
fn huge_pages_are_refused_as_a_file_of_them_is() {
    with_space(|mm, tables| {
        let huge = |kind: u32, len, offset| MmapArgs {
            flags: MapFlags::from_bits_retain(u64::from(kind)) | MapFlags::ANONYMOUS | MapFlags::HUGETLB,
            offset,
            ..MmapArgs::anonymous(len, Prot::READ)
        };
        for (args, error) in [
            (huge(1, PAGE, 0), MmError::NoHugePages),
            (huge(2, PAGE, 0), MmError::NoHugePages),
            (huge(3, PAGE, 512 * PAGE), MmError::NoHugePages),
            (huge(2, PAGE, PAGE), MmError::Unaligned),
            (huge(0, PAGE, 0), MmError::BadFlags),
            (huge(2, 0, 0), MmError::ZeroLength),
            (huge(2, MAX - PAGE + 1, 0), MmError::ZeroLength),
            (huge(0x102, PAGE, 0), MmError::BadFlags),
            (huge(2, TASK + PAGE, 0), MmError::NoGap),
            (huge(2, PAGE, 1 << 63), MmError::OffsetOverflow),
            (huge(2, PAGE, 0).fixed(VDSO + PAGE), MmError::Unaligned),
            (huge(8, PAGE, 0).fixed(VDSO), MmError::BadFlags),
            (huge(1, PAGE, 0).fixed(VDSO), MmError::NoHugePages),
        ] {
            assert_eq!(syscall::mmap(mm, tables, &args), Err(error), "{args:x?}");
        }
    });
}
