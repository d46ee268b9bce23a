//! The power is cut at every point of the disk's log: what a call has said to last is there. And what a store has refused is not said to.

mod common;
mod scene;

use common::{Random, long};
use kernmm::addr::VirtAddr;
use kernmm::cache::CacheError;
use kernmm::flags::MsyncFlags;
use kernmm::memory::{User, Vm};
use kernmm::mm::MmError;
use kernmm::platform::hosted::{Disk, Failure, Latency, Operation, Stage, Unsafe};
use kernmm::platform::{Platform, StoreError};
use scene::*;

const SECTOR: usize = 512;
/// No file is longer.
const MOST: usize = 6 * PAGE as usize;

/// A file as it is after a call.
struct State {
    /// How long the disk's log is then.
    log: usize,
    /// Its bytes, none beyond its end.
    bytes: Vec<u8>,
    /// Whether all of it is said to last.
    is_safe: bool,
}

/// The bytes of a sector, zero beyond the end.
fn sector(bytes: &[u8], number: usize) -> [u8; SECTOR] {
    let mut found = [0; SECTOR];
    let there = bytes.get(number * SECTOR..).unwrap_or_default();
    let len = there.len().min(SECTOR);
    found[..len].copy_from_slice(&there[..len]);
    found
}

/// Whether a sector is what it was in one of some states, or so much of that as another has: an older one where a truncation came later, or where a write
/// that was under way got newer bytes, and only so many as the file had when it began.
fn was(states: &[State], number: usize, found: &[u8; SECTOR]) -> bool {
    let of = |bytes: &[u8], end: usize| sector(&bytes[..end.min(bytes.len())], number) == *found;
    let ends = || states.iter().map(|state| state.bytes.len());
    states.iter().any(|state| ends().any(|end| of(&state.bytes, end)))
}

/// After a cut each sector, and the length, is what it was when the file was last said to last, or later.
fn check_cuts(disk: &Disk<'_>, states: &[State], random: &Random) {
    let end = disk.log_len();
    for cut in 0..=end {
        // What was safe when the log came to the cut, and the call during which it did.
        let first = states.iter().rposition(|state| state.is_safe && state.log <= cut).unwrap();
        let last = states.iter().position(|state| state.log > cut).unwrap_or(states.len() - 1);
        let window = &states[first..=last];
        // A file that grows does so in clusters.
        let sizes = window.iter().map(|state| state.bytes.len());
        let sizes = sizes.clone().min().unwrap()..=sizes.max().unwrap();
        for rest in [Unsafe::Lost, Unsafe::Kept, Unsafe::Torn(random.next()), Unsafe::Torn(random.next())] {
            let left = disk.crash_image(cut, rest).unwrap().contents(INODE).unwrap();
            let after = format!("after a cut at {cut} of {end} ({rest:?})");
            assert!(sizes.contains(&left.len()), "{} bytes {after}, not {sizes:?}", left.len());
            for number in 0..MOST.div_ceil(SECTOR) {
                let found = sector(&left, number);
                assert!(was(window, number, &found), "sector {number} {after} is none of {}", window.len());
            }
        }
    }
}

/// Fails if msync or fsync ends before its barrier, or says that a file lasts whose store has refused to cut it.
#[test]
fn what_is_said_to_last_is_there_after_a_cut_at_any_later_point() {
    let mut told = [0; 3];
    for seed in 0..if long() { 600 } else { 40 } {
        on_machine(|vm, disk| random_calls(vm, disk, &Random::new(seed), &mut told));
    }
    assert!(told.iter().all(|&times| times > 50), "safe by fsync, safe by msync, not safe: {told:?}");
}

