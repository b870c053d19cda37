//! The weight gradient of a transposed convolution, which Burn records as something else.
//!
//! Burn composes it: it exchanges batch and channels of dy and x, convolves dy with x as the filter, and
//! exchanges them back in the result. No forward kernel is made for a filter of whole frames, so the call
//! runs as the weight gradient that it is. With the recorded convolution's letters,
//!
//! ```text
//! y[n, o, t] = sum over c, i of x[n, c, t * stride + i * dilation - padding] * w[o, c, i]
//! ```
//!
//! is the weight gradient dw[o, n, t] of a convolution with the source x[c <- n, n <- c], dy = w, the two
//! exchanged as well, whose windows move by `dilation` and whose taps are `stride` apart.

use super::{dims, view};
use crate::backend::Conv3dCall;
use crate::conv3d::cube::{self, Decided};
use crate::patch::fusion::op::Call;
use burn_cubecl::tensor::CubeTensor;
use conv_kernels::ConvError;
use conv_kernels::conv3d::{Conv3dProblem, Window};

/// Taps along an axis from which on forward kernels are left for others.
const MANY_TAPS: usize = 10;

/// The problem whose weight gradient this forward call is, where it looks like one.
pub(super) fn weight_gradient(
    call: &Call<'_>,
    x: &CubeTensor,
    filter: &CubeTensor,
    out: [usize; 5],
) -> Option<Conv3dProblem> {
    let looks_exchanged = is_exchanged(x) && is_exchanged(filter);
    let (x, filter) = (dims(x), dims(filter));
    let taps = |shape: [usize; 5]| shape[2..].iter().product::<usize>();
    let many = filter[2..].iter().any(|taps| *taps > MANY_TAPS);
    let larger = taps(filter) > taps(out) && taps(out) > 0;
    if call.window.groups != 1 || !larger || !(looks_exchanged || many) {
        return None;
    }
    let Window { stride, dilation, mut padding, .. } = call.window;
    let mut reach = [x[2], x[3], x[4]];
    for axis in 0..3 {
        // Elements behind the last window would make one more.
        let reached = stride[axis] * (out[axis + 2] - 1) + dilation[axis] * filter[axis + 2];
        let behind = (reach[axis] + padding[axis].0 + padding[axis].1).saturating_sub(reached);
        let padded = behind.min(padding[axis].1);
        padding[axis].1 -= padded;
        reach[axis] = reach[axis].checked_sub(behind - padded)?;
    }
    let window = Window { stride: dilation, dilation: stride, padding, ..Window::default() };
    let dtype = crate::check::float_type(call.kind.name(), "the result", call.out.dtype).ok()?;
    let source = [x[1], x[0], reach[0], reach[1], reach[2]];
    let dw = [out[1], out[0], out[2], out[3], out[4]];
    let problem = Conv3dProblem::new(source, dw, None, window, dtype).ok()?;
    (problem.y_shape() == [filter[1], filter[0], filter[2], filter[3], filter[4]]).then_some(problem)
}

/// y of the recorded convolution, a view: the exchange that Burn records next undoes this one.
pub(super) fn compute(
    decided: &mut Decided,
    call: Conv3dCall,
    x: &CubeTensor,
    filter: &CubeTensor,
) -> Result<CubeTensor, ConvError> {
    let source = exchanged(x.clone());
    let strides = source.meta.strides().to_vec();
    let source = view(source, &call.problem.x_shape(), &strides);
    Ok(exchanged(cube::weight_gradient_by(decided, &source, &exchanged(filter.clone()), &call)?))
}

/// Whether the second axis is the outer one in memory.
fn is_exchanged(tensor: &CubeTensor) -> bool {
    tensor.meta.strides()[1] > tensor.meta.strides()[0]
}

fn exchanged(tensor: CubeTensor) -> CubeTensor {
    let (mut shape, mut strides) = (tensor.meta.shape().to_vec(), tensor.meta.strides().to_vec());
    shape.swap(0, 1);
    strides.swap(0, 1);
    view(tensor, &shape, &strides)
}
