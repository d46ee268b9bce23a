//! What the simulated machine answers, as the running kernel tells it.

use kernmm::error::Errno;
use kernmm::memory::Refused;
use kernmm::mm::MmError;

use super::op::Outcome;

/// What the table calls an outcome without looking at its circumstances.
pub(crate) fn name(outcome: &Outcome) -> &'static str {
    match *outcome {
        Outcome::Signal { number: 11, code: 1, .. } => "SIGSEGV MAPERR",
        Outcome::Signal { number: 11, code: 2, .. } => "SIGSEGV ACCERR",
        Outcome::Signal { number: 11, code: 4, .. } => "SIGSEGV PKUERR",
        Outcome::Signal { number: 11, code: 128, .. } => "SIGSEGV KERNEL",
        Outcome::Signal { number: 7, code: 2, .. } => "SIGBUS ADRERR",
        Outcome::Signal { .. } => "another signal",
        Outcome::Result(result) | Outcome::Bytes(result, _) if result >= 0 => "ok",
        Outcome::Result(result) | Outcome::Bytes(result, _) => {
            let of = |errno: &Errno| i64::from(errno.get()) == -result;
            let extra = [Errno::EFAULT, Errno::EBADF];
            let known = MmError::ALL.iter().map(|error| error.errno()).chain(extra);
            known.into_iter().find(of).map_or("?", Errno::name)
        }
    }
}

pub(super) fn signal(refused: Refused, addr: u64, done: usize) -> Result<Outcome, String> {
    let Refused::Signal(signal) = refused else { return Err("out of memory".to_owned()) };
    // The processor does not tell which address was none.
    let addr = if signal == kernmm::fault::Signal::NonCanonical { 0 } else { addr };
    Ok(Outcome::Signal { number: signal.number(), code: signal.code(), addr, done })
}

pub(super) fn bad_address(refused: Refused) -> Result<i64, String> {
    match refused {
        Refused::Signal(_) => Ok(errno(Errno::EFAULT)),
        Refused::OutOfMemory => Err("out of memory".to_owned()),
    }
}

/// A call that ends at a bad address: with what was done, if anything was.
pub(super) fn cut_short(refused: Refused, done: usize) -> Result<Outcome, String> {
    let errno = bad_address(refused)?;
    Ok(Outcome::Result(if done == 0 { errno } else { done as i64 }))
}

pub(super) fn errno(errno: Errno) -> i64 {
    -i64::from(errno.get())
}

pub(super) fn failed(error: MmError) -> i64 {
    errno(error.errno())
}
