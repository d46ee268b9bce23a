//! What is wrong with an implementation of [`Platform`].
//!
//! A platform promises what the compiler cannot check. [`check_platform`] tries it out, on the machine itself, before the memory manager
//! is booted:
//!
//! ```
//! # #[cfg(feature = "std")] {
//! use kernmm::platform::hosted::Machine;
//! use kernmm::platform::testing::{Expected, check_platform};
//! use kernmm::platform::CpuId;
//!
//! let machine = Machine::pc(64 << 20).build()?;
//! let _cpu = machine.cpu(CpuId::BOOT)?;
//! let map = machine.take_map().expect("nobody has booted the machine");
//! let root = None; // Or tables that the CPU can be made to walk: those that the kernel booted with.
//! check_platform(&map, Expected { cpus: 1, direct_map_end: machine.highmem_from(), root })?;
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use core::ops::Range;
use core::ptr::NonNull;

use super::{CpuId, MemoryKind, MemoryMap, MemoryRange, Platform, Window};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PageOrder, Pfn, PfnRange};

/// What the platform is to be like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expected {
    /// The number of CPUs.
    pub cpus: usize,
    /// The first frame that is not in the direct map: [`Pfn::MAX`] if all are.
    pub direct_map_end: Pfn,
    /// The root of page tables that the CPU may walk for a moment, those that the kernel booted with for one; `None` where there are none, and
    /// [`Platform::switch_tables`] is not tried.
    pub root: Option<Pfn>,
}

/// What is wrong with a platform.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PlatformFault {
    /// `cpu_id` is not below the number of CPUs.
    CpuOutOfRange(CpuId),
    /// `cpu_id` changed while interrupts were masked.
    CpuChanged(CpuId, CpuId),
    /// After as many `irq_restore` as `irq_save` the state is not what it was: the first answer of `irq_save`, the next one. An
    /// implementation answers with the state of the interrupts and nothing else.
    IrqUnbalanced(usize, usize),
    /// A usable frame below the end of the direct map has no address.
    NotMapped(Pfn),
    /// A frame above the direct map has an address.
    MappedAbove(Pfn),
    /// The address of a frame, or of a slot that shows it, is not a multiple of the page size.
    Misaligned(Pfn),
    /// The address of a frame is not the same when it is asked for again.
    Unstable(Pfn),
    /// A frame and the one before it, of one block of the allocator, do not have consecutive addresses.
    NotConsecutive(Pfn),
    /// `virt_to_pfn` answers for an address of the frame with another one.
    WrongWayBack(Pfn, Pfn),
    /// A frame does not keep what is written to it, or another frame has the same bytes.
    Forgets(Pfn),
    /// There are frames above the direct map, and fewer than two slots to copy one to the other.
    TooFewSlots(u32),
    /// The slot did not take the frame.
    SlotRefused(u32, Pfn),
    /// Two slots have the same address.
    SlotsOverlap(u32, u32),
    /// A frame shows other bytes in this slot than were written to it.
    SlotForgets(u32, Pfn),
    /// After `switch_tables` with the first root `tables` answers the second.
    TablesUnknown(Option<Pfn>, Option<Pfn>),
}

