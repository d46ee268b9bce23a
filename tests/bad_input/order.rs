//! Which of several errors it is.

use kernmm::addr::VirtAddr;
use kernmm::error::Errno;
use kernmm::flags::{MapFlags, MlockallFlags, MremapFlags, Prot};
use kernmm::mm::{FileKind, FileRef, MmError, Rlimits};
use kernmm::syscall::{self, MapFile, MmapArgs, OpenMode, Seals};

use super::digest::digest;
use super::ours::{HEAP, MAPPED, with_space};
use super::space::{PAGE, anonymous};
use super::tries::{MAX, TASK};

/// The order in which Linux checks, from its documentation of results.
#[test]
fn mmap_checks_in_the_order_of_linux() {
    with_space(|mm, tables| {
        let good = anonymous(0, 1, Prot::READ, MapFlags::empty());
        let file = FileRef::new(1, 1, FileKind::Memory).unwrap();
        let opened = |mode| Ok(Some(MapFile::new(file, mode)));
        let shared_write = MmapArgs {
            flags: MapFlags::SHARED,
            prot: Prot::READ | Prot::WRITE,
            file: opened(OpenMode::ReadOnly),
            ..good
        };
        let bad_fd = Err(MmError::BadDescriptor);
        let noexec = Ok(Some(MapFile { noexec: true, ..MapFile::new(file, OpenMode::ReadOnly) }));
        let sealed = Ok(Some(MapFile { seals: Seals::WRITE, ..MapFile::new(file, OpenMode::ReadWrite) }));
        let device = Ok(Some(MapFile { mappable: false, ..MapFile::new(file, OpenMode::ReadOnly) }));
        let validate = MapFlags::from_bits_retain(3);
        let private = MapFlags::PRIVATE;
        let cases = [
            (MmapArgs { flags: private, file: bad_fd, offset: 1, ..good }, Errno::EINVAL),
            (MmapArgs { flags: private, file: bad_fd, len: 0, ..good }, Errno::EBADF),
            (MmapArgs { len: 0, ..good }, Errno::EINVAL),
            (MmapArgs { len: MAX, ..good }, Errno::ENOMEM),
            (MmapArgs { len: TASK + PAGE, ..good }, Errno::ENOMEM),
            (MmapArgs { addr: TASK + 1, flags: good.flags | MapFlags::FIXED, ..good }, Errno::ENOMEM),
            (MmapArgs { addr: MAPPED + 1, flags: good.flags | MapFlags::FIXED, ..good }, Errno::EINVAL),
            (MmapArgs { addr: 0, flags: good.flags | MapFlags::FIXED, ..good }, Errno::EPERM),
            (MmapArgs { addr: MAPPED, flags: good.flags | MapFlags::FIXED_NOREPLACE, ..good }, Errno::EEXIST),
            (MmapArgs { flags: validate | MapFlags::SYNC, ..shared_write }, Errno::EOPNOTSUPP),
            (
                MmapArgs {
                    flags: validate | MapFlags::FIXED_NOREPLACE,
                    addr: MAPPED + PAGE * 32,
                    ..shared_write
                },
                Errno::EOPNOTSUPP,
            ),
            (shared_write, Errno::EACCES),
            (
                MmapArgs { flags: private, file: opened(OpenMode::WriteOnly), prot: Prot::NONE, ..good },
                Errno::EACCES,
            ),
            (MmapArgs { flags: private, file: noexec, prot: Prot::EXEC, ..good }, Errno::EPERM),
            (MmapArgs { flags: private, file: device, ..good }, Errno::ENODEV),
            (
                MmapArgs { flags: private | MapFlags::GROWSDOWN, file: opened(OpenMode::ReadOnly), ..good },
                Errno::EINVAL,
            ),
            (MmapArgs { flags: MapFlags::empty(), file: opened(OpenMode::ReadOnly), ..good }, Errno::EINVAL),
            (MmapArgs { file: sealed, ..shared_write }, Errno::EPERM),
            (MmapArgs { flags: validate | MapFlags::ANONYMOUS, ..good }, Errno::EINVAL),
            (
                MmapArgs { flags: MapFlags::SHARED | MapFlags::ANONYMOUS | MapFlags::GROWSDOWN, ..good },
                Errno::EINVAL,
            ),
        ];
        for (args, errno) in cases {
            let before = digest(mm);
            assert_eq!(syscall::mmap(mm, tables, &args).map_err(MmError::errno), Err(errno), "{args:x?}");
            assert_eq!(digest(mm), before);
        }
        let huge_offset = MmapArgs { flags: private, file: opened(OpenMode::ReadOnly), offset: MAX, ..good };
        assert_eq!(syscall::mmap2(mm, tables, &huge_offset), Err(MmError::OffsetOverflow));
    });
}

