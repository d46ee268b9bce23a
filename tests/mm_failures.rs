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
use kernmm::flags::{Advice, MapFlags, MremapFlags, Prot, VmFlags};
use kernmm::mm::{
    FileRef, Image, Mm, MmContext, MmError, NullTables, Overcommit, OvercommitMode, Sysctl, Tables, Touch,
    Vma,
};
use kernmm::syscall;
use space::{PAGE, Stores, anonymous, context, map};

const AT: u64 = 0x10_0000_0000;

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
/// AT  0    4        8    12       16   18
///     [rw ]         [r  ]         [rw-s]      heap at 64
/// ```
fn furnish(mm: &mut Mm<'_>, tables: &mut Failing) {
    map(mm, tables, AT, 4, Prot::READ | Prot::WRITE).unwrap();
    map(mm, tables, AT + 8 * PAGE, 4, Prot::READ).unwrap();
    let shared = anonymous(AT + 16 * PAGE, 2, Prot::READ, MapFlags::SHARED | MapFlags::FIXED);
    syscall::mmap(mm, tables, &shared).unwrap();
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
}

const ENOUGH: Spare = Spare { slots: 16, tables: 64, pages: 64, anon_vmas: 16 };

/// Runs a call with so much to spare; whether it was refused.
fn refused(name: &str, call: Call, spare: Spare) -> bool {
    let stores = Stores::new(3 + spare.slots as usize, 0).with_anon_vmas(1 + spare.anon_vmas as usize);
    // The limit is exclusive, and 4 pages are committed from the start.
    let limit = 4 + u64::from(spare.pages) + 1;
    let overcommit = Overcommit::new(OvercommitMode::Never, limit, 0).with_ratio(100).with_reserves(0, 0);
    let context = MmContext::new(stores.lend(), Sysctl::default(), overcommit);
    let mut mm = Mm::new(&context).unwrap();
    let mut tables = Failing::default();
    furnish(&mut mm, &mut tables);
    assert_eq!(context.overcommit().committed(), 4);
    tables.left.set(Some(spare.tables));
    let before = digest(&mm);
    let result = call(&mut mm, &mut tables);
    mm.check().unwrap_or_else(|violation| panic!("{name}: {violation:?}"));
    if let Err(error) = result {
        assert!(matches!(error.errno(), Errno::ENOMEM | Errno::EAGAIN), "{name}: {error:?}");
        if name.starts_with("mlock") && error == MmError::TryAgain {
            // The range is locked, only not resident.
        } else {
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
fn refusals(mut refused: impl FnMut(u32) -> bool) -> u32 {
    let enough = (0..64).find(|&spare| !refused(spare));
    enough.expect("with enough to spare the call succeeds")
}

#[test]
fn a_call_that_gets_no_slot_changes_nothing() {
    let mut total = 0;
    for &(name, call) in CALLS {
        total += refusals(|spare| refused(name, call, Spare { slots: spare, ..ENOUGH }));
    }
    assert!(total >= 18, "{total} refusals for want of slots");
}

#[test]
fn a_call_that_gets_no_table_changes_nothing() {
    let mut total = 0;
    for &(name, call) in CALLS {
        total += refusals(|spare| refused(name, call, Spare { tables: spare, ..ENOUGH }));
    }
    assert!(total >= 10, "{total} refusals for want of tables");
}

#[test]
fn a_call_that_gets_no_owner_of_anonymous_pages_changes_nothing() {
    let mut total = 0;
    for &(name, call) in CALLS {
        total += refusals(|spare| refused(name, call, Spare { anon_vmas: spare, ..ENOUGH }));
    }
    assert_eq!(total, 2, "fork, and the guard region");
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
    let (child, id) = {
        let child = mm.new_child().unwrap();
        let id = child.id();
        (child.reference(), id)
    };
    // One that is referred to is nobody else's.
    assert_eq!(mm.new_child().map(drop), Err(MmError::OutOfSpaces));
    assert_eq!(context.mms().find(id).map(|found| found.users()), Some(2));
    drop(child);
    assert!(context.mms().find(id).is_none());
    let next = mm.new_child().unwrap();
    assert_eq!(next.id().slot(), id.slot());
    assert!(next.id() != id && context.mms().find(id).is_none() && next.reference().users() == 2);
}

#[test]
fn a_call_that_may_commit_no_more_changes_nothing() {
    let mut total = 0;
    for &(name, call) in CALLS {
        total += refusals(|spare| refused(name, call, Spare { pages: spare, ..ENOUGH }));
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
        let refusals = refusals(|spare| {
            let stores = Stores::new(32, 0);
            let sysctl = Sysctl { max_map_count: 3 + spare, ..Sysctl::default() };
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
    let sysctl = Sysctl { max_map_count: 3, ..Sysctl::default() };
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
