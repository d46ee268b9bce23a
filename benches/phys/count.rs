//! Instructions of a pair, counted by a second run of this program under callgrind.

use crate::frames::Frames;
use crate::workloads::{alloc_free_pairs, fragment};
use std::env::current_exe;
use std::process::{Child, Command, Stdio};

/// Enough pairs that the loop's own start and end are lost among them.
const PAIRS: u64 = 10_000;

/// The memory that the pairs find.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// As in `a`.
    AllFree,
    /// As in `aw`.
    Fragmented,
}

impl Memory {
    const NAMED: [(&'static str, Self); 2] = [("a", Self::AllFree), ("aw", Self::Fragmented)];

    /// Finds the memory by the name of its workload.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMED.iter().find(|named| named.0 == name).map(|named| named.1)
    }

    fn name(self) -> &'static str {
        if self == Self::AllFree { "a" } else { "aw" }
    }
}

/// What the second run does.
pub fn run<F: Frames>(memory: Memory) {
    let frames = F::new();
    let mut cpu = frames.cpu(0);
    if memory == Memory::Fragmented {
        fragment(&frames, &mut cpu);
    }
    if let Some(pfn) = frames.alloc(&mut cpu, 0) {
        frames.free(&mut cpu, pfn, 0);
    }
    alloc_free_pairs(&frames, &mut cpu, PAIRS);
}

/// A count under way.
pub struct Counting(Child);

/// Starts to count the instructions of a contender's pairs; `None` where valgrind is not at hand.
pub fn start(contender: &str, memory: Memory) -> Option<Counting> {
    let valgrind = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*alloc_free_pairs*"])
        .arg(current_exe().ok()?)
        .args(["--count", contender, memory.name()])
        .stderr(Stdio::piped())
        .spawn();
    valgrind.ok().map(Counting)
}

impl Counting {
    /// Instructions a pair takes, with the call and the workload's loop.
    pub fn each(self) -> Option<f64> {
        let output = self.0.wait_with_output().ok()?;
        let report = String::from_utf8_lossy(&output.stderr);
        let counted = report.lines().find_map(|line| line.split_once("Collected :"))?.1;
        counted.trim().parse::<f64>().ok().map(|counted| counted / PAIRS as f64)
    }
}
