//! conv3d from Burn's convolutions.
//!
//! Burn's own take equal padding with zeros only, so other padding is written out before the call and folded
//! or cut back from the gradient after it.

use crate::backend::OptionalTensor;
use crate::backend::portable::{activate, narrow, round, widen};
use burn::backend::ops::{ConvOptions, ConvTransposeOptions, PadMode};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{FloatDType, Shape};
use conv_kernels::conv3d::{Conv3dProblem, PaddingMode};

/// See [`ConvOps::conv3d_forward`](crate::backend::ConvOps::conv3d_forward).
pub(crate) fn forward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    added: [OptionalTensor<B>; 2],
    problem: &Conv3dProblem,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    let [bias, residual] = added.map(OptionalTensor::into_option);
    let pre = pre_activation::<B>(x, weight, bias, problem);
    round::<B>(after_activation::<B>(pre, residual, problem), dtype)
}

/// See [`ConvOps::conv3d_forward_with_pre`](crate::backend::ConvOps::conv3d_forward_with_pre).
pub(crate) fn forward_with_pre<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    added: [OptionalTensor<B>; 2],
    problem: &Conv3dProblem,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = x.dtype();
    let [bias, residual] = added.map(OptionalTensor::into_option);
    let pre = pre_activation::<B>(x, weight, bias, problem);
    (round::<B>(after_activation::<B>(pre.clone(), residual, problem), dtype), pre)
}

/// y in fp32 from the value before the activation.
fn after_activation<B: Backend>(
    pre: FloatTensor<B>,
    residual: Option<FloatTensor<B>>,
    problem: &Conv3dProblem,
) -> FloatTensor<B> {
    let value = activate::<B>(pre, problem.window.activation);
    match residual {
        Some(residual) => B::float_add(value, widen::<B>(residual)),
        None => value,
    }
}

/// The value before the activation, in fp32.
fn pre_activation<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    problem: &Conv3dProblem,
) -> FloatTensor<B> {
    let device = x.device();
    let bias = bias.map(widen::<B>);
    if is_empty(problem) {
        let zeros = B::float_zeros(Shape::from(problem.y_shape()), &device, FloatDType::F32);
        return match bias {
            Some(bias) => {
                let bias = B::float_reshape(bias, Shape::from([1, problem.out_channels, 1, 1, 1]));
                B::float_add(zeros, bias)
            }
            None => zeros,
        };
    }
    let padding = Padding::of(problem);
    let x = padding.write_out::<B>(widen::<B>(x));
    B::conv3d(x, widen::<B>(weight), bias, padding.options(problem))
}

/// What the ops on transformed filters come to here.
pub(crate) fn no_filters() -> ! {
    panic!("conv3d: this backend has no Winograd plan, its filters cannot be prepared")
}

/// See [`ConvOps::conv3d_input_gradient`](crate::backend::ConvOps::conv3d_input_gradient).
pub(crate) fn input_gradient<B: Backend>(
    dy: FloatTensor<B>,
    weight: FloatTensor<B>,
    problem: &Conv3dProblem,
) -> FloatTensor<B> {
    let dtype = dy.dtype();
    round::<B>(input_gradient_sum::<B>(dy, weight, problem), dtype)
}

/// The input gradient in fp32.
fn input_gradient_sum<B: Backend>(
    dy: FloatTensor<B>,
    weight: FloatTensor<B>,
    problem: &Conv3dProblem,
) -> FloatTensor<B> {
    if is_empty(problem) {
        return B::float_zeros(Shape::from(problem.x_shape()), &dy.device(), FloatDType::F32);
    }
    let padding = Padding::of(problem);
    let options = padding.options(problem);
    // Positions behind the last window belong to no output, but to the input.
    let padding_out = [0, 1, 2].map(|axis| {
        let axis = problem.axis(axis);
        (axis.input + axis.padding.0 + axis.padding.1 - axis.span()) % axis.stride
    });
    let symmetric = options.padding.map(|(begin, _)| begin);
    let options =
        ConvTransposeOptions::new(options.stride, symmetric, padding_out, options.dilation, options.groups);
    let dx = B::conv_transpose3d(widen::<B>(dy), widen::<B>(weight), None, options);
    padding.fold_back::<B>(dx, problem)
}

