//! Files of the host as a store.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use kernmm::cache::CacheError;
use kernmm::platform::hosted::HostFiles;

use super::*;

/// A folder that is removed again.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kernmm-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn files_of_the_host_are_read_and_written_in_place() {
    let machine = machine();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let (folder, files) = (Folder::new("in-place"), HostFiles::new());
    let bench = Bench::new(&files, &memory);
    let path = folder.0.join("file");
    std::fs::write(&path, vec![0x61; PAGE_SIZE + 5]).unwrap();
    let inode = files.open(&path).unwrap();
    assert_eq!(files.size(inode), Ok(PAGE_SIZE as u64 + 5));
    bench.fill(0xee);
    assert_eq!(bench.read(inode, 0, 3), Ok(Submitted::Done));
    let bytes = bench.bytes(3);
    assert_eq!(bytes[..PAGE_SIZE + 5], [0x61; PAGE_SIZE + 5]);
    assert_eq!(bytes[PAGE_SIZE + 5..], [0; 2 * PAGE_SIZE - 5]);

    bench.fill(0x62);
    assert_eq!(bench.write(inode, 1, 2, PAGE_SIZE as u64 + 3), Ok(Submitted::Done));
    assert_eq!(files.barrier(inode), Ok(Submitted::Done));
    let mut expected = vec![0x62; 2 * PAGE_SIZE + 3];
    expected[..PAGE_SIZE].fill(0x61);
    assert_eq!(std::fs::read(&path).unwrap(), expected);
    assert_eq!(files.set_size(inode, 3), Ok(()));
    assert_eq!(std::fs::read(&path).unwrap(), b"aaa");
    assert_eq!(files.set_size(inode, 10), Ok(()));
    assert_eq!(std::fs::read(&path).unwrap(), b"aaa\0\0\0\0\0\0\0");

    let made = files.create(folder.0.join("new")).unwrap();
    assert_ne!(made, inode);
    assert_eq!(bench.write(made, 0, 1, 2), Ok(Submitted::Done));
    assert_eq!(std::fs::read(folder.0.join("new")).unwrap(), b"bb");
}

#[test]
#[cfg(unix)]
fn one_file_has_one_number_as_long_as_it_is_open() {
    let (folder, files) = (Folder::new("one-number"), HostFiles::new());
    let (path, link) = (folder.0.join("file"), folder.0.join("link"));
    std::fs::write(&path, b"x").unwrap();
    std::fs::hard_link(&path, &link).unwrap();
    let inode = files.open(&path).unwrap();
    assert_eq!(files.open(&link).unwrap(), inode);
    files.close(inode);
    assert_eq!(files.size(inode), Ok(1), "open once more");
    files.close(inode);
    assert_eq!((files.size(inode), files.barrier(inode)), (Err(StoreError::Io), Err(StoreError::Io)));
    assert_ne!(files.open(&path).unwrap(), inode);
    assert!(files.open(folder.0.join("none")).is_err());
}

#[test]
#[cfg(target_os = "linux")]
fn what_the_host_refuses_is_told() {
    let machine = machine();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let files = HostFiles::new();
    let bench = Bench::new(&files, &memory);
    let full = files.open("/dev/full").unwrap();
    assert_eq!(bench.write(full, 0, 1, 1), Err(StoreError::NoSpace));
    // Nobody may write to a running program, not even root.
    let program = files.open(std::env::current_exe().unwrap()).unwrap();
    assert_eq!(bench.read(program, 0, 1), Ok(Submitted::Done));
    assert_eq!(bench.bytes(1)[..4], *b"\x7fELF");
    assert_eq!(bench.write(program, 0, 1, 1), Err(StoreError::Io));
    assert_eq!(bench.read(77, 0, 1), Err(StoreError::Io), "there is no such number");
}

/// Calls the cache's work until nothing is under way.
fn reap(vm: &Vm<'_, Memory<'_, Machine>>) {
    while vm.reap() != 0 {}
}

#[test]
#[cfg(unix)]
fn what_is_closed_before_it_is_written_is_written_all_the_same() {
    let machine = machine();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let (folder, files) = (Folder::new("closed"), HostFiles::new());
    let path = folder.0.join("file");
    std::fs::write(&path, b"old").unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    // A mapping has stored something, and all is closed.
    let inode = files.open(&path).unwrap();
    let file = vm.open_file(&files, inode, OpenMode::ReadWrite).unwrap();
    let process: Process<'_, '_, _> = Process::new(&vm).unwrap();
    let args = MmapArgs::file(file.map_file(), 3, Prot::READ | Prot::WRITE, MapFlags::SHARED);
    let start = process.mmap(&args).unwrap();
    User::new(&process).store(start, b"n").unwrap();
    drop(file);
    files.close(inode);
    process.munmap(start.get(), 3).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    // Opened before it is written it is the same file, with the same bytes.
    assert_eq!(files.open(&path).unwrap(), inode);
    let file = vm.open_file(&files, inode, OpenMode::ReadWrite).unwrap();
    let mut bytes = [0; 3];
    assert_eq!((file.read_at(0, &mut bytes), &bytes), (Ok(3), b"nld"));
    file.write_at(2, b"w").unwrap();
    drop(file);
    files.close(inode);
    files.close(inode);
    reap(&vm);
    assert_eq!(std::fs::read(&path).unwrap(), b"nlw");
    assert_eq!(files.size(inode), Err(StoreError::Io), "the number means nothing any more");
    assert_eq!(machine.take_reports(), "");
}

