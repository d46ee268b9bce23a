//! What is refused, and what is told of callers that free or write what is not theirs.

use kernmm::addr::PageOrder;
use kernmm::phys::PageSource;
use kernmm::slab::{KMALLOC_MAX_SIZE, SlabCheckError};

use super::*;

#[test]
fn what_cannot_be_allocated_is_refused() {
    let booted = boot(2048, 1);
    let (slabs, source) = (&booted.slabs, &booted.source);
    assert_eq!(booted.kmalloc(KMALLOC_MAX_SIZE + 1), Err(AllocError::InvalidCount));
    assert_eq!(booted.kmalloc(usize::MAX), Err(AllocError::InvalidCount));
    assert_eq!(slabs.kmalloc_aligned(source, 8, 24, GfpFlags::KERNEL), Err(AllocError::InvalidCount));
    assert_eq!(slabs.kmalloc_aligned(source, 8, 0, GfpFlags::KERNEL), Err(AllocError::InvalidCount));
    assert_eq!(slabs.kmalloc_aligned(source, 8, 4 << 20, GfpFlags::KERNEL), Err(AllocError::InvalidCount));
    for size in [8, 100_000] {
        for flag in [GfpFlags::HIGHMEM, GfpFlags::MOVABLE, GfpFlags::RECLAIMABLE] {
            assert_eq!(slabs.kmalloc(source, size, GfpFlags::KERNEL | flag), Err(AllocError::InvalidFlags));
        }
    }
    let other = boot(2048, 1);
    assert_eq!(slabs.kmalloc(&other.source, 8, GfpFlags::KERNEL), Err(AllocError::WrongSource));
    assert_eq!(slabs.kmalloc(&other.source, 100_000, GfpFlags::KERNEL), Err(AllocError::WrongSource));
    let theirs = other.kmalloc(8).unwrap();
    // SAFETY: nobody uses the memory.
    assert_eq!(unsafe { slabs.kfree(&other.source, theirs) }, Err(ObjectError::WrongSource));
    assert_eq!(booted.kfree(theirs), Err(ObjectError::Foreign), "many memories, each with its own addresses");
    assert_eq!(booted.kmalloc(0), Ok(ZERO_SIZE_PTR));
    assert_eq!(booted.kfree(ZERO_SIZE_PTR), Ok(()));
    let config = |size, align| CacheConfig { name: "odd", size, align, constructor: None };
    assert_eq!(slabs.create(source, &config(0, 8)).err(), Some(CreateError::InvalidSize));
    assert_eq!(slabs.create(source, &config(usize::MAX, 8)).err(), Some(CreateError::InvalidSize));
    assert_eq!(slabs.create(source, &config(8, 3)).err(), Some(CreateError::InvalidAlign));
    assert_eq!(slabs.create(&other.source, &config(8, 8)).err(), Some(CreateError::WrongSource));
    booted.check();
}

#[test]
fn a_wrong_free_is_told_and_changes_nothing() {
    let booted = boot(2048, 2);
    let cache = booted.slabs.create(&booted.source, &CacheConfig::of::<[u64; 5]>("five")).unwrap();
    let object = cache.alloc(&booted.source, GfpFlags::KERNEL).unwrap();
    let small = booted.kmalloc(100).unwrap();
    let page_sized = booted.kmalloc(4096).unwrap();
    let large = booted.kmalloc(20_000).unwrap();
    let freed: Vec<_> = [100, 4096, 20_000].map(|size| booted.kmalloc(size).unwrap()).to_vec();
    for &address in &freed {
        booted.kfree(address).unwrap();
    }
    let frame = booted.source.alloc_pages(GfpFlags::KERNEL, PageOrder::ZERO).unwrap();
    let plain = booted.source.direct_map(frame).unwrap();
    let inside = |address: NonNull<u8>, offset: usize| {
        // SAFETY: the offsets stay within the object.
        unsafe { address.add(offset) }
    };
    let mut local = 0_u8;
    let before = booted.infos();
    let pages = booted.phys.free_pages_total();
    let wrong_cache = Err(ObjectError::WrongCache(cache.id()));
    let cases = [
        (booted.kfree(NonNull::from(&mut local)), Err(ObjectError::Foreign)),
        (booted.kfree(plain), Err(ObjectError::NotSlab)),
        (booted.kfree(inside(small, 8)), Err(ObjectError::Interior)),
        (booted.kfree(inside(small, 1)), Err(ObjectError::Interior)),
        (booted.kfree(inside(page_sized, 2048)), Err(ObjectError::Interior)),
        (booted.kfree(inside(large, 8)), Err(ObjectError::Interior)),
        (booted.kfree(inside(large, 4096)), Err(ObjectError::Interior)),
        (booted.kfree(freed[0]), Err(ObjectError::DoubleFree)),
        (booted.kfree(freed[1]), Err(ObjectError::DoubleFree)),
        (booted.kfree(freed[2]), Err(ObjectError::NotSlab)),
        (booted.kfree(object), wrong_cache),
        (booted.free(cache, inside(object, 8)), Err(ObjectError::Interior)),
    ];
    for (case, (answer, expected)) in cases.into_iter().enumerate() {
        assert_eq!(answer, expected, "case {case}");
    }
    assert!(matches!(booted.free(cache, small), Err(ObjectError::WrongCache(_))));
    assert!(matches!(booted.free(cache, large), Err(ObjectError::WrongCache(_))));
    assert_eq!(booted.infos(), before);
    assert_eq!(booted.phys.free_pages_total(), pages);
    booted.check();
    // Back in their slabs, and the slabs back with the source, they are told all the same.
    booted.free(cache, object).unwrap();
    booted.slabs.shrink(&booted.source);
    assert_eq!(booted.free(cache, object), Err(ObjectError::NotSlab));
    assert_eq!(booted.kfree(freed[0]), Err(ObjectError::DoubleFree), "its slab still has another object");
    booted.check();
}

