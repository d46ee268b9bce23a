//! Flags of VMAs, and the flag arguments of the calls of the mmap family, with Linux's numbers.

use bitflags::bitflags;

bitflags! {
    /// What a page-table entry allows.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    #[doc(alias = "pgprot_t")]
    pub struct PageProt: u32 {
        /// Loads.
        const READ = 1 << 0;
        /// Stores.
        const WRITE = 1 << 1;
        /// Execution.
        const EXEC = 1 << 2;
    }
}

bitflags! {
    /// What a VMA is and what may be done with it.
    ///
    /// # Linux
    /// `VM_*` in `include/linux/mm.h` (6.18), the same bits.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    #[doc(alias = "vm_flags_t")]
    pub struct VmFlags: u64 {
        /// May be read.
        const READ = 1 << 0;
        /// May be written.
        const WRITE = 1 << 1;
        /// May be executed.
        const EXEC = 1 << 2;
        /// Writes reach the object and everybody else who maps it.
        const SHARED = 1 << 3;
        /// `mprotect` may give [`READ`](Self::READ).
        const MAYREAD = 1 << 4;
        /// `mprotect` may give [`WRITE`](Self::WRITE).
        const MAYWRITE = 1 << 5;
        /// `mprotect` may give [`EXEC`](Self::EXEC).
        const MAYEXEC = 1 << 6;
        /// Was mapped shared, though the file may be open for reading only.
        const MAYSHARE = 1 << 7;
        /// Grows downwards on a fault below it.
        const GROWSDOWN = 1 << 8;
        /// Maps frames that have no [`Page`](crate::flags::PageFlags) to count.
        const PFNMAP = 1 << 10;
        /// Guard regions were installed in it at some time.
        const MAYBE_GUARD = 1 << 11;
        /// Its pages stay in memory.
        const LOCKED = 1 << 13;
        /// Maps device registers.
        const IO = 1 << 14;
        /// Will be read in order.
        const SEQ_READ = 1 << 15;
        /// Will be read at random.
        const RAND_READ = 1 << 16;
        /// Not inherited by a child.
        const DONTCOPY = 1 << 17;
        /// `mremap` may not grow it.
        const DONTEXPAND = 1 << 18;
        /// With [`LOCKED`](Self::LOCKED): pages are locked when they are touched, not before.
        const LOCKONFAULT = 1 << 19;
        /// Its pages are charged to the committed memory.
        const ACCOUNT = 1 << 20;
        /// Its pages are not to be charged.
        const NORESERVE = 1 << 21;
        /// Page faults write synchronously.
        const SYNC = 1 << 23;
        /// A child sees zeroes.
        const WIPEONFORK = 1 << 25;
        /// Left out of a core dump.
        const DONTDUMP = 1 << 26;
        /// Maps both counted pages and bare frames.
        const MIXEDMAP = 1 << 28;
        /// Wants huge pages.
        const HUGEPAGE = 1 << 29;
        /// Wants no huge pages.
        const NOHUGEPAGE = 1 << 30;
        /// Equal pages may be merged.
        const MERGEABLE = 1 << 31;
        /// Behind the protection key that makes memory executable and not readable (Linux: `VM_PKEY_BIT0`, its first
        /// key).
        const EXECUTE_ONLY_KEY = 1 << 32;
        /// Its pages may be dropped under memory pressure.
        const DROPPABLE = 1 << 40;
    }
}

impl VmFlags {
    /// What a protection is made of.
    pub const ACCESS: Self = Self::READ.union(Self::WRITE).union(Self::EXEC);
    /// What a protection may become.
    pub const MAY_ACCESS: Self = Self::MAYREAD.union(Self::MAYWRITE).union(Self::MAYEXEC);
    /// Both kinds of lock.
    pub const LOCKED_MASK: Self = Self::LOCKED.union(Self::LOCKONFAULT);
    /// A VMA with one of these is neither merged nor locked.
    pub const SPECIAL: Self = Self::IO.union(Self::DONTEXPAND).union(Self::PFNMAP).union(Self::MIXEDMAP);
    /// What cannot be locked, or is not worth it: locks pass over it.
    #[doc(alias = "vma_supports_mlock")]
    pub const NEVER_LOCKED: Self = Self::SPECIAL.union(Self::DROPPABLE);
    /// Flags that a merge keeps of every part, and that do not stand in its way.
    pub const STICKY: Self = Self::MAYBE_GUARD;
    /// What the heap and the stack are made of.
    #[doc(alias = "VM_DATA_DEFAULT_FLAGS")]
    pub const DATA_DEFAULT: Self = Self::READ.union(Self::WRITE).union(Self::MAY_ACCESS);

