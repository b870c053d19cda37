//! The last S steps of sequences packed into one row: the states with which their decoding begins.
//!
//! ```text
//! out[i, c, m] = x[0, c, bounds[i+1] - S + m]   where that step is at or after bounds[i], else 0
//! ```
//!
//! One element per thread: each element of `out` is read and written once, no FLOP. x is `[1, C, T]`,
//! `bounds` is `[N + 1]` and ascending, `out` is `[N, C, S]`. Any strides. Nothing is declined.

use crate::causal_conv1d::args::{THREADS, offset3};
use crate::error::ConvError;
use crate::index_operand::IndexOperand;
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Launches the copy into `out [N, C, S]`.
pub(crate) fn launch_last_states(
    client: &Client,
    limits: &Limits,
    x: &Operand,
    bounds: &IndexOperand,
    out: &Operand,
) -> Result<(), ConvError> {
    let largest = out.len().max(bounds.extent()) + THREADS as usize;
    let address = address_type("causal_conv1d_last_states", &[x, out], largest, limits)?;
    for dispatch in dispatches(out.len().div_ceil(THREADS as usize), 8.0 * f64::from(THREADS), limits) {
        // SAFETY: contract in `args`; the kernel masks sequences and channels and clamps bounds to the row.
        unsafe {
            last_states_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                x.tensor_arg(),
                bounds.tensor_arg(),
                out.tensor_arg(),
                dispatch.span(),
                x.dtype.elem(),
                bounds.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn last_states_kernel<X: Float, I: Int>(
    x: &Tensor<X>,
    bounds: &Tensor<I>,
    out: &mut Tensor<X>,
    span: Span,
    #[define(X)] _dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    let row = index / out.shape(2);
    let m = index - row * out.shape(2);
    let sequence = row / out.shape(1);
    let c = row - sequence * out.shape(1);
    if span.is_idle() || sequence >= out.shape(0) {
        terminate!();
    }
    // Bounds are data of the device: clamped, so that none reads outside the row.
    let start = min(usize::cast_from(bounds[sequence * bounds.stride(0)]), x.shape(2));
    let end = min(usize::cast_from(bounds[(sequence + 1) * bounds.stride(0)]), x.shape(2));
    let mut value = X::from_int(0);
    if end + m >= start + out.shape(2) {
        value = x[offset3(x, 0usize, c, end + m - out.shape(2))];
    }
    let at = offset3(&*out, sequence, c, m);
    out[at] = value;
}
