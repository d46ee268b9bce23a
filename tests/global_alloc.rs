//! The standard library on kernmm's kmalloc: this binary has no other heap.

mod slab_support;

use std::alloc::{GlobalAlloc, Layout};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, Once, OnceLock};

use kernmm::phys::{Config, NoReclaim, Phys};
use kernmm::platform::Platform;
use kernmm::slab::{GlobalHeap, Slabs};
use slab_support::{Machine, Source, random};

/// RAM of the machine: 256 MiB.
const PAGES: usize = 64 << 10;

static MACHINE: OnceLock<Machine> = OnceLock::new();
static PHYS: OnceLock<Phys<'static>> = OnceLock::new();
static HEAP: GlobalHeap<Source> = GlobalHeap::new();

/// The heap, booted by the first allocation: the standard library allocates before `main`.
struct Booting;

impl Booting {
    fn heap(&self) -> &GlobalHeap<Source> {
        static BOOT: Once = Once::new();
        if !BOOT.is_completed() {
            BOOT.call_once(|| {
                let machine = MACHINE.get_or_init(|| Machine::new(PAGES, 4));
                let phys = PHYS.get_or_init(|| machine.boot(&Config::default()));
                // SAFETY: the frames were booted with this machine's pin, and are used by nobody else.
                let source = unsafe { NoReclaim::new(phys, machine) };
                // SAFETY: the machine's RAM is its own, and nothing else allocates from these frames.
                unsafe { HEAP.init(source) }.expect("the heap boots");
                machine.on_kick(&|| {
                    if let (Some(phys), Some(machine), Some((slabs, source))) =
                        (PHYS.get(), MACHINE.get(), HEAP.get())
                    {
                        phys.serve(&machine.pin());
                        slabs.serve(source);
                    }
                });
            });
        }
        &HEAP
    }
}

// SAFETY: all calls are handed on.
unsafe impl GlobalAlloc for Booting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { self.heap().alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { self.heap().alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { self.heap().dealloc(address, layout) }
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { self.heap().realloc(address, layout, size) }
    }
}

#[global_allocator]
static GLOBAL: Booting = Booting;

fn slabs() -> (&'static Slabs<'static>, &'static Source) {
    let (slabs, source) = HEAP.get().expect("the heap is booted");
    (slabs, source)
}

