//! futex: threads that sleep until a word in memory is woken.

use kernmm::addr::VirtAddr;
use kernmm::error::Errno;
use kernmm::memory::FutexKey;

use super::{Answer, Call};
use crate::process::Process;
use crate::sched::{self, Event, TICKS_PER_SECOND, Woken};

const WAIT: u64 = 0;
const WAKE: u64 = 1;
/// `FUTEX_PRIVATE_FLAG`: nobody shares the word. What the word is says as much.
const PRIVATE: u64 = 128;

/// In a tick.
const NANOSECONDS_PER_TICK: u64 = 1_000_000_000 / TICKS_PER_SECOND;

/// A word that somebody sleeps at was woken.
static WORDS: Event = Event::new();

/// The word's name, the same for all who share it, as one number. kernmm says what is the same; here its parts, of 32, 64 and 12 or of 64 and
/// 47 bits, are only packed.
fn key_of(process: &Process, word: u64) -> Result<u128, i32> {
    let key = process.space().futex_key(VirtAddr::from(word)).map_err(|_| Errno::EFAULT.get())?;
    Ok(match key {
        FutexKey::Shared(file, page, offset) => {
            1 << 127 | u128::from(file.0.get()) << 76 | u128::from(page.get()) << 12 | u128::from(offset)
        }
        FutexKey::Private(mm, addr) => u128::from(mm.to_bits()) << 48 | u128::from(addr.get()),
    })
}

pub fn futex(call: &Call<'_>) -> Answer {
    let [word, operation, value, timeout, ..] = call.args;
    match operation & !PRIVATE {
        _ if word % 4 != 0 => Err(Errno::EINVAL.get()),
        WAIT => wait(call, word, value as u32, timeout),
        WAKE => Ok(wake(&call.process, word, value as u32 as usize) as u64),
        _ => Err(Errno::ENOSYS.get()),
    }
}

fn wait(call: &Call<'_>, word: u64, expected: u32, timeout: u64) -> Answer {
    let until = match timeout {
        0 => None,
        at => {
            let (seconds, nanoseconds) = (call.read_u64(at)?, call.read_u64(at.wrapping_add(8))?);
            let ticks =
                seconds.saturating_mul(TICKS_PER_SECOND).saturating_add(nanoseconds / NANOSECONDS_PER_TICK);
            Some(sched::ticks().saturating_add(ticks).saturating_add(1))
        }
    };
    let key = key_of(&call.process, word)?;
    let seen = WORDS.listen();
    // Read after the state: a change after this wakes, and is seen by `wait`.
    if call.read_u32(word)? != expected {
        return Err(Errno::EAGAIN.get());
    }
    match WORDS.wait_unless_over(seen, key, until) {
        Woken::Happened => Ok(0),
        Woken::Late => Err(ETIMEDOUT),
        Woken::Over => Err(Errno::EINTR.get()),
    }
}

/// Wakes at most so many that sleep at a word; answers how many.
pub fn wake(process: &Process, word: u64, most: usize) -> usize {
    key_of(process, word).map_or(0, |key| WORDS.wake(key, most))
}

/// The time is over: a number that kernmm has no use for.
const ETIMEDOUT: i32 = 110;
