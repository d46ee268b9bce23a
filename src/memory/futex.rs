//! What a word in memory is that threads sleep at: the same for all who share it, wherever they map it.

use lock_api::RawRwLock;

use super::process::{Process, Refused};
use crate::addr::{PgOff, VirtAddr};
use crate::cache::FileId;
use crate::fault::Signal;
use crate::flags::VmFlags;
use crate::mm::{Backing, MmId};
use crate::phys::PageSource;
use crate::table::EntryFormat;

/// Names a word of memory, for a table of sleepers.
///
/// # Linux
/// `union futex_key` in `include/linux/futex.h`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[doc(alias = "futex_key")]
pub enum FutexKey {
    /// In memory of one address space.
    Private(MmId, VirtAddr),
    /// In a page of a file, or of shared anonymous memory, at this byte of the page.
    Shared(FileId, PgOff, u16),
}

impl<S: PageSource, F: EntryFormat, L: RawRwLock> Process<'_, '_, S, F, L> {
    /// The name of the word at an address. What is asked for is only the name: whether the word can be reached shows when it is read.
    ///
    /// # Errors
    /// [`Refused::Signal`] (the call answers EFAULT) if nothing is mapped there.
    ///
    /// # Linux
    /// `get_futex_key` in `kernel/futex/core.c`.
    #[doc(alias = "get_futex_key")]
    pub fn futex_key(&self, addr: VirtAddr) -> Result<FutexKey, Refused> {
        self.with(|mm| {
            let vma = mm.find_vma(addr).map(|slot| mm.vma(slot)).filter(|vma| vma.start <= addr);
            let vma = vma.ok_or(Refused::Signal(Signal::NotMapped))?;
            Ok(match vma.backing {
                Backing::File(file) if vma.flags.contains(VmFlags::MAYSHARE) => {
                    FutexKey::Shared(file.file, vma.pgoff_at(addr.page_floor()), addr.page_offset() as u16)
                }
                _ => FutexKey::Private(mm.id(), addr),
            })
        })
    }
}
