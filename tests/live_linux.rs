//! The same random calls here and in the running kernel: results, addresses and layouts are equal.
//!
//! A forked child performs system calls that we send it through a pipe, inside an arena; foreign mappings fill the rest of its
//! addresses, so that whatever the kernel places by itself falls into the arena. We perform the same calls on an address
//! space of ours, and compare with what `/proc` says of the child.
//!
//! `KERNMM_LONG=1` runs a hundred times as long; `KERNMM_SEED=n` begins with another seed.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "live"]
mod live {
    pub(super) mod arena;
    pub(super) mod call;
    mod crowd;
    mod family;
    pub(super) mod host;
    pub(super) mod ops;
    pub(super) mod random;
    pub(super) mod server;
    pub(super) mod shown;
    pub(super) mod table;
    pub(super) mod world;
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "../examples/common/elf.rs"]
mod elf;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "live/pages.rs"]
mod pages;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "../examples/common/stores.rs"]
mod stores;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn the_running_kernel_answers_the_same() {
    use live::{table::Table, world::World};
    use stores::Stores;

    if let Err(why) = live::host::comparable() {
        println!("skipped: {why}");
        return;
    }
    let long = std::env::var_os("KERNMM_LONG").is_some();
    let (runs, operations) = if long { (2_000, 5_000) } else { (40, 2_500) };
    let first: u64 = std::env::var("KERNMM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("seeds {first} to {}, {operations} operations each", first + runs - 1);
    let mut table = Table::default();
    let stores = Stores::new(1 << 17, 1 << 13);
    let context = live::world::context(stores.lend());
    World::new(&context, first).and_then(|world| world.crowd(&mut table)).expect("the limit of VMAs");
    for seed in first..first + runs {
        let stores = Stores::new(1 << 13, 1 << 9);
        let mut run = || {
            let context = live::world::context(stores.lend());
            World::new(&context, seed)?.run(operations, &mut table)
        };
        if let Err(what) = run() {
            panic!("seed {seed}: {what}");
        }
        if seed % 100 == 0 {
            println!("seed {seed}");
        }
    }
    print!("{table}");
    let missing = table.missing();
    assert!(missing.is_empty(), "never happened: {missing:?}");
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[test]
fn the_running_kernel_answers_the_same() {
    println!("skipped: only Linux on x86-64 is asked");
}
