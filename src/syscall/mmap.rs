//! mmap and mmap2.

use super::device::{BARE, Device};
use super::{is_aligned, page_align};
use crate::addr::{PAGE_OFFSET_MASK, PAGE_SHIFT, PAGE_SIZE_U64, PgOff, VirtAddr, VirtRange};
use crate::flags::{MapFlags, MapType, Prot, VmFlags};
use crate::mm::{
    Backing, Content, Exact, FileKind, FileRef, Mm, MmError, OvercommitMode, Purpose, Sharing, Tables,
    Window, Wish,
};
use crate::table::HUGE_SIZE;

/// How a file was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// For reading.
    ReadOnly,
    /// For writing.
    WriteOnly,
    /// For both.
    ReadWrite,
}

impl OpenMode {
    pub(crate) const fn reads(self) -> bool {
        matches!(self, Self::ReadOnly | Self::ReadWrite)
    }

    pub(crate) const fn writes(self) -> bool {
        matches!(self, Self::WriteOnly | Self::ReadWrite)
    }
}

bitflags::bitflags! {
    /// Seals of a memory file that mmap heeds.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct Seals: u32 {
        /// Nobody may write (`F_SEAL_WRITE`).
        const WRITE = 8;
        /// Nobody may begin to write (`F_SEAL_FUTURE_WRITE`).
        const FUTURE_WRITE = 16;
        /// Nobody may make it executable (`F_SEAL_EXEC`); mmap lets it pass.
        const EXEC = 32;
    }
}

/// What mmap must know of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapFile {
    /// Which file.
    pub file: FileRef,
    /// How it was opened.
    pub mode: OpenMode,
    /// Whether it lies where nothing may be executed.
    pub noexec: bool,
    /// Whether it can be mapped at all.
    pub mappable: bool,
    /// Whether mincore may tell which of its pages are resident. It may if the caller could write the file, or owns it: see [`owned`](Self::owned).
    pub tells_residency: bool,
    /// Its seals.
    pub seals: Seals,
    /// Flags beyond the usual ones that it supports with `MAP_SHARED_VALIDATE`.
    pub supported: MapFlags,
    /// The greatest size that it may have, in bytes.
    pub max_bytes: u64,
}

impl MapFile {
    /// A file with nothing special about it. Of one that is not opened for writing, mincore tells nothing.
    pub const fn new(file: FileRef, mode: OpenMode) -> Self {
        Self {
            file,
            mode,
            noexec: false,
            mappable: true,
            tells_residency: mode.writes(),
            seals: Seals::empty(),
            supported: MapFlags::empty(),
            max_bytes: i64::MAX as u64,
        }
    }

    /// The same for who owns the file, or could open it for writing: mincore tells him which of its pages are resident.
    #[must_use]
    pub const fn owned(self) -> Self {
        Self { tells_residency: true, ..self }
    }
}

/// The arguments of mmap.
///
/// ```
/// use kernmm::flags::{MapFlags, Prot};
/// use kernmm::syscall::MmapArgs;
///
/// let heap = MmapArgs::anonymous(1 << 20, Prot::READ | Prot::WRITE);
/// let fixed = MmapArgs::anonymous(4096, Prot::READ).fixed(0x40_0000);
/// assert_eq!(heap.flags, MapFlags::PRIVATE | MapFlags::ANONYMOUS);
/// assert_eq!((fixed.addr, fixed.flags), (0x40_0000, heap.flags | MapFlags::FIXED));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct MmapArgs {
    /// A hint, or the address itself with `MAP_FIXED`.
    pub addr: u64,
    /// In bytes.
    pub len: u64,
    /// The protection.
    pub prot: Prot,
    /// The flags.
    pub flags: MapFlags,
    /// The file that the descriptor names; `Ok(None)` if there is no descriptor, an error if it names none. Not looked
    /// at with `MAP_ANONYMOUS`.
    pub file: Result<Option<MapFile>, MmError>,
    /// In bytes (mmap) or in units of 4096 bytes (mmap2).
    pub offset: u64,
}

impl MmapArgs {
    /// Private anonymous memory, `len` bytes.
    #[must_use]
    pub const fn anonymous(len: u64, prot: Prot) -> Self {
        let flags = MapFlags::PRIVATE.union(MapFlags::ANONYMOUS);
        Self { addr: 0, len, prot, flags, file: Ok(None), offset: 0 }
    }

