//! Context switches: which CPUs walk a process's tables.

use lock_api::RawRwLock;

use super::Process;
use crate::mm::{MmError, MmSlot};
use crate::phys::PageSource;
use crate::platform::{CpuPin, Platform};
use crate::table::EntryFormat;

impl<'v, S: PageSource, F: EntryFormat, L: RawRwLock> Process<'v, '_, S, F, L> {
    /// Makes the caller's CPU walk this process's tables, instead of those that it walks now.
    ///
    /// The process before need not be [deactivated](Self::deactivate) for that, but should be, before or afterwards: until then this CPU is asked to
    /// forget what changes there. A process is dropped when no other CPU walks its tables. A context switch:
    ///
    /// ```
    /// use kernmm::memory::Process;
    /// use kernmm::mm::MmError;
    /// use kernmm::phys::PageSource;
    ///
    /// /// Interrupts are masked; user code of `prev` ran last, of `next` runs then. `None` is a thread of the kernel.
    /// fn switch<'v, 'a, S: PageSource>(
    ///     prev: Option<&Process<'v, 'a, S>>,
    ///     next: Option<&Process<'v, 'a, S>>,
    /// ) -> Result<(), MmError> {
    ///     if let Some(next) = next {
    ///         next.activate()?;
    ///     }
    ///     match (prev, next) {
    ///         (Some(prev), Some(next)) if core::ptr::eq(prev, next) => {}
    ///         (Some(prev), _) => prev.deactivate(),
    ///         (None, _) => {}
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`MmError::NoTables`] if the process has no page tables any more; [`MmError::UnknownCpu`] if the CPU's number is
    /// [`MAX_TLB_CPUS`](crate::platform::MAX_TLB_CPUS) or more; [`MmError::TablesUnknown`] if [`Platform::tables`] does not answer what [`Platform::switch_tables`] was told: the CPU then walks the kernel's tables alone.
    ///
    /// # Locking
    /// Does not take the address space's lock: a scheduler may call it with interrupts masked and with a lock of its own. What it does take is held
    /// with interrupts masked alone, by exec too.
    ///
    /// # Linux
    /// `switch_mm_irqs_off` in `arch/x86/mm/tlb.c`: as there, the next tables may be loaded before the CPU is taken off the previous one's set.
    #[doc(alias = "switch_mm")]
    pub fn activate(&self) -> Result<(), MmError> {
        let platform = self.vm.source().platform();
        let pin = platform.pin();
        let shared = self.active.lock(&pin);
        let pgd = shared.pgd().ok_or(MmError::NoTables)?;
        if !shared.cpus().insert(pin.cpu()) {
            return Err(MmError::UnknownCpu);
        }
        platform.switch_tables(Some(pgd));
        if platform.tables() == Some(pgd) {
            return Ok(());
        }
        // The tables would be freed under this CPU one day.
        platform.switch_tables(None);
        if !platform.keeps_tables_apart() {
            shared.cpus().remove(pin.cpu());
        }
        Err(MmError::TablesUnknown)
    }

    /// Whether the caller's CPU walks this process's tables. Without a lock: an access of a program's own waits for no call.
    #[cfg(feature = "std")]
    pub(crate) fn is_active(&self) -> bool {
        use crate::{mm::MmId, sync::words::Ordering::Relaxed};
        // Slots of address spaces stay such for ever, and tell whose they are now: while exec puts another in its place this one may be another process's already.
        let id = MmId::from_bits(self.id.load(Relaxed));
        let own = id.and_then(|id| self.vm.context().mms().get(id.slot())?.pgd_of(id));
        own.is_some() && self.vm.source().platform().tables() == own
    }

    /// Takes the caller's CPU off those that must be told what changes here, unless it [keeps](Platform::keeps_tables_apart) what it remembers. If it walks
    /// this process's tables it walks the kernel's alone from now on; if it walks another's it goes on doing that.
    ///
    /// # Locking
    /// As [`activate`](Self::activate).
    #[doc(alias = "switch_mm")]
    pub fn deactivate(&self) {
        let pin = self.vm.source().platform().pin();
        leave(self.vm.source().platform(), &pin, *self.active.lock(&pin));
    }

    /// Names the tables that a scheduler takes from now on. This CPU leaves those before in the same moment: a scheduler could not tell any more that they
    /// are this process's, and they are about to be freed.
    pub(super) fn change_active(&self, new: &'v MmSlot) {
        let pin = self.vm.source().platform().pin();
        let mut active = self.active.lock(&pin);
        leave(self.vm.source().platform(), &pin, *active);
        *active = new;
    }
}

/// Makes the caller's CPU leave tables, if it walks them.
pub(super) fn leave(platform: &impl Platform, pin: &CpuPin<'_>, left: &MmSlot) {
    let walked = platform.tables();
    if walked.is_some() && walked == left.pgd() {
        platform.switch_tables(None);
    }
    if !platform.keeps_tables_apart() {
        left.cpus().remove(pin.cpu());
    }
}
