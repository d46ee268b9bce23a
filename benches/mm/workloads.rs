//! What the stores are made to do.

use crate::stores::Vmas;
use crate::targets::Stream;
use std::env::var_os;
use std::hint::black_box;
use std::ops::Range;
use std::time::Duration;
#[cfg(not(target_os = "linux"))]
use std::time::Instant;

const PAGE: u64 = 4096;
/// Where the VMAs begin.
const BASE: u64 = 0x1000_0000;

/// How much to measure.
pub struct Effort {
    pub rounds: u64,
    /// Look-ups of a round.
    pub finds: usize,
    /// Removals and insertions of a round, unless a store is slow.
    pub changes: usize,
    /// Numbers of VMAs.
    pub sizes: &'static [usize],
}

impl Effort {
    /// Just enough to see that everything runs.
    pub const SMOKE: Self = Self { rounds: 1, finds: 1_000, changes: 100, sizes: &[10, 1_000] };
    const USUAL: Self =
        Self { rounds: 5, finds: 200_000, changes: 20_000, sizes: &[10, 100, 1_000, 65_536, 100_000] };
    const LONG: Self = Self {
        rounds: 9,
        finds: 1_000_000,
        changes: 100_000,
        sizes: &[10, 100, 1_000, 65_536, 100_000, 1_000_000],
    };

    /// Rounds for so many VMAs: a million take longer to be put in than all that is done to them, and no target is about them.
    pub fn rounds_at(&self, count: usize) -> u64 {
        if count > 100_000 { 1 } else { self.rounds }
    }

    /// What the environment asks for.
    pub fn from_env() -> Self {
        if var_os("KERNMM_LONG").is_some_and(|value| value == "1") { Self::LONG } else { Self::USUAL }
    }
}

/// A small generator, so that all contenders and all runs do the same.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * u128::from(n)) >> 64) as u64
    }
}

/// VMAs of 1 to 16 pages with gaps of 1 to 4 pages.
pub struct Layout {
    vmas: Vec<Range<u64>>,
    space: Range<u64>,
}

impl Layout {
    pub fn new(count: usize) -> Self {
        let (mut rng, mut at) = (Rng::new(count as u64), BASE);
        let vmas = (0..count).map(|_| {
            let start = at + (1 + rng.below(4)) * PAGE;
            at = start + (1 + rng.below(16)) * PAGE;
            start..at
        });
        Self { vmas: vmas.collect(), space: BASE..at }
    }

    pub fn count(&self) -> usize {
        self.vmas.len()
    }

    /// A store of the VMAs, which have come in no order, as in a program that has run for a while.
    fn store<V: Vmas>(&self) -> V {
        let mut shuffled = self.vmas.clone();
        let mut rng = Rng::new(7);
        for at in (1..shuffled.len()).rev() {
            shuffled.swap(at, rng.below(at as u64 + 1) as usize);
        }
        V::new(&shuffled, self.space.clone(), shuffled.len() + 1)
    }

    /// Addresses to look up.
    fn addresses(&self, stream: Stream, count: usize, round: u64) -> Vec<u64> {
        let mut rng = Rng::new(round + 1);
        let n = self.vmas.len() as u64;
        let mut at = 0;
        let pick = |_| {
            at = match stream {
                Stream::Uniform => rng.below(n),
                // Rank r with probability about 1/r; ranks are scattered over the addresses.
                Stream::Zipf => {
                    let rank = ((n as f64).powf(rng.below(1 << 32) as f64 / 2_f64.powi(32))) as u64 - 1;
                    rank.min(n - 1).wrapping_mul(0x9e37_79b1) % n
                }
                // Touches of one VMA, then the next, now and then somewhere else.
                Stream::Local => match rng.below(100) {
                    0 => rng.below(n),
                    1..=9 => (at + 1) % n,
                    _ => at,
                },
            };
            let vma = &self.vmas[at as usize];
            vma.start + rng.below(vma.end - vma.start)
        };
        (0..count).map(pick).collect()
    }
}

/// The time that this thread has run for: what others do on the machine meanwhile does not count, be a round long or short.
#[cfg(target_os = "linux")]
pub fn now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock is one that every thread has, and the time is written to where it may be.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "clock_gettime");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The time since some moment.
#[cfg(not(target_os = "linux"))]
pub fn now() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

fn ns_each(start: Duration, operations: usize) -> f64 {
    (now() - start).as_nanos() as f64 / operations as f64
}

/// Look-ups of addresses that are mapped.
pub fn find<V: Vmas>(layout: &Layout, stream: Stream, effort: &Effort, round: u64) -> f64 {
    let mut store: V = layout.store();
    let addresses = layout.addresses(stream, effort.finds, round);
    let start = now();
    let sum = addresses.iter().fold(0_u64, |sum, &addr| sum.wrapping_add(store.find(addr).expect("mapped")));
    let took = ns_each(start, addresses.len());
    black_box(sum);
    took
}

