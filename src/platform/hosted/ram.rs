//! Banks of RAM, in the direct map and above it.

use std::ptr::NonNull;

use crate::addr::{PAGE_SHIFT, Pfn, PfnRange};
use crate::platform::Window;

#[cfg(all(target_os = "linux", not(miri)))]
use super::linux::{Highmem, Lowmem};
#[cfg(any(not(target_os = "linux"), miri))]
use super::portable::{Highmem, Lowmem};

/// The machine's RAM.
#[derive(Debug)]
pub(super) struct Ram {
    low: Vec<(PfnRange, Lowmem)>,
    /// The banks above the direct map, and where each lies in the store.
    high: Vec<(PfnRange, u64)>,
    store: Option<Highmem>,
}

impl Ram {
    /// RAM for banks in the order of their addresses; those at and above `highmem_from` are reached by so many slots alone.
    pub(super) fn new(banks: &[PfnRange], highmem_from: Pfn, slots: usize) -> Option<Self> {
        let (mut low, mut high, mut stored) = (vec![], vec![], 0);
        for &bank in banks {
            let bytes = bank.len() << PAGE_SHIFT;
            if bank.start() < highmem_from {
                low.push((bank, Lowmem::new(usize::try_from(bytes).ok()?)?));
            } else {
                high.push((bank, stored));
                stored += bytes;
            }
        }
        let store = if high.is_empty() { None } else { Some(Highmem::new(stored, slots)?) };
        Some(Self { low, high, store })
    }

    /// The address of a frame in the direct map.
    #[inline]
    pub(super) fn direct_map(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        let (bank, memory) = self.low.iter().find(|(bank, _)| bank.contains(pfn))?;
        memory.at(offset_in(bank, pfn)? as usize)
    }

    /// The frame that an address in the direct map belongs to.
    pub(super) fn virt_to_pfn(&self, address: NonNull<u8>) -> Option<Pfn> {
        self.low.iter().find_map(|(bank, memory)| {
            let offset = address.addr().get().checked_sub(memory.at(0)?.addr().get())? as u64;
            bank.start().checked_add(offset >> PAGE_SHIFT).filter(|&pfn| bank.contains(pfn))
        })
    }

    /// A frame above the direct map.
    pub(super) fn highmem(&self, pfn: Pfn) -> Option<HighFrame<'_>> {
        let (bank, place) = self.high.iter().find(|(bank, _)| bank.contains(pfn))?;
        Some(HighFrame { store: self.store.as_ref()?, offset: place + offset_in(bank, pfn)? })
    }

    /// Lets the machine's own hardware at a frame, wherever it lies; `None` where there is no RAM.
    pub(super) fn with_frame<R>(&self, pfn: Pfn, work: impl FnOnce(&Window<'_>) -> R) -> Option<R> {
        if let Some(start) = self.direct_map(pfn) {
            // SAFETY: the frame is a whole one of a bank. What hardware reaches holds tables or data, which are accessed atomically alone:
            // that is for those to keep who give CPUs page tables and devices frames.
            let window = unsafe { Window::new(start) };
            return Some(work(&window));
        }
        let frame = self.highmem(pfn)?;
        frame.store.with(frame.offset, work)
    }

    /// Closes a window; `false` if it was not open.
    pub(super) fn close(&self, window: usize, turn: usize) -> bool {
        self.store.as_ref().is_some_and(|store| store.close(window, turn))
    }
}

/// A frame above the direct map.
#[derive(Debug)]
pub(super) struct HighFrame<'a> {
    store: &'a Highmem,
    offset: u64,
}

impl HighFrame<'_> {
    /// Opens a closed window at the frame.
    pub(super) fn open(&self, window: usize, turn: usize) -> Option<NonNull<u8>> {
        self.store.open(window, turn, self.offset)
    }
}

