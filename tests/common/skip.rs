//! Says that a test was skipped, where it is seen: what a test prints that passes is swallowed.

use std::io::Write;

/// Notes that the test which runs cannot do what it is for: on the standard error, and in the file that `KERNMM_SKIPS` names.
///
/// # Panics
/// If `KERNMM_LIVE` is `require`.
#[track_caller]
pub(crate) fn skip(why: &str) {
    assert!(std::env::var_os("KERNMM_LIVE").is_none_or(|live| live != "require"), "to be skipped: {why}");
    let thread = std::thread::current();
    let line = format!("{}: {why}\n", thread.name().unwrap_or("a test"));
    // Not by `eprint!`, which the test harness catches.
    let _ = write!(std::io::stderr(), "skipped {line}");
    if let Some(path) = std::env::var_os("KERNMM_SKIPS") {
        let mut file = std::fs::File::options().create(true).append(true).open(path).expect("KERNMM_SKIPS");
        file.write_all(line.as_bytes()).expect("KERNMM_SKIPS");
    }
}
