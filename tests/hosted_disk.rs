//! The simulated disk, and files of the host as a store.

mod hand;
#[path = "hosted_disk/host_files.rs"]
mod host_files;
#[path = "hosted_disk/power_cuts.rs"]
mod power_cuts;

use hand::{is_alone, run_alone};
use kernmm::addr::{PAGE_SIZE, PageOrder, Pfn, PgOff};
use kernmm::flags::{GfpFlags, MapFlags, Prot};
use kernmm::memory::{Memory, Process, User, Vm};
use kernmm::platform::hosted::{Disk, Failure, Latency, Machine, Operation, ReachedBy, Request, Stage};
use kernmm::platform::{BackingStore, Cluster, CpuId, FrameBytes, IoState, StoreError, Submitted, Ticket};
use kernmm::syscall::{MmapArgs, OpenMode};

const SECTOR: usize = 512;

/// A machine whose frames are data to be read and written, with a third of them above the direct map.
fn machine() -> Machine {
    let high = kernmm::addr::PhysAddr::new(16 << 20).unwrap();
    Machine::pc(24 << 20).highmem_from(high).build().unwrap()
}

struct Frames<'a>(&'a Memory<'a, Machine>);

impl FrameBytes for Frames<'_> {
    fn read(&self, pfn: Pfn, offset: usize, out: &mut [u8]) -> bool {
        self.0.read_frame(pfn, offset, out).is_ok()
    }

    fn write(&self, pfn: Pfn, offset: usize, bytes: &[u8]) -> bool {
        self.0.write_frame(pfn, offset, bytes).is_ok()
    }
}

/// A store, and frames to read to and write from.
struct Bench<'a, S> {
    store: &'a S,
    memory: &'a Memory<'a, Machine>,
    frames: Vec<Pfn>,
}

impl<'a, S: BackingStore> Bench<'a, S> {
    /// With frames of both sorts.
    fn new(store: &'a S, memory: &'a Memory<'a, Machine>) -> Self {
        let kinds = [GfpFlags::KERNEL, GfpFlags::HIGHUSER, GfpFlags::HIGHUSER, GfpFlags::KERNEL];
        let frames = kinds.map(|gfp| memory.alloc_pages(gfp, PageOrder::ZERO).unwrap()).to_vec();
        let high = frames.iter().filter(|&&pfn| pfn >= memory.platform().highmem_from()).count();
        assert_eq!(high, 2, "above the direct map and below");
        Self { store, memory, frames }
    }

    fn fill(&self, byte: u8) {
        for &pfn in &self.frames {
            self.memory.write_frame(pfn, 0, &[byte; PAGE_SIZE]).unwrap();
        }
    }

    fn bytes(&self, pages: usize) -> Vec<u8> {
        let mut bytes = vec![0; pages * PAGE_SIZE];
        for (page, &pfn) in bytes.chunks_mut(PAGE_SIZE).zip(&self.frames) {
            self.memory.read_frame(pfn, 0, page).unwrap();
        }
        bytes
    }

    fn read(&self, inode: u64, first: u64, pages: usize) -> Result<Submitted, StoreError> {
        let (first, reach) = (PgOff::new(first).unwrap(), Frames(self.memory));
        self.store.read(inode, &Cluster::new(first, &self.frames[..pages], &reach))
    }

    fn write(&self, inode: u64, first: u64, pages: usize, len: u64) -> Result<Submitted, StoreError> {
        let (first, reach) = (PgOff::new(first).unwrap(), Frames(self.memory));
        self.store.write(inode, &Cluster::new(first, &self.frames[..pages], &reach), len)
    }

    /// Writes pages full of a byte, and waits.
    fn put(&self, inode: u64, first: u64, pages: usize, byte: u8) -> Result<(), StoreError> {
        self.fill(byte);
        self.wait(self.write(inode, first, pages, (pages * PAGE_SIZE) as u64))
    }

    fn wait(&self, submitted: Result<Submitted, StoreError>) -> Result<(), StoreError> {
        let Submitted::Pending(ticket) = submitted? else { return Ok(()) };
        loop {
            if let IoState::Ended(result) = self.store.poll(ticket) {
                return result;
            }
        }
    }
}

