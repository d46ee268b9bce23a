//! Recounting the page cache from scratch.

use crate::addr::{Pfn, PgOff, VirtAddr};
use crate::collections::{ListFault, Slot, TreeFault};
use crate::flags::PageFlags;
use crate::phys::{PageSource, PageState};
use crate::platform::{CpuPin, Platform};
use crate::rmap::{Place, Walked};

use super::PageCache;
use super::files::key_of;
use super::mapping::FileId;
use super::pages::{Found, Pages, Tag};

/// What is wrong with the page cache. Where a number follows a file's name, it is a page's place in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CacheCheckError {
    /// The tree of a file's pages is broken.
    Tree(FileId, TreeFault),
    /// A page is in a file's tree and says that it is of another file, or of none, or lies elsewhere in it.
    Foreign(FileId, u32),
    /// What is in the tree is not an allocated frame of the page cache's own.
    NotAPage(FileId, u32),
    /// The flags of a page contradict each other.
    Flags(FileId, u32, PageFlags),
    /// A page is marked in the tree as what its flags do not say, or is not marked as what they say.
    Tag(FileId, u32),
    /// A page lies beyond the end of its file, and no truncation is under way.
    BeyondEnd(FileId, u32),
    /// A file counts so many dirty pages, and has so many.
    Dirty(FileId, u32, u32),
    /// A file counts so many pages under write-back, and has so many.
    Writeback(FileId, u32, u32),
    /// A file has something to be written or made to last, and is not among those that have, or is where it says that it is not.
    Work(FileId),
    /// A page is being read or written and no input or output is for it, or one is for a page that is not.
    Io(FileId, u32),
    /// A place in the table of reads and writes is taken for nothing, or has something and is free.
    Place(usize),
    /// The list of VMAs that map a file is broken, or has one that maps another.
    Sharers(FileId, ListFault),
    /// A file has fewer users than VMAs that map it.
    Users(FileId),
    /// The index of the files of stores is broken.
    Index(TreeFault),
    /// A file of a store is not what its name leads to, or so many names lead to so many files.
    Named(usize, usize),
    /// So many frames are linked into trees, and the files have so many.
    Linked(u32, u32),
}

impl core::fmt::Display for CacheCheckError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Tree(file, fault) => write!(f, "the pages of file {}: {fault}", file.0),
            Self::Foreign(file, at) => write!(f, "page {at} of file {} says that it is another's", file.0),
            Self::NotAPage(file, at) => write!(f, "page {at} of file {} is no page of a file", file.0),
            Self::Flags(file, at, flags) => {
                write!(f, "page {at} of file {} has flags {flags:?}, which contradict each other", file.0)
            }
            Self::Tag(file, at) => write!(f, "page {at} of file {} is marked as what it is not", file.0),
            Self::BeyondEnd(file, at) => write!(f, "page {at} of file {} lies beyond its end", file.0),
            Self::Dirty(file, says, found) => {
                write!(f, "file {} says that {says} pages are dirty, and {found} are", file.0)
            }
            Self::Writeback(file, says, found) => {
                write!(f, "file {} says that {says} pages are being written, and {found} are", file.0)
            }
            Self::Work(file) => write!(f, "file {} is forgotten by those who write", file.0),
            Self::Io(file, at) => write!(f, "page {at} of file {} waits for no input or output", file.0),
            Self::Place(place) => {
                write!(f, "place {place} for reads and writes is taken for nothing, or not taken")
            }
            Self::Sharers(file, fault) => write!(f, "the VMAs that map file {}: {fault}", file.0),
            Self::Users(file) => write!(f, "file {} has fewer users than mappings", file.0),
            Self::Index(fault) => write!(f, "the index of files: {fault}"),
            Self::Named(names, files) => write!(f, "{names} names lead to {files} files of stores"),
            Self::Linked(linked, found) => write!(f, "{linked} frames are linked, and files have {found}"),
        }
    }
}

impl core::error::Error for CacheCheckError {}

