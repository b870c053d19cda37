//! The timer: windows of calls that follow each other, between time stamps of the device where it has them,
//! and by the host's clock.

use crate::data::first_line;
use crate::verify::Deviation;
use bench_record::statistics::Samples;
use cubecl::future::block_on;
use cubecl::logging::{LaunchObservation, LaunchObserver};
use cubecl::prelude::*;
use cubecl::profile::TimingMethod;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What one row took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Times {
    /// Between the device's time stamps; none where it has none.
    pub(crate) device: Option<Samples>,
    /// By the host's clock, from the first call of a window to the end of its last one.
    pub(crate) wall: Samples,
}

impl Times {
    /// By the better clock.
    pub(crate) fn best(&self) -> Samples {
        self.device.unwrap_or(self.wall)
    }
}

/// What a row has shown.
pub(crate) struct Measured {
    pub(crate) times: Times,
    pub(crate) deviation: Deviation,
    /// Whether every element was inside its bound.
    pub(crate) inside: bool,
    /// Launches of a call, where they are counted.
    pub(crate) launches: Option<u64>,
}

/// Counts launches of this process.
#[derive(Default)]
struct Launches(AtomicU64);

impl LaunchObserver for Launches {
    fn launched(&self, _: &'static str) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// The kernels that `run` launches.
pub(crate) fn launches(run: impl FnOnce() -> Result<(), String>) -> Result<u64, String> {
    let count = Arc::new(Launches::default());
    let observation = LaunchObservation::new(count.clone());
    let result = run();
    drop(observation);
    result.map(|()| count.0.load(Relaxed))
}

/// Which clock times a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    Device,
    Wall,
}

/// Short work of a constant size that shows whether the device runs at its highest clocks.
///
/// A device that idles while the host verifies a result or compiles a kernel lowers its clocks, an H200 to a
/// sixth, and may take longer to raise them than a row is warmed up.
pub(crate) struct Clocks {
    /// Launches the work once.
    pub(crate) launch: Box<dyn Fn()>,
    /// Milliseconds of the fastest burst so far.
    pub(crate) best: Cell<f64>,
    /// Rows that were timed although the clocks stayed low.
    pub(crate) low: Cell<usize>,
}

/// Launches of one burst.
const BURST: usize = 16;
/// A burst this much longer than the fastest one: the clocks are low before a row.
const RAISED: f64 = 1.15;
/// And after it, when a device may have lowered them for its power's sake.
const KEPT: f64 = 1.3;
/// Longest wait for the clocks, and for how long the first row looks for the fastest burst.
const PATIENCE: Duration = Duration::from_millis(1500);
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// Times that a row is timed at most until the clocks were kept.
const ATTEMPTS: usize = 3;

/// How rows are timed.
pub(crate) struct Timer {
    pub(crate) client: Client,
    /// Runs that are timed at least.
    pub(crate) samples: usize,
    /// The device is kept busy for this long before the first timed run: it takes a while to reach its
    /// clocks.
    pub(crate) warm_up: Duration,
    /// None where clocks do not matter.
    pub(crate) clocks: Option<Rc<Clocks>>,
}

/// Milliseconds a window should last at least; shorter calls are repeated within it. A device that waits
/// between shorter windows lowers its clocks.
const WINDOW: f64 = 3.0;
/// Calls of one window at most: their results are all kept until it closes.
const REPEATS: f64 = 32.0;
/// A call longer than this many milliseconds is timed three times only.
const LONG: f64 = 1000.0;

impl Timer {
    /// Times `run`, each time on a fresh result of `setup`, which is not timed. What `run` returns is kept
    /// until the window is closed; `flush` hands over what a backend has only queued until then.
    ///
    /// # Errors
    /// What `setup`, `run` or `flush` says, or that the device could not time a window.
    pub(crate) fn time<S, R>(
        &self,
        mut setup: impl FnMut() -> Result<S, String>,
        mut run: impl FnMut(S) -> Result<R, String>,
        flush: impl Fn() -> Result<(), String>,
    ) -> Result<Times, String> {
        let mut timed = |clock, repeats| self.window(clock, repeats, &mut setup, &mut run, &flush);
        let best = if self.has_time_stamps() { Clock::Device } else { Clock::Wall };
        let repeats = |estimate: f64| (WINDOW / estimate).ceil().clamp(1.0, REPEATS) as usize;
        // Compiles what is compiled on the first call.
        timed(best, 1)?;
        for attempt in 1.. {
            self.raise_clocks()?;
            let started = Instant::now();
            let mut estimate = timed(best, 1)?;
            while estimate < LONG && started.elapsed() < self.warm_up {
                estimate = timed(best, repeats(estimate))?;
            }
            let repeats = repeats(estimate);
            let samples = if estimate > LONG { 3.min(self.samples) } else { self.samples };
            let mut sampled = |clock| {
                let runs = (0..samples).map(|_| timed(clock, repeats)).collect::<Result<_, String>>();
                runs.map(Samples::of)
            };
            let first = sampled(best)?;
            let device = (best == Clock::Device).then_some(first);
            let wall = if device.is_some() { sampled(Clock::Wall)? } else { first };
            let kept = self.clocks_are_kept()?;
            if kept || attempt == ATTEMPTS {
                if let (false, Some(clocks)) = (kept, &self.clocks) {
                    clocks.low.set(clocks.low.get() + 1);
                }
                return Ok(Times { device, wall });
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Whether the device has time stamps.
    pub(crate) fn has_time_stamps(&self) -> bool {
        self.client.properties().timing_method == TimingMethod::Device
    }

    /// Milliseconds of a burst of constant work; none where clocks do not matter.
    fn burst(&self) -> Result<Option<f64>, String> {
        let Some(clocks) = &self.clocks else { return Ok(None) };
        let mut launch = |()| {
            (clocks.launch)();
            Ok(())
        };
        let clock = if self.has_time_stamps() { Clock::Device } else { Clock::Wall };
        let time = self.window(clock, BURST, &mut || Ok(()), &mut launch, &|| Ok(()))?;
        clocks.best.set(clocks.best.get().min(time));
        Ok(Some(time / clocks.best.get()))
    }

    /// Keeps the device busy until its clocks are up, or patience ends.
    fn raise_clocks(&self) -> Result<(), String> {
        let Some(clocks) = &self.clocks else { return Ok(()) };
        let first = clocks.best.get() == f64::INFINITY;
        let started = Instant::now();
        while let Some(slower) = self.burst()? {
            let waited = started.elapsed();
            if waited > PATIENCE || slower < RAISED && !(first && waited < FIRST_LOOK) {
                break;
            }
        }
        Ok(())
    }

    /// Whether a row has left the clocks where they were.
    fn clocks_are_kept(&self) -> Result<bool, String> {
        Ok(self.burst()?.is_none_or(|slower| slower < KEPT))
    }

    /// Milliseconds of one of `repeats` runs that follow each other.
    fn window<S, R>(
        &self,
        clock: Clock,
        repeats: usize,
        setup: &mut impl FnMut() -> Result<S, String>,
        run: &mut impl FnMut(S) -> Result<R, String>,
        flush: &impl Fn() -> Result<(), String>,
    ) -> Result<f64, String> {
        let text = |error: &dyn std::fmt::Display| first_line(&error.to_string());
        let wait = || block_on(self.client.sync()).map_err(|error| text(&error));
        let states = (0..repeats).map(|_| setup()).collect::<Result<Vec<_>, _>>()?;
        wait()?;
        let seconds = match clock {
            Clock::Wall => {
                let started = Instant::now();
                let results = states.into_iter().map(run).collect::<Result<Vec<R>, String>>()?;
                flush()?;
                wait()?;
                let seconds = started.elapsed().as_secs_f64();
                drop(results);
                seconds
            }
            Clock::Device => {
                let window = self.client.profile_start().map_err(|error| text(&error))?;
                let results: Result<Vec<R>, String> = states.into_iter().map(run).collect();
                let flushed = flush();
                let duration = self.client.profile_end(window).map_err(|error| text(&error));
                results.and(flushed)?;
                let ticks = block_on(duration?.resolve()).ok_or("the device did not time the run")?;
                ticks.duration().as_secs_f64()
            }
        };
        let milliseconds = seconds * 1e3 / repeats as f64;
        // A time of zero would win every comparison.
        if milliseconds > 0.0 { Ok(milliseconds) } else { Err("the run was timed as zero".into()) }
    }
}
