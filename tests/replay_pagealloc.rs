//! Recorded page allocations of Linux are replayed: nothing overlaps, leaks or fails without need, and putting merges off never costs more
//! splits and merges than it saves.
#![expect(dead_code, reason = "the example uses the rest")]

#[path = "../examples/replay/pagealloc.rs"]
mod pagealloc;
#[path = "../examples/replay/recording.rs"]
mod recording;

use std::path::Path;

use pagealloc::{Lists, deferred_over_immediate, replays_soundly};
use recording::Recording;

/// Replays one recording in all ways and asserts how much work below the per-CPU lists deferral leaves, with them off and on.
fn replay(name: &str, lists_off_at_most: f64) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pagealloc").join(name);
    let recording = Recording::read(&path).expect("the recordings are part of the repository");
    assert!(replays_soundly(&recording), "{name}");
    let ratios = [Lists::Off, Lists::On].map(|lists| deferred_over_immediate(&recording, lists));
    println!(
        "{name}: splits and merges, deferred over immediate: lists off {:.3}, on {:.3}",
        ratios[0], ratios[1]
    );
    assert!(ratios[0] <= lists_off_at_most && ratios[1] <= 1.0, "{name}: {ratios:?}");
}

#[test]
fn compiling_a_program() {
    replay("build.txt.gz", 1.0);
}

#[test]
fn many_short_processes() {
    replay("fork_exec.txt.gz", 0.40);
}

#[test]
fn huge_pages_among_small_ones() {
    replay("mixed_thp.txt.gz", 1.0);
}

#[test]
fn traffic_on_the_loopback_device() {
    replay("net_loopback.txt.gz", 0.80);
}
