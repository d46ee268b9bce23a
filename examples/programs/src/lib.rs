//! The programs that every operating-systems course shows about memory, written once for every system that has Linux's calls.
//!
//! A program is a function of a [`System`]: it calls the kernel, and loads and stores at addresses, through that alone. [`Ring3`] is the CPU
//! itself with its `syscall` instruction, under Linux or under any kernel with Linux's numbers; the simulated machine is another one. A program prints the same
//! lines on all of them. Lines that begin with `#` tell times and sizes of this run; only they may differ.
//!
//! ```ignore
//! #[unsafe(no_mangle)]
//! unsafe extern "C" fn start(stack: *const u64) -> ! {
//!     // SAFETY: the kernel left its vectors there.
//!     let system = unsafe { kernmm_programs::Ring3::at_start(stack) };
//!     let status = kernmm_programs::run(&system, "cat").unwrap_or(127);
//!     system.exit(status)
//! }
//! ```
#![no_std]
#![deny(unsafe_code)]

#[macro_use]
mod print;
mod bytes;
mod calls;
mod errno;
#[cfg(target_arch = "x86_64")]
mod ring3;
mod system;

pub use calls::{Calls, MapFlags, Open, Prot, Seek, Status, number};
pub use errno::Errno;
#[cfg(target_arch = "x86_64")]
pub use ring3::Ring3;
pub use system::{Addr, SIGBUS, SIGSEGV, SigInfo, System, Thread};

macro_rules! programs {
    ($($name:ident)*) => {
        $(mod $name;)*

        /// All programs.
        pub const NAMES: &[&str] = &[$(stringify!($name)),*];

        /// Runs the program of this name and answers with its exit status; `None` if there is no such program.
        pub fn run<S: System>(sys: &S, name: &str) -> Option<i32> {
            match name {
                $(stringify!($name) => Some(end(sys, name, $name::main(sys))),)*
                _ => None,
            }
        }
    };
}

programs! {
    page_size read_int overwrite cat slices copy_mappings sparse msync_page persistent
    fork_shared semaphore threads segv_read_only sigbus_beyond_end mend heap code measure
    segfault fork_storm both_cpus exec_self
}

/// A program's exit status: 0, or 1 after its error is printed.
fn end<S: System>(sys: &S, name: &str, result: Result<(), Errno>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(errno) => {
            say!(sys, "{name}: {errno}");
            1
        }
    }
}
