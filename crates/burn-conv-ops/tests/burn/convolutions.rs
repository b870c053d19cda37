//! conv2d, conv1d and transposed convolutions against PyTorch (golden/convolutions.safetensors), as functions
//! and as modules that share records with Burn's.

use crate::golden::{self, Tensors};
use crate::support::{assert_close, bits, check, devices, normal, upload, values};
use burn::nn::conv as of_burn;
use burn::nn::{PaddingConfig1d, PaddingConfig2d};
use burn::serde::Deserialize;
use burn::store::ModuleSnapshot;
use burn::tensor::{DType, Device, Tensor};
use burn_conv_ops::{
    Conv1dOptions, Conv2dOptions, ConvTranspose1dOptions, ConvTranspose2dOptions, ConvTranspose3dOptions,
    conv_transpose2d, conv_transpose3d, conv1d, conv2d, nn, try_conv_transpose1d, try_conv_transpose2d,
    try_conv_transpose3d, try_conv1d, try_conv2d,
};
use conv_kernels::FloatType;
use conv_kernels::tolerance::Expected;
use safetensors::SafeTensors;

/// A problem in the metadata of the golden file; golden/README.md has the schema.
#[derive(Deserialize)]
#[serde(crate = "burn::serde")]
struct Golden {
    op: String,
    stride: Vec<usize>,
    padding: Vec<usize>,
    #[serde(default)]
    output_padding: Vec<usize>,
    dilation: Vec<usize>,
    groups: usize,
    bias: bool,
}

fn array<const D: usize>(sizes: &[usize]) -> [usize; D] {
    sizes.try_into().expect("one size for each axis")
}

#[test]
fn convolutions_and_their_gradients_are_pytorchs() {
    let (bytes, problems) = golden::read::<Golden>("convolutions.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    for (on, device) in devices() {
        // Each op has every option in a few of its problems.
        for (problem, golden) in problems.iter().enumerate().step_by(golden::step(on)) {
            let all = Tensors { file: &file, problem, device: device.clone().autodiff() };
            let what = format!("{} {problem} on {on}", golden.op);
            let groups = golden.groups;
            match golden.op.as_str() {
                "conv2d" => {
                    let options = Conv2dOptions::new()
                        .with_stride(array(&golden.stride))
                        .with_padding(array::<2>(&golden.padding))
                        .with_dilation(array(&golden.dilation))
                        .with_groups(groups);
                    all.check_op::<4>(&what, golden.bias, |x, w, b| conv2d(x, w, b, options));
                }
                "conv1d" => {
                    let options = Conv1dOptions::new()
                        .with_stride(array(&golden.stride))
                        .with_padding(array::<1>(&golden.padding))
                        .with_dilation(array(&golden.dilation))
                        .with_groups(groups);
                    all.check_op::<3>(&what, golden.bias, |x, w, b| conv1d(x, w, b, options));
                }
                _ => {
                    let options = ConvTranspose3dOptions::new()
                        .with_stride(array(&golden.stride))
                        .with_padding(array(&golden.padding))
                        .with_padding_out(array(&golden.output_padding))
                        .with_dilation(array(&golden.dilation))
                        .with_groups(groups);
                    all.check_op::<5>(&what, golden.bias, |x, w, b| conv_transpose3d(x, w, b, options));
                }
            }
        }
    }
}

/// A module with the parameters of `other`: through a record, as a file would hold them.
fn with_record<A: ModuleSnapshot, B: ModuleSnapshot>(module: A, other: B) -> A {
    let mut module = module;
    let snapshots = other.collect(None, None, false);
    let result = module.apply(snapshots, None, None, false);
    assert!(result.missing.is_empty() && result.unused.is_empty() && result.errors.is_empty(), "{result:?}");
    module
}

/// y, dx, dw and db of an op on inputs that f16 holds, or on their magnitudes; shapes of x, weight and bias.
fn results<const D: usize>(
    op: &impl Fn(Tensor<D>, Tensor<D>, Option<Tensor<1>>) -> Tensor<D>,
    (x, weight, bias): ([usize; D], [usize; D], usize),
    (device, dtype, absolute): (&Device, DType, bool),
) -> Vec<Vec<f64>> {
    fn map<const D: usize>(tensor: Tensor<D>, dtype: DType, absolute: bool) -> Tensor<D> {
        let tensor = tensor.cast(DType::F16).cast(dtype);
        if absolute { tensor.abs() } else { tensor }
    }
    let x = map(normal(1, x, device), dtype, absolute).require_grad();
    let weight = map(normal(2, weight, device), dtype, absolute).require_grad();
    let bias = map(normal(3, [bias], device), dtype, absolute).require_grad();
    let y = op(x.clone(), weight.clone(), Some(bias.clone()));
    let dy = map(normal(4, y.dims(), device), dtype, absolute);
    let gradients = (y.clone() * dy).sum().backward();
    let [dx, dw] = [x, weight].map(|input| input.grad(&gradients).expect("a gradient"));
    let db = bias.grad(&gradients).expect("a gradient");
    assert_eq!([y.dtype(), dx.dtype(), dw.dtype(), db.dtype()], [dtype; 4]);
    vec![values(y), values(dx), values(dw), values(db)]
}

