//! The CPU itself: memory is memory, and the kernel is called by the `syscall` instruction.
#![expect(unsafe_code, reason = "addresses are touched, and the kernel is called, as the machine does it")]

use core::arch::{asm, global_asm};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use crate::calls::number;
use crate::system::{Addr, SIGBUS, SIGSEGV, SigInfo, System, THREAD_STACK, Thread, map_stack};
use crate::{Calls, Errno};

/// A process in ring 3 under a kernel with Linux's calls.
///
/// Addresses are touched as the programs say, without a check: this is the process's own memory, and the kernel's part is to protect others from it.
#[derive(Clone, Copy, Debug)]
pub struct Ring3 {
    auxv: *const u64,
}

// SAFETY: the vector is never written to after the process began.
unsafe impl Send for Ring3 {}

// SAFETY: as above.
unsafe impl Sync for Ring3 {}

impl Ring3 {
    /// A process that begins with its stack pointer at `stack`.
    ///
    /// # Safety
    /// What exec leaves lies there: the number of arguments, pointers to them, 0, pointers to the environment, 0, and the pairs of the auxiliary
    /// vector, the last with key 0. It stays there, unchanged.
    pub unsafe fn at_start(stack: *const u64) -> Self {
        // SAFETY: the number of arguments lies there.
        let arguments = unsafe { stack.read() } as usize;
        // SAFETY: the environment's pointers begin behind the arguments' and their end mark, in the same vector.
        let mut at = unsafe { stack.add(arguments + 2) };
        // SAFETY: a 0 ends them.
        while unsafe { at.read() } != 0 {
            // SAFETY: and has not come yet.
            at = unsafe { at.add(1) };
        }
        // SAFETY: behind it the pairs begin.
        Self { auxv: unsafe { at.add(1) } }
    }

    /// A process without an auxiliary vector.
    pub const fn new() -> Self {
        Self { auxv: ptr::null() }
    }
}

impl Default for Ring3 {
    fn default() -> Self {
        Self::new()
    }
}

/// The handlers of SIGBUS and SIGSEGV.
static HANDLERS: [AtomicPtr<()>; 2] = [const { AtomicPtr::new(ptr::null_mut()) }; 2];
/// The vector of the process whose handlers these are.
static AUXV: AtomicPtr<u64> = AtomicPtr::new(ptr::null_mut());

fn handler_of(signal: i32) -> Option<&'static AtomicPtr<()>> {
    match signal {
        SIGBUS => HANDLERS.first(),
        SIGSEGV => HANDLERS.last(),
        _ => None,
    }
}

// What a handler returns to.
global_asm!(
    ".globl kernmm_programs_sigreturn",
    "kernmm_programs_sigreturn:",
    "mov eax, 15",
    "syscall",
    "ud2"
);

unsafe extern "C" {
    fn kernmm_programs_sigreturn();
}

/// The kernel's `struct sigaction`.
#[repr(C)]
struct SigAction {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

const SA_SIGINFO: u64 = 4;
const SA_RESTORER: u64 = 0x0400_0000;

/// Linux's `siginfo_t`, as far as faults fill it.
#[repr(C)]
struct RawSigInfo {
    signal: i32,
    errno: i32,
    code: i32,
    _pad: i32,
    addr: u64,
}

/// What the kernel calls.
extern "C" fn trampoline(signal: i32, info: *const RawSigInfo, _context: *const u8) {
    // SAFETY: the kernel gives its handler a siginfo, since SA_SIGINFO is set.
    let info = unsafe { &*info };
    let handler = handler_of(signal).map_or(ptr::null_mut(), |handler| handler.load(Ordering::Acquire));
    if handler.is_null() {
        return;
    }
    // SAFETY: `on_signal`, which alone stores there, stores such functions.
    let handler: fn(&Ring3, &SigInfo) = unsafe { core::mem::transmute(handler) };
    let system = Ring3 { auxv: AUXV.load(Ordering::Acquire) };
    handler(&system, &SigInfo { signal, code: info.code, addr: info.addr });
}

/// What lies at the top of a new thread's stack.
#[repr(C, align(16))]
struct Begin<F> {
    tid: AtomicU32,
    system: Ring3,
    body: F,
}

/// Where a thread begins.
unsafe extern "C" fn begin<F: FnOnce(&Ring3)>(what: *mut Begin<F>) -> ! {
    // SAFETY: `thread` put it there for this thread alone; of its number, which the kernel changes, nobody makes use here.
    let Begin { system, body, .. } = unsafe { ptr::read(what) };
    body(&system);
    system.syscall(number::EXIT, [0; 6]);
    unreachable!("the thread has ended");
}

/// CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, PARENT_SETTID and CHILD_CLEARTID.
const CLONE_THREAD: u64 = 0x0035_0f00;

impl System for Ring3 {
    fn syscall(&self, number: usize, args: [u64; 6]) -> i64 {
        let [a, b, c, d, e, f] = args;
        let answer;
        // SAFETY: the kernel changes rax, rcx and r11 alone, and of memory what the call says, which programs reach by volatile accesses or lend.
        unsafe {
            asm!("syscall", inlateout("rax") number as i64 => answer, in("rdi") a, in("rsi") b, in("rdx") c,
                 in("r10") d, in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
        }
        answer
    }

    fn load(&self, addr: Addr, out: &mut [u8]) {
        if let (Ok(word), 0) = (<&mut [u8; 4]>::try_from(&mut *out), addr % 4) {
            // SAFETY: a load at any address is the kernel's to allow or to answer with a signal.
            *word = unsafe { (addr as *const u32).read_volatile() }.to_le_bytes();
            return;
        }
        for (byte, at) in out.iter_mut().zip(addr..) {
            // SAFETY: as above.
            *byte = unsafe { (at as *const u8).read_volatile() };
        }
    }

    fn store(&self, addr: Addr, bytes: &[u8]) {
        if let (Ok(word), 0) = (<[u8; 4]>::try_from(bytes), addr % 4) {
            // SAFETY: a store at any address of its own is the program's right; Rust's variables do not lie where programs map.
            unsafe { (addr as *mut u32).write_volatile(u32::from_le_bytes(word)) };
            return;
        }
        for (&byte, at) in bytes.iter().zip(addr..) {
            // SAFETY: as above.
            unsafe { (at as *mut u8).write_volatile(byte) };
        }
    }

    fn compare_exchange(&self, addr: Addr, current: u32, new: u32) -> u32 {
        // SAFETY: the words that programs share are aligned and reached atomically.
        let word = unsafe { AtomicU32::from_ptr(addr as *mut u32) };
        word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).unwrap_or_else(|found| found)
    }

