//! The bytes of a process that read and write calls are for.

use lock_api::RawRwLock;

use super::file::TransferError;
use super::process::{Process, Refused, in_page};
use crate::addr::VirtAddr;
use crate::cache::{Part, ReadTo, Told, WriteFrom};
use crate::fault::{Access, Signal};
use crate::phys::PageSource;
use crate::table::EntryFormat;

/// A process's bytes from an address on. They are copied between its frames and the file's, with nothing in between: a frame is held by the
/// lock of the page table that leads to it, the file's by a reference.
///
/// # Linux
/// `ITER_UBUF` in `include/linux/uio.h`.
#[doc(alias = "ITER_UBUF")]
pub(super) struct UserBytes<'p, 'v, 'a, S: PageSource, F: EntryFormat, L: RawRwLock> {
    process: &'p Process<'v, 'a, S, F, L>,
    start: VirtAddr,
}

impl<'p, 'v, 'a, S: PageSource, F: EntryFormat, L: RawRwLock> UserBytes<'p, 'v, 'a, S, F, L> {
    pub(super) const fn new(process: &'p Process<'v, 'a, S, F, L>, start: VirtAddr) -> Self {
        Self { process, start }
    }

    fn at(&self, at: usize) -> Result<VirtAddr, TransferError> {
        let no_address = TransferError::User(Refused::Signal(Signal::NonCanonical));
        self.start.checked_add(at as u64).ok_or(no_address)
    }
}

impl<S: PageSource, F: EntryFormat, L: RawRwLock> WriteFrom for UserBytes<'_, '_, '_, S, F, L> {
    type Error = TransferError;

    fn fault_in(&mut self, at: usize) -> Result<(), TransferError> {
        self.process.reach(self.at(at)?, Access::Read, |_, _| true).map_err(TransferError::User)
    }

    fn show<R>(
        &mut self,
        at: usize,
        most: usize,
        take: impl FnOnce(&Part<'_>) -> R,
    ) -> Result<Option<R>, TransferError> {
        let at = self.at(at)?;
        let shown = self.process.try_reach(at, Access::Read, |window, offset| {
            take(&Part::Frame { window, offset, len: in_page(at, most) })
        });
        shown.map_err(TransferError::User)
    }
}

impl<P: PageSource, F: EntryFormat, L: RawRwLock> ReadTo for UserBytes<'_, '_, '_, P, F, L> {
    type Error = TransferError;

    fn put<S: PageSource>(
        &mut self,
        source: &S,
        at: usize,
        told: Told,
        most: usize,
    ) -> Result<usize, TransferError> {
        let at = self.at(at)?;
        let len = in_page(at, most);
        let copy = |window: &crate::platform::Window<'_>, offset| told.copy_to(source, window, offset, len);
        self.process.reach(at, Access::Write, copy).map_err(TransferError::User)?;
        Ok(len)
    }
}
