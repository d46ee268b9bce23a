//! The same random calls here and in the running kernel: results, addresses and layouts are equal.
//!
//! A forked child performs system calls that we send it through a pipe, inside an arena; foreign mappings fill the rest of its
//! addresses, so that whatever the kernel places by itself falls into the arena. We perform the same calls on an address
//! space of ours, and compare with what `/proc` says of the child.
//!
//! `KERNMM_LONG=1` runs a hundred times as long; `KERNMM_SEED=n` runs one seed alone, with `KERNMM_LONG=1` all from there on.

#[path = "common/skip.rs"]
mod skip;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "live"]
mod live {
    pub(super) mod arena;
    pub(super) mod call;
    mod crowd;
    mod deviations;
    mod family;
    pub(super) mod host;
    pub(super) mod lanes;
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
    use live::lanes::{self, Failure};

    if let Err(why) = live::host::comparable() {
        return skip::skip(&why);
    }
    let seed =
        std::env::var("KERNMM_SEED").ok().map(|seed| seed.parse::<u64>().expect("KERNMM_SEED: a number"));
    let runs = match (std::env::var_os("KERNMM_LONG"), seed) {
        (Some(_), _) => 2_000,
        (None, Some(_)) => 1,
        (None, None) => 20,
    };
    let first = seed.unwrap_or(1);
    println!("seeds {first} to {}, {OPERATIONS} operations each", first + runs - 1);
    let table = lanes::run(lanes::per_cpu(), first..first + runs, |seed, table| {
        if seed == first {
            at_the_limit_of_vmas(table).map_err(|what| format!("at the limit of VMAs: {what}"))?;
        }
        random(seed, table)
    })
    .unwrap_or_else(|Failure { seed, what }| panic!("KERNMM_SEED={seed}: {what}"));
    print!("{table}");
    let missing = table.missing();
    assert!(runs == 1 || missing.is_empty(), "never happened: {missing:?}");
}

/// How many operations a seed stands for, in long runs too: so it always finds the same.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
const OPERATIONS: u64 = 5_000;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn random(seed: u64, table: &mut live::table::Table) -> Result<(), String> {
    let stores = stores::Stores::new(1 << 13, 1 << 9);
    let context = live::world::context(stores.lend());
    live::world::World::new(&context, seed)?.run(OPERATIONS, table)
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn at_the_limit_of_vmas(table: &mut live::table::Table) -> Result<(), String> {
    let stores = stores::Stores::new(1 << 17, 1 << 13);
    let context = live::world::context(stores.lend());
    live::world::World::new(&context, 0)?.crowd(table)
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[test]
fn the_running_kernel_answers_the_same() {
    skip::skip("only Linux on x86-64 is asked");
}
