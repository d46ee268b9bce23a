//! Allocation and freeing through the public interface.
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use kernmm::addr::{PageOrder, Pfn};
use kernmm::flags::GfpFlags;
use kernmm::phys::{
    Config, DeferredBound, FreeError, MemoryKind, MemoryRange, Merging, Phys, Plan, WatermarkConfig,
};
use kernmm::platform::{CpuId, CpuPin, Platform};

struct Bare;
// SAFETY: no frame is mapped, there is one CPU.
unsafe impl Platform for Bare {
    fn direct_map(&self, _: Pfn) -> Option<NonNull<u8>> {
        None
    }
}

fn usable(base: u64, len: u64) -> MemoryRange {
    MemoryRange { base, len, kind: MemoryKind::Usable }
}

fn memory(layout: std::alloc::Layout) -> &'static mut [MaybeUninit<u8>] {
    let words = vec![MaybeUninit::<[u64; 8]>::uninit(); layout.size() / 64 + 2].leak();
    let bytes = words.len() * 64;
    let start = words.as_mut_ptr().cast::<MaybeUninit<u8>>();
    let skip = start.align_offset(layout.align());
    // SAFETY: the bytes after the skipped ones belong to the leaked vector.
    unsafe { std::slice::from_raw_parts_mut(start.add(skip), bytes - skip) }
}

fn boot(ranges: &[MemoryRange], config: &Config<'_>) -> Phys<'static> {
    let plan = Plan::new(ranges.iter().copied(), config).unwrap();
    // SAFETY: one thread, one CPU.
    let pin = unsafe { CpuPin::new(&Bare, CpuId::BOOT) };
    Phys::init(&pin, ranges.iter().copied(), config, memory(plan.metadata_layout())).unwrap()
}

#[test]
fn a_freed_block_is_allocated_again() {
    for merging in [Merging::Deferred, Merging::Immediate] {
        for batch in [None, Some(0), Some(7)] {
            let config = Config { merging, batch, ..Config::default() };
            let phys = boot(&[usable(0, 0x9fc00), usable(0x100000, 64 << 20)], &config);
            // SAFETY: one thread, one CPU.
            let pin = unsafe { CpuPin::new(&Bare, CpuId::BOOT) };
            phys.check(&pin).unwrap();
            let before: Vec<_> = phys.zones().iter().map(|zone| zone.stat(&pin).blocks).collect();
            let mut blocks = vec![];
            for round in 0..3000_u64 {
                let order = PageOrder::new((round % 10) as u8 * (round % 3 / 2) as u8).unwrap();
                if let Ok(pfn) = phys.alloc_pages(&pin, GfpFlags::HIGHUSER_MOVABLE, order) {
                    blocks.push((pfn, order));
                }
                if round % 7 == 0 {
                    let (pfn, order) = blocks.swap_remove((round as usize * 31) % blocks.len());
                    phys.free_pages(&pin, pfn, order).unwrap();
                    assert!(matches!(
                        phys.free_pages(&pin, pfn, order),
                        Err(FreeError::DoubleFree
                            | FreeError::DoubleFreeOnCpu
                            | FreeError::DoubleFreeDeferred)
                    ));
                }
            }
            phys.check(&pin).unwrap();
            for (pfn, order) in blocks {
                phys.free_pages(&pin, pfn, order).unwrap();
            }
            phys.check(&pin).unwrap();
            phys.drain_all(&pin);
            phys.check(&pin).unwrap();
            let total = |blocks: &[[u64; 3]; 10]| blocks.map(|kinds| kinds.iter().sum::<u64>());
            let after: Vec<_> = phys.zones().iter().map(|zone| zone.stat(&pin).blocks).collect();
            assert_eq!(
                before.iter().map(total).collect::<Vec<_>>(),
                after.iter().map(total).collect::<Vec<_>>()
            );
        }
    }
}

#[test]
fn every_frame_can_be_allocated_without_watermarks() {
    for bound in [DeferredBound::Auto, DeferredBound::Pages(0), DeferredBound::Unbounded] {
        let config = Config { watermarks: WatermarkConfig::NONE, deferred_bound: bound, ..Config::default() };
        let phys = boot(&[usable(0x1000, 20 << 20)], &config);
        // SAFETY: one thread, one CPU.
        let pin = unsafe { CpuPin::new(&Bare, CpuId::BOOT) };
        let mut frames = vec![];
        while let Ok(pfn) = phys.alloc_pages(&pin, GfpFlags::KERNEL, PageOrder::ZERO) {
            frames.push(pfn);
        }
        assert_eq!(frames.len() as u64, phys.managed_pages());
        assert_eq!(frames.len(), (20 << 20) / 4096);
        phys.check(&pin).unwrap();
        for pfn in frames {
            phys.free_pages(&pin, pfn, PageOrder::ZERO).unwrap();
        }
        phys.check(&pin).unwrap();
        assert!(phys.alloc_pages(&pin, GfpFlags::KERNEL, PageOrder::MAX).is_ok());
        phys.check(&pin).unwrap();
    }
}
