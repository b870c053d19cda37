//! Layers that treat every frame alike, and the reorderings between pixels, frames and channels.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Tensor};
use burn_conv_ops::{Conv3dOptions, conv3d, conv3d_with_residual};

/// Scales the channels of every pixel to a mean square of 1, then each channel by `gamma`, which has `D` axes
/// in the published weights: the channels, then ones.
#[derive(Module, Debug)]
pub(crate) struct RmsNorm<const D: usize> {
    gamma: Param<Tensor<D>>,
}

impl<const D: usize> RmsNorm<D> {
    pub(crate) fn new(channels: usize, device: &Device) -> Self {
        let mut shape = [1; D];
        shape[0] = channels;
        Self { gamma: Initializer::Ones.init(shape, device) }
    }

    pub(crate) fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        let channels = x.dims()[1];
        let length = x.clone().square().sum_dim(1).clamp_min(1e-24).sqrt();
        let gamma = self.gamma.val().reshape([1, channels, 1, 1, 1]);
        x / length * (gamma * (channels as f64).sqrt())
    }
}

/// A 2D convolution of every frame, with the parameters of `torch.nn.Conv2d`.
#[derive(Module, Debug)]
pub(crate) struct FrameConv {
    weight: Param<Tensor<4>>,
    bias: Param<Tensor<1>>,
    stride: usize,
    /// Zeros before and behind rows and columns.
    before: usize,
    behind: usize,
}

impl FrameConv {
    /// A convolution that keeps the frame's size.
    pub(crate) fn same(channels: [usize; 2], kernel: usize, device: &Device) -> Self {
        Self::new(channels, kernel, 1, [kernel / 2; 2], device)
    }

    /// A 3x3 convolution of stride 2 with one row and one column of zeros behind the frame.
    pub(crate) fn halving(channels: usize, device: &Device) -> Self {
        Self::new([channels; 2], 3, 2, [0, 1], device)
    }

    fn new(
        [c_in, c_out]: [usize; 2],
        kernel: usize,
        stride: usize,
        [before, behind]: [usize; 2],
        device: &Device,
    ) -> Self {
        let init = Initializer::KaimingUniform { gain: 1.0 / 3f64.sqrt(), fan_out_only: false };
        let (fan_in, fan_out) = (Some(c_in * kernel * kernel), Some(c_out * kernel * kernel));
        Self {
            weight: init.init_with([c_out, c_in, kernel, kernel], fan_in, fan_out, device),
            bias: init.init_with([c_out], fan_in, fan_out, device),
            stride,
            before,
            behind,
        }
    }

    pub(crate) fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        conv3d(x, self.weight.val().unsqueeze_dim(2), Some(self.bias.val()), self.options())
    }

    /// [`forward`](Self::forward) plus a tensor of its result's shape.
    pub(crate) fn forward_with_residual(&self, x: Tensor<5>, residual: Tensor<5>) -> Tensor<5> {
        let (weight, bias) = (self.weight.val().unsqueeze_dim(2), self.bias.val());
        conv3d_with_residual(x, weight, Some(bias), residual, self.options())
    }

    fn options(&self) -> Conv3dOptions {
        let plane = (self.before, self.behind);
        Conv3dOptions::new().with_stride([1, self.stride, self.stride]).with_padding([(0, 0), plane, plane])
    }
}

/// Every pixel as a square of four.
pub(crate) fn doubled(x: Tensor<5>) -> Tensor<5> {
    let [n, c, t, h, w] = x.dims();
    x.reshape([n, c, t, h, 1, w, 1]).expand([n, c, t, h, 2, w, 2]).reshape([n, c, t, 2 * h, 2 * w])
}

/// Squares of `patch` x `patch` pixels as channels.
pub(crate) fn to_patches(x: Tensor<5>, patch: usize) -> Tensor<5> {
    let [n, c, t, h, w] = x.dims();
    x.reshape([n, c, t, h / patch, patch, w / patch, patch]).permute([0, 1, 6, 4, 2, 3, 5]).reshape([
        n,
        c * patch * patch,
        t,
        h / patch,
        w / patch,
    ])
}

/// What [`to_patches`] made channels, as pixels again.
pub(crate) fn from_patches(x: Tensor<5>, patch: usize) -> Tensor<5> {
    let [n, c, t, h, w] = x.dims();
    let channels = c / (patch * patch);
    x.reshape([n, channels, patch, patch, t, h, w]).permute([0, 1, 4, 5, 3, 6, 2]).reshape([
        n,
        channels,
        t,
        h * patch,
        w * patch,
    ])
}

/// `ft * fs * fs` channels as `ft` frames of `fs` x `fs` times the pixels.
pub(crate) fn channels_to_space(x: Tensor<5>, [ft, fs]: [usize; 2]) -> Tensor<5> {
    let [n, c, t, h, w] = x.dims();
    let channels = c / (ft * fs * fs);
    x.reshape([n, channels, ft, fs, fs, t, h, w]).permute([0, 1, 5, 2, 6, 3, 7, 4]).reshape([
        n,
        channels,
        t * ft,
        h * fs,
        w * fs,
    ])
}

/// Blocks of `ft` frames of `fs` x `fs` pixels as channels, of which each group in a row is averaged to one
/// of `channels`. Zeros precede a number of frames that `ft` does not divide.
pub(crate) fn averaged(x: Tensor<5>, channels: usize, [ft, fs]: [usize; 2]) -> Tensor<5> {
    let [n, c, t, h, w] = x.dims();
    let missing = t.next_multiple_of(ft) - t;
    let x = if missing == 0 {
        x
    } else {
        Tensor::cat(vec![Tensor::zeros([n, c, missing, h, w], (&x.device(), x.dtype())), x], 2)
    };
    let [t, h, w] = [t.div_ceil(ft), h / fs, w / fs];
    let blocks = x.reshape([n, c, t, ft, h, fs, w, fs]).permute([0, 1, 3, 5, 7, 2, 4, 6]);
    let group = c * ft * fs * fs / channels;
    blocks.reshape([n, channels, group, t, h, w]).mean_dim(2).reshape([n, channels, t, h, w])
}

/// The opposite of [`averaged`]: every channel's values repeated in blocks of frames and pixels.
pub(crate) fn duplicated(x: Tensor<5>, channels: usize, [ft, fs]: [usize; 2]) -> Tensor<5> {
    let [n, c, t, h, w] = x.dims();
    let repeats = channels * ft * fs * fs / c;
    let repeated = x.reshape([n, c, 1, t, h, w]).expand([n, c, repeats, t, h, w]);
    channels_to_space(repeated.reshape([n, c * repeats, t, h, w]), [ft, fs])
}

/// The frames from `first` on; none of them is an empty tensor.
pub(crate) fn frames_from(x: Tensor<5>, first: usize) -> Option<Tensor<5>> {
    let frames = x.dims()[2];
    match first {
        0 => Some(x),
        _ if first >= frames => None,
        _ => Some(x.narrow(2, first, frames - first)),
    }
}

/// Frames behind one another.
pub(crate) fn joined(first: Option<Tensor<5>>, second: Option<Tensor<5>>) -> Option<Tensor<5>> {
    match (first, second) {
        (Some(first), Some(second)) => Some(Tensor::cat(vec![first, second], 2)),
        (first, second) => first.or(second),
    }
}