/// An op in f16 against itself in f32, within the bound of both sums and one rounding.
fn check_halves<const D: usize>(
    what: &str,
    shapes: ([usize; D], [usize; D], usize),
    device: &Device,
    op: impl Fn(Tensor<D>, Tensor<D>, Option<Tensor<1>>) -> Tensor<D>,
) {
    let got = results(&op, shapes, (device, DType::F16, false));
    let want = results(&op, shapes, (device, DType::F32, false));
    let magnitudes = results(&op, shapes, (device, DType::F32, true));
    let terms = [want[2].len(), want[0].len()];
    for (index, name) in ["y", "dx", "dw", "db"].into_iter().enumerate() {
        let expected = Expected {
            values: &want[index],
            magnitudes: &magnitudes[index],
            terms: 2 * (terms[index / 2] + 9),
            dtype: FloatType::F16,
            slope: 1.0,
        };
        check(&format!("{what} {name}"), &expected, &got[index]);
    }
}

#[test]
fn halves_are_rounded_once() {
    for (on, device) in devices() {
        let device = device.autodiff();
        let options = Conv2dOptions::new().with_stride([2, 1]).with_padding([1, 1]).with_groups(2);
        let shapes = ([2, 4, 7, 6], [6, 2, 3, 3], 6);
        check_halves(&format!("conv2d on {on}"), shapes, &device, |x, w, b| conv2d(x, w, b, options));
        let options = Conv1dOptions::new().with_padding(4).with_dilation(2);
        let shapes = ([2, 5, 19], [6, 5, 5], 6);
        check_halves(&format!("conv1d on {on}"), shapes, &device, |x, w, b| conv1d(x, w, b, options));
    }
}

fn close<const D: usize>(what: &str, got: Tensor<D>, want: Tensor<D>) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    assert_close(what, &values(got), &values(want), 1e-5);
}

#[test]
fn modules_load_burns_records_and_compute_the_same() {
    for (on, device) in devices() {
        let theirs = of_burn::Conv2dConfig::new([4, 6], [3, 2])
            .with_stride([2, 1])
            .with_groups(2)
            .with_padding(PaddingConfig2d::Explicit(1, 0, 2, 1))
            .init(&device);
        let ours = nn::Conv2dConfig::new([4, 6], [3, 2])
            .with_stride([2, 1])
            .with_groups(2)
            .with_padding(PaddingConfig2d::Explicit(1, 0, 2, 1))
            .init(&device);
        let ours = with_record(ours, theirs.clone());
        let x = normal(1, [2, 4, 7, 6], &device);
        close(&format!("conv2d on {on}"), ours.forward(x.clone()), theirs.forward(x));

        let theirs = of_burn::Conv1dConfig::new(4, 6, 3).with_padding(PaddingConfig1d::Same).init(&device);
        let ours = nn::Conv1dConfig::new(4, 6, 3).with_padding(PaddingConfig1d::Same).init(&device);
        let ours = with_record(ours, theirs.clone());
        let x = normal(2, [2, 4, 9], &device);
        close(&format!("conv1d on {on}"), ours.forward(x.clone()), theirs.forward(x));

        let theirs = of_burn::ConvTranspose3dConfig::new([4, 6], [2, 2, 2]).with_stride([2; 3]).init(&device);
        let ours = nn::ConvTranspose3dConfig::new([4, 6], [2, 2, 2]).with_stride(2).init(&device);
        let ours = with_record(ours, theirs.clone());
        let x = normal(3, [1, 4, 2, 3, 3], &device);
        close(&format!("conv_transpose3d on {on}"), ours.forward(x.clone()), theirs.forward(x));

        let theirs = of_burn::ConvTranspose2dConfig::new([4, 6], [3, 3])
            .with_stride([2, 2])
            .with_padding([1, 1])
            .with_padding_out([1, 1])
            .init(&device);
        let ours = nn::ConvTranspose2dConfig::new([4, 6], [3, 3])
            .with_stride(2)
            .with_padding(1)
            .with_padding_out(1)
            .init(&device);
        let ours = with_record(ours, theirs.clone());
        let x = normal(4, [2, 4, 5, 4], &device);
        close(&format!("conv_transpose2d on {on}"), ours.forward(x.clone()), theirs.forward(x));

        // One source for both.
        macro_rules! up {
            ($from:ident) => {
                $from::ConvTranspose1dConfig::new([4, 6], 4)
                    .with_stride(3)
                    .with_padding(1)
                    .with_padding_out(2)
                    .with_dilation(2)
                    .with_groups(2)
                    .init(&device)
            };
        }
        let (theirs, ours) = (up!(of_burn), up!(nn));
        let of_theirs = with_record(ours.clone(), theirs.clone());
        let x = normal(5, [2, 4, 7], &device);
        close(&format!("conv_transpose1d on {on}"), of_theirs.forward(x.clone()), theirs.forward(x.clone()));
        let of_ours = with_record(theirs, ours.clone());
        close(&format!("conv_transpose1d back on {on}"), of_ours.forward(x.clone()), ours.forward(x));
        let of_burn = (of_ours.stride, of_ours.kernel_size, of_ours.padding, of_ours.padding_out);
        assert_eq!((ours.stride, ours.kernel_size, ours.padding, ours.padding_out), of_burn);
    }
}