    /// Whether the memory counts as data: private, writable, not a stack.
    ///
    /// # Linux
    /// `is_data_mapping` in `mm/vma.h`.
    pub const fn is_data(self) -> bool {
        let mask = Self::WRITE.union(Self::SHARED).union(Self::GROWSDOWN);
        self.bits() & mask.bits() == Self::WRITE.bits()
    }

    /// Whether the memory counts as code: executable, not writable, not a stack.
    pub const fn is_exec(self) -> bool {
        let mask = Self::EXEC.union(Self::WRITE).union(Self::GROWSDOWN);
        self.bits() & mask.bits() == Self::EXEC.bits()
    }

    /// Whether the memory counts as stack.
    pub const fn is_stack(self) -> bool {
        self.contains(Self::GROWSDOWN)
    }

    /// Whether any access is allowed.
    #[doc(alias = "vma_is_accessible")]
    pub const fn is_accessible(self) -> bool {
        self.intersects(Self::ACCESS)
    }

    /// Whether no more access is allowed than may be.
    pub(crate) const fn is_within_ceiling(self) -> bool {
        self.bits() & Self::ACCESS.bits() & !(self.bits() >> 4) == 0
    }

    /// Whether a new mapping with these flags is charged to the committed memory.
    #[doc(alias = "accountable_mapping")]
    pub const fn is_accountable(self) -> bool {
        let mask = Self::NORESERVE.union(Self::SHARED).union(Self::WRITE);
        self.bits() & mask.bits() == Self::WRITE.bits()
    }

    /// Whether the memory is private and writable, so that populating it breaks copy-on-write.
    pub const fn is_private_writable(self) -> bool {
        let mask = Self::SHARED.union(Self::WRITE);
        self.bits() & mask.bits() == Self::WRITE.bits()
    }

    /// What a page that is mapped with these flags gets at first. Private memory that may be written is not writable at
    /// first: the first store makes a copy.
    ///
    /// What may be written or executed may be read too, as processors have it, unless a key stands before it.
    ///
    /// # Linux
    /// `vm_get_page_prot` with x86's `protection_map`.
    #[doc(alias = "vm_get_page_prot")]
    pub const fn page_prot(self) -> PageProt {
        let mut prot = PageProt::empty();
        if self.is_accessible() && !self.contains(Self::EXECUTE_ONLY_KEY) {
            prot = prot.union(PageProt::READ);
        }
        if self.contains(Self::WRITE.union(Self::SHARED)) {
            prot = prot.union(PageProt::WRITE);
        }
        if self.contains(Self::EXEC) {
            prot = prot.union(PageProt::EXEC);
        }
        prot
    }
}

/// Names of [`VmFlags`] as the `VmFlags` line of `/proc/PID/smaps` has them, in its order.
///
/// # Linux
/// `show_smap_vma_flags` in `fs/proc/task_mmu.c` (6.18).
pub const VM_FLAG_CODES: [(VmFlags, &str); 28] = [
    (VmFlags::READ, "rd"),
    (VmFlags::WRITE, "wr"),
    (VmFlags::EXEC, "ex"),
    (VmFlags::SHARED, "sh"),
    (VmFlags::MAYREAD, "mr"),
    (VmFlags::MAYWRITE, "mw"),
    (VmFlags::MAYEXEC, "me"),
    (VmFlags::MAYSHARE, "ms"),
    (VmFlags::GROWSDOWN, "gd"),
    (VmFlags::PFNMAP, "pf"),
    (VmFlags::MAYBE_GUARD, "gu"),
    (VmFlags::LOCKED, "lo"),
    (VmFlags::IO, "io"),
    (VmFlags::SEQ_READ, "sr"),
    (VmFlags::RAND_READ, "rr"),
    (VmFlags::DONTCOPY, "dc"),
    (VmFlags::DONTEXPAND, "de"),
    (VmFlags::LOCKONFAULT, "lf"),
    (VmFlags::ACCOUNT, "ac"),
    (VmFlags::NORESERVE, "nr"),
    (VmFlags::SYNC, "sf"),
    (VmFlags::WIPEONFORK, "wf"),
    (VmFlags::DONTDUMP, "dd"),
    (VmFlags::MIXEDMAP, "mm"),
    (VmFlags::HUGEPAGE, "hg"),
    (VmFlags::NOHUGEPAGE, "nh"),
    (VmFlags::MERGEABLE, "mg"),
    (VmFlags::DROPPABLE, "dp"),
];

