//! The network: a small 3D ResNet for clips `[N, 3, D, H, W]`.
//!
//! ```text
//! stem     3 -> 16, 3x3x3, stride (1, 2, 2)      D    x H/2  x W/2
//! stage 1 16 -> 16, stride 1                     D    x H/2  x W/2
//! stage 2 16 -> 32, stride 2                     D/2  x H/4  x W/4
//! stage 3 32 -> 64, stride 2                     D/4  x H/8  x W/8
//! mean over D, H, W; linear to the classes
//! ```
//!
//! Each stage is one residual block of two 3x3x3 convolutions. The kernels span time as well as space, which
//! is what lets the network see motion. All of its convolutions come from `burn-conv-ops`.

use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Int, Tensor};
use burn::train::{ClassificationOutput, InferenceStep, TrainOutput, TrainStep};
use burn_conv_ops::nn::{Conv3d, Conv3dConfig};

use crate::loader::ClipBatch;

/// Channels of the stem and of the stages.
const CHANNELS: [usize; 3] = [16, 32, 64];

/// A 3D ResNet.
#[derive(Module, Debug)]
pub(crate) struct VideoNet {
    stem: ConvNorm,
    stages: Vec<Residual>,
    head: Linear,
    /// What a batch's loss counts in a step: gradients of several devices are added.
    #[module(skip)]
    share: f64,
}

impl VideoNet {
    /// A network with random weights for `classes` classes.
    pub(crate) fn new(classes: usize, device: &Device) -> Self {
        let stem = ConvNorm::new([3, CHANNELS[0]], 3, [1, 2, 2], device);
        let mut stages = vec![Residual::new([CHANNELS[0]; 2], 1, device)];
        stages.extend(CHANNELS.windows(2).map(|pair| Residual::new([pair[0], pair[1]], 2, device)));
        let head = LinearConfig::new(CHANNELS[CHANNELS.len() - 1], classes).init(device);
        Self { stem, stages, head, share: 1.0 }
    }

    /// For steps of `parts` batches, whose mean is trained on.
    pub(crate) fn with_parts(self, parts: usize) -> Self {
        Self { share: 1.0 / parts as f64, ..self }
    }

    /// Logits `[N, classes]` of clips `[N, 3, D, H, W]`.
    pub(crate) fn forward(&self, clips: Tensor<5>) -> Tensor<2> {
        let mut x = relu(self.stem.forward(clips));
        for stage in &self.stages {
            x = stage.forward(x);
        }
        let [n, c, d, h, w] = x.dims();
        let mean = x.reshape([n, c, d * h * w]).mean_dim(2).reshape([n, c]);
        self.head.forward(mean)
    }

    fn forward_loss(&self, batch: ClipBatch) -> ClassificationOutput {
        let logits = self.forward(batch.clips);
        let loss = CrossEntropyLossConfig::new()
            .init(&logits.device())
            .forward(logits.clone(), batch.labels.clone());
        ClassificationOutput::new(loss, logits, batch.labels)
    }
}

impl TrainStep for VideoNet {
    type Input = ClipBatch;
    type Output = ClassificationOutput;

    fn step(&self, batch: ClipBatch) -> TrainOutput<ClassificationOutput> {
        let output = self.forward_loss(batch);
        TrainOutput::new(self, output.loss.clone().mul_scalar(self.share).backward(), output)
    }
}

impl InferenceStep for VideoNet {
    type Input = ClipBatch;
    type Output = ClassificationOutput;

    fn step(&self, batch: ClipBatch) -> ClassificationOutput {
        self.forward_loss(batch)
    }
}

/// The predicted class of every row of `[N, classes]`.
pub(crate) fn predictions(logits: Tensor<2>) -> Tensor<1, Int> {
    logits.argmax(1).squeeze_dim(1)
}

/// `y = relu(body(x) + shortcut(x))`.
#[derive(Module, Debug)]
struct Residual {
    first: ConvNorm,
    second: ConvNorm,
    /// A 1x1x1 convolution where the block changes the shape.
    shortcut: Option<ConvNorm>,
}

impl Residual {
    fn new([c_in, c_out]: [usize; 2], stride: usize, device: &Device) -> Self {
        let changes = stride != 1 || c_in != c_out;
        Self {
            first: ConvNorm::new([c_in, c_out], 3, [stride; 3], device),
            second: ConvNorm::new([c_out, c_out], 3, [1; 3], device),
            shortcut: changes.then(|| ConvNorm::new([c_in, c_out], 1, [stride; 3], device)),
        }
    }

    fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        let body = self.second.forward(relu(self.first.forward(x.clone())));
        let shortcut = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x),
            None => x,
        };
        relu(body + shortcut)
    }
}

/// A convolution that keeps the extents (up to its stride), and a batch norm in place of its bias.
#[derive(Module, Debug)]
struct ConvNorm {
    conv: Conv3d,
    norm: BatchNorm,
}

impl ConvNorm {
    fn new(channels: [usize; 2], kernel: usize, stride: [usize; 3], device: &Device) -> Self {
        let pad = kernel / 2;
        let conv = Conv3dConfig::new(channels, [kernel; 3])
            .with_stride(stride)
            .with_padding([pad; 3])
            .with_bias(false)
            .init(device);
        Self { conv, norm: BatchNormConfig::new(channels[1]).init(device) }
    }

    fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        self.norm.forward(self.conv.forward(x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    #[test]
    fn logits_have_one_row_per_clip_for_every_clip_shape() {
        let device = Device::flex();
        let net = VideoNet::new(5, &device);
        for shape in [[2, 3, 8, 32, 32], [1, 3, 1, 8, 8], [3, 3, 5, 9, 9]] {
            let clips = Tensor::<5>::random(shape, Distribution::Default, &device);
            assert_eq!(net.forward(clips).dims(), [shape[0], 5]);
        }
    }

    #[test]
    fn a_few_steps_fit_two_clips() {
        use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
        let device = Device::flex().autodiff();
        device.seed(7);
        let mut net = VideoNet::new(2, &device);
        let mut optimizer: ModuleOptimizer = AdamWConfig::new().init();
        let clips = Tensor::<5>::random([2, 3, 4, 8, 8], Distribution::Default, &device);
        let batch = ClipBatch { clips, labels: Tensor::from_data([0, 1], &device) };
        let mut losses = Vec::new();
        for _ in 0..15 {
            let output = net.forward_loss(batch.clone());
            losses.push(output.loss.clone().into_scalar::<f32>());
            let gradients = GradientsParams::from_grads(output.loss.backward(), &net);
            net = optimizer.step(1e-2, net, gradients);
        }
        assert!(losses[14] < 0.2 * losses[0], "the loss does not fall: {losses:?}");
    }
}
