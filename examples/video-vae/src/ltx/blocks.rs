//! Residual blocks and upsampling.

use burn::module::{Initializer, Module, Param};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor};
use burn_conv_ops::nn::{Conv3d, Conv3dConfig};

use super::conv::Conv;
use crate::layers::{channels_to_space, frames_from, joined};
use crate::stream::{Slot, Stream};

/// The channels of every pixel, scaled to a mean square of 1; then SiLU.
pub(super) fn normed(x: Tensor<5>) -> Tensor<5> {
    let square = x.clone().square().mean_dim(1);
    silu(x / (square + 1e-8).sqrt())
}

/// `x + conv2(normed(conv1(normed(x))))`, the `x` in front through a layer norm and a pointwise convolution
/// where the channels change.
#[derive(Module, Debug)]
pub(super) struct ResidualBlock {
    conv1: Conv,
    conv2: Conv,
    norm3: Option<LayerNorm>,
    conv_shortcut: Option<Pointwise>,
}

impl ResidualBlock {
    pub(super) fn new([c_in, c_out]: [usize; 2], causal: bool, epsilon: f64, device: &Device) -> Self {
        let changes = c_in != c_out;
        Self {
            conv1: Conv::new([c_in, c_out], causal, device),
            conv2: Conv::new([c_out; 2], causal, device),
            norm3: changes.then(|| LayerNorm::new(c_in, epsilon, device)),
            conv_shortcut: changes.then(|| Pointwise::new([c_in, c_out], device)),
        }
    }

    pub(super) fn forward(&self, x: Option<Tensor<5>>, stream: &mut Stream) -> Option<Tensor<5>> {
        let h = self.conv1.forward(x.clone().map(normed), stream).map(normed);
        let x = match &self.norm3 {
            Some(norm) => x.map(|x| norm.forward(x)),
            None => x,
        };
        let x = match &self.conv_shortcut {
            Some(shortcut) => x.map(|x| shortcut.forward(x)),
            None => x,
        };
        if let (Some(h), Some(x)) = (&h, &x)
            && let Some(y) = self.conv2.forward_with_residual(h, x, stream)
        {
            // That of the sum below: layers find their slots by the order of the calls.
            stream.slot();
            return Some(y);
        }
        let h = self.conv2.forward(h, stream);
        sum(h, x, stream.slot())
    }
}

/// `h + x` of the frames of `h`, which lag behind those of `x`; what is left of `x` is kept.
fn sum(h: Option<Tensor<5>>, x: Option<Tensor<5>>, slot: &mut Slot) -> Option<Tensor<5>> {
    match (h, joined(slot.frames.take(), x)) {
        (Some(h), Some(x)) => {
            let frames = h.dims()[2];
            slot.frames = frames_from(x.clone(), frames);
            Some(h + x.narrow(2, 0, frames))
        }
        (_, x) => {
            slot.frames = x;
            None
        }
    }
}

/// Normalizes the channels of every pixel.
#[derive(Module, Debug)]
struct LayerNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
    epsilon: f64,
}

impl LayerNorm {
    fn new(channels: usize, epsilon: f64, device: &Device) -> Self {
        Self {
            weight: Initializer::Ones.init([channels], device),
            bias: Initializer::Zeros.init([channels], device),
            epsilon,
        }
    }

    fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        let channels = x.dims()[1];
        let x = x.clone() - x.mean_dim(1);
        let variance = x.clone().square().mean_dim(1);
        let each = |parameter: &Param<Tensor<1>>| parameter.val().reshape([1, channels, 1, 1, 1]);
        x / (variance + self.epsilon).sqrt() * each(&self.weight) + each(&self.bias)
    }
}

/// A convolution of one tap, which the published weights call `conv`.
#[derive(Module, Debug)]
struct Pointwise {
    conv: Conv3d,
}

impl Pointwise {
    fn new(channels: [usize; 2], device: &Device) -> Self {
        Self { conv: Conv3dConfig::new(channels, [1; 3]).init(device) }
    }

    fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        self.conv.forward(x)
    }
}

/// Residual blocks in a row.
#[derive(Module, Debug)]
pub(super) struct MidBlock {
    resnets: Vec<ResidualBlock>,
}

impl MidBlock {
    pub(super) fn new(channels: usize, blocks: usize, causal: bool, epsilon: f64, device: &Device) -> Self {
        let block = |_| ResidualBlock::new([channels; 2], causal, epsilon, device);
        Self { resnets: (0..blocks).map(block).collect() }
    }

    pub(super) fn forward(&self, x: Option<Tensor<5>>, stream: &mut Stream) -> Option<Tensor<5>> {
        self.resnets.iter().fold(x, |x, resnet| resnet.forward(x, stream))
    }
}

/// Twice the frames and the pixels, made of channels; the clip's first frame stays one.
#[derive(Module, Debug)]
pub(super) struct Upsampler {
    conv: Conv,
    /// Whether the input's channels are added as pixels.
    residual: bool,
    /// By how much the channels are divided.
    factor: usize,
}

impl Upsampler {
    pub(super) fn new(channels: usize, causal: bool, residual: bool, factor: usize, device: &Device) -> Self {
        Self { conv: Conv::new([channels, channels * 8 / factor], causal, device), residual, factor }
    }

    pub(super) fn forward(&self, x: Option<Tensor<5>>, stream: &mut Stream) -> Option<Tensor<5>> {
        let h = spread(self.conv.forward(x.clone(), stream), stream.slot());
        if !self.residual {
            return h;
        }
        let repeats = 8 / self.factor;
        let x = spread(x, stream.slot()).map(|x| x.repeat_dim(1, repeats));
        sum(h, x, stream.slot())
    }
}

/// Eight channels as two frames of 2x2 times the pixels, without the first frame of the clip.
fn spread(x: Option<Tensor<5>>, slot: &mut Slot) -> Option<Tensor<5>> {
    let x = channels_to_space(x?, [2, 2]);
    frames_from(x, usize::from(slot.begins()))
}
