//! Frames that other CPUs keep, whether they run, are idle, or have no thread any more.

use std::sync::mpsc;
use std::time::Instant;

use super::*;

/// Boots two CPUs, lets CPU 1 take the last frames into its lists, then runs `second` on CPU 1's thread while CPU 0 allocates all that
/// there is. Answers with how many frames CPU 0 got, and how many there are.
fn last_frames_on_cpu_1(second: impl Fn(&Machine, &Memory<'_, Machine>, &AtomicBool) + Sync) -> (u64, u64) {
    let machine = Machine::pc(8 * MIB).cpus(2).build().unwrap();
    let boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on_with(&machine, &to_the_last(&machine), Options::default()).unwrap();
    memory.phys().set_batch(&memory.pin(), Some(31));
    let mut frames = exhaust(&memory);
    drop(boot);
    let last = frames.split_off(frames.len() - 40);
    let (parked, done) = (Barrier::new(2), AtomicBool::new(false));
    let got = thread::scope(|scope| {
        scope.spawn(|| {
            let _second = machine.cpu(CpuId(1)).unwrap();
            for &pfn in &last {
                memory.free_pages(pfn, ONE).unwrap();
            }
            let kept: u64 = memory.phys().zones().iter().map(|zone| zone.stat(&memory.pin()).on_cpus).sum();
            assert_eq!((kept, memory.phys().free_pages_total()), (40, 0), "all that is left is CPU 1's");
            parked.wait();
            second(&machine, &memory, &done);
        });
        let _boot = machine.cpu(CpuId::BOOT).unwrap();
        parked.wait();
        let got = exhaust(&memory).len() as u64;
        done.store(true, SeqCst);
        got
    });
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    memory.phys().check(&memory.pin()).unwrap();
    (got, last.len() as u64)
}

#[test]
fn cpu_0_gets_what_an_idle_cpu_1_keeps() {
    let (got, all) = last_frames_on_cpu_1(|_, memory, done| {
        memory.idle();
        while !done.load(SeqCst) {
            thread::park_timeout(Duration::from_millis(1));
        }
    });
    assert_eq!(got, all);
}

#[test]
fn cpu_0_gets_what_a_running_cpu_1_keeps_when_its_interrupt_comes() {
    let served = AtomicU64::new(0);
    let (got, all) = last_frames_on_cpu_1(|machine, memory, done| {
        while !done.load(SeqCst) {
            if machine.poll() {
                served.fetch_add(1, SeqCst);
                memory.serve();
            }
            std::hint::spin_loop();
        }
    });
    assert_eq!(got, all);
    assert!(served.load(SeqCst) >= 1, "CPU 1 was interrupted");
}

#[test]
fn cpu_0_gets_what_a_running_cpu_1_keeps_at_its_next_free() {
    let machine = Machine::pc(8 * MIB).cpus(2).build().unwrap();
    let boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on_with(&machine, &to_the_last(&machine), Options::default()).unwrap();
    memory.phys().set_batch(&memory.pin(), Some(31));
    let frames = exhaust(&memory);
    drop(boot);
    let (go, wait) = mpsc::channel::<[Pfn; 2]>();
    let freed = Barrier::new(2);
    thread::scope(|scope| {
        let (freed, memory, machine) = (&freed, &memory, &machine);
        scope.spawn(move || {
            let _second = machine.cpu(CpuId(1)).unwrap();
            for [first, second] in wait {
                memory.free_pages(first, ONE).unwrap();
                freed.wait();
                // The CPU is busy elsewhere for a while; then it calls the allocator again.
                let busy = Instant::now();
                while busy.elapsed() < Duration::from_millis(30) {
                    std::hint::spin_loop();
                }
                memory.free_pages(second, ONE).unwrap();
            }
        });
        let _boot = machine.cpu(CpuId::BOOT).unwrap();
        let mut given = vec![];
        for pair in frames.chunks_exact(2).take(5) {
            given.extend(pair);
            go.send([pair[0], pair[1]]).unwrap();
            freed.wait();
            let got = memory.alloc_pages(GfpFlags::KERNEL, ONE).unwrap();
            assert!(given.contains(&got), "{got:?} was not freed by CPU 1");
        }
        drop(go);
    });
}

#[test]
fn cpu_0_gets_what_a_cpu_keeps_whose_thread_is_gone() {
    let machine = Machine::pc(8 * MIB).cpus(2).build().unwrap();
    let cpus = machine.all_cpus().unwrap();
    let memory = Memory::on_with(&machine, &to_the_last(&machine), Options::default()).unwrap();
    memory.phys().set_batch(&memory.pin(), Some(31));
    let frames = exhaust(&memory);
    cpus[1].run(|| memory.free_pages_bulk(&frames[..20], ONE).unwrap());
    assert_eq!(exhaust(&memory).len(), 20, "this thread does not run as CPU 1");
    cpus[1].run(|| memory.free_pages_bulk(&frames[20..40], ONE).unwrap());
    drop(cpus);
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    assert_eq!(exhaust(&memory).len(), 20, "CPU 1 is nobody's");
    memory.phys().check(&memory.pin()).unwrap();
}

#[test]
fn threads_that_come_and_go_lose_no_frame() {
    let machine = Machine::pc(8 * MIB).cpus(4).build().unwrap();
    let boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on_with(&machine, &to_the_last(&machine), Options::default()).unwrap();
    let before = memory.buddyinfo().to_string();
    drop(boot);
    let shared = Mutex::new(Vec::<Pfn>::new());
    let worker = |seed: u64| {
        let mut random = seed;
        for round in 0..150 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // The CPU may be another thread's; and it is given up without a word, its lists full.
            let Ok(_cpu) = machine.cpu(CpuId((random >> 33) as u32 % 4)) else { continue };
            let got: Vec<Pfn> = (0..random >> 40 & 31)
                .filter_map(|_| memory.alloc_pages(GfpFlags::KERNEL | GfpFlags::NOWARN, ONE).ok())
                .collect();
            let given = {
                let mut shared = shared.lock().unwrap();
                shared.extend(got);
                let keep = shared.len() / 2;
                shared.split_off(keep)
            };
            memory.free_pages_bulk(&given, ONE).unwrap();
            if round % 8 == 0 {
                memory.phys().drain_all(&memory.pin());
            }
        }
    };
    thread::scope(|scope| {
        for seed in 1..=3 {
            let worker = &worker;
            scope.spawn(move || worker(seed));
        }
    });
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    memory.free_pages_bulk(&shared.into_inner().unwrap(), ONE).unwrap();
    memory.phys().drain_all(&memory.pin());
    memory.phys().check(&memory.pin()).unwrap();
    assert_eq!(memory.buddyinfo().to_string(), before);
}
