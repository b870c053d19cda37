//! Input gradient under replicate padding, second half: an edge element collects the gradient of every padded
//! position that reads it.
//!
//! ```text
//! dx[n,c,p] = sum over padded positions e with clamp(e - begin) = p of extended[n,c,e]
//!
//!             begin   input    end
//! extended   | a a a | a b c d | d d |       a, d: copies whose gradients add up in the edge element
//! dx                 | a b c d |
//! ```
//!
//! The first half is an ordinary input gradient of the padded problem (`rewrite.rs`).
//!
//! Layouts: `extended` row-major fp32, dx any strides. One thread per element of dx. Bytes: `extended` read
//! once, dx written once; one addition per element of `extended`. Nothing is declined.

use super::args::{Geometry, offset};
use super::loops::nest;
use super::problem::{Conv3dProblem, PaddingMode};
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Threads of a threadgroup.
const THREADS: u32 = 256;

/// An fp32 tensor for the gradient of the launched problem's input.
pub(crate) fn extended_gradient(client: &Client, launched: &Conv3dProblem) -> Operand {
    Operand::empty(client, &launched.x_shape(), FloatType::F32)
}

/// The most positions of the padded input, along each axis, that read the same element.
pub(crate) fn aliases(problem: &Conv3dProblem) -> [usize; 3] {
    let replicate = problem.window.padding_mode == PaddingMode::Replicate;
    [0, 1, 2].map(|axis| {
        let (begin, end) = problem.window.padding[axis];
        match problem.input[axis] {
            _ if !replicate => 1,
            1 => 1 + begin + end,
            _ => 1 + begin.max(end),
        }
    })
}

/// Loop iterations of one thread of [`fold`].
pub(crate) fn loop_iterations(problem: &Conv3dProblem) -> usize {
    aliases(problem).into_iter().rev().fold(0, |inner, count| nest(count, inner))
}

/// Adds the gradient of the padding to the edge elements that it repeats.
pub(crate) fn fold(
    client: &Client,
    problem: &Conv3dProblem,
    limits: &Limits,
    extended: &Operand,
    dx: &Operand,
) -> Result<(), ConvError> {
    let address = address_type("conv3d", &[extended, dx], dx.len(), limits)?;
    for dispatch in dispatches(dx.len().div_ceil(THREADS as usize), f64::from(THREADS), limits) {
        // SAFETY: see `conv3d`; threads past dx exit, aliases stay inside the padded extents.
        unsafe {
            fold_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                extended.tensor_arg(),
                dx.tensor_arg(),
                problem.geometry(),
                dispatch.span(),
                problem.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn fold_kernel<E: Float>(
    extended: &Tensor<f32>,
    dx: &mut Tensor<E>,
    geometry: Geometry,
    span: Span,
    #[define(E)] _dtype: ElemType,
) {
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    let elements_per_channel =
        geometry.depth.input as usize * geometry.height.input as usize * geometry.width.input as usize;
    let channels = dx.shape(1);
    let image_channel = index / elements_per_channel;
    let n = image_channel / channels;
    if span.is_idle() || n >= geometry.batch as usize {
        terminate!();
    }
    let n = n as u32;
    let c = (image_channel - n as usize * channels) as u32;
    let at = geometry.input_position(index - image_channel * elements_per_channel);
    let mut sum = 0.0f32;
    for d in geometry.depth.first_alias(at.d, true)..geometry.depth.last_alias(at.d, true) + 1i32 {
        for h in geometry.height.first_alias(at.h, true)..geometry.height.last_alias(at.h, true) + 1i32 {
            for w in geometry.width.first_alias(at.w, true)..geometry.width.last_alias(at.w, true) + 1i32 {
                let d = (d + geometry.depth.begin) as u32;
                let h = (h + geometry.height.begin) as u32;
                let w = (w + geometry.width.begin) as u32;
                sum += extended[offset(extended, n, c, d, h, w)];
            }
        }
    }
    let target = offset(&*dx, n, c, at.d, at.h, at.w);
    dx[target] = E::cast_from(sum);
}
