//! What happened, and what has to.

use std::collections::BTreeMap;
use std::fmt;

/// How often each verb had each outcome.
#[derive(Default)]
pub(crate) struct Table(BTreeMap<(String, String), u64>);

/// What every run is to see.
const EXPECTED: &[(&str, &[&str])] = &[
    ("mmap", &["ok", "EINVAL", "EBADF", "ENOMEM", "EACCES", "EEXIST", "EPERM", "ENODEV"]),
    ("munmap", &["ok", "EINVAL"]),
    ("mprotect", &["ok", "EINVAL", "ENOMEM", "EACCES"]),
    ("mremap", &["ok", "EINVAL", "EFAULT", "ENOMEM"]),
    ("madvise", &["ok", "EINVAL", "ENOMEM", "EACCES", "EFAULT"]),
    ("mlock", &["ok", "ENOMEM"]),
    ("mlock2", &["ok", "EINVAL", "ENOMEM"]),
    ("munlock", &["ok", "ENOMEM"]),
    ("munlockall", &["ok"]),
    ("msync", &["ok", "EINVAL", "ENOMEM"]),
    ("mincore", &["ok", "ENOMEM"]),
    ("brk", &["ok"]),
    (
        "load",
        &[
            "anonymous",
            "zero page",
            "zero page at first",
            "file",
            "file at first",
            "tail of a file",
            "after DONTNEED",
            "SIGSEGV MAPERR",
            "SIGSEGV ACCERR",
            "SIGSEGV KERNEL",
            "SIGSEGV guard",
            "SIGBUS ADRERR",
        ],
    ),
    (
        "store",
        &[
            "anonymous at first",
            "over the zero page",
            "again",
            "reuse",
            "copy in a child",
            "copy in the parent",
            "copy of a file's",
            "copy of a file's at first",
            "shared",
            "shared at first",
            "tail of a file",
            "SIGSEGV MAPERR",
            "SIGSEGV ACCERR",
            "SIGSEGV KERNEL",
            "SIGSEGV guard",
            "SIGBUS ADRERR",
        ],
    ),
    ("exchange", &["again", "SIGSEGV ACCERR"]),
    ("fetch", &["anonymous", "file", "SIGSEGV ACCERR", "SIGSEGV MAPERR"]),
    ("write pipe", &["anonymous", "file", "EFAULT"]),
    ("read pipe", &["again", "copy in a child", "shared", "EFAULT"]),
    ("pread", &["ok", "EFAULT", "EBADF"]),
    ("pwrite", &["ok", "behind the end", "EFAULT", "EBADF"]),
    ("other pread", &["ok"]),
    ("other pwrite", &["ok"]),
    ("truncate", &["down", "up", "killed private copies"]),
    ("fork", &["ok"]),
    ("exit", &["ok"]),
];

impl Table {
    pub(crate) fn note(&mut self, verb: &str, outcome: &str) {
        self.add(verb, outcome, 1);
    }

    fn add(&mut self, verb: &str, outcome: &str, n: u64) {
        *self.0.entry((verb.to_owned(), outcome.to_owned())).or_default() += n;
    }

    /// How many operations it counts.
    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// What was to be seen and was not.
    pub(crate) fn missing(&self) -> Vec<(&'static str, &'static str)> {
        let cells = EXPECTED
            .iter()
            .flat_map(|(verb, outcomes)| outcomes.iter().map(move |outcome| (*verb, *outcome)));
        cells
            .filter(|(verb, outcome)| !self.0.contains_key(&((*verb).to_owned(), (*outcome).to_owned())))
            .collect()
    }

    /// In lines, for another process.
    pub(crate) fn to_lines(&self) -> String {
        self.0.iter().map(|((verb, outcome), n)| format!("{verb}\t{outcome}\t{n}\n")).collect()
    }

    /// Adds what another process has put in lines.
    pub(crate) fn add_lines(&mut self, lines: &str) {
        for line in lines.lines() {
            let mut words = line.split('\t');
            if let (Some(verb), Some(outcome), Some(n)) = (words.next(), words.next(), words.next()) {
                self.add(verb, outcome, n.parse().unwrap_or(0));
            }
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|((verb, outcome), n)| writeln!(f, "{verb:>12} {outcome:<26} {n:>9}"))
    }
}