    /// The first `len` bytes of a file: [`File::map_file`](crate::memory::File::map_file) of an open one. `flags` say whether it is shared.
    #[must_use]
    pub const fn file(file: MapFile, len: u64, prot: Prot, flags: MapFlags) -> Self {
        Self { addr: 0, len, prot, flags, file: Ok(Some(file)), offset: 0 }
    }

    /// The same, near an address if there is room.
    #[must_use]
    pub const fn at(self, addr: u64) -> Self {
        Self { addr, ..self }
    }

    /// The same at exactly this address, over whatever is there.
    #[must_use]
    pub const fn fixed(self, addr: u64) -> Self {
        Self { addr, flags: self.flags.union(MapFlags::FIXED), ..self }
    }

    /// The same from another place in the file on.
    #[must_use]
    pub const fn from_offset(self, offset: u64) -> Self {
        Self { offset, ..self }
    }
}

/// Maps a file or anonymous memory and answers where.
///
/// # Errors
/// In Linux's order; with any of them nothing is changed, not even what `MAP_FIXED` was to replace:
/// [`MmError::Unaligned`] (offset), [`MmError::BadDescriptor`], [`MmError::ZeroLength`], [`MmError::Wraps`],
/// [`MmError::OffsetOverflow`], [`MmError::TooManyVmas`], [`MmError::NoGap`], [`MmError::Unaligned`] (address),
/// [`MmError::BelowMinimum`], [`MmError::Exists`], [`MmError::MayNotLock`], [`MmError::LockLimit`], what the file does not
/// allow ([`MmError::UnsupportedFlag`], [`MmError::NotWritable`], [`MmError::NotReadable`], [`MmError::NoExec`],
/// [`MmError::NotMappable`], [`MmError::Sealed`]), [`MmError::BadFlags`], [`MmError::NoHugePages`],
/// [`MmError::AddressSpaceLimit`], [`MmError::Overcommit`], [`MmError::OutOfSlots`].
///
/// # Linux
/// `do_mmap` in `mm/mmap.c`, `mmap_region` in `mm/vma.c` (6.18).
pub fn mmap(mm: &mut Mm<'_>, tables: &mut impl Tables, args: &MmapArgs) -> Result<VirtAddr, MmError> {
    if !is_aligned(args.offset) {
        return Err(MmError::Unaligned);
    }
    map(mm, tables, args, args.offset >> PAGE_SHIFT)
}

/// Like [`mmap`], with the offset in units of 4096 bytes.
///
/// # Errors
/// Those of [`mmap`].
///
/// # Linux
/// `ksys_mmap_pgoff` in `mm/mmap.c`.
pub fn mmap2(mm: &mut Mm<'_>, tables: &mut impl Tables, args: &MmapArgs) -> Result<VirtAddr, MmError> {
    map(mm, tables, args, args.offset)
}

fn map(mm: &mut Mm<'_>, tables: &mut impl Tables, args: &MmapArgs, pgoff: u64) -> Result<VirtAddr, MmError> {
    map_over(mm, tables, args, pgoff, None)
}

/// Maps what `args` ask for, or a device in the place of the file.
pub(super) fn map_over(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    args: &MmapArgs,
    pgoff: u64,
    device: Option<&Device>,
) -> Result<VirtAddr, MmError> {
    let flags = args.flags;
    let file = match (flags.contains(MapFlags::ANONYMOUS), device) {
        (_, Some(device)) => device.as_file(),
        (true, None) => None,
        (false, None) => Some(args.file?.ok_or(MmError::BadDescriptor)?),
    };
    let huge = if flags.contains(MapFlags::HUGETLB) { Some(huge_size(flags, file.as_ref())?) } else { None };
    let file = if huge.is_some() { Some(huge_file()?) } else { file };
    let len = whole_pages(args.len, huge)?;
    if pgoff.checked_add(len >> PAGE_SHIFT).is_none() {
        return Err(MmError::OffsetOverflow);
    }
    if mm.map_count() > mm.sysctl().max_map_count {
        return Err(MmError::TooManyVmas);
    }
    let mut vm_flags = flag_bits(flags) | mm.access_flags(args.prot) | mm.def_flags | VmFlags::MAY_ACCESS;
    let is_exact = flags.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE);
    if is_exact && len <= mm.sysctl().task_size && huge.is_some_and(|size| args.addr % size != 0) {
        return Err(MmError::Unaligned);
    }
    let addr = mm.get_unmapped_area(&wish(mm, args.addr, len, pgoff, flags, file.as_ref()))?;
    let range = VirtRange::with_len(addr, len).ok_or(MmError::NoGap)?;
    if flags.contains(MapFlags::FIXED_NOREPLACE) && mm.find_vma_intersection(addr, range.end()).is_some() {
        return Err(MmError::Exists);
    }
    if flags.contains(MapFlags::LOCKED) && !mm.rlimits.may_lock() {
        return Err(MmError::MayNotLock);
    }
    mm.may_lock_future(vm_flags, len)?;
    let mut content = match file {
        Some(file) => file_content(&file, args, pgoff, len, &mut vm_flags)?,
        None => anonymous_content(flags, &mut vm_flags)?,
    };
    if let Some(device) = device {
        content = device_content(device, pgoff, len, &mut vm_flags)?;
    }
    if flags.contains(MapFlags::NORESERVE) && mm.context().overcommit().mode() != OvercommitMode::Never {
        vm_flags |= VmFlags::NORESERVE;
    }
    if let Some(size) = huge {
        mm.may_expand(vm_flags, len >> PAGE_SHIFT)?;
        return Err(no_huge_pages(pgoff, size));
    }
    mm.map_region(tables, range, vm_flags, content)?;
    let populate = flags & (MapFlags::POPULATE | MapFlags::NONBLOCK) == MapFlags::POPULATE;
    if populate || vm_flags.contains(VmFlags::LOCKED) {
        // A page that cannot be made resident is no reason to fail.
        let _ = mm.populate(tables, range, Purpose::Mapping);
    }
    Ok(addr)
}

