//! A memory fault in a kernel ends its fiber instead of the process.
//!
//! Memory faults only: a division by zero raises a signal on x86 and none on arm64, so the rewritten text
//! checks its divisors.

use super::fiber;
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::Once;

/// A memory fault: the address, if the system reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InvalidAccess(pub(super) Option<usize>);

/// At a guard page Linux raises the first, macOS the second.
const SIGNALS: [libc::c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// The handlers installed before, for faults outside kernels.
struct PreviousHandlers(UnsafeCell<[MaybeUninit<libc::sigaction>; SIGNALS.len()]>);
// SAFETY: written once before any handler can read.
unsafe impl Sync for PreviousHandlers {}
static PREVIOUS: PreviousHandlers =
    PreviousHandlers(UnsafeCell::new([const { MaybeUninit::uninit() }; SIGNALS.len()]));

/// Installs the handlers, once in the life of the process.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (index, signal) in SIGNALS.into_iter().enumerate() {
            // SAFETY: the handler runs on the alternate stack that Rust gives every thread, is
            // async-signal-safe, and passes on faults outside kernels. `PREVIOUS` is written under `ONCE`.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handle as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigemptyset(&mut action.sa_mask);
                let before = &mut (*PREVIOUS.0.get())[index];
                assert_eq!(libc::sigaction(signal, &action, before.as_mut_ptr()), 0, "sigaction");
            }
        }
    });
}

unsafe extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the system passes a valid context; registers are changed as corosensei requires.
    unsafe {
        let context = context.cast::<libc::ucontext_t>();
        if let Some(trap) = fiber::running_trap_handler()
            && trap.stack_ptr_in_bounds(stack_pointer(context))
        {
            let access = InvalidAccess(address(&*info));
            jump_to_handler(context, trap.setup_trap_handler(move || Err(access)));
            return;
        }
        // Not a kernel's fault: restore the previous handler; the instruction is repeated and faults again.
        let index = SIGNALS.iter().position(|known| *known == signal).unwrap_or(0);
        libc::sigaction(signal, (*PREVIOUS.0.get())[index].as_ptr(), std::ptr::null_mut());
    }
}

/// The address whose access raised the signal.
fn address(info: &libc::siginfo_t) -> Option<usize> {
    // Page faults have small codes on every system. Other signals have no address: non-canonical addresses on
    // x86-64, and signals sent by a process.
    // SAFETY: the system fills the field for these signals.
    (1..=4).contains(&info.si_code).then(|| unsafe { info.si_addr() } as usize)
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
unsafe fn stack_pointer(context: *mut libc::ucontext_t) -> usize {
    // SAFETY: a valid context.
    unsafe { (*context).uc_mcontext.gregs[libc::REG_RSP as usize] as usize }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
unsafe fn jump_to_handler(context: *mut libc::ucontext_t, to: corosensei::trap::TrapHandlerRegs) {
    // SAFETY: a valid context.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    registers[libc::REG_RIP as usize] = to.rip as i64;
    registers[libc::REG_RSP as usize] = to.rsp as i64;
    registers[libc::REG_RBP as usize] = to.rbp as i64;
    registers[libc::REG_RDI as usize] = to.rdi as i64;
    registers[libc::REG_RSI as usize] = to.rsi as i64;
}

#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
unsafe fn stack_pointer(context: *mut libc::ucontext_t) -> usize {
    // SAFETY: a valid context.
    unsafe { (*context).uc_mcontext.sp as usize }
}

#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
unsafe fn jump_to_handler(context: *mut libc::ucontext_t, to: corosensei::trap::TrapHandlerRegs) {
    // SAFETY: a valid context.
    let machine = unsafe { &mut (*context).uc_mcontext };
    machine.pc = to.pc;
    machine.sp = to.sp;
    machine.regs[0] = to.x0;
    machine.regs[1] = to.x1;
    machine.regs[29] = to.x29;
    machine.regs[30] = to.lr;
}

#[cfg(all(target_os = "macos", target_arch = "x86_64"))]
unsafe fn stack_pointer(context: *mut libc::ucontext_t) -> usize {
    // SAFETY: a valid context.
    unsafe { (*(*context).uc_mcontext).__ss.__rsp as usize }
}

#[cfg(all(target_os = "macos", target_arch = "x86_64"))]
unsafe fn jump_to_handler(context: *mut libc::ucontext_t, to: corosensei::trap::TrapHandlerRegs) {
    // SAFETY: a valid context.
    let state = unsafe { &mut (*(*context).uc_mcontext).__ss };
    state.__rip = to.rip;
    state.__rsp = to.rsp;
    state.__rbp = to.rbp;
    state.__rdi = to.rdi;
    state.__rsi = to.rsi;
}

#[cfg(all(target_os = "macos", target_arch = "aarch64"))]
unsafe fn stack_pointer(context: *mut libc::ucontext_t) -> usize {
    // SAFETY: a valid context.
    unsafe { (*(*context).uc_mcontext).__ss.__sp as usize }
}

#[cfg(all(target_os = "macos", target_arch = "aarch64"))]
unsafe fn jump_to_handler(context: *mut libc::ucontext_t, to: corosensei::trap::TrapHandlerRegs) {
    // SAFETY: a valid context.
    let state = unsafe { &mut (*(*context).uc_mcontext).__ss };
    state.__pc = to.pc;
    state.__sp = to.sp;
    state.__x[0] = to.x0;
    state.__x[1] = to.x1;
    state.__fp = to.x29;
    state.__lr = to.lr;
}
