//! Recordings of a real Linux are replayed, and every result and every layout is equal.

#[path = "../examples/replay/common.rs"]
mod common;
#[path = "../examples/replay/layout.rs"]
mod layout;
#[path = "../examples/replay/oracle.rs"]
mod oracle;
#[path = "../examples/replay/program.rs"]
mod program;
#[path = "../examples/common/stores.rs"]
mod stores;

use std::path::Path;

/// Replays all files of a folder under `tests/data`.
fn replay_all(folder: &str, files: usize, replay: fn(&str) -> Result<bool, String>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(folder);
    let mut replayed = 0;
    for entry in std::fs::read_dir(&folder).expect("the recordings are part of the repository") {
        let path = entry.expect("a readable folder").path();
        let path = path.to_str().expect("a plain name");
        assert_eq!(replay(path), Ok(true), "{path}");
        replayed += 1;
    }
    assert_eq!(replayed, files);
}

#[test]
fn traces_of_programs_have_the_recorded_layout_after_every_call() {
    replay_all("traces", 16, |path| layout::replay(path, |_, _| ()));
}

#[test]
fn traces_with_many_faults_have_the_recorded_layout_after_every_call() {
    replay_all("faults", 3, |path| layout::replay(path, |_, _| ()));
}

#[test]
fn scripts_get_the_recorded_answers_and_layouts() {
    replay_all("oracle", 10, oracle::replay);
}