impl core::fmt::Display for PlatformFault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::CpuOutOfRange(cpu) => write!(f, "there is no CPU {}", cpu.0),
            Self::CpuChanged(from, to) => write!(f, "from CPU {} to {} with interrupts masked", from.0, to.0),
            Self::IrqUnbalanced(from, to) => {
                write!(f, "interrupts were in state {from:#x} and are in {to:#x} after irq_restore")
            }
            Self::NotMapped(pfn) => write!(f, "frame {pfn:#x} is not in the direct map"),
            Self::MappedAbove(pfn) => write!(f, "frame {pfn:#x} is above the direct map but has an address"),
            Self::Misaligned(pfn) => write!(f, "the address of frame {pfn:#x} is misaligned"),
            Self::Unstable(pfn) => write!(f, "frame {pfn:#x} has a new address each time"),
            Self::NotConsecutive(pfn) => write!(f, "frame {pfn:#x} does not follow the one before it"),
            Self::WrongWayBack(pfn, other) => write!(f, "an address of frame {pfn:#x} leads to {other:#x}"),
            Self::Forgets(pfn) => {
                write!(f, "frame {pfn:#x} does not keep its bytes, or another one has them")
            }
            Self::TooFewSlots(slots) => write!(f, "{slots} kmap slots are too few"),
            Self::SlotRefused(slot, pfn) => write!(f, "slot {slot} did not take frame {pfn:#x}"),
            Self::SlotsOverlap(a, b) => write!(f, "slots {a} and {b} have one address"),
            Self::SlotForgets(slot, pfn) => write!(f, "frame {pfn:#x} has other bytes in slot {slot}"),
            Self::TablesUnknown(told, answer) => {
                write!(f, "after switch_tables({told:x?}) tables() is {answer:x?}")
            }
        }
    }
}

impl core::error::Error for PlatformFault {}

/// Tries a platform out: CPU and interrupts, the direct map, kmap slots, and whether it knows which page tables it walks. The calling CPU stands for all.
///
/// Some frames of each usable range of `map`, among them the first and the last ones, are written to. A frame whose address is wrong may
/// make this crash; that tells the same. What another CPU does on [`Platform::kick`] is not tried.
///
/// # Errors
/// The first [`PlatformFault`] found.
pub fn check_platform<P: Platform, I: Iterator<Item = MemoryRange> + Clone>(
    map: &MemoryMap<'_, P, I>,
    expected: Expected,
) -> Result<(), PlatformFault> {
    let platform = map.platform();
    check_cpu(platform, expected.cpus)?;
    expected.root.map_or(Ok(()), |root| check_tables(platform, root))?;
    let low = |pfn: &Pfn| *pfn < expected.direct_map_end;
    check_direct_map(platform, samples(map, expected.direct_map_end).filter(low))?;
    let mut high = samples(map, expected.direct_map_end).filter(|pfn| !low(pfn));
    if let Some(pfn) = high.clone().find(|&pfn| platform.direct_map(pfn).is_some()) {
        return Err(PlatformFault::MappedAbove(pfn));
    }
    match high.next() {
        Some(first) => check_slots(platform, first, high),
        None => Ok(()),
    }
}

/// Frames of each usable range, cut at `cut`, that are worth a look: at distances from both ends that grow by powers of two, with a
/// neighbour each.
fn samples<P: Platform, I: Iterator<Item = MemoryRange> + Clone>(
    map: &MemoryMap<'_, P, I>,
    cut: Pfn,
) -> impl Iterator<Item = Pfn> + Clone + use<P, I> {
    let all = map.ranges();
    let usable = all.clone().filter(|range| range.kind == MemoryKind::Usable).filter_map(frames_of);
    let runs = usable.flat_map(move |run| {
        let pieces =
            [PfnRange::new(run.start(), run.end().min(cut)), PfnRange::new(run.start().max(cut), run.end())];
        pieces.into_iter().flatten()
    });
    let ends = runs.flat_map(|run| {
        let distances = (0..u64::BITS - PAGE_SHIFT).flat_map(|bit| [(1 << bit) - 1, 1_u64 << bit]);
        distances.flat_map(move |distance| {
            let from_start = run.start().checked_add(distance);
            let from_end = run.end().checked_sub(distance).and_then(|end| end.checked_sub(1));
            [from_start, from_end].into_iter().flatten().filter(move |&pfn| run.contains(pfn))
        })
    });
    ends.filter(move |&pfn| {
        let others = all.clone().filter(|range| range.kind != MemoryKind::Usable);
        let (start, end) = (pfn.addr().get(), pfn.addr().get() + PAGE_SIZE as u64);
        !others.into_iter().any(|range| range.base < end && start < range.base.saturating_add(range.len))
    })
}

