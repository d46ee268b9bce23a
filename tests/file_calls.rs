//! What read and write calls copy between a file's pages and a process's, wherever these lie and wherever they end.

mod scene;

use kernmm::error::Errno;
use kernmm::flags::Prot;
use kernmm::memory::{File, TransferError, User, Vm};
use kernmm::platform::hosted::{Disk, Latency};
use kernmm::syscall::OpenMode;
use scene::*;

/// Which pages the disk was asked to read or write since, and how many from each.
fn requests(disk: &Disk<'_>) -> Vec<(u64, u64)> {
    disk.take_requests().iter().map(|request| (request.first.get(), request.pages)).collect()
}

/// A file of so many pages of one byte, of which none is in memory.
fn filled<'v, 'a, 'm>(
    vm: &'v Vm<'a, Mem<'m>>,
    disk: &'a Disk<'m>,
    pages: u64,
    byte: u8,
) -> File<'v, 'a, Mem<'m>> {
    disk.put(INODE + 1, &vec![byte; (pages * PAGE) as usize]);
    vm.open_file(disk, INODE + 1, OpenMode::ReadWrite).unwrap()
}

fn whole(file: &File<'_, '_, Mem<'_>>) -> Vec<u8> {
    let mut bytes = vec![0; file.size().unwrap() as usize];
    assert_eq!(file.read_at(0, &mut bytes), Ok(bytes.len()));
    bytes
}

/// Fails if a write is taken for several smaller ones.
#[test]
fn a_page_that_is_written_as_a_whole_is_not_read_first_wherever_the_process_has_its_bytes() {
    for shift in [0, 1, 8, 100, 4095] {
        on_machine(|vm, disk| {
            let process = process(vm);
            let memory = map(&process, 10, RW, PRIVATE);
            let bytes: Vec<u8> = (0..9 * PAGE).map(|at| (at % 253) as u8).collect();
            User::new(&process).store(at(memory + shift), &bytes).unwrap();
            let file = filled(vm, disk, 10, b'f');
            disk.record_requests();
            let from = at(memory + shift);
            assert_eq!(file.write_from_user(&process, 0, from, 8 * PAGE), Ok(8 * PAGE));
            assert_eq!(requests(disk), [], "the process's bytes begin at {shift}");
            // The last page keeps a part of what it has.
            disk.record_requests();
            let rest = at(memory + shift + 8 * PAGE);
            assert_eq!(file.write_from_user(&process, 8 * PAGE, rest, 100), Ok(100));
            assert_eq!(requests(disk), [(8, 1)]);
            file.sync().unwrap();
            let mut expected = vec![b'f'; 10 * PAGE as usize];
            expected[..8 * PAGE as usize + 100].copy_from_slice(&bytes[..8 * PAGE as usize + 100]);
            assert_eq!(disk.files().contents(INODE + 1).unwrap(), expected);
        });
    }
}

/// Fails if what lies behind the bytes that could be had is lost or made up, or if an error comes though some were copied.
#[test]
fn a_write_that_ends_with_the_process_s_memory_leaves_the_rest_of_the_page() {
    for latency in [Latency::None, Latency::Polls(2)] {
        for (place, had) in
            [(0, 1), (0, 1000), (0, 4095), (0, 4096), (0, 4097), (0, 6000), (300, 1000), (300, 5000)]
        {
            on_machine(|vm, disk| {
                disk.set_latency(latency);
                let process = process(vm);
                let memory = map(&process, 3, RW, PRIVATE);
                process.munmap(memory + 2 * PAGE, PAGE).unwrap();
                let bytes: Vec<u8> = (0..had).map(|at| (at % 13) as u8 + b'a').collect();
                let from = memory + 2 * PAGE - had;
                User::new(&process).store(at(from), &bytes).unwrap();
                let file = filled(vm, disk, 4, b'.');
                assert_eq!(file.write_from_user(&process, place, at(from), 3 * PAGE), Ok(had));
                let mut expected = vec![b'.'; 4 * PAGE as usize];
                expected[place as usize..][..had as usize].copy_from_slice(&bytes);
                assert!(whole(&file) == expected, "{had} bytes to {place}");
                let refused = file.write_from_user(&process, place, at(memory + 2 * PAGE), PAGE);
                assert_eq!(refused.map_err(TransferError::errno), Err(Errno::EFAULT));
                assert_eq!(file.size(), Ok(4 * PAGE));
                // Behind the end of a file, and in one in memory alone, zeros are what it had.
                let new = vm.memory_file(0).unwrap();
                for file in [&file, &new] {
                    let end = file.size().unwrap() + 5 * PAGE + place;
                    assert_eq!(file.write_from_user(&process, end, at(from), 3 * PAGE), Ok(had));
                    assert_eq!(file.size(), Ok(end + had));
                    let mut tail = vec![1; (place + had) as usize];
                    assert_eq!(file.read_at(end - place, &mut tail), Ok(tail.len()));
                    assert!(tail[..place as usize].iter().all(|&byte| byte == 0));
                    assert_eq!(tail[place as usize..], bytes);
                    // A mapping shows what lies behind the end in the same page.
                    let pages = (end + had).div_ceil(PAGE);
                    let start = map_file(&process, file, pages, RW, SHARED);
                    let behind = load_all(&process, start + end + had, pages * PAGE - end - had);
                    assert!(behind.iter().all(|&byte| byte == 0), "what a frame held before shows");
                }
            });
        }
    }
}

