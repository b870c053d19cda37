//! A model that nobody here wrote: SqueezeNet 1.1, the feature extractor of LPIPS in the crate burn-train
//! 0.22.1 (`tests/models`).

use crate::alike::Comparison;
use crate::models::Network;
use crate::squeezenet::SqueezeFeatureExtractor;
use crate::support::{gpu, normal, owned};
use crate::training::trains_alike;
use burn::module::Module;
use burn::tensor::{Device, Tensor};

/// Convolutions of the network: the first, and three in each of eight fire modules.
const CONVOLUTIONS: u64 = 1 + 8 * 3;

fn images(seed: u64, device: &Device) -> Tensor<4> {
    normal(seed, [1, 3, 32, 32], device)
}

impl Network for SqueezeFeatureExtractor {
    /// The mean square of the features of all seven levels.
    fn loss(&self, seed: u64, device: &Device) -> Tensor<1> {
        let features = self.forward(images(seed, device)).into_iter();
        features.map(|level| level.square().mean()).reduce(|sum, level| sum + level).expect("seven levels")
    }
}

pub(crate) fn squeezenet_has_the_same_features() {
    let (device, flex) = (gpu(), Device::flex());
    device.seed(1);
    let model = SqueezeFeatureExtractor::new(&device);
    let comparison = Comparison {
        what: "SqueezeNet",
        convolutions: CONVOLUTIONS,
        products: false,
        device: &device,
        flex: Some(&flex),
    };
    comparison.check(&|device| {
        let levels = model.clone().fork(device).forward(images(3, device));
        let levels = levels.into_iter().enumerate();
        levels.map(|(level, features)| (format!("level {level}"), owned(features))).collect()
    });
}

pub(crate) fn squeezenet_trains_alike() {
    // Forward passes, their input gradients without the first one's, weight and bias gradients.
    trains_alike(SqueezeFeatureExtractor::new, 4 * CONVOLUTIONS - 1);
}