fn offset_in(bank: &PfnRange, pfn: Pfn) -> Option<u64> {
    Some(pfn.checked_since(bank.start())? << PAGE_SHIFT)
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;

    use super::Window;
    use crate::addr::PAGE_SIZE;

    fn window(at: Option<NonNull<u8>>) -> Window<'static> {
        // SAFETY: the tests use a window only while it is open.
        unsafe { Window::new(at.unwrap()) }
    }

    fn byte(window: &Window<'_>, at: usize) -> u8 {
        let mut byte = [0];
        assert!(window.read(at, &mut byte));
        byte[0]
    }

    macro_rules! host_memory {
        ($host:ident) => {
            mod $host {
                use super::super::super::$host::{Highmem, Lowmem};
                use super::*;

                #[test]
                fn lowmem_is_zero_and_ends_where_it_should() {
                    let memory = Lowmem::new(8 * PAGE_SIZE).unwrap();
                    assert_eq!(window(memory.at(7 * PAGE_SIZE)).find_other(0), None);
                    assert!(memory.at(8 * PAGE_SIZE).is_none());
                }

                #[test]
                fn highmem_is_kept_while_closed_and_shared_while_open() {
                    let store = Highmem::new(3 * PAGE_SIZE as u64, 2).unwrap();
                    let first = window(store.open(0, 0, PAGE_SIZE as u64));
                    assert_eq!(first.find_other(0), None);
                    let second = window(store.open(1, 0, PAGE_SIZE as u64));
                    assert!(first.write(5, &[1]));
                    assert_eq!(byte(&second, 5), 1);
                    assert!(store.close(0, 0));
                    assert!(second.write(6, &[2]));
                    assert!(store.close(1, 0));
                    for turn in 1..200 {
                        let other = window(store.open(0, turn, 2 * PAGE_SIZE as u64));
                        assert_eq!(other.find_other(0), None, "turn {turn}");
                        assert!(store.close(0, turn));
                    }
                    let again = window(store.open(0, 200, PAGE_SIZE as u64));
                    assert_eq!((byte(&again, 5), byte(&again, 6)), (1, 2));
                }

                #[test]
                fn hardware_sees_what_windows_write_and_they_see_what_it_writes() {
                    let store = Highmem::new(2 * PAGE_SIZE as u64, 1).unwrap();
                    let frame = PAGE_SIZE as u64;
                    assert_eq!(store.with(frame, |frame| frame.write(7, &[3])), Some(true));
                    let open = window(store.open(0, 0, frame));
                    assert_eq!(byte(&open, 7), 3);
                    assert!(open.write(8, &[4]));
                    assert_eq!(store.with(frame, |frame| byte(frame, 8)), Some(4));
                    assert_eq!(store.with(frame, |frame| frame.write(9, &[5])), Some(true));
                    assert!(store.close(0, 0));
                    assert_eq!(
                        store.with(frame, |frame| [7, 8, 9].map(|at| byte(frame, at))),
                        Some([3, 4, 5])
                    );
                    assert_eq!(store.with(0, |frame| frame.find_other(0)), Some(None));
                    assert_eq!(store.with(2 * PAGE_SIZE as u64, |_| ()), None);
                }

                #[test]
                fn an_address_rests_after_it_was_closed() {
                    let store = Highmem::new(PAGE_SIZE as u64, 1).unwrap();
                    let open = |turn| {
                        let at = store.open(0, turn, 0).unwrap();
                        assert!(store.close(0, turn));
                        at
                    };
                    let first = open(0);
                    assert!((1..64).all(|turn| open(turn) != first));
                }
            }
        };
    }

    #[cfg(all(target_os = "linux", not(miri)))]
    host_memory!(linux);
    host_memory!(portable);

    #[test]
    fn a_closed_buffer_shows_its_pattern_and_no_frame() {
        let store = super::super::portable::Highmem::new(PAGE_SIZE as u64, 1).unwrap();
        let frame = window(store.open(0, 0, 0));
        frame.fill(0x11);
        assert!(store.close(0, 0));
        assert!(!store.close(0, 0), "closed twice");
        assert_eq!(frame.find_other(0xdb), None);
    }
}
