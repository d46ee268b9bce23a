//! Arguments at every edge of every call: Linux's answer, and nothing changed where it is an error.
//!
//! The answers are compared with recorded ones, and where Linux runs with those of the running kernel, which is asked everything, also what it
//! grants; there the layouts are equal too wherever something has changed. `KERNMM_RECORD=1` records what it answers.

#![cfg_attr(
    not(all(target_os = "linux", target_arch = "x86_64")),
    expect(dead_code, reason = "what only the running kernel is compared with")
)]

#[path = "space/digest.rs"]
mod digest;
#[path = "../examples/common/elf.rs"]
mod elf;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "live/host.rs"]
#[expect(dead_code, reason = "others who share this use more of it")]
mod host;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "bad_input/kernel.rs"]
mod kernel;
#[path = "bad_input/order.rs"]
mod order;
#[path = "bad_input/ours.rs"]
mod ours;
#[path = "bad_input/partial.rs"]
mod partial;
#[path = "bad_input/recorded.rs"]
mod recorded;
#[path = "live/shown.rs"]
mod shown;
#[path = "common/skip.rs"]
mod skip;
mod space;
#[path = "bad_input/special.rs"]
mod special;
#[path = "bad_input/tries.rs"]
mod tries;

use ours::{Answer, NOT_ASKED, Outcome};
use tries::Try;

/// Tries everything and compares the answers.
fn compare(name: &str, tries: &[Try]) {
    let ours: Vec<Vec<Outcome>> = tries.iter().map(ours::outcomes).collect();
    let record = std::env::var_os("KERNMM_RECORD").is_some();
    match ask(tries, &ours) {
        Ok(answers) => {
            if record {
                let release =
                    std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a kernel has a release");
                // What the builder adds to it is left out.
                let release = format!("Linux {}", release.split('-').next().unwrap_or_default().trim());
                recorded::write(name, &release, tries, &answers).expect("the recording can be written");
            }
            assert_equal("the running kernel", tries, &ours, &answers);
        }
        Err(why) => {
            assert!(!record, "nothing is recorded: {why}");
            skip::skip(&format!("the running kernel is not asked: {why}"));
        }
    }
    let recorded = recorded::read(name, tries).unwrap_or_else(|why| panic!("{why}"));
    assert_equal("the recorded kernel", tries, &ours, &recorded);
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn ask(tries: &[Try], ours: &[Vec<Outcome>]) -> Result<Vec<Vec<Answer>>, String> {
    kernel::comparable()?;
    let ask = |(tried, ours): (&Try, &Vec<Outcome>)| match kernel::answers(tried, ours) {
        Err(why) if std::env::var_os("KERNMM_RECORD").is_none() => {
            skip::skip(&format!("the running kernel is not asked {}: {why}", tried.title()));
            Ok(vec![NOT_ASKED; tried.count()])
        }
        answers => answers,
    };
    tries.iter().zip(ours).map(ask).collect()
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn ask(_tries: &[Try], _ours: &[Vec<Outcome>]) -> Result<Vec<Vec<Answer>>, String> {
    Err("only Linux on x86-64 is asked".to_owned())
}

/// # Panics
/// With the first answers that differ.
fn assert_equal(who: &str, tries: &[Try], ours: &[Vec<Outcome>], theirs: &[Vec<Answer>]) {
    let mut differences = vec![];
    for ((tried, ours), theirs) in tries.iter().zip(ours).zip(theirs) {
        for ((args, ours), &theirs) in tried.calls().zip(ours).zip(theirs) {
            let both = (ours.answer, theirs);
            if theirs != NOT_ASKED && ours.answer != theirs && tried.deviation(&args) != Some(both) {
                differences.push(format!(
                    "{:?} {args:x?} memlock {:x}: ours {}, theirs {theirs}",
                    tried.verb, tried.memlock, ours.answer
                ));
            }
        }
    }
    let first: Vec<&str> = differences.iter().take(40).map(String::as_str).collect();
    assert!(differences.is_empty(), "{} answers of {who} differ:\n{}", differences.len(), first.join("\n"));
}

#[test]
fn mmap_of_anonymous_memory() {
    compare("mmap", &tries::mmap());
}

#[test]
fn mmap_of_huge_pages() {
    compare("huge", &tries::huge());
}

#[test]
fn mmap_and_mmap2_of_files() {
    compare("files", &tries::mmap_of_files());
}

#[test]
fn mremap() {
    compare("mremap", &tries::mremap());
}

#[test]
fn munmap_mprotect_brk_and_sbrk() {
    compare("layout", &tries::layout());
}

#[test]
fn madvise() {
    compare("madvise", &tries::madvise());
}

#[test]
fn mlock_mlock2_munlock_mlockall_and_munlockall() {
    compare("locks", &tries::locks());
}

#[test]
fn msync_and_mincore() {
    compare("looks", &tries::looks());
}
