//! Every allocation inside every call fails once: ENOMEM, and everything is as it was.

#[path = "space/digest.rs"]
mod digest;
mod space;

use std::cell::Cell;

use digest::digest;
use kernmm::addr::{VirtAddr, VirtRange};
use kernmm::cache::Step;
use kernmm::collections::Slot;
use kernmm::error::Errno;
use kernmm::flags::{Advice, MapFlags, MlockFlags, MlockallFlags, MremapFlags, Prot, VmFlags};
use kernmm::mm::{
    FileKind, FileRef, Image, Mm, MmContext, MmError, NullTables, Overcommit, OvercommitMode, Sysctl, Tables,
    Touch, Vma,
};
use kernmm::syscall::{self, Binary, ElfType, ExecImage, Segment, StackImage};
use space::{PAGE, Stores, anonymous, context, map};

const AT: u64 = 0x10_0000_0000;
const STACK: u64 = AT + 400 * PAGE;

/// Tables of which a request, counted from 0, fails.
#[derive(Default)]
struct Failing {
    inner: NullTables,
    left: Cell<Option<u32>>,
}

impl Failing {
    fn request(&self) -> Result<(), MmError> {
        match self.left.get() {
            None => Ok(()),
            Some(0) => Err(MmError::OutOfMemory),
            Some(left) => {
                self.left.set(Some(left - 1));
                Ok(())
            }
        }
    }
}

impl Tables for Failing {
    fn prepare_move(&mut self, _vma: &Vma, _from: VirtRange, _to: VirtAddr) -> Result<(), MmError> {
        self.request()
    }

    fn fork(&mut self, _child: &mut Self, _vma: &Vma) -> Result<(), MmError> {
        self.request()
    }

    fn populate(
        &mut self,
        mm: &Mm<'_>,
        slot: Slot,
        rest: &mut VirtRange,
        touch: Touch,
    ) -> Result<Step, MmError> {
        self.request()?;
        self.inner.populate(mm, slot, rest, touch)
    }

    fn shared_anonymous(&mut self, mm: &Mm<'_>, pages: u64, flags: VmFlags) -> Result<FileRef, MmError> {
        self.request()?;
        self.inner.shared_anonymous(mm, pages, flags)
    }
}

