//! Rules by example, and that `check` names what is broken.

mod bases;
mod checking;
mod limits;
mod look_up;
mod merging;
mod moving;
mod placing;

use std::string::String;
use std::vec::Vec;

use super::merge::{Merge, Proposal, Reach, merge};
use super::vma::anon_pgoff;
use super::*;
use crate::addr::{PAGE_SIZE_U64 as PAGE, PgOff, VirtAddr, VirtRange};
use crate::collections::{ListFault, Slot};
use crate::flags::{MapFlags, MlockFlags, MremapFlags, Prot, VmFlags};
use crate::rmap::{AnonNode, AnonVmaId};
use crate::syscall::{self, Binary, ElfType, ExecImage, LoadBias, MmapArgs, Segment, StackImage};

const AT: u64 = 0x10_0000_0000;
const RW: Prot = Prot::READ.union(Prot::WRITE);

/// What a context borrows.
struct Rooms {
    mms: Vec<MmSlot>,
    vma_nodes: Vec<VmaNode>,
    vmas: Vec<VmaSlot>,
    anon_vmas: Vec<AnonNode>,
    gaps: Vec<GapRoom>,
}

impl Rooms {
    fn new(vmas: usize, gaps: usize) -> Self {
        Self {
            mms: (0..4).map(|_| MmSlot::new()).collect(),
            vma_nodes: (0..vmas).map(|_| VmaNode::new()).collect(),
            vmas: (0..vmas).map(|_| VmaSlot::new()).collect(),
            anon_vmas: (0..vmas).map(|_| AnonNode::new()).collect(),
            gaps: (0..gaps).map(|_| GapRoom::new()).collect(),
        }
    }

    fn context(&self) -> MmContext<'_> {
        self.context_with(Sysctl::default())
    }

    fn context_with(&self, sysctl: Sysctl) -> MmContext<'_> {
        let Self { mms, vma_nodes, vmas, anon_vmas, gaps } = self;
        let overcommit = Overcommit::new(OvercommitMode::Guess, 1 << 20, 0);
        MmContext::new(MmStores { mms, vma_nodes, vmas, anon_vmas, gaps }, sysctl, overcommit)
    }
}

/// Runs `test` on an empty address space.
fn with_mm(test: impl FnOnce(&mut Mm<'_>, &mut NullTables)) {
    let rooms = Rooms::new(512, 64);
    let context = rooms.context();
    let mut mm = Mm::new(&context).unwrap();
    let mut tables = NullTables::default();
    test(&mut mm, &mut tables);
    mm.check().unwrap();
    context.check_anon().unwrap();
    syscall::exit(&mut mm, &mut tables);
    assert_eq!((context.pool().used(), context.gap_nodes().used()), (0, 0));
    context.check_anon().unwrap();
    assert_eq!((context.anon_vmas().used(), context.mms().used()), (0, 1));
    drop(mm);
    assert_eq!(context.mms().used(), 0);
}

fn mmap(mm: &mut Mm<'_>, tables: &mut NullTables, addr: u64, pages: u64, prot: Prot, flags: u64) -> u64 {
    let flags = MapFlags::from_bits_retain(flags | 0x22);
    let args = MmapArgs { addr, len: pages * PAGE, prot, flags, file: Ok(None), offset: 0 };
    syscall::mmap(mm, tables, &args).unwrap().get()
}

/// The VMAs as a drawing: a letter for each page, upper case at the start of a VMA; `-` where there is none.
fn drawn(mm: &Mm<'_>, pages: u64) -> String {
    let page = |page: u64| {
        let at = VirtAddr::from(AT + page * PAGE);
        let Some(slot) = mm.lookup(at) else { return '-' };
        let vma = mm.vma(slot);
        let letter = match (vma.flags.contains(VmFlags::WRITE), vma.flags.contains(VmFlags::READ)) {
            (true, _) => 'w',
            (false, true) => 'r',
            (false, false) => 'n',
        };
        if vma.start == at { letter.to_ascii_uppercase() } else { letter }
    };
    (0..pages).map(page).collect()
}

/// Maps what a drawing shows, one VMA after the other.
fn draw(mm: &mut Mm<'_>, tables: &mut NullTables, drawing: &str) {
    for (page, letter) in (0..).zip(drawing.chars()) {
        let prot = match letter.to_ascii_lowercase() {
            'w' => RW,
            'r' => Prot::READ,
            'n' => Prot::NONE,
            _ => continue,
        };
        mmap(mm, tables, AT + page * PAGE, 1, prot, 0x10);
    }
    assert_eq!(drawn(mm, drawing.len() as u64), drawing);
}

fn touch(mm: &mut Mm<'_>, page: u64) {
    let slot = mm.lookup(VirtAddr::from(AT + page * PAGE)).unwrap();
    mm.prepare_anon(slot).unwrap();
}

fn protect(mm: &mut Mm<'_>, tables: &mut NullTables, from: u64, pages: u64, prot: Prot) {
    syscall::mprotect(mm, tables, AT + from * PAGE, pages * PAGE, prot).unwrap();
}
