//! Reaching the bytes of a frame, HIGHMEM or not.

use core::ops::Deref;

use crate::addr::Pfn;
use crate::error::Errno;
use crate::flags::PageFlags;
use crate::platform::{CpuPin, Platform, Window};
use crate::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::Phys;
use super::page::{Page, PageState};

/// Why a frame cannot be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KmapError {
    /// Not a frame of the memory map, or one that is not managed.
    Foreign,
    /// Nobody has allocated the frame.
    Free,
    /// The frame belongs to a slab or is a page table: it is not copied to and from behind its owner's back.
    NotData,
    /// All slots of the CPU are in use.
    NoSlot,
    /// The platform did not map the frame.
    Refused,
    /// The bytes do not all lie inside the frame.
    OutOfBounds,
    /// The pin's CPU is not one of those given at boot.
    UnknownCpu,
    /// The pin is of another platform than the frames.
    WrongPlatform,
}

impl KmapError {
    /// Linux's number. Linux itself waits for a slot, or crashes.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Foreign | Self::Free | Self::NotData | Self::Refused => Errno::EFAULT,
            Self::NoSlot => Errno::EAGAIN,
            Self::OutOfBounds | Self::UnknownCpu | Self::WrongPlatform => Errno::EINVAL,
        }
    }
}

impl core::fmt::Display for KmapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Foreign => "not a managed frame",
            Self::Free => "the frame is free",
            Self::NotData => "the frame holds a slab or a page table",
            Self::NoSlot => "all kmap slots are in use",
            Self::Refused => "the platform did not map the frame",
            Self::OutOfBounds => "the bytes leave the frame",
            Self::UnknownCpu => "no such CPU",
            Self::WrongPlatform => "the pin is of another platform",
        })
    }
}

impl core::error::Error for KmapError {}

/// A frame's bytes within reach: a slot of the CPU for a HIGHMEM frame, the direct map for others.
///
/// A CPU has few slots; several at a time are for copies between frames. The slot is free again when this is dropped, in whatever
/// order; forgotten, it is lost. The block has a reference more until then, so that it cannot be freed.
///
/// # Linux
/// What `kmap_local_page` answers with, in `mm/highmem.c`.
#[derive(Debug)]
#[doc(alias = "kmap_local_page")]
#[must_use = "the slot is free again when this is dropped"]
pub struct Kmap<'a> {
    window: Window<'a>,
    slot: Option<Slot<'a>>,
    /// The first page of the block, to which this is a reference; none where the caller knows that the block stays.
    head: Option<Head<'a>>,
}

/// The first frame of a block.
#[derive(Clone, Copy, Debug)]
struct Head<'a> {
    pfn: Pfn,
    page: &'a Page,
}

impl<'a> Deref for Kmap<'a> {
    type Target = Window<'a>;

    fn deref(&self) -> &Window<'a> {
        &self.window
    }
}

/// The kmap slots of one CPU: a bit for each that is in use. Only the CPU itself changes it.
#[derive(Debug)]
#[cfg_attr(not(any(loom, shuttle)), repr(align(64)))]
pub(super) struct KmapSlots(AtomicU32);

impl KmapSlots {
    pub(super) fn new() -> Self {
        Self(AtomicU32::new(0))
    }
}

/// A slot in use.
#[derive(Debug)]
struct Slot<'a> {
    used: &'a AtomicU32,
    pin: &'a CpuPin<'a>,
    number: u32,
}

impl<'a> Slot<'a> {
    /// Takes the first free slot of the pin's CPU.
    fn take(used: &'a AtomicU32, pin: &'a CpuPin<'_>) -> Option<Self> {
        let slots = pin.platform().kmap_slots().min(u32::BITS);
        let taken = used.load(Relaxed);
        let number = taken.trailing_ones();
        (number < slots).then_some(())?;
        used.store(taken | 1 << number, Relaxed);
        Some(Self { used, pin, number })
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.used.store(self.used.load(Relaxed) & !(1 << self.number), Relaxed);
    }
}

impl Drop for Kmap<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.slot.is_some() || self.head.is_some() {
            self.close();
        }
    }
}

impl<'a> Kmap<'a> {
    /// A window of the direct map, which takes no slot.
    #[inline]
    pub(crate) fn direct(window: Window<'a>) -> Self {
        Self { window, slot: None, head: None }
    }

    /// Lets go of the frame but not of the reference to its block, which is the caller's now: the first frame of the block, if there is one.
    pub(crate) fn into_head(mut self) -> Option<Pfn> {
        self.head.take().map(|head| head.pfn)
    }

