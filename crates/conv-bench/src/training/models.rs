//! Networks as anyone writes them: every layer is Burn's.
//!
//! ```text
//! ResNet18   [N, 3, H, W]      stem 7x7 stride 2, max pooling, 4 stages of 2 basic blocks, linear
//! R3d18      [N, 3, D, H, W]   stem 3x7x7 stride 1x2x2, 4 stages of 2 basic blocks, linear
//! UNet3d     [N, 1, D, H, W]   levels of 2 convolutions, stride 2 down, transposed convolution 2x2x2 up
//! ```

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig, Conv3d, Conv3dConfig, ConvTranspose3d, ConvTranspose3dConfig};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{
    BatchNorm, BatchNormConfig, InstanceNorm, InstanceNormConfig, Linear, LinearConfig, PaddingConfig2d,
    PaddingConfig3d,
};
use burn::tensor::activation::{leaky_relu, relu};
use burn::tensor::{Device, Tensor};

/// A network and the loss of one step.
pub(super) trait Network: Module {
    /// The rank of a batch.
    type Batch: Clone;

    /// A scalar that every parameter's gradient depends on.
    fn loss(&self, batch: Self::Batch) -> Tensor<1>;
}

/// Convolution, normalization and both again, around a shortcut. `$conv` makes a convolution of channels,
/// kernel size and stride.
macro_rules! resnet {
    ($block:ident, $network:ident, $conv:ty, $rank:literal, $layer:ident) => {
        #[derive(Module, Debug)]
        pub(super) struct $block {
            first: $conv,
            first_norm: BatchNorm,
            second: $conv,
            second_norm: BatchNorm,
            shortcut: Option<$conv>,
            shortcut_norm: Option<BatchNorm>,
        }

        impl $block {
            fn new([input, output]: [usize; 2], stride: usize, device: &Device) -> Self {
                let norm = || BatchNormConfig::new(output).init(device);
                let projects = input != output;
                Self {
                    first: $layer([input, output], 3, stride, device),
                    first_norm: norm(),
                    second: $layer([output, output], 3, 1, device),
                    second_norm: norm(),
                    shortcut: projects.then(|| $layer([input, output], 1, stride, device)),
                    shortcut_norm: projects.then(norm),
                }
            }

            fn forward(&self, x: Tensor<$rank>) -> Tensor<$rank> {
                let y = relu(self.first_norm.forward(self.first.forward(x.clone())));
                let y = self.second_norm.forward(self.second.forward(y));
                let shortcut = match (&self.shortcut, &self.shortcut_norm) {
                    (Some(conv), Some(norm)) => norm.forward(conv.forward(x)),
                    _ => x,
                };
                relu(y + shortcut)
            }
        }

        /// Four stages of two blocks: `width` channels, then twice as many in each.
        fn $network(width: usize, device: &Device) -> Vec<$block> {
            let widths = [width, width, 2 * width, 4 * width, 8 * width];
            let stages = widths.windows(2).enumerate();
            stages
                .flat_map(|(stage, pair)| {
                    let stride = if stage == 0 { 1 } else { 2 };
                    [
                        $block::new([pair[0], pair[1]], stride, device),
                        $block::new([pair[1], pair[1]], 1, device),
                    ]
                })
                .collect()
        }
    };
}

fn conv2d(channels: [usize; 2], kernel: usize, stride: usize, device: &Device) -> Conv2d {
    let half = kernel / 2;
    Conv2dConfig::new(channels, [kernel; 2])
        .with_stride([stride; 2])
        .with_padding(PaddingConfig2d::Explicit(half, half, half, half))
        .with_bias(false)
        .init(device)
}

fn conv3d(channels: [usize; 2], kernel: usize, stride: usize, device: &Device) -> Conv3d {
    let half = kernel / 2;
    Conv3dConfig::new(channels, [kernel; 3])
        .with_stride([stride; 3])
        .with_padding(PaddingConfig3d::Explicit(half, half, half))
        .with_bias(false)
        .init(device)
}

resnet!(Block2d, stages2d, Conv2d, 4, conv2d);
resnet!(Block3d, stages3d, Conv3d, 5, conv3d);

/// The mean over positions, then one number for each of ten classes.
fn head<const D: usize>(x: Tensor<D>, linear: &Linear) -> Tensor<1> {
    let [batch, channels] = [x.dims()[0], x.dims()[1]];
    let logits =
        linear.forward(x.reshape([batch as i32, channels as i32, -1]).mean_dim(2).squeeze_dim::<2>(2));
    logits.square().mean()
}

