//! What a move costs: VMAs, limits, committed memory.

use super::*;

const FIXED: MremapFlags = MremapFlags::MAYMOVE.union(MremapFlags::FIXED);
const KEEPING: MremapFlags = FIXED.union(MremapFlags::DONTUNMAP);

fn mremap(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    [from, old, new, to]: [u64; 4],
    flags: MremapFlags,
) -> Result<(), MmError> {
    let (from, to) = (AT + from * PAGE, AT + to * PAGE);
    syscall::mremap(mm, tables, from, old * PAGE, new * PAGE, flags, to).map(drop)
}

/// Runs `test` where there may be `max` VMAs, and eight single pages lie at the even ones of 16.
fn with_dots(max: u32, test: impl FnOnce(&mut Mm<'_>, &mut NullTables)) {
    let rooms = Rooms::new(64, 8);
    let context = rooms.context_with(Sysctl { max_map_count: max, ..Sysctl::default() });
    let (mut mm, mut tables) = (Mm::new(&context).unwrap(), NullTables::default());
    draw(&mut mm, &mut tables, "R-R-R-R-R-R-R-R-");
    test(&mut mm, &mut tables);
    mm.check().unwrap();
    syscall::exit(&mut mm, &mut tables);
    assert_eq!(context.pool().used(), 0);
}

#[test]
fn several_vmas_move_as_long_as_three_more_may_come() {
    // With each that stays there is one more.
    with_dots(14, |mm, tables| {
        assert_eq!(mremap(mm, tables, [0, 16, 16, 100], KEEPING), Err(MmError::TooManyVmas));
        assert_eq!((mm.map_count(), drawn(mm, 110).split_at(100).1), (11, "R-R-R-----"));
    });
    // As many as before, if none stays.
    with_dots(14, |mm, tables| {
        assert_eq!(mremap(mm, tables, [0, 16, 16, 100], FIXED), Ok(()));
        assert_eq!(mm.map_count(), 8);
    });
    with_dots(13, |mm, tables| {
        assert_eq!(mremap(mm, tables, [0, 16, 16, 100], FIXED), Err(MmError::TooManyVmas));
        assert_eq!(drawn(mm, 16), "R-R-R-R-R-R-R-R-");
    });
}

#[test]
fn a_vma_that_is_replaced_makes_room_for_what_replaces_it_and_a_hole_costs_one() {
    with_dots(16, |mm, tables| {
        // The fourth and those behind it find one VMA each where they go.
        for page in [106, 108] {
            mmap(mm, tables, AT + page * PAGE, 1, RW, 0x10);
        }
        assert_eq!(mremap(mm, tables, [0, 10, 10, 100], KEEPING), Ok(()));
        assert_eq!((mm.map_count(), drawn(mm, 110).split_at(100).1), (13, "R-R-R-R-R-"));
    });
    with_dots(15, |mm, tables| {
        mmap(mm, tables, AT + 99 * PAGE, 8, RW, 0x10);
        // The first is put in a hole, which makes two more; the second makes a hole, and has no room then.
        assert_eq!(mremap(mm, tables, [0, 4, 4, 100], KEEPING), Err(MmError::TooManyVmas));
        assert_eq!((mm.map_count(), drawn(mm, 107).split_at(99).1), (11, "WRWwwwww"));
    });
}

#[test]
fn what_is_replaced_counts_for_what_moves_there() {
    with_mm(|mm, tables| {
        mmap(mm, tables, AT, 4, RW, 0x10);
        mmap(mm, tables, AT + 8 * PAGE, 4, Prot::READ, 0x10);
        mm.set_rlimits(Rlimits { address_space: 8 * PAGE, data: 8 * PAGE, ..Rlimits::default() });
        assert_eq!(mremap(mm, tables, [0, 4, 4, 7], KEEPING), Err(MmError::AddressSpaceLimit));
        assert_eq!(drawn(mm, 12), "Wwww----Rrrr");
        assert_eq!(mremap(mm, tables, [0, 4, 4, 8], KEEPING), Ok(()));
        assert_eq!(drawn(mm, 12), "Wwww----Wwww");
        mm.set_rlimits(Rlimits { data: 8 * PAGE - 1, ..Rlimits::default() });
        assert_eq!(mremap(mm, tables, [0, 4, 4, 8], KEEPING), Err(MmError::AddressSpaceLimit));
        mm.set_rlimits(Rlimits { data: 8 * PAGE, ..Rlimits::default() });
        assert_eq!(mremap(mm, tables, [0, 4, 4, 8], KEEPING), Ok(()));
    });
}

/// Somebody else who wants a promise of so many pages while something is unmapped or moved here.
struct Rival<'o> {
    overcommit: &'o Overcommit,
    wants: u64,
    is_refused: bool,
}

