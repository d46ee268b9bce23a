//! A machine without hardware, for the targets of the frame allocator.

use core::mem::MaybeUninit;
use core::ptr::NonNull;

use kernmm::addr::Pfn;
use kernmm::platform::{CpuId, CpuPin, Kick, Platform};

pub struct Bare;

// SAFETY: no frame is mapped; the CPUs take turns on one thread.
unsafe impl Platform for Bare {
    fn direct_map(&self, _: Pfn) -> Option<NonNull<u8>> {
        None
    }

    fn kick(&self, _: CpuId) -> Kick {
        Kick::Halted
    }
}

pub fn pin(cpu: u32) -> CpuPin<'static> {
    // SAFETY: a target runs on one thread, and its pins are used in turn.
    unsafe { CpuPin::new(&Bare, CpuId(cpu)) }
}

/// Memory for metadata: `bytes` of it, aligned to 64.
pub struct Memory(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [MaybeUninit<u8>; 64]);

impl Memory {
    pub fn new(bytes: usize) -> Self {
        Self(vec![Line([MaybeUninit::uninit(); 64]); bytes.div_ceil(64)])
    }

    pub fn bytes(&mut self) -> &mut [MaybeUninit<u8>] {
        let len = self.0.len() * 64;
        // SAFETY: the lines are that many bytes, of which nothing is asked.
        unsafe { core::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), len) }
    }
}
