//! Where the bytes of read and write calls come from and go to: the kernel's own, or those of a process, a page at a time.

use crate::addr::{PAGE_SIZE, Pfn};
use crate::phys::PageSource;
use crate::platform::{Platform, Window};

use super::error::CacheError;

/// Bytes that lie in one page.
pub(crate) enum Part<'a> {
    /// The kernel's own.
    Bytes(&'a [u8]),
    /// In a frame that stays where it is meanwhile.
    Frame { window: &'a Window<'a>, offset: usize, len: usize },
}

impl Part<'_> {
    pub(super) const fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Frame { len, .. } => *len,
        }
    }

    /// Copies them into a frame; `false` if they do not all lie inside.
    #[must_use]
    pub(super) fn write_to(&self, to: &Window<'_>, at: usize) -> bool {
        match *self {
            Part::Bytes(bytes) => to.write(at, bytes),
            Part::Frame { window, offset, len } => to.copy_part(at, window, offset, len),
        }
    }
}

/// What a write call writes.
///
/// # Linux
/// `struct iov_iter` that is an `ITER_SOURCE`, in `include/linux/uio.h`.
#[doc(alias = "iov_iter")]
pub(crate) trait WriteFrom {
    /// Why bytes cannot be had.
    type Error: From<CacheError>;

    /// Sees to it that the byte at `at` can be shown, if it is not taken away meanwhile.
    ///
    /// # Locking
    /// The caller holds no spin lock: it may fault, and wait for a store.
    ///
    /// # Linux
    /// `fault_in_iov_iter_readable` in `lib/iov_iter.c`.
    #[doc(alias = "fault_in_iov_iter_readable")]
    fn fault_in(&mut self, at: usize) -> Result<(), Self::Error>;

    /// Shows `take` the bytes from `at` on, `most` at most, as far as they lie in one page. `None` without a fault that is to be made first.
    ///
    /// # Locking
    /// `take` is called with the page table locked that leads to them, if they are a process's: it takes no lock but a file's, and waits for nothing.
    ///
    /// # Linux
    /// `copy_folio_from_iter_atomic` in `lib/iov_iter.c`.
    #[doc(alias = "copy_folio_from_iter_atomic")]
    fn show<R>(
        &mut self,
        at: usize,
        most: usize,
        take: impl FnOnce(&Part<'_>) -> R,
    ) -> Result<Option<R>, Self::Error>;
}

impl WriteFrom for &[u8] {
    type Error = CacheError;

    fn fault_in(&mut self, _: usize) -> Result<(), CacheError> {
        Ok(())
    }

    fn show<R>(
        &mut self,
        at: usize,
        most: usize,
        take: impl FnOnce(&Part<'_>) -> R,
    ) -> Result<Option<R>, CacheError> {
        Ok(self.get(at..at.saturating_add(most)).map(|bytes| take(&Part::Bytes(bytes))))
    }
}

/// What a read call has to tell of a part of a page.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Told {
    /// The bytes of a frame, to which the caller has a reference, from this one on.
    Frame(Pfn, usize),
    Zeros,
}

impl Told {
    /// Copies `len` of the bytes to a place in another frame.
    #[must_use]
    pub(crate) fn copy_to<S: PageSource>(self, source: &S, to: &Window<'_>, at: usize, len: usize) -> bool {
        match self {
            Self::Frame(pfn, from) => {
                let pin = source.platform().pin();
                source.phys().kmap(&pin, pfn).is_ok_and(|frame| to.copy_part(at, &frame, from, len))
            }
            Self::Zeros => ZEROS.get(..len).is_some_and(|zeros| to.write(at, zeros)),
        }
    }

    /// The same from a byte on that lies further behind.
    fn behind(self, bytes: usize) -> Self {
        match self {
            Self::Frame(pfn, from) => Self::Frame(pfn, from + bytes),
            Self::Zeros => Self::Zeros,
        }
    }
}

static ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// Where a read call reads to.
///
/// # Linux
/// `struct iov_iter` that is an `ITER_DEST`, in `include/linux/uio.h`.
pub(crate) trait ReadTo {
    /// Why bytes cannot be put.
    type Error: From<CacheError>;

    /// Puts bytes to `at`, `most` at most, as far as they go to one page; how many, and never none.
    ///
    /// # Locking
    /// The caller holds no spin lock: it may fault, and wait for a store.
    ///
    /// # Linux
    /// `copy_folio_to_iter` in `include/linux/uio.h`.
    #[doc(alias = "copy_folio_to_iter")]
    fn put<S: PageSource>(
        &mut self,
        source: &S,
        at: usize,
        told: Told,
        most: usize,
    ) -> Result<usize, Self::Error>;

    /// Puts so many bytes. An error counts only if none were put before.
    fn put_all<S: PageSource>(
        &mut self,
        source: &S,
        at: usize,
        told: Told,
        len: usize,
    ) -> Result<usize, Self::Error> {
        let mut done = 0;
        while done < len {
            match self.put(source, at + done, told.behind(done), len - done) {
                Ok(bytes) => done += bytes,
                Err(_) if done != 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

impl ReadTo for &mut [u8] {
    type Error = CacheError;

    fn put<S: PageSource>(
        &mut self,
        source: &S,
        at: usize,
        told: Told,
        most: usize,
    ) -> Result<usize, CacheError> {
        let out = self.get_mut(at..at.saturating_add(most)).ok_or(CacheError::Unreachable)?;
        let copied = match told {
            Told::Frame(pfn, from) => {
                let pin = source.platform().pin();
                source.phys().kmap(&pin, pfn).is_ok_and(|frame| frame.read(from, out))
            }
            Told::Zeros => {
                out.fill(0);
                true
            }
        };
        if copied { Ok(most) } else { Err(CacheError::Unreachable) }
    }
}
