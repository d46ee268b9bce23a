//! Programs are laid out here as the running kernel lays them out: mappings, the fields of `/proc/PID/stat`, the auxiliary vector, and errors.
//!
//! Small ELF files are written to a temporary directory, and their code stops at once. The kernel runs each of them; we run the same bytes on the simulated
//! machine, with what the kernel told the program of itself.

#[path = "common/skip.rs"]
mod skip;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "live/host.rs"]
#[expect(dead_code, reason = "not all of it is needed here")]
mod host;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "live/executable.rs"]
mod executable;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "live/layout.rs"]
mod layout;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn programs_are_laid_out_as_the_running_kernel_does() {
    if let Err(why) = layout::compare_all() {
        match why {
            layout::Outcome::Skipped(why) => skip::skip(&why),
            layout::Outcome::Differs(what) => panic!("{what}"),
        }
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[test]
fn programs_are_laid_out_as_the_running_kernel_does() {
    skip::skip("only Linux on x86-64 is asked");
}
