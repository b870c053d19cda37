//! A launch: threadgroups one after another, the threads of each interleaved at barriers.
//!
//! Metal guarantees no order, so it changes with every launch: threadgroups and threads ascending,
//! descending, or shuffled. A thread runs until it waits or ends before the next one starts, so a missing
//! barrier reads what the other threads have not written yet, which is NaN.

use super::fiber::{Fiber, LANES, Slots, Stop, ThreadContext, Wait};
use super::library::{Effort, Library};
use super::matrices::Matrices;
use super::memory::Arena;
use super::order::LaunchOrders;
use super::session::Kernel;
use super::trap::{self, InvalidAccess};
use corosensei::stack::DefaultStack;
use std::time::Instant;

/// Threadgroups, and threads of each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Threadgroups along x, y and z.
    pub(crate) groups: (u32, u32, u32),
    /// Threads of a threadgroup along x, y and z.
    pub(crate) threads: (u32, u32, u32),
}

/// `msl::Thread` of the shim.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ThreadArguments {
    position_in_grid: [u32; 3],
    position_in_threadgroup: [u32; 3],
    threadgroup_position: [u32; 3],
    threadgroups: [u32; 3],
    index_in_threadgroup: u32,
    simdgroup: u32,
    lane: u32,
    lanes: u32,
}

/// Runs kernels; keeps memory and stacks between launches.
pub(crate) struct Runner {
    buffers: Vec<Arena>,
    info: Arena,
    threadgroup: Arena,
    stacks: Vec<DefaultStack>,
    slots: Vec<Slots>,
    matrices: Vec<Matrices>,
    launches: u64,
}

/// Bytes of a fiber's stack: kernels keep their accumulators there.
pub(super) const STACK: usize = 128 << 10;

impl Runner {
    /// A runner without memory.
    pub(super) fn new() -> Self {
        trap::install();
        Self {
            buffers: Vec::new(),
            info: Arena::new(),
            threadgroup: Arena::new(),
            stacks: Vec::new(),
            slots: Vec::new(),
            matrices: Vec::new(),
            launches: 0,
        }
    }

    /// Runs `kernel` over `grid`. Each buffer is copied between guard pages and, where the kernel may write
    /// it, back; the same memory bound twice is copied once.
    ///
    /// # Errors
    ///
    /// The thread that did something Metal would not report, and what; the compiler's messages.
    ///
    /// # Safety
    ///
    /// The buffers are valid for reads and writes, and nothing else uses them during the call.
    pub(crate) unsafe fn run(
        &mut self,
        kernel: &Kernel,
        grid: Grid,
        buffers: &[*mut [u8]],
        info: &[u8],
    ) -> Result<(), String> {
        let mut library = kernel.library()?;
        if buffers.len() < library.writes.len() {
            return Err(format!("{} buffers for a kernel of {}", buffers.len(), library.writes.len()));
        }
        // The same memory under two bindings is one arena, as it is on a device.
        let mut arena_of = Vec::with_capacity(buffers.len());
        for (index, buffer) in buffers.iter().enumerate() {
            let same = |other: &*mut [u8]| std::ptr::eq(*other, *buffer);
            let arena = buffers[..index].iter().position(same).unwrap_or(index);
            if self.buffers.len() <= index {
                self.buffers.push(Arena::new());
            }
            if arena == index {
                // SAFETY: the caller's promise.
                self.buffers[index].fill(unsafe { &**buffer });
            }
            arena_of.push(arena);
        }
        self.info.fill(info);
        let pointers: Vec<*mut u8> =
            arena_of.iter().map(|arena| self.buffers[*arena].contents().as_mut_ptr()).collect();
        let info_pointer = self.info.contents().as_ptr();
        let orders = LaunchOrders::of(self.launches);
        self.launches += 1;
        let (groups, threads) = (count(grid.groups), orders.threads(count(grid.threads)));
        let (mut start, mut done) = (Instant::now(), 0);
        for group in orders.groups(groups) {
            let launch = Launch { library: &library, grid, buffers: &pointers, info: info_pointer };
            if library.synchronizes {
                self.run_synchronized(&launch, group, &threads)?;
            } else {
                self.run_independent(&launch, group, &threads)?;
            }
            done += 1;
            if library.effort == Effort::Low && done < groups {
                let expected = library.time() + start.elapsed().mul_f64(groups as f64 / done as f64);
                if let Some(faster) = kernel.optimized(expected)? {
                    library.add_time(start.elapsed());
                    (library, start) = (faster, Instant::now());
                }
            }
        }
        library.add_time(start.elapsed());
        for (index, buffer) in buffers.iter().enumerate() {
            let arena = &mut self.buffers[arena_of[index]];
            if !arena.is_intact() {
                return Err(format!(
                    "buffer {index} of {} bytes was written outside its bounds",
                    buffer.len()
                ));
            }
            if library.writes.get(index).is_some_and(|writes| *writes) {
                // SAFETY: the caller's promise.
                unsafe { &mut **buffer }.copy_from_slice(arena.contents());
            }
        }
        if !self.info.is_intact() || self.info.contents() != info {
            return Err("the scalars and shapes were written".into());
        }
        Ok(())
    }

