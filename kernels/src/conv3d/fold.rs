//! Input gradient under padding that repeats elements, second half: an element collects the gradient of every
//! padded position that reads it.
//!
//! ```text
//! dx[n,c,p] = sum over padded positions e with source_of(e - begin) = p of extended[n,c,e]    (`padding.rs`)
//!
//!             begin   input    end
//! extended   | a a a | a b c d | d d |       replicate: copies whose gradients add up in the edge element
//! dx                 | a b c d |
//! ```
//!
//! The first half is an ordinary input gradient of the padded problem ([`super::plan::PassProblem`]), in
//! which axes padded with zeros are as they were.
//!
//! Layouts: `extended` row-major fp32, dx any strides. One thread per element of dx. Bytes: `extended` read
//! once, dx written once; one addition per element of `extended`. Nothing is declined.

use super::args::{Geometry, offset};
use super::loops::nest;
use super::padding::moves;
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

/// The most positions of the padded input, along each axis, that a thread visits for an element.
pub(crate) fn aliases(problem: &Conv3dProblem) -> [usize; 3] {
    [0, 1, 2].map(|axis| {
        let (begin, end) = problem.window.padding[axis];
        match problem.window.padding_mode[axis] {
            PaddingMode::Zeros => 1,
            PaddingMode::Replicate if problem.input[axis] == 1 => 1 + begin + end,
            PaddingMode::Replicate => 1 + begin.max(end),
            PaddingMode::Reflect | PaddingMode::Circular => 3,
        }
    })
}

/// Loop iterations of one thread of [`fold`].
pub(crate) fn loop_iterations(problem: &Conv3dProblem) -> usize {
    aliases(problem).into_iter().rev().fold(0, |inner, count| nest(count, inner))
}

/// Adds the gradient of the padding to the elements that it repeats.
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
                problem.window.padding_mode,
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
    #[comptime] modes: [PaddingMode; 3],
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
    let [depth, height, width] = modes;
    for i in geometry.depth.first_alias(at.d, depth)..geometry.depth.last_alias(at.d, depth) + 1i32 {
        for j in geometry.height.first_alias(at.h, height)..geometry.height.last_alias(at.h, height) + 1i32 {
            for k in geometry.width.first_alias(at.w, width)..geometry.width.last_alias(at.w, width) + 1i32 {
                let d = geometry.depth.in_padded(geometry.depth.alias(at.d, i, depth), depth);
                let h = geometry.height.in_padded(geometry.height.alias(at.h, j, height), height);
                let w = geometry.width.in_padded(geometry.width.alias(at.w, k, width), width);
                if comptime!(modes.iter().any(|mode| moves(*mode))) {
                    if geometry.depth.is_alias(at.d, i, depth)
                        && geometry.height.is_alias(at.h, j, height)
                        && geometry.width.is_alias(at.w, k, width)
                    {
                        sum += extended[offset(extended, n, c, d, h, w)];
                    }
                } else {
                    sum += extended[offset(extended, n, c, d, h, w)];
                }
            }
        }
    }
    let target = offset(&*dx, n, c, at.d, at.h, at.w);
    dx[target] = E::cast_from(sum);
}
