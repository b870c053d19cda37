//! One training step of whole networks of `burn::nn`: loss, gradients and an SGD step, by Burn as it is and
//! patched with this project's kernels, in one process.
//!
//! ```text
//! truth   of each network once: loss and gradients of all parameters of the batch that is timed, in fp32,
//!         with one output per thread (`Algorithm::Direct`), which shares no kernel with what is timed
//! bound   of 16-bit types: how far the same step in that type is from the truth
//! first   the first step by the host's clock: kernels are compiled and, of Burn's convolutions, tuned (the
//!         truth has tuned what is not a convolution); its loss and gradients are compared with the truth
//! warm    the steps that follow
//! ```
//!
//! Truth, check and timing use the same extents, because Burn tunes every extent anew, reductions included.
//! The rows of a step are recorded as soon as it is timed. A patched step whose gradients fail the check is
//! not timed. Burn's own step is timed even where its gradients are wrong; the record's row says so.

mod gradients;
mod models;
mod rows;

use crate::bench::{Bench, Row};
use crate::burn_peer::{self, burn_dtype};
use crate::data::{Source, first_line};
use crate::device::Device;
use crate::measure::{Timer, Times};
use crate::options::{Op, Options, Pass, Size};
use crate::report::BURN;
use anyhow::{Context, Result};
use bench_record::record::OURS;
use burn::module::{ModuleMapper, Param};
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{DType, Tensor};
use burn_conv_ops::{PatchOptions, patch, unpatch};
use conv_kernels::FloatType;
use conv_kernels::conv3d::Algorithm;
use gradients::{Distance, LOSS_SCALE, Values, loss_and_gradients};
use models::{Network, R3d18, ResNet18, UNet3d};
use std::time::Instant;

const OP: &str = "training_step";

/// So small that the parameters stay what they are for as long as steps are timed.
const LEARNING_RATE: f64 = 1e-9;

/// How many samples of which depth, height and width; images have no depth.
#[derive(Clone, Copy, Debug)]
struct Extents {
    batch: usize,
    axes: [usize; 3],
}

/// A network and the batch of a step.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    name: &'static str,
    width: usize,
    extents: Extents,
}

