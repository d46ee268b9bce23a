//! Replays recordings of a real Linux against this library and compares after every step.
//!
//! ```text
//! cargo run --release --example replay -- layout FILE…       traces of programs' address-space calls
//! cargo run --release --example replay -- oracle FILE…       scripts of calls with the kernel's answers
//! cargo run --release --example replay -- pagealloc FILE…    page allocations and frees
//! ```
//!
//! Files may be gzipped. The first differences are listed; the exit status is 1 if there is any.

mod common;
mod layout;
mod oracle;
mod pagealloc;
mod program;
mod recording;
mod snapshot;
mod subject;

use std::process::ExitCode;

use snapshot::Share;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let files: Vec<String> = args.collect();
    if command == "pagealloc" {
        return whole(pagealloc::run(&files));
    }
    if files.is_empty() {
        return usage();
    }
    let mut pages = Share::default();
    let mut good = true;
    for file in &files {
        let result = match command.as_str() {
            "layout" => layout::replay(file, |_, _| ()).map(|outcome| {
                pages += outcome.files;
                outcome.is_equal
            }),
            "oracle" => oracle::replay(file),
            _ => return usage(),
        };
        match result {
            Ok(equal) => good &= equal,
            Err(error) => {
                println!("{file}: {error}");
                good = false;
            }
        }
    }
    if command == "layout" {
        println!("all files: pages of files equal in {pages} of the VMAs that have a file, to be 95 %");
        good &= pages.is_good();
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The exit status of a replay that takes all files at once.
fn whole(result: Result<bool, std::io::Error>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("replay: {error}");
            ExitCode::from(2)
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: replay layout|oracle FILE… | pagealloc [--table] FILE…");
    ExitCode::from(2)
}
