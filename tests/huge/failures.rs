//! Every allocation may fail.

use super::*;

/// Lets the n-th allocation of `work` fail, for every n that there is; `check` looks at what is left then.
pub(super) fn failures<F: Arch>(vm: &Virt<'_, '_, F>) {
    let memory = vm.source();
    let phys = memory.phys();
    let failing = |n: u64| phys.set_fail_rule(&memory.pin(), FailRule::Nth(n));
    let calm = || phys.set_fail_rule(&memory.pin(), FailRule::Never);
    let (mut stored, mut loaded, mut forked, mut moved) = ([0; 2], [0; 2], [0; 2], [0; 2]);
    for n in 1..12 {
        let process = Process::new(vm).unwrap();
        let user = User::new(&process);
        map_huge(&process, AT, 2 * HUGE);
        failing(n);
        let store = process.handle_fault(at(AT), Access::Write, Attempt::First);
        calm();
        match store {
            Fault::Done(Resolved::Minor) => stored[0] += 1,
            Fault::OutOfMemory => stored[1] += 1,
            other => panic!("{other:?}"),
        }
        check(&[&process]);
        assert!(rss(&process) == if store == Fault::OutOfMemory { 0 } else { rss(&process) });
        user.store(at(AT), &[1]).unwrap();

        failing(n);
        let load = process.handle_fault(at(AT + HUGE), Access::Read, Attempt::First);
        calm();
        loaded[usize::from(load == Fault::OutOfMemory)] += 1;
        check(&[&process]);
        assert_eq!(user.load_byte(at(AT + HUGE)), Ok(0));
        failing(n);
        let replace = process.handle_fault(at(AT + HUGE), Access::Write, Attempt::First);
        calm();
        assert!(matches!(replace, Fault::Done(_) | Fault::OutOfMemory));
        check(&[&process]);
        user.store(at(AT + HUGE), &[2]).unwrap();
        assert_eq!((user.load_byte(at(AT)), user.load_byte(at(AT + HUGE))), (Ok(1), Ok(2)));

        failing(n);
        let child = process.fork();
        calm();
        match &child {
            Ok(child) => {
                forked[0] += 1;
                check(&[&process, child]);
                failing(n);
                let copied = child.handle_fault(at(AT), Access::Write, Attempt::First);
                calm();
                assert!(matches!(copied, Fault::Done(_) | Fault::OutOfMemory));
                check(&[&process, child]);
                assert_eq!(User::new(child).load_byte(at(AT)), Ok(1));
            }
            Err(error) => {
                assert_eq!(*error, MmError::OutOfMemory);
                forked[1] += 1;
                check(&[&process]);
            }
        }
        drop(child);
        for to in [AT + 512 * HUGE, AT + 600 * HUGE + PAGE] {
            let before = (rss(&process), huge(&process));
            failing(n);
            let result = process.mremap(AT, 2 * HUGE, 2 * HUGE, FIXED, to);
            calm();
            check(&[&process]);
            match result {
                Ok(_) => {
                    moved[0] += 1;
                    assert_eq!((user.load_byte(at(to)), user.load_byte(at(to + HUGE))), (Ok(1), Ok(2)));
                    process.mremap(to, 2 * HUGE, 2 * HUGE, FIXED, AT).unwrap();
                }
                Err(error) => {
                    assert_eq!(error, MmError::OutOfMemory);
                    moved[1] += 1;
                    assert_eq!((rss(&process), huge(&process)), before);
                }
            }
        }
        // What needs no allocation does not care.
        phys.set_fail_rule(&memory.pin(), FailRule::Every(1));
        process.mprotect(AT + 7 * PAGE, PAGE, Prot::READ).unwrap();
        process.munmap(AT + HUGE + 3 * PAGE, PAGE).unwrap();
        calm();
        check(&[&process]);
    }
    for tried in [stored, loaded, forked, moved] {
        assert!(tried[0] > 0 && tried[1] > 0, "{tried:?}");
    }
}