/// The cases that are asked for. Not part of `--op all`: they take minutes.
pub(crate) fn cases(options: &Options, size: Size) -> Vec<Step> {
    if options.op != Op::TrainingStep {
        return Vec::new();
    }
    let of = |name, [small, full]: [(usize, usize, [usize; 3]); 2]| {
        let (width, batch, axes) = if size == Size::Small { small } else { full };
        Step { name, width, extents: Extents { batch, axes } }
    };
    // Width, batch and extents: small, full.
    let table = [
        of("resnet18", [(4, 2, [1, 64, 64]), (64, 64, [1, 224, 224])]),
        of("unet3d", [(4, 2, [16, 16, 16]), (32, 2, [96, 96, 96])]),
        of("r3d18", [(4, 2, [8, 32, 32]), (64, 8, [16, 112, 112])]),
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
        match step.name {
            "r3d18" => run_case(bench, &step, R3d18::new, clips)?,
            "unet3d" => run_case(bench, &step, UNet3d::new, volumes)?,
            _ => run_case(bench, &step, ResNet18::new, images)?,
        }
        bench.clean_up();
        let Step { name, width, extents: Extents { batch, axes } } = step;
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
    new: impl Fn(usize, &burn::tensor::Device) -> M,
    batch: impl Fn(Extents, FloatType, &burn::tensor::Device) -> M::Batch,
) -> Result<()> {
    let plain = bench.device.burn.clone();
    let device = plain.clone().autodiff();
    // Networks of the same draws, since clones share their running means and variances, whatever their type.
    let of_type = |dtype| {
        device.seed(1);
        (new(step.width, &device).map(&mut Cast(burn_dtype(dtype))), batch(step.extents, dtype, &device))
    };
    let row = |dtype| {
        let case = step.name.into();
        Row { op: OP, case, dtype, pass: Pass::FwdBwd, plan: String::new(), chosen: true }
    };
    bench.running(&row(FloatType::F32), "one output per thread");
    let (network, inputs) = of_type(FloatType::F32);
    let (took, truth) = seconds(&plain, || direct_step(&plain, &network, inputs))?;
    let truth = truth?;
    bench.report.note(&format!("{}: {took:.1} s for the truth", step.name));
    drop(network);
    bench.clean_up();
    for dtype in bench.dtypes() {
        let (network, inputs) = of_type(dtype);
        let check = if dtype == FloatType::F32 {
            Check { truth: &truth, rounded: None, limit: Distance::limit() }
        } else {
            bench.running(&row(dtype), "one output per thread");
            let (took, values) = seconds(&plain, || direct_step(&plain, &network, inputs.clone()))?;
            let values = values?;
            let rounded = Distance::between(&values, &truth);
            bench.report.note(&format!(
                "{} {}: {took:.1} s for one output per thread in that type, off by {}",
                step.name,
                dtype.name(),
                shown(&rounded)
            ));
            Check { truth: &truth, rounded: Some(values), limit: rounded.limit_of_type() }
        };
        let implementations = if bench.options.no_burn { &[OURS][..] } else { &[OURS, BURN] };
        for &who in implementations {
            run_step(bench, &mut row(dtype), who, &network, &inputs, &check)?;
        }
        drop(network);
        bench.clean_up();
    }
    Ok(())
}

fn shown(distance: &Distance) -> String {
    format!("{:.1e} of the gradients' RMS, one weight by {:.1e}", distance.all.rms, distance.weight)
}

/// What a step is held against.
struct Check<'a> {
    truth: &'a Values,
    /// The step in the same type with one output per thread, where that is not the truth.
    rounded: Option<Values>,
    limit: Distance,
}

/// Verifies and times one implementation's step.
fn run_step<M: Network>(
    bench: &mut Bench,
    row: &mut Row,
    who: &str,
    network: &M,
    inputs: &M::Batch,
    check: &Check<'_>,
) -> Result<()> {
    let plain = bench.device.burn.clone();
    row.plan = if who == OURS { "patch" } else { "" }.into();
    bench.running(row, who);
    switch(who, &plain)?;
    let (first, got) = seconds(&plain, || loss_and_gradients(network, inputs.clone()))?;
    let distance = Distance::between(&got, check.truth);
    let from_rounded = check.rounded.as_ref().map_or(String::new(), |rounded| {
        format!(", from one output per thread in that type {}", shown(&Distance::between(&got, rounded)))
    });
    drop(got);
    let same = distance.within(&check.limit);
    let (off, allowed) = (shown(&distance), shown(&check.limit));
    bench.report.note(&format!(
        "{} {} {who}: first step {first:.1} s, off by {off} (allowed: {allowed}){from_rounded}",
        row.case,
        row.dtype.name()
    ));
    if !same && who == OURS {
        unpatch();
        return bench.failed(row, who, &row.plan, &format!("off by {off}, {allowed} is allowed"));
    }
    match timed(&bench.timer, &bench.device, network, inputs) {
        Ok(times) => {
            let text = times.wall.median;
            bench.report.note(&format!(
                "{} {} {who}: {text:.2} ms by the host's clock",
                row.case,
                row.dtype.name()
            ));
            let measured = rows::Measured { first, times, deviation: distance.all, verified: same };
            rows::write(bench, row, who, &measured)?;
        }
        Err(error) => bench.failed(row, who, &row.plan, &error)?,
    }
    plain.sync().context("the last step")?;
    unpatch();
    Ok(())
}

/// Loss and gradients where every convolution computes one output per thread.
fn direct_step<M: Network>(device: &burn::tensor::Device, model: &M, batch: M::Batch) -> Result<Values> {
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
