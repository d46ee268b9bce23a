//! Our side: an address space with a few VMAs, and the calls on it.

use kernmm::addr::{VirtAddr, VirtRange};
use kernmm::cache::Step;
use kernmm::collections::Slot;
use kernmm::flags::{Advice, MapFlags, MlockFlags, MlockallFlags, MremapFlags, MsyncFlags, Prot, VmFlags};
use kernmm::mm::{
    Advised, Backing, FileKind, FileRef, Image, Mm, MmError, NullTables, Rlimits, Sysctl, Tables, Touch, Vma,
};
use kernmm::syscall::{self, MapFile, MmapArgs, OpenMode, Residency};

use super::digest::digest;
use super::shown;
use super::space::{PAGE, RAM_PAGES, Stores, anonymous, context, map};
use super::tries::{Args, READ_ONLY, READ_WRITE, TASK, Try, Verb, WRITE_ONLY};

/// An address with something there. As a length it is more than there ever is memory.
pub(crate) const MAPPED: u64 = 0x2000_0000_0000;
/// Where the heap begins. Another VMA lies 16 pages above.
pub(crate) const HEAP: u64 = MAPPED + 64 * PAGE;
/// Where whoever calls Linux has his one page of instructions.
pub(crate) const CODE: u64 = 0x40_0000;

/// An answer: [`OK`], an error number, or one of the others.
pub(crate) type Answer = i32;
pub(crate) const OK: Answer = 0;
/// brk's: the heap ends where it did.
pub(crate) const UNCHANGED: Answer = -1;
/// Nobody was asked.
pub(crate) const NOT_ASKED: Answer = -2;

/// A line of a layout, as `/proc/PID/smaps` has it: addresses, permissions, offset, flags.
pub(crate) type Line = (u64, u64, String, u64, String);

/// What came of a call.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Outcome {
    pub(crate) answer: Answer,
    /// What is mapped then, if anything has changed.
    pub(crate) layout: Option<Vec<Line>>,
}

