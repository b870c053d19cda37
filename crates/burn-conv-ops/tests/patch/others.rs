//! A model that nobody here wrote: SqueezeNet 1.1, the feature extractor of LPIPS in the crate burn-train
//! 0.22.1 (`tests/models`).

use crate::models::Network;
use crate::squeezenet::SqueezeFeatureExtractor;
use crate::support::{
    assert_all_served, assert_close, counted, gpu, is_burns_convolution, is_ours, launches, normal, owned,
    set_patched,
};
use crate::training::trains_alike;
use burn::tensor::{Device, Tensor, TensorData};

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
    let device = gpu();
    device.seed(1);
    let model = SqueezeFeatureExtractor::new(&device);
    let run = |device: &Device| -> Vec<TensorData> {
        let model = burn::module::Module::fork(model.clone(), device);
        model.forward(images(3, device)).into_iter().map(owned).collect()
    };
    set_patched(false);
    let (burns, report) = counted(|| run(&device));
    assert_eq!((report.recorded(), report.served()), (0, 0), "unpatched\n{report}");
    set_patched(true);
    let ((ours, kernels), report) = counted(|| launches(|| run(&device)));
    assert_all_served("SqueezeNet", &report, CONVOLUTIONS);
    assert!(kernels.iter().filter(|name| is_ours(name)).count() as u64 >= CONVOLUTIONS);
    assert_eq!(kernels.iter().filter(|name| is_burns_convolution(name)).count(), 0);
    let flexs = run(&Device::flex());
    assert_eq!([ours.len(); 2], [burns.len(), flexs.len()]);
    for (level, ours) in ours.iter().enumerate() {
        for (whose, others) in [("Burn's", &burns), ("Flex's", &flexs)] {
            assert_close(&format!("features {level} and {whose}"), ours, &others[level], 2e-4);
        }
    }
}

pub(crate) fn squeezenet_trains_alike() {
    // Forward passes, their input gradients without the first one's, weight and bias gradients.
    trains_alike(SqueezeFeatureExtractor::new, 4 * CONVOLUTIONS - 1);
}
