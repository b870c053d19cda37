//! A thread of a threadgroup as a fiber, and the runtime functions that its kernel calls.

use super::matrices::{self, Format, Matrices, MatrixView};
use super::trap;
use corosensei::stack::{DefaultStack, Stack};
use corosensei::trap::CoroutineTrapHandler;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_longlong, c_ulong, c_void};

/// Why a fiber is suspended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// At a threadgroup barrier in this line of the text.
    Threadgroup(i32),
    /// At a simdgroup operation in this line.
    Simdgroup(i32),
    /// For good: the kernel did something that Metal would not report.
    Fault(String),
}

/// How a fiber ended: by returning, or by an access that raised a signal.
pub(super) type Outcome = Result<(), trap::InvalidAccess>;

/// Bytes a lane can exchange with its simdgroup at once.
const SLOT: usize = 64;
pub(super) const LANES: usize = 32;

/// Values that the lanes of one simdgroup exchange; double-buffered.
#[repr(C, align(64))]
pub(super) struct Slots([[[u8; SLOT]; LANES]; 2]);

impl Slots {
    pub(super) const EMPTY: Self = Self([[[0; SLOT]; LANES]; 2]);
}

/// What the runner knows of a thread while its kernel runs.
#[derive(Clone, Copy)]
pub(super) struct ThreadContext {
    pub(super) lane: u32,
    /// The end of its stack.
    pub(super) stack: usize,
    /// Matrix operations since its simdgroup last synchronized.
    pub(super) operations: usize,
    pub(super) matrices: *mut Matrices,
    /// The buffer of `slots` in use.
    pub(super) set: usize,
    pub(super) slots: *mut Slots,
    pub(super) threadgroup_memory: *mut u8,
}

impl ThreadContext {
    pub(super) const NONE: Self = Self {
        lane: 0,
        stack: 0,
        operations: 0,
        matrices: std::ptr::null_mut(),
        set: 0,
        slots: std::ptr::null_mut(),
        threadgroup_memory: std::ptr::null_mut(),
    };
}

/// The fiber that runs on this OS thread.
struct Current {
    yielder: Cell<*const Yielder<(), Wait>>,
    context: Cell<*mut ThreadContext>,
    trap: Cell<Option<CoroutineTrapHandler<Outcome>>>,
}

thread_local! {
    static CURRENT: Current = const {
        Current {
            yielder: Cell::new(std::ptr::null()),
            context: Cell::new(std::ptr::null_mut()),
            trap: Cell::new(None),
        }
    };
}

/// The trap handler of the fiber that runs on this OS thread. Called from a signal handler.
pub(super) fn running_trap_handler() -> Option<CoroutineTrapHandler<Outcome>> {
    CURRENT.try_with(|current| current.trap.get()).ok().flatten()
}

/// A fiber.
pub(super) struct Fiber {
    coroutine: Coroutine<(), Wait, Outcome, DefaultStack>,
    yielder: *const Yielder<(), Wait>,
    pub(super) context: ThreadContext,
}

/// A suspended or ended fiber.
pub(super) enum Stop {
    Waits(Wait),
    Ended(Outcome),
}

impl Fiber {
    /// A fiber that runs `body` on `stack`.
    ///
    /// # Safety
    ///
    /// What `body` borrows outlives the fiber, and a suspended fiber's stack holds nothing that needs to be
    /// dropped: kernels have plain data only.
    pub(super) unsafe fn new(stack: DefaultStack, context: ThreadContext, body: impl FnOnce()) -> Self {
        let context = ThreadContext { stack: stack.base().get(), ..context };
        // SAFETY: the caller's promise.
        let coroutine = unsafe {
            Coroutine::with_stack_unchecked(stack, move |yielder: &Yielder<(), Wait>, ()| {
                CURRENT.with(|current| current.yielder.set(yielder));
                body();
                Ok(())
            })
        };
        Self { coroutine, yielder: std::ptr::null(), context }
    }

