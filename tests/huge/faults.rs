//! Who gets a huge page at a touch, and who does not.

use super::*;

pub(super) fn one_store<F: Arch>(vm: &Virt<'_, '_, F>) {
    let process = Process::new(vm).unwrap();
    let user = User::new(&process);
    map_huge(&process, AT, 2 * HUGE);
    user.store_u32(at(AT + 5 * PAGE), 7).unwrap();
    assert_eq!((rss(&process), huge(&process)), (PAGES, (1, 0)));
    // No other page of it faults.
    let machine = vm.source().platform();
    machine.store(at(AT + HUGE - 4), &[1, 2, 3, 4]).unwrap();
    machine.load(at(AT), &mut [0; 8]).unwrap();
    assert!(machine.load(at(AT + HUGE), &mut [0]).is_err());
    let mut all = vec![0xff; HUGE as usize];
    user.load(at(AT), &mut all).unwrap();
    let set: Vec<_> =
        all.iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(at, _)| at as u64).collect();
    assert_eq!(set, [5 * PAGE, HUGE - 4, HUGE - 3, HUGE - 2, HUGE - 1]);
    // The kernel's copies cross from the huge page into what is not there yet, and back.
    let bytes: Vec<u8> = (0..3 * PAGE).map(|n| (n % 251) as u8).collect();
    process.copy_to_user(at(AT + HUGE - PAGE - 100), &bytes).unwrap();
    let mut back = vec![0; bytes.len()];
    process.copy_from_user(at(AT + HUGE - PAGE - 100), &mut back).unwrap();
    assert_eq!(back, bytes);
    user.load(at(AT + HUGE - PAGE - 100), &mut back).unwrap();
    assert_eq!(back, bytes);
    assert_eq!((rss(&process), huge(&process), incore(&process, AT, 2 * PAGES)), (2 * PAGES, (2, 0), 1024));
    assert_eq!(signal(user.fetch(at(AT), &mut [0])), Signal::Denied, "it may not be executed");
    check(&[&process]);
    // Both go as blocks, at once.
    let blocks: Vec<_> = entries(&process).iter().map(|found| found.pte.mapped().unwrap().pfn).collect();
    process.munmap(AT, 2 * HUGE).unwrap();
    for block in blocks {
        assert_ne!(vm.source().phys().page(block).unwrap().order(), Some(PageOrder::ZERO));
    }
    assert_eq!((rss(&process), entries(&process).len()), (0, 0));
}

pub(super) fn zeros<F: Arch>(vm: &Virt<'_, '_, F>) {
    let process = Process::new(vm).unwrap();
    let user = User::new(&process);
    map_huge(&process, AT, 3 * HUGE);
    assert_eq!(user.load_byte(at(AT + 9 * PAGE)), Ok(0));
    assert_eq!(user.load_byte(at(AT + HUGE)), Ok(0));
    assert_eq!((rss(&process), huge(&process), incore(&process, AT, 3 * PAGES)), (0, (0, 2), 1024));
    let zero = vm.huge_zero_page().pfn().unwrap();
    // The other CPU knows the zeros, and must not go on with them after the store.
    let machine = vm.source().platform();
    machine.run_on(CpuId(1), || assert_eq!(user.load_byte(at(AT + 20 * PAGE)), Ok(0))).unwrap();
    user.store(at(AT + 20 * PAGE), &[5]).unwrap();
    machine.run_on(CpuId(1), || assert_eq!(user.load_byte(at(AT + 20 * PAGE)), Ok(5))).unwrap();
    machine.run_on(CpuId(1), || process.deactivate()).unwrap();
    machine.store(at(AT + 21 * PAGE), &[6]).unwrap();
    assert_eq!((rss(&process), huge(&process)), (PAGES, (1, 1)));
    check(&[&process]);
    // A part of the zeros that is unmapped leaves small zeros, of which each page is replaced alone.
    process.munmap(AT + HUGE + 4 * PAGE, PAGE).unwrap();
    assert_eq!((rss(&process), huge(&process), incore(&process, AT + HUGE, 4)), (PAGES, (1, 0), 4));
    assert_eq!(signal(user.load_byte(at(AT + HUGE + 4 * PAGE))), Signal::NotMapped);
    assert_eq!(user.load_byte(at(AT + HUGE + 5 * PAGE)), Ok(0));
    user.store(at(AT + HUGE + 5 * PAGE), &[7]).unwrap();
    assert_eq!(user.load_byte(at(AT + HUGE + 6 * PAGE)), Ok(0));
    assert_eq!(rss(&process), PAGES + 1);
    // Zeros that were protected and are writable again are replaced as one.
    assert_eq!(user.load_byte(at(AT + 2 * HUGE)), Ok(0));
    process.mprotect(AT + 2 * HUGE, HUGE, Prot::empty()).unwrap();
    assert_eq!(signal(user.load_byte(at(AT + 2 * HUGE))), Signal::Denied);
    process.mprotect(AT + 2 * HUGE, HUGE, RW).unwrap();
    assert_eq!(huge(&process), (1, 1));
    check(&[&process]);
    user.store(at(AT + 2 * HUGE), &[8]).unwrap();
    assert_eq!(huge(&process), (2, 0));
    // There is one page of zeros for all, as long as somebody uses it.
    let child = process.fork().unwrap();
    drop(process);
    assert_eq!(vm.huge_zero_page().pfn(), None, "the child has mapped none");
    let son = User::new(&child);
    map_huge(&child, AT + 4 * HUGE, HUGE);
    assert_eq!(son.load_byte(at(AT + 4 * HUGE)), Ok(0));
    assert!(vm.huge_zero_page().pfn().is_some());
    let grandchild = child.fork().unwrap();
    drop(child);
    assert!(vm.huge_zero_page().pfn().is_some(), "{zero:?}");
    let user = User::new(&grandchild);
    assert_eq!(huge(&grandchild).1, 1);
    user.store(at(AT + 4 * HUGE + 1), &[9]).unwrap();
    assert_eq!((user.load_byte(at(AT + 4 * HUGE)), huge(&grandchild).1), (Ok(0), 0));
    check(&[&grandchild]);
}

