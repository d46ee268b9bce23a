//! What is tried: calls, with everything that stands in each place of theirs.

use kernmm::error::Errno;

use super::ours::{Answer, HEAP, MAPPED, OK};
use super::space::PAGE;

/// The end of the user's addresses.
pub(crate) const TASK: u64 = (1 << 47) - PAGE;
pub(crate) const MAX: u64 = u64::MAX;

/// What stands in the place of any argument.
pub(crate) const EDGES: [u64; 14] = [
    0,
    1,
    PAGE - 1,
    PAGE,
    PAGE + 1,
    TASK - PAGE,
    TASK,
    TASK + PAGE,
    MAX - PAGE,
    MAX - PAGE + 1,
    MAX - PAGE + 2,
    MAX - 1,
    MAX,
    MAPPED,
];

/// Where the heap's edges are, and those of what lies above it.
const HEAP_EDGES: [u64; 12] = [
    HEAP - PAGE,
    HEAP - 1,
    HEAP,
    HEAP + 1,
    HEAP + PAGE - 1,
    HEAP + PAGE,
    HEAP + PAGE + 1,
    HEAP + 14 * PAGE,
    HEAP + 15 * PAGE,
    HEAP + 15 * PAGE + 1,
    HEAP + 16 * PAGE,
    HEAP + 17 * PAGE,
];

/// A call of the mmap family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verb {
    Mmap,
    /// The call of 32-bit programs. Linux is asked the same in bytes, as far as that can be said.
    Mmap2,
    Munmap,
    Mprotect,
    Mremap,
    Brk,
    /// The C library's.
    Sbrk,
    Madvise,
    Mlock,
    Mlock2,
    Munlock,
    Mlockall,
    Munlockall,
    Msync,
    Mincore,
}

/// The six arguments, as the system call has them.
pub(crate) type Args = [u64; 6];

/// A call with all that may stand in each place.
#[derive(Clone, Debug)]
pub(crate) struct Try {
    pub(crate) verb: Verb,
    /// How much memory may be locked, in bytes.
    pub(crate) memlock: u64,
    places: Vec<Vec<u64>>,
}

/// How much may be locked where nothing else is said.
pub(crate) const MEMLOCK: u64 = 96 * PAGE;

/// Descriptors: none, then those of files that are opened for reading, for writing and for both.
pub(crate) const NO_FD: u64 = MAX;
pub(crate) const READ_ONLY: u64 = 100;
pub(crate) const WRITE_ONLY: u64 = 101;
pub(crate) const READ_WRITE: u64 = 102;

impl Try {
    fn new<const N: usize>(verb: Verb, places: [&[u64]; N]) -> Self {
        Self { verb, memlock: MEMLOCK, places: places.map(<[u64]>::to_vec).into() }
    }

    fn with_memlock(self, memlock: u64) -> Self {
        Self { memlock, ..self }
    }

    /// How many calls it is.
    pub(crate) fn count(&self) -> usize {
        self.places.iter().map(Vec::len).product()
    }

    /// All its calls, the first place changing fastest.
    pub(crate) fn calls(&self) -> impl Iterator<Item = Args> + '_ {
        (0..self.count()).map(|mut n| {
            let mut args = [0; 6];
            for (arg, place) in args.iter_mut().zip(&self.places) {
                *arg = place[n % place.len()];
                n /= place.len();
            }
            args
        })
    }

    /// What is tried, in a line.
    pub(crate) fn title(&self) -> String {
        let places = self.places.iter().map(|place| {
            let values: Vec<String> = place.iter().map(|value| format!("{value:x}")).collect();
            values.join(",")
        });
        let places: Vec<String> = places.collect();
        format!("{:?} {} memlock {:x}", self.verb, places.join(" "), self.memlock)
    }

    /// Whether Linux can be asked: a page offset that 32 bits do not hold cannot be said in mmap2, nor in mmap's bytes.
    pub(crate) fn is_asked(&self, args: &Args) -> bool {
        self.verb != Verb::Mmap2 || args[5] < 1 << 52
    }

    /// The two answers, ours and Linux's, that differ on purpose where they differ (`docs/deviations.md`).
    pub(crate) fn deviation(&self, args: &Args) -> Option<(Answer, Answer)> {
        const ENOMEM: Answer = Errno::ENOMEM.get();
        const HUGETLB_NORESERVE: u64 = 0x4_4000;
        let [addr, old, new, flags, ..] = *args;
        let fixed = flags & 0x10_0010 != 0;
        match self.verb {
            // It takes a fixed address among the last 4095 for the error of that number.
            Verb::Mmap | Verb::Mmap2 if fixed && addr > PAGE.wrapping_neg() => {
                Some((ENOMEM, addr.wrapping_neg() as Answer))
            }
            // Without a reservation huge pages are missed only where they are touched.
            Verb::Mmap if flags & HUGETLB_NORESERVE == HUGETLB_NORESERVE => Some((ENOMEM, OK)),
            // It charges what is cut off from what is moved, for ever, and finds that there is not so much memory.
            Verb::Mremap if flags & 2 != 0 && new < old => Some((OK, ENOMEM)),
            // The C library sees only whether the heap ends too low.
            Verb::Sbrk if (addr as i64) < 0 => Some((ENOMEM, OK)),
            _ => None,
        }
    }
}