#[test]
fn views_give_the_bits_of_contiguous_tensors() {
    for (_, device) in devices() {
        let weight = normal(6, [5, 3, 3, 3], &device);
        let x = normal(5, [2, 6, 7, 3], &device);
        let view = x.clone().permute([0, 3, 1, 2]);
        let copy = upload(
            &values(view.clone()).iter().map(|value| *value as f32).collect::<Vec<_>>(),
            view.dims(),
            &device,
        );
        let options = Conv2dOptions::new().with_padding(1);
        assert_eq!(
            bits(conv2d(view, weight.clone(), None, options)),
            bits(conv2d(copy, weight, None, options))
        );
    }
}

#[test]
fn bad_calls_are_refused_in_one_sentence() {
    let device = Device::flex();
    let zeros = |shape: [usize; 4]| Tensor::<4>::zeros(shape, &device);
    let line = |shape: [usize; 3]| Tensor::<3>::zeros(shape, &device);
    let volume = |shape: [usize; 5]| Tensor::<5>::zeros(shape, &device);
    let error = try_conv2d(zeros([1, 4, 5, 5]), zeros([6, 3, 3, 3]), None, Conv2dOptions::new());
    assert_eq!(
        error.expect_err("channels").to_string(),
        "conv2d (as conv3d of depth 1): the weight expects 3 channels per group, the input has 4 channels in 1 \
         groups (4 per group)"
    );
    let error = try_conv1d(line([1, 4, 5]), line([6, 4, 7]), None, Conv1dOptions::new());
    let error = error.expect_err("the window is longer than x").to_string();
    assert!(error.starts_with("conv1d (as conv3d of depth and height 1): "), "{error}");
    let refused = |x, weight, options| {
        try_conv_transpose3d(volume(x), volume(weight), None, options).expect_err("a refusal").to_string()
    };
    let new = ConvTranspose3dOptions::new;
    assert_eq!(
        refused([1, 4, 2, 2, 2], [3, 4, 2, 2, 2], new()),
        "conv_transpose3d: x has 4 channels, the weight [3, 4, 2, 2, 2] is for 3"
    );
    assert_eq!(
        refused([1, 4, 2, 2, 2], [4, 4, 2, 2, 2], new().with_groups(3)),
        "conv_transpose3d: 4 input channels cannot be split into 3 groups"
    );
    assert_eq!(
        refused([1, 4, 2, 2, 2], [4, 4, 2, 2, 2], new().with_stride(2).with_padding_out([0, 2, 0])),
        "conv_transpose3d: padding_out [0, 2, 0] must be below the larger of stride [2, 2, 2] and dilation \
         [1, 1, 1] on each axis"
    );
    assert_eq!(
        refused([1, 4, 2, 2, 2], [4, 4, 2, 2, 2], new().with_padding([0, 0, 2])),
        "conv_transpose3d: padding [0, 0, 2] leaves nothing of a result that has 3 elements along axis 2 and \
         padding_out 0"
    );
    assert_eq!(
        refused([1, 4, 2, 0, 2], [4, 4, 2, 2, 2], new()),
        "conv_transpose3d: stride [1, 1, 1], dilation [1, 1, 1], the kernel [2, 2, 2] and x's extents [2, 0, 2] \
         must not have a 0"
    );
    let bias = Some(Tensor::<1>::zeros([5], &device));
    let error =
        try_conv_transpose2d(zeros([1, 4, 2, 2]), zeros([4, 3, 2, 2]), bias, ConvTranspose2dOptions::new());
    assert_eq!(
        error.expect_err("the bias").to_string(),
        "conv_transpose2d (as conv_transpose3d of depth 1): the bias has 5 elements, there are 3 output channels"
    );
    let error = try_conv_transpose1d(line([1, 4, 2]), line([3, 4, 2]), None, ConvTranspose1dOptions::new());
    assert_eq!(
        error.expect_err("channels").to_string(),
        "conv_transpose1d (as conv_transpose3d of depth and height 1): x has 4 channels, the weight [3, 4, 1, 1, 2] is \
         for 3"
    );
    let y = conv_transpose2d(
        zeros([1, 4, 3, 3]),
        zeros([4, 3, 2, 2]),
        None,
        burn::tensor::ops::ConvTransposeOptions::new([2, 2], [0, 0], [1, 0], [1, 1], 1),
    );
    assert_eq!(y.dims(), [1, 3, 7, 6]);
}
