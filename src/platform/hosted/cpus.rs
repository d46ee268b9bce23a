//! Which thread runs as which CPU.
//!
//! A CPU's owner word says whether it is free, held (halted, by CPUs that serve in its place), or claimed by a thread. All other
//! fields of [`Cpu`] belong to the thread that claimed it.

use std::cell::Cell;
use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use super::{ClaimError, KMAP_SLOTS, machine_check};
use crate::platform::{CpuId, Kick};

/// Set in the owner word of a claimed CPU; the rest is the thread's token. Without it the word counts who holds the CPU.
const CLAIMED: u32 = 1 << 31;
/// Set with `CLAIMED` where the thread, which may have several CPUs, runs as this one.
const CURRENT: u32 = 1 << 30;
const TOKEN: u32 = CURRENT - 1;
/// Set in the owner word of a CPU that is held and that a thread waits for: nobody else begins to hold it.
const AWAITED: u32 = 1 << 30;

static NEXT_TOKEN: AtomicU32 = AtomicU32::new(1);

thread_local! {
    /// This thread's number.
    static OWN_TOKEN: Cell<u32> = const { Cell::new(0) };
    /// The machine that was asked for last, and as which of its CPUs this thread runs.
    static HERE: Cell<(u64, u32)> = const { Cell::new((0, 0)) };
}

fn own_token() -> u32 {
    match OWN_TOKEN.get() {
        0 => {
            let token = NEXT_TOKEN.fetch_add(1, Relaxed) & TOKEN;
            OWN_TOKEN.set(token);
            token
        }
        token => token,
    }
}

/// One CPU.
#[derive(Debug)]
#[repr(align(64))]
struct Cpu {
    owner: AtomicU32,
    /// How many `irq_save` are in force.
    masked: AtomicU32,
    /// Another CPU kicked this one since it last looked.
    kicked: AtomicBool,
    /// A bit for each CPU that this one holds until its interrupts are unmasked.
    holds: Box<[AtomicU64]>,
    holds_any: AtomicBool,
    /// A bit for each kmap slot that is open.
    open_slots: AtomicU32,
    /// The slots that were found open when the last pin went.
    leaked_slots: AtomicU32,
    /// How often each kmap slot was opened.
    turns: [AtomicU32; KMAP_SLOTS as usize],
}

/// All CPUs of a machine.
#[derive(Debug)]
pub(super) struct Cpus {
    machine: u64,
    cpus: Box<[Cpu]>,
}