bitflags! {
    /// The `prot` argument of mmap and mprotect; bits without a name are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct Prot: u64 {
        /// May be read.
        const READ = 0x1;
        /// May be written.
        const WRITE = 0x2;
        /// May be executed.
        const EXEC = 0x4;
        /// May be used for atomic operations; without effect.
        const SEM = 0x8;
        /// mprotect: extend the range down to the start of a VMA that grows down.
        const GROWSDOWN = 0x0100_0000;
        /// mprotect: extend the range up to the end of a VMA that grows up.
        const GROWSUP = 0x0200_0000;
        const _ = !0;
    }
}

impl VmFlags {
    /// The protection that a VMA with these flags has.
    pub const fn prot(self) -> Prot {
        Prot::from_bits_truncate(self.bits() & Self::ACCESS.bits())
    }
}

impl Prot {
    /// No access.
    pub const NONE: Self = Self::empty();

    /// The VMA flags of this protection.
    #[doc(alias = "calc_vm_prot_bits")]
    pub const fn vm_flags(self) -> VmFlags {
        VmFlags::from_bits_truncate(self.bits() & VmFlags::ACCESS.bits())
    }
}

bitflags! {
    /// The `flags` argument of mmap; bits without a name are kept.
    ///
    /// # Linux
    /// `MAP_*` in `include/uapi/asm-generic/mman.h`.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct MapFlags: u64 {
        /// Writes reach the object.
        const SHARED = 0x1;
        /// Writes stay in this address space.
        const PRIVATE = 0x2;
        /// Exactly at the address, over whatever is there.
        const FIXED = 0x10;
        /// No file.
        const ANONYMOUS = 0x20;
        /// Like a stack.
        const GROWSDOWN = 0x100;
        /// Without effect.
        const DENYWRITE = 0x800;
        /// Without effect.
        const EXECUTABLE = 0x1000;
        /// Locked into memory.
        const LOCKED = 0x2000;
        /// Not charged to the committed memory.
        const NORESERVE = 0x4000;
        /// Made resident now.
        const POPULATE = 0x8000;
        /// With [`POPULATE`](Self::POPULATE): not made resident.
        const NONBLOCK = 0x1_0000;
        /// Will be a thread's stack: no huge pages.
        const STACK = 0x2_0000;
        /// Of huge pages set aside for this.
        const HUGETLB = 0x4_0000;
        /// Synchronous page faults, for files that support them.
        const SYNC = 0x8_0000;
        /// Exactly at the address, if it is free.
        const FIXED_NOREPLACE = 0x10_0000;
        const _ = !0;
    }
}

/// What the lowest four bits of the mmap flags say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapType {
    /// `MAP_SHARED`.
    Shared,
    /// `MAP_PRIVATE`.
    Private,
    /// `MAP_SHARED_VALIDATE`: shared, and unknown flags are errors.
    SharedValidate,
    /// `MAP_DROPPABLE`: private memory that reclaim may drop.
    Droppable,
    /// Anything else.
    Invalid,
}

impl MapFlags {
    /// The bits that make up the [`MapType`].
    pub const TYPE_MASK: u64 = 0xf;

    /// The mapping type.
    pub const fn map_type(self) -> MapType {
        match self.bits() & Self::TYPE_MASK {
            1 => MapType::Shared,
            2 => MapType::Private,
            3 => MapType::SharedValidate,
            8 => MapType::Droppable,
            _ => MapType::Invalid,
        }
    }

    /// log2 of the size of huge pages that was asked for with [`HUGETLB`](Self::HUGETLB); 0 for the default.
    pub const fn huge_shift(self) -> u32 {
        (self.bits() >> 26) as u32 & 0x3f
    }

    /// The flags that a shared mapping of a file may carry; `MAP_SHARED` ignores the others, `MAP_SHARED_VALIDATE`
    /// refuses them.
    ///
    /// # Linux
    /// `LEGACY_MAP_MASK` in `include/linux/mman.h`, with `MAP_UNINITIALIZED` being 0 as on machines with an MMU. Of the size of huge pages it has the bits
    /// that 2 MiB and 1 GiB have.
    pub const LEGACY: Self = Self::from_bits_retain(
        0x3 | 0x10
            | 0x20
            | 0x40
            | 0x80
            | 0x100
            | 0x800
            | 0x1000
            | 0x2000
            | 0x4000
            | 0x8000
            | 0x1_0000
            | 0x2_0000
            | 0x4_0000
            | (0x1f << 26),
    );
}

