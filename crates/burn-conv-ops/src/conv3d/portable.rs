//! conv3d from Burn's convolutions.
//!
//! Burn's own take equal padding with zeros only, so other padding is written out before the call and folded
//! or cut back from the gradient after it.

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
    bias: Option<FloatTensor<B>>,
    problem: &Conv3dProblem,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    let pre = pre_activation::<B>(x, weight, bias, problem);
    round::<B>(activate::<B>(pre, problem.window.activation), dtype)
}

/// See [`ConvOps::conv3d_forward_with_pre`](crate::backend::ConvOps::conv3d_forward_with_pre).
pub(crate) fn forward_with_pre<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    problem: &Conv3dProblem,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = x.dtype();
    let pre = pre_activation::<B>(x, weight, bias, problem);
    (round::<B>(activate::<B>(pre.clone(), problem.window.activation), dtype), pre)
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
    if is_empty(problem) {
        return B::float_zeros(Shape::from(problem.x_shape()), &dy.device(), dtype.into());
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
    round::<B>(padding.fold_back::<B>(dx, problem), dtype)
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
    WrittenOut([(usize, usize); 3], PadMode),
}

impl Padding {
    fn of(problem: &Conv3dProblem) -> Self {
        let padding = problem.window.padding;
        let mode = match problem.window.padding_mode {
            PaddingMode::Zeros if padding.iter().all(|(begin, end)| begin == end) => {
                return Self::Burns(padding.map(|(begin, _)| begin));
            }
            PaddingMode::Zeros => PadMode::Constant(0.0),
            _ => PadMode::Edge,
        };
        Self::WrittenOut(padding, mode)
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

    fn write_out<B: Backend>(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        match self {
            Self::Burns(_) => x,
            Self::WrittenOut([depth, height, width], mode) => {
                B::float_pad(x, &[(0, 0), (0, 0), *depth, *height, *width], *mode)
            }
        }
    }

    /// The gradient of x from the gradient of what `write_out` made of it.
    fn fold_back<B: Backend>(&self, mut dx: FloatTensor<B>, problem: &Conv3dProblem) -> FloatTensor<B> {
        let Self::WrittenOut(padding, mode) = self else {
            return dx;
        };
        for (spatial, &(begin, end)) in padding.iter().enumerate() {
            let (axis, size) = (spatial + 2, problem.input[spatial]);
            if (begin, end) == (0, 0) {
                continue;
            }
            if !matches!(mode, PadMode::Edge) {
                dx = narrow::<B>(dx, axis, begin, size);
                continue;
            }
            // The edges also get what their copies got: at least one slice on each side, the edge itself.
            let sum = |start, length| B::float_sum_dim(narrow::<B>(dx.clone(), axis, start, length), axis);
            dx = if size == 1 {
                sum(0, begin + 1 + end)
            } else {
                let (first, last) = (sum(0, begin + 1), sum(begin + size - 1, end + 1));
                let inner = (size > 2).then(|| narrow::<B>(dx.clone(), axis, begin + 1, size - 2));
                B::float_cat([Some(first), inner, Some(last)].into_iter().flatten().collect(), axis)
            };
        }
        dx
    }
}
