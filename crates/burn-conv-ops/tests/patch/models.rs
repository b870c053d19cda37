//! Networks as anyone writes them: all layers are Burn's. Small, since each kernel is compiled for the CPU.

use burn::module::Module;
use burn::nn::conv::{
    Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Conv3d, Conv3dConfig, ConvTranspose2d, ConvTranspose2dConfig,
    ConvTranspose3d, ConvTranspose3dConfig,
};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{
    BatchNorm, BatchNormConfig, InstanceNorm, InstanceNormConfig, PaddingConfig1d, PaddingConfig2d,
    PaddingConfig3d,
};
use burn::tensor::activation::{leaky_relu, relu, silu};
use burn::tensor::{Device, Tensor};

/// A network and the loss of one step.
pub(crate) trait Network: Module {
    /// Tracked gradients flow from it.
    fn loss(&self, seed: u64, device: &Device) -> Tensor<1>;
}

/// Two convolutions with an activation between them.
#[derive(Module, Debug)]
pub(crate) struct Pair {
    pub(crate) first: Conv3d,
    second: Conv3d,
}

impl Pair {
    pub(crate) fn new(device: &Device) -> Self {
        let conv =
            |channels| Conv3dConfig::new(channels, [3; 3]).with_padding(PaddingConfig3d::Same).init(device);
        Self { first: conv([2, 4]), second: conv([4, 2]) }
    }

    pub(crate) fn forward(&self, seed: u64, device: &Device) -> Tensor<5> {
        let x = crate::support::normal(seed, [1, 2, 3, 5, 6], device);
        self.second.forward(relu(self.first.forward(x)))
    }
}

impl Network for Pair {
    fn loss(&self, seed: u64, device: &Device) -> Tensor<1> {
        self.forward(seed, device).powi_scalar(2).mean()
    }
}

/// A stem and a residual block that strides; clips.
#[derive(Module, Debug)]
pub(crate) struct ResNet3d {
    stem: Conv3d,
    first: Conv3d,
    norm: BatchNorm,
    second: Conv3d,
    shortcut: Conv3d,
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
            norm: BatchNormConfig::new(8).init(device),
            second: Conv3dConfig::new([8, 8], [3; 3]).with_padding(same).with_bias(false).init(device),
            shortcut: Conv3dConfig::new([4, 8], [1, 2, 2]).with_stride([1, 2, 2]).init(device),
        }
    }
}

impl Network for ResNet3d {
    fn loss(&self, seed: u64, device: &Device) -> Tensor<1> {
        let clips = crate::support::normal(seed, [2, 3, 3, 8, 8], device);
        let x = relu(self.stem.forward(clips));
        let y = relu(self.norm.forward(self.first.forward(x.clone())));
        (self.second.forward(y) + self.shortcut.forward(x)).powi_scalar(2).mean()
    }
}

/// One level down and up again with a skip connection, at the bottom a residual block; images.
#[derive(Module, Debug)]
pub(crate) struct ResidualUNet2d {
    down: Conv2d,
    pool: MaxPool2d,
    grouped: Conv2d,
    up: ConvTranspose2d,
    merge: Conv2d,
}

impl ResidualUNet2d {
    pub(crate) fn new(device: &Device) -> Self {
        // The odd one of an even kernel's padding goes behind.
        let same = PaddingConfig2d::Same;
        Self {
            down: Conv2dConfig::new([3, 4], [4, 4]).with_padding(same.clone()).init(device),
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            grouped: Conv2dConfig::new([4, 4], [3, 3])
                .with_groups(2)
                .with_padding(same.clone())
                .with_bias(false)
                .init(device),
            up: ConvTranspose2dConfig::new([4, 4], [2, 2]).with_stride([2, 2]).init(device),
            merge: Conv2dConfig::new([8, 2], [3, 3]).with_padding(same).init(device),
        }
    }
}

impl Network for ResidualUNet2d {
    fn loss(&self, seed: u64, device: &Device) -> Tensor<1> {
        let images = crate::support::normal(seed, [2, 3, 8, 12], device);
        let skip = silu(self.down.forward(images));
        let x = self.pool.forward(skip.clone());
        let bottom = relu(self.grouped.forward(x.clone()) + x);
        let merged = self.merge.forward(Tensor::cat(vec![skip, self.up.forward(bottom)], 1));
        merged.powi_scalar(2).mean()
    }
}

/// Two convolutions with a normalization behind each; the first may stride.
#[derive(Module, Debug)]
pub(crate) struct Level {
    first: Conv3d,
    first_norm: InstanceNorm,
    second: Conv3d,
    second_norm: InstanceNorm,
}

impl Level {
    fn new(input: usize, output: usize, stride: usize, device: &Device) -> Self {
        let conv = |channels, stride| {
            Conv3dConfig::new(channels, [3; 3])
                .with_stride([stride; 3])
                .with_padding(PaddingConfig3d::Explicit(1, 1, 1))
                .with_bias(false)
                .init(device)
        };
        let norm = || InstanceNormConfig::new(output).init(device);
        Self {
            first: conv([input, output], stride),
            first_norm: norm(),
            second: conv([output, output], 1),
            second_norm: norm(),
        }
    }

    fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        let x = leaky_relu(self.first_norm.forward(self.first.forward(x)), 0.01);
        leaky_relu(self.second_norm.forward(self.second.forward(x)), 0.01)
    }
}

/// Two levels down and up again with skip connections, volumes: as nnU-Net plans them. Each skip connection
/// is read by operations far apart, in the gradients too.
#[derive(Module, Debug)]
pub(crate) struct UNet3d {
    top: Level,
    middle: Level,
    bottom: Level,
    up: ConvTranspose3d,
    last_up: ConvTranspose3d,
    merge: Level,
    last_merge: Level,
    classes: Conv3d,
}

impl UNet3d {
    pub(crate) fn new(device: &Device) -> Self {
        let level = |input, output, stride| Level::new(input, output, stride, device);
        let up = |channels| ConvTranspose3dConfig::new(channels, [2; 3]).with_stride([2; 3]).init(device);
        Self {
            top: level(1, 4, 1),
            middle: level(4, 4, 2),
            bottom: level(4, 4, 2),
            up: up([4, 4]),
            last_up: up([4, 4]),
            merge: level(8, 4, 1),
            last_merge: level(8, 4, 1),
            classes: Conv3dConfig::new([4, 3], [1; 3]).with_bias(false).init(device),
        }
    }
}

impl Network for UNet3d {
    fn loss(&self, seed: u64, device: &Device) -> Tensor<1> {
        let top = self.top.forward(crate::support::normal(seed, [1, 1, 8, 8, 8], device));
        let middle = self.middle.forward(top.clone());
        let bottom = self.bottom.forward(middle.clone());
        let middle = self.merge.forward(Tensor::cat(vec![middle, self.up.forward(bottom)], 1));
        let top = self.last_merge.forward(Tensor::cat(vec![top, self.last_up.forward(middle)], 1));
        self.classes.forward(top).powi_scalar(2).mean()
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
