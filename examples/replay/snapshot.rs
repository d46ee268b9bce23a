//! Resident pages at a recording's snapshots, compared with ours.

use std::collections::BTreeMap;

use kernmm::addr::VirtRange;
use kernmm::mm::{Backing, Vma};

use crate::subject::{Resident, Subject};

/// A VMA of a snapshot, as far as its pages go.
#[derive(Clone, Copy)]
pub(crate) struct Recorded {
    pub(crate) range: VirtRange,
    pub(crate) resident: Resident,
}

/// How snapshots compare.
#[derive(Default)]
pub(crate) struct Snapshots {
    /// What was mapped when the recording began. Which pages of it were resident then is not known.
    start: Vec<VirtRange>,
    compared: usize,
    anon_equal: usize,
    rss_equal: usize,
    /// VMAs whose pages of files differ, by why.
    reasons: BTreeMap<&'static str, usize>,
    pub(crate) differences: Vec<String>,
}

impl Snapshots {
    pub(crate) fn begin(&mut self, start: impl Iterator<Item = VirtRange>) {
        self.start = start.collect();
    }

    pub(crate) fn compare(&mut self, subject: &Subject<'_, '_>, line: usize, recorded: &Recorded) {
        let Recorded { range, resident: theirs } = *recorded;
        if self.start.iter().any(|start| start.start() < range.end() && range.start() < start.end()) {
            return;
        }
        self.compared += 1;
        let ours = subject.resident(range);
        let vma = subject.process.with(|mm| mm.lookup(range.start()).map(|slot| mm.vma(slot)));
        let show = || format!("line {line}: {range:?}: resident {ours:?}, recorded {theirs:?}, {vma:?}");
        if ours.anon == theirs.anon {
            self.anon_equal += 1;
        } else {
            self.differences.push(show());
        }
        if ours.all == theirs.all {
            self.rss_equal += 1;
        } else if ours.all - ours.anon != theirs.all - theirs.anon {
            let reason = vma.map_or("no VMA", |vma| reason(subject, &vma, ours, theirs));
            *self.reasons.entry(reason).or_default() += 1;
            if std::env::var_os("KERNMM_VERBOSE").is_some() {
                println!("{reason}: {}", show());
            }
        }
    }

    /// How many VMAs were compared, and of how many the anonymous and all resident pages were equal.
    pub(crate) fn sum(&self) -> String {
        let Self { compared, anon_equal, rss_equal, reasons, .. } = self;
        let reasons: Vec<String> = reasons.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
        let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
        format!("anon equal {anon_equal}/{compared}, rss equal {rss_equal}/{compared}{reasons}")
    }
}

/// Why the pages of a file that a VMA has differ from those that were recorded.
fn reason(subject: &Subject<'_, '_>, vma: &Vma, ours: Resident, theirs: Resident) -> &'static str {
    let Backing::File(file) = vma.backing else { return "no file" };
    if subject.grew(file) {
        return "the file grew";
    }
    match ours.all - ours.anon > theirs.all - theirs.anon {
        true => "more around a fault",
        false => "fewer around a fault",
    }
}
