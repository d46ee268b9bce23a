//! What the workloads ask of an allocator of page frames.

/// Frames in every contender's memory: 4 GiB of 4 KiB pages.
pub const FRAMES: u64 = 1 << 20;
/// The largest order asked for: 512 frames.
pub const MAX_ORDER: u32 = 9;
/// CPUs that a contender must be ready for.
pub const CPUS: usize = 2;

/// An allocator of blocks of `1 << order` frames, named by the number of their first frame.
pub trait Frames: Sync + Sized {
    /// A CPU that allocates and frees; dropping it takes the CPU offline.
    type Cpu<'a>
    where
        Self: 'a;

    /// What the table calls it.
    const NAME: &'static str;
    /// How many times fewer operations it gets where it is orders of magnitude slower than the others.
    const SLOWNESS: u64 = 1;

    /// An allocator with all frames free.
    fn new() -> Self;

    /// Brings CPU `id` up on the calling thread. One thread uses an id at a time.
    fn cpu(&self, id: usize) -> Self::Cpu<'_>;

    /// Takes a block.
    fn alloc(&self, cpu: &mut Self::Cpu<'_>, order: u32) -> Option<u64>;

    /// Gives a block back.
    fn free(&self, cpu: &mut Self::Cpu<'_>, pfn: u64, order: u32);

    /// Bytes of metadata for all frames, where it is not the heap's business.
    fn metadata_bytes(&self) -> Option<u64>;
}

/// xorshift64*: cheap, and good enough to choose victims and orders.
pub struct Rng(u64);

impl Rng {
    /// Starts a sequence; the same seed gives the same one.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Puts the elements into random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, below(self.bits(), last + 1));
        }
    }
}

/// Scales the upper half of `bits` to `0..len`.
#[inline]
pub fn below(bits: u64, len: usize) -> usize {
    (((bits >> 32) * len as u64) >> 32) as usize
}
