//! Networks as anyone writes them: all layers are Burn's.

use burn::module::Module;
use burn::nn::conv::{
    Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Conv3d, Conv3dConfig, ConvTranspose2d, ConvTranspose2dConfig,
};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{
    BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig1d, PaddingConfig2d, PaddingConfig3d,
};
use burn::tensor::activation::{relu, silu};
use burn::tensor::{Device, Tensor};

/// A network and the loss of one step.
pub(crate) trait Network: Module {
    /// Tracked gradients flow from it.
    fn loss(&self, seed: u64, device: &Device) -> Tensor<1>;
}

/// A stem, a residual block that strides, a linear layer; clips.
#[derive(Module, Debug)]
pub(crate) struct ResNet3d {
    stem: Conv3d,
    first: Conv3d,
    first_norm: BatchNorm,
    second: Conv3d,
    second_norm: BatchNorm,
    shortcut: Conv3d,
    head: Linear,
}

impl ResNet3d {
    pub(crate) fn new(device: &Device) -> Self {
        let same = PaddingConfig3d::Same;
        let one = PaddingConfig3d::Explicit(1, 1, 1);
        Self {
            stem: Conv3dConfig::new([3, 4], [1, 3, 3]).with_padding(same.clone()).init(device),
            first: Conv3dConfig::new([4, 8], [3; 3])
                .with_stride([1, 2, 2])
                .with_padding(one)
                .with_bias(false)
                .init(device),
            first_norm: BatchNormConfig::new(8).init(device),
            second: Conv3dConfig::new([8, 8], [3; 3]).with_padding(same).with_bias(false).init(device),
            second_norm: BatchNormConfig::new(8).init(device),
            shortcut: Conv3dConfig::new([4, 8], [1, 2, 2]).with_stride([1, 2, 2]).init(device),
            head: LinearConfig::new(8, 3).init(device),
        }
    }
}

impl Network for ResNet3d {
    fn loss(&self, seed: u64, device: &Device) -> Tensor<1> {
        let clips = crate::support::normal(seed, [2, 3, 3, 8, 8], device);
        let x = relu(self.stem.forward(clips));
        let y = relu(self.first_norm.forward(self.first.forward(x.clone())));
        let y = self.second_norm.forward(self.second.forward(y)) + self.shortcut.forward(x);
        let [n, c, d, h, w] = y.dims();
        let mean = relu(y).reshape([n, c, d * h * w]).mean_dim(2).reshape([n, c]);
        self.head.forward(mean).powi_scalar(2).mean()
    }
}

/// The same in 2D, with pooling and a grouped convolution.
#[derive(Module, Debug)]
pub(crate) struct ResNet2d {
    stem: Conv2d,
    pool: MaxPool2d,
    first: Conv2d,
    first_norm: BatchNorm,
    grouped: Conv2d,
    second_norm: BatchNorm,
    head: Linear,
}

impl ResNet2d {
    pub(crate) fn new(device: &Device) -> Self {
        // The odd one of an even kernel's padding goes behind.
        let same = PaddingConfig2d::Same;
        Self {
            stem: Conv2dConfig::new([3, 8], [4, 4]).with_padding(same.clone()).init(device),
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            first: Conv2dConfig::new([8, 8], [3, 3]).with_padding(same.clone()).with_bias(false).init(device),
            first_norm: BatchNormConfig::new(8).init(device),
            grouped: Conv2dConfig::new([8, 8], [3, 3])
                .with_groups(2)
                .with_padding(same)
                .with_bias(false)
                .init(device),
            second_norm: BatchNormConfig::new(8).init(device),
            head: LinearConfig::new(8, 3).init(device),
        }
    }
}

impl Network for ResNet2d {
    fn loss(&self, seed: u64, device: &Device) -> Tensor<1> {
        let images = crate::support::normal(seed, [2, 3, 10, 12], device);
        let x = self.pool.forward(relu(self.stem.forward(images)));
        let y = relu(self.first_norm.forward(self.first.forward(x.clone())));
        let y = relu(self.second_norm.forward(self.grouped.forward(y)) + x);
        let [n, c, h, w] = y.dims();
        let mean = y.reshape([n, c, h * w]).mean_dim(2).reshape([n, c]);
        self.head.forward(mean).powi_scalar(2).mean()
    }
}

/// One level down and up again, with a skip connection.
#[derive(Module, Debug)]
pub(crate) struct UNet {
    down: Conv2d,
    down_norm: BatchNorm,
    pool: MaxPool2d,
    bottom: Conv2d,
    up: ConvTranspose2d,
    merge: Conv2d,
    head: Conv2d,
}

impl UNet {
    pub(crate) fn new(device: &Device) -> Self {
        let same = PaddingConfig2d::Same;
        let conv = |channels| Conv2dConfig::new(channels, [3, 3]).with_padding(same.clone());
        Self {
            down: conv([2, 4]).with_bias(false).init(device),
            down_norm: BatchNormConfig::new(4).init(device),
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            bottom: conv([4, 8]).init(device),
            up: ConvTranspose2dConfig::new([8, 4], [2, 2]).with_stride([2, 2]).init(device),
            merge: conv([8, 4]).init(device),
            head: Conv2dConfig::new([4, 1], [1, 1]).init(device),
        }
    }
}

impl Network for UNet {
    fn loss(&self, seed: u64, device: &Device) -> Tensor<1> {
        let images = crate::support::normal(seed, [2, 2, 8, 12], device);
        let skip = silu(self.down_norm.forward(self.down.forward(images)));
        let bottom = relu(self.bottom.forward(self.pool.forward(skip.clone())));
        let up = self.up.forward(bottom);
        let merged = relu(self.merge.forward(Tensor::cat(vec![skip, up], 1)));
        self.head.forward(merged).powi_scalar(2).mean()
    }
}

/// Dilated and strided convolutions over time.
#[derive(Module, Debug)]
pub(crate) struct Sequence {
    first: Conv1d,
    second: Conv1d,
}

impl Sequence {
    pub(crate) fn new(device: &Device) -> Self {
        Self {
            first: Conv1dConfig::new(3, 6, 3)
                .with_dilation(2)
                .with_padding(PaddingConfig1d::Explicit(2, 2))
                .init(device),
            second: Conv1dConfig::new(6, 4, 4).with_stride(3).init(device),
        }
    }
}

impl Network for Sequence {
    fn loss(&self, seed: u64, device: &Device) -> Tensor<1> {
        let x = crate::support::normal(seed, [2, 3, 20], device);
        self.second.forward(silu(self.first.forward(x))).powi_scalar(2).mean()
    }
}