/// Runs a test with a file of the host, that a page cache has written to, and closed before that was written.
#[cfg(unix)]
fn with_closed_file(
    name: &str,
    test: impl for<'v, 'a, 'm> FnOnce(&'v Vm<'a, Memory<'m, Machine>>, &'a HostFiles, u64, &Path),
) {
    let machine = machine();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let (folder, files) = (Folder::new(name), HostFiles::new());
    let path = folder.0.join("file");
    std::fs::write(&path, b"old").unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let inode = files.open(&path).unwrap();
    let file = vm.open_file(&files, inode, OpenMode::ReadWrite).unwrap();
    file.write_at(0, b"late").unwrap();
    drop(file);
    files.close(inode);
    test(&vm, &files, inode, &path);
    reap(&vm);
}

/// Fails if what is created in the place of a closed file is that file, or what was left to be written of that is written to it.
#[test]
#[cfg(unix)]
fn a_closed_file_that_is_created_anew_has_nothing_of_the_old_one() {
    with_closed_file("anew", |vm, files, inode, path| {
        let made = files.create(path).unwrap();
        assert_ne!(made, inode);
        let file = vm.open_file(files, made, OpenMode::ReadWrite).unwrap();
        assert_eq!(file.size(), Ok(0));
        reap(vm);
        assert_eq!(std::fs::read(path).unwrap(), b"");
        file.write_at(0, b"x").unwrap();
        file.sync().unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"x");
        files.close(made);
    });
}

/// Fails if who has a file open in a page cache, that was closed and is created anew, writes to the new one, or is not told that it is another.
#[test]
#[cfg(unix)]
fn who_has_a_closed_file_open_yet_is_told_when_it_is_created_anew() {
    with_closed_file("told", |vm, files, inode, path| {
        let file = vm.open_file(files, inode, OpenMode::ReadWrite).unwrap();
        let made = files.create(path).unwrap();
        assert_eq!((file.sync(), std::fs::read(path).unwrap()), (Err(CacheError::Io), vec![]));
        assert_eq!(file.truncate(2), Err(CacheError::Io));
        drop(file);
        let new = vm.open_file(files, made, OpenMode::ReadWrite).unwrap();
        assert_eq!(new.size(), Ok(0));
        files.close(made);
    });
}

/// Bytes of frames that are there when a test says so.
#[cfg(unix)]
struct Late {
    come: Sender<()>,
    answer: Mutex<Receiver<()>>,
}

#[cfg(unix)]
impl FrameBytes for Late {
    fn read(&self, _: Pfn, _: usize, out: &mut [u8]) -> bool {
        self.come.send(()).unwrap();
        self.answer.lock().unwrap().recv().unwrap();
        out.fill(0x6f);
        true
    }

    fn write(&self, _: Pfn, _: usize, _: &[u8]) -> bool {
        false
    }
}

/// Fails if a file is emptied before who is writing to the old one has written.
#[test]
#[cfg(unix)]
fn a_write_to_a_closed_file_is_over_before_it_is_created_anew() {
    let (folder, files) = (Folder::new("late"), HostFiles::new());
    let path = folder.0.join("file");
    std::fs::write(&path, b"old").unwrap();
    let inode = files.open(&path).unwrap();
    files.hold(inode);
    files.close(inode);
    let ((come, comes), (answers, answer)) = (channel(), channel());
    let (late, frames) = (Late { come, answer: Mutex::new(answer) }, [Pfn::ZERO]);
    std::thread::scope(|scope| {
        let write = || files.write(inode, &Cluster::new(PgOff::ZERO, &frames, &late), 9);
        let writes = scope.spawn(write);
        comes.recv().unwrap();
        let creates = scope.spawn(|| files.create(&path).unwrap());
        // So long the other has to empty it too early.
        std::thread::sleep(Duration::from_millis(50));
        answers.send(()).unwrap();
        assert_eq!(writes.join().unwrap(), Ok(Submitted::Done));
        assert_ne!(creates.join().unwrap(), inode);
    });
    assert_eq!(std::fs::read(&path).unwrap(), b"");
    files.release(inode);
}
