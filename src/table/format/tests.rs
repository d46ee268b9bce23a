use super::*;

fn frame(raw: u64) -> Pfn {
    Pfn::new(raw).unwrap()
}

/// What an entry becomes is what it was, but for what `lost` says of the format.
fn round_trip<F: EntryFormat>(normal: impl Fn(PteBits) -> PteBits) {
    for raw in 0..1 << 11 {
        let bits = PteBits::from_bits(raw).unwrap();
        if bits.contains(PteBits::UNCACHED | PteBits::WRITE_COMBINING) {
            continue;
        }
        for (level, pfn) in [(0, 0), (0, 0x12_3456), (0, (1 << 40) - 1), (1, 0), (1, (1 << 40) - 512)] {
            let entry = F::encode(level, Pte::mapping(frame(pfn), bits));
            assert_eq!(F::kind(level, entry), EntryKind::Leaf, "{bits:?}");
            assert_eq!(F::reserved(level, entry) & entry, 0, "{bits:?}");
            let expected = if bits.intersects(RIGHTS) { bits } else { bits | PteBits::PROT_NONE };
            assert_eq!(F::decode(level, entry), Pte::mapping(frame(pfn), normal(expected)), "{bits:?}");
        }
    }
    for level in 0..2 {
        for (area, offset) in [(0, 0), (31, SwapEntry::MAX_OFFSET), (1, 0x2_5555), (30, 1 << 49)] {
            let swap = Pte::Swap(SwapEntry::new(area, offset).unwrap());
            assert_eq!(F::decode(level, F::encode(level, swap)), swap);
            assert_eq!(F::kind(level, F::encode(level, swap)), EntryKind::Leaf);
        }
        assert_eq!(F::decode(level, F::encode(level, Pte::Guard)), Pte::Guard);
        assert_eq!((F::encode(level, Pte::None), F::decode(level, 0)), (0, Pte::None));
        assert_eq!(F::kind(level, F::encode(level, Pte::Guard)), EntryKind::Leaf);
        assert_eq!(F::kind(level, 0), EntryKind::Empty);
    }
    for level in 1..F::LEVELS {
        for half in [Half::User, Half::Kernel] {
            let entry = F::table(level, half, frame(0xabcde));
            assert_eq!(F::kind(level, entry), EntryKind::Table(frame(0xabcde)));
            assert_eq!(F::reserved(level, entry) & entry, 0);
        }
    }
}

fn pae_normal(bits: PteBits) -> PteBits {
    if bits.contains(PteBits::PROT_NONE) { bits } else { bits | PteBits::READ }
}

fn x86_64_normal(bits: PteBits) -> PteBits {
    let is_execute_only = bits & (RIGHTS | PteBits::USER) == PteBits::EXEC | PteBits::USER;
    if is_execute_only { bits } else { pae_normal(bits) }
}

#[test]
fn entries_say_what_they_were_made_of() {
    round_trip::<X86_64>(x86_64_normal);
    round_trip::<Pae>(pae_normal);
    round_trip::<Sv39>(|bits| match bits.contains(PteBits::WRITE) && !bits.contains(PteBits::PROT_NONE) {
        true => bits | PteBits::READ,
        false => bits,
    });
}

#[test]
fn entries_are_the_bits_of_the_manuals() {
    let (rw, user) = (PteBits::READ | PteBits::WRITE, PteBits::USER);
    let pte = |bits| Pte::mapping(frame(0x1234), bits);
    assert_eq!(X86_64::encode(0, pte(rw | user)), 0x8000_0000_0123_4007);
    assert_eq!(X86_64::encode(0, pte(PteBits::EXEC | user)), 0x0800_0000_0123_4005);
    assert_eq!(X86_64::encode(0, pte(PteBits::EXEC)), 0x0000_0000_0123_4001, "a key is the user's");
    assert_eq!(Pae::encode(0, pte(PteBits::EXEC | user)), 0x0000_0000_0123_4005);
    assert_eq!(X86_64::encode(0, pte(PteBits::READ | PteBits::EXEC | user | PteBits::ACCESSED)), 0x0123_4025);
    assert_eq!(X86_64::encode(0, pte(rw | PteBits::DIRTY | PteBits::GLOBAL | PteBits::EXEC)), 0x0123_4143);
    assert_eq!(X86_64::encode(0, pte(rw | PteBits::UNCACHED | PteBits::EXEC)), 0x0123_401b);
    assert_eq!(X86_64::encode(1, Pte::mapping(frame(0x1200), rw | PteBits::EXEC | user)), 0x0120_0087);
    assert_eq!(X86_64::table(3, Half::User, frame(0x77)), 0x7_7027);
    assert_eq!(X86_64::table(3, Half::Kernel, frame(0x77)), 0x7_7023);
    assert_eq!(Pae::table(2, Half::User, frame(0x77)), 0x7_7001);
    assert_eq!(Sv39::encode(0, pte(rw | user)), 0x0048_d017);
    assert_eq!(Sv39::encode(0, pte(PteBits::EXEC | PteBits::ACCESSED)), 0x0048_d049);
    assert_eq!(Sv39::encode(0, pte(PteBits::WRITE | PteBits::DIRTY)), 0x0048_d087);
    assert_eq!(Sv39::table(1, Half::User, frame(0x1234)), 0x0048_d001);
}

#[test]
fn nothing_that_hardware_may_still_note_is_overlooked() {
    fn check<F: EntryFormat>() {
        let entry = |bits| F::encode(0, Pte::mapping(frame(5), bits));
        let (read, write) = (PteBits::READ, PteBits::READ | PteBits::WRITE);
        assert!(F::may_change(entry(read)));
        assert!(F::may_change(entry(write | PteBits::ACCESSED)));
        assert!(!F::may_change(entry(read | PteBits::ACCESSED)));
        assert!(!F::may_change(entry(write | PteBits::ACCESSED | PteBits::DIRTY)));
        assert!(!F::may_change(entry(write | PteBits::PROT_NONE)));
        assert!(!F::may_change(F::encode(0, Pte::Guard)) && !F::may_change(0));
    }
    check::<X86_64>();
    check::<Pae>();
    check::<Sv39>();
}

#[test]
fn addresses_lie_in_one_half_or_in_none() {
    fn ends<F: EntryFormat>(user_end: u64, kernel: u64) {
        let half = |addr| F::half(VirtAddr::from(addr));
        assert_eq!((half(0), half(user_end - 1)), (Some(Half::User), Some(Half::User)));
        assert_eq!(half(kernel), Some(Half::Kernel));
        assert!(half(user_end) != Some(Half::User) && half(kernel - 1) != Some(Half::Kernel));
        assert_eq!(index::<F>(F::LEVELS - 1, VirtAddr::from(0)), 0);
        assert!(index::<F>(F::LEVELS - 1, VirtAddr::MAX) == F::root_entries() - 1);
    }
    ends::<X86_64>(1 << 47, 0xffff_8000_0000_0000);
    ends::<Sv39>(1 << 38, 0xffff_ffc0_0000_0000);
    ends::<Pae>(0xc000_0000, 0xc000_0000);
    assert_eq!(Pae::half(VirtAddr::from(1 << 32)), None);
    assert_eq!(X86_64::half(VirtAddr::from(1 << 47)), None);
    assert_eq!((X86_64::root_entries(), Pae::root_entries(), Sv39::root_entries()), (512, 4, 512));
}
