//! Limits, the heap, exec.

use super::*;

#[test]
fn a_stack_does_not_grow_beyond_its_limits() {
    with_mm(|mm, tables| {
        mmap(mm, tables, AT, 1, RW, 0x110);
        mm.set_rlimits(Rlimits { stack: 3 * PAGE, ..*mm.rlimits() });
        let grow =
            |mm: &mut Mm<'_>, pages: u64| mm.find_vma_or_grow(VirtAddr::from(AT - pages * PAGE)).map(drop);
        assert_eq!(grow(mm, 3), Err(MmError::StackLimit));
        assert_eq!(grow(mm, 2), Ok(()));
        assert_eq!(mm.totals().stack_vm, 3);
        mm.set_rlimits(Rlimits { address_space: 3 * PAGE, ..Rlimits::default() });
        assert_eq!(grow(mm, 3), Err(MmError::AddressSpaceLimit));
    });
}

#[test]
fn limits_are_inclusive_and_what_is_replaced_counts_for_what_replaces_it() {
    with_mm(|mm, tables| {
        let map = |mm: &mut Mm<'_>, tables: &mut NullTables, page: u64, pages: u64, prot| {
            let flags = MapFlags::from_bits_retain(0x32);
            let (addr, len) = (AT + page * PAGE, pages * PAGE);
            syscall::mmap(mm, tables, &MmapArgs { addr, len, prot, flags, file: Ok(None), offset: 0 })
                .map(drop)
        };
        mm.set_rlimits(Rlimits { address_space: 4 * PAGE, data: 2 * PAGE, ..Rlimits::default() });
        assert_eq!(map(mm, tables, 0, 3, RW), Err(MmError::AddressSpaceLimit));
        assert_eq!(map(mm, tables, 0, 2, RW), Ok(()));
        assert_eq!(map(mm, tables, 8, 1, RW), Err(MmError::AddressSpaceLimit));
        assert_eq!(map(mm, tables, 8, 2, Prot::NONE), Ok(()));
        assert_eq!(map(mm, tables, 16, 1, Prot::NONE), Err(MmError::AddressSpaceLimit));
        assert_eq!(map(mm, tables, 7, 3, Prot::READ), Err(MmError::AddressSpaceLimit));
        assert_eq!(map(mm, tables, 8, 2, Prot::READ), Ok(()));
        mm.set_rlimits(Rlimits { data: 2 * PAGE, ..Rlimits::default() });
        let to_data = syscall::mprotect(mm, tables, AT + 8 * PAGE, PAGE, RW);
        assert_eq!(to_data, Err(MmError::AddressSpaceLimit));
        mm.set_rlimits(Rlimits { memlock: 2 * PAGE, ..Rlimits::default() });
        assert_eq!(syscall::mlock(mm, tables, AT, 2 * PAGE), Ok(()));
        assert_eq!(syscall::mlock(mm, tables, AT, 2 * PAGE), Ok(()));
        assert_eq!(syscall::mlock(mm, tables, AT + 8 * PAGE, 1), Err(MmError::LockLimitNoMemory));
    });
}

#[test]
fn no_data_at_all_forbids_the_heap_and_holds_the_rest_against_the_hard_limit() {
    with_mm(|mm, tables| {
        mm.set_rlimits(Rlimits { data: 0, data_max: 4 * PAGE, ..Rlimits::default() });
        let map = |mm: &mut Mm<'_>, tables: &mut NullTables, page: u64, pages: u64| {
            let args = MmapArgs::anonymous(pages * PAGE, RW).fixed(AT + page * PAGE);
            syscall::mmap(mm, tables, &args).map(drop)
        };
        assert_eq!(map(mm, tables, 0, 5), Err(MmError::AddressSpaceLimit));
        assert_eq!(map(mm, tables, 0, 4), Ok(()));
        assert_eq!(map(mm, tables, 8, 1), Err(MmError::AddressSpaceLimit));
        let heap = VirtAddr::from(AT + 100 * PAGE);
        mm.set_image(Image { start_brk: heap, brk: heap, ..Image::default() });
        mm.set_rlimits(Rlimits { data_max: Rlimits::INFINITY, ..*mm.rlimits() });
        assert_eq!(map(mm, tables, 8, 1), Ok(()));
        assert_eq!(syscall::sbrk(mm, tables, PAGE as i64), Err(MmError::AddressSpaceLimit));
        // Below a page, but not nothing.
        mm.set_rlimits(Rlimits { data: 1, ..*mm.rlimits() });
        assert_eq!(map(mm, tables, 12, 1), Err(MmError::AddressSpaceLimit));
    });
}