impl PageCache<'_> {
    /// Recounts everything: each page is in the tree of one file, at its place; what files count of their pages is so; a page is
    /// being read or written if and only if something under way is for it; the VMAs on a file's list map that file. `maps` answers which file the VMA in
    /// a slot maps. Each page is shown to
    /// `each`. Answers how many VMAs are on files' lists.
    ///
    /// # Errors
    /// The first thing found wrong.
    ///
    /// # Locking
    /// Takes each file's lock, and that of its list. Nobody reads, writes or maps files meanwhile. `each` is called with a file locked.
    pub fn check<S: PageSource>(
        &self,
        source: &S,
        maps: impl Fn(Slot) -> Option<FileId>,
        mut each: impl FnMut(Pfn),
    ) -> Result<u32, CacheCheckError> {
        let (mut found, mut listed) = (0, 0);
        for (place, mapping) in self.mappings.iter().enumerate() {
            let Some(file) = self.file_at(source, place) else { continue };
            found += self.check_file(source, file, &mut each)?;
            let sharers = mapping.sharers.check(self.nodes, |slot| maps(slot) == Some(file));
            let sharers = sharers.map_err(|fault| CacheCheckError::Sharers(file, fault))?;
            if self.stat(source, file).is_ok_and(|stat| stat.users < sharers) {
                return Err(CacheCheckError::Users(file));
            }
            listed += sharers;
        }
        self.check_ios(source)?;
        self.check_names(source)?;
        let linked = self.ext.iter().filter(|ext| ext.is_linked()).count() as u32;
        if linked == found { Ok(listed) } else { Err(CacheCheckError::Linked(linked, found)) }
    }

    /// Visits every VMA that may show a page of a file, with the address that shows it. The visitor answers whether it has found an entry.
    pub(crate) fn walk_page(
        &self,
        file: FileId,
        index: PgOff,
        visit: impl FnMut(&Place, VirtAddr) -> bool,
    ) -> Walked {
        let mapping = self.mappings.get(file.place());
        mapping.map_or(Walked::default(), |mapping| mapping.sharers.walk_page(self.nodes, index, visit))
    }

    /// Checks a file's pages; how many there are.
    fn check_file<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        each: &mut impl FnMut(Pfn),
    ) -> Result<u32, CacheCheckError> {
        let pin = source.platform().pin();
        // It was there a moment ago, and nobody changes anything.
        let Ok(pages) = self.lock(source, &pin, file) else { return Ok(0) };
        pages.tree.check().map_err(|fault| CacheCheckError::Tree(file, fault))?;
        let (mut count, mut dirty, mut writeback, mut wrong_tag) = (0, 0, 0, None);
        let mut next = pages.from(0);
        while let Some(page) = next {
            check_page(&pages, &page)?;
            if page.is_busy() && !self.is_awaited(&pin, file, page.index) {
                return Err(CacheCheckError::Io(file, page.index));
            }
            count += 1;
            dirty += u32::from(page.is(PageFlags::DIRTY));
            writeback += u32::from(page.is(PageFlags::WRITEBACK));
            if Tag::ALL.iter().any(|&tag| pages.has_tag(&page, tag) != page.is(tag.flag())) {
                wrong_tag = wrong_tag.or(Some(page.index));
            }
            each(page.pfn);
            next = pages.after(&page);
        }
        if dirty != pages.dirty {
            return Err(CacheCheckError::Dirty(file, pages.dirty, dirty));
        }
        if writeback != pages.writeback {
            return Err(CacheCheckError::Writeback(file, pages.writeback, writeback));
        }
        if let Some(index) = wrong_tag {
            return Err(CacheCheckError::Tag(file, index));
        }
        let is_noted = self.work.lock(&pin).has(file.place());
        if is_noted != pages.is_noted || pages.has_work() && !is_noted {
            return Err(CacheCheckError::Work(file));
        }
        Ok(count)
    }

    fn is_awaited(&self, pin: &CpuPin<'_>, file: FileId, index: u32) -> bool {
        self.ios.lock(pin).places.iter().any(|io| io.concerns(file, index))
    }

    /// Every file of a store is what its name leads to, and no other name leads anywhere.
    fn check_names<S: PageSource>(&self, source: &S) -> Result<(), CacheCheckError> {
        let pin = source.platform().pin();
        let files = self.files.lock(&pin);
        files.check().map_err(CacheCheckError::Index)?;
        let leads_here = |(place, mapping): &(usize, &super::Mapping<'_>)| {
            let named = mapping.state.lock(&pin).store();
            named.is_some_and(|(store, inode)| {
                files.find(key_of(store, inode)).is_some_and(|slot| slot.index() == *place)
            })
        };
        let found = self.mappings.iter().enumerate().filter(leads_here).count();
        let all = self.mappings.iter().filter(|mapping| mapping.state.lock(&pin).store().is_some()).count();
        if found == all && files.len() == all {
            Ok(())
        } else {
            Err(CacheCheckError::Named(files.len(), found))
        }
    }

    /// Every input or output has its place, and is for pages that say so.
    fn check_ios<S: PageSource>(&self, source: &S) -> Result<(), CacheCheckError> {
        let pin = source.platform().pin();
        if let Some(place) = self.ios.lock(&pin).wrong_place() {
            return Err(CacheCheckError::Place(place));
        }
        for at in 0..super::MAX_IOS {
            let under_way = self.ios.lock(&pin).places.get(at).and_then(|io| io.pages());
            let Some((file, pages, flag)) = under_way else { continue };
            let Ok(locked) = self.lock(source, &pin, file) else {
                return Err(CacheCheckError::Io(file, pages.start));
            };
            for index in pages {
                if !locked.at(index).is_some_and(|page| page.is(flag)) {
                    return Err(CacheCheckError::Io(file, index));
                }
            }
        }
        Ok(())
    }
}