/// See [`ConvOps::conv3d_transposed`](crate::backend::ConvOps::conv3d_transposed).
pub(crate) fn transposed<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    problem: &Conv3dProblem,
) -> FloatTensor<B> {
    transposed_with_pre::<B>(x, weight, bias, problem).0
}

/// See [`ConvOps::conv3d_transposed_with_pre`](crate::backend::ConvOps::conv3d_transposed_with_pre).
pub(crate) fn transposed_with_pre<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    problem: &Conv3dProblem,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = x.dtype();
    let mut pre = input_gradient_sum::<B>(x, weight, problem);
    if let Some(bias) = bias {
        let bias = B::float_reshape(widen::<B>(bias), Shape::from([1, problem.channels, 1, 1, 1]));
        pre = B::float_add(pre, bias);
    }
    (round::<B>(activate::<B>(pre.clone(), problem.window.activation), dtype), pre)
}

/// See [`ConvOps::conv3d_weight_gradient`](crate::backend::ConvOps::conv3d_weight_gradient).
pub(crate) fn weight_gradient<B: Backend>(
    x: FloatTensor<B>,
    dy: FloatTensor<B>,
    problem: &Conv3dProblem,
) -> FloatTensor<B> {
    let (dtype, device) = (x.dtype(), x.device());
    let shape = Shape::from(problem.weight_shape());
    if is_empty(problem) {
        return B::float_zeros(shape, &device, dtype.into());
    }
    let padding = Padding::of(problem);
    let x = padding.write_out::<B>(widen::<B>(x));
    // Burn reads the shape of the weight and none of its elements.
    let weight = B::float_zeros(shape, &device, FloatDType::F32);
    let dw = B::conv3d_weight_backward(x, weight, widen::<B>(dy), padding.options(problem));
    round::<B>(dw, dtype)
}

/// See [`ConvOps::conv3d_bias_gradient`](crate::backend::ConvOps::conv3d_bias_gradient).
pub(crate) fn bias_gradient<B: Backend>(dy: FloatTensor<B>, problem: &Conv3dProblem) -> FloatTensor<B> {
    let dtype = dy.dtype();
    let shape = Shape::from([problem.out_channels]);
    if problem.y_shape().contains(&0) {
        return B::float_zeros(shape, &dy.device(), dtype.into());
    }
    // In the order of its shape: where that cannot be seen from the strides of axes of size one, the CPU
    // backend's sum reads outside the tensor. It reshapes by copying what is in another order.
    let flat = B::float_reshape(widen::<B>(dy), Shape::from([problem.y_shape().iter().product::<usize>()]));
    let dy = B::float_reshape(flat, Shape::from(problem.y_shape()));
    let db = B::float_sum_dims(dy, &[0, 2, 3, 4]);
    round::<B>(B::float_reshape(db, shape), dtype)
}

/// Whether no product contributes to any result.
fn is_empty(problem: &Conv3dProblem) -> bool {
    [problem.x_shape(), problem.weight_shape(), problem.y_shape()].iter().any(|shape| shape.contains(&0))
}

/// Who pads: Burn's convolution, or this module before it.
enum Padding {
    Burns([usize; 3]),
    WrittenOut([(usize, usize); 3], [PaddingMode; 3]),
}

impl Padding {
    fn of(problem: &Conv3dProblem) -> Self {
        let (padding, modes) = (problem.window.padding, problem.window.padding_mode);
        if modes == [PaddingMode::Zeros; 3] && padding.iter().all(|(begin, end)| begin == end) {
            return Self::Burns(padding.map(|(begin, _)| begin));
        }
        Self::WrittenOut(padding, modes)
    }

    /// What Burn's convolution is told.
    fn options(&self, problem: &Conv3dProblem) -> ConvOptions<3> {
        let window = problem.window;
        let padding = match self {
            Self::Burns(padding) => *padding,
            Self::WrittenOut(..) => [0; 3],
        };
        ConvOptions::new(window.stride, padding, window.dilation, window.groups)
    }

