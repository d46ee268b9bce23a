//! What a program runs on.

use crate::Errno;
use crate::calls::Calls;

/// An address in the memory of the process.
pub type Addr = u64;

/// The signal of an access that is not allowed.
pub const SIGSEGV: i32 = 11;
/// The signal of an access to a page that does not exist, beyond the end of a file.
pub const SIGBUS: i32 = 7;

/// What a handler is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SigInfo {
    /// Which signal.
    pub signal: i32,
    /// Why: 1 is "nothing mapped" for SIGSEGV, 2 is "not allowed" there and "no such page" for SIGBUS.
    pub code: i32,
    /// The address of the access.
    pub addr: Addr,
}

/// A thread that was begun.
#[derive(Clone, Copy, Debug)]
pub struct Thread {
    /// Where its number stands; the kernel writes 0 there and wakes the futex when the thread has ended.
    pub tid: Addr,
    /// The lowest address of its stack.
    pub stack: Addr,
    /// The bytes of its stack.
    pub len: u64,
}

/// A system: a kernel with Linux's calls, and a CPU that loads and stores.
///
/// What is not here is made of [`syscall`](Self::syscall): [`Calls`] has it.
///
/// A process's own variables lie in its memory on real hardware, but not on a simulated machine. So programs that share, map or
/// protect memory do that by addresses, and what a kernel call is to read or to write lies at an address too.
pub trait System: Sized {
    /// Calls the kernel: Linux's number for x86-64, and as many arguments as it takes. Answers with the value, or with the error number negated.
    fn syscall(&self, number: usize, args: [u64; 6]) -> i64;

    /// Loads bytes. An access that is not allowed is the kernel's affair: it runs a handler or ends the process.
    fn load(&self, addr: Addr, out: &mut [u8]);

    /// Stores bytes.
    fn store(&self, addr: Addr, bytes: &[u8]);

    /// Stores `new` in an aligned word of 32 bits if `current` stands there, atomically; answers with what stood there.
    fn compare_exchange(&self, addr: Addr, current: u32, new: u32) -> u32;

    /// Calls the code at an address, a function without arguments that answers with 32 bits.
    fn call(&self, addr: Addr) -> u32;

    /// Lends bytes to the kernel for a call: `lend` gets the address where they lie, and what the kernel writes there is in `bytes` afterwards.
    fn lend<R>(&self, bytes: &mut [u8], lend: impl FnOnce(Addr) -> R) -> R;

    /// Begins a child, a copy of this process that runs `child` and exits with its answer; answers with the child's number.
    ///
    /// # Errors
    /// EAGAIN, ENOMEM.
    fn fork(&self, child: impl FnOnce(&Self) -> i32 + Send + 'static) -> Result<i32, Errno>;

    /// Begins a thread in the same memory, with a stack of its own. [`Calls::join`] waits for its end.
    ///
    /// # Errors
    /// EAGAIN, ENOMEM.
    fn thread(&self, body: impl FnOnce(&Self) + Send + 'static) -> Result<Thread, Errno>;

    /// Becomes another of the [programs](crate::NAMES), as execve does; answers only if that cannot be.
    fn exec(&self, program: &str) -> Errno;

    /// Lets `handler` run for a signal; `None` ends the process instead. When the handler returns, the access is made again.
    ///
    /// # Errors
    /// EINVAL for signals that have no handlers.
    fn on_signal(&self, signal: i32, handler: Option<fn(&Self, &SigInfo)>) -> Result<(), Errno>;

    /// A value of the vector that the kernel left on the stack (`getauxval`).
    fn auxv(&self, key: u64) -> Option<u64>;

    /// Ends the process.
    fn exit(&self, status: i32) -> !;
}

/// The stack of a thread, in bytes.
pub(crate) const THREAD_STACK: u64 = 256 << 10;

/// Maps the stack of a new thread.
pub(crate) fn map_stack<S: System>(sys: &S) -> Result<Addr, Errno> {
    use crate::{MapFlags, Prot};
    sys.mmap(0, THREAD_STACK, Prot::READ | Prot::WRITE, MapFlags::PRIVATE | MapFlags::ANONYMOUS, -1, 0)
}
