//! Recorded programs: their faults in order, between the changes of their layout.

use crate::stores::Vmas;
use crate::workloads::{Effort, now};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What happened.
enum Event {
    /// Faults with no change of the layout in between.
    Faults(Vec<u64>),
    Remove(Range<u64>),
    Insert(Range<u64>),
}

/// The first layout of a program and what happened to it.
pub struct Recording {
    pub name: String,
    start: Vec<Range<u64>>,
    events: Vec<Event>,
    faults: usize,
    /// The most VMAs there are at a time.
    most: usize,
}

/// The recordings that come with the library: programs with many faults, and shorter ones.
pub fn recorded() -> Vec<PathBuf> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data");
    let files =
        ["faults", "traces"].into_iter().filter_map(|folder| data.join(folder).read_dir().ok()).flatten();
    let mut paths: Vec<PathBuf> = files.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| {
        let name = path.to_string_lossy();
        name.ends_with(".txt") || name.ends_with(".txt.gz")
    });
    paths.sort();
    paths
}

/// Reads a recording: `V start end …` of the first layout, `F thread page …`, `- start`, `+ start end …`, all in hexadecimal.
pub fn read(path: &Path) -> Option<Recording> {
    let bytes = match path.extension().is_some_and(|extension| extension == "gz") {
        true => Command::new("gzip").arg("-dc").arg(path).output().ok()?.stdout,
        false => std::fs::read(path).ok()?,
    };
    let name = path.file_name()?.to_string_lossy().split('.').next()?.to_string();
    let mut recording = Recording { name, start: Vec::new(), events: Vec::new(), faults: 0, most: 0 };
    let (mut vmas, mut first) = (BTreeMap::new(), true);
    // What a call has put in waits until all is out that it has taken out, so that nothing overlaps in between.
    let mut new = Vec::new();
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    for line in String::from_utf8_lossy(&bytes).lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        if !matches!(fields[0], "-" | "+") {
            vmas.extend(new.iter().map(|vma: &Range<u64>| (vma.start, vma.end)));
            recording.events.extend(new.drain(..).map(Event::Insert));
            recording.most = recording.most.max(vmas.len());
        }
        match fields[..] {
            ["S", why, ..] => first = why == "start",
            ["V", start, end, ..] if first => {
                recording.start.push(hex(start)?..hex(end)?);
                vmas.insert(hex(start)?, hex(end)?);
            }
            ["-", start, ..] => {
                let start = hex(start)?;
                recording.events.push(Event::Remove(start..vmas.remove(&start)?));
            }
            ["+", start, end, ..] => {
                new.push(hex(start)?..hex(end)?);
            }
            // A fault below the stack makes it grow, which shows at the next call only.
            ["F", _, page, ..] => {
                let addr = hex(page)? << 12;
                if vmas.range(..=addr).next_back().is_some_and(|(_, &end)| addr < end) {
                    match recording.events.last_mut() {
                        Some(Event::Faults(run)) => run.push(addr),
                        _ => recording.events.push(Event::Faults(vec![addr])),
                    }
                    recording.faults += 1;
                }
            }
            _ => {}
        }
    }
    (recording.faults > 0).then_some(recording)
}

/// Look-ups that the replays of a round hold together, at least, unless that would take more than [`REPLAYS`] of them.
const LOOK_UPS: usize = 100_000;
const REPLAYS: usize = 51;

/// Replays a recording again and again, with its look-ups and without; the median of what they add, in ns a look-up. A run of faults is often a single
/// one, shorter than a look at the clock: so the clock is looked at only before and after a whole replay.
pub fn replay<V: Vmas>(recording: &Recording, effort: &Effort) -> f64 {
    let replays = if effort.rounds > 1 { LOOK_UPS.div_ceil(recording.faults).clamp(3, REPLAYS) } else { 1 };
    let mut added: Vec<f64> = (0..replays)
        .map(|_| {
            let changes = replay_once::<V>(recording, |_, _| {});
            let all = replay_once::<V>(recording, |store, run| {
                for addr in run {
                    black_box(store.find(*addr));
                }
            });
            (all - changes) / recording.faults as f64
        })
        .collect();
    added.sort_by(f64::total_cmp);
    added[replays / 2]
}

/// Replays a recording on a fresh store, with `look_up` for each run of faults; how long that took, in ns.
fn replay_once<V: Vmas>(recording: &Recording, look_up: impl Fn(&mut V, &[u64])) -> f64 {
    let mut store = V::new(&recording.start, 0..1 << 47, recording.most);
    let start = now();
    for event in &recording.events {
        match event {
            Event::Faults(run) => look_up(&mut store, black_box(run)),
            Event::Remove(vma) => store.remove(vma.clone()),
            Event::Insert(vma) => store.insert(vma.clone()),
        }
    }
    (now() - start).as_nanos() as f64
}