type Call = fn(&mut Mm<'_>, &mut Failing) -> Result<(), MmError>;

fn mremap(
    mm: &mut Mm<'_>,
    tables: &mut Failing,
    from: u64,
    old: u64,
    new: u64,
    flags: u64,
    to: u64,
) -> Result<(), MmError> {
    let flags = MremapFlags::from_bits_retain(flags);
    syscall::mremap(mm, tables, AT + from * PAGE, old * PAGE, new * PAGE, flags, AT + to * PAGE).map(drop)
}

/// Calls that allocate, and that are refused as a whole when they cannot.
const CALLS: &[(&str, Call)] = &[
    ("mmap", |mm, t| map(mm, t, AT + 32 * PAGE, 2, Prot::WRITE)),
    ("mmap over the middle of a VMA", |mm, t| map(mm, t, AT + PAGE, 1, Prot::NONE)),
    ("mmap shared", |mm, t| syscall::mmap(mm, t, &anonymous(0, 2, Prot::READ, MapFlags::SHARED)).map(drop)),
    ("mmap shared over VMAs", |mm, t| {
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        syscall::mmap(mm, t, &anonymous(AT + PAGE, 9, Prot::READ, flags)).map(drop)
    }),
    ("munmap in the middle", |mm, t| syscall::munmap(mm, t, AT + PAGE, PAGE)),
    ("mprotect of the middle", |mm, t| syscall::mprotect(mm, t, AT + PAGE, PAGE, Prot::READ)),
    ("mprotect to writable", |mm, t| syscall::mprotect(mm, t, AT + 9 * PAGE, PAGE, Prot::READ | Prot::WRITE)),
    ("mremap growth in place", |mm, t| mremap(mm, t, 0, 4, 6, 0, 0)),
    ("mremap growth elsewhere", |mm, t| mremap(mm, t, 0, 3, 6, 1, 0)),
    ("mremap to an address", |mm, t| mremap(mm, t, 1, 2, 2, 3, 48)),
    ("mremap to an address, shrinking, over a VMA", |mm, t| mremap(mm, t, 1, 2, 1, 3, 9)),
    ("mremap that leaves the source", |mm, t| mremap(mm, t, 1, 2, 2, 7, 48)),
    ("mremap of a shared alias", |mm, t| mremap(mm, t, 16, 0, 2, 1, 0)),
    ("brk", |mm, t| {
        let to = mm.image().brk.get() + PAGE;
        if syscall::brk(mm, t, to).get() == to { Ok(()) } else { Err(MmError::OutOfMemory) }
    }),
    ("sbrk", |mm, t| syscall::sbrk(mm, t, 8192).map(drop)),
    ("mlock of the middle", |mm, t| syscall::mlock(mm, t, AT + PAGE, PAGE)),
    ("madvise of the middle", |mm, t| syscall::madvise(mm, t, AT + PAGE, PAGE, Advice::DontFork as i32)),
    ("a guard region", |mm, t| syscall::madvise(mm, t, AT + 8 * PAGE, PAGE, Advice::GuardInstall as i32)),
    ("mlock2 of the middle", |mm, t| syscall::mlock2(mm, t, AT + PAGE, PAGE, MlockFlags::ONFAULT)),
    ("munlock of the middle", |mm, t| syscall::munlock(mm, t, AT + 21 * PAGE, PAGE)),
    ("mlockall of what is to come", |mm, t| syscall::mlockall(mm, t, MlockallFlags::FUTURE)),
    ("mlockall", |mm, t| syscall::mlockall(mm, t, MlockallFlags::CURRENT)),
    ("munlockall", |mm, t| {
        syscall::munlockall(mm, t);
        Ok(())
    }),
    ("populating while mapping", |mm, t| {
        let flags = MapFlags::FIXED | MapFlags::POPULATE;
        syscall::mmap(mm, t, &anonymous(AT + 32 * PAGE, 2, Prot::WRITE, flags)).map(drop)
    }),
    ("populating", |mm, t| syscall::madvise(mm, t, AT + 8 * PAGE, 4 * PAGE, Advice::PopulateRead as i32)),
    ("populating to be written", |mm, t| syscall::madvise(mm, t, STACK, PAGE, Advice::PopulateWrite as i32)),
    ("a stack that grows", |mm, _| mm.find_vma_or_grow(VirtAddr::from(STACK - 3 * PAGE)).map(drop)),
    ("exec", |mm, t| {
        let file = FileRef::new(1, 1, FileKind::Regular).unwrap();
        let segment = Segment {
            addr: AT,
            file_len: PAGE,
            mem_len: 3 * PAGE,
            offset: 0,
            prot: Prot::READ | Prot::WRITE,
        };
        let segments = &[segment, Segment { addr: AT + 8 * PAGE, ..segment }];
        let program = Binary { file, kind: ElfType::Fixed, align: 0, segments };
        let interpreter = Some(Binary { kind: ElfType::Relocatable, ..program });
        let (top, prot) = (AT + (1 << 30), Prot::READ | Prot::WRITE);
        let stack = StackImage { top, path_bytes: 2, arg_bytes: 16, env_bytes: 0, vector_bytes: 600, prot };
        let image = ExecImage { program, interpreter, stack, seed: 0 };
        let mut new = mm.new_child()?;
        let mut new_tables = Failing { left: t.left.clone(), ..Failing::default() };
        let result = syscall::exec(mm, t, &mut new, &mut new_tables, &image);
        // What is left in the other one is nothing, either way.
        assert!(new.vmas().is_empty());
        new.check().unwrap();
        result.map(drop)
    }),
    ("fork", |mm, t| {
        let mut child_tables = Failing::default();
        let mut child = mm.new_child()?;
        let forked = syscall::fork(mm, t, &mut child, &mut child_tables);
        child.check().unwrap();
        assert_eq!(child.vmas().is_empty(), forked.is_err());
        syscall::exit(&mut child, &mut child_tables);
        forked
    }),
];

/// ```text
/// AT  0    4        8    12       16   18   20    23                400   402
///     [rw ]         [r  ]         [rw-s]    [locked]  heap at 64    [stack]
/// ```
fn furnish(mm: &mut Mm<'_>, tables: &mut Failing) {
    map(mm, tables, AT, 4, Prot::READ | Prot::WRITE).unwrap();
    map(mm, tables, AT + 8 * PAGE, 4, Prot::READ).unwrap();
    let shared = anonymous(AT + 16 * PAGE, 2, Prot::READ, MapFlags::SHARED | MapFlags::FIXED);
    syscall::mmap(mm, tables, &shared).unwrap();
    map(mm, tables, AT + 20 * PAGE, 3, Prot::READ).unwrap();
    syscall::mlock2(mm, tables, AT + 20 * PAGE, 3 * PAGE, MlockFlags::ONFAULT).unwrap();
    let stack = anonymous(STACK, 2, Prot::READ | Prot::WRITE, MapFlags::GROWSDOWN | MapFlags::FIXED);
    syscall::mmap(mm, tables, &stack).unwrap();
    mm.prepare_anon(mm.lookup(VirtAddr::from(AT)).unwrap()).unwrap();
    let heap = VirtAddr::from(AT + 64 * PAGE);
    mm.set_image(Image { start_brk: heap, brk: heap, ..Image::default() });
}

/// What a call may still have.
#[derive(Clone, Copy)]
struct Spare {
    slots: u32,
    tables: u32,
    /// Pages to be committed.
    pages: u32,
    /// Owners of anonymous pages.
    anon_vmas: u32,
    /// How many VMAs there are besides: with this many there is an index of gaps.
    crowd: u32,
}

const ENOUGH: Spare = Spare { slots: 16, tables: 128, pages: 64, anon_vmas: 16, crowd: 0 };
/// So many that there is an index of gaps, built when an address is looked for.
const CROWD: u32 = 60;
/// What `furnish` takes.
const VMAS: usize = 5;
const COMMITTED: u64 = 6;

/// Runs a call with so much to spare; whether it was refused.
fn refused(name: &str, call: Call, spare: Spare) -> bool {
    let crowd = spare.crowd as usize;
    let stores =
        Stores::new(VMAS + crowd + spare.slots as usize, crowd).with_anon_vmas(1 + spare.anon_vmas as usize);
    // The limit is exclusive, and 6 pages are committed from the start.
    let limit = COMMITTED + u64::from(spare.pages) + 1;
    let overcommit = Overcommit::new(OvercommitMode::Never, limit, 0).with_ratio(100).with_reserves(0, 0);
    let context = MmContext::new(stores.lend(), Sysctl::default(), overcommit);
    let mut mm = Mm::new(&context).unwrap();
    let mut tables = Failing::default();
    furnish(&mut mm, &mut tables);
    // Read-only, so that nothing is committed; every other page, so that they do not merge.
    for n in 0..u64::from(spare.crowd) {
        if n + 1 == u64::from(spare.crowd) {
            // Looks for an address, and so builds the index.
            let lone = anonymous(0, 1, Prot::NONE, MapFlags::empty());
            let at = syscall::mmap(&mut mm, &mut tables, &lone).unwrap();
            syscall::munmap(&mut mm, &mut tables, at.get(), PAGE).unwrap();
            assert!(context.gap_nodes().used() > 0);
        }
        map(&mut mm, &mut tables, AT - (2 + 2 * n) * PAGE, 1, Prot::READ).unwrap();
    }
    assert_eq!(context.overcommit().committed(), COMMITTED);
    tables.left.set(Some(spare.tables));
    let before = digest(&mm);
    let result = call(&mut mm, &mut tables);
    mm.check().unwrap_or_else(|violation| panic!("{name}: {violation:?}"));
    if let Err(error) = result {
        assert!(matches!(error.errno(), Errno::ENOMEM | Errno::EAGAIN), "{name}: {error:?}");
        // The range is locked, or mapped, only not resident; a stack that may not grow has an owner of its pages all the same.
        let is_partial = matches!(error, MmError::TryAgain) && name.starts_with("mlock")
            || name == "a stack that grows" && error == MmError::Overcommit;
        if !is_partial {
            assert_eq!(digest(&mm), before, "{name}: {error:?}");
        }
    }
    tables.left.set(None);
    syscall::exit(&mut mm, &mut tables);
    assert_eq!(
        (context.pool().used(), context.overcommit().committed(), context.anon_vmas().used()),
        (0, 0, 0),
        "{name} leaks"
    );
    result.is_err()
}

/// Grows what is to spare until the call succeeds; how often it was refused.
fn refusals(name: &str, mut refused: impl FnMut(u32) -> bool) -> u32 {
    let enough = (0..96).find(|&spare| !refused(spare));
    enough.unwrap_or_else(|| panic!("{name}: with enough to spare it succeeds"))
}

#[test]
fn a_call_that_gets_no_slot_changes_nothing() {
    let mut total = 0;
    for &(name, call) in CALLS {
        // With few VMAs, and with so many that there is an index of gaps.
        for crowd in [0, CROWD] {
            total += refusals(name, |spare| refused(name, call, Spare { slots: spare, crowd, ..ENOUGH }));
        }
    }
    assert!(total >= 36, "{total} refusals for want of slots");
}

#[test]
fn a_call_that_gets_no_table_changes_nothing() {
    let mut total = 0;
    for &(name, call) in CALLS {
        total += refusals(name, |spare| refused(name, call, Spare { tables: spare, ..ENOUGH }));
    }
    assert!(total >= 10, "{total} refusals for want of tables");
}

#[test]
fn a_call_that_gets_no_owner_of_anonymous_pages_changes_nothing() {
    let mut total = 0;
    for &(name, call) in CALLS {
        total += refusals(name, |spare| refused(name, call, Spare { anon_vmas: spare, ..ENOUGH }));
    }
    assert_eq!(
        total, 5,
        "fork, exec, the guard region, the stack that grows and the page of it that is populated"
    );
}

#[test]
fn a_stack_that_gets_no_owner_of_anonymous_pages_does_not_grow() {
    let stores = Stores::new(4, 0).with_anon_vmas(0);
    let context = context(&stores, Sysctl::default());
    let mut mm = Mm::new(&context).unwrap();
    let mut tables = Failing::default();
    let stack = anonymous(AT, 2, Prot::READ | Prot::WRITE, MapFlags::GROWSDOWN | MapFlags::FIXED);
    syscall::mmap(&mut mm, &mut tables, &stack).unwrap();
    let before = digest(&mm);
    assert_eq!(mm.find_vma_or_grow(VirtAddr::from(AT - PAGE)), Err(MmError::OutOfMemory));
    let populate = |mm: &mut Mm<'_>, tables: &mut Failing| {
        syscall::madvise(mm, tables, AT, PAGE, Advice::PopulateWrite as i32)
    };
    assert_eq!(populate(&mut mm, &mut tables), Err(MmError::OutOfMemory));
    assert_eq!(digest(&mm), before);
    syscall::exit(&mut mm, &mut tables);
}

