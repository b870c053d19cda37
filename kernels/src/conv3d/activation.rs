//! Gradient through a fused activation: `dpre = dy * activation'(saved)`, element by element, fp32, one rounding.
//!
//! `saved` is the pre-activation for SiLU. For ReLU it may be the output as well: both are positive together.
//! Bytes: two reads and one write per element.

use super::args::offset;

use crate::activation::{Activation, activate_gradient};
use crate::error::{ConvError, invalid};
use crate::grid::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

const UNITS: u32 = 256;

/// Computes dpre from `saved`, `dy`, `dpre`, three tensors of the same five-axis shape and dtype.
///
/// # Errors
/// When shapes or dtypes differ, or the tensors are too large for the device's index type.
pub fn activation_gradient(
    client: &Client,
    limits: &Limits,
    activation: Activation,
    [saved, dy, dpre]: [&Operand; 3],
) -> Result<(), ConvError> {
    for (name, operand) in [("saved", saved), ("dy", dy)] {
        if operand.shape != dpre.shape || operand.dtype != dpre.dtype || operand.shape.len() != 5 {
            invalid!(
                "conv3d: activation gradient of {name} {:?} {} into {:?} {}",
                operand.shape,
                operand.dtype.name(),
                dpre.shape,
                dpre.dtype.name()
            );
        }
    }
    let address = address_type("conv3d", &[saved, dy, dpre], dpre.len(), limits)?;
    for dispatch in dispatches(dpre.len().div_ceil(UNITS as usize), f64::from(UNITS) * 8.0, limits) {
        // SAFETY: the index is checked against the common shape of the three tensors.
        unsafe {
            activation_gradient_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                saved.tensor_arg(),
                dy.tensor_arg(),
                dpre.tensor_arg(),
                dispatch.span(),
                dpre.len(),
                activation,
                dpre.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn activation_gradient_kernel<E: Float>(
    saved: &Tensor<E>,
    dy: &Tensor<E>,
    dpre: &mut Tensor<E>,
    span: Span,
    elements: usize,
    #[comptime] activation: Activation,
    #[define(E)] _dtype: ElemType,
) {
    let index = span.cube() * UNITS as usize + UNIT_POS as usize;
    if span.is_idle() || index >= elements {
        terminate!();
    }
    let w = index % dpre.shape(4);
    let rest = index / dpre.shape(4);
    let h = rest % dpre.shape(3);
    let rest = rest / dpre.shape(3);
    let d = rest % dpre.shape(2);
    let rest = rest / dpre.shape(2);
    let c = (rest % dpre.shape(1)) as u32;
    let n = (rest / dpre.shape(1)) as u32;
    let (d, h, w) = (d as u32, h as u32, w as u32);
    let v = f32::cast_from(saved[offset(saved, n, c, d, h, w)]);
    let g = f32::cast_from(dy[offset(dy, n, c, d, h, w)]);
    let target = offset(&*dpre, n, c, d, h, w);
    dpre[target] = E::cast_from(activate_gradient(v, g, activation));
}