    /// What is to be undone of a window that is more than an address of the direct map.
    #[cold]
    fn close(&self) {
        if let Some(slot) = &self.slot {
            slot.pin.platform().kunmap(slot.pin.cpu(), slot.number);
        }
        if let Some(head) = self.head {
            head.page.put_unless_last();
        }
    }
}

impl Phys<'_> {
    /// Brings an allocated frame within reach, as long as the caller keeps its CPU.
    ///
    /// Until the answer is dropped the block has a reference more, and cannot be freed.
    ///
    /// For the façade alone, which was booted from a platform's own map, once: other frames of the same number may be anything.
    ///
    /// # Errors
    /// [`KmapError`].
    pub(crate) fn kmap<'a>(&'a self, pin: &'a CpuPin<'_>, pfn: Pfn) -> Result<Kmap<'a>, KmapError> {
        if !self.owns(pin) {
            return Err(KmapError::WrongPlatform);
        }
        let head = self.data_head(pfn)?;
        if !head.page.try_get() {
            return Err(KmapError::Free);
        }
        // It may have been freed, and be part of something else, before we had the reference.
        let kmap = match self.data_head(pfn) {
            Ok(again) if core::ptr::eq(again.page, head.page) => self.kmap_any(pin, pfn),
            Ok(_) => Err(KmapError::Free),
            Err(error) => Err(error),
        };
        match kmap {
            Ok(mut kmap) => {
                kmap.head = Some(head);
                Ok(kmap)
            }
            Err(error) => {
                head.page.put_unless_last();
                Err(error)
            }
        }
    }

    /// The first page of the allocated block of data that holds a frame.
    fn data_head(&self, pfn: Pfn) -> Result<Head<'_>, KmapError> {
        let (place, page) = self.sections.find(pfn).ok_or(KmapError::Foreign)?;
        let head = match page.state() {
            PageState::Allocated => Head { pfn, page },
            _ => self.head_of_allocated(pfn, place)?,
        };
        if head.page.flags().intersects(PageFlags::SLAB | PageFlags::TABLE) {
            return Err(KmapError::NotData);
        }
        Ok(head)
    }

    /// The first page of the allocated block that holds the page at `place`, which is another one.
    fn head_of_allocated(&self, pfn: Pfn, place: u32) -> Result<Head<'_>, KmapError> {
        let zone = self.zone_of(pfn).ok_or(KmapError::Foreign)?;
        let (head, word) = zone.map.head_of(place).ok_or(KmapError::Foreign)?;
        match word.state() {
            PageState::Allocated => Ok(Head { pfn: zone.map.pfn(head), page: zone.map.page(head) }),
            _ => Err(KmapError::Free),
        }
    }

    /// Brings a managed frame within reach, whatever its state: for frames that the caller knows to be nobody's.
    pub(crate) fn kmap_any<'a>(&'a self, pin: &'a CpuPin<'_>, pfn: Pfn) -> Result<Kmap<'a>, KmapError> {
        match Window::direct(pin.platform(), pfn) {
            Some(window) => Ok(Kmap::direct(window)),
            None => self.kmap_in_slot(pin, pfn),
        }
    }

    /// As [`kmap_any`](Self::kmap_any), where the platform that the pin is of is known by its type.
    #[inline]
    pub(crate) fn kmap_on<'a, P: Platform>(
        &'a self,
        platform: &'a P,
        pin: &'a CpuPin<'_>,
        pfn: Pfn,
    ) -> Result<Kmap<'a>, KmapError> {
        match Window::direct(platform, pfn) {
            Some(window) => Ok(Kmap::direct(window)),
            None => self.kmap_in_slot(pin, pfn),
        }
    }

    /// Brings a HIGHMEM frame within reach.
    #[cold]
    #[inline(never)]
    fn kmap_in_slot<'a>(&'a self, pin: &'a CpuPin<'_>, pfn: Pfn) -> Result<Kmap<'a>, KmapError> {
        let used = &self.kmaps.get(pin.cpu().index()).ok_or(KmapError::UnknownCpu)?.0;
        let slot = Slot::take(used, pin).ok_or(KmapError::NoSlot)?;
        let window = Window::in_slot(pin, slot.number, pfn).ok_or(KmapError::Refused)?;
        Ok(Kmap { window, slot: Some(slot), head: None })
    }

    /// How many kmap slots the pin's CPU has in use. Where nobody on that CPU has a [`Kmap`], they are lost.
    pub fn kmaps_in_use(&self, pin: &CpuPin<'_>) -> u32 {
        self.kmaps.get(pin.cpu().index()).map_or(0, |slots| slots.0.load(Relaxed).count_ones())
    }
}