    fn write_out<B: Backend>(&self, mut x: FloatTensor<B>) -> FloatTensor<B> {
        let Self::WrittenOut(padding, modes) = self else {
            return x;
        };
        for (spatial, &(begin, end)) in padding.iter().enumerate() {
            let axis = spatial + 2;
            let pad = |x, mode| pad::<B>(x, axis, (begin, end), mode);
            x = match modes[spatial] {
                _ if (begin, end) == (0, 0) => x,
                PaddingMode::Zeros => pad(x, PadMode::Constant(0.0)),
                PaddingMode::Replicate => pad(x, PadMode::Edge),
                PaddingMode::Reflect => pad(x, PadMode::Reflect),
                PaddingMode::Circular => {
                    let size = x.shape()[axis];
                    let front = (begin > 0).then(|| narrow::<B>(x.clone(), axis, size - begin, begin));
                    let back = (end > 0).then(|| narrow::<B>(x.clone(), axis, 0, end));
                    B::float_cat([front, Some(x), back].into_iter().flatten().collect(), axis)
                }
                other => panic!("{other:?} padding of Burn's own ops"),
            };
        }
        x
    }

    /// The gradient of x from the gradient of what `write_out` made of it.
    fn fold_back<B: Backend>(&self, mut dx: FloatTensor<B>, problem: &Conv3dProblem) -> FloatTensor<B> {
        let Self::WrittenOut(padding, modes) = self else {
            return dx;
        };
        for (spatial, &(begin, end)) in padding.iter().enumerate() {
            let (axis, size) = (spatial + 2, problem.input[spatial]);
            if (begin, end) == (0, 0) {
                continue;
            }
            dx = match modes[spatial] {
                PaddingMode::Zeros => narrow::<B>(dx, axis, begin, size),
                PaddingMode::Replicate => fold_edges::<B>(dx, axis, size, (begin, end)),
                mode @ (PaddingMode::Reflect | PaddingMode::Circular) => {
                    let mirrored = mode == PaddingMode::Reflect;
                    // Where the copies before and behind belong: from the second element on and up to the
                    // last but one, or at the opposite ends.
                    let front = if mirrored { 1 } else { size - begin };
                    let back = if mirrored { size - 1 - end } else { 0 };
                    let copies = [(0, begin, front), (begin + size, end, back)];
                    let mut sum = narrow::<B>(dx.clone(), axis, begin, size);
                    for (start, length, at) in copies.into_iter().filter(|(_, length, _)| *length > 0) {
                        let mut copy = narrow::<B>(dx.clone(), axis, start, length);
                        if mirrored {
                            copy = B::float_flip(copy, &[axis]);
                        }
                        let zeros = PadMode::Constant(0.0);
                        sum = B::float_add(sum, pad::<B>(copy, axis, (at, size - at - length), zeros));
                    }
                    sum
                }
                other => panic!("the gradient of {other:?} padding of Burn's own ops"),
            };
        }
        dx
    }
}

/// Pads one axis.
fn pad<B: Backend>(x: FloatTensor<B>, axis: usize, sides: (usize, usize), mode: PadMode) -> FloatTensor<B> {
    let mut padding = [(0, 0); 5];
    padding[axis] = sides;
    B::float_pad(x, &padding, mode)
}

/// The gradient of an axis whose edges are repeated: they also get what their copies got, at least one slice
/// on each side, the edge itself.
fn fold_edges<B: Backend>(
    dx: FloatTensor<B>,
    axis: usize,
    size: usize,
    (begin, end): (usize, usize),
) -> FloatTensor<B> {
    let sum = |start, length| B::float_sum_dim(narrow::<B>(dx.clone(), axis, start, length), axis);
    if size == 1 {
        return sum(0, begin + 1 + end);
    }
    let (first, last) = (sum(0, begin + 1), sum(begin + size - 1, end + 1));
    let inner = (size > 2).then(|| narrow::<B>(dx.clone(), axis, begin + 1, size - 2));
    B::float_cat([Some(first), inner, Some(last)].into_iter().flatten().collect(), axis)
}