#[test]
fn a_page_of_a_slab_cannot_be_freed_as_a_frame() {
    let booted = boot(2048, 1);
    for size in [64, 4096, 50_000] {
        let address = booted.kmalloc(size).unwrap();
        let pfn = booted.source.virt_to_pfn(address).unwrap();
        let head = booted.phys.head_of(pfn).unwrap();
        let order = booted.phys.page(head).unwrap().order().unwrap();
        assert!(booted.source.free_pages(head, order).is_err());
        booted.kfree(address).unwrap();
    }
}

#[test]
fn a_damaged_slab_hands_out_no_wild_pointer() {
    let mut state = 5;
    for round in 0..200 {
        let booted = boot(600, 1);
        let first = booted.kmalloc(64).unwrap();
        let base = first.addr().get() & !4095;
        let live: Vec<_> = (0..40).map(|_| booted.kmalloc(64).unwrap()).collect();
        for &address in live.iter().step_by(3) {
            booted.kfree(address).unwrap();
        }
        // The CPU's list is empty now, and the chain of free objects lies in the slab.
        booted.slabs.shrink(&booted.source);
        // The states are at the end of the page, after the objects.
        let info = booted.info("kmalloc-64");
        let end = base + 4096;
        let states = end - 2 * info.objs_per_slab as usize;
        for _ in 0..=round % 8 {
            let at = states + (random(&mut state) as usize) % (end - states);
            // SAFETY: the byte is in the machine's RAM, which nothing else uses at the moment.
            unsafe { first.with_addr(at.try_into().unwrap()).write(random(&mut state) as u8) };
        }
        for _ in 0..200 {
            let address = booted.kmalloc(64).unwrap().addr().get();
            assert_eq!(address % 64, 0);
            assert!(
                address & !4095 != base
                    || (address - base) / info.objsize as usize * info.objsize as usize == address - base
            );
            assert!(address & !4095 != base || address < states);
        }
    }
}

#[test]
fn check_finds_a_damaged_chain() {
    let booted = boot(600, 1);
    let all: Vec<_> = (0..200).map(|_| booted.kmalloc(64).unwrap()).collect();
    for &address in all.iter().step_by(2) {
        booted.kfree(address).unwrap();
    }
    booted.slabs.shrink(&booted.source);
    booted.check();
    let end = all[0].addr().get() | 4095;
    // SAFETY: the byte is in the machine's RAM: the state of the slab's last object, in use or not.
    unsafe { all[0].with_addr((end - 1).try_into().unwrap()).write(0x77) };
    assert!(matches!(
        booted.slabs.check(&booted.source),
        Err(SlabCheckError::BrokenChain(..) | SlabCheckError::Count(..))
    ));
}

#[cfg(feature = "check")]
#[test]
fn a_write_beyond_an_object_is_found_when_it_is_freed() {
    let booted = boot(2048, 1);
    for size in [8, 96, 4096] {
        let address = booted.kmalloc(size).unwrap();
        // SAFETY: the byte after the object is its red zone, in the machine's RAM.
        let zone = unsafe { address.add(size) };
        // SAFETY: as above.
        unsafe { zone.write(0) };
        assert_eq!(booted.kfree(address), Err(ObjectError::RedZone));
        assert!(matches!(booted.slabs.check(&booted.source), Err(SlabCheckError::Written(..))));
        // SAFETY: as above.
        unsafe { zone.write(0xbb) };
        assert_eq!(booted.kfree(address), Ok(()));
        booted.check();
    }
}

#[cfg(feature = "check")]
#[test]
fn an_object_written_after_its_end_is_never_handed_out() {
    let booted = boot(2048, 1);
    for size in [8, 200, 8192] {
        let address = booted.kmalloc(size).unwrap();
        booted.kfree(address).unwrap();
        fill(address, 1, 1);
        assert!(matches!(booted.slabs.check(&booted.source), Err(SlabCheckError::Written(..))));
        for _ in 0..300 {
            assert_ne!(booted.kmalloc(size).unwrap(), address);
        }
        booted.check();
        assert_eq!(booted.kfree(address), Err(ObjectError::DoubleFree));
    }
    assert_eq!(booted.infos().iter().map(|info| info.lost).sum::<u64>(), 3);
}
