//! A naive model of address spaces, page by page, and operations for it: shared by the model test and the fuzz target.

mod calls;
mod refusals;

use std::collections::{BTreeMap, BTreeSet};

use kernmm::addr::VirtAddr;
use kernmm::flags::{MapFlags, MlockFlags, MlockallFlags, MsyncFlags, Prot, VmFlags};
use kernmm::mm::{
    Backing, FileKind, FileRef, Image, Mm, MmContext, MmError, NullTables, Overcommit, OvercommitMode,
    Rlimits, Sysctl, Totals, Touch, Vma,
};
use kernmm::syscall::{self, MapFile, MmapArgs, OpenMode};

#[path = "../../examples/common/stores.rs"]
mod stores;

use stores::Stores;

const PAGE: u64 = 4096;
/// Addresses are so few that operations meet: 16 MiB, of which placement uses all.
const TASK: u64 = 16 << 20;
const HEAP: u64 = TASK / 2;
const MAX_SPACES: usize = 4;

/// How much there is for address spaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Means {
    /// VMAs of all of them together.
    pub(crate) slots: usize,
    pub(crate) limits: Limits,
}

/// What else is limited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Limits {
    /// Nothing but single requests for more than there is.
    Linux,
    /// A little of everything: VMAs, committed memory, and what an address space may map, write to and lock.
    Tight,
}

impl Limits {
    fn overcommit(self) -> Overcommit {
        match self {
            Self::Linux => Overcommit::new(OvercommitMode::Guess, 1 << 20, 0),
            Self::Tight => Overcommit::new(OvercommitMode::Never, 40, 0).with_reserves(0, 0),
        }
    }

    fn max_map_count(self) -> u32 {
        match self {
            Self::Linux => 96,
            Self::Tight => 12,
        }
    }

    fn rlimits(self) -> Rlimits {
        match self {
            Self::Linux => Rlimits::default(),
            Self::Tight => Rlimits {
                address_space: 44 * PAGE,
                data: 20 * PAGE,
                stack: 16 * PAGE,
                memlock: 16 * PAGE,
                ..Rlimits::default()
            },
        }
    }
}

/// An operation, as small numbers that [`Machine`] makes addresses and lengths of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(fuzzing, derive(arbitrary::Arbitrary))]
pub(crate) enum Op {
    Mmap {
        at: u16,
        len: u16,
        prot: u8,
        flags: u32,
        file: u8,
        offset: u8,
    },
    Munmap {
        at: u16,
        len: u16,
    },
    Mprotect {
        at: u16,
        len: u16,
        prot: u8,
    },
    Mremap {
        at: u16,
        old: u16,
        new: u16,
        flags: u8,
        to: u16,
    },
    Madvise {
        at: u16,
        len: u16,
        advice: u8,
    },
    Mlock {
        at: u16,
        len: u16,
        flags: u8,
    },
    Munlock {
        at: u16,
        len: u16,
    },
    Mlockall {
        flags: u8,
    },
    Munlockall,
    Msync {
        at: u16,
        len: u16,
        flags: u8,
    },
    Brk {
        to: u16,
    },
    Touch {
        at: u16,
        write: bool,
    },
    Fork,
    Exit,
    /// The operations that follow are those of another address space.
    Switch {
        to: u8,
    },
    /// Raw arguments, to see that nothing is believed unchecked.
    Wild {
        verb: u8,
        a: u64,
        b: u64,
        c: u64,
        d: u64,
    },
}

/// What the model knows of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    flags: VmFlags,
    /// The file and the page of it, for mappings of files.
    file: Option<(u32, u64)>,
}

/// Flags whose history the model does not follow.
const UNTRACKED: VmFlags = VmFlags::ACCOUNT.union(VmFlags::MAYBE_GUARD);

/// Address spaces of ours beside the model of each.
pub(crate) struct Machine<'c> {
    context: &'c MmContext<'c>,
    spaces: Vec<Space<'c>>,
    current: usize,
}

/// Where an operation's section of the address space is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Section {
    UnderWay,
    Over,
}

struct Space<'c> {
    context: &'c MmContext<'c>,
    mm: Mm<'c>,
    pages: BTreeMap<u64, Page>,
    tables: NullTables,
}