pub(super) fn no_block<F: Arch>(vm: &Virt<'_, '_, F>) {
    let memory = vm.source();
    let process = Process::new(vm).unwrap();
    let user = User::new(&process);
    map_huge(&process, AT, 4 * HUGE);
    user.store(at(AT), &[1]).unwrap();
    user.load_byte(at(AT + HUGE)).unwrap();
    // All blocks are taken, and of one half the pages given back, every second one.
    let mut blocks = vec![];
    while let Ok(block) = memory.alloc_pages(GfpFlags::HIGHUSER_MOVABLE | GfpFlags::NOWARN, PageOrder::MAX) {
        blocks.push(block);
    }
    let last = blocks.pop().unwrap();
    memory.phys().split_pages(&memory.pin(), last, PageOrder::MAX, PageOrder::ZERO).unwrap();
    let parts: Vec<_> = (0..PAGES).map(|page| last.checked_add(page).unwrap()).collect();
    for pair in parts.chunks(2) {
        memory.free_pages(pair[0], PageOrder::ZERO).unwrap();
    }
    // Nothing there: a small page. Zeros there: small zeros, one of which is replaced.
    user.store(at(AT + 2 * HUGE), &[2]).unwrap();
    assert_eq!((rss(&process), huge(&process)), (PAGES + 1, (1, 1)));
    user.store(at(AT + HUGE + 3 * PAGE), &[3]).unwrap();
    assert_eq!((rss(&process), huge(&process)), (PAGES + 2, (1, 0)));
    assert_eq!((user.load_byte(at(AT + HUGE)), user.load_byte(at(AT + HUGE + 3 * PAGE))), (Ok(0), Ok(3)));
    // The page of zeros stays for the one that it has; another process has small ones.
    let other = Process::new(vm).unwrap();
    let another = User::new(&other);
    map_huge(&other, AT, HUGE);
    assert_eq!((another.load_byte(at(AT)), huge(&other)), (Ok(0), (0, 1)));
    drop(process);
    assert_eq!((another.load_byte(at(AT + PAGE)), huge(&other)), (Ok(0), (0, 1)));
    recount(&[&other]);
    drop(other);
    // What no block can be had for is no failure, nor reported as one.
    assert_eq!(memory.platform().take_reports(), "");
    for pair in parts.chunks(2) {
        memory.free_pages(pair[1], PageOrder::ZERO).unwrap();
    }
    for block in blocks {
        memory.free_pages(block, PageOrder::MAX).unwrap();
    }
}

