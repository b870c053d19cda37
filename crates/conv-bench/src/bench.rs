//! One row: verify, then time, then write.

use crate::burn_peer::Read;
use crate::data::{Host, first_line, unwritten};
use crate::device::{Device, Roofline};
use crate::measure::{Samples, Timer};
use crate::options::{Options, Pass, Size};
use crate::report::{BURN, OURS, Record, Report};
use crate::verify::{Deviation, Truth};
use anyhow::Result;
use conv_kernels::{ConvError, FloatType, Operand};
use cubecl::future::block_on;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

/// Burn's result may be this far from the truth, as a share of its RMS, and still count as the same
/// computation.
const SAME_COMPUTATION: f64 = 0.05;

/// What is measured.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) op: &'static str,
    pub(crate) case: String,
    pub(crate) dtype: FloatType,
    pub(crate) pass: Pass,
    pub(crate) algorithm: String,
    /// Whether a user gets this without forcing a plan.
    pub(crate) chosen: bool,
}

/// What one run does at least.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Work {
    /// Operations of the direct algorithm, two per multiply-accumulate.
    pub(crate) flops: f64,
    /// Bytes of all tensors read and written, each counted once.
    pub(crate) bytes: f64,
    /// Whether bytes bind on every device worth the name.
    pub(crate) memory_bound: bool,
}

/// A run of the program.
pub(crate) struct Bench {
    pub(crate) options: Options,
    pub(crate) size: Size,
    pub(crate) device: Device,
    pub(crate) roofline: Roofline,
    pub(crate) timer: Timer,
    pub(crate) report: Report,
}

impl Bench {
    /// The storage types that are asked for and served.
    pub(crate) fn dtypes(&self) -> Vec<FloatType> {
        let served = &self.device.limits.dtypes;
        self.options.dtypes().into_iter().filter(|dtype| served.contains(dtype)).collect()
    }

    /// Why tensors of these sizes in bytes do not fit, Burn's copies of them included; none when they do.
    pub(crate) fn misfit(&self, tensors: &[(&str, u64)]) -> Option<String> {
        let binding = self.device.limits.buffer_bytes;
        if let Some((name, bytes)) = tensors.iter().find(|(_, bytes)| *bytes > binding) {
            return Some(format!(
                "{name} has {}, the largest buffer of this device {}",
                gib(*bytes),
                gib(binding)
            ));
        }
        let total = 2 * tensors.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let limit = (self.options.max_gib * f64::from(1 << 30)) as u64;
        (total > limit)
            .then(|| format!("it needs {} of device memory, --max-gib allows {}", gib(total), gib(limit)))
    }

    /// Measures our kernels: `launch` writes the results, whose truths are given, into the operands it gets.
    pub(crate) fn ours(
        &mut self,
        row: &Row,
        work: Work,
        truths: &[Rc<Truth>],
        launch: &dyn Fn(&[Operand]) -> Result<(), ConvError>,
    ) -> Result<()> {
        self.running(row, OURS);
        match self.measure_ours(row, truths, launch) {
            Ok((samples, deviation)) => self.write(row, work, OURS, samples, deviation, true),
            Err(error) => self.failed(row, OURS, &error),
        }
    }

    fn measure_ours(
        &self,
        row: &Row,
        truths: &[Rc<Truth>],
        launch: &dyn Fn(&[Operand]) -> Result<(), ConvError>,
    ) -> Result<(Samples, Deviation), String> {
        let client = &self.device.client;
        let outputs: Vec<_> = truths.iter().map(|truth| unwritten(client, &truth.shape, row.dtype)).collect();
        let launch = || launch(&outputs).map_err(|error| error.to_string());
        launch()?;
        let mut worst = Deviation::default();
        for (truth, output) in truths.iter().zip(&outputs) {
            let (deviation, inside) = truth.compare(&Host::read(client, output)?, row.dtype)?;
            inside?;
            worst = worst.worst(deviation);
        }
        let samples = self.timer.time(|| Ok(()), |()| launch(), || Ok(()))?;
        // A launch that failed while it was timed shows here, and nowhere else.
        block_on(client.sync_buffers(outputs.iter().map(|output| &output.handle)))
            .map_err(|error| first_line(&error.to_string()))?;
        Ok((samples, worst))
    }

