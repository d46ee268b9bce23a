//! What a power cut leaves.

use kernmm::platform::hosted::Unsafe;

use super::*;

/// The bytes that stand at the beginning of each sector.
fn sectors(bytes: &[u8]) -> Vec<u8> {
    let whole = bytes.chunks(SECTOR).all(|sector| sector.iter().all(|&byte| byte == sector[0]));
    assert!(whole, "a sector is written as a whole or not at all");
    bytes.chunks(SECTOR).map(|sector| sector[0]).collect()
}

#[test]
fn a_power_cut_keeps_what_a_barrier_made_safe_and_any_part_of_the_rest() {
    with_disk(|bench, disk| {
        disk.put(1, &[1; 4 * PAGE_SIZE]);
        assert_eq!(disk.crash_image(0, Unsafe::Kept).map(drop), None, "no log yet");
        disk.start_log();
        bench.put(1, 0, 1, 2).unwrap();
        let _ = disk.barrier(1).unwrap();
        let safe = disk.log_len();
        bench.put(1, 0, 2, 3).unwrap();
        bench.put(1, 1, 1, 4).unwrap();
        let end = disk.log_len();
        assert_eq!((safe, end), (2, 4));
        let image = |cut, rest| sectors(&disk.crash_image(cut, rest).unwrap().contents(1).unwrap());
        let pages = |bytes: [u8; 4]| -> Vec<u8> { bytes.iter().flat_map(|&byte| [byte; 8]).collect() };
        assert_eq!(image(end, Unsafe::Lost), pages([2, 1, 1, 1]));
        assert_eq!(image(end, Unsafe::Kept), pages([3, 4, 1, 1]));
        assert_eq!(image(safe, Unsafe::Kept), pages([2, 1, 1, 1]));
        assert_eq!(image(3, Unsafe::Kept), pages([3, 3, 1, 1]));
        assert_eq!(image(safe - 1, Unsafe::Lost), pages([1; 4]), "before the barrier ended nothing is safe");
        let mut seen = [0; 6];
        for seed in 0..200 {
            let torn = image(end, Unsafe::Torn(seed));
            assert_eq!(torn, image(end, Unsafe::Torn(seed)), "the same each time");
            assert!(torn[..8].iter().all(|byte| [2, 3].contains(byte)));
            assert!(torn[8..16].iter().all(|byte| [1, 3, 4].contains(byte)));
            assert_eq!(torn[16..], [1; 16]);
            torn.iter().for_each(|&byte| seen[usize::from(byte)] += 1);
            let (mixed, early) = (image(1, Unsafe::Torn(seed)), &torn[..8]);
            seen[5] += usize::from(mixed[..8].contains(&1) && early.contains(&3) && early.contains(&2));
        }
        assert!(seen[2..].iter().all(|&times| times > 20), "sectors of each write survive: {seen:?}");
    });
}

#[test]
fn a_power_cut_leaves_no_change_of_length_without_those_before_it() {
    with_disk(|_, disk| {
        disk.put(1, &[7; 3 * PAGE_SIZE]);
        disk.start_log();
        disk.set_size(1, 1_540).unwrap();
        disk.set_size(1, 9_669).unwrap();
        let mut left = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let image = disk.crash_image(disk.log_len(), Unsafe::Torn(seed)).unwrap();
            let bytes = image.contents(1).unwrap();
            // What the first has cut off is zero, or neither of them came.
            let kept = if bytes.len() == 3 * PAGE_SIZE { bytes.len() } else { 1_540 };
            let (kept, zero) = bytes.split_at(kept);
            assert!(kept.iter().all(|&byte| byte == 7) && zero.iter().all(|&byte| byte == 0), "{seed}");
            left.insert(bytes.len());
        }
        assert_eq!(left, [1_540, 9_669, 3 * PAGE_SIZE].into());
    });
}

#[test]
fn a_barrier_is_for_its_file_and_for_what_has_ended() {
    with_disk(|bench, disk| {
        disk.start_log();
        let kept = |inode| {
            let image = disk.crash_image(disk.log_len(), Unsafe::Lost).unwrap();
            image.size(inode).unwrap_or(0)
        };
        bench.put(1, 0, 1, 1).unwrap();
        bench.put(2, 0, 1, 1).unwrap();
        let _ = disk.barrier(1).unwrap();
        assert_eq!((kept(1), kept(2)), (PAGE_SIZE as u64, 0), "the other file's");

        // A write that is under way when the barrier is asked for, and ends before it.
        disk.set_latency(Latency::Polls(0));
        let write = ticket(bench.write(2, 4, 1, 1));
        let early = ticket(disk.barrier(2));
        assert_eq!(disk.poll(write), IoState::Ended(Ok(())));
        assert_eq!(kept(2), 0, "the barrier has not ended");
        assert_eq!(disk.poll(early), IoState::Ended(Ok(())));
        assert_eq!(kept(2), PAGE_SIZE as u64);
        let late = ticket(disk.barrier(2));
        assert_eq!(disk.poll(late), IoState::Ended(Ok(())));
        assert_eq!(kept(2), 4 * PAGE_SIZE as u64 + 1);

        // One that fails makes nothing safe.
        disk.set_latency(Latency::None);
        bench.put(1, 0, 2, 1).unwrap();
        disk.fail(failure(Operation::Barrier, 0, Stage::Completion));
        assert_eq!(disk.barrier(1), Err(StoreError::Io));
        assert_eq!(kept(1), PAGE_SIZE as u64);

        disk.set_size(1, 100).unwrap();
        assert_eq!(kept(1), PAGE_SIZE as u64, "nor is a new length safe");
        let _ = disk.barrier(1).unwrap();
        assert_eq!(kept(1), 100);
        disk.remove(2);
        disk.put(3, &[1; 10]);
        assert_eq!((kept(2), kept(3)), (0, 10), "what a test does is never lost");
    });
}

#[test]
fn a_machine_starts_again_with_what_the_power_cut_left() {
    let left = {
        let machine = machine();
        let _boot = machine.cpu(CpuId::BOOT).unwrap();
        let memory = Memory::on(&machine).unwrap();
        let disk = Disk::new(&machine);
        let bench = Bench::new(&disk, &memory);
        disk.start_log();
        bench.put(9, 0, 2, 0x41).unwrap();
        let _ = disk.barrier(9).unwrap();
        bench.put(9, 0, 2, 0x42).unwrap();
        disk.crash_image(disk.log_len(), Unsafe::Lost).unwrap()
    };
    let machine = machine();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let disk = Disk::with_files(&machine, left);
    let bench = Bench::new(&disk, &memory);
    assert_eq!(bench.read(9, 1, 1), Ok(Submitted::Done));
    assert_eq!((bench.bytes(1), disk.size(9)), (vec![0x41; PAGE_SIZE], Ok(2 * PAGE_SIZE as u64)));
}
