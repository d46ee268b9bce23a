//! Which answers were seen: every call with every error number that Linux documents for any of them.

use std::collections::BTreeMap;
use std::fmt;

/// The calls, and what else is done to memory.
pub(crate) const VERBS: [&str; 20] = [
    "mmap",
    "mmap2",
    "munmap",
    "mprotect",
    "mremap",
    "brk",
    "sbrk",
    "madvise",
    "mlock",
    "mlock2",
    "munlock",
    "mlockall",
    "munlockall",
    "msync",
    "mincore",
    "fork",
    "exec",
    "exit",
    "load",
    "store",
];

/// What they may answer.
pub(crate) const ANSWERS: [&str; 14] = [
    "ok",
    "unchanged",
    "EINVAL",
    "ENOMEM",
    "EFAULT",
    "EAGAIN",
    "EPERM",
    "EACCES",
    "EBADF",
    "EBUSY",
    "EEXIST",
    "ENODEV",
    "EOPNOTSUPP",
    "EOVERFLOW",
];

/// Some of the calls.
enum Of {
    These(&'static [&'static str]),
    AllBut(&'static [&'static str]),
}

use Of::{AllBut, These};

impl Of {
    fn contains(&self, verb: &str) -> bool {
        match self {
            These(verbs) => verbs.contains(&verb),
            AllBut(verbs) => !verbs.contains(&verb),
        }
    }
}

impl fmt::Display for Of {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            These(verbs) => write!(f, "{}", verbs.join(", ")),
            AllBut(verbs) => write!(f, "all but {}", verbs.join(", ")),
        }
    }
}

type Cells = (Of, &'static [&'static str], &'static str);

/// Cells that stay empty, and why. One that does not is a mistake here.
const UNREACHABLE: &[Cells] = &[
    (AllBut(&["brk"]), &["unchanged"], "only brk answers with where the heap ends, and with no error"),
    (These(&["brk"]), ERRORS, "it answers with where the heap ends"),
    (
        These(&["sbrk"]),
        &["EINVAL", "EFAULT", "EAGAIN", "EPERM", "EACCES"],
        "the C library's says ENOMEM whatever the reason is",
    ),
    (These(&["munlockall", "exit"]), ERRORS, "they take nothing that could be wrong, and need nothing"),
    (
        These(&["load", "store"]),
        &["EINVAL", "ENOMEM", "EAGAIN", "EPERM", "EACCES"],
        "the kernel says EFAULT for every signal",
    ),
    (
        These(&["exec"]),
        ERRORS,
        "Linux documents no error of memory; what is wrong with a program is tested where it is read",
    ),
    (
        These(&["fork"]),
        &["ENOMEM"],
        "where one request may take all of memory, no VMA that could be mapped is too large to be copied; tests that fail allocations have it",
    ),
    (
        These(&["fork"]),
        &["EINVAL", "EFAULT", "EAGAIN", "EPERM", "EACCES"],
        "it takes nothing that could be wrong",
    ),
    (
        AllBut(&["mmap", "mmap2"]),
        &["EBADF", "EEXIST", "ENODEV", "EOPNOTSUPP", "EOVERFLOW"],
        "only mmap names a file, an offset in it, or an address where nothing may be; madvise says EBADF only where there is no swap at all",
    ),
    (
        AllBut(&["msync"]),
        &["EBUSY"],
        "only msync finds locked memory busy; to madvise it is an invalid argument",
    ),
    (
        These(&["munmap", "mremap", "mlock", "mlock2", "munlock", "mlockall", "msync", "mincore"]),
        &["EACCES"],
        "they ask for no access that a file could deny",
    ),
    (
        These(&["munmap", "mprotect", "madvise", "munlock", "msync", "mincore"]),
        &["EPERM"],
        "they need no right, and put nothing at the lowest addresses",
    ),
    (
        These(&["munmap", "mprotect", "munlock", "msync", "mincore"]),
        &["EAGAIN"],
        "they lock nothing, and say ENOMEM where madvise says EAGAIN",
    ),
    (
        These(&["mlock", "mlock2", "mlockall"]),
        &["EAGAIN"],
        "beyond the limit they say ENOMEM; pages of the child can always be had",
    ),
    (
        These(&["mmap", "mmap2", "munmap", "mprotect", "mlock", "mlock2", "munlock", "mlockall", "msync"]),
        &["EFAULT"],
        "they read and write nothing of the caller's, and say ENOMEM for what is not mapped",
    ),
];

