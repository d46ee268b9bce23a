//! What the kernel does with kernmm's frames and heap, on all CPUs at once, and what must hold afterwards.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicBool, Ordering};

use kernmm::addr::{PAGE_SIZE, PageOrder, Pfn};
use kernmm::flags::GfpFlags;
use kernmm::phys::Phys;
use kernmm::platform::Platform;
use spin::Mutex;

use crate::platform::MACHINE;
use crate::{cpu, memory, println};

/// Blocks that a CPU holds at once.
const BLOCKS: usize = 128;
/// How often each of them is replaced.
const ROUNDS: u64 = 16;
/// Entries of a collection.
const NUMBERS: u64 = 2000;
/// Words in a page.
const WORDS: usize = PAGE_SIZE / size_of::<u64>();

/// Zones that are compared before and after.
const MAX_ZONES: usize = 8;
/// Free blocks by order. Their migrate types may change: a page block belongs to whoever used most of it.
type FreeBlocks = [u64; PageOrder::COUNT];

/// Texts that wait for a CPU to free them.
const IN_MAILBOX: usize = 64;
/// Texts that one CPU allocated for another to free.
static MAILBOX: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// A CPU keeps frames on its lists and runs on, until it is told to stop.
static KEEPING: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);

/// Allocates and frees on all CPUs at once; in the end the free lists must be what they were.
///
/// # Panics
/// If a block is lost, handed out twice or refused.
pub fn run(phys: &Phys<'_>) {
    let at_boot = settled(phys);
    // Room for all that it ever holds: it does not grow, and so calls no allocator, while it is locked.
    let mut mailbox = VecDeque::with_capacity(IN_MAILBOX + cpu::online());
    mailbox.extend((0..NUMBERS).take(IN_MAILBOX).map(|number| format!("{number:x}")));
    *MAILBOX.lock() = mailbox;
    for id in 1..cpu::online() {
        cpu::start_work(id, use_frames_and_heap);
    }
    use_frames_and_heap();
    for id in 1..cpu::online() {
        cpu::wait_for_work(id);
        get_back_what_a_running_cpu_keeps(phys, id);
    }
    drop(core::mem::take(&mut *MAILBOX.lock()));
    let now = settled(phys);
    assert!(at_boot == now, "free blocks by zone were {at_boot:?} and became {now:?}");
    println!("all frames are back");
}

/// What each CPU does.
fn use_frames_and_heap() {
    allocate_fill_and_free();
    use_collections();
}

/// Fills a tree with texts, and exchanges as many with the other CPUs: each frees what another one allocated.
fn use_collections() {
    let mut texts = BTreeMap::new();
    for number in 0..NUMBERS {
        texts.insert(number ^ 0x155, format!("{number:x}"));
        MAILBOX.lock().push_back(format!("{number:x}"));
        let other = MAILBOX.lock().pop_front().expect("one was just put in");
        assert!(value(&other) < NUMBERS, "{other:?} was never put in");
    }
    let sum: u64 = texts.values().map(|text| value(text)).sum();
    assert!(sum == NUMBERS * (NUMBERS - 1) / 2, "the numbers sum to {sum}");
    println!("cpu {}: {} texts in a tree, as many exchanged", cpu::id(), texts.len());
}

/// The number that a text says.
fn value(text: &str) -> u64 {
    u64::from_str_radix(text, 16).expect("written as a number")
}

/// Replaces blocks of all small orders in an order of its own, each filled with what only it holds.
fn allocate_fill_and_free() {
    let phys = memory::phys().expect("CPUs get work when kernmm is there");
    let mut random = cpu::id() as u64 + 1;
    let mut held: [Option<(Pfn, PageOrder)>; BLOCKS] = [None; BLOCKS];
    for _ in 0..ROUNDS * BLOCKS as u64 {
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let slot = random as usize % BLOCKS;
        let order = PageOrder::new((random >> 32) as u8 % 4).expect("0 to 3 are orders");
        let new =
            phys.alloc_pages(&MACHINE.pin(), GfpFlags::KERNEL, order).expect("there is enough for all CPUs");
        fill(new, order);
        if let Some(old) = held[slot].replace((new, order)) {
            verify_and_free(phys, old);
        }
    }
    held.into_iter().flatten().for_each(|block| verify_and_free(phys, block));
    println!("cpu {}: {} blocks allocated, filled and freed", cpu::id(), ROUNDS * BLOCKS as u64);
}

