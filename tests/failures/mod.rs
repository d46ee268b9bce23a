//! What is as it was after a call that failed, and what each call may have changed all the same.

use std::collections::BTreeMap;

use kernmm::addr::{VirtAddr, VirtRange};
use kernmm::cache::{FileId, FileStat};
use kernmm::fault::{EntryState, PageKind};
use kernmm::flags::{PageFlags, VmFlags};
use kernmm::memory::{Process, Vm};
use kernmm::mm::Vma;
use kernmm::phys::PageSource;
use kernmm::table::PteBits;

const PAGE: u64 = 4096;

/// A difference that a call may leave although it was refused, as it may in Linux. Ranges are an address and a number of pages, of the parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum May {
    /// The VMA there has got an owner for anonymous pages (`vmf_anon_prepare` comes before the frame).
    Owner(u64, u64),
    /// Pages have come where none was (`populate_vma_page_range`, and what is mapped around a page).
    Come(u64, u64),
    /// Pages of a file, or of a child's too, have given way to copies (the same, for writing).
    Copied(u64, u64),
    /// They are gone: the file has become shorter.
    Gone(u64, u64),
    /// Entries have lost the right to write and are clean: the page was written to the store (`folio_mkclean`).
    Cleaned(u64, u64),
    /// The VMA says that it may have some (`madvise_guard_install` notes that first).
    MaybeGuard(u64, u64),
    /// The range is locked, and only its pages could not be had (`mlock` sets the flag first).
    Locked(u64, u64),
    /// The stack has grown by this (`expand_stack` comes before the page).
    Grown(u64, u64),
    /// Pages that can be written are the parent's and, for a while, were to be the child's: they are to be copied (`copy_present_ptes`).
    Protected,
    /// More pages of this file are in memory; none of them is dirty.
    Cached(usize),
    /// Fewer pages of it are dirty.
    Synced(usize),
    /// It has this length, and no page beyond it (`truncate_setsize` comes first).
    Cut(usize, u64),
    /// Files in memory have more pages.
    InMemory,
}

/// What a process's page is: what maps it, and what is there.
type Pages = BTreeMap<u64, (Vma, Option<EntryState>)>;

/// All that a refused call must leave as it was.
pub(crate) struct Digest {
    /// The parent's, and the child's.
    spaces: [Pages; 2],
    vmas: [u32; 2],
    committed: u64,
    slots: u32,
    anon_vmas: u32,
    files: Vec<FileStat>,
    /// Pages of files in memory.
    memory: u64,
}

impl Digest {
    pub(crate) fn new<S: PageSource>(
        vm: &Vm<'_, S>,
        spaces: [&Process<'_, '_, S>; 2],
        files: &[FileId],
    ) -> Self {
        let context = vm.context();
        let stat = |&file: &FileId| {
            let mut stat = vm.cache().stat(vm.source(), file).unwrap();
            // Apart from its VMAs, which are compared by themselves.
            stat.users -= spaces.iter().map(|process| vmas_of(process, file)).sum::<u32>();
            stat
        };
        let files: Vec<FileStat> = files.iter().map(stat).collect();
        let cached: u64 = files.iter().map(|file| u64::from(file.pages)).sum();
        Self {
            spaces: spaces.map(pages),
            vmas: spaces.map(|process| process.with(|mm| mm.vmas().len())),
            committed: context.overcommit().committed(),
            slots: context.pool().used(),
            anon_vmas: context.anon_vmas().used(),
            files,
            memory: vm.cache().pages(vm.source()) - cached,
        }
    }

    /// What is different now and is none of what `may` be.
    pub(crate) fn changes(&self, now: &Self, may: &[May]) -> Vec<String> {
        let mut found = vec![];
        let mut owners = 0;
        for (space, (then, now)) in self.spaces.iter().zip(&now.spaces).enumerate() {
            // What was said of addresses is said of the parent, but for what a file loses.
            let of_all = |may: &&May| space == 0 || matches!(may, May::Gone(..));
            let may: Vec<May> = may.iter().filter(of_all).copied().collect();
            for &page in then.keys().chain(now.keys().filter(|page| !then.contains_key(page))) {
                let (before, after) = (then.get(&page), now.get(&page));
                owners += usize::from(owner(before) != owner(after));
                if before != after && !page_may(&may, page, before, after) {
                    found.push(format!("process {space}, page {page:#x}: {before:?} → {after:?}"));
                }
            }
        }
        for (number, (then, now)) in self.files.iter().zip(&now.files).enumerate() {
            if then != now && !may.iter().any(|may| file_may(*may, number, then, now)) {
                found.push(format!("file {number}: {then:?} → {now:?}"));
            }
        }
        let mut same = |what: &str, then: i64, now: i64, by: i64| {
            if now - then != by {
                found.push(format!("{what}: {then} → {now}, and not by {by}"));
            }
        };
        let vmas: i64 = i64::from(now.vmas.iter().sum::<u32>()) - i64::from(self.vmas.iter().sum::<u32>());
        same("slots of VMAs", self.slots.into(), now.slots.into(), vmas);
        let grown = may.iter().any(|may| matches!(may, May::Grown(..)));
        let committed = if grown { self.spaces[0].len().abs_diff(now.spaces[0].len()) } else { 0 };
        same("promised pages", self.committed as i64, now.committed as i64, committed as i64);
        if owners == 0 {
            same("owners of anonymous pages", self.anon_vmas.into(), now.anon_vmas.into(), 0);
        }
        if !may.contains(&May::InMemory) {
            same("pages of files in memory", self.memory as i64, now.memory as i64, 0);
        }
        found
    }
}

