//! Pages that a device uses: what it writes to them the process sees, as long as they are its own.

use std::collections::BTreeMap;
use std::ops::Range;

use kernmm::addr::{Pfn, PgOff};
use kernmm::cache::FileId;
use kernmm::fault::{Access, EntryState, PinTerm, PinUse, Signal};
use kernmm::flags::VmFlags;
use kernmm::memory::Refused;
use kernmm::phys::PageSource;
use kernmm::table::EntryFormat;

use super::access::{Expected, Touch, file_page, is_private};
use super::{Op, Own, PAGE, World, at, boxed, own};

const MAX_PINS: usize = 24;

/// A pin of one page.
pub(super) struct Pin {
    pub(super) pfn: Pfn,
    is_of: Pinned,
    access: Access,
    /// The device has written to it.
    is_written: bool,
}

/// What is pinned.
enum Pinned {
    /// A page that is, or was, a process's own; or what a file has lost.
    Own(Own),
    File(FileId, u64),
    Zero,
}

impl<F: EntryFormat> World<'_, '_, '_, '_, F> {
    pub(super) fn pin(&mut self, addr: u64, pages: u8, how: u8) {
        let count = (usize::from(pages) % 4 + 1).min(MAX_PINS - self.pins.len().min(MAX_PINS));
        let access = if how & 1 == 0 { Access::Read } else { Access::Write };
        let term = if how & 2 == 0 { PinTerm::Short } else { PinTerm::Long };
        let page = |index: usize| addr + index as u64 * PAGE;
        let first_wrong =
            (0..count).find_map(|index| Some((index, self.may_not_pin(page(index), access, term)?)));
        let mut pinned = [Pfn::ZERO; 4];
        let result =
            self.on_cpu(|space| space.process.pin_pages(at(addr), access, term, &mut pinned[..count]));
        let due = match first_wrong {
            Some((0, signal)) => Err(Refused::Signal(signal)),
            Some((index, _)) => Ok(index),
            None => Ok(count),
        };
        let is_fewer = match (result, due) {
            (Err(Refused::OutOfMemory), _) => true,
            (Ok(got), Ok(due)) => got < due,
            _ => false,
        };
        match is_fewer {
            true => self.note_out_of_memory(),
            false => assert_eq!(result, due, "{count} pins at {addr:#x}, {access:?}, {term:?}"),
        }
        let got = result.unwrap_or(0);
        // A page may have been copied, and then not pinned for want of another.
        self.learn_copies(
            (got..count).map(page).filter(|&page| self.vma(page).is_some()).collect::<Vec<_>>(),
        );
        for (index, &pfn) in pinned[..got].iter().enumerate() {
            let is_of = self.pinned(page(index), pfn, access, term);
            self.pins.push(Pin { pfn, is_of, access, is_written: false });
        }
        self.saw(if got != 0 { "pins" } else { "refused pins" });
    }

    /// Why a page cannot be pinned.
    fn may_not_pin(&self, page: u64, access: Access, term: PinTerm) -> Option<Signal> {
        let Some(vma) = self.vma(page) else { return Some(Signal::NotMapped) };
        let (needed, touch) = match access {
            Access::Write => (VmFlags::WRITE, Touch::Write),
            _ => (VmFlags::READ, Touch::Read),
        };
        let is_watched =
            vma.flags.contains(VmFlags::SHARED) && vma.backing.file().is_some_and(|file| file.has_store());
        let for_ever = access == Access::Write && term == PinTerm::Long;
        if !vma.flags.contains(needed) || for_ever && is_watched {
            return Some(Signal::Denied);
        }
        match self.reach(page, touch) {
            Expected::Signal(signal) => Some(signal),
            Expected::Page(_) => None,
        }
    }