#[test]
fn collections_work_on_several_threads() {
    let threads: Vec<_> = (0..6_u64)
        .map(|seed| {
            std::thread::spawn(move || {
                let mut state = seed;
                let mut map = HashMap::new();
                let mut tree = BTreeMap::new();
                for _ in 0..20_000 {
                    let key = random(&mut state) % 2000;
                    match random(&mut state) % 3 {
                        0 => assert_eq!(map.remove(&key), tree.remove(&key)),
                        _ => {
                            let value = vec![key as u8; (random(&mut state) % 3000) as usize];
                            assert_eq!(map.insert(key, value.clone()), tree.insert(key, value));
                        }
                    }
                }
                assert!(tree.iter().all(|(key, value)| value.iter().all(|&byte| byte == *key as u8)));
                assert_eq!(map.len(), tree.len());
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn memory_allocated_by_one_thread_is_freed_by_another() {
    let (send, receive) = mpsc::channel::<(u64, Box<[u64]>)>();
    let receive = Arc::new(Mutex::new(receive));
    let consumers: Vec<_> = (0..3)
        .map(|_| {
            let receive = Arc::clone(&receive);
            std::thread::spawn(move || {
                let mut seen = 0_u64;
                loop {
                    let next = receive.lock().unwrap().recv();
                    let Ok((tag, words)) = next else { return seen };
                    assert!(words.iter().all(|&word| word == tag));
                    seen += 1;
                }
            })
        })
        .collect();
    let producers: Vec<_> = (0..3_u64)
        .map(|seed| {
            let send = send.clone();
            std::thread::spawn(move || {
                let mut state = seed << 32;
                for _ in 0..20_000 {
                    let len = (random(&mut state) % 300) as usize;
                    let tag = random(&mut state);
                    send.send((tag, vec![tag; len].into_boxed_slice())).unwrap();
                }
            })
        })
        .collect();
    drop(send);
    producers.into_iter().for_each(|thread| thread.join().unwrap());
    let seen: u64 = consumers.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert_eq!(seen, 60_000);
}

#[test]
fn growing_containers_keep_their_contents() {
    let mut bytes = Vec::new();
    let mut queue = VecDeque::new();
    let mut heap = BinaryHeap::new();
    let mut set = BTreeSet::new();
    let mut text = String::new();
    // A million bytes and 128 Ki words: across all classes and into blocks of up to 1 MiB.
    for n in 0..1_000_000_u32 {
        bytes.push(n as u8);
        if n % 8 == 0 {
            queue.push_back(u64::from(n));
            heap.push(n);
            set.insert(n);
        }
        if n % 100 == 0 {
            text.push_str(&n.to_string());
        }
    }
    assert!(bytes.iter().zip(0..1_000_000_u32).all(|(&byte, n)| byte == n as u8));
    assert!(queue.iter().eq((0..1_000_000).step_by(8).collect::<Vec<u64>>().iter()));
    assert_eq!(heap.pop(), Some(999_992));
    assert_eq!(set.range(500..).next(), Some(&504));
    assert!(text.starts_with("0100200300"));
    bytes.truncate(10);
    bytes.shrink_to_fit();
    assert_eq!(bytes, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn layouts_get_the_alignment_they_ask_for() {
    for shift in 0..=20 {
        let align = 1_usize << shift;
        for size in [1, 7, 24, 100, 640, 5000, 9000, 70_000, 1 << 20] {
            let layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: the layout has a size.
            let address = unsafe { std::alloc::alloc_zeroed(layout) };
            assert!(!address.is_null() && address.addr() % align == 0, "{layout:?}");
            // SAFETY: the memory was just allocated with this size, zeroed.
            let bytes = unsafe { std::slice::from_raw_parts_mut(address, size) };
            assert!(bytes.iter().all(|&byte| byte == 0));
            bytes.fill(0xff);
            // SAFETY: allocated with this layout.
            unsafe { std::alloc::dealloc(address, layout) };
        }
    }
}

#[test]
fn more_than_the_largest_block_is_refused_and_nothing_is_lost() {
    let layout = Layout::from_size_align((2 << 20) + 1, 8).unwrap();
    // SAFETY: the layout has a size.
    let memory = unsafe { std::alloc::alloc(layout) };
    // Of memory that nobody looks at the compiler may assume that it was given.
    assert!(std::hint::black_box(memory).is_null());
    let mut bytes: Vec<u8> = vec![7; 1 << 20];
    assert!(bytes.try_reserve_exact(1 << 21).is_err());
    assert!(bytes.iter().all(|&byte| byte == 7));
}

#[test]
fn shrinking_gives_pages_back_while_others_allocate() {
    let (slabs, source) = slabs();
    let kept: Vec<Box<[u8; 500]>> = (0..20_000).map(|n| Box::new([n as u8; 500])).collect();
    let rest: Vec<_> = kept.into_iter().step_by(64).collect();
    let others: Vec<_> = (0..3)
        .map(|seed| {
            std::thread::spawn(move || {
                let mut state = seed;
                for _ in 0..2000 {
                    let text: Vec<String> =
                        (0..20).map(|_| "x".repeat((random(&mut state) % 700) as usize)).collect();
                    assert!(text.iter().all(|text| text.bytes().all(|byte| byte == b'x')));
                }
            })
        })
        .collect();
    let mut pages = 0;
    for _ in 0..20 {
        pages += slabs.shrink(source);
    }
    others.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(pages != 0);
    assert!(rest.iter().enumerate().all(|(at, bytes)| bytes.iter().all(|&byte| byte == (at * 64) as u8)));
}
