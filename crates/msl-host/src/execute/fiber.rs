//! One thread of a threadgroup as a fiber, and what a kernel calls while one runs.

use super::trap;
use corosensei::stack::DefaultStack;
use corosensei::trap::CoroutineTrapHandler;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_longlong, c_ulong, c_void};

/// What a fiber is suspended for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// For its threadgroup, at a line of the text.
    Threadgroup(i32),
    /// For its simdgroup.
    Simdgroup(i32),
    /// Forever: it did what Metal would let pass.
    Fault(String),
}

/// How a fiber ended: as the kernel's function did, or by a signal.
pub(super) type Outcome = Result<(), trap::Signal>;

/// Bytes a lane shows to the others of its simdgroup.
const SLOT: usize = 64;
pub(super) const LANES: usize = 32;

/// What the lanes of one simdgroup show each other; two sets take turns.
#[repr(C, align(64))]
pub(super) struct Slots([[[u8; SLOT]; LANES]; 2]);

impl Slots {
    pub(super) const EMPTY: Self = Self([[[0; SLOT]; LANES]; 2]);
}

/// The place of a thread that its kernel asks for while it runs.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) lane: u32,
    /// The set of slots this thread is at.
    pub(super) set: usize,
    pub(super) slots: *mut Slots,
    pub(super) threadgroup_memory: *mut u8,
}

impl Place {
    pub(super) const NONE: Self =
        Self { lane: 0, set: 0, slots: std::ptr::null_mut(), threadgroup_memory: std::ptr::null_mut() };
}

/// The fiber that runs on this OS thread.
struct Current {
    yielder: Cell<*const Yielder<(), Wait>>,
    place: Cell<Place>,
    trap: Cell<Option<CoroutineTrapHandler<Outcome>>>,
}

thread_local! {
    static CURRENT: Current = const {
        Current {
            yielder: Cell::new(std::ptr::null()),
            place: Cell::new(Place::NONE),
            trap: Cell::new(None),
        }
    };
}

/// The trap handler of the fiber that runs on this OS thread. Called from a signal handler.
pub(super) fn running() -> Option<CoroutineTrapHandler<Outcome>> {
    CURRENT.try_with(|current| current.trap.get()).ok().flatten()
}

/// A fiber.
pub(super) struct Fiber {
    coroutine: Coroutine<(), Wait, Outcome, DefaultStack>,
    yielder: *const Yielder<(), Wait>,
    pub(super) place: Place,
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
    /// What `body` borrows outlives the fiber, and nothing on the fiber's stack needs to be dropped while it is
    /// suspended: kernels hold plain data.
    pub(super) unsafe fn new(stack: DefaultStack, place: Place, body: impl FnOnce()) -> Self {
        // SAFETY: the caller's promise.
        let coroutine = unsafe {
            Coroutine::with_stack_unchecked(stack, move |yielder: &Yielder<(), Wait>, ()| {
                CURRENT.with(|current| current.yielder.set(yielder));
                body();
                Ok(())
            })
        };
        Self { coroutine, yielder: std::ptr::null(), place }
    }

    /// Runs the fiber until it waits or ends.
    pub(super) fn resume(&mut self) -> Stop {
        CURRENT.with(|current| {
            current.yielder.set(self.yielder);
            current.place.set(self.place);
            current.trap.set(Some(self.coroutine.trap_handler()));
            let result = self.coroutine.resume(());
            current.trap.set(None);
            self.yielder = current.yielder.get();
            self.place = current.place.get();
            match result {
                CoroutineResult::Yield(wait) => Stop::Waits(wait),
                CoroutineResult::Return(outcome) => Stop::Ended(outcome),
            }
        })
    }

    /// The stack, for another fiber. A suspended fiber is given up.
    pub(super) fn into_stack(mut self) -> DefaultStack {
        if !self.coroutine.done() {
            // SAFETY: see `new`.
            unsafe { self.coroutine.force_reset() };
        }
        self.coroutine.into_stack()
    }
}

/// Suspends the running fiber.
fn wait(wait: Wait) {
    let yielder = CURRENT.with(|current| current.yielder.get());
    // SAFETY: kernels run in fibers only, and a running fiber's yielder lives on its stack.
    unsafe { (*yielder).suspend(wait) };
}

/// `msl::Runtime` of the shim.
#[repr(C)]
pub(super) struct Runtime {
    fault: extern "C" fn(*const c_char, c_longlong, c_longlong),
    wait_for_threadgroup: extern "C" fn(c_int),
    wait_for_simdgroup: extern "C" fn(c_int),
    lane_slot: extern "C" fn(u32) -> *mut c_void,
    turn_slots: extern "C" fn(),
    lane: extern "C" fn() -> u32,
    threadgroup_memory: extern "C" fn(c_ulong) -> *mut u8,
}

pub(super) static RUNTIME: Runtime = Runtime {
    fault,
    wait_for_threadgroup,
    wait_for_simdgroup,
    lane_slot,
    turn_slots,
    lane,
    threadgroup_memory,
};

extern "C" fn fault(what: *const c_char, a: c_longlong, b: c_longlong) {
    // SAFETY: the shim passes string literals.
    let what = unsafe { CStr::from_ptr(what) }.to_string_lossy();
    let text = what.replacen("%lld", &a.to_string(), 1).replacen("%lld", &b.to_string(), 1);
    wait(Wait::Fault(text));
    unreachable!("a fiber that failed is not resumed");
}

extern "C" fn wait_for_threadgroup(line: c_int) {
    wait(Wait::Threadgroup(line));
}

extern "C" fn wait_for_simdgroup(line: c_int) {
    wait(Wait::Simdgroup(line));
}

fn place() -> Place {
    CURRENT.with(|current| current.place.get())
}

extern "C" fn lane_slot(lane: u32) -> *mut c_void {
    let place = place();
    // SAFETY: the slots outlive the fiber, and the shim keeps lanes below 32.
    unsafe { (&raw mut (*place.slots).0[place.set][lane as usize]).cast() }
}

extern "C" fn turn_slots() {
    let place = place();
    CURRENT.with(|current| current.place.set(Place { set: 1 - place.set, ..place }));
}

extern "C" fn lane() -> u32 {
    place().lane
}

extern "C" fn threadgroup_memory(offset: c_ulong) -> *mut u8 {
    place().threadgroup_memory.wrapping_add(offset as usize)
}