fn with_disk(test: impl Fn(&Bench<'_, Disk<'_>>, &Disk<'_>)) {
    let machine = machine();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let disk = Disk::new(&machine);
    test(&Bench::new(&disk, &memory), &disk);
}

fn ticket(submitted: Result<Submitted, StoreError>) -> Ticket {
    match submitted {
        Ok(Submitted::Pending(ticket)) => ticket,
        other => panic!("{other:?} instead of a ticket"),
    }
}

fn failure(operation: Operation, after: u64, stage: Stage) -> Failure {
    Failure { operation: Some(operation), after, times: 1, error: StoreError::Io, stage }
}

#[test]
fn pages_are_read_with_zeros_in_holes_and_beyond_the_end() {
    with_disk(|bench, disk| {
        disk.put(5, &[0x31; PAGE_SIZE + 10]);
        disk.set_size(5, 3 * PAGE_SIZE as u64).unwrap();
        bench.fill(0xee);
        assert_eq!(bench.read(5, 0, 4), Ok(Submitted::Done));
        let bytes = bench.bytes(4);
        assert_eq!(bytes[..PAGE_SIZE + 10], [0x31; PAGE_SIZE + 10]);
        assert_eq!(bytes[PAGE_SIZE + 10..], [0; 3 * PAGE_SIZE - 10]);
        bench.fill(0xee);
        assert_eq!(bench.read(6, 0, 1), Ok(Submitted::Done), "there is no such file");
        assert_eq!((bench.bytes(1), disk.size(6)), (vec![0; PAGE_SIZE], Ok(0)));
        assert_eq!(bench.read(5, PgOff::MAX.get(), 4), Ok(Submitted::Done), "far beyond the end");
    });
}

#[test]
fn a_write_changes_its_bytes_alone_and_may_make_the_file_longer() {
    with_disk(|bench, disk| {
        disk.put(1, &[1; 3 * PAGE_SIZE]);
        bench.fill(2);
        assert_eq!(bench.write(1, 1, 2, PAGE_SIZE as u64 + 100), Ok(Submitted::Done));
        let file = disk.files().contents(1).unwrap();
        assert_eq!(file.len(), 3 * PAGE_SIZE);
        assert_eq!(file[..PAGE_SIZE], [1; PAGE_SIZE]);
        assert_eq!(file[PAGE_SIZE..2 * PAGE_SIZE + 100], [2; PAGE_SIZE + 100]);
        assert_eq!(file[2 * PAGE_SIZE + 100..], [1; PAGE_SIZE - 100]);
        assert_eq!(bench.write(1, 9, 1, 7), Ok(Submitted::Done));
        assert_eq!(disk.size(1), Ok(9 * PAGE_SIZE as u64 + 7));
        assert_eq!(disk.files().contents(1).unwrap()[9 * PAGE_SIZE..], [2; 7]);
        assert_eq!(disk.files().inodes().collect::<Vec<_>>(), [1]);
        disk.remove(1);
        assert_eq!((disk.size(1), disk.files().contents(1)), (Ok(0), None));
    });
}

#[test]
fn what_was_cut_off_does_not_come_back() {
    with_disk(|_, disk| {
        disk.put(1, &[7; 2 * PAGE_SIZE]);
        disk.set_size(1, 10).unwrap();
        disk.set_size(1, 2 * PAGE_SIZE as u64).unwrap();
        let mut expected = vec![0; 2 * PAGE_SIZE];
        expected[..10].fill(7);
        assert_eq!(disk.files().contents(1), Some(expected));
    });
}

#[test]
fn a_request_that_takes_polls_touches_the_frames_when_it_ends() {
    with_disk(|bench, disk| {
        disk.put(1, &[3; PAGE_SIZE]);
        disk.set_latency(Latency::Polls(2));
        bench.fill(0);
        let read = ticket(bench.read(1, 0, 1));
        assert_eq!(disk.poll(read), IoState::Pending);
        assert_eq!(disk.poll(read), IoState::Pending);
        assert_eq!((bench.bytes(1), disk.under_way()), (vec![0; PAGE_SIZE], 1));
        assert_eq!(disk.poll(read), IoState::Ended(Ok(())));
        assert_eq!((bench.bytes(1), disk.under_way()), (vec![3; PAGE_SIZE], 0));
        let write = ticket(bench.write(1, 0, 1, PAGE_SIZE as u64));
        bench.fill(4);
        assert_eq!(bench.wait(Ok(Submitted::Pending(write))), Ok(()));
        assert_eq!(
            disk.files().contents(1),
            Some(vec![4; PAGE_SIZE]),
            "the bytes of the end, not of the beginning"
        );
    });
}

#[test]
fn a_request_that_takes_ticks_ends_when_the_clock_says_so() {
    with_disk(|bench, disk| {
        disk.put(1, &[3; PAGE_SIZE]);
        disk.set_latency(Latency::Ticks(10));
        let slow = ticket(bench.read(1, 0, 1));
        disk.advance(4);
        disk.set_latency(Latency::Ticks(3));
        let fast = ticket(bench.write(2, 0, 2, 2 * PAGE_SIZE as u64));
        assert_eq!((disk.poll(slow), disk.poll(fast)), (IoState::Pending, IoState::Pending));
        assert_eq!(disk.under_way(), 2);
        disk.advance(3);
        assert_eq!((disk.poll(slow), disk.poll(fast)), (IoState::Pending, IoState::Ended(Ok(()))));
        disk.advance(2);
        assert_eq!(disk.poll(slow), IoState::Pending);
        disk.advance(1);
        assert_eq!(disk.poll(slow), IoState::Ended(Ok(())));
        assert_eq!(bench.bytes(1), [3; PAGE_SIZE]);
    });
}

#[test]
#[should_panic(expected = "nothing under way has ticket 0")]
fn a_ticket_that_ended_means_nothing() {
    with_disk(|bench, disk| {
        disk.set_latency(Latency::Polls(0));
        let read = ticket(bench.read(1, 0, 1));
        assert_eq!(disk.poll(read), IoState::Ended(Ok(())));
        let _ = disk.poll(read);
    });
}

#[test]
fn the_nth_operation_fails_and_no_other() {
    with_disk(|bench, disk| {
        let results = || -> Vec<bool> {
            let all = [
                bench.read(1, 0, 1).map(drop),
                bench.put(1, 0, 1, 1),
                bench.read(1, 0, 1).map(drop),
                disk.barrier(1).map(drop),
                disk.set_size(1, 5),
            ];
            all.iter().map(Result::is_ok).collect()
        };
        for stage in [Stage::Submission, Stage::Completion] {
            for after in 0..5 {
                disk.fail(Failure { operation: None, after, times: 1, error: StoreError::Io, stage });
                let expected: Vec<bool> = (0..5).map(|at| at != after).collect();
                assert_eq!(results(), expected, "{stage:?}");
            }
            disk.fail(failure(Operation::Read, 1, stage));
            assert_eq!(results(), [true, true, false, true, true]);
            disk.fail(failure(Operation::Barrier, 0, stage));
            assert_eq!(results(), [true, true, true, false, true]);
            disk.fail(failure(Operation::Read, 2, stage));
            disk.clear_failures();
            assert_eq!(results(), [true; 5]);
            assert_eq!(results(), [true; 5]);
        }
        disk.fail(Failure {
            times: 2,
            error: StoreError::NoSpace,
            ..failure(Operation::Write, 0, Stage::Submission)
        });
        let errors = [0; 3].map(|_| bench.put(1, 0, 1, 1));
        assert_eq!(errors, [Err(StoreError::NoSpace), Err(StoreError::NoSpace), Ok(())]);
    });
}

#[test]
fn what_fails_at_its_end_has_changed_nothing_on_the_disk_and_may_have_soiled_frames() {
    with_disk(|bench, disk| {
        disk.put(1, &[5; PAGE_SIZE]);
        disk.set_latency(Latency::Polls(1));
        disk.fail(failure(Operation::Read, 0, Stage::Completion));
        bench.fill(0);
        let read = ticket(bench.read(1, 0, 1));
        assert_eq!(disk.poll(read), IoState::Pending);
        assert_eq!(disk.poll(read), IoState::Ended(Err(StoreError::Io)));
        assert!(bench.bytes(1).iter().all(|&byte| byte != 0 && byte != 5));
        disk.fail(failure(Operation::Write, 0, Stage::Completion));
        assert_eq!(bench.put(1, 0, 2, 6), Err(StoreError::Io));
        assert_eq!(disk.files().contents(1), Some(vec![5; PAGE_SIZE]));
        assert_eq!(disk.operations(), 2);
    });
}

#[test]
fn a_full_disk_takes_what_needs_no_new_room() {
    with_disk(|bench, disk| {
        disk.put(1, &[1; 2 * PAGE_SIZE]);
        disk.set_capacity(Some(3));
        assert_eq!(bench.put(1, 0, 2, 2), Ok(()), "over what is there");
        assert_eq!(bench.put(1, 1, 3, 3), Err(StoreError::NoSpace));
        assert_eq!(disk.files().contents(1), Some(vec![2; 2 * PAGE_SIZE]), "nothing of it");
        disk.set_size(1, 100 * PAGE_SIZE as u64).unwrap();
        assert_eq!(bench.put(1, 50, 1, 3), Ok(()), "a hole needs none");
        disk.set_latency(Latency::Ticks(1));
        assert_eq!(bench.write(1, 60, 1, 1), Err(StoreError::NoSpace));
        disk.set_size(1, 0).unwrap();
        let pending = [0, 1, 2].map(|page| bench.write(2, page, 1, 1).is_ok());
        assert_eq!((pending, bench.write(2, 3, 1, 1)), ([true; 3], Err(StoreError::NoSpace)), "promised");
    });
}

#[test]
fn a_busy_disk_says_so() {
    with_disk(|bench, disk| {
        disk.set_latency(Latency::Ticks(5));
        disk.set_depth(Some(2));
        let first = ticket(bench.read(1, 0, 1));
        assert!(bench.read(1, 1, 1).is_ok());
        assert_eq!(bench.read(1, 2, 1), Err(StoreError::Busy));
        disk.advance(5);
        assert!(bench.read(1, 2, 1).is_ok());
        assert_eq!(disk.poll(first), IoState::Ended(Ok(())));
    });
}

#[test]
fn frames_that_are_nobodys_data_are_refused() {
    with_disk(|bench, disk| {
        let free = bench.memory.alloc_pages(GfpFlags::KERNEL, PageOrder::ZERO).unwrap();
        bench.memory.free_pages(free, PageOrder::ZERO).unwrap();
        let reach = Frames(bench.memory);
        for pfn in [free, Pfn::new(1 << 30).unwrap()] {
            let frames = [bench.frames[0], pfn];
            let cluster = Cluster::new(PgOff::ZERO, &frames, &reach);
            assert_eq!(disk.read(1, &cluster), Err(StoreError::Io));
            assert_eq!(disk.write(1, &cluster, 1), Err(StoreError::Io));
        }
        assert_eq!(disk.operations(), 0);
    });
}

#[test]
fn requests_are_noted() {
    with_disk(|bench, disk| {
        let _ = bench.read(1, 0, 1);
        assert_eq!(disk.take_requests(), [], "nobody asked to note them");
        disk.record_requests();
        let (_, _, _) = (bench.read(3, 7, 4), bench.write(3, 2, 2, 5000), disk.barrier(3));
        disk.set_size(4, 9000).unwrap();
        let request = |operation, inode, first, pages| {
            let first = PgOff::new(first).unwrap();
            Request { operation, inode, first, pages }
        };
        let expected = [
            request(Operation::Read, 3, 7, 4),
            request(Operation::Write, 3, 2, 2),
            request(Operation::Barrier, 3, 0, 0),
            request(Operation::SetSize, 4, 2, 0),
        ];
        assert_eq!((disk.take_requests(), disk.take_requests()), (expected.to_vec(), vec![]));
    });
}

#[test]
fn frames_are_the_devices_until_the_request_ends() {
    with_disk(|bench, disk| {
        let machine = bench.memory.platform();
        let uses = || machine.reached_by(bench.frames[1], PageOrder::ZERO);
        disk.set_latency(Latency::Ticks(1));
        let _ = (bench.read(1, 0, 2), bench.write(1, 4, 2, 2 * PAGE_SIZE as u64));
        assert_eq!(uses(), Some((None, ReachedBy::Device)));
        disk.advance(1);
        assert_eq!(uses(), None);
        bench.memory.free_pages(bench.frames[1], PageOrder::ZERO).unwrap();
    });
    let machine = machine();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let disk = Disk::new(&machine);
    disk.set_latency(Latency::Ticks(1));
    let frames = Bench::new(&disk, &memory).frames;
    let reach = Frames(&memory);
    assert!(disk.read(1, &Cluster::new(PgOff::ZERO, &frames, &reach)).is_ok());
    drop(disk);
    assert_eq!(machine.reached_by(frames[0], PageOrder::ZERO), None, "a disk that is gone uses nothing");
}

/// What must end the run: it does nothing unless it runs in a process of its own.
mod forbidden {
    use super::*;

    #[test]
    fn free_a_frame_that_a_device_uses() {
        if is_alone() {
            with_disk(|bench, disk| {
                disk.set_latency(Latency::Ticks(1));
                assert!(bench.read(1, 0, 2).is_ok());
                println!("about to do it");
                bench.memory.free_pages(bench.frames[1], PageOrder::ZERO).unwrap();
                println!("survived");
            });
        }
    }
}

#[test]
fn what_is_forbidden_ends_the_run() {
    let output = run_alone("forbidden::free_a_frame_that_a_device_uses");
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("about to do it") && !said.contains("survived"), "{said}");
    assert!(!output.status.success() && error.contains("freed while a device uses it"), "{error}");
}