#[test]
fn huge_pages_come_where_setting_advice_and_room_say_so() {
    for (setting, unadvised, advised) in
        [(HugePages::Never, 0, 0), (HugePages::Madvise, 0, 1), (HugePages::Always, 1, 1)]
    {
        on_machine::<X86_64>(setting, |vm| {
            // Whether a store and a load each get a huge page, in memory of this extent with this advice.
            let gets = |start: u64, len: u64, advice: Option<Advice>, touched: u64| {
                let process = Process::new(vm).unwrap();
                let user = User::new(&process);
                map(&process, start, len, RW);
                if let Some(advice) = advice {
                    process.madvise(start, len, advice as i32).unwrap();
                }
                user.load_byte(at(touched)).unwrap();
                let zero = huge(&process).1;
                user.store(at(touched), &[1]).unwrap();
                check(&[&process]);
                assert_eq!(huge(&process).0, zero);
                assert_eq!(rss(&process), if zero == 0 { 1 } else { PAGES });
                zero
            };
            assert_eq!(gets(AT, HUGE, None, AT), unadvised);
            assert_eq!(gets(AT, HUGE, Some(Advice::HugePage), AT + HUGE - 1), advised);
            assert_eq!(gets(AT, HUGE, Some(Advice::NoHugePage), AT), 0);
            let around = (AT - PAGE, HUGE + 2 * PAGE);
            assert_eq!(gets(around.0, around.1, Some(Advice::HugePage), AT + PAGE), advised);
            assert_eq!(gets(around.0, around.1, Some(Advice::HugePage), AT - PAGE), 0);
            assert_eq!(gets(around.0, around.1, Some(Advice::HugePage), AT + HUGE), 0);
            assert_eq!(gets(AT + PAGE, HUGE, Some(Advice::HugePage), AT + PAGE), 0);
            assert_eq!(gets(AT, HUGE - PAGE, Some(Advice::HugePage), AT), 0);
        });
    }
}

#[test]
fn a_wish_for_huge_pages_is_granted_where_they_are_and_refused_elsewhere() {
    on_machine::<X86_64>(HugePages::Madvise, |vm| {
        let process = Process::new(vm).unwrap();
        let user = User::new(&process);
        let collapse = |addr: u64, len: u64| process.madvise(addr, len, Advice::Collapse as i32);
        map(&process, AT, 3 * HUGE, RW);
        assert_eq!(collapse(AT, HUGE), Err(MmError::BadAdvice), "untouched");
        user.store(at(AT), &[1]).unwrap();
        assert_eq!(collapse(AT, HUGE), Err(MmError::OutOfMemory), "a small page");
        assert_eq!(collapse(AT, HUGE - PAGE), Ok(()), "no whole one was named");
        assert_eq!(collapse(AT + HUGE - PAGE, 2 * PAGE), Ok(()), "nor here, across a border");
        assert_eq!(collapse(AT + PAGE, PAGE), Err(MmError::BadAdvice), "a part of one, as on Linux");
        assert_eq!(collapse(AT + HUGE, HUGE), Err(MmError::BadAdvice), "nothing is there");
        process.madvise(AT, 3 * HUGE, Advice::HugePage as i32).unwrap();
        user.store(at(AT + HUGE), &[1]).unwrap();
        assert_eq!(collapse(AT + HUGE, HUGE), Ok(()), "there is one");
        assert_eq!(collapse(AT + HUGE, 2 * HUGE), Err(MmError::BadAdvice));
        process.madvise(AT, 3 * HUGE, Advice::NoHugePage as i32).unwrap();
        assert_eq!(collapse(AT + HUGE, HUGE), Err(MmError::BadAdvice));
        check(&[&process]);
    });
}

#[test]
fn shared_memory_has_small_pages() {
    on_machine::<X86_64>(HugePages::Always, |vm| {
        let process = Process::new(vm).unwrap();
        let flags = MapFlags::SHARED | MapFlags::ANONYMOUS | MapFlags::FIXED;
        let args = MmapArgs { addr: AT, len: HUGE, prot: RW, flags, file: Ok(None), offset: 0 };
        process.mmap(&args).unwrap();
        User::new(&process).store(at(AT), &[1]).unwrap();
        assert_eq!((rss(&process), huge(&process)), (1, (0, 0)));
    });
}
