//! Files read and written by calls and through a mapping, written back and cut off from power, against every version of their bytes.
//!
//! What msync or fsync was told to be safe is there after a power cut at any later moment: of each sector the version of that moment, or a later one.
//!
//! ```text
//! cargo +nightly fuzz run cache_msync -- -max_total_time=60
//! ```
#![no_main]

use arbitrary::Arbitrary;
use kernmm::addr::VirtAddr;
use kernmm::cache::{SyncMode, WriteBack};
use kernmm::flags::{MapFlags, MsyncFlags, Prot};
use kernmm::memory::{File, Memory, Process, Refused, User, Vm};
use kernmm::mm::MmError;
use kernmm::platform::hosted::{Disk, Failure, Latency, Machine, Operation, Stage, Unsafe};
use kernmm::platform::{CpuId, StoreError};
use kernmm::syscall::{MmapArgs, OpenMode};
use libfuzzer_sys::fuzz_target;

const PAGE: usize = 4096;
const PAGES: usize = 10;
const SECTOR: usize = 512;
const AT: u64 = 0x1000_0000;
const INODE: u64 = 3;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Op {
    Read {
        at: u16,
        len: u16,
    },
    Write {
        at: u16,
        len: u16,
        byte: u8,
    },
    Load {
        at: u16,
        len: u8,
    },
    Store {
        at: u16,
        len: u8,
        byte: u8,
    },
    Truncate {
        size: u16,
    },
    Msync {
        page: u8,
        pages: u8,
    },
    Sync,
    WriteBack {
        page: u8,
        pages: u8,
    },
    Reap,
    /// Forgets the mapping's entries.
    Remap,
    /// The power is cut.
    Crash {
        seed: u64,
    },
    Latency {
        polls: u8,
    },
    Depth {
        requests: u8,
    },
    Fail {
        operation: u8,
        after: u8,
        late: bool,
    },
}

type Mem<'m> = Memory<'m, Machine>;

