//! What is forgotten, and tables that go.

use super::*;

/// What a call makes CPUs forget.
fn flushed<F: Arch>(vm: &Virt<'_, '_, F>, call: impl FnOnce()) -> Vec<(u64, u64)> {
    let machine = vm.source().platform();
    machine.record_flushes();
    machine.take_flushes();
    call();
    let span = |scope| match scope {
        FlushScope::Page(addr) => (addr.get(), PAGE),
        FlushScope::Range(range) => (range.start().get(), range.len()),
        FlushScope::All | FlushScope::Kernel(_) => (0, u64::MAX),
    };
    machine.take_flushes().into_iter().map(|(_, flush)| span(flush.scope)).collect()
}

pub(super) fn flushes<F: Arch>(vm: &Virt<'_, '_, F>) {
    let process = Process::new(vm).unwrap();
    let user = User::new(&process);
    map_huge(&process, AT, 2 * HUGE);
    assert_eq!(flushed(vm, || user.store(at(AT), &[1]).unwrap()), []);
    assert_eq!(flushed(vm, || assert_eq!(user.load_byte(at(AT + HUGE)), Ok(0))), []);
    assert_eq!(flushed(vm, || user.store(at(AT + HUGE), &[1]).unwrap()), [(AT + HUGE, HUGE)], "the zeros");
    assert_eq!(flushed(vm, || process.mprotect(AT, HUGE, Prot::READ).unwrap()), [(AT, HUGE)]);
    assert_eq!(flushed(vm, || process.mprotect(AT, HUGE, RW).unwrap()), [], "rights that come");
    let mut child = None;
    let both = flushed(vm, || child = process.fork().ok());
    assert_eq!(both, [(AT, 2 * HUGE)]);
    assert_eq!(
        flushed(vm, || user.store(at(AT + 9 * PAGE), &[1]).unwrap()),
        [(AT + 9 * PAGE, PAGE)],
        "one copy"
    );
    drop(child);
    assert_eq!(
        flushed(vm, || process.mprotect(AT + HUGE, PAGE, Prot::READ).unwrap()),
        [],
        "nothing was writable"
    );
    process.munmap(AT, 2 * HUGE).unwrap();
    map_huge(&process, AT, HUGE);
    user.store(at(AT), &[1]).unwrap();
    let moved = flushed(vm, || assert!(process.mremap(AT, HUGE, HUGE, FIXED, AT + 5 * HUGE).is_ok()));
    assert_eq!(moved, [(AT, HUGE)]);
    user.load_byte(at(AT + 5 * HUGE)).unwrap();
    let part = flushed(vm, || process.munmap(AT + 5 * HUGE + 4 * PAGE, 2 * PAGE).unwrap());
    assert_eq!(part, [(AT + 5 * HUGE + 4 * PAGE, 2 * PAGE)]);
    let rest = flushed(vm, || process.madvise(AT + 5 * HUGE, 4 * PAGE, Advice::DontNeed as i32).unwrap());
    assert_eq!(rest, [(AT + 5 * HUGE, 4 * PAGE)]);
    map_huge(&process, AT, HUGE);
    user.load_byte(at(AT)).unwrap();
    let split = flushed(vm, || process.madvise(AT, PAGE, Advice::DontFork as i32).unwrap());
    assert_eq!(split, [(AT, HUGE)], "small pages of zeros are elsewhere");
    assert_eq!(vm.source().platform().stale_translation(), None);
    check(&[&process]);
}

pub(super) fn tables_go<F: Arch>(vm: &Virt<'_, '_, F>) {
    let process = Process::new(vm).unwrap();
    let user = User::new(&process);
    map(&process, AT, 2 * HUGE, RW);
    user.store(at(AT), &[1]).unwrap();
    user.store(at(AT + HUGE), &[1]).unwrap();
    process.madvise(AT, 2 * HUGE, Advice::HugePage as i32).unwrap();
    user.store(at(AT + PAGE), &[1]).unwrap();
    assert_eq!((rss(&process), huge(&process)), (3, (0, 0)), "where a table is, small pages come");
    process.madvise(AT, 2 * PAGE, Advice::DontNeed as i32).unwrap();
    user.store(at(AT + PAGE), &[1]).unwrap();
    assert_eq!((rss(&process), huge(&process)), (2, (0, 0)), "the table stays if only its pages were named");
    process.madvise(AT, HUGE, Advice::DontNeed as i32).unwrap();
    assert_eq!(user.load_byte(at(AT + PAGE)), Ok(0));
    user.store(at(AT + PAGE), &[1]).unwrap();
    assert_eq!((rss(&process), huge(&process)), (PAGES + 1, (1, 0)));
    check(&[&process]);
}
