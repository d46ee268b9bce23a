//! The disk: the first of the IDE controller, moved by the CPU (PIO). Requests wait in a queue for a thread of the kernel, so nobody else waits for the disk with a lock
//! held, and whoever asked can do something else.

use core::sync::atomic::{AtomicU64, Ordering};

use kernmm::addr::{PAGE_SIZE, Pfn};
use kernmm::platform::{IoState, StoreError, Ticket};
use spin::Mutex;

use crate::layout::BLOCK;
use crate::sched::{self, Event, IO};
use crate::x86::{inb, outb, read_words, write_words};
use crate::{fs, memory, time};

/// Ports of the first controller.
const DATA: u16 = 0x1f0;
const SECTORS: u16 = 0x1f2;
const LBA: u16 = 0x1f3;
const DRIVE: u16 = 0x1f6;
const COMMAND: u16 = 0x1f7;
const CONTROL: u16 = 0x3f6;

/// Commands.
const READ_MULTIPLE: u8 = 0xc4;
const WRITE_MULTIPLE: u8 = 0xc5;
const SET_MULTIPLE: u8 = 0xc6;
const FLUSH: u8 = 0xe7;

/// Bits of the status.
const BUSY: u8 = 0x80;
const DATA_REQUEST: u8 = 0x08;
const FAULT: u8 = 0x20;
const ERROR: u8 = 0x01;

/// Sectors in a block of the file system.
const SECTORS_PER_BLOCK: u32 = (BLOCK / 512) as u32;
/// Pages of one request.
pub const MAX_PAGES: usize = 64;
/// Requests at a time: as many as kernmm's page cache has under way.
const MAX_REQUESTS: usize = 64;

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Blocks become pages; what has none becomes zeros, and so do all bytes from `len` on.
    Read,
    /// The first `len` bytes of pages become blocks.
    Write,
    /// The directory is written, and everything that was written before is made to last.
    Sync,
}

/// Pages and the blocks that they come from or go to.
#[derive(Clone, Copy)]
pub struct Request {
    pub work: Work,
    pub pages: usize,
    pub frames: [Pfn; MAX_PAGES],
    /// 0 for a hole.
    pub blocks: [u32; MAX_PAGES],
    /// Bytes that count.
    pub len: u64,
}

impl Request {
    /// One without pages.
    pub const fn new(work: Work) -> Self {
        Self { work, pages: 0, frames: [Pfn::ZERO; MAX_PAGES], blocks: [0; MAX_PAGES], len: 0 }
    }
}

/// A place in the queue.
#[expect(
    clippy::large_enum_variant,
    reason = "a queue without an allocator: it serves those who wait for memory"
)]
#[derive(Clone, Copy)]
enum Place {
    Free,
    Waiting(u64, Request),
    Running(u64),
    Ended(u64, Result<(), StoreError>),
}

static QUEUE: Mutex<[Place; MAX_REQUESTS]> = Mutex::new([Place::Free; MAX_REQUESTS]);
/// The number of the last request.
static LAST: AtomicU64 = AtomicU64::new(0);
/// There is something to do.
static WORK: Event = Event::new();

/// Puts a request in the queue; it is done after all that came before.
///
/// # Errors
/// [`StoreError::Busy`] if the queue is full.
pub fn submit(request: &Request) -> Result<Ticket, StoreError> {
    let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    let mut queue = QUEUE.lock();
    let place = queue.iter_mut().find(|place| matches!(place, Place::Free)).ok_or(StoreError::Busy)?;
    *place = Place::Waiting(number, *request);
    drop(queue);
    WORK.wake(0, usize::MAX);
    Ok(Ticket(number))
}

/// How a request stands.
pub fn poll(Ticket(wanted): Ticket) -> IoState {
    let mut queue = QUEUE.lock();
    for place in queue.iter_mut() {
        if let Place::Ended(number, result) = *place
            && number == wanted
        {
            *place = Place::Free;
            return IoState::Ended(result);
        }
    }
    IoState::Pending
}

/// The thread of the disk.
pub fn serve() {
    loop {
        let seen = WORK.listen();
        let Some((number, request)) = take_next() else {
            WORK.wait(seen, 0, None);
            continue;
        };
        let result = perform(&request);
        let mut queue = QUEUE.lock();
        for place in queue.iter_mut() {
            if matches!(place, Place::Running(running) if *running == number) {
                *place = Place::Ended(number, result);
            }
        }
        drop(queue);
        IO.wake(0, usize::MAX);
    }
}

/// The oldest request.
fn take_next() -> Option<(u64, Request)> {
    let mut queue = QUEUE.lock();
    let number_of = |place: &Place| if let Place::Waiting(number, _) = place { Some(*number) } else { None };
    let oldest =
        queue.iter_mut().filter(|place| number_of(place).is_some()).min_by_key(|place| number_of(place))?;
    let Place::Waiting(number, request) = *oldest else { return None };
    *oldest = Place::Running(number);
    Some((number, request))
}

/// The bytes of a block, on their way.
type Buffer = [u8; BLOCK];