    /// Measures Burn's own op: `run` computes the results, whose truths are given, from what `setup` made.
    pub(crate) fn burn<S>(
        &mut self,
        row: &Row,
        work: Work,
        truths: &[Rc<Truth>],
        setup: &dyn Fn() -> S,
        run: &dyn Fn(S) -> Vec<Read>,
    ) -> Result<()> {
        self.running(row, BURN);
        // Burn panics where it cannot serve a call.
        let measured = catch_unwind(AssertUnwindSafe(|| self.measure_burn(row, truths, setup, run)));
        match measured.unwrap_or_else(|panic| Err(panic_text(&*panic))) {
            Ok((samples, deviation, inside)) => self.write(row, work, BURN, samples, deviation, inside),
            Err(error) => self.failed(row, BURN, &error),
        }
    }

    fn measure_burn<S>(
        &self,
        row: &Row,
        truths: &[Rc<Truth>],
        setup: &dyn Fn() -> S,
        run: &dyn Fn(S) -> Vec<Read>,
    ) -> Result<(Samples, Deviation, bool), String> {
        let (mut worst, mut all_inside) = (Deviation::default(), true);
        let results = run(setup());
        if results.len() != truths.len() {
            return Err(format!("{} results, expected {}", results.len(), truths.len()));
        }
        for (truth, read) in truths.iter().zip(results) {
            let (deviation, inside) = truth.compare(&read()?, row.dtype)?;
            if deviation.rms > SAME_COMPUTATION {
                return Err(format!("the result differs from the truth by {:.3} of its RMS", deviation.rms));
            }
            worst = worst.worst(deviation);
            all_inside &= inside.is_ok();
        }
        // With Fusion, Burn only queues an op, and drops it again where nobody keeps its result.
        let flush = || self.device.burn.flush().map_err(|error| first_line(&error.to_string()));
        let samples = self.timer.time(|| Ok(setup()), |state| Ok(run(state)), flush)?;
        Ok((samples, worst, all_inside))
    }

    fn running(&self, row: &Row, implementation: &str) {
        let Row { case, dtype, pass, algorithm, .. } = row;
        self.report.running(format!("{case} {} {} {implementation} {algorithm}", dtype.name(), pass.name()));
    }

    fn failed(&mut self, row: &Row, implementation: &str, error: &str) -> Result<()> {
        let Row { op, case, dtype, pass, algorithm, .. } = row;
        let (dtype, pass) = (dtype.name(), pass.name());
        self.report.failed(
            implementation,
            format!("{op} {case} {dtype} {pass} {algorithm} ({implementation}): {error}"),
        );
        // What a failed launch left behind must not fail the next row.
        let _ = self.device.client.flush();
        Ok(())
    }

    fn write(
        &mut self,
        row: &Row,
        work: Work,
        implementation: &'static str,
        samples: Samples,
        deviation: Deviation,
        bound_ok: bool,
    ) -> Result<()> {
        let blank = Record {
            op: row.op,
            case: row.case.clone(),
            dtype: row.dtype.name(),
            pass: row.pass.name(),
            algorithm: row.algorithm.clone(),
            implementation,
            device: self.device.name.clone(),
            backend: self.device.backend,
            median_ms: 0.0,
            p10_ms: 0.0,
            p90_ms: 0.0,
            gflops: 0.0,
            gbps: 0.0,
            share_of_limit: None,
            max_err: 0.0,
            rms_err: 0.0,
            bound_ok,
            chosen: row.chosen,
            memory_bound: work.memory_bound,
        };
        let bound = self.roofline.bound(&work, row.dtype);
        self.report.push(blank.measured(samples, work.flops, work.bytes, bound, deviation))
    }

    /// Returns the memory of a finished case to the device.
    pub(crate) fn clean_up(&self) {
        // Only pages without a live tensor are freed; that it could not be done is no reason to stop.
        let _ = self.device.client.memory_cleanup();
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    first_line(text.unwrap_or("it panicked"))
}
