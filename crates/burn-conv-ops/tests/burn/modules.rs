//! The modules: configurations, shapes, padding, a training step on both devices.

use crate::support::{assert_close, devices, gpu, normal, values};
use burn::config::Config;
use burn::module::Module;
use burn::nn::{Initializer, Linear, LinearConfig, PaddingConfig3d};
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Tensor};
use burn_conv_ops::nn::{
    CausalConv1d, CausalConv1dConfig, Conv3d, Conv3dConfig, Conv3dPadding, Rope2d, Rope2dConfig,
};
use burn_conv_ops::{Activation, Algorithm, Conv1dLayout, PaddingMode, RopeLayout, WinogradTile};

#[test]
fn parameters_have_pytorchs_shapes_and_start_as_burns() {
    let device = Device::flex();
    let conv = Conv3dConfig::new([6, 8], [3, 2, 1]).with_groups(2).init(&device);
    assert_eq!(conv.weight.dims(), [8, 3, 3, 2, 1]);
    assert_eq!(conv.bias.as_ref().map(|bias| bias.dims()), Some([8]));
    assert_eq!(conv.num_params(), 8 * 3 * 6 + 8);
    let bound = 1.0 / f64::sqrt(3.0 * 6.0);
    let weight = values(conv.weight.val());
    assert!(
        weight.iter().all(|value| value.abs() <= bound)
            && weight.iter().any(|value| value.abs() > bound / 2.0)
    );

    let conv = CausalConv1dConfig::new(5, 4).init(&device);
    assert_eq!(conv.weight.dims(), [5, 1, 4]);
    assert_eq!(conv.empty_state(3).dims(), [3, 5, 3]);
    assert!(CausalConv1dConfig::new(5, 4).with_bias(false).init(&device).bias.is_none());
    assert_eq!(Rope2dConfig::new().init().num_params(), 0);
    let zeros = Conv3dConfig::new([2, 2], [1; 3]).with_initializer(Initializer::Zeros).init(&device);
    assert!(values(zeros.weight.val()).iter().all(|value| *value == 0.0));
}

#[test]
fn configurations_survive_a_file() {
    let conv = Conv3dConfig::new([4, 6], [3, 3, 2])
        .with_stride([1, 2, 2])
        .with_padding([(2, 0), (1, 1), (0, 1)])
        .with_dilation([1, 1, 2])
        .with_groups(2)
        .with_bias(false)
        .with_padding_mode(PaddingMode::Replicate)
        .with_activation(Activation::Silu)
        .with_algorithm(Algorithm::Winograd(WinogradTile::F4x4));
    let read = Conv3dConfig::load_binary(conv.to_string().as_bytes()).expect("its own text");
    assert_eq!(read.to_string(), conv.to_string());
    assert_eq!((read.activation, read.algorithm), (conv.activation, conv.algorithm));
    assert_eq!((read.padding, read.padding_mode), (conv.padding, [PaddingMode::Replicate; 3]));

    let conv = CausalConv1dConfig::new(8, 4).with_activation(Activation::Relu).with_layout(Conv1dLayout::Btc);
    let read = CausalConv1dConfig::load_binary(conv.to_string().as_bytes()).expect("its own text");
    assert_eq!((read.activation, read.layout, read.width), (Activation::Relu, Conv1dLayout::Btc, 4));
    let rope = Rope2dConfig::new().with_base(50.0).with_f0(0.5).with_layout(RopeLayout::Bnhd);
    let read = Rope2dConfig::load_binary(rope.to_string().as_bytes()).expect("its own text");
    assert_eq!((read.base, read.f0, read.layout), (50.0, 0.5, RopeLayout::Bnhd));
}

#[test]
fn same_padding_keeps_the_extents() {
    let device = Device::flex();
    for (kernel, stride, dilation) in [([3, 4, 2], [1, 1, 1], [1, 1, 1]), ([3, 5, 2], [2, 3, 2], [2, 1, 3])] {
        let conv = Conv3dConfig::new([2, 3], kernel)
            .with_stride(stride)
            .with_dilation(dilation)
            .with_padding(PaddingConfig3d::Same)
            .init(&device);
        for input in [[7usize, 8, 9], [4, 6, 5]] {
            let [d, h, w] = input;
            let y = conv.forward(normal(1, [1, 2, d, h, w], &device));
            let [od, oh, ow] = [0, 1, 2].map(|axis| input[axis].div_ceil(stride[axis]));
            assert_eq!(y.dims(), [1, 3, od, oh, ow], "{kernel:?} {stride:?} {dilation:?} {input:?}");
        }
    }
    assert_eq!(Conv3dPadding::from(PaddingConfig3d::Valid), Conv3dPadding::from([0; 3]));
    assert_eq!(Conv3dPadding::from(PaddingConfig3d::Explicit(1, 2, 3)), Conv3dPadding::from([1, 2, 3]));
}

#[test]
fn conv3d_replaces_burns_module() {
    for (on, device) in devices() {
        let ours = Conv3dConfig::new([4, 6], [3, 3, 2]).with_groups(2).with_padding([1, 1, 1]).init(&device);
        let mut burns = burn::nn::conv::Conv3dConfig::new([4, 6], [3, 3, 2])
            .with_groups(2)
            .with_padding(PaddingConfig3d::Explicit(1, 1, 1))
            .init(&device);
        burns.weight = ours.weight.clone();
        burns.bias = ours.bias.clone();
        let x = normal(1, [2, 4, 4, 5, 6], &device);
        assert_close(on, &values(ours.forward(x.clone())), &values(burns.forward(x)), 1e-5);
    }
}

