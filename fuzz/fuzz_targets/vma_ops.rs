//! Arbitrary operations on several address spaces, each checked page by page against a naive model.
//!
//! ```text
//! cargo +nightly fuzz run vma_ops -- -dict=fuzz/dict/vma_ops.dict -max_total_time=60
//! ```
#![no_main]

#[path = "../../tests/space/model.rs"]
mod model;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, Vec<model::Op>)| {
    let (means, operations) = input;
    let limits = if means % 2 == 0 { model::Limits::Linux } else { model::Limits::Tight };
    model::run(&operations, model::Means { slots: 4 + usize::from(means) * 4, limits });
});