fn random_calls<'a, 'm>(vm: &Vm<'a, Mem<'m>>, disk: &'a Disk<'m>, random: &Random, told: &mut [u32; 3]) {
    let mut bytes = contents();
    disk.start_log();
    let (file, process) = (open(vm, disk), process(vm));
    let start = map_file(&process, &file, MOST as u64 / PAGE, RW, SHARED);
    let mut states = vec![State { log: 0, bytes: bytes.clone(), is_safe: true }];
    for call in 0..60_u8 {
        let at = random.below(MOST as u64 - 100) as usize;
        let len = 1 + random.below((MOST - at).min(5000) as u64) as usize;
        let mut is_safe = false;
        match random.below(16) {
            0..=4 => {
                let len = len.min(PAGE as usize - at % PAGE as usize);
                if let Ok(len) = file.write_at(at as u64, &vec![call; len]) {
                    bytes.resize(bytes.len().max(at + len), 0);
                    bytes[at..at + len].fill(call);
                }
            }
            5..=7 => {
                let len =
                    len.min(100).min(bytes.len().saturating_sub(at)).min(PAGE as usize - at % PAGE as usize);
                if len != 0
                    && User::new(&process).store(VirtAddr::from(start + at as u64), &vec![call; len]).is_ok()
                {
                    bytes[at..at + len].fill(call);
                }
            }
            8 => {
                let grows = at > bytes.len();
                // One that was to shrink has its new length, whatever the store said.
                if file.truncate(at as u64).is_ok() || !grows {
                    bytes.resize(at, 0);
                }
            }
            call @ (9 | 10) => {
                is_safe = match call {
                    9 => file.sync().is_ok(),
                    _ => process.msync(start, MOST as u64, MsyncFlags::SYNC).is_ok(),
                };
                told[if is_safe { call as usize - 9 } else { 2 }] += 1;
            }
            11 => drop(vm.write_back(random.below(4) as u32)),
            12 => drop(vm.reap()),
            13 => disk.set_latency(match random.below(3) {
                0 => Latency::None,
                polls => Latency::Polls(polls as u32),
            }),
            14 => disk.fail(Failure {
                operation: Some(
                    [Operation::Write, Operation::Barrier, Operation::SetSize][random.below(3) as usize],
                ),
                after: random.below(2),
                times: 1,
                error: StoreError::Io,
                stage: if random.below(2) == 0 { Stage::Submission } else { Stage::Completion },
            }),
            _ => disk.clear_failures(),
        }
        states.push(State { log: disk.log_len(), bytes: bytes.clone(), is_safe });
    }
    check_cuts(disk, &states, random);
    disk.clear_failures();
}

fn fail(disk: &Disk<'_>, operation: Operation, times: u64) {
    let stage = Stage::Submission;
    disk.fail(Failure { operation: Some(operation), after: 0, times, error: StoreError::Io, stage });
}

/// What a power cut leaves now.
fn left(disk: &Disk<'_>) -> Vec<u8> {
    disk.crash_image(disk.log_len(), Unsafe::Lost).unwrap().contents(INODE).unwrap()
}

/// Waits until nothing is under way.
fn quiet(vm: &Vm<'_, Mem<'_>>) {
    while vm.reap() != 0 {
        vm.source().platform().relax();
    }
}

/// Fails if it is forgotten that a store has not cut its file.
#[test]
fn no_sync_succeeds_as_long_as_the_store_has_more_than_the_file() {
    on_machine(|vm, disk| {
        disk.start_log();
        let (file, process) = (open(vm, disk), process(vm));
        let start = map_file(&process, &file, 1, RW, SHARED);
        fail(disk, Operation::SetSize, 1);
        assert_eq!(file.truncate(PAGE), Err(CacheError::Io));
        assert_eq!(file.size(), Ok(PAGE), "it has its new length");
        file.write_at(0, b"new").unwrap();
        assert_eq!((file.sync(), file.sync()), (Err(CacheError::Io), Err(CacheError::Io)));
        assert_eq!(process.msync(start, PAGE, MsyncFlags::SYNC), Err(MmError::Io));
        assert_eq!(disk.files().size(INODE), Some(contents().len() as u64));
        assert_eq!(&left(disk)[..3], b"new", "all else lasts");
        file.truncate(PAGE).unwrap();
        assert_eq!(file.sync(), Ok(()));
        assert_eq!(left(disk).len() as u64, PAGE);
        // Nobody is left who could cut it: that is said.
        fail(disk, Operation::SetSize, 1);
        assert_eq!(file.truncate(7), Err(CacheError::Io));
        process.munmap(start, PAGE).unwrap();
        vm.source().platform().take_reports();
        drop(file);
        quiet(vm);
        let reports = vm.source().platform().take_reports();
        assert!(reports.contains("file 3: what was cut off behind byte 7 is in its store yet"), "{reports}");
        assert_eq!(open(vm, disk).size(), Ok(PAGE), "it is as long as its store says");
    });
}

/// Fails if a barrier that was refused counts as one.
#[test]
fn a_barrier_that_was_refused_is_asked_for_again() {
    on_machine(|vm, disk| {
        disk.start_log();
        let file = open(vm, disk);
        // Somebody has it open: he is told, and the next sync of all files asks for another.
        file.write_at(0, b"one").unwrap();
        fail(disk, Operation::Barrier, 1);
        assert_eq!(file.sync(), Err(CacheError::Io));
        assert_ne!(&left(disk)[..3], b"one");
        vm.sync();
        assert_eq!(&left(disk)[..3], b"one");
        // Nobody has it open.
        file.write_at(0, b"two").unwrap();
        fail(disk, Operation::Barrier, 7);
        drop(file);
        quiet(vm);
        assert_eq!(&left(disk)[..3], b"two");
        assert_eq!(vm.source().platform().take_reports(), "", "it was made in the end");
        // It is given up in the end.
        let file = open(vm, disk);
        file.write_at(0, b"six").unwrap();
        fail(disk, Operation::Barrier, 8);
        drop(file);
        quiet(vm);
        assert_eq!(&left(disk)[..3], b"two");
        let reports = vm.source().platform().take_reports();
        assert!(reports.contains("file 3: what was written may not last"), "{reports}");
    });
}
