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

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let files: Vec<String> = args.collect();
    let replay: fn(&str) -> Result<bool, String> = match command.as_str() {
        "layout" => |path| layout::replay(path, |_, _| ()),
        "oracle" => oracle::replay,
        "pagealloc" => return whole(pagealloc::run(&files)),
        _ => return usage(),
    };
    if files.is_empty() {
        return usage();
    }
    let mut good = true;
    for file in &files {
        match replay(file) {
            Ok(equal) => good &= equal,
            Err(error) => {
                println!("{file}: {error}");
                good = false;
            }
        }
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