/// `len` rounded up to whole pages, or to whole huge pages of this size.
///
/// # Errors
/// [`MmError::ZeroLength`], [`MmError::Wraps`].
fn whole_pages(len: u64, huge: Option<u64>) -> Result<u64, MmError> {
    let whole = len.checked_next_multiple_of(huge.unwrap_or(PAGE_SIZE_U64));
    match whole {
        Some(0) => Err(MmError::ZeroLength),
        Some(whole) => Ok(whole),
        // Too much for a number of huge pages is none of them.
        None if huge.is_some() => Err(MmError::ZeroLength),
        None => Err(MmError::Wraps),
    }
}

/// Why there are no huge pages: none are set aside, which is seen after the offset.
#[doc(alias = "hugetlbfs_file_mmap")]
const fn no_huge_pages(pgoff: u64, size: u64) -> MmError {
    let is_whole = pgoff % (size >> PAGE_SHIFT) == 0;
    if is_whole { MmError::NoHugePages } else { MmError::Unaligned }
}

/// Bare frames of a device, in the place of the file that it was taken for.
fn device_content(device: &Device, pgoff: u64, len: u64, vm_flags: &mut VmFlags) -> Result<Content, MmError> {
    let first = device.frames(pgoff, len >> PAGE_SHIFT)?;
    let (backing, pgoff) = device.backing(pgoff, first, *vm_flags)?;
    *vm_flags |= BARE;
    Ok(Content::Backed(backing, pgoff))
}

/// The size of the huge pages that are asked for.
#[doc(alias = "hstate_sizelog")]
fn huge_size(flags: MapFlags, file: Option<&MapFile>) -> Result<u64, MmError> {
    match (file, flags.huge_shift()) {
        (None, 0 | 21) => Ok(HUGE_SIZE),
        (None, 30) => Ok(1 << 30),
        _ => Err(MmError::BadFlags),
    }
}

/// Huge pages that are set aside are a file's, whoever asks for them.
#[doc(alias = "hugetlb_file_setup")]
fn huge_file() -> Result<MapFile, MmError> {
    let file = FileRef::new(u32::MAX, u32::MAX, FileKind::Memory).ok_or(MmError::BadFlags)?;
    Ok(MapFile::new(file, OpenMode::ReadWrite))
}

#[doc(alias = "calc_vm_flag_bits")]
fn flag_bits(flags: MapFlags) -> VmFlags {
    let mut bits = VmFlags::empty();
    bits.set(VmFlags::GROWSDOWN, flags.contains(MapFlags::GROWSDOWN));
    bits.set(VmFlags::LOCKED, flags.contains(MapFlags::LOCKED));
    bits.set(VmFlags::SYNC, flags.contains(MapFlags::SYNC));
    bits.set(VmFlags::NOHUGEPAGE, flags.contains(MapFlags::STACK));
    bits
}

fn wish(mm: &Mm<'_>, addr: u64, len: u64, pgoff: u64, flags: MapFlags, file: Option<&MapFile>) -> Wish {
    let fixed = flags.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE);
    let addr = if fixed { addr } else { round_hint(addr, mm.sysctl().mmap_min_addr) };
    Wish {
        addr,
        len,
        file: file.map(|file| file.file.kind),
        pgoff,
        sharing: if flags.contains(MapFlags::SHARED) { Sharing::Shared } else { Sharing::Private },
        exact: if fixed { Exact::Fixed } else { Exact::Hint },
        window: window(flags),
    }
}

