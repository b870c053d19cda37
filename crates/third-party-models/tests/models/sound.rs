//! Whisper's encoder and the Conformer's convolution module (bunsen): strided, pointwise, depthwise conv1d.

use crate::compare::{Expected, Subject, is_the_same};
use crate::support::{normal, owned};
use bunsen::blocks::transformers::encoders::conformer::{ConformerConvolution, ConformerConvolutionConfig};
use bunsen::burner::module::ModuleInit;
use bunsen::kits::speech::whisper::blocks::{AudioEncoder, AudioEncoderConfig};
use burn::tensor::{Device, Tensor, TensorData};

/// Two spectra of 80 mel bands and 60 steps.
fn features(model: &AudioEncoder, seed: u64, device: &Device) -> Tensor<3> {
    model.forward(normal(seed, [2, 80, 60], device))
}

impl Subject for AudioEncoder {
    fn outputs(&self, seed: u64, device: &Device) -> Vec<TensorData> {
        vec![owned(features(self, seed, device))]
    }

    fn loss(&self, seed: u64, device: &Device) -> Tensor<1> {
        let features = features(self, seed, device);
        let others = normal(seed + 200, features.dims(), device);
        (features - others).square().mean()
    }
}

pub(crate) fn whisper_is_the_same() {
    // 80 mel bands, width 128, at most 100 steps, two transformer blocks.
    let config = AudioEncoderConfig::new(80, 128, 100, 2);
    // Two convolutions, the second one's input gradient, weight and bias gradients.
    let expected = Expected { outputs: 2, step: 2 + 1 + 2 + 2, gelu: true };
    is_the_same("Whisper's encoder", |device| config.init(device), &expected);
}

fn mixed(model: &ConformerConvolution, seed: u64, device: &Device) -> Tensor<3> {
    model.forward(normal(seed, [2, 50, 64], device), None)
}

impl Subject for ConformerConvolution {
    fn outputs(&self, seed: u64, device: &Device) -> Vec<TensorData> {
        vec![owned(mixed(self, seed, device))]
    }

    fn loss(&self, seed: u64, device: &Device) -> Tensor<1> {
        (mixed(self, seed, device) - 1.0).square().mean()
    }
}

pub(crate) fn a_conformer_is_the_same() {
    // FastConformer's: nine taps, no biases (a bias before batch normalization has no gradient but noise).
    let config = ConformerConvolutionConfig::new(64, 9).with_bias(false);
    // Pointwise, depthwise, pointwise; nobody asks for the input's gradient.
    let expected = Expected { outputs: 3, step: 3 + 2 + 3, gelu: false };
    is_the_same("the Conformer's convolutions", |device| config.init(device), &expected);
}