fuzz_target!(|operations: Vec<Op>| {
    let machine = Machine::pc(4 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let disk = Disk::new(&machine);
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let free = || {
        memory.phys().drain_all(&memory.pin());
        memory.phys().free_pages_total()
    };
    let before = free();
    let contents: Vec<u8> = (0..3 * PAGE + 77).map(|at| (at / 5) as u8).collect();
    disk.put(INODE, &contents);
    disk.start_log();
    {
        let file = vm.open_file(&disk, INODE, OpenMode::ReadWrite).unwrap();
        let process = Process::new(&vm).unwrap();
        let mut world = World::new(&disk, &memory, &vm, &process, &file, contents);
        world.map();
        for op in &operations {
            world.step(op);
            vm.assert_sound(&[&process]);
            assert_eq!(machine.stale_translation(), None, "{op:?}");
        }
        world.end();
    }
    while vm.cache().reap(&memory) != 0 {}
    assert_eq!(free(), before, "frames were lost");
});

struct World<'w, 'v, 'a, 'm> {
    disk: &'w Disk<'m>,
    memory: &'a Mem<'m>,
    vm: &'v Vm<'a, Mem<'m>>,
    process: &'w Process<'v, 'a, Mem<'m>>,
    file: &'w File<'v, 'a, Mem<'m>>,
    /// The bytes, all pages that there can be, and the file's length.
    bytes: Vec<u8>,
    size: usize,
    /// Of each sector what it was since it was last made safe.
    versions: Vec<Vec<[u8; SECTOR]>>,
    /// The lengths since it was last made safe.
    sizes: Vec<usize>,
}

impl<'w, 'v, 'a, 'm> World<'w, 'v, 'a, 'm> {
    fn new(
        disk: &'w Disk<'m>,
        memory: &'a Mem<'m>,
        vm: &'v Vm<'a, Mem<'m>>,
        process: &'w Process<'v, 'a, Mem<'m>>,
        file: &'w File<'v, 'a, Mem<'m>>,
        contents: Vec<u8>,
    ) -> Self {
        let size = contents.len();
        let mut bytes = contents;
        bytes.resize(PAGES * PAGE, 0);
        let versions = vec![vec![]; PAGES * PAGE / SECTOR];
        let mut world = Self { disk, memory, vm, process, file, bytes, size, versions, sizes: vec![size] };
        world.note(0, PAGES * PAGE);
        world
    }

    fn map(&self) {
        let (flags, file) = (MapFlags::SHARED | MapFlags::FIXED, Ok(Some(self.file.map_file())));
        let (len, prot) = ((PAGES * PAGE) as u64, Prot::READ | Prot::WRITE);
        self.process.mmap(&MmapArgs { addr: AT, len, prot, flags, file, offset: 0 }).unwrap();
    }

    /// The sectors of a range as they are in the file: what lies beyond its end is zero there.
    fn note(&mut self, from: usize, to: usize) {
        for sector in from / SECTOR..to.div_ceil(SECTOR) {
            let mut now = [0; SECTOR];
            now.copy_from_slice(&self.bytes[sector * SECTOR..(sector + 1) * SECTOR]);
            let kept = self.size.saturating_sub(sector * SECTOR).min(SECTOR);
            now[kept..].fill(0);
            if self.versions[sector].last() != Some(&now) {
                self.versions[sector].push(now);
            }
        }
    }

    fn resize(&mut self, size: usize) {
        let (from, to) = (self.size.min(size), self.size.max(size));
        self.bytes[from..].fill(0);
        self.size = size;
        self.sizes.push(size);
        self.note(from, to);
        // The disk may have an older version of the last sector, cut as this one is: so may a write that is under way.
        let Some(versions) = self.versions.get_mut(size / SECTOR) else { return };
        let mut older = versions.clone();
        older.iter_mut().for_each(|version| version[size % SECTOR..].fill(0));
        let now = versions.pop();
        versions.extend(older.into_iter().chain(now));
    }

    /// What is in the file now is safe.
    fn made_safe(&mut self, from: usize, to: usize) {
        for sector in from / SECTOR..to.min(PAGES * PAGE).div_ceil(SECTOR) {
            let last = self.versions[sector].pop().unwrap();
            self.versions[sector] = vec![last];
        }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Read { at, len } => {
                let (at, mut out) = (usize::from(at) % (PAGES * PAGE), vec![0; usize::from(len) % 9000]);
                if let Ok(read) = self.file.read_at(at as u64, &mut out) {
                    assert_eq!(out[..read], self.bytes[at..at + read], "{op:?}");
                    assert!(at + read <= self.size.max(at));
                }
            }
            Op::Write { at, len, byte } => self.write(at, len, byte),
            Op::Load { at, len } => {
                for (at, len) in pieces(at, len) {
                    let mut out = vec![0; len];
                    let result = User::new(self.process).load(VirtAddr::from(AT + at as u64), &mut out);
                    if self.reached(at, result) {
                        // What lies beyond the end may be what was stored there, or zero.
                        let inside = self.size.saturating_sub(at).min(len);
                        assert_eq!(out[..inside], self.bytes[at..at + inside], "{op:?}");
                    }
                }
            }
            Op::Store { at, len, byte } => {
                for (at, len) in pieces(at, len) {
                    let bytes = vec![byte; len];
                    let result = User::new(self.process).store(VirtAddr::from(AT + at as u64), &bytes);
                    if self.reached(at, result) {
                        self.bytes[at..at + len].copy_from_slice(&bytes);
                        self.note(at, at + len);
                    }
                }
            }
            Op::Truncate { size } => {
                let size = usize::from(size) % (PAGES * PAGE);
                let grows = size > self.size;
                match self.file.truncate(size as u64) {
                    Ok(()) => self.resize(size),
                    // One that was to shrink has its new length; one that was to grow has lost what lay beyond its end.
                    Err(_) => self.resize(if grows { self.size } else { size }),
                }
            }
            Op::Msync { page, pages } => {
                let (page, pages) = (usize::from(page) % PAGES, usize::from(pages) % PAGES + 1);
                let (from, to) = (page * PAGE, ((page + pages) * PAGE).min(PAGES * PAGE));
                let result = self.process.msync(AT + from as u64, (to - from) as u64, MsyncFlags::SYNC);
                match result {
                    Ok(()) => self.made_safe(from, to),
                    Err(error) => assert!(matches!(error, MmError::Io | MmError::NoSpace), "{op:?}: {error}"),
                }
            }
            Op::Sync => {
                if self.file.sync().is_ok() {
                    self.made_safe(0, PAGES * PAGE);
                    self.sizes = vec![self.size];
                }
            }
            Op::WriteBack { page, pages } => {
                let place = |page: usize| kernmm::addr::PgOff::new(page as u64).unwrap();
                let (first, pages) = (usize::from(page) % PAGES, usize::from(pages) % PAGES);
                let end = place(first + pages);
                let mut job = WriteBack::new(self.file.id(), place(first), end, SyncMode::Start);
                let access = self.vm.pager().entries();
                let _ = self.vm.cache().write_back(self.memory, &access, &mut job).unwrap();
            }
            Op::Reap => drop(self.vm.cache().reap(self.memory)),
            Op::Remap => {
                self.process.munmap(AT, (PAGES * PAGE) as u64).unwrap();
                self.map();
            }
            Op::Crash { seed } => self.crash(seed),
            Op::Latency { polls } => self.disk.set_latency(match polls % 5 {
                0 => Latency::None,
                polls => Latency::Polls(u32::from(polls)),
            }),
            Op::Depth { requests } => {
                self.disk.set_depth(Some(usize::from(requests % 6)).filter(|&requests| requests != 0));
            }
            Op::Fail { operation, after, late } => self.disk.fail(Failure {
                operation: Some([Operation::Read, Operation::Write, Operation::Barrier, Operation::SetSize])
                    .map(|all| all[usize::from(operation % 4)]),
                after: u64::from(after % 8),
                times: 1,
                error: [StoreError::Io, StoreError::NoSpace, StoreError::Busy][usize::from(after / 8 % 3)],
                stage: if late { Stage::Completion } else { Stage::Submission },
            }),
        }
    }

    fn write(&mut self, at: u16, len: u16, byte: u8) {
        let at = usize::from(at) % (PAGES * PAGE);
        let bytes = vec![byte; (usize::from(len) % 9000).min(PAGES * PAGE - at)];
        let result = self.file.write_at(at as u64, &bytes);
        if at + bytes.len() > self.size {
            // What lay beyond the end is zero from now on, whatever came of the write.
            self.resize(self.size);
        }
        let written = result.unwrap_or(0);
        if written == 0 {
            return;
        }
        if at + written > self.size {
            self.resize(at + written);
        }
        self.bytes[at..at + written].copy_from_slice(&bytes[..written]);
        self.note(at, at + written);
    }

    /// Whether an access was made, which it must be unless it lies beyond the end or the disk failed.
    fn reached(&self, at: usize, result: Result<(), Refused>) -> bool {
        match result {
            Ok(()) => {
                assert!(at / PAGE < self.size.div_ceil(PAGE), "{at:#x} lies beyond the end");
                true
            }
            Err(_) => false,
        }
    }

    /// After a power cut each sector is what it was when it was last made safe, or later.
    fn crash(&self, seed: u64) {
        let rest = [Unsafe::Lost, Unsafe::Kept, Unsafe::Torn(seed)];
        let rest = rest[(seed % 3) as usize];
        let files = self.disk.crash_image(self.disk.log_len(), rest).unwrap();
        // A file that grows does so in clusters.
        let (size, sizes) = (files.size(INODE).unwrap() as usize, &self.sizes);
        let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        assert!((least..=most).contains(&&size), "{size} bytes after the power cut, not {least} to {most}");
        let mut bytes = vec![0; PAGES * PAGE];
        files.read(INODE, 0, &mut bytes);
        for (sector, found) in bytes.chunks(SECTOR).enumerate() {
            let versions = &self.versions[sector];
            assert!(
                versions.iter().any(|version| version == found),
                "sector {sector} is after the power cut what it was never since it was made safe ({} versions)",
                versions.len()
            );
        }
    }

    fn end(&mut self) {
        self.disk.clear_failures();
        self.disk.set_latency(Latency::None);
        self.disk.set_depth(None);
        // The first may tell of an earlier failure, and so may the second of what the first has met with.
        let _ = (self.file.sync(), self.file.sync());
        let size = self.size as u64;
        self.file.truncate(size).unwrap();
        self.file.sync().unwrap();
        let contents = self.disk.files().contents(INODE).unwrap();
        assert!(contents == self.bytes[..self.size], "the disk has another file");
        self.process.deactivate();
    }
}

/// An access, cut at the borders of pages.
fn pieces(at: u16, len: u8) -> impl Iterator<Item = (usize, usize)> {
    let (at, len) = (usize::from(at) % (PAGES * PAGE), usize::from(len) % 100 + 1);
    let len = len.min(PAGES * PAGE - at);
    let first = len.min(PAGE - at % PAGE);
    [(at, first), (at + first, len - first)].into_iter().filter(|&(_, len)| len != 0)
}
