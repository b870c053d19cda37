//! Timing: windows of device timestamps where the device has them, wall-clock time around two waits
//! elsewhere.

use crate::data::first_line;
use cubecl::future::block_on;
use cubecl::prelude::*;
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The distribution of one row's runs, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Samples {
    pub(crate) median: f64,
    pub(crate) p10: f64,
    pub(crate) p90: f64,
}

impl Samples {
    /// Quantiles of at least one run.
    pub(crate) fn of(mut runs: Vec<f64>) -> Self {
        runs.sort_by(f64::total_cmp);
        Self { median: quantile(&runs, 0.5), p10: quantile(&runs, 0.1), p90: quantile(&runs, 0.9) }
    }
}

/// The quantile of sorted values, interpolated between neighbours.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// The geometric mean of positive values; none of nothing.
pub(crate) fn geometric_mean(values: &[f64]) -> Option<f64> {
    let logarithms: f64 = values.iter().map(|value| value.ln()).sum();
    (!values.is_empty()).then(|| (logarithms / values.len() as f64).exp())
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
    ) -> Result<Samples, String> {
        let mut window = |repeats| self.window(repeats, &mut setup, &mut run, &flush);
        let repeats = |estimate: f64| (WINDOW / estimate).ceil().clamp(1.0, REPEATS) as usize;
        // Compiles what is compiled on the first call.
        window(1)?;
        for attempt in 1.. {
            self.raise_clocks()?;
            let started = Instant::now();
            let mut estimate = window(1)?;
            while estimate < LONG && started.elapsed() < self.warm_up {
                estimate = window(repeats(estimate))?;
            }
            let repeats = repeats(estimate);
            let samples = if estimate > LONG { 3.min(self.samples) } else { self.samples };
            let runs = (0..samples).map(|_| window(repeats)).collect::<Result<_, _>>()?;
            let kept = self.clocks_are_kept()?;
            if kept || attempt == ATTEMPTS {
                if let (false, Some(clocks)) = (kept, &self.clocks) {
                    clocks.low.set(clocks.low.get() + 1);
                }
                return Ok(Samples::of(runs));
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Milliseconds of a burst of constant work; none where clocks do not matter.
    fn burst(&self) -> Result<Option<f64>, String> {
        let Some(clocks) = &self.clocks else { return Ok(None) };
        let mut launch = |()| {
            (clocks.launch)();
            Ok(())
        };
        let time = self.window(BURST, &mut || Ok(()), &mut launch, &|| Ok(()))?;
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
        repeats: usize,
        setup: &mut impl FnMut() -> Result<S, String>,
        run: &mut impl FnMut(S) -> Result<R, String>,
        flush: &impl Fn() -> Result<(), String>,
    ) -> Result<f64, String> {
        let states = (0..repeats).map(|_| setup()).collect::<Result<Vec<_>, _>>()?;
        block_on(self.client.sync()).map_err(|error| first_line(&error.to_string()))?;
        let window = self.client.profile_start().map_err(|error| first_line(&error.to_string()))?;
        let results: Result<Vec<R>, String> = states.into_iter().map(run).collect();
        let flushed = flush();
        let duration = self.client.profile_end(window).map_err(|error| first_line(&error.to_string()));
        results.and(flushed)?;
        let ticks = block_on(duration?.resolve()).ok_or("the device did not time the run")?;
        let milliseconds = ticks.duration().as_secs_f64() * 1e3 / repeats as f64;
        // A time of zero would win every comparison.
        if milliseconds > 0.0 { Ok(milliseconds) } else { Err("the device timed the run as zero".into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated_and_do_not_depend_on_the_order() {
        let samples = Samples::of(vec![5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!(samples.median, 3.0);
        assert!((samples.p10 - 1.4).abs() < 1e-12 && (samples.p90 - 4.6).abs() < 1e-12, "{samples:?}");
        assert_eq!(Samples::of(vec![2.0, 1.0]).median, 1.5);
        assert_eq!(Samples::of(vec![7.0]), Samples { median: 7.0, p10: 7.0, p90: 7.0 });
    }

    #[test]
    fn the_geometric_mean_treats_twice_and_half_alike() {
        assert!((geometric_mean(&[2.0, 0.5, 8.0]).unwrap() - 2.0).abs() < 1e-12);
        assert_eq!(geometric_mean(&[]), None);
    }
}
