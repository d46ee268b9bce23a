//! Calls that change what a process has mapped.

use kernmm::addr::VirtAddr;
use kernmm::flags::{MapFlags, MremapFlags, Prot, VmFlags};
use kernmm::mm::{Backing, FileKind, MmError, Vma};
use kernmm::syscall::MmapArgs;
use kernmm::table::EntryFormat;

use super::files::Object;
use super::locks::Purpose;
use super::{FILES, PAGE, World, at};

/// A part of a range that lies in one VMA.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) vma: Vma,
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Part {
    pub(super) fn pages(&self) -> impl Iterator<Item = u64> {
        (self.start..self.end).step_by(PAGE as usize)
    }

    pub(super) fn len(&self) -> u64 {
        self.end - self.start
    }
}

impl<F: EntryFormat> World<'_, '_, '_, '_, F> {
    /// What lies in a range, VMA by VMA, and whether there are holes between.
    pub(super) fn parts(&self, addr: u64, len: u64) -> (Vec<Part>, bool) {
        let end = addr + len;
        let vmas: Vec<Vma> = self.space().process.with(|mm| mm.vmas().iter().map(|(_, vma)| vma).collect());
        let inside = vmas.into_iter().filter(|vma| vma.start.get() < end && addr < vma.end.get());
        let part = |vma: Vma| Part { vma, start: vma.start.get().max(addr), end: vma.end.get().min(end) };
        let parts: Vec<Part> = inside.map(part).collect();
        let mapped: u64 = parts.iter().map(Part::len).sum();
        (parts, mapped != len)
    }

    pub(super) fn mmap(&mut self, addr: u64, len: u64, prot: u8, how: u8, file: u8, offset: u8) {
        let mut flags = if how & 1 == 0 { MapFlags::PRIVATE } else { MapFlags::SHARED } | MapFlags::FIXED;
        flags.set(MapFlags::POPULATE, how & 0x30 == 0x30);
        flags.set(MapFlags::NORESERVE, how & 0x40 != 0);
        flags.set(MapFlags::LOCKED, how & 0xa0 == 0xa0);
        let kept = &self.files[usize::from(file) % FILES];
        let reads_only = how & 8 != 0 && kept.read_only.is_some();
        let opened = if reads_only { kept.read_only.as_ref().unwrap() } else { &kept.both };
        let file = (how & 6 != 0).then(|| opened.map_file());
        flags.set(MapFlags::ANONYMOUS, file.is_none());
        let offset = if file.is_some() { u64::from(offset % 6) * PAGE } else { 0 };
        let args = MmapArgs { addr, len, prot: protection(prot), flags, file: Ok(file), offset };
        let writes = how & 1 != 0 && args.prot.contains(Prot::WRITE);
        let due = if reads_only && file.is_some() && writes { Err(MmError::NotWritable) } else { Ok(()) };
        let result = self.on_cpu(|space| space.process.mmap(&args));
        if self.settle(result, due).is_none() {
            return;
        }
        self.forget(addr, len);
        let vma = self.vma(addr).expect("what was mapped is there");
        if let Backing::File(file) = vma.backing {
            if file.kind == FileKind::SharedAnonymous {
                self.detach_pins(file.file, 0..u64::MAX);
                self.objects.insert(file.file, Object::new(len));
            }
        }
        if flags.intersects(MapFlags::POPULATE | MapFlags::LOCKED) || vma.flags.contains(VmFlags::LOCKED) {
            let plan = self.plan(addr, len, Purpose::Mapping);
            self.follow(&plan);
        }
    }

    pub(super) fn munmap(&mut self, addr: u64, len: u64) {
        let result = self.on_cpu(|space| space.process.munmap(addr, len));
        if self.settle(result, Ok(())).is_some() {
            self.forget(addr, len);
        }
    }