    /// Runs the fiber until it waits or ends.
    pub(super) fn resume(&mut self) -> Stop {
        CURRENT.with(|current| {
            current.yielder.set(self.yielder);
            current.context.set(&raw mut self.context);
            current.trap.set(Some(self.coroutine.trap_handler()));
            let result = self.coroutine.resume(());
            current.trap.set(None);
            self.yielder = current.yielder.get();
            match result {
                CoroutineResult::Yield(wait) => Stop::Waits(wait),
                CoroutineResult::Return(outcome) => Stop::Ended(outcome),
            }
        })
    }

    /// The stack, for another fiber. A suspended fiber is abandoned.
    pub(super) fn into_stack(mut self) -> DefaultStack {
        if !self.coroutine.done() {
            // SAFETY: the contract of `new`: its stack holds plain data only.
            unsafe { self.coroutine.force_reset() };
        }
        self.coroutine.into_stack()
    }
}

/// Suspends the running fiber.
fn wait(wait: Wait) {
    let yielder = CURRENT.with(|current| current.yielder.get());
    // SAFETY: kernels run only in fibers, and a running fiber's yielder is on its stack.
    unsafe { (*yielder).suspend(wait) };
}

/// `msl::Runtime` of the shim.
#[repr(C)]
pub(super) struct Runtime {
    fault: extern "C" fn(*const c_char, c_longlong, c_longlong),
    wait_for_threadgroup: extern "C" fn(c_int),
    wait_for_simdgroup: extern "C" fn(c_int),
    lane_slot: extern "C" fn(u32) -> *mut c_void,
    swap_slots: extern "C" fn(),
    lane: extern "C" fn() -> u32,
    threadgroup_memory: extern "C" fn(c_ulong) -> *mut u8,
    fill: extern "C" fn(*const c_void, f32),
    load: extern "C" fn(*const c_void, Format, &MatrixView, c_int),
    store: extern "C" fn(*const c_void, &MatrixView, c_int),
    multiply: extern "C" fn(*const c_void, Format, *const c_void, *const c_void, *const c_void, c_int),
}

pub(super) static RUNTIME: Runtime = Runtime {
    fault,
    wait_for_threadgroup,
    wait_for_simdgroup,
    lane_slot,
    swap_slots,
    lane,
    threadgroup_memory,
    fill: matrices::fill,
    load: matrices::load,
    store: matrices::store,
    multiply: matrices::multiply,
};

extern "C" fn fault(what: *const c_char, a: c_longlong, b: c_longlong) {
    // SAFETY: the shim passes string literals.
    let what = unsafe { CStr::from_ptr(what) }.to_string_lossy();
    let text = what.replacen("%lld", &a.to_string(), 1).replacen("%lld", &b.to_string(), 1);
    fail(text);
}

/// Ends the running fiber with a sentence.
pub(super) fn fail(what: String) -> ! {
    wait(Wait::Fault(what));
    unreachable!("a fiber that failed is not resumed");
}

extern "C" fn wait_for_threadgroup(line: c_int) {
    wait(Wait::Threadgroup(line));
}

extern "C" fn wait_for_simdgroup(line: c_int) {
    wait(Wait::Simdgroup(line));
}

/// The context of the running fiber.
pub(super) fn context() -> *mut ThreadContext {
    CURRENT.with(|current| current.context.get())
}

extern "C" fn lane_slot(lane: u32) -> *mut c_void {
    let context = context();
    // SAFETY: context and slots outlive the fiber; the shim passes lanes below 32.
    unsafe { (&raw mut (*(*context).slots).0[(*context).set][lane as usize]).cast() }
}

extern "C" fn swap_slots() {
    // SAFETY: the running fiber's context outlives it.
    unsafe { (*context()).set ^= 1 };
}

extern "C" fn lane() -> u32 {
    // SAFETY: the running fiber's context outlives it.
    unsafe { (*context()).lane }
}

extern "C" fn threadgroup_memory(offset: c_ulong) -> *mut u8 {
    // SAFETY: the running fiber's context outlives it.
    unsafe { (*context()).threadgroup_memory }.wrapping_add(offset as usize)
}
