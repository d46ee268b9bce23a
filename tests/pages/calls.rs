//! Calls that change what a process has mapped.

use kernmm::fault::{EntryState, PageKind};
use kernmm::flags::{Advice, MapFlags, MremapFlags, Prot};
use kernmm::mm::FileKind;
use kernmm::syscall::MmapArgs;

use super::*;

impl<F: EntryFormat> World<'_, '_, '_, '_, F> {
    pub(super) fn mmap(&mut self, addr: u64, len: u64, prot: u8, how: u8, file: u8, offset: u8) {
        let mut flags = if how & 1 == 0 { MapFlags::PRIVATE } else { MapFlags::SHARED } | MapFlags::FIXED;
        let populate = how & 0x30 == 0x30;
        flags.set(MapFlags::POPULATE, populate);
        flags.set(MapFlags::NORESERVE, how & 0x40 != 0);
        let kept = &self.files[usize::from(file) % FILES];
        let opened = if how & 8 != 0 { kept.read_only.as_ref().unwrap_or(&kept.both) } else { &kept.both };
        let file = (how & 6 != 0).then(|| opened.map_file());
        flags.set(MapFlags::ANONYMOUS, file.is_none());
        let offset = if file.is_some() { u64::from(offset % 6) * PAGE } else { 0 };
        let args = MmapArgs { addr, len, prot: protection(prot), flags, file: Ok(file), offset };
        let result = self.on_cpu(|space| space.process.mmap(&args));
        if self.note(result).is_none() {
            return;
        }
        self.forget(addr, len);
        let vma = self.vma(addr).expect("what was mapped is there");
        if let Backing::File(file) = vma.backing {
            if file.kind == FileKind::SharedAnonymous {
                self.objects.insert(file.file, Object::new(len));
            }
        }
        if populate {
            self.learn_copies(addr, len);
        }
    }

    /// What was made resident to be written is the process's own from now on, as far as it went.
    fn learn_copies(&mut self, addr: u64, len: u64) {
        for page in self.mapped(addr, len) {
            let state = self.space().process.entry_state(at(page)).and_then(EntryState::resident);
            let is_own = state.is_some_and(|state| state.kind == PageKind::Anonymous);
            if let (true, Some(Expected::Page(bytes))) = (is_own, self.contents(self.space(), page)) {
                self.private().entry(page).or_insert(bytes);
            }
        }
    }

    pub(super) fn mremap(&mut self, from: u64, old: u64, new: u64, how: u8, to: u64) {
        let flags = [0, 1, 1, 3, 3, 3, 7, 5][usize::from(how % 8)];
        let flags = MremapFlags::from_bits_retain(flags);
        let new = if how & 0x10 != 0 { old } else { new };
        let old = if how & 0xe0 == 0xe0 { 0 } else { old };
        // Of several VMAs some may have moved when it fails.
        if self.vma(from).is_none_or(|vma| vma.end.get() < from + old) {
            return;
        }
        let result = self.on_cpu(|space| space.process.mremap(from, old, new, flags, to));
        let Some(to) = self.note(result).map(VirtAddr::get) else { return };
        let moved = self.private().extract_if_range(from, from + old.min(new));
        if to != from {
            self.forget(to, new);
            self.forget(from, old);
        } else {
            self.forget(from + new, old.saturating_sub(new));
        }
        self.private().extend(moved.into_iter().map(|(page, bytes)| (page - from + to, bytes)));
    }

    pub(super) fn madvise(&mut self, addr: u64, len: u64, advice: u8) {
        const ADVICE: [Advice; 16] = [
            Advice::DontNeed,
            Advice::DontNeed,
            Advice::DontNeed,
            Advice::Remove,
            Advice::WillNeed,
            Advice::Free,
            Advice::PopulateRead,
            Advice::PopulateWrite,
            Advice::DontFork,
            Advice::DoFork,
            Advice::WipeOnFork,
            Advice::KeepOnFork,
            Advice::Random,
            Advice::Normal,
            Advice::HugePage,
            Advice::NoHugePage,
        ];
        let advice = ADVICE[usize::from(advice) % ADVICE.len()];
        let in_one = self.vma(addr).filter(|vma| vma.end.get() >= addr + len);
        if advice == Advice::Remove && in_one.is_none() {
            return;
        }
        let result = self.on_cpu(|space| space.process.madvise(addr, len, advice as i32));
        self.note(result);
        match (advice, result) {
            (Advice::DontNeed, Ok(()) | Err(MmError::NotMapped)) => self.forget(addr, len),
            (Advice::Remove, Ok(())) => {
                let Some((vma, file)) = in_one.and_then(|vma| Some((vma, vma.backing.file()?))) else {
                    return;
                };
                let first = vma.pgoff_at(at(addr)).get() * PAGE;
                let object = self.objects.get_mut(&file.file).unwrap();
                let end = (first + len).min(object.bytes.len() as u64);
                if first < end {
                    object.bytes[first as usize..end as usize].fill(0);
                }
            }
            (Advice::PopulateWrite, _) => self.learn_copies(addr, len),
            // What is to be freed is kept as long as memory is not reclaimed.
            _ => {}
        }
    }
}

pub(super) fn protection(prot: u8) -> Prot {
    Prot::from_bits_retain([3, 3, 3, 1, 0, 5, 7, 2][usize::from(prot % 8)])
}

trait ExtractRange {
    fn extract_if_range(&mut self, from: u64, end: u64) -> Vec<(u64, Bytes)>;
}

impl ExtractRange for BTreeMap<u64, Bytes> {
    fn extract_if_range(&mut self, from: u64, end: u64) -> Vec<(u64, Bytes)> {
        let pages: Vec<u64> = self.range(from..end.max(from)).map(|(&page, _)| page).collect();
        pages.into_iter().filter_map(|page| Some((page, self.remove(&page)?))).collect()
    }
}
