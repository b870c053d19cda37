//! [`warm_up`]: what training would compile at its first step is compiled before, with progress.
//!
//! Each layer runs once on zeros of the shape, forward and, on a device with gradients, backward; the results
//! are dropped. With the feature `autotune` plans are timed as well.

use crate::{Conv3dOptions, ConvError, try_conv3d};
use burn::tensor::{DType, Device, Tensor};
use std::collections::HashSet;
use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

/// A pass of a layer that has been compiled.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WarmUpStep {
    /// The layer.
    pub layer: String,
    /// `forward` or `gradients` (of input, weight and bias).
    pub pass: &'static str,
    /// How many distinct kernels the pass launches; none on devices that do not count, such as Flex. Launches
    /// of other threads meanwhile count as well.
    pub kernels: Option<usize>,
    /// What the pass took, compilation and one run.
    pub took: Duration,
    /// Passes that are done, this one included.
    pub done: usize,
    /// All passes.
    pub of: usize,
}

impl Display for WarmUpStep {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{}/{} {}, {}: ", self.done, self.of, self.layer, self.pass)?;
        match self.kernels {
            Some(1) => write!(f, "1 kernel, ")?,
            Some(kernels) => write!(f, "{kernels} kernels, ")?,
            None => {}
        }
        write!(f, "{:.1} s", self.took.as_secs_f64())
    }
}

/// What a run of a layer reports: pass, kernels, time.
type Report<'r> = dyn FnMut(&'static str, Option<usize>, Duration) + 'r;

/// A layer on zeros.
type Run<'a> = dyn Fn(&mut Report<'_>) -> Result<(), ConvError> + 'a;

/// A layer and the shape of its input, to be given to [`warm_up`].
pub struct WarmUpLayer<'a> {
    name: String,
    passes: usize,
    run: Box<Run<'a>>,
}

impl<'a> WarmUpLayer<'a> {
    /// Anything that computes a tensor of one: `forward` is called with zeros of the shape and dtype, which
    /// are tracked where `device` has gradients.
    pub fn new<const D: usize, const R: usize>(
        name: impl Into<String>,
        x: [usize; D],
        (device, dtype): (&Device, DType),
        forward: impl Fn(Tensor<D>) -> Result<Tensor<R>, ConvError> + 'a,
    ) -> Self {
        let device = device.clone();
        let passes = if cfg!(feature = "autodiff") && device.is_autodiff() { 2 } else { 1 };
        let run =
            move |report: &mut Report<'_>| run(Tensor::zeros(x, (&device, dtype)), &device, &forward, report);
        Self { name: name.into(), passes, run: Box::new(run) }
    }

    /// conv3d of x `[N, C, D, H, W]` and a weight `[O, C/groups, KD, KH, KW]` of these shapes.
    pub fn conv3d(
        x: [usize; 5],
        weight: [usize; 5],
        bias: bool,
        options: impl Into<Conv3dOptions>,
        (device, dtype): (&Device, DType),
    ) -> WarmUpLayer<'static> {
        let options = options.into();
        let (name, of) = (format!("conv3d {x:?} by {weight:?}"), device.clone());
        WarmUpLayer::new(name, x, (device, dtype), move |x| {
            let bias = bias.then(|| tracked(Tensor::zeros([weight[0]], (&of, dtype))));
            try_conv3d(x, tracked(Tensor::zeros(weight, (&of, dtype))), bias, options)
        })
    }
}

impl fmt::Debug for WarmUpLayer<'_> {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.debug_struct("WarmUpLayer").field("name", &self.name).field("passes", &self.passes).finish()
    }
}

/// Compiles what the layers launch, and says so after each pass.
///
/// The kernels of a network's other operations and of its loss are not among it, nor what Burn's fusion makes
/// of an operation of its own in a layer and its neighbours: reflected and circular padding.
///
/// # Errors
/// The sentence of the first layer that refuses its input; what comes before it is compiled.
///
/// # Panics
/// When the device fails.
pub fn warm_up(
    layers: &[WarmUpLayer<'_>],
    mut progress: impl FnMut(&WarmUpStep),
) -> Result<Vec<WarmUpStep>, ConvError> {
    let of = layers.iter().map(|layer| layer.passes).sum();
    let mut steps = Vec::with_capacity(of);
    for layer in layers {
        (layer.run)(&mut |pass, kernels, took| {
            let done = steps.len() + 1;
            let step = WarmUpStep { layer: layer.name.clone(), pass, kernels, took, done, of };
            progress(&step);
            steps.push(step);
        })?;
    }
    Ok(steps)
}

fn run<const D: usize, const R: usize>(
    x: Tensor<D>,
    device: &Device,
    forward: &dyn Fn(Tensor<D>) -> Result<Tensor<R>, ConvError>,
    report: &mut Report<'_>,
) -> Result<(), ConvError> {
    let x = tracked(x);
    wait(device);
    let start = Instant::now();
    let (y, kernels) = launched(device, || forward(x));
    let y = y?;
    report("forward", kernels.map(|kernels| kernels.len()), start.elapsed());
    #[cfg(feature = "autodiff")]
    if device.is_autodiff() {
        // A gradient that is a tensor in memory, as the one that a layer behind this one leaves.
        let dy = Tensor::<R>::zeros(y.dims(), (device, y.dtype()));
        wait(device);
        let backward = |y: Tensor<R>| (y * dy.clone()).sum().backward();
        // What the product and the sum launch is not the layer's.
        let (_, others) = launched(device, || backward(tracked(dy.clone())));
        let others = others.unwrap_or_default();
        let start = Instant::now();
        let (_, kernels) = launched(device, || backward(y));
        let kernels = kernels.map(|kernels| kernels.difference(&others).count());
        report("gradients", kernels, start.elapsed());
    }
    #[cfg(not(feature = "autodiff"))]
    let _ = y;
    Ok(())
}

/// The tensor as a parameter, on a device with gradients.
fn tracked<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "autodiff")]
    if tensor.device().is_autodiff() {
        return tensor.require_grad();
    }
    tensor
}

fn wait(device: &Device) {
    device.sync().expect("the device runs");
}

/// The result of `run`, once the device has it, and the kernels that were launched for it, where the device
/// counts them.
fn launched<T>(device: &Device, run: impl FnOnce() -> T) -> (T, Option<HashSet<u128>>) {
    #[cfg(feature = "cubecl")]
    if crate::check::cube(device).is_some() {
        let kernels = burn_cubecl::cubecl::launched::LaunchedKernels::new();
        let result = run();
        wait(device);
        return (result, Some(kernels.finish().into_iter().collect()));
    }
    let result = run();
    wait(device);
    (result, None)
}
