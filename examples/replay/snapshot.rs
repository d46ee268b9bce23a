//! Resident pages at a recording's snapshots, compared with ours.

use std::collections::BTreeMap;

use kernmm::addr::{VirtAddr, VirtRange};
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
    /// VMAs of the last snapshot that differ. While it was taken other threads ran on: their faults come after it in the recording.
    waiting: Vec<(usize, Recorded)>,
    compared: usize,
    anon_equal: usize,
    rss_equal: usize,
    /// Of those, how many were only after faults that come later in the recording.
    later: usize,
    /// VMAs whose pages of files differ, by why.
    reasons: BTreeMap<&'static str, usize>,
    pub(crate) differences: Vec<String>,
}

impl Snapshots {
    pub(crate) fn begin(&mut self, start: impl Iterator<Item = VirtRange>) {
        self.start = start.collect();
    }

    /// Compares a VMA of a snapshot, unless it was there from the start.
    pub(crate) fn compare(&mut self, subject: &Subject<'_, '_, '_>, line: usize, recorded: Recorded) {
        if self.start.iter().any(|start| overlap(*start, recorded.range)) {
            return;
        }
        self.compared += 1;
        if subject.resident(recorded.range) == recorded.resident {
            self.equal();
        } else {
            self.waiting.push((line, recorded));
        }
    }

    /// A page was touched: a VMA that differed may be equal now.
    pub(crate) fn touched(&mut self, subject: &Subject<'_, '_, '_>, page: VirtAddr) {
        let (before, mut waiting) = (self.waiting.len(), std::mem::take(&mut self.waiting));
        waiting.retain(|(_, recorded)| {
            !recorded.range.contains(page) || subject.resident(recorded.range) != recorded.resident
        });
        (waiting.len()..before).for_each(|_| self.equal());
        self.later += before - waiting.len();
        self.waiting = waiting;
    }

    fn equal(&mut self) {
        self.anon_equal += 1;
        self.rss_equal += 1;
    }

    /// The next call comes: what differs now differs.
    pub(crate) fn settle(&mut self, subject: &Subject<'_, '_, '_>) {
        for (line, Recorded { range, resident: theirs }) in std::mem::take(&mut self.waiting) {
            let ours = subject.resident(range);
            let vma = subject.process.with(|mm| mm.lookup(range.start()).map(|slot| mm.vma(slot)));
            let what = format!("line {line}: {range:?}: resident {ours:?}, recorded {theirs:?}, {vma:?}");
            if ours.anon == theirs.anon {
                self.anon_equal += 1;
                let reason = vma.map_or("no VMA", |vma| reason(subject, &vma, ours, theirs));
                *self.reasons.entry(reason).or_default() += 1;
                if std::env::var_os("KERNMM_VERBOSE").is_some() {
                    println!("{reason}: {what}");
                }
            } else {
                self.rss_equal += usize::from(ours.all == theirs.all);
                self.differences.push(what);
            }
        }
    }

    /// Whether all anonymous pages are equal, and all others of nearly all VMAs: in 19 of 20, of few VMAs in all but three. What the recorded
    /// page cache had is not known to the page.
    pub(crate) fn is_good(&self) -> bool {
        self.differences.is_empty() && self.compared - self.rss_equal <= (self.compared / 20).max(3)
    }

    /// How many VMAs were compared, and of how many the anonymous and all resident pages were equal.
    pub(crate) fn sum(&self) -> String {
        let Self { compared, anon_equal, rss_equal, later, reasons, .. } = self;
        let reasons: Vec<String> = reasons.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
        let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
        format!(
            "anon equal {anon_equal}/{compared}, rss equal {rss_equal}/{compared}{reasons}, \
             of them later {later}"
        )
    }
}

fn overlap(one: VirtRange, other: VirtRange) -> bool {
    one.start() < other.end() && other.start() < one.end()
}

/// Why the pages of a file that a VMA has differ from those that were recorded.
fn reason(subject: &Subject<'_, '_, '_>, vma: &Vma, ours: Resident, theirs: Resident) -> &'static str {
    let Backing::File(file) = vma.backing else { return "no file" };
    if subject.grew(file) {
        return "the file grew meanwhile";
    }
    match ours.all > theirs.all {
        // Here the whole file is in memory.
        true => "around a fault the recorded cache had fewer pages",
        false => "no recorded fault is near a page",
    }
}