    fn call(&self, addr: Addr) -> u32 {
        // SAFETY: the program put a function of this type there.
        let function: extern "C" fn() -> u32 = unsafe { core::mem::transmute(addr as *const ()) };
        function()
    }

    fn lend<R>(&self, bytes: &mut [u8], lend: impl FnOnce(Addr) -> R) -> R {
        lend(bytes.as_mut_ptr().expose_provenance() as Addr)
    }

    fn fork(&self, child: impl FnOnce(&Self) -> i32 + Send + 'static) -> Result<i32, Errno> {
        match Errno::check(self.syscall(number::FORK, [0; 6]))? {
            0 => self.exit(child(self)),
            pid => Ok(pid as i32),
        }
    }

    fn thread(&self, body: impl FnOnce(&Self) + Send + 'static) -> Result<Thread, Errno> {
        self.begin_thread(body)
    }

    /// All programs are one file, in the folder of the process; the first argument says which.
    fn exec(&self, program: &str) -> Errno {
        let mut name = [0; 32];
        let Some(place) = name.get_mut(..program.len()).filter(|place| place.len() < 32) else {
            return Errno::ENAMETOOLONG;
        };
        place.copy_from_slice(program.as_bytes());
        let vector = [name.as_ptr().expose_provenance() as u64, 0];
        let path = c"programs".as_ptr().expose_provenance() as u64;
        let vector = vector.as_ptr().expose_provenance() as u64;
        let answer = self.syscall(number::EXECVE, [path, vector, vector + 8, 0, 0, 0]);
        Errno::check(answer).err().unwrap_or(Errno::EIO)
    }

    fn on_signal(&self, signal: i32, handler: Option<fn(&Self, &SigInfo)>) -> Result<(), Errno> {
        let place = handler_of(signal).ok_or(Errno::EINVAL)?;
        AUXV.store(self.auxv.cast_mut(), Ordering::Release);
        place.store(handler.map_or(ptr::null_mut(), |handler| handler as *mut ()), Ordering::Release);
        let action = SigAction {
            handler: handler.map_or(0, |_| trampoline as *const () as u64),
            flags: SA_SIGINFO | SA_RESTORER,
            restorer: kernmm_programs_sigreturn as *const () as u64,
            mask: 0,
        };
        let action = (&raw const action).expose_provenance() as u64;
        self.done(number::RT_SIGACTION, &[signal as u64, action, 0, 8])
    }

    fn auxv(&self, key: u64) -> Option<u64> {
        let mut at = self.auxv;
        while !at.is_null() {
            // SAFETY: pairs lie there up to the one with key 0, as `at_start` was promised.
            let pair = unsafe { at.cast::<[u64; 2]>().read() };
            match pair[0] {
                0 => return None,
                found if found == key => return Some(pair[1]),
                // SAFETY: another pair follows.
                _ => at = unsafe { at.add(2) },
            }
        }
        None
    }

    fn exit(&self, status: i32) -> ! {
        self.syscall(number::EXIT_GROUP, [status as u64, 0, 0, 0, 0, 0]);
        unreachable!("the process has ended");
    }
}

impl Ring3 {
    fn begin_thread<F: FnOnce(&Self) + Send + 'static>(&self, body: F) -> Result<Thread, Errno> {
        let stack = map_stack(self)?;
        let top = (stack + THREAD_STACK - size_of::<Begin<F>>() as u64) & !15;
        let begins = top as *mut Begin<F>;
        // SAFETY: the stack is fresh memory, large enough, and nobody else's.
        unsafe { begins.write(Begin { tid: AtomicU32::new(0), system: *self, body }) };
        // SAFETY: the place was just written.
        let tid = unsafe { (&raw mut (*begins).tid).expose_provenance() } as u64;
        let answer: i64;
        // SAFETY: the new thread has a stack of its own, on which it runs `begin` and never comes back from there.
        unsafe {
            asm!("syscall", "test rax, rax", "jnz 2f", "xor ebp, ebp", "mov rdi, r12", "call r13", "ud2", "2:",
                 inlateout("rax") number::CLONE as i64 => answer, in("rdi") CLONE_THREAD, in("rsi") top,
                 in("rdx") tid, in("r10") tid, in("r8") 0, in("r12") begins, in("r13") begin::<F>,
                 lateout("rcx") _, lateout("r11") _);
        }
        match Errno::check(answer) {
            Ok(_) => Ok(Thread { tid, stack, len: THREAD_STACK }),
            Err(errno) => {
                let _ = self.munmap(stack, THREAD_STACK);
                Err(errno)
            }
        }
    }
}