    /// Threads that never wait for each other: one fiber runs all threads of a threadgroup.
    fn run_independent(&mut self, launch: &Launch<'_>, group: usize, order: &[usize]) -> Result<(), String> {
        let mut reached = 0;
        let now = &raw mut reached;
        let body = || {
            for &thread in order {
                // SAFETY: `reached` outlives the fiber and is read after it.
                unsafe { now.write(thread) };
                launch.call(group, thread);
            }
        };
        // SAFETY: what the closure borrows outlives the fiber; a kernel without barriers suspends only to
        // fail.
        let mut fiber = unsafe { Fiber::new(self.stack()?, ThreadContext::NONE, body) };
        let stop = fiber.resume();
        self.stacks.push(fiber.into_stack());
        // SAFETY: `reached` is alive and the fiber, its only writer, has ended.
        let thread = unsafe { now.read() };
        match stop {
            Stop::Ended(Ok(())) => Ok(()),
            Stop::Ended(Err(access)) => Err(self.located(launch, group, thread, &self.describe(access))),
            Stop::Waits(Wait::Fault(what)) => Err(self.located(launch, group, thread, &what)),
            Stop::Waits(_) => Err("a kernel without barriers waits".into()),
        }
    }

    fn run_synchronized(&mut self, launch: &Launch<'_>, group: usize, order: &[usize]) -> Result<(), String> {
        self.slots.resize_with(order.len().div_ceil(LANES), || Slots::EMPTY);
        self.matrices.resize_with(order.len().div_ceil(LANES), Matrices::default);
        self.matrices.iter_mut().for_each(Matrices::clear);
        // Threadgroup memory starts as NaN.
        self.threadgroup.clear(launch.library.threadgroup_bytes);
        self.run_threadgroup(launch, group, order)?;
        if self.threadgroup.is_intact() {
            return Ok(());
        }
        Err(self.located(launch, group, 0, "threadgroup memory was written outside its bounds"))
    }

    fn run_threadgroup(&mut self, launch: &Launch<'_>, group: usize, order: &[usize]) -> Result<(), String> {
        let memory = self.threadgroup.contents().as_mut_ptr();
        let mut fibers = Vec::with_capacity(order.len());
        for thread in 0..order.len() {
            let context = ThreadContext {
                lane: (thread % LANES) as u32,
                matrices: &raw mut self.matrices[thread / LANES],
                slots: &raw mut self.slots[thread / LANES],
                threadgroup_memory: memory,
                ..ThreadContext::NONE
            };
            // SAFETY: the launch outlives the fibers, which end below; a kernel's stack holds plain data
            // only.
            fibers.push(unsafe { Fiber::new(self.stack()?, context, move || launch.call(group, thread)) });
        }
        let mut states = vec![State::Ready; fibers.len()];
        let result = 'group: loop {
            for &thread in order {
                if states[thread] == State::Ready {
                    states[thread] = match fibers[thread].resume() {
                        Stop::Waits(Wait::Threadgroup(line)) => State::AtBarrier(line),
                        Stop::Waits(Wait::Simdgroup(line)) => State::AtSimdgroupBarrier(line),
                        Stop::Waits(Wait::Fault(what)) => break 'group Err((thread, what)),
                        Stop::Ended(Ok(())) => State::Ended,
                        Stop::Ended(Err(access)) => break 'group Err((thread, self.describe(access))),
                    };
                }
            }
            let progress = release(&mut states).and_then(|progress| {
                check_matrices(&mut fibers, &states, &mut self.matrices).map(|()| progress)
            });
            match progress {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(failure) => break Err(failure),
            }
        };
        self.stacks.extend(fibers.into_iter().map(Fiber::into_stack));
        result.map_err(|(thread, what)| self.located(launch, group, thread, &what))
    }

    fn stack(&mut self) -> Result<DefaultStack, String> {
        match self.stacks.pop() {
            Some(stack) => Ok(stack),
            None => DefaultStack::new(STACK).map_err(|error| format!("no stack for a thread: {error}")),
        }
    }

    fn describe(&self, access: InvalidAccess) -> String {
        let InvalidAccess(Some(address)) = access else {
            return "accesses memory outside every buffer, at an address that the system does not tell"
                .into();
        };
        let named = self.buffers.iter().enumerate().map(|(index, arena)| (format!("buffer {index}"), arena));
        let all = named.chain([
            ("threadgroup memory".to_string(), &self.threadgroup),
            ("the scalars".to_string(), &self.info),
        ]);
        let near = all.filter_map(|(name, arena)| Some((name, arena.distance(address)?, arena.length())));
        match near.min_by_key(|(_, distance, _)| distance.unsigned_abs()) {
            Some((name, distance, length)) => {
                format!("accesses byte {distance} of {name}, which has {length} bytes")
            }
            None => format!("accesses address {address:#x}, far from every buffer"),
        }
    }

    fn located(&self, launch: &Launch<'_>, group: usize, thread: usize, what: &str) -> String {
        let (group, thread) = (split(group, launch.grid.groups), split(thread, launch.grid.threads));
        format!("thread {thread:?} of threadgroup {group:?}: {what}")
    }
}

