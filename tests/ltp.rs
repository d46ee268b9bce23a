//! What the Linux Test Project asserts of the memory calls, put in our own words: the name of each test begins with the name of the program there.
//! Memory is touched through the MMU and TLB.
//!
//! Not here, and why:
//!
//! - `madvise06` and the swap tests: nothing is swapped out. `madvise09` frees pages under pressure; here advice to free frees nothing, and the test asks
//!   for what holds with either.
//! - `madvise07`, `08`, `11`: poisoned hardware pages and core dumps are a kernel's.
//! - `min_free_kbytes`: that nobody gets the frames below the watermarks is shown in `exhaustive_phys`, `memory` and `pin`.
//! - The waste of whole machines (`mtest`, `thp`, `ksm`, `numa`, `cgroup`): `huge` and `model_fault` have what applies of it.
//! - `mmap15` and `fork14` need no machine of their size: addresses cost nothing here.

mod scene;

#[path = "ltp/fork.rs"]
mod fork;
#[path = "ltp/lock.rs"]
mod lock;
#[path = "ltp/mmap.rs"]
mod mmap;
#[path = "ltp/moves.rs"]
mod moves;

use kernmm::mm::FileRef;
use kernmm::report::{FileName, Names};

/// Every file is this one.
struct Anonymous;

impl Names for Anonymous {
    fn file(&self, _: FileRef) -> FileName<'_> {
        FileName { major: 0, minor: 1, inode: 7, path: "/dev/zero (deleted)" }
    }

    fn special(&self, _: u32) -> &str {
        "[vdso]"
    }
}
