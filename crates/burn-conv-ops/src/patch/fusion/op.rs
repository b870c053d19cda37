//! Which of Burn's recorded operations are convolutions, and what each asks for, whatever its rank.

use crate::conv::last_axes;
use burn::backend::ir::ModuleOperationIr as Op;
use burn::backend::ir::{OperationIr, TensorIr};
use conv_kernels::conv3d::Window;

/// What an operation computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    InputGradient,
    WeightGradient,
    BiasGradient,
    Transposed,
}

/// A pass and the number of its spatial axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) rank: usize,
    pub(super) pass: Pass,
}

impl Kind {
    pub(super) const COUNT: usize = 15;

    /// Burn's names, in the order of `index`.
    pub(super) const NAMES: [&str; Self::COUNT] = [
        "conv1d",
        "conv1d_x_backward",
        "conv1d_weight_backward",
        "conv1d_bias_backward",
        "conv_transpose1d",
        "conv2d",
        "conv2d_x_backward",
        "conv2d_weight_backward",
        "conv2d_bias_backward",
        "conv_transpose2d",
        "conv3d",
        "conv3d_x_backward",
        "conv3d_weight_backward",
        "conv3d_bias_backward",
        "conv_transpose3d",
    ];

    pub(super) fn index(self) -> usize {
        (self.rank - 1) * 5 + self.pass as usize
    }

    pub(super) fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }

    pub(super) fn is_transposed(self) -> bool {
        self.pass == Pass::Transposed
    }
}

/// A recorded convolution. Its tensors' ids and shapes are relative to the block; window, dtypes and statuses
/// are real.
pub(super) struct Call<'a> {
    pub(super) kind: Kind,
    /// x; of the gradients of x and the bias dy.
    pub(super) first: &'a TensorIr,
    /// The weight; of its gradient dy, of the bias' none.
    pub(super) second: Option<&'a TensorIr>,
    pub(super) bias: Option<&'a TensorIr>,
    pub(super) out: &'a TensorIr,
    /// With axes of one element before the operation's own.
    pub(super) window: Window,
}

impl<'a> Call<'a> {
    /// The call that `operation` is, where it is one.
    pub(super) fn of(operation: &'a OperationIr) -> Option<Self> {
        let OperationIr::Module(op) = operation else { return None };
        // Three kinds of structs for each rank, alike in all but their types.
        macro_rules! forward {
            ($rank:literal, $pass:ident, $o:ident) => {
                (
                    $rank,
                    Pass::$pass,
                    [Some(&$o.x), Some(&$o.weight), $o.bias.as_ref()],
                    &$o.out,
                    window!($rank, $o),
                )
            };
        }
        macro_rules! gradient {
            ($rank:literal, $pass:ident, $o:ident, $first:ident, $second:ident) => {
                ($rank, Pass::$pass, [Some(&$o.$first), Some(&$o.$second), None], &$o.out, window!($rank, $o))
            };
        }
        macro_rules! window {
            ($rank:literal, $o:ident) => {
                window(
                    $o.options.stride,
                    $o.options.padding.map(Sides::sides),
                    $o.options.dilation,
                    $o.options.groups,
                )
            };
        }
        macro_rules! bias {
            ($rank:literal, $o:ident) => {
                ($rank, Pass::BiasGradient, [Some(&$o.output_grad), None, None], &$o.out, Window::default())
            };
        }
        let (rank, pass, [first, second, bias], out, window) = match op {
            Op::Conv1d(o) => forward!(1, Forward, o),
            Op::Conv2d(o) => forward!(2, Forward, o),
            Op::Conv3d(o) => forward!(3, Forward, o),
            Op::ConvTranspose1d(o) => forward!(1, Transposed, o),
            Op::ConvTranspose2d(o) => forward!(2, Transposed, o),
            Op::ConvTranspose3d(o) => forward!(3, Transposed, o),
            Op::Conv1dXBackward(o) => gradient!(1, InputGradient, o, output_grad, weight),
            Op::Conv2dXBackward(o) => gradient!(2, InputGradient, o, output_grad, weight),
            Op::Conv3dXBackward(o) => gradient!(3, InputGradient, o, output_grad, weight),
            Op::Conv1dWeightBackward(o) => gradient!(1, WeightGradient, o, x, output_grad),
            Op::Conv2dWeightBackward(o) => gradient!(2, WeightGradient, o, x, output_grad),
            Op::Conv3dWeightBackward(o) => gradient!(3, WeightGradient, o, x, output_grad),
            Op::Conv1dBiasBackward(o) => bias!(1, o),
            Op::Conv2dBiasBackward(o) => bias!(2, o),
            Op::Conv3dBiasBackward(o) => bias!(3, o),
            _ => return None,
        };
        Some(Self { kind: Kind { rank, pass }, first: first?, second, bias, out, window })
    }
}

/// Padding as Burn's options hold it: pairs, or one size for both sides.
trait Sides {
    fn sides(self) -> (usize, usize);
}

impl Sides for usize {
    fn sides(self) -> (usize, usize) {
        (self, self)
    }
}

impl Sides for (usize, usize) {
    fn sides(self) -> (usize, usize) {
        self
    }
}

fn window<const D: usize>(
    stride: [usize; D],
    padding: [(usize, usize); D],
    dilation: [usize; D],
    groups: usize,
) -> Window {
    Window {
        stride: last_axes(stride, 1),
        padding: last_axes(padding, (0, 0)),
        dilation: last_axes(dilation, 1),
        groups,
        ..Window::default()
    }
}
