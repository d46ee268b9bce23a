//! Allocation and freeing through the public interface.
mod common;

use common::{boot, pin, usable};
use kernmm::addr::PageOrder;
use kernmm::flags::GfpFlags;
use kernmm::phys::{Config, DeferredBound, FreeError, Merging, WatermarkConfig};

#[test]
fn a_freed_block_is_allocated_again() {
    for merging in [Merging::Deferred, Merging::Immediate] {
        for batch in [None, Some(0), Some(7)] {
            let config = Config { merging, batch, ..Config::default() };
            let phys = boot(&[usable(0, 0x9fc00), usable(0x100000, 64 << 20)], &config);
            let pin = pin(0);
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
        let pin = pin(0);
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
