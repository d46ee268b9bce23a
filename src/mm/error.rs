//! Why a call was refused.

use crate::error::Errno;

macro_rules! causes {
    ($($name:ident => $errno:ident, $what:literal;)*) => {
        /// Why a call of the mmap family was refused.
        ///
        /// Causes that Linux answers with one number stay apart.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[non_exhaustive]
        pub enum MmError {
            $(#[doc = concat!($what, " `", stringify!($errno), "`.")] $name,)*
        }

        impl MmError {
            /// All causes.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The Linux error number.
            pub const fn errno(self) -> Errno {
                match self { $(Self::$name => Errno::$errno,)* }
            }

            const fn text(self) -> &'static str {
                match self { $(Self::$name => $what,)* }
            }
        }
    };
}

causes! {
    Unaligned => EINVAL, "An address or offset does not lie on a page boundary.";
    ZeroLength => EINVAL, "The length is 0.";
    OutOfRange => EINVAL, "The range leaves the user's addresses.";
    DeviceRange => EINVAL, "The device has no such memory, or it cannot be mapped there.";
    Wraps => ENOMEM, "The range wraps around the end of the addresses.";
    BadFlags => EINVAL, "A flag is unknown, or flags contradict each other.";
    BadProt => EINVAL, "The protection has unknown bits.";
    BadAdvice => EINVAL, "The advice is unknown, or this memory cannot follow it.";
    BadDescriptor => EBADF, "The file descriptor names no open file.";
    OffsetOverflow => EOVERFLOW, "The offset and the length leave the file's addresses.";
    TooManyVmas => ENOMEM, "The limit on the number of VMAs is reached.";
    NoGap => ENOMEM, "No free range is long enough.";
    BelowMinimum => EPERM, "The address lies below the lowest that may be mapped.";
    Exists => EEXIST, "Something is mapped there already.";
    MayNotLock => EPERM, "Memory may not be locked: the limit is 0.";
    LockLimit => EAGAIN, "The limit on locked memory is reached.";
    LockLimitNoMemory => ENOMEM, "The limit on locked memory is reached (mlock and mlockall).";
    UnsupportedFlag => EOPNOTSUPP, "The file does not support a flag that was to be validated.";
    NotReadable => EACCES, "The file is not open for reading.";
    NotWritable => EACCES, "The file is not open for writing.";
    NoExec => EPERM, "The file may not be executed.";
    NotMappable => ENODEV, "The file cannot be mapped.";
    Sealed => EPERM, "The file is sealed against writing.";
    AddressSpaceLimit => ENOMEM, "RLIMIT_AS or RLIMIT_DATA is reached.";
    Overcommit => ENOMEM, "The memory to be committed is not there.";
    NoHugePages => ENOMEM, "No huge pages are set aside.";
    OutOfSlots => ENOMEM, "No VMA is free.";
    OutOfSpaces => ENOMEM, "No address space is free.";
    OutOfFiles => ENOMEM, "No place is free for the file that shared memory would be.";
    FileTooLarge => ENOMEM, "No file can be as large as the shared memory would be.";
    FrameUnreachable => ENOMEM, "The platform does not let the bytes of a frame be reached.";
    BadSegment => EINVAL, "A segment of a program wraps, leaves the addresses, or does not fit its file (exec).";
    InUse => EINVAL, "The address space that is to be filled is not empty.";
    OutOfMemory => ENOMEM, "No page or table is free.";
    NotMapped => ENOMEM, "Part of the range is not mapped.";
    NotMappedFault => EFAULT, "The range to move is not mapped, or spans several VMAs.";
    Denied => EACCES, "The mapping may not be given this access.";
    NotGrowsDown => EINVAL, "The VMA does not grow down (or up).";
    Overlap => EINVAL, "The old and the new range overlap.";
    NotDivisible => EINVAL, "The VMA is one piece: only all of it can be unmapped, moved or changed.";
    NotExpandable => EFAULT, "The VMA may not grow.";
    CannotExpand => ENOMEM, "The VMA cannot grow where it is.";
    PrivateAlias => EINVAL, "Private memory cannot be mapped a second time.";
    LockedMemory => EINVAL, "Locked memory cannot be given up (madvise).";
    LockedBusy => EBUSY, "Locked memory cannot be invalidated (msync).";
    Unreachable => EFAULT, "A page cannot be made resident.";
    BadVector => EFAULT, "The result vector is not the caller's to write.";
    StackLimit => ENOMEM, "The stack would exceed RLIMIT_STACK.";
    StackGap => ENOMEM, "The stack would come too near to a mapping below it.";
    TryAgain => EAGAIN, "What is needed is not free now: a page to lock, a VMA to split (mlock, madvise).";
    NoTables => ENOMEM, "The address space has no page tables any more.";
    UnknownCpu => EINVAL, "The CPU's number is too high for its TLB to be kept track of.";
    TablesUnknown => ENOSYS, "The platform does not tell which page tables the CPU walks.";
    Io => EIO, "The store failed.";
    NoSpace => ENOSPC, "The store is full.";
}

impl core::fmt::Display for MmError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.text())
    }
}

impl core::error::Error for MmError {}