/// Runs operations on a fresh machine and verifies everything after each.
pub(crate) fn run(operations: &[Op], means: Means) {
    let stores = Stores::new(means.slots, 32).with_mms(MAX_SPACES);
    let sysctl = Sysctl { task_size: TASK, max_map_count: means.limits.max_map_count(), ..Sysctl::default() };
    let context = MmContext::new(stores.lend(), sysctl, means.limits.overcommit());
    let mut machine = Machine::new(&context, means.limits.rlimits());
    for op in operations {
        machine.step(op);
    }
    machine.end();
    assert_eq!(context.pool().used(), 0, "slots left over");
    assert_eq!(context.gap_nodes().used(), 0, "gap nodes left over");
    assert_eq!(context.mms().used(), 0, "address spaces left over");
    assert_eq!(context.anon_vmas().used(), 0, "owners of anonymous pages left over");
    assert_eq!(context.overcommit().committed(), 0, "committed memory left over");
}

fn page_align(len: u64) -> u64 {
    len.wrapping_add(PAGE - 1) & !(PAGE - 1)
}

impl<'c> Machine<'c> {
    pub(crate) fn new(context: &'c MmContext<'c>, limits: Rlimits) -> Self {
        let mut mm = Mm::new(context).expect("there is an address space");
        mm.set_rlimits(limits);
        let heap = VirtAddr::from(HEAP);
        mm.set_image(Image { start_brk: heap, brk: heap, ..Image::default() });
        let space = Space { context, mm, pages: BTreeMap::new(), tables: NullTables::default() };
        Self { context, spaces: vec![space], current: 0 }
    }

    pub(crate) fn end(&mut self) {
        for space in &mut self.spaces {
            syscall::exit(&mut space.mm, &mut space.tables);
            assert_eq!(*space.mm.totals(), Totals::default());
        }
        self.spaces.clear();
    }

    /// Performs an operation and verifies everything.
    pub(crate) fn step(&mut self, op: &Op) {
        match *op {
            Op::Fork => self.fork(),
            Op::Exit => self.exit(),
            Op::Switch { to } => self.current = usize::from(to) % self.spaces.len(),
            _ => self.spaces[self.current].step(op),
        }
        self.spaces[self.current].end_section(op);
        self.spaces[self.current].verify(op);
        let committed: u64 = self.spaces.iter().map(|space| space.mm.totals().committed).sum();
        assert_eq!(self.context.overcommit().committed(), committed, "{op:?}");
        self.context.check_anon().unwrap_or_else(|fault| panic!("{op:?}: {fault:?}"));
    }

    fn fork(&mut self) {
        if self.spaces.len() == MAX_SPACES {
            return;
        }
        let parent = &mut self.spaces[self.current];
        let mut tables = parent.tables.clone();
        let mut mm = parent.mm.new_child().expect("there are as many as may be made");
        if syscall::fork(&mut parent.mm, &mut parent.tables, &mut mm, &mut tables).is_err() {
            return;
        }
        let inherited = parent.pages.iter().filter(|(_, page)| !page.flags.contains(VmFlags::DONTCOPY));
        let unlocked = |page: &Page| Page { flags: page.flags - VmFlags::LOCKED_MASK, ..*page };
        let pages = inherited.map(|(&at, page)| (at, unlocked(page))).collect();
        let mut child = Space { context: self.context, mm, pages, tables };
        child.end_section(&Op::Fork);
        child.verify(&Op::Fork);
        self.spaces.push(child);
    }

    fn exit(&mut self) {
        if self.spaces.len() > 1 {
            let mut space = self.spaces.swap_remove(self.current);
            syscall::exit(&mut space.mm, &mut space.tables);
            self.current = 0;
        }
    }
}

/// An address: mostly a page, now and then not at its start.
fn address(at: u16) -> u64 {
    let page = u64::from(at >> 3) % (TASK / PAGE + 2);
    page * PAGE + if at & 7 == 7 { 1 } else { 0 }
}

/// A length: mostly a few pages.
fn length(len: u16) -> u64 {
    let pages = u64::from(len >> 4) % if len & 15 == 15 { 1024 } else { 24 };
    pages * PAGE + if len & 7 == 7 { 1 } else { 0 }
}

