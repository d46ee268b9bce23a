//! mincore.

use super::is_aligned;
use crate::addr::{PAGE_OFFSET_MASK, PAGE_SHIFT, VirtAddr, VirtRange};
use crate::mm::{Mm, MmError, Tables, clip};

/// Where mincore writes its answers to: the caller's vector.
pub trait Residency {
    /// Whether this many bytes can be the caller's vector at all.
    fn can_hold(&self, pages: u64) -> bool;

    /// Writes the byte of the page with this index.
    ///
    /// # Errors
    /// [`MmError::BadVector`] if it cannot be written.
    fn put(&mut self, index: u64, resident: bool) -> Result<(), MmError>;
}

impl Residency for [u8] {
    fn can_hold(&self, pages: u64) -> bool {
        pages <= self.len() as u64
    }

    fn put(&mut self, index: u64, resident: bool) -> Result<(), MmError> {
        let byte = usize::try_from(index).ok().and_then(|index| self.get_mut(index));
        *byte.ok_or(MmError::BadVector)? = u8::from(resident);
        Ok(())
    }
}

/// Tells which of the pages that hold the `len` bytes from `addr` are resident. Those that it may not tell of are all resident:
/// [`Vma::tells_residency`](crate::mm::Vma::tells_residency).
///
/// # Errors
/// As [`Mincore::new`] and [`Resident::put`].
///
/// # Locking
/// The answers are written under the lock. Who may fault by that, because they go to a process, goes through a [`Mincore`].
///
/// # Linux
/// `mincore` in `mm/mincore.c` (6.18).
pub fn mincore(
    mm: &Mm<'_>,
    tables: &mut impl Tables,
    addr: u64,
    len: u64,
    answers: &mut (impl Residency + ?Sized),
) -> Result<(), MmError> {
    let mut call = Mincore::new(mm, addr, len, answers)?;
    while let Some(resident) = call.next(mm, tables) {
        resident.put(answers)?;
    }
    Ok(())
}

/// A mincore under way. Between two steps the address space may be let go of.
#[derive(Clone, Copy, Debug)]
pub struct Mincore {
    addr: u64,
    done: u64,
    pages: u64,
}

/// How many answers are found out at a time.
const AT_A_TIME: usize = 256;

/// Some answers of mincore, in order.
#[derive(Clone, Copy, Debug)]
#[must_use = "the answers are not written yet"]
pub struct Resident {
    first: u64,
    answers: [bool; AT_A_TIME],
    count: usize,
    hole: bool,
}

impl Mincore {
    /// Begins.
    ///
    /// # Errors
    /// [`MmError::Unaligned`], [`MmError::Wraps`] (outside the user's addresses), [`MmError::BadVector`].
    pub fn new(
        mm: &Mm<'_>,
        addr: u64,
        len: u64,
        answers: &(impl Residency + ?Sized),
    ) -> Result<Self, MmError> {
        if !is_aligned(addr) {
            return Err(MmError::Unaligned);
        }
        if addr.checked_add(len).is_none_or(|end| end > mm.context().sysctl().task_size) {
            return Err(MmError::Wraps);
        }
        let pages = (len >> PAGE_SHIFT) + u64::from(len & PAGE_OFFSET_MASK != 0);
        if !answers.can_hold(pages) {
            return Err(MmError::BadVector);
        }
        Ok(Self { addr, done: 0, pages })
    }

    /// The next answers; `None` when all have been given. A hole ends them.
    pub fn next(&mut self, mm: &Mm<'_>, tables: &mut impl Tables) -> Option<Resident> {
        if self.done == self.pages {
            return None;
        }
        let mut resident = Resident { first: self.done, answers: [false; AT_A_TIME], count: 0, hole: false };
        let count = (self.pages - self.done).min(AT_A_TIME as u64);
        let range =
            VirtRange::with_len(VirtAddr::from(self.addr + (self.done << PAGE_SHIFT)), count << PAGE_SHIFT)
                .unwrap_or_default();
        let mut end = range.start();
        for (_, vma) in mm.overlapping(range) {
            if vma.start > end {
                break;
            }
            let part = clip(&vma, range).range();
            let pages = (part.len() >> PAGE_SHIFT) as usize;
            if let Some(answers) = resident.answers.get_mut(resident.count..resident.count + pages) {
                match vma.tells_residency() {
                    true => tables.residency(&vma, part, answers),
                    false => answers.fill(true),
                }
            }
            resident.count += pages;
            end = part.end();
        }
        resident.hole = end < range.end();
        self.done += resident.count as u64;
        Some(resident)
    }
}

impl Resident {
    /// Writes the answers.
    ///
    /// # Errors
    /// [`MmError::BadVector`] if one cannot be written; [`MmError::NotMapped`] if they end at a hole: **those before it are written**, as in Linux.
    pub fn put(&self, answers: &mut (impl Residency + ?Sized)) -> Result<(), MmError> {
        for (index, &resident) in (self.first..).zip(self.answers.iter().take(self.count)) {
            answers.put(index, resident)?;
        }
        if self.hole { Err(MmError::NotMapped) } else { Ok(()) }
    }
}
