//! One training step of whole networks of `burn::nn`: loss, gradients and an SGD step, by Burn as it is and
//! patched with this project's kernels, in one process.
//!
//! The loss and the gradients of all parameters are compared first. Truth is the same step with one output
//! per thread (`Algorithm::Direct`) in fp32, which shares no kernel with what is timed; there is no f64
//! truth of whole networks. Burn's own step is timed even where its gradients are wrong: the record's row
//! says so.

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

const OP: &str = "training_step";

/// So small that the parameters stay what they are for as long as steps are timed.
const LEARNING_RATE: f64 = 1e-7;

/// The loss is multiplied by this, so that fp16 holds its gradients.
const LOSS_SCALE: f64 = 256.0;

/// RMS difference of all gradients from the truth, relative to their RMS, that rounding explains in fp32: a
/// ReLU whose input is nearer to zero than its error may switch, and a share p of them moves a gradient by
/// sqrt(p). In other types: twice what one output per thread has in that type.
const SAME_STEP: f64 = 1e-2;

/// A network and the extents of a batch.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    name: &'static str,
    width: usize,
    batch: usize,
    /// Depth, height and width; images have no depth.
    extents: [usize; 3],
}

/// The cases that are asked for. Not part of `--op all`: they take minutes.
pub(crate) fn cases(options: &Options, size: Size) -> Vec<Step> {
    if options.op != Op::TrainingStep {
        return Vec::new();
    }
    let small = size == Size::Small;
    let of = |name, full: (usize, usize, [usize; 3]), small_extents| {
        let (width, batch, extents) = if small { (4, 2, small_extents) } else { full };
        Step { name, width, batch, extents }
    };
    let table = [
        of("r3d18", (64, 8, [16, 112, 112]), [8, 32, 32]),
        of("unet3d", (32, 2, [96, 96, 96]), [16, 16, 16]),
        of("resnet18", (64, 64, [1, 224, 224]), [1, 64, 64]),
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
        let Step { name, width, batch, extents } = step;
        bench.report.end_case(&format!("{OP} {name}: batch {batch} of {extents:?}, {width} channels first"));
    }
    Ok(())
}

fn clips(step: &Step, dtype: FloatType, device: &burn::tensor::Device) -> Tensor<5> {
    batch(step, 3, dtype, device)
}

fn volumes(step: &Step, dtype: FloatType, device: &burn::tensor::Device) -> Tensor<5> {
    batch(step, 1, dtype, device)
}

fn images(step: &Step, dtype: FloatType, device: &burn::tensor::Device) -> Tensor<4> {
    batch(step, 3, dtype, device).squeeze_dim(2)
}

fn batch(step: &Step, channels: usize, dtype: FloatType, device: &burn::tensor::Device) -> Tensor<5> {
    let [depth, height, width] = step.extents;
    let shape = [step.batch, channels, depth, height, width];
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

fn run_case<M: Network>(
    bench: &mut Bench,
    step: &Step,
    dtype: FloatType,
    new: impl Fn(usize, &burn::tensor::Device) -> M,
    batch: impl Fn(&Step, FloatType, &burn::tensor::Device) -> M::Batch,
) -> Result<()> {
    let bench_device = bench.device.burn.clone();
    let device = bench_device.clone().autodiff();
    device.seed(1);
    // Initialized now, since parameters are drawn when they are first used.
    let exact = new(step.width, &device).map(&mut Cast(burn_dtype(FloatType::F32)));
    // Before a step leaves running means of another type behind.
    let model = exact.clone().map(&mut Cast(burn_dtype(dtype)));
    let truth = direct_step(&bench_device, &exact, batch(step, FloatType::F32, &device))?;
    let batch = batch(step, dtype, &device);
    let limit = match dtype {
        FloatType::F32 => SAME_STEP,
        _ => 2.0 * deviation(&direct_step(&bench_device, &model, batch.clone())?, &truth).rms,
    };
    let mut row =
        Row { op: OP, case: step.name.into(), dtype, pass: Pass::FwdBwd, plan: String::new(), chosen: true };
    for who in [BURN, OURS] {
        if who == OURS {
            patch(PatchOptions::all().with_device(bench_device.clone()))?;
            row.plan = "patch".into();
        }
        bench.running(&row, who);
        let deviation = deviation(&loss_and_gradients(&model, batch.clone()), &truth);
        let same = deviation.rms <= limit;
        // Burn's own step is timed whatever it computes.
        let result = if same || who == BURN {
            timed(&bench.timer, &bench.device, &model, &batch)
        } else {
            Err(format!("gradients are off by {:.2e} of their RMS, {limit:.2e} is allowed", deviation.rms))
        };
        match result {
            Ok(times) => bench.write_step(&row, who, times, deviation, same)?,
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