const READ: u64 = 1;
const READ_AND_WRITE: u64 = 3;

/// Flags of anonymous mappings: of all types, and with each flag that something is checked for.
const ANONYMOUS: [u64; 20] = [
    0x22, 0x32, 0x10_0022, 0x21, 0x31, 0x23, 0x20, 0x28, 0x24, 0x122, 0x121, 0x2022, 0x2032, 0x8022, 0x4022,
    0x2_0022, 0x10_0122, 0x2028, 0x128, 0x8_0022,
];
/// Huge pages: of 2 MiB and 1 GiB, and of a size that there is not.
const HUGE: [u64; 8] =
    [0x4_0022, 0x4_0021, 0x4_4022, 0x14_0022, 0x4_0028, 0x4_2022, 21 << 26 | 0x4_0022, 12 << 26 | 0x4_0022];
/// Flags of mappings of files.
const FILE: [u64; 11] =
    [0x2, 0x12, 0x10_0002, 0x1, 0x11, 0x3, 0x8_0003, 0x102, 0x0, 0x7c00_0003, 0x8000_0003];

pub(crate) fn mmap() -> Vec<Try> {
    let any = &EDGES[..];
    let (lens, offsets) = (&[0, 1, PAGE, MAPPED, TASK, MAX][..], &[0, 1, PAGE, MAX - PAGE + 1, MAX][..]);
    let prots = &[0, 1, 2, 3, 4, 7, 8, 0x10, 0x0100_0003][..];
    vec![
        Try::new(Verb::Mmap, [any, any, &[READ_AND_WRITE], &ANONYMOUS, &[NO_FD], offsets]),
        Try::new(Verb::Mmap, [&[0, MAPPED], &[0, 1, PAGE], &[READ], any, any, any]),
        Try::new(Verb::Mmap, [&[0, MAPPED], &[PAGE], any, &ANONYMOUS, &[NO_FD, 0], &[0]]),
        Try::new(Verb::Mmap, [&[0, MAPPED + 16 * PAGE], lens, prots, &[0x22, 0x32, 0x21], &[NO_FD], &[0]]),
        Try::new(Verb::Mmap, [&[0, PAGE, MAPPED], lens, &[READ_AND_WRITE], &ANONYMOUS, &[NO_FD], &[0]])
            .with_memlock(0),
    ]
}

/// Linux unmaps what a fixed mapping replaces before it finds that there are no huge pages, or that the alignment is wrong.
pub(crate) fn huge() -> Vec<Try> {
    let lens = [
        0,
        1,
        PAGE,
        1 << 21,
        (1 << 21) + 1,
        1 << 30,
        MAPPED,
        TASK - PAGE,
        TASK,
        TASK + PAGE,
        MAX - PAGE,
        MAX,
    ];
    let addrs =
        [0, 1, PAGE, 1 << 21, MAPPED, MAPPED + PAGE, MAPPED + (1 << 21), TASK - PAGE, TASK, MAX - PAGE + 1];
    let offsets = [0, 1, PAGE, 1 << 21, 1 << 30, 1 << 62, 1 << 63, MAX - PAGE + 1];
    let fds = [NO_FD, 0, READ_ONLY];
    vec![
        Try::new(Verb::Mmap, [&addrs, &lens, &[0, READ, 3], &HUGE, &[NO_FD], &offsets]),
        Try::new(
            Verb::Mmap,
            [&[0, MAPPED], &[0, PAGE], &[READ], &[0x4_0002, 0x4_0001, 0x4_0000], &fds, &offsets],
        ),
    ]
}

pub(crate) fn mmap_of_files() -> Vec<Try> {
    let any = &EDGES[..];
    let fds = [READ_ONLY, WRITE_ONLY, READ_WRITE];
    vec![
        Try::new(Verb::Mmap, [any, any, &[READ], &[0x2, 0x12], &[READ_ONLY], any]),
        Try::new(Verb::Mmap, [&[0, MAPPED], any, &[READ_AND_WRITE], &FILE, &fds, any]),
        Try::new(Verb::Mmap, [&[0, MAPPED], &[PAGE], any, &FILE, &fds, &[0]]),
        Try::new(Verb::Mmap2, [&[0, MAPPED], any, &[READ], &[0x2, 0x11, 0x22], &fds, any]),
        Try::new(
            Verb::Mmap2,
            [
                &[0],
                &[1, PAGE, MAPPED],
                &[READ],
                &[0x1],
                &fds,
                &[(1 << 51) - 2, (1 << 51) - 1, 1 << 51, (1 << 52) - 2, (1 << 52) - 1],
            ],
        ),
    ]
}