    pub(super) fn mprotect(&mut self, addr: u64, len: u64, prot: Prot) {
        let (parts, hole) = self.parts(addr, len);
        let (mut due, mut next, mut done) =
            (if hole { Err(MmError::NotMapped) } else { Ok(()) }, addr, vec![]);
        for part in parts {
            if part.start != next {
                break;
            }
            if prot.contains(Prot::WRITE) && !part.vma.flags.contains(VmFlags::MAYWRITE) {
                due = Err(MmError::Denied);
                break;
            }
            next = part.end;
            done.push(part);
        }
        let result = self.on_cpu(|space| space.process.mprotect(addr, len, prot));
        self.settle(result, due);
        // What is locked and becomes writable may be copied at once.
        for part in done.iter().filter(|part| part.vma.flags.contains(VmFlags::LOCKED)) {
            self.learn_copies(part.pages());
        }
    }

    pub(super) fn mremap(&mut self, from: u64, old: u64, new: u64, how: u8, to: u64) {
        let flags = [0, 1, 1, 3, 3, 3, 7, 5][usize::from(how % 8)];
        let flags = MremapFlags::from_bits_retain(flags);
        let new = if how & 0x10 != 0 { old } else { new };
        let old = if how & 0xe0 == 0xe0 { 0 } else { old };
        // Of several VMAs some may have moved when it fails.
        let Some(vma) = self.vma(from).filter(|vma| vma.end.get() >= from + old) else { return };
        let result = self.on_cpu(|space| space.process.mremap(from, old, new, flags, to));
        let Some(to) = self.note(result).map(VirtAddr::get) else { return };
        let moves = from..from + old.min(new);
        let (pages, guards) = (extract(self.private(), &moves), extract_guards(self.guards(), &moves));
        if to != from {
            self.forget(to, new);
            self.forget(from, old);
        } else {
            self.forget(from + new, old.saturating_sub(new));
        }
        self.private().extend(pages.into_iter().map(|(page, bytes)| (page - from + to, bytes)));
        self.guards().extend(guards.into_iter().map(|page| page - from + to));
        if new > old && vma.flags.contains(VmFlags::LOCKED) {
            let plan = self.plan(to + old, new - old, Purpose::Mapping);
            self.follow(&plan);
        }
    }

    pub(super) fn fork(&mut self) {
        if self.spaces.len() == super::MAX_PROCESSES {
            return;
        }
        let result = self.on_cpu(|space| space.process.fork());
        let Some(process) = self.settle(result, Ok(())) else { return };
        let lost = VmFlags::DONTCOPY | VmFlags::WIPEONFORK;
        let kept = |page: u64| self.vma(page).is_some_and(|vma| !vma.flags.intersects(lost));
        let own = self.space().private.iter().filter(|&(&page, _)| kept(page));
        let private = own.map(|(&page, bytes)| (page, super::own(bytes.borrow().clone()))).collect();
        let guards = self.space().guards.iter().copied().filter(|&page| kept(page)).collect();
        let heap = self.space().heap;
        self.spaces.push(super::Space { process, private, guards, future: VmFlags::empty(), heap });
    }

    pub(super) fn exit(&mut self) {
        if self.spaces.len() > 1 {
            let space = self.spaces.swap_remove(self.current);
            self.current = 0;
            self.leave(&space);
        }
    }

    pub(super) fn vma(&self, addr: u64) -> Option<Vma> {
        self.space().process.with(|mm| Some(mm.vma(mm.lookup(at(addr))?)))
    }
}

pub(super) fn protection(prot: u8) -> Prot {
    Prot::from_bits_retain([3, 3, 3, 1, 0, 5, 7, 2][usize::from(prot % 8)])
}

fn extract<T>(pages: &mut std::collections::BTreeMap<u64, T>, range: &std::ops::Range<u64>) -> Vec<(u64, T)> {
    let found: Vec<u64> = pages.range(range.clone()).map(|(&page, _)| page).collect();
    found.into_iter().filter_map(|page| pages.remove_entry(&page)).collect()
}

fn extract_guards(guards: &mut std::collections::BTreeSet<u64>, range: &std::ops::Range<u64>) -> Vec<u64> {
    let found: Vec<u64> = guards.range(range.clone()).copied().collect();
    found.into_iter().filter(|page| guards.remove(page)).collect()
}
