//! Random requests beside a model of what is in use.

use std::collections::BTreeMap;

use super::*;

/// What the model knows of memory in use.
struct Live {
    end: usize,
    tag: u8,
    len: usize,
    cache: Option<usize>,
    address: NonNull<u8>,
}

fn model_run(seed: u64, steps: u64) {
    let booted = boot(560, 3);
    let configs = [("a", 24, 8), ("b", 100, 64), ("c", 700, 512), ("d", 5000, 8), ("e", 40_000, 4096)];
    let caches = configs.map(|(name, size, align)| {
        let config = CacheConfig { name, size, align, constructor: None };
        booted.slabs.create(&booted.source, &config).unwrap()
    });
    let before = booted.free_pages();
    let mut state = seed;
    let mut live: BTreeMap<usize, Live> = BTreeMap::new();
    let mut failed = 0;
    for step in 0..steps {
        run_on((random(&mut state) % 3) as usize);
        // Waves, so that memory runs short and slabs empty again.
        let grows = random(&mut state) % 100 < if step / 3000 % 2 == 0 { 65 } else { 35 };
        if grows || live.is_empty() {
            let which = (random(&mut state) % 10) as usize;
            let (address, len, align) = match caches.get(which) {
                Some(cache) => {
                    (cache.alloc(&booted.source, GfpFlags::KERNEL), cache.object_size(), cache.align())
                }
                None => {
                    let len = 1 + (random(&mut state) % (1 << (random(&mut state) % 18))) as usize;
                    (booted.kmalloc(len), len, if len.is_power_of_two() { len } else { 8 })
                }
            };
            let address = match address {
                Ok(address) => address,
                Err(error) => {
                    assert_eq!(error, AllocError::OutOfMemory);
                    failed += 1;
                    continue;
                }
            };
            let (start, end) = (address.addr().get(), address.addr().get() + len);
            assert_eq!(start % align.min(8192), 0, "{len} bytes");
            assert!(live.range(..end).next_back().is_none_or(|(_, before)| before.end <= start));
            let tag = random(&mut state) as u8;
            fill(address, len, tag);
            live.insert(
                start,
                Live { end, tag, len, cache: (which < caches.len()).then_some(which), address },
            );
        } else {
            let from = *live.keys().next().unwrap();
            let span = *live.keys().next_back().unwrap() - from;
            let near = from + (random(&mut state) % (span as u64 + 1)) as usize;
            let start = *live.range(near..).next().unwrap().0;
            let gone = live.remove(&start).unwrap();
            assert!(holds(gone.address, gone.len, gone.tag), "contents stay");
            let freed = match gone.cache {
                Some(which) => booted.free(caches[which], gone.address),
                None => booted.kfree(gone.address),
            };
            assert_eq!(freed, Ok(()));
        }
        match step % 1000 {
            0 => booted.check(),
            500 => drop(booted.slabs.shrink(&booted.source)),
            750 => booted.slabs.idle(&booted.source),
            _ => {}
        }
    }
    assert!(failed > 0, "memory ran short, too");
    for gone in live.values() {
        let freed = match gone.cache {
            Some(which) => booted.free(caches[which], gone.address),
            None => booted.kfree(gone.address),
        };
        assert_eq!(freed, Ok(()));
    }
    booted.check();
    assert_eq!(booted.free_pages(), before, "all pages came back");
    for cache in caches {
        // SAFETY: nobody uses the cache any more.
        unsafe { booted.slabs.destroy(&booted.source, cache) }.unwrap();
    }
    assert_eq!(booted.free_pages(), booted.pages);
    booted.check();
}

#[test]
fn caches_and_kmalloc_agree_with_a_model() {
    for seed in 0..3 {
        model_run(seed, 24_000);
    }
}
