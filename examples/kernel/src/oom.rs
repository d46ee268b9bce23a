//! Out of memory: the process that uses most ends, and the others go on.

use crate::process::{self, Process};
use crate::signal::SIGKILL;
use crate::{println, sched};

/// Ends the process with the most pages in memory, and lets it go: the caller tries again what it could not do.
///
/// # Linux
/// `out_of_memory` in `mm/oom_kill.c`, without adjustments.
pub fn end_a_process() {
    let all = process::all();
    // One that ends already brings memory back, if it gets the CPU.
    if all.iter().all(|process| !process.is_over()) {
        let pages = |process: &Process| process.space().with(|mm| mm.shared().resident());
        if let Some(victim) = all.iter().max_by_key(|process| pages(process)) {
            let name = victim.name.lock().clone();
            println!("Out of memory: Killed process {} ({name}) rss:{}kB", victim.id, pages(victim) * 4);
            victim.kill(SIGKILL);
        }
    }
    drop(all);
    sched::yield_now();
}