#[test]
fn modules_print_what_they_are() {
    let device = Device::flex();
    let conv = Conv3dConfig::new([4, 6], [3, 3, 2]).with_activation(Activation::Silu).init(&device);
    let text = conv.to_string();
    for part in ["ch_in: 4", "ch_out: 6", "[3, 3, 2]", "Silu"] {
        assert!(text.contains(part), "`{part}` is missing in {text}");
    }
    let text = CausalConv1dConfig::new(5, 4).init(&device).to_string();
    assert!(text.contains("channels: 5") && text.contains("width: 4"), "{text}");
}

#[test]
fn a_grid_lists_rows_then_columns() {
    for (on, device) in devices() {
        let grid = Rope2d::grid(2, 2, 3, &device);
        assert_eq!(grid.dims(), [2, 6, 2], "{on}");
        let pairs = values(grid.float());
        assert_eq!(pairs[..12], [0.0, 0.0, 0.0, 1.0, 0.0, 2.0, 1.0, 0.0, 1.0, 1.0, 1.0, 2.0], "{on}");
        assert_eq!(pairs[12..], pairs[..12], "{on}");
    }
}

/// A model with every op: clips to tokens, tokens mixed in time, one number out.
#[derive(Module, Debug)]
struct Tiny {
    stem: Conv3d,
    mix: Conv3d,
    time: CausalConv1d,
    rope: Rope2d,
    head: Linear,
}

impl Tiny {
    fn new(device: &Device) -> Self {
        Self {
            stem: Conv3dConfig::new([2, 8], [3; 3])
                .with_stride([1, 2, 2])
                .with_padding([1; 3])
                .with_activation(Activation::Silu)
                .init(device),
            mix: Conv3dConfig::new([8, 8], [3; 3])
                .with_padding([(2, 0), (1, 1), (1, 1)])
                .with_padding_mode(PaddingMode::Replicate)
                .with_activation(Activation::Relu)
                .init(device),
            time: CausalConv1dConfig::new(8, 4).with_activation(Activation::Silu).init(device),
            rope: Rope2dConfig::new().init(),
            head: LinearConfig::new(8, 1).init(device),
        }
    }

    /// `[N, 1]` of clips `[N, 2, 4, 8, 8]`.
    fn forward(&self, clips: Tensor<5>) -> Tensor<2> {
        let device = clips.device();
        let [n, ..] = clips.dims();
        let features = self.mix.forward(self.stem.forward(clips));
        // [N, 8, 4, 4, 4] to tokens [N, heads, frames * rows * columns, 4].
        let tokens = features.reshape([n, 2, 4, 64]).swap_dims(2, 3);
        let turned = self.rope.forward(tokens, Rope2d::grid(n, 8, 8, &device));
        let sequence = turned.swap_dims(2, 3).reshape([n, 8, 64]);
        self.head.forward(self.time.forward(sequence).mean_dim(2).reshape([n, 8]))
    }
}

/// Parameters in a fixed order.
fn parameters(model: &Tiny) -> Vec<f64> {
    let bias =
        |bias: &Option<burn::module::Param<Tensor<1>>>| values(bias.as_ref().expect("there is a bias").val());
    [
        values(model.stem.weight.val()),
        bias(&model.stem.bias),
        values(model.mix.weight.val()),
        bias(&model.mix.bias),
        values(model.time.weight.val()),
        bias(&model.time.bias),
        values(model.head.weight.val()),
        bias(&model.head.bias),
    ]
    .concat()
}

/// Losses of four steps, and the parameters after them.
fn train(mut model: Tiny, device: &Device) -> (Vec<f64>, Vec<f64>) {
    let clips = normal(1, [4, 2, 4, 8, 8], device);
    let targets = normal(2, [4, 1], device);
    let mut optimizer: ModuleOptimizer = SgdConfig::new().init();
    let mut losses = Vec::new();
    for _ in 0..4 {
        let loss = (model.forward(clips.clone()) - targets.clone()).powf_scalar(2.0).mean();
        losses.push(values(loss.clone())[0]);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(0.5, model, gradients);
    }
    let parameters = parameters(&model);
    (losses, parameters)
}

#[test]
fn training_on_the_gpu_follows_training_on_the_cpu() {
    for checkpointing in [false, true] {
        let tracking = |device: Device| {
            let device = device.autodiff();
            if checkpointing { device.gradient_checkpointing() } else { device }
        };
        let (cpu, gpu) = (tracking(Device::flex()), tracking(gpu()));
        cpu.seed(11);
        let model = Tiny::new(&cpu);
        let before = parameters(&model);
        let (want_losses, want) = train(model.clone(), &cpu);
        let (losses, got) = train(model.fork(&gpu), &gpu);
        assert!(want_losses[3] < 0.97 * want_losses[0], "the loss does not fall: {want_losses:?}");
        assert_close("losses", &losses, &want_losses, 1e-4);
        let change = |after: &[f64]| -> Vec<f64> { after.iter().zip(&before).map(|(a, b)| a - b).collect() };
        assert_close("what four steps changed", &change(&got), &change(&want), 1e-3);
    }
}