pub(crate) fn mremap() -> Vec<Try> {
    let any = &EDGES[..];
    let few = &[0, PAGE, TASK, MAX, MAPPED][..];
    vec![
        Try::new(Verb::Mremap, [any, any, any, &[0, 1], &[0]]),
        Try::new(Verb::Mremap, [any, any, any, &[3], any]),
        Try::new(Verb::Mremap, [any, any, &[0, 1, PAGE, TASK, MAX], &[5, 7], any]),
        Try::new(Verb::Mremap, [few, few, few, &[2, 4, 6, 8, 9, 16], few]),
        Try::new(Verb::Mremap, [few, few, few, any, &[0, MAPPED]]),
    ]
}

/// munmap, mprotect, and where the heap ends.
pub(crate) fn layout() -> Vec<Try> {
    let any = &EDGES[..];
    let prots = [0, 1, 3, 7, 8, 0x10, 0x0100_0000, 0x0100_0001, 0x0200_0001, 0x0300_0001];
    let mut heap = EDGES.to_vec();
    heap.extend(HEAP_EDGES);
    let mut deltas = EDGES.to_vec();
    deltas.extend([PAGE * 14, PAGE * 15, PAGE * 16, 1 << 63]);
    vec![
        Try::new(Verb::Munmap, [any, any]),
        Try::new(Verb::Munmap, [&[MAPPED, MAPPED + PAGE], &[1, PAGE, PAGE + 1, 16 * PAGE]]),
        Try::new(Verb::Mprotect, [any, any, &prots]),
        Try::new(Verb::Mprotect, [&[0, 1, MAPPED], &[0, 1, PAGE, MAX], any]),
        Try::new(
            Verb::Mprotect,
            [&[MAPPED + 3 * PAGE, MAPPED + 8 * PAGE], &[PAGE, 2 * PAGE, 3 * PAGE], &[0, 3, 7]],
        ),
        Try::new(Verb::Brk, [&heap]),
        Try::new(Verb::Sbrk, [&deltas]),
    ]
}

pub(crate) fn madvise() -> Vec<Try> {
    let any = &EDGES[..];
    let advice: Vec<u64> = (0..=26).chain(97..=104).chain([MAX, MAX - 1, i32::MAX as u64, 1 << 31]).collect();
    vec![
        Try::new(Verb::Madvise, [any, any, &advice]),
        Try::new(
            Verb::Madvise,
            [&[MAPPED + PAGE, MAPPED + 3 * PAGE, MAPPED + 8 * PAGE], &[PAGE, 2 * PAGE, 6 * PAGE], &advice],
        ),
        Try::new(Verb::Madvise, [&[0, 1, MAPPED], &[0, 1, PAGE, MAX], any]),
    ]
}

pub(crate) fn locks() -> Vec<Try> {
    let any = &EDGES[..];
    let mut tries = vec![];
    for memlock in [0, PAGE, MEMLOCK, MAX] {
        let flags = [0, 1, 2, 3, 4, 5, 6, 7, 8, MAX, 1 << 32, MAPPED];
        tries.extend([
            Try::new(Verb::Mlock, [any, any]).with_memlock(memlock),
            Try::new(Verb::Mlock2, [any, any, &[0, 1, 2, 3, MAX, 1 << 32]]).with_memlock(memlock),
            Try::new(Verb::Mlock, [&[MAPPED, MAPPED + 3 * PAGE + 1], &[PAGE, 2 * PAGE, 6 * PAGE, 16 * PAGE]])
                .with_memlock(memlock),
            Try::new(Verb::Mlockall, [&flags]).with_memlock(memlock),
            Try::new(Verb::Mlockall, [any]).with_memlock(memlock),
        ]);
    }
    tries.extend([
        Try::new(Verb::Mlock2, [&[0, MAPPED], &[0, PAGE], any]),
        Try::new(Verb::Munlock, [any, any]),
        Try::new(Verb::Munlockall, [&[0, 1, MAX]]),
    ]);
    tries
}

/// Calls that only look.
pub(crate) fn looks() -> Vec<Try> {
    let any = &EDGES[..];
    let flags: Vec<u64> = (0..16).chain([MAX, 1 << 32]).collect();
    let readable = MAPPED + 4 * PAGE;
    let vectors =
        [0, 1, TASK - PAGE, TASK - 1, TASK, TASK + PAGE, MAX, MAPPED, MAPPED + 4 * PAGE - 1, readable];
    vec![
        Try::new(Verb::Msync, [any, any, &flags]),
        Try::new(Verb::Msync, [&[0, MAPPED], &[0, PAGE, MAX], any]),
        Try::new(Verb::Msync, [&[MAPPED, MAPPED + 8 * PAGE], &[2 * PAGE, 5 * PAGE, 10 * PAGE], &flags]),
        Try::new(Verb::Mincore, [any, any, &vectors]),
        Try::new(Verb::Mincore, [any, &[0, 1, PAGE, MAX], any]),
        Try::new(Verb::Mincore, [&[MAPPED, MAPPED + 3 * PAGE], &[2 * PAGE, 5 * PAGE, 6 * PAGE], &vectors]),
    ]
}