impl Rival<'_> {
    fn want(&mut self) {
        match self.overcommit.charge(self.wants, 0) {
            Ok(()) => self.overcommit.uncharge(self.wants),
            Err(_) => self.is_refused = true,
        }
    }
}

impl Tables for Rival<'_> {
    fn unmap(&mut self, parts: impl Iterator<Item = VirtRange>, _emptied: Option<EmptyTables>) {
        parts.for_each(|_| self.want());
    }

    fn move_pages(&mut self, _vma: &Vma, _from: VirtRange, _to: VirtAddr) {
        self.want();
    }

    fn shared_anonymous(&mut self, mm: &Mm<'_>, pages: u64, flags: VmFlags) -> Result<FileRef, MmError> {
        NullTables::default().shared_anonymous(mm, pages, flags)
    }
}

/// Runs `test` where 100 pages are promised at most, less a reserve of a 32nd of what is mapped.
fn with_promises(reserve: u64, test: impl FnOnce(&mut Mm<'_>, &mut Rival<'_>)) {
    let rooms = Rooms::new(64, 8);
    let never = Overcommit::new(OvercommitMode::Never, 101, 0).with_ratio(100).with_reserves(reserve, 0);
    let context = rooms.context().with_overcommit(never);
    let mut mm = Mm::new(&context).unwrap();
    let overcommit = context.overcommit();
    let mut rival = Rival { overcommit, wants: 0, is_refused: false };
    test(&mut mm, &mut rival);
    mm.check().unwrap();
    assert_eq!(overcommit.committed(), mm.totals().committed);
    syscall::exit(&mut mm, &mut rival);
    assert_eq!((overcommit.committed(), context.pool().used()), (0, 0));
}

fn map(mm: &mut Mm<'_>, tables: &mut impl Tables, page: u64, pages: u64, prot: Prot) -> Result<(), MmError> {
    let args = MmapArgs::anonymous(pages * PAGE, prot).fixed(AT + page * PAGE);
    syscall::mmap(mm, tables, &args).map(drop)
}

#[test]
fn what_was_promised_for_a_target_is_left_to_what_moves_there() {
    with_promises(0, |mm, tables| {
        map(mm, tables, 0, 4, RW).unwrap();
        map(mm, tables, 100, 40, RW).unwrap();
        map(mm, tables, 200, 50, RW).unwrap();
        assert_eq!(mremap(mm, tables, [0, 4, 47, 99], FIXED), Ok(()));
        assert_eq!((mm.totals().committed, mm.totals().total_vm), (97, 97));
        assert_eq!(mremap(mm, tables, [99, 47, 51, 300], FIXED), Err(MmError::Overcommit));
        // What moves is less than what goes.
        assert_eq!(mremap(mm, tables, [200, 2, 3, 99], FIXED), Ok(()));
        assert_eq!(mm.totals().committed, 95);
        assert_eq!(mremap(mm, tables, [99, 3, 3, 220], KEEPING), Ok(()));
        assert_eq!(mm.totals().committed, 95);
    });
}

#[test]
fn the_reserve_is_of_what_is_mapped_without_the_target() {
    with_promises(100, |mm, tables| {
        map(mm, tables, 0, 4, RW).unwrap();
        map(mm, tables, 200, 40, RW).unwrap();
        map(mm, tables, 100, 60, Prot::READ).unwrap();
        // 101 - 44 / 32 are promised, 101 - 104 / 32 would have been.
        assert_eq!(mremap(mm, tables, [0, 4, 60, 100], FIXED), Err(MmError::Overcommit));
        assert_eq!(mremap(mm, tables, [0, 4, 59, 100], FIXED), Ok(()));
        assert_eq!(mm.totals().committed, 99);
    });
}

#[test]
fn no_more_is_promised_than_there_will_be_while_something_is_replaced_or_moved() {
    with_promises(0, |mm, tables| {
        map(mm, tables, 0, 60, RW).unwrap();
        tables.wants = 40;
        map(mm, tables, 0, 60, RW).unwrap();
        mremap(mm, tables, [0, 60, 60, 100], FIXED).unwrap();
        mremap(mm, tables, [110, 10, 10, 150], FIXED).unwrap();
        assert!(!tables.is_refused && mm.totals().committed == 50);
        map(mm, tables, 200, 10, RW).unwrap();
        // What needs no promise leaves none.
        map(mm, tables, 200, 10, Prot::READ).unwrap();
        assert!(!tables.is_refused && mm.totals().committed == 50);
        tables.wants = 51;
        map(mm, tables, 100, 10, RW).unwrap();
        assert!(tables.is_refused);
    });
}
