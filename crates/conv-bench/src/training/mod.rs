//! One training step of whole networks of `burn::nn`: loss, gradients and an SGD step, by Burn as it is and
//! patched with this project's kernels, in one process.
//!
//! ```text
//! check   the network, its channels and dtype at a smaller batch and smaller extents: loss and gradients
//!         of all parameters, patched and plain, against the same step with one output per thread
//!         (`Algorithm::Direct`) in fp32, which shares no kernel with what is timed; a truth of the timed
//!         size takes longer than all that is timed
//! cold    the first step of the timed size by the host's clock: kernels are compiled and, for Burn's, tuned;
//!         its gradients come to the host, where patched ones are compared with plain ones
//! warm    the steps that follow: the record's row
//! ```
//!
//! Patched gradients that fail the check are not timed. Burn's own step is timed even where its gradients are
//! wrong: the record's row says so.

mod models;

use crate::bench::{Bench, Row};
use crate::burn_peer::{self, burn_dtype};
use crate::data::{Source, first_line};
use crate::device::Device;
use crate::measure::{Timer, Times};
use crate::options::{Op, Options, Pass, Size};
use crate::report::BURN;
use crate::verify::Deviation;
use anyhow::{Context, Result};
use bench_record::record::OURS;
use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{DType, Gradients, Tensor};
use burn_conv_ops::{PatchOptions, patch, unpatch};
use conv_kernels::FloatType;
use conv_kernels::conv3d::Algorithm;
use models::{Network, R3d18, ResNet18, UNet3d};
use std::time::Instant;

const OP: &str = "training_step";

/// So small that the parameters stay what they are for as long as steps are timed.
const LEARNING_RATE: f64 = 1e-7;

/// The loss is multiplied by this, so that fp16 holds its gradients.
const LOSS_SCALE: f64 = 256.0;

/// RMS difference of all gradients from the truth, relative to their RMS, that rounding explains in fp32: a
/// ReLU whose input is nearer to zero than its error may switch, and a share p of them moves a gradient by
/// sqrt(p). In other types: twice what one output per thread has in that type.
const SAME_STEP: f64 = 1e-2;

/// How many samples of which depth, height and width; images have no depth.
#[derive(Clone, Copy, Debug)]
struct Extents {
    batch: usize,
    axes: [usize; 3],
}

/// A network, the batch that is timed and the one that is verified.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    name: &'static str,
    width: usize,
    timed: Extents,
    check: Extents,
}

/// The cases that are asked for. Not part of `--op all`: they take minutes.
pub(crate) fn cases(options: &Options, size: Size) -> Vec<Step> {
    if options.op != Op::TrainingStep {
        return Vec::new();
    }
    let of = |name, [small, check, full]: [(usize, usize, [usize; 3]); 3]| {
        let extents = |(_, batch, axes): (usize, usize, [usize; 3])| Extents { batch, axes };
        let (timed, check) = if size == Size::Small { (small, small) } else { (full, check) };
        Step { name, width: timed.0, timed: extents(timed), check: extents(check) }
    };
    // Width, batch and extents: small, of the check, full.
    let table = [
        of("r3d18", [(4, 2, [8, 32, 32]), (64, 2, [8, 56, 56]), (64, 8, [16, 112, 112])]),
        of("unet3d", [(4, 2, [16, 16, 16]), (32, 2, [32, 32, 32]), (32, 2, [96, 96, 96])]),
        of("resnet18", [(4, 2, [1, 64, 64]), (64, 4, [1, 112, 112]), (64, 64, [1, 224, 224])]),
    ];
    table.into_iter().filter(|step| options.wants_case(step.name)).collect()
}

/// Registers the patch, switched off. To be called before the first tensor operation.
///
/// # Errors
/// What [`patch`] says.
pub(crate) fn register(device: &Device) -> Result<()> {
    patch(PatchOptions::all().with_device(device.burn.clone()))?;
    unpatch();
    Ok(())
}

