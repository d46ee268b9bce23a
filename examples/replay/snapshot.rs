//! Resident pages at a recording's snapshots, compared with ours.

use std::collections::BTreeMap;

use kernmm::addr::{VirtAddr, VirtRange};
use kernmm::mm::FileRef;

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
    /// Those of the VMAs compared that have a file, and of how many of them as many pages were resident as in the recording.
    pub(crate) files: Share,
    /// Of those that were equal, how many were only after faults that come later in the recording.
    later: usize,
    /// VMAs whose pages of files differ, by why.
    reasons: BTreeMap<&'static str, usize>,
    /// The first of them.
    listed: Vec<String>,
    pub(crate) differences: Vec<String>,
}

/// How many of all are equal.
#[derive(Clone, Copy, Default)]
pub(crate) struct Share {
    pub(crate) equal: usize,
    pub(crate) all: usize,
}

impl Share {
    /// Whether 19 of 20 are. What the recorded page cache had is not known to the page.
    pub(crate) fn is_good(self) -> bool {
        (self.all - self.equal) * 20 <= self.all
    }
}

impl std::ops::AddAssign for Share {
    fn add_assign(&mut self, other: Self) {
        (self.equal, self.all) = (self.equal + other.equal, self.all + other.all);
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = 100.0 * self.equal as f64 / self.all.max(1) as f64;
        write!(f, "{}/{} ({percent:.1} %)", self.equal, self.all)
    }
}

/// How many of the VMAs whose pages of files differ are listed.
const LISTED: usize = 10;

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
        let has_file = file_at(subject, recorded.range).is_some();
        self.files.all += usize::from(has_file);
        if subject.resident(recorded.range) == recorded.resident {
            self.equal(has_file);
        } else {
            self.waiting.push((line, recorded));
        }
    }

    /// A page was touched: a VMA that differed may be equal now.
    pub(crate) fn touched(&mut self, subject: &Subject<'_, '_, '_>, page: VirtAddr) {
        let (before, mut waiting) = (self.waiting.len(), std::mem::take(&mut self.waiting));
        waiting.retain(|(_, recorded)| {
            let differs =
                !recorded.range.contains(page) || subject.resident(recorded.range) != recorded.resident;
            if !differs {
                self.equal(file_at(subject, recorded.range).is_some());
            }
            differs
        });
        self.later += before - waiting.len();
        self.waiting = waiting;
    }

    fn equal(&mut self, has_file: bool) {
        self.anon_equal += 1;
        self.files.equal += usize::from(has_file);
    }

    /// The next call comes: what differs now differs.
    pub(crate) fn settle(&mut self, subject: &Subject<'_, '_, '_>) {
        for (line, Recorded { range, resident: theirs }) in std::mem::take(&mut self.waiting) {
            let ours = subject.resident(range);
            let vma = subject.process.with(|mm| mm.lookup(range.start()).map(|slot| mm.vma(slot)));
            let what = format!("line {line}: {range:?}: resident {ours:?}, recorded {theirs:?}, {vma:?}");
            if ours.anon == theirs.anon {
                self.anon_equal += 1;
                match vma.and_then(|vma| Some(reason(subject, vma.backing.file()?, ours, theirs))) {
                    Some(reason) => {
                        *self.reasons.entry(reason).or_default() += 1;
                        if self.listed.len() < LISTED || std::env::var_os("KERNMM_VERBOSE").is_some() {
                            let (theirs, ours) = (theirs.all, ours.all);
                            self.listed.push(format!(
                                "line {line}: {range:?}: {ours} pages, recorded {theirs}: {reason}"
                            ));
                        }
                    }
                    // Without a file there is nothing that the recording does not tell.
                    None => self.differences.push(what),
                }
            } else {
                self.differences.push(what);
            }
        }
    }

    /// The VMAs whose pages of files differ, the first of them, each with the reason.
    pub(crate) fn rest(&self) -> String {
        let mut text: String = self.listed.iter().map(|line| format!("    {line}\n")).collect();
        let more = self.reasons.values().sum::<usize>() - self.listed.len();
        if more != 0 {
            text += &format!("    and {more} more\n");
        }
        text
    }

    /// How many VMAs were compared, and of how many the anonymous pages and those of files were equal.
    pub(crate) fn sum(&self) -> String {
        let Self { compared, anon_equal, files, later, reasons, .. } = self;
        let reasons: Vec<String> = reasons.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
        let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
        format!(
            "anon equal {anon_equal}/{compared}, pages of files equal {files}{reasons}, of them later {later}"
        )
    }
}

/// The file that a VMA maps.
fn file_at(subject: &Subject<'_, '_, '_>, range: VirtRange) -> Option<FileRef> {
    subject.process.with(|mm| mm.vma(mm.lookup(range.start())?).backing.file())
}

fn overlap(one: VirtRange, other: VirtRange) -> bool {
    one.start() < other.end() && other.start() < one.end()
}

/// Why the pages of a file that a VMA has differ from those that were recorded.
fn reason(subject: &Subject<'_, '_, '_>, file: FileRef, ours: Resident, theirs: Resident) -> &'static str {
    if subject.grew(file) {
        return "the file grew meanwhile";
    }
    match ours.all > theirs.all {
        // Here the whole file is in memory.
        true => "around a fault the recorded cache had fewer pages",
        false => "no recorded fault is near a page",
    }
}