#[test]
fn what_is_put_somewhere_has_no_owner_of_pages_and_allows_no_more_than_it_may() {
    with_mm(|mm, tables| {
        let vma = Vma {
            start: VirtAddr::from(AT),
            end: VirtAddr::from(AT + PAGE),
            flags: VmFlags::DATA_DEFAULT,
            pgoff: anon_pgoff(VirtAddr::from(AT)),
            backing: Backing::Anonymous,
            anon: AnonVmaId::new(77).map(|id| AnonVma::new(id, Lineage::Own)),
        };
        for access in [VmFlags::READ, VmFlags::WRITE, VmFlags::EXEC] {
            let flags = access | (VmFlags::MAY_ACCESS - VmFlags::from_bits_retain(access.bits() << 4));
            assert_eq!(mm.insert_vma(tables, &Vma { flags, ..vma }), Err(MmError::Denied));
        }
        assert!(mm.vmas().is_empty() && mm.totals().total_vm == 0);
        let slot = mm.insert_vma(tables, &vma).unwrap();
        assert_eq!(mm.vma(slot), Vma { anon: None, ..vma });
        mm.check().unwrap();
        mm.prepare_anon(slot).unwrap();
    });
}

#[test]
fn the_first_of_the_heap_is_a_vma_of_its_own() {
    with_mm(|mm, tables| {
        draw(mm, tables, "Ww--");
        let start_brk = VirtAddr::from(AT + 2 * PAGE);
        mm.set_image(Image { start_brk, brk: start_brk, ..Image::default() });
        let grow = |mm: &mut Mm<'_>, tables: &mut NullTables| syscall::sbrk(mm, tables, PAGE as i64).unwrap();
        grow(mm, tables);
        assert_eq!(drawn(mm, 4), "WwW-");
        grow(mm, tables);
        assert_eq!(drawn(mm, 4), "WwWw");
        assert_eq!(syscall::sbrk(mm, tables, -(2 * PAGE as i64)), Ok(VirtAddr::from(AT + 4 * PAGE)));
        assert_eq!(drawn(mm, 4), "Ww--");
    });
}

#[test]
fn exec_replaces_everything_or_nothing() {
    with_mm(|mm, tables| {
        draw(mm, tables, "WwRr");
        let file = FileRef::new(1, 1, FileKind::Regular).unwrap();
        let code = Segment {
            addr: 0x40_0000,
            file_len: 0x1234,
            mem_len: 0x1234,
            offset: 0,
            prot: Prot::READ | Prot::EXEC,
        };
        let data = Segment { addr: 0x40_2100, file_len: 0x80, mem_len: 0x3000, offset: 0x2100, prot: RW };
        let top = 0x7fff_ffff_e000;
        let stack =
            StackImage { top, path_bytes: 6, arg_bytes: 10, env_bytes: 20, vector_bytes: 300, prot: RW };
        let segments = &[code, data];
        let program = Binary { file, kind: ElfType::Fixed, align: 0, segments };
        let image = ExecImage { program, interpreter: None, stack, seed: 0 };
        let mut other = NullTables::default();
        let mut new = mm.new_child().unwrap();
        for (bad, error) in [
            (Segment { addr: u64::MAX - 0xfff, ..data }, MmError::BadSegment),
            (Segment { addr: 0x7fff_ffff_e100, ..data }, MmError::BadSegment),
            (Segment { mem_len: 0x7f, ..data }, MmError::BadSegment),
            (Segment { offset: 0x2101, ..data }, MmError::BadSegment),
            (Segment { offset: u64::MAX - 0xeff, ..data }, MmError::OffsetOverflow),
            (Segment { offset: i64::MAX as u64 - 0xeff, ..data }, MmError::OffsetOverflow),
            (Segment { addr: 0x100, ..data }, MmError::BelowMinimum),
        ] {
            let segments = &[code, bad];
            let bad = ExecImage { program: Binary { segments, ..program }, ..image };
            assert_eq!(syscall::exec(mm, tables, &mut new, &mut other, &bad), Err(error), "{segments:x?}");
            assert!(new.vmas().is_empty());
            assert_eq!(drawn(mm, 4), "WwRr");
        }
        let bias = syscall::exec(mm, tables, &mut new, &mut other, &image);
        assert_eq!(bias, Ok(LoadBias { program: 0, interpreter: None }));
        assert!(new.vmas().is_empty());
        let ranges: Vec<(u64, u64)> =
            mm.vmas().iter().map(|(_, vma)| (vma.start.get(), vma.end.get())).collect();
        assert_eq!(ranges[..3], [(0x40_0000, 0x40_2000), (0x40_2000, 0x40_3000), (0x40_3000, 0x40_6000)]);
        assert_eq!(ranges[3], (0x7fff_ffff_e000 - (33 << 12), 0x7fff_ffff_e000));
        let fields = mm.image();
        let numbers =
            [fields.start_code, fields.end_code, fields.start_data, fields.end_data, fields.start_brk];
        assert_eq!(numbers.map(VirtAddr::get), [0x40_0000, 0x40_1234, 0x40_2100, 0x40_2180, 0x40_6000]);
        assert_eq!(fields.arg_end, fields.env_start);
        assert_eq!(syscall::brk(mm, tables, 0x40_7001).get(), 0x40_7001);
    });
}