#[test]
fn without_a_free_address_space_there_is_no_child() {
    let stores = Stores::new(4, 0).with_mms(2);
    let context = context(&stores, Sysctl::default());
    let mm = Mm::new(&context).unwrap();
    let first = mm.new_child().unwrap();
    let id = first.id();
    assert_eq!(mm.new_child().map(drop), Err(MmError::OutOfSpaces));
    drop(first);
    let next = mm.new_child().unwrap();
    assert_eq!(next.id().slot(), id.slot());
    // The slot is the same, and yet it is not the one that was.
    assert!(next.id() != id && context.lock_vma(id, VirtAddr::ZERO).is_none());
}

#[test]
fn a_call_that_may_commit_no_more_changes_nothing() {
    let mut total = 0;
    for &(name, call) in CALLS {
        total += refusals(name, |spare| refused(name, call, Spare { pages: spare, ..ENOUGH }));
    }
    assert!(total >= 10, "{total} refusals for want of memory to commit");
}

#[test]
fn a_call_beyond_the_number_of_vmas_changes_nothing() {
    let split: &[(&str, Call)] = &[
        ("munmap", |mm, t| syscall::munmap(mm, t, AT + PAGE, PAGE)),
        ("mprotect", |mm, t| syscall::mprotect(mm, t, AT + PAGE, PAGE, Prot::READ)),
        ("madvise", |mm, t| syscall::madvise(mm, t, AT + PAGE, PAGE, Advice::DontFork as i32)),
        ("mlock", |mm, t| syscall::mlock(mm, t, AT + PAGE, PAGE)),
        ("mremap", |mm, t| mremap(mm, t, 1, 2, 2, 3, 48)),
    ];
    for &(name, call) in split {
        let refusals = refusals(name, |spare| {
            let stores = Stores::new(32, 0);
            let sysctl = Sysctl { max_map_count: VMAS as u32 + spare, ..Sysctl::default() };
            let context = context(&stores, sysctl);
            let mut mm = Mm::new(&context).unwrap();
            let mut tables = Failing::default();
            furnish(&mut mm, &mut tables);
            let before = digest(&mm);
            let result = call(&mut mm, &mut tables);
            if result.is_err() {
                assert_eq!(digest(&mm), before, "{name}: {result:?}");
            }
            syscall::exit(&mut mm, &mut tables);
            result.is_err()
        });
        // A hole costs one VMA more, a part of its own two; mremap wants room for five more.
        let expected = match name {
            "munmap" => 1,
            "mremap" => 6,
            _ => 2,
        };
        assert_eq!(refusals, expected, "{name}");
    }
}

#[test]
fn mmap_may_exceed_the_number_of_vmas_by_one() {
    let stores = Stores::new(32, 0);
    let sysctl = Sysctl { max_map_count: VMAS as u32, ..Sysctl::default() };
    let context = context(&stores, sysctl);
    let mut mm = Mm::new(&context).unwrap();
    let mut tables = Failing::default();
    furnish(&mut mm, &mut tables);
    map(&mut mm, &mut tables, AT + 30 * PAGE, 1, Prot::READ).unwrap();
    // Not even one that would merge.
    assert_eq!(map(&mut mm, &mut tables, AT + 31 * PAGE, 1, Prot::READ), Err(MmError::TooManyVmas));
    syscall::munmap(&mut mm, &mut tables, AT, PAGE).unwrap();
    assert_eq!(syscall::munmap(&mut mm, &mut tables, AT + 2 * PAGE, PAGE), Err(MmError::TooManyVmas));
    syscall::exit(&mut mm, &mut tables);
}