impl Cpus {
    pub(super) fn new(count: usize) -> Self {
        static NEXT_MACHINE: AtomicU64 = AtomicU64::new(1);
        let cpu = |_| Cpu {
            owner: AtomicU32::new(0),
            masked: AtomicU32::new(0),
            kicked: AtomicBool::new(false),
            holds: (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            holds_any: AtomicBool::new(false),
            open_slots: AtomicU32::new(0),
            leaked_slots: AtomicU32::new(0),
            turns: [const { AtomicU32::new(0) }; KMAP_SLOTS as usize],
        };
        Self { machine: NEXT_MACHINE.fetch_add(1, Relaxed), cpus: (0..count).map(cpu).collect() }
    }

    pub(super) fn count(&self) -> usize {
        self.cpus.len()
    }

    /// The CPU as which this thread runs.
    pub(super) fn current(&self) -> Option<CpuId> {
        let (machine, cpu) = HERE.get();
        if machine == self.machine {
            return Some(CpuId(cpu));
        }
        let cpu = self.position(CLAIMED | CURRENT | own_token())?;
        HERE.set((self.machine, cpu.0));
        Some(cpu)
    }

    /// Makes this thread the owner of a CPU, and run as it if it has no other.
    pub(super) fn claim(&self, cpu: CpuId) -> Result<(), ClaimError> {
        let owner = &self.cpus.get(cpu.index()).ok_or(ClaimError::UnknownCpu)?.owner;
        let current = if self.current().is_none() { CURRENT } else { 0 };
        let claimed = CLAIMED | current | own_token();
        // Pairs with `unhold`: what was done in the CPU's place is seen from now on.
        loop {
            let seen = owner.load(Relaxed);
            if seen & CLAIMED != 0 || self.is_held_here(cpu) {
                return Err(ClaimError::Busy);
            }
            let free = seen & !AWAITED == 0;
            let next = if free { claimed } else { seen | AWAITED };
            if owner.compare_exchange(seen, next, AcqRel, Relaxed).is_ok() && free {
                break;
            }
            std::thread::yield_now();
        }
        if current != 0 {
            HERE.set((self.machine, cpu.0));
        }
        Ok(())
    }

    /// Gives up a CPU of this thread; if it ran as that one, it runs as another of its CPUs from now on.
    pub(super) fn release(&self, cpu: CpuId) {
        let Some(released) = self.cpus.get(cpu.index()) else { return };
        if released.masked.load(Relaxed) != 0 {
            machine_check(format_args!("CPU {} given up while a pin keeps it", cpu.0));
        }
        let was_current = released.owner.load(Relaxed) & CURRENT != 0;
        // Pairs with `claim` and `hold`.
        released.owner.store(0, Release);
        if was_current {
            HERE.set((0, 0));
            if let Some(other) = self.position(CLAIMED | own_token()) {
                self.set_current(other);
            }
        }
    }

    /// Whether this thread has the CPU.
    pub(super) fn is_own(&self, cpu: CpuId) -> bool {
        let owner = self.cpus.get(cpu.index()).map_or(0, |cpu| cpu.owner.load(Relaxed));
        owner & !CURRENT == CLAIMED | own_token()
    }

    /// Makes this thread run as one of its CPUs; answers with the one before.
    pub(super) fn switch(&self, cpu: CpuId) -> Option<CpuId> {
        let before = self.current();
        if let Some(before) = before.and_then(|before| self.cpus.get(before.index())) {
            before.owner.fetch_and(!CURRENT, Relaxed);
        }
        self.set_current(cpu);
        before
    }

    fn set_current(&self, cpu: CpuId) {
        if let Some(own) = self.cpus.get(cpu.index()) {
            own.owner.fetch_or(CURRENT, Relaxed);
            HERE.set((self.machine, cpu.0));
        }
    }

    /// Masks the interrupts of a CPU; answers with how often they were masked before.
    pub(super) fn mask(&self, cpu: CpuId) -> u32 {
        let Some(cpu) = self.cpus.get(cpu.index()) else { return 0 };
        let before = cpu.masked.load(Relaxed);
        cpu.masked.store(before + 1, Relaxed);
        before
    }

    /// Whether the interrupts of a CPU are masked.
    pub(super) fn is_masked(&self, cpu: CpuId) -> bool {
        self.cpus.get(cpu.index()).is_some_and(|cpu| cpu.masked.load(Relaxed) != 0)
    }

    /// Undoes a `mask`, in whatever order; the last one lets go of what the CPU held.
    pub(super) fn unmask(&self, cpu: CpuId) {
        let Some(cpu) = self.cpus.get(cpu.index()) else { return };
        let left = cpu.masked.load(Relaxed).saturating_sub(1);
        cpu.masked.store(left, Relaxed);
        if left != 0 {
            return;
        }
        if cpu.open_slots.load(Relaxed) != 0 {
            cpu.leaked_slots.fetch_or(cpu.open_slots.load(Relaxed), Relaxed);
        }
        if cpu.holds_any.load(Relaxed) {
            self.unhold(cpu);
        }
    }

    /// Interrupts a CPU, or holds it where no other thread runs as it.
    pub(super) fn kick(&self, from: CpuId, target: CpuId) -> Kick {
        let (Some(from), Some(to)) = (self.cpus.get(from.index()), self.cpus.get(target.index())) else {
            return Kick::Halted;
        };
        let (word, bit) = (target.index() / 64, 1 << (target.index() % 64));
        if self.is_own(target) || from.holds[word].load(Relaxed) & bit != 0 {
            return Kick::Halted;
        }
        let mut seen = to.owner.load(Relaxed);
        while seen & (CLAIMED | AWAITED) == 0 {
            match to.owner.compare_exchange_weak(seen, seen + 1, AcqRel, Relaxed) {
                Ok(_) => {
                    from.holds[word].fetch_or(bit, Relaxed);
                    from.holds_any.store(true, Relaxed);
                    return Kick::Halted;
                }
                Err(now) => seen = now,
            }
        }
        to.kicked.store(true, Release);
        Kick::Sent
    }

    /// Whether the CPU was kicked since this was last asked.
    pub(super) fn take_kick(&self, cpu: CpuId) -> bool {
        self.cpus.get(cpu.index()).is_some_and(|cpu| cpu.kicked.swap(false, Acquire))
    }

    /// Notes that a free slot is opened; answers with how often it was before. `None` if it is open, or no slot.
    pub(super) fn open_slot(&self, cpu: CpuId, slot: u32) -> Option<u32> {
        let cpu = self.cpus.get(cpu.index())?;
        let turn = cpu.turns.get(slot as usize)?;
        let free = cpu.open_slots.fetch_or(1 << slot, Relaxed) & 1 << slot == 0;
        free.then(|| turn.fetch_add(1, Relaxed))
    }

    /// Notes that an open slot is closed; answers as `open_slot` did. `None` if it is not open, or no slot.
    pub(super) fn close_slot(&self, cpu: CpuId, slot: u32) -> Option<u32> {
        let cpu = self.cpus.get(cpu.index())?;
        let turn = cpu.turns.get(slot as usize)?.load(Relaxed).wrapping_sub(1);
        cpu.leaked_slots.fetch_and(!(1 << slot), Relaxed);
        (cpu.open_slots.fetch_and(!(1 << slot), Relaxed) & 1 << slot != 0).then_some(turn)
    }

    /// How many slots are open that nobody can close any more.
    pub(super) fn leaked_slots(&self) -> u32 {
        self.cpus.iter().map(|cpu| cpu.leaked_slots.load(Relaxed).count_ones()).sum()
    }

    fn position(&self, owner: u32) -> Option<CpuId> {
        (0..).map(CpuId).zip(&self.cpus).find(|(_, cpu)| cpu.owner.load(Relaxed) == owner).map(|(id, _)| id)
    }

    /// Whether a CPU of this very thread holds `cpu`.
    fn is_held_here(&self, cpu: CpuId) -> bool {
        let (word, bit) = (cpu.index() / 64, 1 << (cpu.index() % 64));
        let own = (0..).map(CpuId).zip(&self.cpus).filter(|&(id, _)| self.is_own(id));
        own.into_iter().any(|(_, own)| own.holds[word].load(Relaxed) & bit != 0)
    }

    fn unhold(&self, cpu: &Cpu) {
        cpu.holds_any.store(false, Relaxed);
        for (at, word) in cpu.holds.iter().enumerate() {
            let mut held = word.swap(0, Relaxed);
            while held != 0 {
                let target = at * 64 + held.trailing_zeros() as usize;
                // Pairs with `claim`.
                self.cpus[target].owner.fetch_sub(1, Release);
                held &= held - 1;
            }
        }
    }
}
