//! What a Linux has answered once, for where none runs.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::path::PathBuf;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use super::ours::Answer;
use super::tries::Try;

const HEADER: &str = "Answers of Linux, x86-64. A try is a line with what stands in each place; a line with its answers follows, the first place changing \
fastest: 0, an error number, -1 where brk changes nothing, -2 where nobody was asked; N*M is N, M times.\n";

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/bad_input/{name}.txt.gz"))
}

/// Reads the answers to these tries.
///
/// # Errors
/// That the tries are not those that were recorded.
pub(crate) fn read(name: &str, tries: &[Try]) -> Result<Vec<Vec<Answer>>, String> {
    let file =
        std::fs::File::open(path(name)).map_err(|error| format!("{}: {error}", path(name).display()))?;
    let mut text = String::new();
    GzDecoder::new(file).read_to_string(&mut text).map_err(|error| error.to_string())?;
    let mut lines = text.lines().skip(2);
    let mut answers = vec![];
    for tried in tries {
        if lines.next() != Some(&tried.title()) {
            return Err(format!("record anew (KERNMM_RECORD=1): no answers to {}", tried.title()));
        }
        answers.push(parse(lines.next().unwrap_or_default(), tried.count())?);
    }
    Ok(answers)
}

/// Writes them.
pub(crate) fn write(name: &str, release: &str, tries: &[Try], answers: &[Vec<Answer>]) -> Result<(), String> {
    let mut text = format!("{HEADER}{release}\n");
    for (tried, answers) in tries.iter().zip(answers) {
        writeln!(text, "{}\n{}", tried.title(), print(answers)).map_err(|error| error.to_string())?;
    }
    let path = path(name);
    let file = path
        .parent()
        .ok_or("no folder")
        .and_then(|folder| std::fs::create_dir_all(folder).map_err(|_| "the folder cannot be made"));
    file?;
    let file = std::fs::File::create(&path).map_err(|error| error.to_string())?;
    let mut file = GzEncoder::new(file, Compression::best());
    file.write_all(text.as_bytes()).map_err(|error| error.to_string())?;
    file.finish().map(drop).map_err(|error| error.to_string())
}

fn print(answers: &[Answer]) -> String {
    let runs = answers.chunk_by(|one, other| one == other);
    let runs: Vec<String> = runs
        .map(|run| if run.len() == 1 { run[0].to_string() } else { format!("{}*{}", run[0], run.len()) })
        .collect();
    runs.join(" ")
}

fn parse(line: &str, count: usize) -> Result<Vec<Answer>, String> {
    let mut answers = vec![];
    for run in line.split(' ') {
        let (answer, times) = run.split_once('*').unwrap_or((run, "1"));
        let answer: Answer = answer.parse().map_err(|_| format!("no answer: {run}"))?;
        let times: usize = times.parse().map_err(|_| format!("no number: {run}"))?;
        answers.resize(answers.len() + times, answer);
    }
    if answers.len() == count { Ok(answers) } else { Err(format!("{} answers, not {count}", answers.len())) }
}
