//! Arbitrary programs of several processes, files and CPUs, every byte of which is compared with a naive model.
//!
//! ```text
//! cargo +nightly fuzz run fault -- -max_len=4096 -max_total_time=60
//! ```
#![no_main]

#[path = "../../tests/pages/model.rs"]
mod model;

use kernmm::mm::HugePages;
use kernmm::platform::hosted::Mmu;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, u8, Vec<model::Op>)| {
    let (setup, huge, operations) = input;
    let mmu = [Mmu::X86_64, Mmu::Pae, Mmu::Sv39][usize::from(setup % 3)];
    let frames = (setup & 4 != 0).then_some(60 + u64::from(setup >> 3) * 4);
    let huge = [HugePages::Never, HugePages::Madvise, HugePages::Always][usize::from(huge % 3)];
    model::run(&operations, model::Setup { mmu, frames, huge });
});