const ERRORS: &[&str] = ANSWERS.split_at(2).1;

/// How often each call gave each answer.
#[derive(Default)]
pub(crate) struct Table {
    seen: BTreeMap<(&'static str, &'static str), u64>,
    is_unprivileged: bool,
}

/// Cells that take a limit which only privileges raise.
const PRIVILEGED: &[(&str, &str)] = &[("mlock", "EINVAL")];

impl Table {
    /// Notes an answer.
    ///
    /// # Errors
    /// An answer that is listed as unreachable.
    pub(crate) fn note(&mut self, verb: &'static str, answer: &'static str) -> Result<(), String> {
        *self.seen.entry((verb, answer)).or_default() += 1;
        match why_unreachable(verb, answer) {
            Some(why) => Err(format!("{verb} answers {answer}, which is listed as unreachable: {why}")),
            None if !VERBS.contains(&verb) || !ANSWERS.contains(&answer) => {
                Err(format!("{verb} answers {answer}, for which the table has no cell"))
            }
            None => Ok(()),
        }
    }

    /// Notes that a limit could not be raised.
    pub(crate) const fn note_unprivileged(&mut self) {
        self.is_unprivileged = true;
    }

    /// Adds what another table has seen.
    pub(crate) fn add(&mut self, other: &Self) {
        for (&cell, times) in &other.seen {
            *self.seen.entry(cell).or_default() += times;
        }
        self.is_unprivileged |= other.is_unprivileged;
    }

    pub(super) fn seen(&self, verb: &'static str, answer: &'static str) -> u64 {
        self.seen.get(&(verb, answer)).copied().unwrap_or(0)
    }

    /// The cells that are empty without a reason.
    pub(crate) fn missing(&self) -> Vec<(&'static str, &'static str)> {
        let cells = VERBS.iter().flat_map(|&verb| ANSWERS.iter().map(move |&answer| (verb, answer)));
        cells
            .filter(|&(verb, answer)| self.seen(verb, answer) == 0 && why_unreachable(verb, answer).is_none())
            .filter(|cell| !(self.is_unprivileged && PRIVILEGED.contains(cell)))
            .collect()
    }
}

fn why_unreachable(verb: &str, answer: &str) -> Option<&'static str> {
    let listed = |(verbs, answers, _): &&Cells| verbs.contains(verb) && answers.contains(&answer);
    UNREACHABLE.iter().find(listed).map(|(_, _, why)| *why)
}

impl fmt::Display for Table {
    /// A row for each call; `-` where nothing can be seen. The reasons follow.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>10}", "")?;
        ANSWERS.iter().try_for_each(|answer| write!(f, " {answer:>10}"))?;
        writeln!(f)?;
        for verb in VERBS {
            write!(f, "{verb:>10}")?;
            for answer in ANSWERS {
                match why_unreachable(verb, answer) {
                    Some(_) => write!(f, " {:>10}", "-")?,
                    None => write!(f, " {:>10}", self.seen(verb, answer))?,
                }
            }
            writeln!(f)?;
        }
        if self.is_unprivileged {
            writeln!(f, "limits cannot be raised here, so that these are not asked for: {PRIVILEGED:?}")?;
        }
        UNREACHABLE
            .iter()
            .try_for_each(|(verbs, answers, why)| writeln!(f, "{verbs} never {}: {why}", answers.join(", ")))
    }
}