    /// Which page it is that was pinned.
    fn pinned(&mut self, page: u64, pfn: Pfn, access: Access, term: PinTerm) -> Pinned {
        let vma = self.vma(page).unwrap();
        let is_own = self.space().private.contains_key(&page);
        let unshares = access == Access::Write || term == PinTerm::Long;
        // Huge pages are a process's own before it has written to all of them.
        let is_huge = pfn != self.vm.zero_page() && vma.backing.is_anonymous() && self.may_have_huge();
        if is_private(&vma) && (is_own || unshares || is_huge) {
            self.make_own(page);
            let state = self.state(page).and_then(EntryState::resident);
            assert_eq!(state.map(|state| state.pfn), Some(pfn), "the page at {page:#x} is another one");
            assert!(self.has_own(page));
            return Pinned::Own(self.space().private[&page].clone());
        }
        let Some((file, index)) = file_page(&vma, page) else {
            assert_eq!(pfn, self.vm.zero_page(), "what was never written at {page:#x}");
            return Pinned::Zero;
        };
        let found = self.vm.cache().find(self.memory, file.file, PgOff::new(index).unwrap());
        found.iter().for_each(|&found| self.memory.put_page(found).unwrap());
        assert_eq!(found, Some(pfn), "the file's page at {page:#x} is another one");
        Pinned::File(file.file, index)
    }

    /// These pages leave their file; who has pinned them keeps them as they are.
    pub(super) fn detach_pins(&mut self, file: FileId, pages: Range<u64>) {
        let mut lost = BTreeMap::new();
        for pin in &mut self.pins {
            match pin.is_of {
                Pinned::File(of, index) if of == file && pages.contains(&index) => {
                    let bytes = || own(boxed(self.objects[&file].page(index).unwrap()));
                    pin.is_of = Pinned::Own(lost.entry(index).or_insert_with(bytes).clone());
                }
                _ => {}
            }
        }
    }

    /// Whether a device has written to a page of a file, and not told of it yet.
    pub(super) fn is_written_behind(&self, file: FileId, index: u64) -> bool {
        let is_it = |pin: &Pin| {
            pin.is_written && matches!(pin.is_of, Pinned::File(of, at) if (of, at) == (file, index))
        };
        self.pins.iter().any(is_it)
    }

    /// Whether pages of a file are pinned.
    pub(super) fn has_pins(&self, file: FileId) -> bool {
        self.pins.iter().any(|pin| matches!(pin.is_of, Pinned::File(of, _) if of == file))
    }

    /// A device writes to a page that it may write to.
    pub(super) fn dma(&mut self, pin: u8, within: u16, byte: u8) {
        let writable: Vec<usize> =
            (0..self.pins.len()).filter(|&index| self.pins[index].access == Access::Write).collect();
        let Some(&index) = writable.get(usize::from(pin) % writable.len().max(1)) else { return };
        let within = usize::from(within) % (PAGE as usize - 8);
        let bytes = [byte; 8];
        let pin = &mut self.pins[index];
        pin.is_written = true;
        self.memory.write_frame(pin.pfn, within, &bytes).unwrap();
        match &pin.is_of {
            Pinned::Own(page) => page.borrow_mut()[within..within + 8].copy_from_slice(&bytes),
            Pinned::File(file, index) => {
                let start = (index * PAGE) as usize + within;
                let object = self.objects.get_mut(file).unwrap();
                object.bytes[start..start + 8].copy_from_slice(&bytes);
            }
            Pinned::Zero => panic!("nobody may write to the page of zeros"),
        }
        self.saw("writes by a device");
    }

    pub(super) fn unpin(&mut self, pin: u8) {
        if self.pins.is_empty() {
            return;
        }
        let pin = self.pins.swap_remove(usize::from(pin) % self.pins.len());
        let used = if pin.is_written { PinUse::Dirtied } else { PinUse::Clean };
        assert_eq!(self.vm.unpin_pages(&[pin.pfn], used), 1);
    }

    /// What is pinned has the bytes of what it is.
    pub(super) fn verify_pins(&self, op: &Op) {
        let mut bytes = [0; PAGE as usize];
        for pin in &self.pins {
            self.memory.read_frame(pin.pfn, 0, &mut bytes).unwrap();
            let is_same = match &pin.is_of {
                Pinned::Own(page) => **page.borrow() == bytes,
                Pinned::File(file, index) => self.objects[file].page(*index) == Some(&bytes[..]),
                Pinned::Zero => bytes == [0; PAGE as usize],
            };
            assert!(is_same, "{op:?}: frame {:#x}, which is pinned, has other bytes", pin.pfn);
        }
    }
}
