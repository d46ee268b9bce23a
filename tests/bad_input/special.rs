//! Memory with rules of its own: the vdso, bare frames, droppable memory, huge pages.

use kernmm::addr::{PgOff, VirtAddr};
use kernmm::error::Errno;
use kernmm::flags::{Advice, MapFlags, MlockFlags, MlockallFlags, MremapFlags, Prot, VmFlags};
use kernmm::mm::{Backing, FileKind, FileRef, Mm, MmError, Sysctl, Vma};
use kernmm::syscall::{self, MmapArgs};

use super::digest::digest;
use super::ours::{MAPPED, Objects, with_space};
use super::space::{PAGE, Stores, context, map};
use super::tries::{MAX, TASK};

/// What the kernel maps for itself, with code in it.
fn put_vdso(mm: &mut Mm<'_>, tables: &mut Objects, start: u64, pages: u64, flags: VmFlags) {
    put(mm, tables, start, pages, flags | VmFlags::DONTEXPAND, Backing::Special(1));
}

fn put(mm: &mut Mm<'_>, tables: &mut Objects, start: u64, pages: u64, flags: VmFlags, backing: Backing) {
    let vma = Vma {
        start: VirtAddr::from(start),
        end: VirtAddr::from(start + pages * PAGE),
        flags: VmFlags::READ | VmFlags::EXEC | VmFlags::MAY_ACCESS | flags,
        pgoff: PgOff::ZERO,
        backing,
        anon: None,
    };
    mm.insert_vma(tables, &vma).unwrap();
}

type Call = fn(&mut Mm<'_>, &mut Objects, u64) -> Result<(), MmError>;

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

/// What `remap_pfn_range` makes of a VMA.
const BARE: VmFlags = VmFlags::IO.union(VmFlags::PFNMAP).union(VmFlags::DONTEXPAND).union(VmFlags::DONTDUMP);

#[test]
fn data_of_the_vdso_is_one_piece_though_its_frames_are_bare() {
    with_space(|mm, tables| {
        // What is not to be dumped already need not be divided for that.
        put_vdso(mm, tables, VDSO, 2, BARE - VmFlags::DONTDUMP);
        for (what, call) in DIVIDING {
            let before = digest(mm);
            assert_eq!(call(mm, tables, VDSO).map_err(MmError::errno), Err(Errno::EINVAL), "{what}");
            assert_eq!(digest(mm), before, "{what}");
        }
        assert_eq!(syscall::munmap(mm, tables, VDSO, 2 * PAGE), Ok(()));
    });
}

#[test]
fn bare_frames_of_a_device_may_be_divided_and_not_be_given_to_a_child() {
    with_space(|mm, tables| {
        put(mm, tables, VDSO, 2, BARE, Backing::Device(1));
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
    let mut tables = Objects::default();
    let (mm, tables) = (&mut mm, &mut tables);
    put_vdso(mm, tables, VDSO, 3, VmFlags::empty());
    let middle = |mm: &mut Mm<'_>, tables: &mut Objects| {
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

#[test]
fn mincore_tells_nothing_of_what_the_kernel_has_mapped_for_itself() {
    with_space(|mm, tables| {
        put_vdso(mm, tables, VDSO, 2, VmFlags::empty());
        put(mm, tables, VDSO + 2 * PAGE, 1, BARE, Backing::Device(1));
        let mut answers = [7; 3];
        syscall::mincore(mm, tables, VDSO, 3 * PAGE, answers.as_mut_slice()).unwrap();
        assert_eq!(answers, [1, 1, 0]);
        let hidden = VmFlags::RESIDENCY_HIDDEN;
        put(
            mm,
            tables,
            VDSO + 4 * PAGE,
            2,
            hidden,
            Backing::File(FileRef::new(1, 1, FileKind::Memory).unwrap()),
        );
        syscall::mincore(mm, tables, VDSO + 4 * PAGE, 2 * PAGE, &mut answers[1..]).unwrap();
        assert_eq!(answers, [1, 1, 1]);
    });
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
        assert_eq!((mm.totals().locked_vm, mm.map_count()), (locked, before.2 + 1));
        for at in [at, at + 4 * PAGE] {
            let vma = mm.vma(mm.lookup(VirtAddr::from(at)).unwrap());
            assert!(!vma.flags.intersects(VmFlags::LOCKED_MASK) && vma.pages() == 4, "{vma:?}");
        }
        syscall::munlockall(mm, tables);
        syscall::mmap(mm, tables, &droppable(at + 8 * PAGE, MapFlags::empty())).unwrap();
        assert_eq!(mm.map_count(), before.2 + 1);
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

#[test]
fn huge_pages_are_made_on_demand_where_one_fits_that_has_been_touched() {
    const HUGE: u64 = 512 * PAGE;
    with_space(|mm, tables| {
        let mut collapse =
            |mm: &mut Mm<'_>, addr| syscall::madvise(mm, tables, addr, PAGE, Advice::Collapse as i32);
        assert_eq!(collapse(mm, MAPPED), Err(MmError::BadAdvice), "too small");
        let at = MAPPED + HUGE;
        map(mm, &mut Objects::default(), at, 512, Prot::READ | Prot::WRITE).unwrap();
        assert_eq!(collapse(mm, at), Err(MmError::BadAdvice), "untouched");
        let touched = Advice::PopulateWrite as i32;
        syscall::madvise(mm, &mut Objects::default(), at, PAGE, touched).unwrap();
        assert_eq!(collapse(mm, at), Ok(()));
        let never = Advice::NoHugePage as i32;
        syscall::madvise(mm, &mut Objects::default(), at, 512 * PAGE, never).unwrap();
        assert_eq!(collapse(mm, at), Err(MmError::BadAdvice), "advised against");
    });
}