/// The frames of which every byte lies in a range.
fn frames_of(range: MemoryRange) -> Option<PfnRange> {
    let start = Pfn::new(range.base.div_ceil(PAGE_SIZE as u64))?;
    PfnRange::new(start, Pfn::new(range.base.checked_add(range.len)? >> PAGE_SHIFT)?)
}

fn check_cpu<P: Platform>(platform: &P, cpus: usize) -> Result<(), PlatformFault> {
    let first = platform.irq_save();
    let cpu = platform.cpu_id();
    let nested = platform.irq_save();
    let inside = platform.cpu_id();
    // SAFETY: the inner one goes first, and no pin relies on it.
    unsafe { platform.irq_restore(nested) };
    let after = platform.cpu_id();
    // SAFETY: the outer one, of which the same holds.
    unsafe { platform.irq_restore(first) };
    let again = platform.irq_save();
    // SAFETY: just saved.
    unsafe { platform.irq_restore(again) };
    if cpu.index() >= cpus {
        return Err(PlatformFault::CpuOutOfRange(cpu));
    }
    match [inside, after].into_iter().find(|&other| other != cpu) {
        Some(other) => Err(PlatformFault::CpuChanged(cpu, other)),
        None if first != again => Err(PlatformFault::IrqUnbalanced(first, again)),
        None => Ok(()),
    }
}

/// Has the CPU walk these tables, none, and those that it walked before.
fn check_tables<P: Platform>(platform: &P, root: Pfn) -> Result<(), PlatformFault> {
    let _pin = platform.pin();
    let before = platform.tables();
    let mut checked = Ok(());
    for told in [Some(root), None, before] {
        platform.switch_tables(told);
        let answer = platform.tables();
        if answer != told {
            checked = checked.and(Err(PlatformFault::TablesUnknown(told, answer)));
        }
    }
    checked
}

fn check_direct_map<P: Platform>(
    platform: &P,
    frames: impl Iterator<Item = Pfn> + Clone,
) -> Result<(), PlatformFault> {
    for pfn in frames.clone() {
        let address = platform.direct_map(pfn).ok_or(PlatformFault::NotMapped(pfn))?;
        if address.addr().get() % PAGE_SIZE != 0 {
            return Err(PlatformFault::Misaligned(pfn));
        }
        if platform.direct_map(pfn) != Some(address) {
            return Err(PlatformFault::Unstable(pfn));
        }
        let before = pfn.checked_sub(1).filter(|_| !pfn.is_aligned(PageOrder::MAX));
        let before = before.and_then(|before| platform.direct_map(before));
        if before
            .is_some_and(|before| before.addr().get().checked_add(PAGE_SIZE) != Some(address.addr().get()))
        {
            return Err(PlatformFault::NotConsecutive(pfn));
        }
        let last = NonNull::new(address.as_ptr().wrapping_add(PAGE_SIZE - 1));
        let ways_back = [Some(address), last].into_iter().flatten().filter_map(|at| platform.virt_to_pfn(at));
        if let Some(other) = ways_back.into_iter().find(|&other| other != pfn) {
            return Err(PlatformFault::WrongWayBack(pfn, other));
        }
        mark(&window(address), pfn);
    }
    for pfn in frames {
        let address = platform.direct_map(pfn).ok_or(PlatformFault::Unstable(pfn))?;
        if !is_marked(&window(address), pfn) {
            return Err(PlatformFault::Forgets(pfn));
        }
    }
    Ok(())
}

/// The most slots that the library uses.
const MOST_SLOTS: u32 = u32::BITS;