fn pages<S: PageSource>(process: &Process<'_, '_, S>) -> Pages {
    let vmas: Vec<Vma> = process.with(|mm| mm.vmas().iter().map(|(_, vma)| vma).collect());
    let mut pages = Pages::new();
    for vma in vmas {
        for start in (vma.start.get()..vma.end.get()).step_by(PAGE as usize) {
            let at = VirtAddr::from(start);
            let here = Vma { start: at, end: VirtAddr::from(start + PAGE), pgoff: vma.pgoff_at(at), ..vma };
            pages.insert(start, (here, None));
        }
        process.visit_pages(VirtRange::new(vma.start, vma.end).unwrap(), |at, state| {
            if let Some((_, page)) = pages.get_mut(&at.get()) {
                *page = Some(state);
            }
        });
    }
    pages
}

fn vmas_of<S: PageSource>(process: &Process<'_, '_, S>, file: FileId) -> u32 {
    let maps = |vma: &Vma| vma.backing.file().is_some_and(|mapped| mapped.file == file);
    process.with(|mm| mm.vmas().iter().filter(|(_, vma)| maps(vma)).count() as u32)
}

fn owner(page: Option<&(Vma, Option<EntryState>)>) -> Option<kernmm::mm::AnonVma> {
    page.and_then(|(vma, _)| vma.anon)
}

/// Whether a page may have become what it is.
fn page_may(
    may: &[May],
    page: u64,
    before: Option<&(Vma, Option<EntryState>)>,
    after: Option<&(Vma, Option<EntryState>)>,
) -> bool {
    let may = may.iter().filter(|may| covers(**may, page));
    let (Some((vma, was)), Some((now_vma, is))) = (before, after) else {
        // A page of a stack that has grown.
        return before.is_none() && may.into_iter().any(|may| matches!(may, May::Grown(..)));
    };
    // Undoes what may have happened, and looks whether anything is left.
    let (mut vma_left, mut state_left) = (*now_vma, *is);
    for may in may {
        match may {
            May::Owner(..) if vma.anon.is_none() => vma_left.anon = None,
            May::Locked(..) => vma_left.flags -= VmFlags::LOCKED - vma.flags,
            May::MaybeGuard(..) => vma_left.flags -= VmFlags::MAYBE_GUARD - vma.flags,
            May::Come(..) if was.is_none() && is_page(is) => state_left = None,
            May::Copied(..) if is_page(is) && is_anonymous(is) => state_left = *was,
            May::Gone(..) if is.is_none() => state_left = *was,
            May::Cleaned(..) => {
                state_left = with(state_left, was, PteBits::WRITE | PteBits::DIRTY, PageFlags::empty())
            }
            May::Protected => state_left = with(state_left, was, PteBits::WRITE, PageFlags::ANON_EXCLUSIVE),
            _ => {}
        }
    }
    // A file's page has flags of its own, that the file's counts tell of; how many map it is told by the others' pages.
    let same = |left: &Option<EntryState>, was: &Option<EntryState>| match (left, was) {
        (Some(EntryState::Resident(left)), Some(EntryState::Resident(was)))
            if left.kind != PageKind::Anonymous =>
        {
            (left.pfn, left.kind, left.bits, left.order) == (was.pfn, was.kind, was.bits, was.order)
        }
        (Some(EntryState::Resident(left)), Some(EntryState::Resident(was))) => {
            let mut left = *left;
            left.mappings = was.mappings;
            left == *was
        }
        _ => left == was,
    };
    vma_left == *vma && same(&state_left, was)
}

/// `state` with these bits and flags as they were.
fn with(
    state: Option<EntryState>,
    was: &Option<EntryState>,
    bits: PteBits,
    flags: PageFlags,
) -> Option<EntryState> {
    match (state, was) {
        (Some(EntryState::Resident(mut page)), Some(EntryState::Resident(was))) => {
            // Lost, not won.
            page.bits |= was.bits & bits;
            page.flags |= was.flags & flags;
            Some(EntryState::Resident(page))
        }
        _ => state,
    }
}

fn is_page(state: &Option<EntryState>) -> bool {
    matches!(state, Some(EntryState::Resident(_)))
}

fn is_anonymous(state: &Option<EntryState>) -> bool {
    state.and_then(EntryState::resident).is_some_and(|page| page.kind == PageKind::Anonymous)
}

/// Whether an address is among those that are named.
fn covers(may: May, page: u64) -> bool {
    match may {
        May::Owner(at, pages)
        | May::Come(at, pages)
        | May::Copied(at, pages)
        | May::Gone(at, pages)
        | May::Cleaned(at, pages)
        | May::MaybeGuard(at, pages)
        | May::Locked(at, pages)
        | May::Grown(at, pages) => (at..at + pages * PAGE).contains(&page),
        May::Protected => true,
        May::Cached(_) | May::Synced(_) | May::Cut(..) | May::InMemory => false,
    }
}

fn file_may(may: May, number: usize, then: &FileStat, now: &FileStat) -> bool {
    let same_but = |stat: FileStat| stat == *then;
    match may {
        May::Cached(file) if file == number => {
            now.pages >= then.pages && same_but(with_counts(now, then.pages, now.dirty, now.bytes))
        }
        May::Synced(file) if file == number => {
            now.dirty <= then.dirty && same_but(with_counts(now, now.pages, then.dirty, now.bytes))
        }
        May::Cut(file, bytes) if file == number => {
            now.bytes == bytes
                && now.pages <= then.pages
                && now.dirty <= then.dirty
                && same_but(with_counts(now, then.pages, then.dirty, then.bytes))
        }
        _ => false,
    }
}

/// `stat` with other counts.
fn with_counts(stat: &FileStat, pages: u32, dirty: u32, bytes: u64) -> FileStat {
    let mut stat = *stat;
    (stat.pages, stat.dirty, stat.bytes) = (pages, dirty, bytes);
    stat
}
