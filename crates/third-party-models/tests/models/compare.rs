//! A model with Burn's kernels, with ours and on Flex.

use crate::support::{
    assert_all_served, assert_close, counted, gpu, is_ours, launches, owned, set_patched, values,
};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Gradients, Tensor, TensorData};

/// A model with what is asked of it.
pub(crate) trait Subject: Module {
    /// What it gives for the input of this seed.
    fn outputs(&self, seed: u64, device: &Device) -> Vec<TensorData>;

    /// The loss of a training step.
    fn loss(&self, seed: u64, device: &Device) -> Tensor<1>;
}

/// What a model is made of.
pub(crate) struct Expected {
    /// Convolutions that Burn records for the outputs.
    pub(crate) outputs: u64,
    /// Those of a training step, gradients included.
    pub(crate) step: u64,
    /// Whether GELU's derivative is part of a step. Burn's CubeCL backend takes that of the approximation by
    /// tanh with constants of six digits, Flex the exact one: V-JEPA's gradients differ by 2e-3, whoever
    /// convolves, so training is compared with Burn's kernels alone there.
    pub(crate) gelu: bool,
}

/// As in burn-conv-ops' test of SqueezeNet.
pub(crate) const TOLERANCE: f64 = 2e-4;
const STEPS: u64 = 3;
/// Small: behind batch normalization over a few elements, another rounding of a large step grows beyond any
/// bound.
pub(crate) const LEARNING_RATE: f64 = 1e-3;

/// Outputs, then losses and gradients of three training steps from the same weights.
pub(crate) fn is_the_same<M: Subject>(name: &str, new: impl Fn(&Device) -> M, expected: &Expected) {
    has_the_same_outputs(name, &new, expected.outputs);
    let device = gpu().autodiff();
    device.seed(1);
    let model = new(&device);
    let steps = |device: &Device| train(model.clone().fork(device), device);
    let flex = (!expected.gelu).then(|| Device::flex().autodiff());
    all_agree(&format!("{name}, training"), STEPS * expected.step, &steps, &device, flex.as_ref());
}

/// Outputs alone, for which Burn records so many convolutions.
pub(crate) fn has_the_same_outputs<M: Subject>(name: &str, new: impl Fn(&Device) -> M, convolutions: u64) {
    let device = gpu();
    device.seed(1);
    let model = new(&device);
    let outputs = |device: &Device| model.clone().fork(device).outputs(7, device);
    all_agree(&format!("{name}, outputs"), convolutions, &outputs, &device, Some(&Device::flex()));
}

/// Fails where the three differ or a convolution was not ours. `convolutions` are recorded by each run.
fn all_agree(
    what: &str,
    convolutions: u64,
    run: &dyn Fn(&Device) -> Vec<TensorData>,
    device: &Device,
    flex: Option<&Device>,
) {
    set_patched(false);
    let ((burns, theirs), report) = counted(|| launches(|| run(device)));
    assert_eq!((report.recorded(), report.served()), (0, 0), "{what}, unpatched\n{report}");
    assert!(!theirs.iter().any(is_ours), "{what}: kernels of ours ran unpatched");
    set_patched(true);
    let ((ours, kernels), report) = counted(|| launches(|| run(device)));
    assert_all_served(what, &report, convolutions);
    // A convolution is one kernel or several.
    assert!(kernels.iter().filter(|name| is_ours(name)).count() as u64 >= convolutions, "{what}");
    let left: Vec<_> = kernels.iter().filter(|name| is_burns_convolution(name)).collect();
    assert!(left.is_empty(), "{what}: Burn's kernels ran: {left:?}");
    let others = [("Burn's", Some(burns)), ("Flex's", flex.map(run))];
    for (whose, others) in others.iter().filter_map(|(whose, others)| Some((whose, others.as_ref()?))) {
        assert_eq!(ours.len(), others.len(), "{what}");
        let mut worst = 0.0;
        for (index, (ours, others)) in ours.iter().zip(others).enumerate() {
            assert_close(&format!("{what} {index} and {whose}"), ours, others, TOLERANCE);
            worst = f64::max(worst, difference(ours, others));
        }
        println!("{what}: {} tensors, at most {worst:.1e} from {whose}, of {TOLERANCE:.0e}", ours.len());
    }
    let count = |of: fn(&&&'static str) -> bool| kernels.iter().filter(of).count();
    println!(
        "{what}: {convolutions} convolutions recorded and served, {} of {} launches are ours",
        count(|name| is_ours(name)),
        kernels.len(),
    );
}

/// Burn's kernels for convolutions. Matrix products belong to linear layers and attention here.
fn is_burns_convolution(kernel: &&'static str) -> bool {
    !is_ours(kernel) && (kernel.contains("conv") || kernel.contains("im2col"))
}

/// The largest difference in the units of `assert_close`.
pub(crate) fn difference(got: &TensorData, want: &TensorData) -> f64 {
    let (got, want) = (values(got), values(want));
    let rms = (want.iter().map(|value| value * value).sum::<f64>() / want.len().max(1) as f64).sqrt();
    let errors = got.iter().zip(&want).map(|(got, want)| (got - want).abs() / (rms + want.abs()));
    errors.filter(|error| error.is_finite()).fold(0.0, f64::max)
}

/// The gradients of all parameters, in the order of the module.
struct Collect<'a> {
    gradients: &'a Gradients,
    collected: Vec<TensorData>,
}

impl ModuleVisitor for Collect<'_> {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        let gradient = parameter.val().grad(self.gradients);
        self.collected.extend(gradient.map(owned));
    }
}

/// The loss of each step and its gradients.
fn train<M: Subject>(model: M, device: &Device) -> Vec<TensorData> {
    let mut optimizer: ModuleOptimizer = SgdConfig::new().init();
    let mut model = model;
    let mut all = Vec::new();
    for seed in 0..STEPS {
        let loss = model.loss(seed, device);
        let gradients = loss.backward();
        let mut collect = Collect { gradients: &gradients, collected: vec![owned(loss.inner())] };
        model.visit(&mut collect);
        all.extend(collect.collected);
        let gradients = GradientsParams::from_grads(gradients, &model);
        model = optimizer.step(LEARNING_RATE, model, gradients);
    }
    all
}
