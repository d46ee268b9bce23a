//! Recordings of a real Linux are replayed, and every result and every layout is equal.

#[path = "../examples/replay/common.rs"]
mod common;
#[path = "../examples/replay/layout.rs"]
mod layout;
#[path = "../examples/replay/oracle.rs"]
mod oracle;
#[path = "../examples/replay/program.rs"]
mod program;
#[path = "../examples/replay/snapshot.rs"]
mod snapshot;
#[path = "../examples/replay/subject.rs"]
mod subject;

use std::path::{Path, PathBuf};

/// Traces that take a moment; the others are replayed where `KERNMM_LONG` is set, and by the example.
const SHORT: [&str; 6] = ["bash_pipe", "javac", "ld_link", "sqlite3_ins", "tar_c", "terraform_go"];

/// The files of a folder under `tests/data`.
fn recordings(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(folder);
    let files = std::fs::read_dir(&folder).expect("the recordings are part of the repository");
    files.map(|entry| entry.expect("a readable folder").path()).collect()
}

fn is_short(path: &Path) -> bool {
    SHORT.iter().any(|name| path.file_name().is_some_and(|file| *file == *format!("{name}.txt.gz")))
}

#[test]
fn traces_of_programs_have_the_recorded_layout_after_every_call_and_the_recorded_pages() {
    let mut files = recordings("traces");
    files.extend(recordings("faults"));
    if std::env::var_os("KERNMM_LONG").is_none() {
        files.retain(|path| is_short(path));
        assert_eq!(files.len(), SHORT.len());
    }
    let mut pages = snapshot::Share::default();
    for path in &files {
        let outcome = layout::replay(path.to_str().expect("a plain name"), |_, _| ()).unwrap();
        assert!(outcome.is_equal, "{path:?}");
        pages += outcome.files;
    }
    assert!(pages.is_good(), "pages of files are equal in {pages} of the VMAs");
}

#[test]
fn scripts_get_the_recorded_answers_and_layouts() {
    let files = recordings("oracle");
    assert_eq!(files.len(), 10);
    for path in &files {
        assert_eq!(oracle::replay(path.to_str().expect("a plain name")), Ok(true), "{path:?}");
    }
}
