//! Where placement begins.

use super::*;
use crate::table::{EntryFormat, Pae, Sv39, X86_64};

/// The bases of an address space whose stack has this limit.
fn bases(sysctl: Sysctl, stack: u64, seed: u64) -> (u64, u64) {
    let rooms = Rooms::new(4, 0);
    let context = rooms.context_with(sysctl);
    let mut mm = Mm::new(&context).unwrap();
    mm.set_rlimits(Rlimits { stack, ..Rlimits::default() });
    mm.randomize_mmap_base(seed);
    (mm.mmap_base().get(), mm.mmap_legacy_base().get())
}

#[test]
fn the_bases_are_those_that_linux_takes_without_randomness() {
    let x86_64 = |stack| bases(Sysctl::default(), stack, 0);
    // As `setarch -R` shows them, with `ulimit -s` of 8 MiB, a bit more than 200 MiB, and none.
    assert_eq!(x86_64(8 << 20), (0x7fff_f7ff_f000, 0x2aaa_aaaa_b000));
    assert_eq!(x86_64((200 << 20) + 1234).0, 0x7fff_f36f_f000);
    assert_eq!(x86_64(Rlimits::INFINITY), (0x1555_5555_6000, 0x2aaa_aaaa_b000));
    // The greatest gap, and what would wrap with the guard gap added.
    assert_eq!(x86_64(1 << 50).0, 0x1555_5555_6000);
    assert_eq!(x86_64(u64::MAX - 4096).0, 0x1555_5555_6000);
    let rooms = Rooms::new(4, 0);
    let context = rooms.context();
    assert_eq!(Mm::new(&context).unwrap().mmap_legacy_base().get(), 0x2aaa_aaaa_b000);
}

#[test]
fn chance_moves_each_base_as_far_as_the_addresses_allow() {
    let formats = [
        (Sysctl::for_format::<X86_64>(), X86_64::TASK_SIZE, 28, 0x3f_ffff_u64),
        (Sysctl::for_format::<Sv39>(), Sv39::TASK_SIZE, 18, 0x3_ffff),
        (Sysctl::for_format::<Pae>(), Pae::TASK_SIZE, 8, 0x7ff),
    ];
    for (sysctl, task_size, bits, stack_pages) in formats {
        let (fixed, fixed_legacy) = bases(sysctl, 8 << 20, 0);
        // The pad that chance adds does not count where the gap has its least size anyway.
        let pad = (stack_pages * PAGE + (8 << 20) + (256 << 12)).max(128 << 20) - (128 << 20);
        let (mut low, mut high) = (u64::MAX, 0);
        for seed in (1..2_000).chain([u64::MAX]) {
            let (base, legacy) = bases(sysctl, 8 << 20, seed);
            let (down, up) = (fixed - pad - base, legacy - fixed_legacy);
            assert_eq!((down % PAGE, up), (0, down), "one number moves both");
            assert!(legacy < task_size && base < task_size);
            (low, high) = (low.min(down >> 12), high.max(down >> 12));
        }
        assert!(high < 1 << bits && high > 3 << (bits - 2), "up to {high:#x} pages of 2^{bits}");
        assert!(low < 1 << (bits - 6));
    }
}

#[test]
fn bases_lie_below_the_end_of_however_few_addresses() {
    for task_size in [16 << 20, 200 << 20, 1 << 30, 1 << 36] {
        let sysctl = Sysctl { task_size, ..Sysctl::default() };
        for stack in [0, 8 << 20, u64::MAX - 1, Rlimits::INFINITY] {
            for seed in 0..200 {
                let (base, legacy) = bases(sysctl, stack, seed);
                assert!(base < task_size && legacy < task_size && legacy >= task_size / 3);
            }
        }
    }
}

#[test]
fn a_stack_ends_at_the_end_of_the_addresses_or_by_chance_below() {
    with_mm(|mm, _| {
        assert_eq!(mm.stack_top(0).get(), X86_64::TASK_SIZE);
        let down = |seed| (X86_64::TASK_SIZE - mm.stack_top(seed).get()) >> 12;
        let far = (1..500).map(down).max().unwrap();
        assert!(far < 1 << 22 && far > 3 << 20, "{far:#x}");
    });
}
