//! Elementwise kernels: an activation that is not fused, for calls that keep its argument, a residual that is
//! not fused, and the gradient of an activation. fp32 arithmetic, one final rounding.
//!
//! ```text
//! y = activation(pre)        y = activation(pre) + residual        dpre = dy * activation'(saved)
//! ```
//!
//! `saved` is the fp32 value before the activation. For ReLU it may be the output as well: one is positive
//! where the other is, except for values so small that y rounds to 0 (in f16 up to 2^-25). Their slope is 0
//! then, as in PyTorch, which rounds before ReLU.
//!
//! Layouts: `pre` row-major; y row-major without a residual, in vectors of 4 where length and alignment
//! allow; with one y and the residual any strides, in vectors of 4 along W where the strides allow; `saved`,
//! dy and dpre any strides. One thread per vector or element. Bytes: one or two loads and one store per
//! element.

use super::args::offset;
use super::epilogue::finished_with_lane;
use crate::activation::{Activation, activate, activate_gradient};
use crate::dtype::FloatType;
use crate::error::{ConvError, invalid};
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Threads of a threadgroup.
const THREADS: u32 = 256;

/// Elements of a vector load or store.
const VECTOR_WIDTH: usize = 4;

/// Refuses tensors that [`apply`] does not take.
pub(crate) fn check(pre: &Operand, y: &Operand) -> Result<(), ConvError> {
    let row_major = |operand: &Operand| operand.is_empty() || operand.is_row_major();
    if pre.shape != y.shape || pre.dtype != FloatType::F32 || !row_major(pre) || !row_major(y) {
        invalid!(
            "conv3d: y {:?} with strides {:?} needs the value before the activation as f32, both \
             row-major, got {} {:?} with strides {:?}",
            y.shape,
            y.strides,
            pre.dtype.name(),
            pre.shape,
            pre.strides
        );
    }
    Ok(())
}

/// `y = activation(pre) + residual`. pre is fp32 and row-major; without a residual, y is row-major as well
/// ([`check`]), with one, y and the residual have five axes and any strides.
pub(crate) fn apply(
    client: &Client,
    limits: &Limits,
    activation: Activation,
    residual: Option<&Operand>,
    [pre, y]: [&Operand; 2],
) -> Result<(), ConvError> {
    let elements = y.len();
    let reached: Vec<_> = [pre, y].into_iter().chain(residual).collect();
    let address = address_type("conv3d", &reached, elements, limits)?;
    let aligned = pre.is_aligned(VECTOR_WIDTH) && y.is_aligned(VECTOR_WIDTH);
    let vectorized = match residual {
        Some(residual) => [residual, y].iter().all(|each| each.has_vectors(4, y.shape[4], VECTOR_WIDTH)),
        None => elements.is_multiple_of(VECTOR_WIDTH),
    };
    let width = if vectorized && aligned { VECTOR_WIDTH } else { 1 };
    let vectors = elements / width;
    for dispatch in dispatches(vectors.div_ceil(THREADS as usize), f64::from(THREADS) * 32.0, limits) {
        let (count, dim, span) = (dispatch.count(), CubeDim::new_1d(THREADS), dispatch.span());
        let (pre, dtype) = (pre.buffer_arg(width), y.dtype.elem());
        match residual.map(|residual| residual.tensor_arg()) {
            // SAFETY: see `conv3d`; threads past the last vector of both tensors exit.
            None => unsafe {
                let y = y.buffer_arg(width);
                activation_kernel::launch_unchecked(
                    client, count, dim, address, width, pre, y, span, vectors, activation, dtype,
                );
            },
            // SAFETY: see `conv3d`; threads past the last vector exit, the three tensors have one shape.
            Some(residual) => unsafe {
                let y = y.tensor_arg();
                let code = activation.code();
                residual_kernel::launch_unchecked(
                    client, count, dim, address, width, pre, residual, y, span, vectors, code, dtype,
                );
            },
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn activation_kernel<E: Float, N: Size>(
    pre: &[Vector<f32, N>],
    y: &mut [Vector<E, N>],
    span: Span,
    vectors: usize,
    #[comptime] activation: Activation,
    #[define(E)] _dtype: ElemType,
) {
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    if span.is_idle() || index >= vectors {
        terminate!();
    }
    let values = pre[index];
    let mut results = Vector::<E, N>::empty();
    #[unroll]
    for lane in 0..N::value() {
        results.insert(lane, E::cast_from(activate(values.extract(lane), activation)));
    }
    y[index] = results;
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn residual_kernel<E: Float, N: Size>(
    pre: &[Vector<f32, N>],
    residual: &Tensor<Vector<E, N>>,
    y: &mut Tensor<Vector<E, N>>,
    span: Span,
    vectors: usize,
    activation: u32,
    #[define(E)] _dtype: ElemType,
) {
    let width = N::value();
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    if span.is_idle() || index >= vectors {
        terminate!();
    }
    let row = y.shape(4) / width;
    let w = (index % row * width) as u32;
    let rest = index / row;
    let h = (rest % y.shape(3)) as u32;
    let rest = rest / y.shape(3);
    let d = (rest % y.shape(2)) as u32;
    let rest = rest / y.shape(2);
    let c = (rest % y.shape(1)) as u32;
    let n = (rest / y.shape(1)) as u32;
    let values = pre[index];
    let added: Vector<f32, N> = Vector::cast_from(residual[offset(residual, n, c, d, h, w) / width]);
    let mut results = Vector::<E, N>::empty();
    #[unroll]
    for lane in 0..width {
        let added = ComptimeOption::new_Some(added);
        let value = finished_with_lane(values.extract(lane), added, lane, activation);
        results.insert(lane, E::cast_from(value));
    }
    let at = offset(&*y, n, c, d, h, w) / width;
    y[at] = results;
}

/// Computes dpre from `saved` and dy, all of one five-axis shape. dy and dpre have one dtype; `saved` has the
/// same or is fp32.
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
        let fits = operand.dtype == dpre.dtype || name == "saved" && operand.dtype == FloatType::F32;
        if operand.shape != dpre.shape || !fits || operand.shape.len() != 5 {
            invalid!(
                "conv3d: the activation gradient reads {name} {:?} {}, which does not fit dpre {:?} {}",
                operand.shape,
                operand.dtype.name(),
                dpre.shape,
                dpre.dtype.name()
            );
        }
    }
    let address = address_type("conv3d", &[saved, dy, dpre], dpre.len(), limits)?;
    for dispatch in dispatches(dpre.len().div_ceil(THREADS as usize), f64::from(THREADS) * 8.0, limits) {
        // SAFETY: see `conv3d`; threads past the last element exit, the three tensors have one shape.
        unsafe {
            activation_gradient_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                saved.tensor_arg(),
                dy.tensor_arg(),
                dpre.tensor_arg(),
                dispatch.span(),
                dpre.len(),
                activation,
                saved.dtype.elem(),
                dpre.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn activation_gradient_kernel<S: Float, E: Float>(
    saved: &Tensor<S>,
    dy: &Tensor<E>,
    dpre: &mut Tensor<E>,
    span: Span,
    elements: usize,
    #[comptime] activation: Activation,
    #[define(S)] _saved_dtype: ElemType,
    #[define(E)] _dtype: ElemType,
) {
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
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
