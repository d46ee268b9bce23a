//! Recorded page allocations through the façade: nothing is lost, and nothing is left behind.

#[path = "../examples/replay/recording.rs"]
mod recording;
#[path = "../examples/common/workload.rs"]
mod workload;

use std::path::Path;

use kernmm::addr::PhysAddr;
use kernmm::memory::{Memory, Options};
use kernmm::phys::{Config, Merging};
use kernmm::platform::hosted::Machine;

use recording::Recording;
use workload::Workload;

/// Runs a recording on two nodes and two CPUs; answers with how many requests failed.
fn run(ram: u64, highmem: u64, merging: Merging) -> u64 {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pagealloc/net_loopback.txt.gz");
    let recording = Recording::read(&file).unwrap();
    assert_eq!((recording.name.as_str(), recording.cpus), ("net_loopback.txt.gz", 2));
    let highmem = PhysAddr::new(highmem).unwrap();
    let machine = Machine::pc(ram).nodes(2).cpus(2).highmem_from(highmem).build().unwrap();
    let cpus = machine.all_cpus().unwrap();
    let config = Config { merging, ..Config::from(&machine) };
    let memory = Memory::on_with(&machine, &config, Options::default()).unwrap();
    let boot = memory.buddyinfo().to_string();
    let mut workload = Workload::new(&memory, &cpus);
    for (at, &event) in recording.events.iter().enumerate() {
        workload.step(event).unwrap();
        if at % 50_000 == 0 {
            memory.phys().check(&memory.pin()).unwrap();
        }
    }
    let outcome = workload.finish().unwrap();
    memory.phys().drain_all(&memory.pin());
    memory.phys().check(&memory.pin()).unwrap();
    assert_eq!(outcome.allocated, outcome.freed);
    assert_eq!(memory.buddyinfo().to_string(), boot);
    assert!(outcome.allocated > 50_000, "{outcome:?}");
    assert_eq!(machine.kmap_leaks(), 0);
    outcome.failed
}

#[test]
fn a_large_machine_serves_all_and_is_as_before() {
    assert_eq!(run(256 << 20, 192 << 20, Merging::Deferred), 0);
}

#[test]
fn a_small_machine_fails_some_and_is_as_before() {
    assert_ne!(run(56 << 20, 48 << 20, Merging::Immediate), 0);
}
