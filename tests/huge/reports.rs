//! What reports say of huge pages.

use super::*;

/// A number of a report, of the line with this name.
fn number(report: &impl std::fmt::Display, name: &str) -> u64 {
    let report = report.to_string();
    let line = report.lines().find(|line| line.split([':', ' ']).next() == Some(name));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in\n{report}"))
}

pub(super) fn counts<F: Arch>(vm: &Virt<'_, '_, F>) {
    let process = Process::new(vm).unwrap();
    let user = User::new(&process);
    let counted = |name: &str| number(&vm.vmstat(), name);
    let tables = || {
        let mut status = String::new();
        process.status(&mut status).unwrap();
        number(&status, "VmPTE") / 4
    };
    map_huge(&process, AT, 4 * HUGE);
    user.load_byte(at(AT)).unwrap();
    assert_eq!((counted("thp_zero_page_alloc"), counted("thp_fault_alloc")), (1, 0));
    assert_eq!(counted("nr_anon_transparent_hugepages"), 0, "zeros are nobody's");
    let with_zeros = tables();
    user.store(at(AT), &[1]).unwrap();
    user.store(at(AT + HUGE), &[1]).unwrap();
    assert_eq!((counted("thp_fault_alloc"), counted("thp_fault_fallback")), (2, 0));
    assert_eq!(counted("nr_anon_transparent_hugepages"), 2);
    assert_eq!(number(&vm.meminfo(), "AnonHugePages"), 2 * 2048);
    assert_eq!(tables(), with_zeros + 1, "a table is kept for the split of each");

    let child = process.fork().unwrap();
    assert_eq!(counted("nr_anon_transparent_hugepages"), 4, "each process has them");
    drop(child);
    assert_eq!(counted("nr_anon_transparent_hugepages"), 2);

    // A split takes the table that was kept: there are as many as before.
    process.mprotect(AT + 7 * PAGE, PAGE, Prot::READ).unwrap();
    assert_eq!((counted("thp_split_pmd"), counted("nr_anon_transparent_hugepages")), (1, 1));
    assert_eq!((tables(), number(&vm.meminfo(), "AnonHugePages")), (with_zeros + 1, 2048));
    process.mremap(AT + HUGE, HUGE, HUGE, FIXED, AT + 3 * HUGE).unwrap();
    assert_eq!((counted("nr_anon_transparent_hugepages"), tables()), (1, with_zeros + 1));
    process.munmap(AT + 3 * HUGE, HUGE).unwrap();
    assert_eq!((counted("nr_anon_transparent_hugepages"), tables()), (0, with_zeros));

    let memory = vm.source();
    memory.phys().set_fail_rule(&memory.pin(), FailRule::Nth(1));
    user.store(at(AT + 2 * HUGE), &[1]).unwrap();
    memory.phys().set_fail_rule(&memory.pin(), FailRule::Never);
    assert_eq!((counted("thp_fault_alloc"), counted("thp_fault_fallback")), (2, 1));
    check(&[&process]);

    // Whoever reads is to have the huge page of zeros.
    drop(process);
    let reader = Process::new(vm).unwrap();
    map_huge(&reader, AT, HUGE);
    memory.phys().set_fail_rule(&memory.pin(), FailRule::Nth(1));
    User::new(&reader).load_byte(at(AT)).unwrap();
    memory.phys().set_fail_rule(&memory.pin(), FailRule::Never);
    assert_eq!((counted("thp_zero_page_alloc_failed"), counted("thp_fault_fallback")), (1, 2));
    check(&[&reader]);
}