bitflags! {
    /// The `flags` argument of mremap; bits without a name are kept, and refused by the call.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct MremapFlags: u64 {
        /// The memory may move.
        const MAYMOVE = 1;
        /// To exactly the new address.
        const FIXED = 2;
        /// The old range stays mapped, without its pages.
        const DONTUNMAP = 4;
        const _ = !0;
    }

    /// The `flags` argument of msync, an int; bits without a name are kept, and refused by the call.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct MsyncFlags: u32 {
        /// Start no output; a hole ends the call.
        const ASYNC = 1;
        /// Other mappings shall see the stored contents.
        const INVALIDATE = 2;
        /// Write and wait.
        const SYNC = 4;
        const _ = !0;
    }

    /// The `flags` argument of mlock2, an int; bits without a name are kept, and refused by the call.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct MlockFlags: u32 {
        /// Lock pages when they are touched.
        const ONFAULT = 1;
        const _ = !0;
    }

    /// The `flags` argument of mlockall, an int; bits without a name are kept, and refused by the call.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    #[doc(alias = "MCL_CURRENT")]
    pub struct MlockallFlags: u32 {
        /// All that is mapped now.
        const CURRENT = 1;
        /// All that will be mapped.
        const FUTURE = 2;
        /// Lock pages when they are touched.
        const ONFAULT = 4;
        const _ = !0;
    }
}

macro_rules! advice {
    ($($name:ident = $number:literal, $what:literal;)*) => {
        /// The `advice` argument of madvise.
        ///
        /// # Linux
        /// `MADV_*` in `include/uapi/asm-generic/mman-common.h`.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[non_exhaustive]
        pub enum Advice {
            $(#[doc = $what] $name = $number,)*
        }

        impl Advice {
            /// All advice that is known.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The advice with this number, if there is one.
            pub const fn from_raw(raw: i32) -> Option<Self> {
                match raw { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

advice! {
    Normal = 0, "No special treatment.";
    Random = 1, "Will be read at random.";
    Sequential = 2, "Will be read in order.";
    WillNeed = 3, "Will be needed soon.";
    DontNeed = 4, "Not needed: the pages are dropped.";
    Free = 8, "Anonymous pages may be dropped when memory is short.";
    Remove = 9, "The pages and their backing store are dropped.";
    DontFork = 10, "Not inherited by a child.";
    DoFork = 11, "Undoes `DontFork`.";
    Mergeable = 12, "Equal pages may be merged.";
    Unmergeable = 13, "Undoes `Mergeable`.";
    HugePage = 14, "Wants huge pages.";
    NoHugePage = 15, "Wants no huge pages.";
    DontDump = 16, "Left out of a core dump.";
    DoDump = 17, "Undoes `DontDump`.";
    WipeOnFork = 18, "A child sees zeroes.";
    KeepOnFork = 19, "Undoes `WipeOnFork`.";
    Cold = 20, "Not used for a while.";
    PageOut = 21, "Reclaim it now.";
    PopulateRead = 22, "Make it resident as if by reading.";
    PopulateWrite = 23, "Make it resident as if by writing.";
    DontNeedLocked = 24, "`DontNeed`, locked memory too.";
    Collapse = 25, "Make huge pages of it now.";
    HwPoison = 100, "Treat the pages as broken.";
    SoftOffline = 101, "Take the pages out of use.";
    GuardInstall = 102, "Make the pages fault for good.";
    GuardRemove = 103, "Undoes `GuardInstall`.";
}

static_assertions::const_assert_eq!(VmFlags::READ.bits() << 4, VmFlags::MAYREAD.bits());
static_assertions::const_assert_eq!(VmFlags::WRITE.bits() << 4, VmFlags::MAYWRITE.bits());
static_assertions::const_assert_eq!(VmFlags::EXEC.bits() << 4, VmFlags::MAYEXEC.bits());
static_assertions::const_assert_eq!(Prot::READ.bits(), VmFlags::READ.bits());
static_assertions::const_assert_eq!(Prot::WRITE.bits(), VmFlags::WRITE.bits());
static_assertions::const_assert_eq!(Prot::EXEC.bits(), VmFlags::EXEC.bits());