#[test]
fn a_lock_limit_of_nothing_beats_a_limit_that_is_reached() {
    with_space(|mm, tables| {
        let locked = anonymous(0, 2, Prot::READ, MapFlags::LOCKED);
        mm.set_rlimits(Rlimits { memlock: PAGE, ..*mm.rlimits() });
        assert_eq!(syscall::mmap(mm, tables, &locked), Err(MmError::LockLimit));
        assert_eq!(syscall::mlock(mm, tables, MAPPED, 2 * PAGE), Err(MmError::LockLimitNoMemory));
        mm.set_rlimits(Rlimits { memlock: 0, ..*mm.rlimits() });
        assert_eq!(syscall::mmap(mm, tables, &locked), Err(MmError::MayNotLock));
        assert_eq!(syscall::mlock(mm, tables, MAPPED, 0), Err(MmError::MayNotLock));
        assert_eq!(syscall::mlockall(mm, tables, MlockallFlags::CURRENT), Err(MmError::MayNotLock));
        assert_eq!(syscall::mlockall(mm, tables, MlockallFlags::ONFAULT), Err(MmError::BadFlags));
    });
}

#[test]
fn an_alias_does_not_take_the_place_of_its_source() {
    with_space(|mm, tables| {
        let args = MmapArgs {
            addr: MAPPED + 0x100 * PAGE,
            len: 4 * PAGE,
            prot: Prot::READ,
            flags: MapFlags::SHARED | MapFlags::ANONYMOUS | MapFlags::FIXED,
            file: Ok(None),
            offset: 0,
        };
        let source = syscall::mmap(mm, tables, &args).unwrap().get();
        let fixed = MremapFlags::MAYMOVE | MremapFlags::FIXED;
        let before = digest(mm);
        let result = syscall::mremap(mm, tables, source, 0, 2 * PAGE, fixed, source);
        assert_eq!(result, Err(MmError::NotMappedFault));
        assert_eq!(digest(mm), before);
        // Behind its first page it may.
        let result = syscall::mremap(mm, tables, source, 0, 2 * PAGE, fixed, source + PAGE);
        assert_eq!(result, Ok(VirtAddr::from(source + PAGE)));
    });
}

#[test]
fn mincore_knows_nothing_beyond_the_users_addresses() {
    with_space(|mm, tables| {
        // No byte of the vector can be written, so that whatever is answered is EFAULT.
        let mut ask = |addr, len| syscall::mincore(mm, tables, addr, len, [].as_mut_slice());
        assert_eq!(ask(TASK - PAGE, PAGE), Err(MmError::BadVector));
        assert_eq!(ask(TASK - PAGE, PAGE + 1), Err(MmError::Wraps));
        assert_eq!(ask(TASK, 0), Ok(()));
        assert_eq!(ask(TASK, 1), Err(MmError::Wraps));
    });
}

#[test]
fn a_heap_that_cannot_shrink_is_an_error() {
    with_space(|mm, tables| {
        assert_eq!(syscall::sbrk(mm, tables, 1), Ok(VirtAddr::from(HEAP)));
        let before = digest(mm);
        assert_eq!(syscall::sbrk(mm, tables, -2), Err(MmError::NoGap));
        assert_eq!(digest(mm), before);
        assert_eq!(syscall::sbrk(mm, tables, -1), Ok(VirtAddr::from(HEAP + 1)));
    });
}
