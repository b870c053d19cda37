//! Timing: windows of device timestamps where the device has them, wall-clock time around two waits elsewhere.

use crate::data::first_line;
use cubecl::future::block_on;
use cubecl::prelude::*;
use std::sync::{Arc, Mutex, PoisonError};
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

/// How rows are timed.
#[derive(Clone)]
pub(crate) struct Timer {
    pub(crate) client: Client,
    /// Runs that are timed at least.
    pub(crate) samples: usize,
    /// The device is kept busy for this long before the first timed run: it takes a while to reach its clocks.
    pub(crate) warm_up: Duration,
    /// Held while a row is timed; between rows [`crate::device::keep_busy`] holds it.
    pub(crate) turn: Arc<Mutex<()>>,
}

/// Milliseconds a window should last at least; shorter calls are repeated within it. A device that waits between shorter windows
/// lowers its clocks.
const WINDOW: f64 = 3.0;
/// Calls of one window at most: their results are all kept until it closes.
const REPEATS: f64 = 32.0;
/// A call longer than this many milliseconds is timed three times only.
const LONG: f64 = 1000.0;

impl Timer {
    /// Times `run`, each time on a fresh result of `setup`, which is not timed. What `run` returns is kept until the
    /// window is closed; `flush` hands over what a backend has only queued until then.
    ///
    /// # Errors
    /// What `setup`, `run` or `flush` says, or that the device could not time a window.
    pub(crate) fn time<S, R>(
        &self,
        mut setup: impl FnMut() -> Result<S, String>,
        mut run: impl FnMut(S) -> Result<R, String>,
        flush: impl Fn() -> Result<(), String>,
    ) -> Result<Samples, String> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let started = Instant::now();
        let mut window = |repeats| self.window(repeats, &mut setup, &mut run, &flush);
        let repeats = |estimate: f64| (WINDOW / estimate).ceil().clamp(1.0, REPEATS) as usize;
        let mut estimate = window(1)?;
        while estimate < LONG && started.elapsed() < self.warm_up {
            estimate = window(repeats(estimate))?;
        }
        let repeats = repeats(estimate);
        let samples = if estimate > LONG { 3.min(self.samples) } else { self.samples };
        (0..samples).map(|_| window(repeats)).collect::<Result<_, _>>().map(Samples::of)
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