/// Measures every case.
pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    for step in cases(&bench.options, bench.size) {
        for dtype in bench.dtypes() {
            match step.name {
                "r3d18" => run_case(bench, &step, dtype, R3d18::new, clips)?,
                "unet3d" => run_case(bench, &step, dtype, UNet3d::new, volumes)?,
                _ => run_case(bench, &step, dtype, ResNet18::new, images)?,
            }
            bench.clean_up();
        }
        let Step { name, width, timed: Extents { batch, axes }, .. } = step;
        bench.report.end_case(&format!("{OP} {name}: batch {batch} of {axes:?}, {width} channels first"));
    }
    Ok(())
}

fn clips(extents: Extents, dtype: FloatType, device: &burn::tensor::Device) -> Tensor<5> {
    batch(extents, 3, dtype, device)
}

fn volumes(extents: Extents, dtype: FloatType, device: &burn::tensor::Device) -> Tensor<5> {
    batch(extents, 1, dtype, device)
}

fn images(extents: Extents, dtype: FloatType, device: &burn::tensor::Device) -> Tensor<4> {
    batch(extents, 3, dtype, device).squeeze_dim(2)
}

fn batch(extents: Extents, channels: usize, dtype: FloatType, device: &burn::tensor::Device) -> Tensor<5> {
    let Extents { batch, axes: [depth, height, width] } = extents;
    let shape = [batch, channels, depth, height, width];
    burn_peer::tensor(device, &Source::normal(1, dtype), shape, dtype)
}

/// Gives every parameter and running mean another storage type.
struct Cast(DType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let tracked = parameter.is_require_grad();
        parameter.map(|tensor| Tensor::from_inner(tensor.inner().cast(self.0)).set_require_grad(tracked))
    }
}

/// Loss and gradients of one step, on the host, and the trained network.
struct Collect<'a> {
    gradients: &'a Gradients,
    values: Vec<Vec<f32>>,
}

impl ModuleVisitor for Collect<'_> {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        let gradient = parameter.val().grad(self.gradients);
        self.values.extend(gradient.map(host));
    }
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_to_vec().expect("f32 after conversion")
}

fn loss_and_gradients<M: Network>(model: &M, batch: M::Batch) -> Vec<Vec<f32>> {
    let loss = model.loss(batch).mul_scalar(LOSS_SCALE);
    let gradients = loss.backward();
    let mut collect = Collect { gradients: &gradients, values: vec![host(loss.inner())] };
    model.visit(&mut collect);
    collect.values
}

/// How far all values together are from `want`.
fn deviation(got: &[Vec<f32>], want: &[Vec<f32>]) -> Deviation {
    assert_eq!(got.len(), want.len(), "the same parameters have gradients");
    let pairs =
        || got.iter().flatten().zip(want.iter().flatten()).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    let rms = |values: &dyn Fn((f64, f64)) -> f64| {
        let squares: f64 = pairs().map(values).map(|value| value * value).sum();
        (squares / pairs().count() as f64).sqrt()
    };
    let truth = rms(&|(_, want)| want);
    let error = |(got, want): (f64, f64)| got - want;
    // Not `max`, which would pass over NaN.
    let largest =
        pairs().map(error).map(f64::abs).fold(0.0, |most, each| if each <= most { most } else { each });
    Deviation { max: largest / truth, rms: rms(&error) / truth }
}

/// Seconds that `run` takes until the device is done, and what it gives.
fn seconds<T>(device: &burn::tensor::Device, run: impl FnOnce() -> T) -> Result<(f64, T)> {
    let started = Instant::now();
    let result = run();
    device.sync().context("a training step")?;
    Ok((started.elapsed().as_secs_f64(), result))
}

/// Patches every convolution, or leaves all to Burn.
fn switch(who: &str, device: &burn::tensor::Device) -> Result<()> {
    if who == OURS {
        patch(PatchOptions::all().with_device(device.clone()))?;
    } else {
        unpatch();
    }
    Ok(())
}

