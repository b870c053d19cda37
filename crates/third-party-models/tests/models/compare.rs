//! Models of other authors in the comparison of burn-conv-ops' tests (`alike`).

use crate::alike::{Comparison, train};
use crate::support::gpu;
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};

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

const STEPS: u64 = 3;
/// Small: behind batch normalization over a few elements, another rounding of a large step grows beyond any
/// bound.
pub(crate) const LEARNING_RATE: f64 = 1e-3;

/// Outputs, then losses and gradients of three training steps from the same weights.
pub(crate) fn is_the_same<M: Subject>(name: &str, new: impl Fn(&Device) -> M, expected: &Expected) {
    has_the_same_outputs(name, &new, expected.outputs);
    let (device, flex) = (gpu().autodiff(), Device::flex().autodiff());
    device.seed(1);
    let model = new(&device);
    let comparison = Comparison {
        what: &format!("{name}, training"),
        convolutions: STEPS * expected.step,
        products: true,
        device: &device,
        flex: (!expected.gelu).then_some(&flex),
    };
    comparison.check(&|device| {
        train(model.clone().fork(device), STEPS, LEARNING_RATE, |model, seed| model.loss(seed, device))
    });
}

/// Outputs alone, for which Burn records so many convolutions.
pub(crate) fn has_the_same_outputs<M: Subject>(name: &str, new: impl Fn(&Device) -> M, convolutions: u64) {
    let (device, flex) = (gpu(), Device::flex());
    device.seed(1);
    let model = new(&device);
    let comparison = Comparison {
        what: &format!("{name}, outputs"),
        convolutions,
        products: true,
        device: &device,
        flex: Some(&flex),
    };
    comparison.check(&|device| {
        let outputs = model.clone().fork(device).outputs(7, device).into_iter().enumerate();
        outputs.map(|(index, output)| (format!("output {index}"), output)).collect()
    });
}