/// The state of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    AtBarrier(i32),
    AtSimdgroupBarrier(i32),
    Ended,
}

/// Releases the threads of every complete barrier: `Ok(false)` when all have ended, an error at a deadlock.
fn release(states: &mut [State]) -> Result<bool, (usize, String)> {
    if states.iter().all(|state| *state == State::Ended) {
        return Ok(false);
    }
    let mut released = false;
    for lanes in states.chunks_mut(LANES) {
        if let State::AtSimdgroupBarrier(line) = lanes[0]
            && lanes.len() == LANES
            && lanes.iter().all(|state| *state == State::AtSimdgroupBarrier(line))
        {
            lanes.fill(State::Ready);
            released = true;
        }
    }
    if let State::AtBarrier(line) = states[0]
        && states.iter().all(|state| *state == State::AtBarrier(line))
    {
        states.fill(State::Ready);
        released = true;
    }
    if released {
        return Ok(true);
    }
    // A deadlock: report a thread that is elsewhere than the first that waits.
    let waits = |state: &State| matches!(state, State::AtBarrier(_) | State::AtSimdgroupBarrier(_));
    let first = states.iter().position(waits).unwrap_or(0);
    let scope = match states[first] {
        State::AtSimdgroupBarrier(_) => {
            first / LANES * LANES..(first / LANES * LANES + LANES).min(states.len())
        }
        _ => 0..states.len(),
    };
    let other = scope.clone().find(|thread| states[*thread] != states[first]);
    let place = |state: &State| match state {
        State::AtBarrier(line) => format!("waits at the barrier in line {line}"),
        State::AtSimdgroupBarrier(line) => format!("waits for its simdgroup in line {line}"),
        _ => "has ended".to_string(),
    };
    let what = match other {
        Some(other) => format!("{}, thread {other} {}", place(&states[first]), place(&states[other])),
        None => format!("{} in an incomplete simdgroup", place(&states[first])),
    };
    Err((first, what))
}

/// Checks that the lanes of each simdgroup that synchronized or ended have executed equally many matrix
/// operations.
fn check_matrices(
    fibers: &mut [Fiber],
    states: &[State],
    matrices: &mut [Matrices],
) -> Result<(), (usize, String)> {
    for (group, (lanes, states)) in fibers.chunks_mut(LANES).zip(states.chunks(LANES)).enumerate() {
        let all = |state: State| states.iter().all(|other| *other == state);
        if !all(State::Ready) && !all(State::Ended) {
            continue;
        }
        let first = lanes[0].context.operations;
        if let Some(lane) = lanes.iter().position(|lane| lane.context.operations != first) {
            let other = lanes[lane].context.operations;
            let what = format!(
                "{other} matrix operations since its simdgroup synchronized, thread {} did {first}",
                group * LANES
            );
            return Err((group * LANES + lane, what));
        }
        lanes.iter_mut().for_each(|lane| lane.context.operations = 0);
        matrices[group].synchronize();
    }
    Ok(())
}

/// What all threads of a launch share.
struct Launch<'a> {
    library: &'a Library,
    grid: Grid,
    buffers: &'a [*mut u8],
    info: *const u8,
}

impl Launch<'_> {
    /// Runs the kernel's function for one thread, on the running fiber.
    fn call(&self, group: usize, thread: usize) {
        let Grid { groups, threads } = self.grid;
        let (position, within) = (split(group, groups), split(thread, threads));
        let size = [threads.0, threads.1, threads.2];
        let arguments = ThreadArguments {
            position_in_grid: [0, 1, 2]
                .map(|axis| position[axis].wrapping_mul(size[axis]).wrapping_add(within[axis])),
            position_in_threadgroup: within,
            threadgroup_position: position,
            threadgroups: [groups.0, groups.1, groups.2],
            index_in_threadgroup: thread as u32,
            simdgroup: (thread / LANES) as u32,
            lane: (thread % LANES) as u32,
            lanes: LANES as u32,
        };
        // SAFETY: there are as many buffers as the kernel takes; accesses outside them fault or hit canaries.
        unsafe { (self.library.entry)(self.buffers.as_ptr(), self.info, &arguments) };
    }
}

fn count((x, y, z): (u32, u32, u32)) -> usize {
    x as usize * y as usize * z as usize
}

/// Position along x, y and z of a linear index.
fn split(index: usize, (x, y, _): (u32, u32, u32)) -> [u32; 3] {
    let (x, y) = (x.max(1) as usize, y.max(1) as usize);
    [(index % x) as u32, (index / x % y) as u32, (index / x / y) as u32]
}