/// Writes into every word of a block which word of RAM it is, and whose.
fn fill(first: Pfn, order: PageOrder) {
    for (address, word) in words(first, order) {
        // SAFETY: the block is allocated, and ours.
        unsafe { address.write_volatile(word) };
    }
}

/// Frees a block in which [`fill`]'s words still stand.
fn verify_and_free(phys: &Phys<'_>, (first, order): (Pfn, PageOrder)) {
    for (address, word) in words(first, order) {
        // SAFETY: the block is allocated, and ours.
        let found = unsafe { address.read_volatile() };
        assert!(found == word, "{address:?} holds {found:#x}: somebody else has the frame as well");
    }
    phys.free_pages(&MACHINE.pin(), first, order).expect("the block was allocated");
}

/// The addresses of a block's words with what the running CPU writes there.
fn words(first: Pfn, order: PageOrder) -> impl Iterator<Item = (*mut u64, u64)> {
    let base =
        MACHINE.direct_map(first).expect("GFP_KERNEL memory is in the direct map").cast::<u64>().as_ptr();
    let whose = (cpu::id() as u64) << 56;
    let addresses = (0..WORDS << order.get()).map(move |word| base.wrapping_add(word));
    addresses.map(move |address| (address, whose ^ address as u64))
}

/// A CPU that runs, and does not allocate, has frames on its lists: another one gets them, by a kick.
fn get_back_what_a_running_cpu_keeps(phys: &Phys<'_>, id: usize) {
    phys.drain_all(&MACHINE.pin());
    cpu::start_work(id, keep_frames_and_run);
    while !KEEPING.swap(false, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    let kept = on_lists(phys);
    let kicks = cpu::kick_counter(id).load(Ordering::Relaxed);
    phys.drain_all(&MACHINE.pin());
    assert!(kept > 0 && on_lists(phys) == 0, "{} of {kept} pages are left on lists", on_lists(phys));
    assert!(cpu::kick_counter(id).load(Ordering::Acquire) > kicks, "CPU {id} was not kicked");
    STOP.store(true, Ordering::Relaxed);
    cpu::wait_for_work(id);
    STOP.store(false, Ordering::Relaxed);
    println!("cpu {id}: gave back {kept} pages when kicked");
}

/// Leaves some frames on this CPU's lists and goes on without a call of kernmm.
fn keep_frames_and_run() {
    let phys = memory::phys().expect("CPUs get work when kernmm is there");
    let page = phys.alloc_pages(&MACHINE.pin(), GfpFlags::KERNEL, PageOrder::ZERO).expect("there is a page");
    phys.free_pages(&MACHINE.pin(), page, PageOrder::ZERO).expect("the page was allocated");
    KEEPING.store(true, Ordering::Release);
    while !STOP.load(Ordering::Relaxed) {
        core::hint::spin_loop();
    }
}

/// The pages on the CPUs' lists.
fn on_lists(phys: &Phys<'_>) -> u64 {
    phys.zones().iter().map(|zone| zone.stat(&MACHINE.pin()).on_cpus).sum()
}

/// The free blocks of each zone, with nothing on CPUs' lists and everything merged.
fn settled(phys: &Phys<'_>) -> [Option<FreeBlocks>; MAX_ZONES] {
    let (slabs, source) = memory::HEAP.get().expect("the heap is there when frames are");
    slabs.shrink(source);
    slabs.check(source).expect("the heap's invariants hold");
    let pin = MACHINE.pin();
    assert!(phys.zones().len() <= MAX_ZONES, "more zones than are compared");
    phys.drain_all(&pin);
    phys.check(&pin).expect("the allocator's invariants hold");
    core::array::from_fn(|zone| {
        let stat = phys.zones().get(zone)?.stat(&pin);
        Some(stat.blocks.map(|by_type| by_type.iter().sum()))
    })
}
