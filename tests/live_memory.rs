//! The same random programs here and in the running kernel: they find the same bytes and get the same signals.
//!
//! A program is a few processes that map memory and files, touch them, fork, and call. On the running kernel they are forked children, which
//! report their signals; here they run on the simulated machine, through its memory management unit and TLB. After each operation results and
//! layouts are compared, from time to time page tables too, and at the end all bytes that are mapped, and the files.
//!
//! `KERNMM_LONG=1` runs fifty times as long; `KERNMM_SEED=n` begins with another seed.

#[path = "common/skip.rs"]
mod skip;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "live"]
mod live {
    pub(super) mod arena;
    pub(super) mod call;
    pub(super) mod host;
    pub(super) mod program {
        mod answers;
        mod child;
        mod maker;
        mod op;
        mod ours;
        mod pair;
        mod place;
        pub(crate) mod runner;
        pub(crate) mod table;
        mod theirs;
    }
    pub(super) mod random;
    pub(super) mod shown;
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn programs_find_the_same_bytes_and_signals_as_on_the_running_kernel() {
    use live::program::{runner::Runner, table::Table};

    if let Err(why) = live::host::comparable() {
        return skip::skip(&why);
    }
    let long = std::env::var_os("KERNMM_LONG").is_some();
    let steps = 250;
    let least = if long { 1_000_000 } else { 20_000 };
    let first: u64 = std::env::var("KERNMM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let runner = Runner::new().expect("a directory for files");
    let mut table = Table::default();
    let mut seed = first;
    while table.total() < least {
        runner.random(seed, steps, &mut table).unwrap_or_else(|difference| panic!("{difference}"));
        if seed % 100 == 0 {
            println!("seed {seed}, {} operations", table.total());
        }
        seed += 1;
    }
    println!("seeds {first} to {}, {} operations\n{table}", seed - 1, table.total());
    let missing = table.missing();
    assert!(missing.is_empty(), "never happened: {missing:?}");
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[test]
fn programs_find_the_same_bytes_and_signals_as_on_the_running_kernel() {
    skip::skip("only Linux on x86-64 is asked");
}