fn check_page(pages: &Pages<'_, '_>, found: &Found<'_>) -> Result<(), CacheCheckError> {
    let (file, index, page) = (pages.file, found.index, found.page);
    let flags = page.flags();
    let kinds = PageFlags::ANON | PageFlags::SLAB | PageFlags::TABLE;
    if page.state() != PageState::Allocated || flags.intersects(kinds) {
        return Err(CacheCheckError::NotAPage(file, index));
    }
    if page.mapping() != file.0.get() || page.index() != u64::from(index) {
        return Err(CacheCheckError::Foreign(file, index));
    }
    let is = |flag| flags.contains(flag);
    let contradict = is(PageFlags::LOCKED) && flags.intersects(PageFlags::UPTODATE | PageFlags::WRITEBACK)
        || flags.intersects(PageFlags::DIRTY | PageFlags::WRITEBACK) && !is(PageFlags::UPTODATE)
        || is(PageFlags::ERROR) && is(PageFlags::UPTODATE)
        || is(PageFlags::SWAP_BACKED) != pages.is_memory();
    if contradict {
        return Err(CacheCheckError::Flags(file, index, flags));
    }
    if index >= pages.end() && pages.cut.is_none() {
        return Err(CacheCheckError::BeyondEnd(file, index));
    }
    Ok(())
}

#[cfg(all(test, feature = "std", not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::cache::files::StoreKey;
    use crate::cache::{Fetched, Pattern, ReadAhead, Wanted};
    use crate::memory::{Memory, Vm};
    use crate::platform::CpuId;
    use crate::platform::hosted::{Disk, Latency, Machine};

    /// Fails if nobody looks whether the table of reads and writes has what it says.
    #[test]
    fn a_place_that_is_taken_for_nothing_or_is_free_and_has_something() {
        let machine = Machine::pc(16 << 20).build().unwrap();
        let _cpu = machine.cpu(CpuId::BOOT).unwrap();
        let memory = Memory::on(&machine).unwrap();
        let disk = Disk::new(&machine);
        disk.put(3, &[1; 4096]);
        disk.set_latency(Latency::Ticks(1));
        let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
        let cache = vm.cache();
        let file = cache.open(&memory, &disk, 3).unwrap();
        let wanted = Wanted::page(PgOff::ZERO, Pattern::Random);
        let Ok(Fetched::Wait(ticket)) = cache.fetch(&memory, file, wanted, &mut ReadAhead::new()) else {
            panic!("the disk has begun to read");
        };
        let check = || cache.check(&memory, |_| None, |_| {}).map(drop);
        let take = || {
            let pin = memory.pin();
            cache.ios.lock(&pin).take(StoreKey::of(&disk)).map(|(place, _)| place).unwrap()
        };
        let give_back = |place| cache.ios.lock(&memory.pin()).give_back(place);
        assert_eq!(check(), Ok(()));
        let place = take();
        assert_eq!((check(), place), (Err(CacheCheckError::Place(1)), 1));
        give_back(place);
        assert_eq!(check(), Ok(()));
        give_back(ticket.slot);
        assert_eq!((check(), ticket.slot), (Err(CacheCheckError::Place(0)), 0));
        assert_eq!((take(), check()), (0, Ok(())));
        disk.advance(1);
        assert!(cache.io_done(&memory, ticket));
        assert_eq!((check(), cache.put_user(&memory, file)), (Ok(()), Ok(true)));
    }
}
