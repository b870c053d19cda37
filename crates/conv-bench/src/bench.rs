//! One row: verify, then time, then write. The same for our kernels, Burn's op and peers in other processes.

use crate::burn_peer::Read;
use crate::data::{Host, first_line, unwritten};
use crate::device::{Device, Roofline};
use crate::measure::{Measured, Timer, Times, launches};
use crate::options::{Options, Pass, Size};
use crate::peers::{Job, Peers};
use crate::report::{BURN, Report};
use crate::verify::{Deviation, Truth};
use anyhow::Result;
use bench_record::Record;
use bench_record::record::{OURS, WALL_CLOCK};
use bench_record::statistics::{Samples, digits};
use conv_kernels::{ConvError, FloatType, Operand};
use cubecl::future::block_on;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

/// A peer's result may be this far from the truth, as a share of its RMS, and still count as the same
/// computation.
const SAME_COMPUTATION: f64 = 0.05;

/// What is measured.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) op: &'static str,
    pub(crate) case: String,
    pub(crate) dtype: FloatType,
    pub(crate) pass: Pass,
    pub(crate) plan: String,
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
    /// Bytes that the algorithm moves, copies and workspaces included, where they are counted; launches are
    /// then counted too.
    pub(crate) moved: Option<f64>,
}

/// A run of the program.
pub(crate) struct Bench {
    pub(crate) options: Options,
    pub(crate) size: Size,
    pub(crate) device: Device,
    /// None where no row is held against it.
    pub(crate) roofline: Option<Roofline>,
    pub(crate) timer: Timer,
    pub(crate) report: Report,
    /// PyTorch, MLX and others in a process of Python, where they are asked for.
    pub(crate) peers: Option<Peers>,
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
            Ok((times, deviation)) => {
                self.write(row, work, OURS, Measured { times, deviation, inside: true, launches: None })
            }
            Err(error) => self.failed(row, OURS, &row.plan, &error),
        }
    }

    fn measure_ours(
        &self,
        row: &Row,
        truths: &[Rc<Truth>],
        launch: &dyn Fn(&[Operand]) -> Result<(), ConvError>,
    ) -> Result<(Times, Deviation), String> {
        let client = &self.device.client;
        let outputs: Vec<_> =
            truths.iter().map(|truth| unwritten(client, &truth.shape, truth.memory, row.dtype)).collect();
        let launch = || launch(&outputs).map_err(|error| error.to_string());
        launch()?;
        let mut worst = Deviation::default();
        for (truth, output) in truths.iter().zip(&outputs) {
            let (deviation, inside) = truth.compare(&Host::read(client, output)?, row.dtype)?;
            inside?;
            worst = worst.worst(deviation);
        }
        let times = self.timer.time(|| Ok(()), |()| launch(), || Ok(()))?;
        // A launch that failed while it was timed shows here, and nowhere else.
        block_on(client.sync_buffers(outputs.iter().map(|output| &output.handle)))
            .map_err(|error| first_line(&error.to_string()))?;
        Ok((times, worst))
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
        self.tensors(row, work, truths, BURN, setup, run)
    }

    /// [`Self::burn`] of whatever computes with Burn's tensors. A result of ours outside its bound is a
    /// failure.
    pub(crate) fn tensors<S>(
        &mut self,
        row: &Row,
        work: Work,
        truths: &[Rc<Truth>],
        implementation: &str,
        setup: &dyn Fn() -> S,
        run: &dyn Fn(S) -> Vec<Read>,
    ) -> Result<()> {
        self.running(row, implementation);
        let must_hold = implementation == OURS;
        // Burn panics where it cannot serve a call.
        let measured = catch_unwind(AssertUnwindSafe(|| {
            let mut measured = self.measure_tensors(row, truths, must_hold, setup, run)?;
            if work.moved.is_some() {
                measured.launches = Some(self.count_launches(setup, run)?);
            }
            Ok(measured)
        }));
        match measured.unwrap_or_else(|panic| Err(panic_text(&*panic))) {
            Ok(measured) => self.write(row, work, implementation, measured),
            Err(error) => self.failed(row, implementation, &row.plan, &error),
        }
    }

    fn measure_tensors<S>(
        &self,
        row: &Row,
        truths: &[Rc<Truth>],
        must_hold: bool,
        setup: &dyn Fn() -> S,
        run: &dyn Fn(S) -> Vec<Read>,
    ) -> Result<Measured, String> {
        let (mut worst, mut all_inside) = (Deviation::default(), true);
        let results = run(setup());
        if results.len() != truths.len() {
            return Err(format!("{} results, expected {}", results.len(), truths.len()));
        }
        for (truth, read) in truths.iter().zip(results) {
            let (deviation, inside) = truth.compare(&read()?, row.dtype)?;
            same_computation(deviation)?;
            worst = worst.worst(deviation);
            all_inside &= inside.is_ok();
            if must_hold {
                inside?;
            }
        }
        let times = self.timer.time(|| Ok(setup()), |state| Ok(run(state)), || self.flush())?;
        Ok(Measured { times, deviation: worst, inside: all_inside, launches: None })
    }

    /// Hands over what Burn has only queued: with Fusion it queues an op, and drops it again where nobody
    /// keeps its result.
    fn flush(&self) -> Result<(), String> {
        self.device.burn.flush().map_err(|error| first_line(&error.to_string()))
    }

    /// The launches of a call, `setup` aside.
    fn count_launches<S>(&self, setup: &dyn Fn() -> S, run: &dyn Fn(S) -> Vec<Read>) -> Result<u64, String> {
        let state = setup();
        self.flush()?;
        launches(|| {
            let results = run(state);
            self.flush().map(|()| drop(results))
        })
    }

    /// Lets every peer compute, and time, the results whose truths are given.
    pub(crate) fn peers(&mut self, row: &Row, work: Work, truths: &[Rc<Truth>], job: Job) -> Result<()> {
        let Some(mut peers) = self.peers.take() else { return Ok(()) };
        self.running(row, "peers");
        let answers = match peers.ask(row, truths, job) {
            Ok(answers) => answers,
            // Without a process there are no peers from here on.
            Err(error) => {
                self.report.skip(format!("peers, from {} on: {error:#}", row.case));
                return Ok(());
            }
        };
        for answer in answers {
            let measured = answer.result.and_then(|result| {
                let (mut worst, mut all_inside) = (Deviation::default(), true);
                for (truth, values) in truths.iter().zip(&result.values) {
                    let (deviation, inside) = truth.compare_known(values, row.dtype);
                    same_computation(deviation)?;
                    worst = worst.worst(deviation);
                    all_inside &= inside.is_ok();
                }
                Ok((result.plan, Samples::of(result.milliseconds), worst, all_inside))
            });
            match measured {
                Ok((plan, samples, deviation, inside)) => {
                    let blank = Record {
                        implementation: answer.peer,
                        plan,
                        device: answer.device,
                        backend: answer.backend,
                        ..named(row)
                    };
                    let record = measured_record(blank, samples, work, None, deviation, inside);
                    self.report.push(record, true, work.memory_bound)?;
                }
                Err(error) => self.failed(row, &answer.peer, "", &error)?,
            }
        }
        self.peers = Some(peers);
        Ok(())
    }

    pub(crate) fn running(&self, row: &Row, implementation: &str) {
        let Row { case, dtype, pass, plan, .. } = row;
        self.report.running(format!("{case} {} {} {implementation} {plan}", dtype.name(), pass.name()));
    }

    pub(crate) fn failed(&mut self, row: &Row, implementation: &str, plan: &str, error: &str) -> Result<()> {
        let Row { op, case, dtype, pass, .. } = row;
        let (dtype, pass) = (dtype.name(), pass.name());
        let name = format!("{op} {case} {dtype} {pass} {plan}");
        self.report.failed(implementation, name.trim_end(), error);
        // What a failed launch left behind must not fail the next row.
        let _ = self.device.client.flush();
        Ok(())
    }

    /// Writes what both clocks say.
    fn write(
        &mut self,
        row: &Row,
        work: Work,
        implementation: &str,
        Measured { times, deviation, inside, launches }: Measured,
    ) -> Result<()> {
        let bound = self.roofline.as_ref().and_then(|roofline| roofline.bound(&work, row.dtype));
        self.write_clocks(row, implementation, times, work.memory_bound, |blank, samples| {
            measured_record(Record { launches, ..blank }, samples, work, bound, deviation, inside)
        })
    }

    /// Writes a record for each clock that timed a row: `measured` fills in the figures.
    pub(crate) fn write_clocks(
        &mut self,
        row: &Row,
        implementation: &str,
        times: Times,
        memory_bound: bool,
        measured: impl Fn(Record, Samples) -> Record,
    ) -> Result<()> {
        let clocks = times.device.map(|samples| (samples, "")).into_iter().chain([(times.wall, WALL_CLOCK)]);
        for (samples, clock) in clocks {
            let blank = Record {
                implementation: implementation.into(),
                plan: row.plan.clone(),
                device: self.device.name.clone(),
                backend: format!("{}{clock}", self.device.backend),
                ..named(row)
            };
            self.report.push(measured(blank, samples), row.chosen, memory_bound)?;
        }
        Ok(())
    }

    /// Returns the memory of a finished case to the device.
    pub(crate) fn clean_up(&self) {
        // Only pages without a live tensor are freed; that it could not be done is no reason to stop.
        let _ = self.device.client.memory_cleanup();
    }
}