/// What was asked of page tables: a range of pages, counted from [`MAPPED`], and for what.
pub(crate) type Asked = (&'static str, std::ops::Range<u64>);

/// Page tables without pages that note what was asked of them; objects of shared memory are no larger than memory.
#[derive(Default)]
pub(crate) struct Objects {
    numbers: NullTables,
    /// A page that cannot be made resident, counted from [`MAPPED`].
    pub(crate) unreachable: Option<u64>,
    pub(crate) asked: Vec<Asked>,
}

impl Objects {
    fn note(&mut self, what: &'static str, range: VirtRange) {
        let page = |addr: VirtAddr| addr.get().wrapping_sub(MAPPED) / PAGE;
        if self.asked.len() < 64 {
            self.asked.push((what, page(range.start())..page(range.end())));
        }
    }
}

impl Tables for Objects {
    fn populate(
        &mut self,
        mm: &Mm<'_>,
        slot: Slot,
        rest: &mut VirtRange,
        touch: Touch,
    ) -> Result<Step, MmError> {
        let bad = self.unreachable.map(|page| VirtAddr::from(MAPPED + page * PAGE));
        let bad = bad.filter(|&bad| rest.start() <= bad && bad < rest.end());
        let mut first = VirtRange::new(rest.start(), bad.unwrap_or(rest.end())).unwrap_or_default();
        if !first.is_empty() {
            self.note("populate", first);
            let _done = self.numbers.populate(mm, slot, &mut first, touch)?;
        }
        match bad {
            None => Ok(Step::Done),
            Some(bad) => {
                *rest = VirtRange::new(bad, rest.end()).unwrap_or_default();
                Err(MmError::Unreachable)
            }
        }
    }

    fn read_ahead(&mut self, _vma: &Vma, rest: &mut VirtRange) -> Step {
        self.note("read ahead", *rest);
        Step::Done
    }

    fn advise(&mut self, _vma: &Vma, range: VirtRange, _advice: Advice) -> Result<Advised, MmError> {
        self.note("advise", range);
        Ok(Advised::Done)
    }

    fn sync(&mut self, _vma: &Vma, range: VirtRange) -> Result<(), MmError> {
        self.note("sync", range);
        Ok(())
    }

    fn shared_anonymous(&mut self, mm: &Mm<'_>, pages: u64, flags: VmFlags) -> Result<FileRef, MmError> {
        if !flags.contains(VmFlags::NORESERVE) && pages > RAM_PAGES {
            return Err(MmError::Overcommit);
        }
        self.numbers.shared_anonymous(mm, pages, flags)
    }
}

/// Runs `test` on an address space with a few VMAs.
pub(crate) fn with_space(test: impl FnOnce(&mut Mm<'_>, &mut Objects)) {
    with_settings(Sysctl::default(), test);
}

/// The same, under these settings.
pub(crate) fn with_settings(settings: Sysctl, test: impl FnOnce(&mut Mm<'_>, &mut Objects)) {
    let stores = Stores::new(64, 8);
    let context = context(&stores, settings);
    let mut mm = Mm::new(&context).unwrap();
    let mut tables = Objects::default();
    furnish(&mut mm, &mut tables);
    test(&mut mm, &mut tables);
    syscall::exit(&mut mm, &mut tables);
    assert_eq!((context.pool().used(), context.overcommit().committed()), (0, 0));
}

/// Maps what the process maps that asks the running kernel:
///
/// ```text
/// page    0  1  2  3  4        8  9        64               80
///         RW RW RW RW R        shared R    heap begins      NONE
/// ```
fn furnish(mm: &mut Mm<'_>, tables: &mut Objects) {
    map(mm, tables, MAPPED, 4, Prot::READ | Prot::WRITE).unwrap();
    map(mm, tables, MAPPED + 4 * PAGE, 1, Prot::READ).unwrap();
    let shared = MapFlags::SHARED | MapFlags::FIXED;
    syscall::mmap(mm, tables, &anonymous(MAPPED + 8 * PAGE, 2, Prot::READ, shared)).unwrap();
    map(mm, tables, HEAP + 16 * PAGE, 1, Prot::NONE).unwrap();
    let program = MapFile::new(FileRef::new(9, 9, FileKind::Memory).unwrap(), OpenMode::ReadOnly);
    let code = MmapArgs::file(program, PAGE, Prot::READ | Prot::EXEC, MapFlags::PRIVATE).fixed(CODE);
    syscall::mmap(mm, tables, &code).unwrap();
    let heap = VirtAddr::from(HEAP);
    mm.set_image(Image { start_brk: heap, brk: heap, ..Image::default() });
}

/// Performs all calls: a refused one changes nothing, unless its error is one of `partial` for its verb; what has changed is undone by starting over.
pub(crate) fn outcomes(tried: &Try) -> Vec<Outcome> {
    let mut outcomes = Vec::with_capacity(tried.count());
    with_space(|mm, tables| {
        mm.randomize_mmap_base(0);
        mm.set_rlimits(Rlimits { memlock: tried.memlock, ..*mm.rlimits() });
        for args in tried.calls() {
            let before = digest(mm);
            let result = perform(mm, tables, tried.verb, &args);
            mm.check().unwrap_or_else(|violation| panic!("{:?} {args:x?}: {violation:?}", tried.verb));
            let changed = digest(mm) != before;
            if let Err(error) = result {
                let allowed = partial(tried.verb).contains(&error);
                assert!(allowed || !changed, "{:?} {args:x?}: {error:?} changed something", tried.verb);
            }
            let layout = changed.then(|| lines(mm));
            let answer = match result {
                Ok(answer) => answer,
                Err(error) => error.errno().get(),
            };
            outcomes.push(Outcome { answer, layout });
            if changed {
                // What is yet to come is not locked.
                syscall::munlockall(mm, tables);
                syscall::exit(mm, tables);
                furnish(mm, tables);
            }
        }
    });
    outcomes
}

/// With which errors a call may have been done in part. Each has tests of its own.
const fn partial(verb: Verb) -> &'static [MmError] {
    match verb {
        Verb::Mprotect | Verb::Mlock | Verb::Mlock2 | Verb::Munlock => &[MmError::NotMapped, MmError::Denied],
        Verb::Madvise => &[MmError::NotMapped, MmError::BadAdvice, MmError::Denied, MmError::Unreachable],
        Verb::Mincore => &[MmError::NotMapped, MmError::BadVector],
        _ => &[],
    }
}

fn perform(mm: &mut Mm<'_>, tables: &mut Objects, verb: Verb, args: &Args) -> Result<Answer, MmError> {
    let [a, b, c, d, e, _] = *args;
    // What is an int there.
    let int = c as u32;
    let done = match verb {
        Verb::Mmap => syscall::mmap(mm, tables, &mmap_args(args)).map(drop),
        Verb::Mmap2 => syscall::mmap2(mm, tables, &mmap_args(args)).map(drop),
        Verb::Munmap => syscall::munmap(mm, tables, a, b),
        Verb::Mprotect => syscall::mprotect(mm, tables, a, b, Prot::from_bits_retain(c)),
        Verb::Mremap => syscall::mremap(mm, tables, a, b, c, MremapFlags::from_bits_retain(d), e).map(drop),
        Verb::Brk => return Ok(if syscall::brk(mm, tables, a).get() == a { OK } else { UNCHANGED }),
        Verb::Sbrk => syscall::sbrk(mm, tables, a as i64).map(drop),
        Verb::Madvise => syscall::madvise(mm, tables, a, b, c as i32),
        Verb::Mlock => syscall::mlock(mm, tables, a, b),
        Verb::Mlock2 => syscall::mlock2(mm, tables, a, b, MlockFlags::from_bits_retain(int)),
        Verb::Munlock => syscall::munlock(mm, tables, a, b),
        Verb::Mlockall => syscall::mlockall(mm, tables, MlockallFlags::from_bits_retain(a as u32)),
        Verb::Munlockall => {
            syscall::munlockall(mm, tables);
            Ok(())
        }
        Verb::Msync => syscall::msync(mm, tables, a, b, MsyncFlags::from_bits_retain(int)),
        Verb::Mincore => {
            let mut vector = Vector { at: c, vmas: mm.vmas().iter().map(|(_, vma)| vma).collect() };
            syscall::mincore(mm, tables, a, b, &mut vector)
        }
    };
    done.map(|()| OK)
}

fn mmap_args(&[addr, len, prot, flags, fd, offset]: &Args) -> MmapArgs {
    let file = |number, mode| {
        let file = FileRef::new(number, number, FileKind::Memory).expect("numbers from 1");
        Ok(Some(MapFile::new(file, mode)))
    };
    let file = match fd {
        READ_ONLY => file(1, OpenMode::ReadOnly),
        WRITE_ONLY => file(2, OpenMode::WriteOnly),
        READ_WRITE => file(3, OpenMode::ReadWrite),
        _ => Err(MmError::BadDescriptor),
    };
    let (prot, flags) = (Prot::from_bits_retain(prot), MapFlags::from_bits_retain(flags));
    MmapArgs { addr, len, prot, flags, file, offset }
}

/// The caller's vector for mincore, in his memory.
struct Vector {
    at: u64,
    vmas: Vec<Vma>,
}

impl Residency for Vector {
    fn can_hold(&self, pages: u64) -> bool {
        self.at.checked_add(pages).is_some_and(|end| end <= TASK)
    }

    fn put(&mut self, index: u64, _resident: bool) -> Result<(), MmError> {
        let at = VirtAddr::from(self.at + index);
        let holds = |vma: &&Vma| vma.start <= at && at < vma.end && vma.flags.contains(VmFlags::WRITE);
        self.vmas.iter().find(holds).map(drop).ok_or(MmError::BadVector)
    }
}

fn lines(mm: &Mm<'_>) -> Vec<Line> {
    mm.vmas().iter().map(|(_, vma)| line(&vma)).collect()
}

fn line(vma: &Vma) -> Line {
    let offset = if matches!(vma.backing, Backing::File(_)) { vma.pgoff.get() * PAGE } else { 0 };
    (vma.start.get(), vma.end.get(), shown::perms(vma.flags), offset, shown::codes(vma.flags))
}

/// The layout that calls begin with.
pub(crate) fn first_layout() -> Vec<Line> {
    let mut first = vec![];
    with_space(|mm, _| first = lines(mm));
    first
}
