//! Replays what was recorded on a real Linux.
//!
//! ```text
//! cargo run --release --example replay -- pagealloc FILE…    page allocations and frees
//! ```

mod pagealloc;
mod recording;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((command, files)) = arguments.split_first() else { return usage() };
    let result = match command.as_str() {
        "pagealloc" => pagealloc::run(files),
        _ => return usage(),
    };
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
    eprintln!("usage: replay pagealloc [--table] FILE…");
    ExitCode::from(2)
}