const fn window(flags: MapFlags) -> Window {
    if flags.contains(MapFlags::_32BIT) {
        Window::Low
    } else if flags.contains(MapFlags::ABOVE4G) {
        Window::Above4G
    } else {
        Window::Layout
    }
}

/// A hint is taken for its page; one that is not in the first page, but below the floor, for the floor.
///
/// # Linux
/// `round_hint_to_min` in `mm/mmap.c`.
pub(super) fn round_hint(hint: u64, floor: u64) -> u64 {
    let page = hint & !PAGE_OFFSET_MASK;
    if page != 0 && page < floor { page_align(floor) } else { page }
}

/// What a file allows, in Linux's order of checks.
fn file_content(
    file: &MapFile,
    args: &MmapArgs,
    pgoff: u64,
    len: u64,
    vm_flags: &mut VmFlags,
) -> Result<Content, MmError> {
    if len > file.max_bytes || pgoff > (file.max_bytes - len) >> PAGE_SHIFT {
        return Err(MmError::OffsetOverflow);
    }
    match args.flags.map_type() {
        MapType::Private => {}
        kind @ (MapType::Shared | MapType::SharedValidate) => {
            let known = MapFlags::LEGACY | file.supported;
            if kind == MapType::SharedValidate && !known.contains(args.flags) {
                return Err(MmError::UnsupportedFlag);
            }
            if args.prot.contains(Prot::WRITE) && !file.mode.writes() {
                return Err(MmError::NotWritable);
            }
            *vm_flags |= VmFlags::SHARED | VmFlags::MAYSHARE;
            if !file.mode.writes() {
                *vm_flags -= VmFlags::SHARED | VmFlags::MAYWRITE;
            }
        }
        MapType::Droppable | MapType::Invalid => return Err(MmError::BadFlags),
    }
    if !file.mode.reads() {
        return Err(MmError::NotReadable);
    }
    if file.noexec {
        if vm_flags.contains(VmFlags::EXEC) {
            return Err(MmError::NoExec);
        }
        *vm_flags -= VmFlags::MAYEXEC;
    }
    if !file.mappable {
        return Err(MmError::NotMappable);
    }
    vm_flags.set(VmFlags::RESIDENCY_HIDDEN, !file.tells_residency);
    if vm_flags.contains(VmFlags::GROWSDOWN) {
        return Err(MmError::BadFlags);
    }
    check_seals(file.seals, vm_flags)?;
    let pgoff = PgOff::new(pgoff).ok_or(MmError::OffsetOverflow)?;
    let backing = Backing::File(FileRef { read_only: !file.mode.writes(), ..file.file });
    Ok(Content::Backed(backing, pgoff))
}

/// A shared mapping of a sealed file must not write, now or later.
///
/// # Linux
/// `memfd_check_seals_mmap` in `mm/memfd.c`.
fn check_seals(seals: Seals, vm_flags: &mut VmFlags) -> Result<(), MmError> {
    if seals.intersects(Seals::WRITE | Seals::FUTURE_WRITE) && vm_flags.contains(VmFlags::SHARED) {
        if vm_flags.contains(VmFlags::WRITE) {
            return Err(MmError::Sealed);
        }
        *vm_flags -= VmFlags::MAYWRITE;
    }
    Ok(())
}

fn anonymous_content(flags: MapFlags, vm_flags: &mut VmFlags) -> Result<Content, MmError> {
    match flags.map_type() {
        MapType::Shared if vm_flags.contains(VmFlags::GROWSDOWN) => Err(MmError::BadFlags),
        MapType::Shared => {
            *vm_flags |= VmFlags::SHARED | VmFlags::MAYSHARE;
            Ok(Content::SharedAnonymous)
        }
        MapType::Droppable => {
            // What is to be locked anyway, as all that is mapped, is only not locked.
            if flags.contains(MapFlags::LOCKED) || vm_flags.contains(VmFlags::GROWSDOWN) {
                return Err(MmError::BadFlags);
            }
            *vm_flags |= VmFlags::DROPPABLE | VmFlags::NORESERVE | VmFlags::WIPEONFORK | VmFlags::DONTDUMP;
            Ok(Content::Anonymous)
        }
        MapType::Private => Ok(Content::Anonymous),
        MapType::SharedValidate | MapType::Invalid => Err(MmError::BadFlags),
    }
}