fn perform(request: &Request) -> Result<(), StoreError> {
    let frames = memory::frames().ok_or(StoreError::Io)?;
    let mut buffer = [0; BLOCK];
    let tails = clear_tails(&mut buffer);
    match request.work {
        Work::Sync => {
            // A block that cannot be cleared is the trouble of who wants all to be on the disk; pages of other blocks are read and written.
            tails?;
            // Else a file would have what others have left there, if the power went before its own bytes are written.
            buffer.fill(0);
            while let Some(block) = fs::next_unwritten() {
                write_block(block, &buffer)?;
                fs::block_is_written(block);
            }
            fs::write_directory(&mut buffer)?;
            return flush();
        }
        Work::Read | Work::Write => {}
    }
    for page in 0..request.pages {
        let (frame, block) = (request.frames[page], request.blocks[page]);
        let here = request.len.saturating_sub((page * PAGE_SIZE) as u64).min(PAGE_SIZE as u64) as usize;
        if request.work == Work::Read {
            if block == 0 {
                buffer.fill(0)
            } else {
                read_block(block, &mut buffer)?;
                buffer[fs::tail_of(block)..].fill(0);
            }
            buffer[here..].fill(0);
            frames.write_frame(frame, 0, &buffer).map_err(|_| StoreError::Io)?;
        } else if here != 0 {
            // The file ends in the page, or all of it counts: nothing that the disk has beyond it is worth keeping.
            frames.read_frame(frame, 0, &mut buffer).map_err(|_| StoreError::Io)?;
            buffer[here..].fill(0);
            write_block(block, &buffer)?;
            fs::block_is_written(block);
        }
    }
    Ok(())
}

/// Clears what files have lost of the blocks that they end in.
fn clear_tails(buffer: &mut Buffer) -> Result<(), StoreError> {
    while let Some((block, len)) = fs::next_tail() {
        read_block(block, buffer)?;
        buffer[usize::from(len)..].fill(0);
        write_block(block, buffer)?;
        fs::tail_is_clear(block, len);
    }
    Ok(())
}

/// Sets the disk up; `false` if there is none.
pub fn init() -> bool {
    // SAFETY: the controller's ports reach no memory; interrupts of the disk are off.
    unsafe { outb(CONTROL, 2) };
    // SAFETY: reading the status changes nothing.
    if unsafe { inb(COMMAND) } == 0xff {
        return false;
    }
    command(SET_MULTIPLE, 0, SECTORS_PER_BLOCK).and_then(|()| wait(0)).is_ok()
}

/// Reads a block.
///
/// # Errors
/// [`StoreError::Io`].
pub fn read_block(block: u32, buffer: &mut Buffer) -> Result<(), StoreError> {
    command(READ_MULTIPLE, block, SECTORS_PER_BLOCK)?;
    wait(DATA_REQUEST)?;
    let mut words = [0; BLOCK / 2];
    // SAFETY: the disk has a block ready; what it gives goes into the array.
    unsafe { read_words(DATA, &mut words) };
    for (bytes, word) in buffer.chunks_exact_mut(2).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    Ok(())
}

/// Writes a block.
///
/// # Errors
/// [`StoreError::Io`].
pub fn write_block(block: u32, buffer: &Buffer) -> Result<(), StoreError> {
    command(WRITE_MULTIPLE, block, SECTORS_PER_BLOCK)?;
    wait(DATA_REQUEST)?;
    let words: [u16; BLOCK / 2] =
        core::array::from_fn(|at| u16::from_le_bytes([buffer[2 * at], buffer[2 * at + 1]]));
    // SAFETY: the disk waits for a block; it takes it from the array.
    unsafe { write_words(DATA, &words) };
    settle();
    wait(0)
}

fn flush() -> Result<(), StoreError> {
    command(FLUSH, 0, 0)?;
    wait(0)
}

/// Gives a command for the first disk, from the first sector of a block on.
fn command(command: u8, block: u32, sectors: u32) -> Result<(), StoreError> {
    wait(0)?;
    let [low, middle, high, top] = block.checked_mul(SECTORS_PER_BLOCK).ok_or(StoreError::Io)?.to_le_bytes();
    let registers = [
        (DRIVE, 0xe0 | top & 0x0f),
        (SECTORS, sectors as u8),
        (LBA, low),
        (LBA + 1, middle),
        (LBA + 2, high),
        (COMMAND, command),
    ];
    for (port, value) in registers {
        // SAFETY: the registers reach no memory.
        unsafe { outb(port, value) };
    }
    settle();
    Ok(())
}

/// Gives the disk the 400 ns after which its status is that of the command: reading the other status register, which acknowledges nothing,
/// takes 100 ns and more.
fn settle() {
    for _ in 0..4 {
        // SAFETY: reading the status changes nothing.
        unsafe { inb(CONTROL) };
    }
}

/// How long the disk may take for a command.
const DEADLINE_NANOSECONDS: u64 = 10_000_000_000;

/// Waits until the disk is ready, with these bits set; others run meanwhile.
fn wait(bits: u8) -> Result<(), StoreError> {
    let end = time::nanoseconds() + DEADLINE_NANOSECONDS;
    loop {
        if time::nanoseconds() > end {
            return Err(StoreError::Io);
        }
        // SAFETY: reading the status changes nothing that matters with the disk's interrupts off.
        let status = unsafe { inb(COMMAND) };
        if status & BUSY == 0 {
            if status & (ERROR | FAULT) != 0 {
                return Err(StoreError::Io);
            }
            if status & bits == bits {
                return Ok(());
            }
        }
        if sched::has_begun() {
            sched::yield_now();
        }
    }
}
