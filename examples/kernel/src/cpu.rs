//! The CPUs: numbers, starting the others, and giving them work.

use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::Mutex;

use crate::apic::{self, Command};
use crate::interrupts::{self, KICK, TLB};
use crate::paging::direct_map;
use crate::pvh::{Kind, Range};
use crate::x86::{MSR_GS_BASE, disable_interrupts, enable_interrupts, inb, outb, wrmsr};
use crate::{boot, memory, println, sched, segments};

/// CPUs beyond these are left alone.
pub const MAX_CPUS: usize = 8;

/// The CPU that `boot.s` is bringing up; one at a time.
pub static STARTING: AtomicU32 = AtomicU32::new(0);

/// What the kernel knows about one CPU. Each finds its own through `gs`.
#[repr(C, align(64))]
pub struct Cpu {
    /// Its number: 0 is the one that booted.
    id: AtomicU32,
    apic_id: AtomicU32,
    online: AtomicBool,
    /// The top of the running thread's kernel stack: where what comes from ring 3 goes on.
    pub kernel_stack: AtomicU64,
    /// The user's stack pointer, for a moment at the start of a system call.
    pub user_stack: AtomicU64,
    /// The page tables that it walks, by their root's frame; `u64::MAX` for the kernel's.
    pub tables: AtomicU64,
    /// What the scheduler knows of it.
    pub turn: sched::Turn,
    /// Kicks that it has handled.
    kicks: AtomicU64,
    /// What it shall do next.
    work: Mutex<Option<fn()>>,
    /// Work was given and is not finished.
    busy: AtomicBool,
}

impl Cpu {
    /// Its number.
    pub fn id(&self) -> usize {
        self.id.load(Ordering::Relaxed) as usize
    }
}

/// All of them, online or not.
static CPUS: [Cpu; MAX_CPUS] = [const {
    Cpu {
        id: AtomicU32::new(0),
        apic_id: AtomicU32::new(0),
        online: AtomicBool::new(false),
        kernel_stack: AtomicU64::new(0),
        user_stack: AtomicU64::new(0),
        tables: AtomicU64::new(u64::MAX),
        turn: sched::Turn::new(),
        kicks: AtomicU64::new(0),
        work: Mutex::new(None),
        busy: AtomicBool::new(false),
    }
}; MAX_CPUS];

/// Sets up the running CPU, which is number `id`: segments, interrupts, local APIC. Interrupts stay off.
///
/// # Safety
/// `id` must be the number that `boot.s` gave to this CPU, and this its first call.
pub unsafe fn init(id: usize) {
    // SAFETY: the caller vouches for the number and the first call.
    unsafe { segments::load(id) };
    let cpu = &CPUS[id];
    // SAFETY: the register exists; `gs` is used for `id()` alone. Loading segments is what could undo it: it came before.
    unsafe { wrmsr(MSR_GS_BASE, (&raw const *cpu) as u64) };
    interrupts::load();
    if id == 0 {
        interrupts::silence_legacy_controllers();
        apic::map();
    }
    apic::init();
    cpu.id.store(id as u32, Ordering::Relaxed);
    cpu.apic_id.store(apic::id(), Ordering::Relaxed);
    // Pairs with the load in `is_online`: whoever sees it sees the ids.
    cpu.online.store(true, Ordering::Release);
}

/// The number of the running CPU.
pub fn id() -> usize {
    let id: u32;
    // SAFETY: `init` made `gs` point to this CPU's `Cpu`; the number in it never changes again.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) id, const offset_of!(Cpu, id),
            options(nostack, preserves_flags, readonly));
    }
    id as usize
}

/// The running CPU.
pub fn current() -> &'static Cpu {
    &CPUS[id()]
}

/// All CPUs online.
pub fn all() -> impl Iterator<Item = &'static Cpu> {
    CPUS.iter().take_while(|cpu| cpu.online.load(Ordering::Acquire))
}

/// The number of CPUs online. They are numbered without gaps.
pub fn online() -> usize {
    (0..MAX_CPUS).take_while(|&id| is_online(id)).count()
}

/// The local APIC's id of a CPU that is online.
pub fn apic_id(id: usize) -> u32 {
    CPUS[id].apic_id.load(Ordering::Relaxed)
}

/// How many kicks a CPU has handled. A load with `Acquire` also sees what the handler did.
pub fn kick_counter(id: usize) -> &'static AtomicU64 {
    &CPUS[id].kicks
}

/// Makes a CPU that is online run [`kicked`].
pub fn kick(id: usize) {
    apic::send(apic_id(id), Command::Interrupt(KICK));
}

