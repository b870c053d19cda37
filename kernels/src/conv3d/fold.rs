//! Input gradient under replicate padding, second half: an edge element collects the gradient of every padded
//! position that reads as it.
//!
//! ```text
//! dx[n,c,p] = sum over padded positions e with clamp(e - begin) = p of extended[n,c,e]
//! ```
//!
//! The first half is an ordinary input gradient of the padded problem ([`launched`]). Plans are chosen for
//! that problem, checked for it and launched on it. Bytes: the extended gradient (fp32) once, dx once.

use super::args::{Geometry, offset};
use super::needs::nest;
use super::plan::Pass;
use super::problem::{Conv3dProblem, PaddingMode, Window};
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

const UNITS: u32 = 256;

/// The problem that a pass launches under every plan but `Direct`: for the input gradient under replicate
/// padding the same convolution on an input that holds its padding, so that no padding is left; else the
/// problem itself.
pub(crate) fn launched(problem: &Conv3dProblem, pass: Pass) -> Conv3dProblem {
    if !is_folded(problem, pass) {
        return *problem;
    }
    let padding = problem.window.padding;
    Conv3dProblem {
        input: [0, 1, 2].map(|axis| problem.input[axis] + padding[axis].0 + padding[axis].1),
        window: Window { padding: [(0, 0); 3], padding_mode: PaddingMode::Zeros, ..problem.window },
        ..*problem
    }
}

/// Whether a pass runs on the padded input and is folded.
pub(crate) fn is_folded(problem: &Conv3dProblem, pass: Pass) -> bool {
    pass == Pass::InputGradient && problem.window.padding_mode == PaddingMode::Replicate
}

/// An fp32 tensor for the gradient of the launched problem's input.
pub(crate) fn extended_gradient(client: &Client, launched: &Conv3dProblem) -> Operand {
    Operand::empty(client, &launched.x_shape(), FloatType::F32)
}

/// Positions of the padded input, along each axis, that read as one element at most.
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

/// Iterations of the loops of a thread of [`fold`].
pub(crate) fn loop_iterations(problem: &Conv3dProblem) -> usize {
    aliases(problem).into_iter().rev().fold(0, |inner, count| nest(count, inner))
}

/// Adds the gradient of the padding to the edges it repeats.
pub(crate) fn fold(
    client: &Client,
    problem: &Conv3dProblem,
    limits: &Limits,
    extended: &Operand,
    dx: &Operand,
) -> Result<(), ConvError> {
    let address = address_type("conv3d", &[extended, dx], dx.len(), limits)?;
    for dispatch in dispatches(dx.len().div_ceil(UNITS as usize), f64::from(UNITS), limits) {
        // SAFETY: positions stay inside dx, their aliases inside the padded extents.
        unsafe {
            fold_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
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
    let index = span.index() * UNITS as usize + UNIT_POS as usize;
    let per_channel =
        geometry.depth.input as usize * geometry.height.input as usize * geometry.width.input as usize;
    let channels = dx.shape(1);
    let image_channel = index / per_channel;
    let n = image_channel / channels;
    if span.is_idle() || n >= geometry.batch as usize {
        terminate!();
    }
    let n = n as u32;
    let c = (image_channel - n as usize * channels) as u32;
    let at = geometry.input(index - image_channel * per_channel);
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