fn run_case<M: Network>(
    bench: &mut Bench,
    step: &Step,
    dtype: FloatType,
    new: impl Fn(usize, &burn::tensor::Device) -> M,
    batch: impl Fn(Extents, FloatType, &burn::tensor::Device) -> M::Batch,
) -> Result<()> {
    let bench_device = bench.device.burn.clone();
    let device = bench_device.clone().autodiff();
    // Two networks of the same draws, since clones share their running means and variances, whatever their
    // type. Initialized now: parameters are drawn when they are first used.
    let of_type = |dtype| {
        device.seed(1);
        new(step.width, &device).map(&mut Cast(burn_dtype(dtype)))
    };
    let (exact, model) = (of_type(FloatType::F32), of_type(dtype));
    let mut row =
        Row { op: OP, case: step.name.into(), dtype, pass: Pass::FwdBwd, plan: String::new(), chosen: true };
    let label = format!("{} {}", step.name, dtype.name());
    bench.running(&row, "one output per thread");
    let (took, truth) = seconds(&bench_device, || {
        direct_step(&bench_device, &exact, batch(step.check, FloatType::F32, &device))
    })?;
    let truth = truth?;
    let check = batch(step.check, dtype, &device);
    let limit = match dtype {
        FloatType::F32 => SAME_STEP,
        _ => 2.0 * deviation(&direct_step(&bench_device, &model, check.clone())?, &truth).rms,
    };
    let Extents { batch: samples, axes } = step.check;
    bench
        .report
        .note(&format!("{label}: {took:.1} s for the truth of the check, batch {samples} of {axes:?}"));
    let timed_batch = batch(step.timed, dtype, &device);
    let mut plain: Option<Vec<Vec<f32>>> = None;
    let implementations = if bench.options.no_burn { &[OURS][..] } else { &[BURN, OURS] };
    for &who in implementations {
        switch(who, &bench_device)?;
        row.plan = if who == OURS { "patch" } else { "" }.into();
        bench.running(&row, who);
        let (took, got) = seconds(&bench_device, || loss_and_gradients(&model, check.clone()))?;
        let deviation_of_check = deviation(&got, &truth);
        let same = deviation_of_check.rms <= limit;
        let off = deviation_of_check.rms;
        bench.report.note(&format!(
            "{label} {who}: check, cold {took:.1} s, gradients off by {off:.1e} of their RMS ({limit:.1e} allowed)"
        ));
        if !same && who == OURS {
            let error = format!("gradients are off by {off:.2e} of their RMS, {limit:.2e} is allowed");
            bench.failed(&row, who, &row.plan, &error)?;
            unpatch();
            continue;
        }
        let (took, got) = seconds(&bench_device, || loss_and_gradients(&model, timed_batch.clone()))?;
        let agreement = plain.as_ref().map(|plain| deviation(&got, plain).rms);
        let agreement =
            agreement.map_or(String::new(), |rms| format!(", {rms:.1e} of their RMS from Burn's"));
        bench
            .report
            .note(&format!("{label} {who}: first step of the timed size, cold {took:.1} s{agreement}"));
        plain = (who == BURN).then_some(got);
        match timed(&bench.timer, &bench.device, &model, &timed_batch) {
            Ok(times) => bench.write_step(&row, who, times, deviation_of_check, same)?,
            Err(error) => bench.failed(&row, who, &row.plan, &error)?,
        }
        bench_device.sync().context("the last step")?;
        unpatch();
    }
    Ok(())
}

/// Loss and gradients where every convolution computes one output per thread.
fn direct_step<M: Network>(
    device: &burn::tensor::Device,
    model: &M,
    batch: M::Batch,
) -> Result<Vec<Vec<f32>>> {
    patch(PatchOptions::all().with_device(device.clone()).with_algorithm(Algorithm::Direct))?;
    let values = loss_and_gradients(model, batch);
    unpatch();
    Ok(values)
}

/// Times steps that follow each other.
fn timed<M: Network>(timer: &Timer, device: &Device, model: &M, batch: &M::Batch) -> Result<Times, String> {
    let mut optimizer: ModuleOptimizer = SgdConfig::new().init();
    let mut model = Some(model.clone());
    let run = |()| {
        let before = model.take().ok_or("a step has failed")?;
        let gradients = GradientsParams::from_grads(
            before.loss(batch.clone()).mul_scalar(LOSS_SCALE).backward(),
            &before,
        );
        model = Some(optimizer.step(LEARNING_RATE, before, gradients));
        Ok(())
    };
    let flush = || device.burn.flush().map_err(|error| first_line(&error.to_string()));
    timer.time(|| Ok(()), run, flush)
}