/// Makes a CPU that is online run `platform::asked_to_forget`.
pub fn ask_to_forget(id: usize) {
    apic::send(apic_id(id), Command::Interrupt(TLB));
}

/// Runs on a CPU that was kicked, in the interrupt.
pub fn kicked() {
    memory::serve();
    // `Release` pairs with the loads of `kick_counter`'s users.
    CPUS[id()].kicks.fetch_add(1, Ordering::Release);
}

/// Gives a CPU that is idle some work and does not wait for it.
///
/// # Panics
/// If it is busy, or is the running CPU, which could never pick it up.
pub fn start_work(id: usize, work: fn()) {
    assert!(id != self::id() && is_online(id), "CPU {id} takes no work from CPU {}", self::id());
    let cpu = &CPUS[id];
    assert!(!cpu.busy.swap(true, Ordering::Relaxed), "CPU {id} is busy");
    *cpu.work.lock() = Some(work);
    kick(id);
}

/// Waits until a CPU has finished the work it was given.
pub fn wait_for_work(id: usize) {
    // Pairs with the store in `idle`: all that the work wrote is seen.
    while CPUS[id].busy.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
}

/// What a CPU does when it has nothing to do: looks for threads to run, sleeps, and does what work it is given. The loop is a thread itself, the one
/// that `boot.s` began.
pub fn idle() -> ! {
    let cpu = &CPUS[id()];
    loop {
        disable_interrupts();
        let work = cpu.work.lock().take();
        let Some(work) = work else {
            sched::idle();
            continue;
        };
        enable_interrupts();
        work();
        cpu.busy.store(false, Ordering::Release);
    }
}

/// Starts the CPUs with the given APIC ids, one after the other, as far as [`MAX_CPUS`] goes. Each one that comes up
/// gets the next number. Needs a page of RAM below 1 MiB for a moment.
pub fn start_others(apic_ids: impl Iterator<Item = u32>, ranges: &[Range]) {
    let own = apic_id(id());
    let Some(page) = trampoline_page(ranges) else {
        println!("cpu: no RAM below 1 MiB to start the others from");
        return;
    };
    let code = boot::trampoline();
    // SAFETY: the page is RAM that nobody uses yet, in the direct map; the trampoline is shorter than a page.
    unsafe { direct_map::<u8>(u64::from(page) << 12).copy_from_nonoverlapping(code.as_ptr(), code.len()) };
    for (apic_id, id) in apic_ids.filter(|&id| id != own).zip(1..) {
        // The local APIC's commands have room for 8-bit ids; 255 means all CPUs.
        if id >= MAX_CPUS || apic_id >= 255 {
            println!("cpu {id}: APIC id {apic_id} is left alone");
            return;
        }
        STARTING.store(id as u32, Ordering::Release);
        apic::send(apic_id, Command::Init);
        delay_microseconds(10_000);
        for wait in [200, 50_000] {
            if !is_online(id) {
                apic::send(apic_id, Command::Startup(page));
                delay_microseconds(wait);
            }
        }
        for _ in 0..20 {
            if !is_online(id) {
                delay_microseconds(50_000);
            }
        }
        if !is_online(id) {
            // It may come late, and would take the stack of the next one.
            println!("cpu {id}: APIC id {apic_id} does not answer");
            return;
        }
    }
}

/// Whether a CPU has come up.
fn is_online(id: usize) -> bool {
    CPUS[id].online.load(Ordering::Acquire)
}

/// The number of a page below 1 MiB that is RAM and not page 0, where the firmware's real-mode vectors are.
fn trampoline_page(ranges: &[Range]) -> Option<u8> {
    let usable = |page: u64| {
        ranges.iter().any(|r| r.kind == Kind::Usable && r.base <= page << 12 && (page + 1) << 12 <= r.end())
    };
    (1..=255).find(|&page| usable(u64::from(page)))
}

/// Waits by channel 2 of the 8254 timer, which runs at 1.193182 MHz; up to 54 ms.
pub fn delay_microseconds(microseconds: u32) {
    let ticks = (u64::from(microseconds) * 1_193_182 / 1_000_000).clamp(1, 0xffff) as u16;
    let [low, high] = ticks.to_le_bytes();
    // SAFETY: reading port 0x61 changes nothing.
    let gate = unsafe { inb(0x61) };
    // The gate on and the speaker off; then mode 0, which raises the output when the count is over.
    for (port, value) in [(0x61, gate & !2 | 1), (0x43, 0xb0), (0x42, low), (0x42, high)] {
        // SAFETY: channel 2 drives the speaker only.
        unsafe { outb(port, value) };
    }
    // SAFETY: reading port 0x61 changes nothing.
    while unsafe { inb(0x61) } & 0x20 == 0 {
        core::hint::spin_loop();
    }
}