/// The file with this number: 1 is open for both, 2 for reading, 3 for writing.
fn file(number: u8) -> Result<Option<MapFile>, MmError> {
    let mode = match number % 5 {
        0 => return Ok(None),
        1 => OpenMode::ReadWrite,
        2 => OpenMode::ReadOnly,
        3 => OpenMode::WriteOnly,
        _ => return Err(MmError::BadDescriptor),
    };
    let number = u32::from(number % 5);
    Ok(FileRef::new(1, number, FileKind::Memory).map(|file| MapFile::new(file, mode)))
}

impl Space<'_> {
    fn step(&mut self, op: &Op) {
        let (mm, tables) = (&mut self.mm, &mut self.tables);
        match *op {
            Op::Mmap { at, len, prot, flags, file: number, offset } => {
                // Types and flags that matter are common; all others are tried too.
                let flags = MapFlags::from_bits_retain(u64::from(flags));
                let args = MmapArgs {
                    addr: address(at),
                    len: length(len),
                    prot: Prot::from_bits_retain(u64::from(prot & 15)),
                    flags,
                    file: file(number),
                    offset: u64::from(offset) * PAGE / 2,
                };
                self.mmap(&args);
            }
            Op::Munmap { at, len } => self.munmap(address(at), length(len)),
            Op::Mprotect { at, len, prot } => {
                let prot = Prot::from_bits_retain(u64::from(prot & 15));
                self.mprotect(address(at), length(len), prot);
            }
            Op::Mremap { at, old, new, flags, to } => {
                self.mremap(address(at), length(old), length(new), u64::from(flags & 15), address(to));
            }
            Op::Madvise { at, len, advice } => self.madvise(address(at), length(len), i32::from(advice)),
            Op::Mlock { at, len, flags } => {
                let flags = MlockFlags::from_bits_retain(u32::from(flags & 3));
                let result = syscall::mlock2(mm, tables, address(at), length(len), flags);
                let mut lock = VmFlags::LOCKED;
                lock.set(VmFlags::LOCKONFAULT, flags.contains(MlockFlags::ONFAULT));
                if matches!(result, Ok(()) | Err(MmError::NotMapped)) {
                    self.lock(address(at), length(len), lock);
                } else {
                    self.resync(result.is_err());
                }
            }
            Op::Munlock { at, len } => {
                let result = syscall::munlock(mm, tables, address(at), length(len));
                if matches!(result, Ok(()) | Err(MmError::NotMapped)) {
                    self.lock(address(at), length(len), VmFlags::empty());
                } else {
                    self.resync(result.is_err());
                }
            }
            Op::Mlockall { flags } => {
                let flags = MlockallFlags::from_bits_retain(u32::from(flags & 7));
                let result = syscall::mlockall(mm, tables, flags);
                if result.is_ok() && flags.contains(MlockallFlags::CURRENT) {
                    let mut lock = VmFlags::LOCKED;
                    lock.set(VmFlags::LOCKONFAULT, flags.contains(MlockallFlags::ONFAULT));
                    self.lock_pages(0, TASK / PAGE, lock);
                }
            }
            Op::Munlockall => {
                syscall::munlockall(mm, tables);
                self.lock_pages(0, TASK / PAGE, VmFlags::empty());
            }
            Op::Msync { at, len, flags } => {
                let flags = MsyncFlags::from_bits_retain(u32::from(flags & 15));
                let _ = syscall::msync(mm, tables, address(at), length(len), flags);
            }
            Op::Brk { to } => {
                let old = page_align(mm.image().brk.get());
                let new = page_align(syscall::brk(mm, tables, HEAP + length(to)).get());
                let flags = VmFlags::DATA_DEFAULT | mm.def_flags();
                self.clear(new / PAGE, old / PAGE);
                self.fill(old / PAGE, new / PAGE, |_| Page { flags, file: None });
            }
            Op::Touch { at, write } => {
                self.touch(address(at), if write { Touch::Write } else { Touch::Read })
            }
            Op::Wild { verb, a, b, c, d } => self.wild(verb, [a, b, c, d]),
            Op::Fork | Op::Exit | Op::Switch { .. } => {}
        }
    }

    fn wild(&mut self, verb: u8, [a, b, c, d]: [u64; 4]) {
        match verb % 8 {
            0 => self.munmap(a, b),
            1 => self.mprotect(a, b, Prot::from_bits_retain(c)),
            2 => self.mremap(a, b, c, d & 15, d & !15),
            3 => self.madvise(a, b, c as i32),
            4 => {
                let flags = MapFlags::from_bits_retain(d);
                let prot = Prot::from_bits_retain(c & 7);
                self.mmap(&MmapArgs { addr: a, len: b, prot, flags, file: file(c as u8), offset: c });
            }
            5 => {
                let flags = MsyncFlags::from_bits_retain(c as u32);
                let _ = syscall::msync(&self.mm, &mut self.tables, a, b, flags);
            }
            6 => {
                let mut answers = [0; 16];
                let _ = syscall::mincore(&self.mm, &mut self.tables, a, b, answers.as_mut_slice());
            }
            _ => {
                let result = syscall::munlock(&mut self.mm, &mut self.tables, a, b);
                if matches!(result, Ok(()) | Err(MmError::NotMapped)) {
                    self.lock(a, b, VmFlags::empty());
                } else {
                    self.resync(result.is_err());
                }
            }
        }
    }

    fn fill(&mut self, from: u64, to: u64, page: impl Fn(u64) -> Page) {
        self.pages.extend((from..to).map(|at| (at, page(at))));
    }

    fn clear(&mut self, from: u64, to: u64) {
        if from < to {
            self.pages.retain(|at, _| !(from..to).contains(at));
        }
    }

    /// For want of slots or of VMAs a call that goes VMA by VMA ends anywhere: the model learns where.
    fn resync(&mut self, short: bool) {
        if short {
            self.pages = self.seen();
        }
    }

    /// The pages as the VMAs have them.
    fn seen(&self) -> BTreeMap<u64, Page> {
        let page_of = |vma: &Vma, at: u64| {
            let file = match vma.backing {
                Backing::File(file) => {
                    Some((file.open.0.get(), vma.pgoff_at(VirtAddr::from(at * PAGE)).get()))
                }
                _ => None,
            };
            Page { flags: vma.flags - UNTRACKED, file }
        };
        self.mm
            .vmas()
            .iter()
            .flat_map(|(_, vma)| {
                (vma.start.vpn().get()..vma.end.vpn().get()).map(move |at| (at, page_of(&vma, at)))
            })
            .collect()
    }

    /// Ends the section of an operation, as a kernel does before it unlocks: then look-ups without the lock find what those with it find.
    fn end_section(&mut self, op: &Op) {
        self.verify_unlocked(op, Section::UnderWay);
        self.mm.end_section();
        self.verify_unlocked(op, Section::Over);
    }

    /// Looks pages up without the lock, at both sides of each border of a VMA: what is found is what the lock would have shown, and when the
    /// section is over, all of it is found.
    fn verify_unlocked(&self, op: &Op, section: Section) {
        let mut at = BTreeSet::new();
        for (_, vma) in self.mm.vmas().iter() {
            let (first, end) = (vma.start.get(), vma.end.get());
            at.extend([first.saturating_sub(PAGE), first, end - PAGE, end]);
        }
        for addr in at.into_iter().map(VirtAddr::from) {
            // Asked first, for a look-up leaves the name of what it has found.
            let locked =
                self.context.lock_vma(self.mm.id(), addr).map(|locked| (locked.slot(), locked.vma()));
            let found = self.mm.lookup(addr).map(|slot| (slot, self.mm.vma(slot)));
            let passed_over = section == Section::UnderWay && locked.is_none();
            assert!(
                passed_over || locked == found,
                "{op:?}: {addr:?}, {section:?}: {locked:?}, not {found:?}"
            );
        }
    }

    fn verify(&self, op: &Op) {
        let complain = |violation| panic!("{op:?}: {violation:?}\n{:#x?}", self.mm.vmas());
        self.mm.check().unwrap_or_else(complain);
        let seen = self.seen();
        if seen != self.pages {
            let differs = |at: &&u64| seen.get(at) != self.pages.get(at);
            let at = seen.keys().chain(self.pages.keys()).find(differs);
            let at = at.copied().unwrap_or(0);
            panic!("{op:?}: page {at:#x} is {:?}, should be {:?}", seen.get(&at), self.pages.get(&at));
        }
    }
}