/// Fails if bytes that cannot be had have the disk read a page, or make room for one.
#[test]
fn a_write_of_bytes_that_cannot_be_had_does_nothing_to_the_file() {
    on_machine(|vm, disk| {
        let process = process(vm);
        let hidden = map(&process, 1, Prot::NONE, PRIVATE);
        let file = filled(vm, disk, 4, b'.');
        disk.record_requests();
        for (place, len) in [(0, PAGE), (100, 100), (9 * PAGE, 10)] {
            let refused = file.write_from_user(&process, place, at(hidden), len);
            assert_eq!(refused.map_err(TransferError::errno), Err(Errno::EFAULT));
        }
        assert_eq!(requests(disk), []);
        assert_eq!(file.size(), Ok(4 * PAGE));
        let stat = vm.cache().stat(vm.source(), file.id()).unwrap();
        assert_eq!((stat.pages, stat.dirty), (0, 0));
    });
}

/// Fails, or never ends, if a file or a table is locked while the process's page is made ready.
#[test]
fn a_file_is_read_to_and_written_from_a_mapping_of_itself() {
    for latency in [Latency::None, Latency::Polls(2)] {
        on_machine(|vm, disk| {
            disk.set_latency(latency);
            let process = process(vm);
            let file = open(vm, disk);
            let start = map_file(&process, &file, 3, RW, SHARED);
            let mut expected = contents();
            // From a page that is not in memory to itself; from one to the next, which is; and with another address.
            assert_eq!(file.write_from_user(&process, 200, at(start + 3), 100), Ok(100));
            expected.copy_within(3..103, 200);
            assert_eq!(file.write_from_user(&process, PAGE, at(start), PAGE), Ok(PAGE));
            expected.copy_within(0..PAGE as usize, PAGE as usize);
            assert_eq!(file.read_to_user(&process, 10, at(start + 2 * PAGE + 7), 500), Ok(500));
            expected.copy_within(10..510, 2 * PAGE as usize + 7);
            assert!(whole(&file) == expected);
            file.sync().unwrap();
            assert!(disk.files().contents(INODE).unwrap() == expected);
        });
    }
}

/// Random calls, with whatever lies in memory or not, against arrays.
#[test]
fn calls_agree_with_arrays_wherever_both_sides_begin() {
    const FILE: u64 = 6 * PAGE;
    const MEMORY: u64 = 4 * PAGE;
    for seed in 1..=12_u64 {
        on_machine(|vm, disk| {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut below = |end: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                ((u128::from(random) * u128::from(end)) >> 64) as u64
            };
            disk.set_latency(if seed % 2 == 0 { Latency::None } else { Latency::Polls(2) });
            let process = process(vm);
            let memory = map(&process, MEMORY / PAGE + 1, RW, PRIVATE);
            process.munmap(memory + MEMORY, PAGE).unwrap();
            let mut file = Some(filled(vm, disk, FILE / PAGE / 2, b'-'));
            let mut in_file = vec![b'-'; (FILE / 2) as usize];
            let mut in_memory = vec![0; MEMORY as usize];
            for step in 0..150_u64 {
                let open = file
                    .take()
                    .unwrap_or_else(|| vm.open_file(disk, INODE + 1, OpenMode::ReadWrite).unwrap());
                let (place, user) = (below(FILE), below(MEMORY));
                let len = if below(3) == 0 { PAGE * below(3) } else { below(2 * PAGE) } + 1;
                let (place, user) =
                    if below(3) == 0 { (place & !(PAGE - 1), user & !(PAGE - 1)) } else { (place, user) };
                let fits = len.min(MEMORY - user);
                match below(8) {
                    0..=2 => {
                        let fill = vec![step as u8; fits as usize];
                        User::new(&process).store(at(memory + user), &fill).unwrap();
                        in_memory[user as usize..][..fits as usize].copy_from_slice(&fill);
                    }
                    3 | 4 => {
                        assert_eq!(open.write_from_user(&process, place, at(memory + user), len), Ok(fits));
                        let end = (place + fits) as usize;
                        in_file.resize(in_file.len().max(end), 0);
                        in_file[place as usize..end]
                            .copy_from_slice(&in_memory[user as usize..][..fits as usize]);
                    }
                    5 | 6 => {
                        let there = (in_file.len() as u64).saturating_sub(place).min(fits);
                        assert_eq!(open.read_to_user(&process, place, at(memory + user), len), Ok(there));
                        let read = in_file.get(place as usize..).unwrap_or_default();
                        in_memory[user as usize..][..there as usize].copy_from_slice(&read[..there as usize]);
                    }
                    // All goes to the disk and out of memory.
                    _ => {
                        open.sync().unwrap();
                        assert_eq!(disk.files().contents(INODE + 1).unwrap(), in_file);
                        drop(open);
                        while vm.reap() != 0 {
                            kernmm::platform::Platform::relax(vm.source().platform());
                        }
                        continue;
                    }
                }
                assert!(load_all(&process, memory, MEMORY) == in_memory, "step {step}");
                assert!(whole(&open) == in_file, "step {step}");
                file = Some(open);
            }
            drop(process);
            // With what is dirty still so.
            vm.assert_sound::<spin::RwLock<()>>(&[]);
        });
    }
}