/// Takes VMAs out and puts them back.
pub fn replace<V: Vmas>(layout: &Layout, effort: &Effort, round: u64) -> Option<f64> {
    let count = changes::<V>(layout, effort)?;
    let mut store: V = layout.store();
    let mut rng = Rng::new(round + 1);
    let start = now();
    for _ in 0..count {
        let vma = &layout.vmas[rng.below(layout.count() as u64) as usize];
        store.remove(vma.clone());
        store.insert(vma.clone());
    }
    Some(ns_each(start, count))
}

/// munmap of a VMA, a search for room for another, mmap of that.
pub fn churn<V: Vmas>(layout: &Layout, effort: &Effort, round: u64) -> Option<f64> {
    let count = changes::<V>(layout, effort)?;
    let mut store: V = layout.store();
    let mut vmas = layout.vmas.clone();
    let mut rng = Rng::new(round + 1);
    let start = now();
    for _ in 0..count {
        let index = rng.below(vmas.len() as u64) as usize;
        let gone = vmas[index].clone();
        store.remove(gone.clone());
        let bytes = (1 + rng.below(16)) * PAGE;
        vmas[index] = match store.insert_anywhere(bytes, layout.space.clone()) {
            Some(at) => at..at + bytes,
            None => {
                store.insert(gone.clone());
                gone
            }
        };
    }
    Some(ns_each(start, count))
}

/// How many changes a round makes, if the store is fast enough to be waited for at all.
fn changes<V: Vmas>(layout: &Layout, effort: &Effort) -> Option<usize> {
    let slow = V::ROOM_FROM_BELOW || V::NAME == "BTreeMap";
    match layout.count() {
        count if count > V::REPLACE_AT_MOST => None,
        count if slow && count > 10_000 => Some(effort.changes.min(walks(count))),
        _ => Some(effort.changes),
    }
}

/// How many walks over so many VMAs are worth waiting for.
fn walks(count: usize) -> usize {
    (20_000_000 / count).clamp(20, 20_000)
}

/// A layout with one wide gap at the far end from where a store begins to look. The others have 4 pages at most.
struct Far {
    layout: Layout,
    is_below: bool,
}

impl Far {
    const WIDE: u64 = 64 * PAGE;

    fn new<V: Vmas>(layout: &Layout) -> Self {
        let shift = if V::ROOM_FROM_BELOW { 0 } else { Self::WIDE };
        let vmas = layout.vmas.iter().map(|vma| vma.start + shift..vma.end + shift).collect();
        let layout = Layout { vmas, space: BASE..layout.space.end + Self::WIDE };
        Self { layout, is_below: !V::ROOM_FROM_BELOW }
    }

    /// As many pages as only the wide gap has.
    fn bytes(rng: &mut Rng) -> u64 {
        (5 + rng.below(60)) * PAGE
    }

    fn assert_in_the_wide_gap(&self, at: u64) {
        let is_there = match (self.is_below, self.layout.vmas.first(), self.layout.vmas.last()) {
            (true, Some(first), _) => at < first.start,
            (false, _, Some(last)) => at >= last.end,
            _ => true,
        };
        assert!(is_there, "{at:#x} is not in the wide gap");
    }
}

/// A search for what only the last gap has room for: the worst case of a walk, and of an index that prunes badly. All stores do the same number of
/// times the same sizes.
pub fn room<V: Vmas>(layout: &Layout, effort: &Effort, round: u64) -> f64 {
    let far = Far::new::<V>(layout);
    let mut store: V = far.layout.store();
    let count = effort.changes.min(walks(layout.count()));
    let mut rng = Rng::new(round + 1);
    let start = now();
    for _ in 0..count {
        far.assert_in_the_wide_gap(
            store.room(Far::bytes(&mut rng), far.layout.space.clone()).expect("the wide gap"),
        );
    }
    ns_each(start, count)
}

/// The same with mmap of what was found and munmap of it.
pub fn gap<V: Vmas>(layout: &Layout, effort: &Effort, round: u64) -> f64 {
    let far = Far::new::<V>(layout);
    let mut store: V = far.layout.store();
    let count = effort.changes.min(walks(layout.count()));
    let mut rng = Rng::new(round + 1);
    let start = now();
    for _ in 0..count {
        let bytes = Far::bytes(&mut rng);
        let at = store.insert_anywhere(bytes, far.layout.space.clone()).expect("the wide gap");
        far.assert_in_the_wide_gap(at);
        store.remove(at..at + bytes);
    }
    ns_each(start, count)
}
