//! Files of the host as a store.

use std::path::PathBuf;

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

    // What comes in its place has nothing of what was left to be written.
    let inode = files.open(&path).unwrap();
    vm.open_file(&files, inode, OpenMode::ReadWrite).unwrap().write_at(0, b"late").unwrap();
    files.close(inode);
    let made = files.create(&path).unwrap();
    assert_ne!(made, inode);
    let file = vm.open_file(&files, made, OpenMode::ReadWrite).unwrap();
    assert_eq!(file.size(), Ok(0));
    reap(&vm);
    assert_eq!(std::fs::read(&path).unwrap(), b"");
    file.write_at(0, b"x").unwrap();
    file.sync().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"x");

    // Who has the old one open yet is told that it is gone.
    files.close(made);
    files.create(&path).unwrap();
    file.write_at(0, b"y").unwrap();
    assert_eq!((file.sync(), std::fs::read(&path).unwrap()), (Err(CacheError::Io), vec![]));
    drop(file);
    reap(&vm);
}