/// ResNet-18 of images.
#[derive(Module, Debug)]
pub(super) struct ResNet18 {
    stem: Conv2d,
    norm: BatchNorm,
    pool: MaxPool2d,
    stages: Vec<Block2d>,
    linear: Linear,
}

impl ResNet18 {
    pub(super) fn new(width: usize, device: &Device) -> Self {
        Self {
            stem: conv2d([3, width], 7, 2, device),
            norm: BatchNormConfig::new(width).init(device),
            pool: MaxPool2dConfig::new([3, 3])
                .with_strides([2, 2])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(),
            stages: stages2d(width, device),
            linear: LinearConfig::new(8 * width, 10).init(device),
        }
    }
}

impl Network for ResNet18 {
    type Batch = Tensor<4>;

    fn loss(&self, batch: Tensor<4>) -> Tensor<1> {
        let x = self.pool.forward(relu(self.norm.forward(self.stem.forward(batch))));
        head(self.stages.iter().fold(x, |x, block| block.forward(x)), &self.linear)
    }
}

/// The 3D ResNet-18 of clips.
#[derive(Module, Debug)]
pub(super) struct R3d18 {
    stem: Conv3d,
    norm: BatchNorm,
    stages: Vec<Block3d>,
    linear: Linear,
}

impl R3d18 {
    pub(super) fn new(width: usize, device: &Device) -> Self {
        Self {
            stem: Conv3dConfig::new([3, width], [3, 7, 7])
                .with_stride([1, 2, 2])
                .with_padding(PaddingConfig3d::Explicit(1, 3, 3))
                .with_bias(false)
                .init(device),
            norm: BatchNormConfig::new(width).init(device),
            stages: stages3d(width, device),
            linear: LinearConfig::new(8 * width, 10).init(device),
        }
    }
}

impl Network for R3d18 {
    type Batch = Tensor<5>;

    fn loss(&self, batch: Tensor<5>) -> Tensor<1> {
        let x = relu(self.norm.forward(self.stem.forward(batch)));
        head(self.stages.iter().fold(x, |x, block| block.forward(x)), &self.linear)
    }
}

/// Two convolutions with a normalization behind each; the first may stride.
#[derive(Module, Debug)]
pub(super) struct Level {
    first: Conv3d,
    first_norm: InstanceNorm,
    second: Conv3d,
    second_norm: InstanceNorm,
}

impl Level {
    fn new([input, output]: [usize; 2], stride: usize, device: &Device) -> Self {
        let norm = || InstanceNormConfig::new(output).init(device);
        Self {
            first: conv3d([input, output], 3, stride, device),
            first_norm: norm(),
            second: conv3d([output, output], 3, 1, device),
            second_norm: norm(),
        }
    }

    fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        let x = leaky_relu(self.first_norm.forward(self.first.forward(x)), 0.01);
        leaky_relu(self.second_norm.forward(self.second.forward(x)), 0.01)
    }
}

/// A U-Net of volumes as nnU-Net plans it: channels double at each of four levels.
#[derive(Module, Debug)]
pub(super) struct UNet3d {
    down: Vec<Level>,
    up: Vec<ConvTranspose3d>,
    merge: Vec<Level>,
    classes: Conv3d,
}

impl UNet3d {
    pub(super) fn new(width: usize, device: &Device) -> Self {
        let widths = [width, 2 * width, 4 * width, 8 * width];
        let mut down = vec![Level::new([1, width], 1, device)];
        down.extend(widths.windows(2).map(|pair| Level::new([pair[0], pair[1]], 2, device)));
        let upwards = || widths.windows(2).rev();
        let up = upwards().map(|pair| {
            ConvTranspose3dConfig::new([pair[1], pair[0]], [2; 3]).with_stride([2; 3]).init(device)
        });
        let merge = upwards().map(|pair| Level::new([2 * pair[0], pair[0]], 1, device));
        Self { down, up: up.collect(), merge: merge.collect(), classes: conv3d([width, 3], 1, 1, device) }
    }
}

impl Network for UNet3d {
    type Batch = Tensor<5>;

    fn loss(&self, batch: Tensor<5>) -> Tensor<1> {
        let mut skips = Vec::new();
        let mut x = batch;
        for level in &self.down {
            x = level.forward(x);
            skips.push(x.clone());
        }
        // The bottom has no skip connection.
        skips.pop();
        for (up, merge) in self.up.iter().zip(&self.merge) {
            let skip = skips.pop().expect("a level for each step up");
            x = merge.forward(Tensor::cat(vec![skip, up.forward(x)], 1));
        }
        self.classes.forward(x).square().mean()
    }
}
