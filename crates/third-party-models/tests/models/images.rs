//! Residual networks of images (bunsen).

use crate::compare::{Expected, Subject, has_the_same_outputs, is_the_same};
use crate::support::{normal, owned};
use bunsen::burner::module::ModuleInit;
use bunsen::kits::images::resnet::{ResNet, ResNetContractConfig};
use burn::tensor::{Device, Tensor, TensorData};

fn logits(model: &ResNet, seed: u64, device: &Device) -> Tensor<2> {
    model.forward(normal(seed, [4, 3, 64, 64], device))
}

impl Subject for ResNet {
    fn outputs(&self, seed: u64, device: &Device) -> Vec<TensorData> {
        vec![owned(logits(self, seed, device))]
    }

    fn loss(&self, seed: u64, device: &Device) -> Tensor<1> {
        (logits(self, seed, device) - 1.0).square().mean()
    }
}

pub(crate) fn resnet_18_has_the_same_outputs() {
    // The stem, two in each of eight blocks, three shortcuts.
    let new = |device: &Device| ResNetContractConfig::resnet18(10).init(device);
    has_the_same_outputs("ResNet-18", new, 1 + 8 * 2 + 3);
}

pub(crate) fn a_bottleneck_resnet_is_the_same() {
    // ResNet-50's blocks, one in each of two stages, dilated instead of strided from the second on.
    let config = ResNetContractConfig::new(vec![1, 1], 10).with_bottleneck(true).with_stem_width(16);
    let config = config.with_output_stride(4);
    // Forward passes, input gradients without the stem's, weight gradients; there are no biases.
    let layers = 1 + 2 * (3 + 1);
    let expected = Expected { outputs: layers, step: 3 * layers - 1, gelu: false };
    is_the_same("bottleneck ResNet", |device| config.init(device), &expected);
}