/// Tries the slots of this CPU: two with one frame, all with different frames, and each frame in one slot after another.
fn check_slots<P: Platform>(
    platform: &P,
    first: Pfn,
    others: impl Iterator<Item = Pfn> + Clone,
) -> Result<(), PlatformFault> {
    let slots = platform.kmap_slots().min(MOST_SLOTS);
    if slots < 2 {
        return Err(PlatformFault::TooFewSlots(slots));
    }
    let (one, two) = (Open::new(platform, 0, first)?, Open::new(platform, 1, first)?);
    mark(&window(one.address), first);
    let shown = is_marked(&window(two.address), first);
    drop((two, one));
    if !shown {
        return Err(PlatformFault::SlotForgets(1, first));
    }
    check_slots_together(platform, None, &mut others.clone(), 0..slots)?;
    let numbered = || (0..slots).cycle().zip(others.clone());
    for (slot, pfn) in numbered() {
        mark(&window(Open::new(platform, slot, pfn)?.address), pfn);
    }
    for (slot, pfn) in numbered() {
        let slot = (slot + 1) % slots;
        if !is_marked(&window(Open::new(platform, slot, pfn)?.address), pfn) {
            return Err(PlatformFault::SlotForgets(slot, pfn));
        }
    }
    Ok(())
}

/// Opens the slots one inside the other, each with another frame, and looks at each again once all were open.
fn check_slots_together<P: Platform>(
    platform: &P,
    outer: Option<&Open<'_, P>>,
    frames: &mut impl Iterator<Item = Pfn>,
    mut slots: Range<u32>,
) -> Result<(), PlatformFault> {
    // Samples may name a frame twice; the one in the slot around this one must be another.
    let fresh = frames.find(|&pfn| outer.is_none_or(|outer| outer.pfn != pfn));
    let (Some(slot), Some(pfn)) = (slots.next(), fresh) else { return Ok(()) };
    let open = Open::new(platform, slot, pfn)?;
    if let Some(outer) = outer.filter(|outer| outer.address == open.address) {
        return Err(PlatformFault::SlotsOverlap(outer.slot, slot));
    }
    mark(&window(open.address), pfn);
    check_slots_together(platform, Some(&open), frames, slots)?;
    match is_marked(&window(open.address), pfn) {
        true => Ok(()),
        false => Err(PlatformFault::SlotForgets(slot, pfn)),
    }
}

/// An open slot, closed when it is dropped.
struct Open<'p, P: Platform> {
    platform: &'p P,
    flags: usize,
    cpu: CpuId,
    slot: u32,
    pfn: Pfn,
    address: NonNull<u8>,
}

impl<'p, P: Platform> Open<'p, P> {
    fn new(platform: &'p P, slot: u32, pfn: Pfn) -> Result<Self, PlatformFault> {
        let flags = platform.irq_save();
        let cpu = platform.cpu_id();
        let Some(address) = platform.kmap(cpu, slot, pfn) else {
            // SAFETY: just saved.
            unsafe { platform.irq_restore(flags) };
            return Err(PlatformFault::SlotRefused(slot, pfn));
        };
        let open = Self { platform, flags, cpu, slot, pfn, address };
        if address.addr().get() % PAGE_SIZE == 0 { Ok(open) } else { Err(PlatformFault::Misaligned(pfn)) }
    }
}

impl<P: Platform> Drop for Open<'_, P> {
    fn drop(&mut self) {
        self.platform.kunmap(self.cpu, self.slot);
        // SAFETY: saved in `new`; slots inside this one are closed already.
        unsafe { self.platform.irq_restore(self.flags) };
    }
}

fn window<'a>(address: NonNull<u8>) -> Window<'a> {
    // SAFETY: by the contract of `Platform`, which is being tried, a frame's RAM is there; by the promise to `MemoryMap::new` the
    // frame is nobody's.
    unsafe { Window::new(address) }
}

/// Words at both ends and in the middle of a frame.
const PLACES: [usize; 3] = [0, PAGE_SIZE / 2 - 4, PAGE_SIZE - 8];

/// Writes what no other frame has.
fn mark(window: &Window<'_>, pfn: Pfn) {
    for place in PLACES {
        let written = window.write(place, &pfn.get().wrapping_mul(0x9e37_79b9_7f4a_7c15).to_ne_bytes());
        debug_assert!(written, "the places lie inside");
    }
}

fn is_marked(window: &Window<'_>, pfn: Pfn) -> bool {
    PLACES.into_iter().all(|place| {
        let mut bytes = [0; 8];
        window.read(place, &mut bytes)
            && u64::from_ne_bytes(bytes) == pfn.get().wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}
