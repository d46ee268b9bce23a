//! Deterministic failure of allocations, for tests of what callers do then.
//!
//! # Linux
//! `fail_page_alloc` in `mm/fail_page_alloc.c`.

use crate::platform::CpuPin;
use crate::sync::atomic::{AtomicBool, Ordering::Relaxed};
use crate::sync::{Rank, SpinLock};

use super::Phys;

/// Which allocations fail, counted from when the rule is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum FailRule {
    /// None.
    #[default]
    Never,
    /// The n-th, from 1, and no other.
    Nth(u64),
    /// Every k-th; 1 is all.
    Every(u64),
    /// Each with the probability `per_mille / 1000`, by a generator that starts from `seed`.
    Random {
        /// How many of a thousand.
        per_mille: u16,
        /// Where the generator starts.
        seed: u64,
    },
}

#[derive(Debug)]
struct State {
    rule: FailRule,
    seen: u64,
    random: u64,
}

/// The rule in force and how far it has come.
#[derive(Debug)]
pub(super) struct FaultInjector {
    armed: AtomicBool,
    state: SpinLock<State>,
}

impl FaultInjector {
    pub(super) fn new() -> Self {
        Self {
            armed: AtomicBool::new(false),
            state: SpinLock::new(Rank::Leaf, State { rule: FailRule::Never, seen: 0, random: 0 }),
        }
    }

    /// Whether there is a rule.
    #[inline]
    pub(super) fn is_armed(&self) -> bool {
        self.armed.load(Relaxed)
    }

    /// Whether the allocation at hand is to fail.
    pub(super) fn should_fail(&self, pin: &CpuPin<'_>) -> bool {
        let mut state = self.state.lock(pin);
        state.seen = state.seen.wrapping_add(1);
        match state.rule {
            FailRule::Never => false,
            FailRule::Nth(nth) => state.seen == nth,
            FailRule::Every(every) => every != 0 && state.seen % every == 0,
            FailRule::Random { per_mille, .. } => {
                // SplitMix64.
                state.random = state.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mixed = (state.random ^ state.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
                (mixed ^ mixed >> 31) % 1000 < u64::from(per_mille)
            }
        }
    }
}

impl Phys<'_> {
    /// Makes allocations fail by a rule, with [`AllocError::Injected`](super::AllocError::Injected), from now on.
    ///
    /// While a rule other than [`FailRule::Never`] holds, all allocations take the slow path. A CPU in the middle of an allocation
    /// may finish it by the old rule.
    pub fn set_fail_rule(&self, pin: &CpuPin<'_>, rule: FailRule) {
        let random = match rule {
            FailRule::Random { seed, .. } => seed,
            _ => 0,
        };
        *self.faults.state.lock(pin) = State { rule, seen: 0, random };
        self.faults.armed.store(rule != FailRule::Never, Relaxed);
        for kept in self.cpu_pages {
            kept.gate.set_slow(rule != FailRule::Never);
        }
    }

    /// How many allocations were seen since the rule was set.
    pub fn fail_seen(&self, pin: &CpuPin<'_>) -> u64 {
        self.faults.state.lock(pin).seen
    }
}