/// A record of what a row measures, without who and how fast.
pub(crate) fn named(row: &Row) -> Record {
    Record {
        op: row.op.into(),
        case: row.case.clone(),
        dtype: row.dtype.name().into(),
        pass: row.pass.name().into(),
        ..Record::default()
    }
}

/// `blank` with the measured columns, to six digits. `bound`: the shortest possible time in seconds.
fn measured_record(
    blank: Record,
    samples: Samples,
    work: Work,
    bound: Option<f64>,
    deviation: Deviation,
    inside: bool,
) -> Record {
    let seconds = samples.median * 1e-3;
    Record {
        median_ms: Some(digits(samples.median)),
        p10_ms: Some(digits(samples.p10)),
        p90_ms: Some(digits(samples.p90)),
        gflops: Some(digits(work.flops / seconds * 1e-9)),
        gbps: Some(digits(work.bytes / seconds * 1e-9)),
        share_of_limit: bound.map(|bound| digits(bound / seconds)),
        max_err: Some(digits(deviation.max)),
        rms_err: Some(digits(deviation.rms)),
        verified: Some(inside),
        moved_mb: work.moved.map(|bytes| digits(bytes * 1e-6)),
        ..blank
    }
}

/// Refuses what is no rounding error.
fn same_computation(deviation: Deviation) -> Result<(), String> {
    if deviation.rms <= SAME_COMPUTATION {
        return Ok(());
    }
    Err(format!("the result differs from the truth by {:.3} of its RMS", deviation.rms))
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    first_line(text.unwrap_or("it panicked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_shares_follow_from_the_median() {
        let samples = Samples { median: 2.0, p10: 1.5, p90: 2.5 };
        let work = Work { flops: 2e9, bytes: 1e6, memory_bound: false, moved: Some(3e6) };
        let deviation = Deviation { max: 1e-6, rms: 1.0 / 3e6 };
        let record = measured_record(Record::default(), samples, work, Some(0.5e-3), deviation, true);
        let rates = [record.gflops, record.gbps, record.share_of_limit, record.rms_err];
        assert_eq!(rates, [Some(1000.0), Some(0.5), Some(0.25), Some(3.33333e-7)]);
        assert_eq!(record.moved_mb, Some(3.0));
        assert!(same_computation(deviation).is_ok());
        assert!(same_computation(Deviation { max: 1.0, rms: 0.1 }).unwrap_err().contains("0.100 of its RMS"));
    }
}
