//! The direct algorithm: always valid, the fallback and the second oracle of every faster plan.
//!
//! ```text
//! forward          one unit per y[n,o,q]:   b[o] + sum over c, k of X(n,c,p) * w[o,c,k]
//! input gradient   one unit per dx[n,c,p]:  sum over k, o of dy[n,o,q] * w[o,c,k]
//!                                           where window q reads p with tap k
//! ```
//!
//! Layouts: any strides for every tensor; units run along the output's last axis, so neighbouring units read
//! neighbouring inputs. Per unit: K = C/groups * KD * KH * KW products, 2K loads, one store. Nothing is
//! declined.

use super::args::{Column, Geometry, offset};
use super::fold;
use super::needs::nest;
use super::plan::Pass;
use super::problem::{Conv3dProblem, PaddingMode};
use crate::activation::{Activation, activate};
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Units of a cube. 256 is what WebGPU guarantees; more would gain nothing without shared memory.
const UNITS: u32 = 256;

/// Channels that one turn of a loop sums: see [`Limits::loop_iterations`].
const BLOCK: u32 = 8;

/// Iterations of the loops of a thread in the forward pass and the input gradient.
pub(crate) fn loop_iterations(problem: &Conv3dProblem, pass: Pass) -> usize {
    let block = BLOCK as usize;
    if pass == Pass::Forward {
        return nest(problem.taps(), nest(problem.group_channels().div_ceil(block), 0));
    }
    let aliases = fold::aliases(problem);
    let blocks = nest(problem.group_out_channels().div_ceil(block), 0);
    // Positions that read as this one and taps, axis by axis.
    [2, 1, 0]
        .into_iter()
        .fold(blocks, |inner, axis: usize| nest(aliases[axis], nest(problem.kernel[axis], inner)))
}

/// Launches the forward pass.
pub(crate) fn forward(
    client: &Client,
    problem: &Conv3dProblem,
    limits: &Limits,
    [x, w, y]: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    let address = address_type("conv3d", &[x, w, y], y.len(), limits)?;
    let operations = 2.0 * f64::from(UNITS) * (problem.group_channels() * problem.taps()) as f64;
    for dispatch in dispatches(y.len().div_ceil(UNITS as usize), operations, limits) {
        // SAFETY: every index is checked in the kernel; tests/conformance.rs runs it between guard zones.
        unsafe {
            forward_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                x.tensor_arg(),
                w.tensor_arg(),
                bias.map(|bias| bias.tensor_arg()).into(),
                y.tensor_arg(),
                problem.geometry(),
                dispatch.span(),
                problem.window.padding_mode,
                problem.window.activation,
                problem.dtype.elem(),
                y.dtype.elem(),
            );
        }
    }
    Ok(())
}

/// Launches the input gradient.
pub(crate) fn input_gradient(
    client: &Client,
    problem: &Conv3dProblem,
    limits: &Limits,
    [dy, w, dx]: [&Operand; 3],
) -> Result<(), ConvError> {
    let address = address_type("conv3d", &[dy, w, dx], dx.len(), limits)?;
    let operations = 2.0 * f64::from(UNITS) * (problem.group_out_channels() * problem.taps()) as f64;
    for dispatch in dispatches(dx.len().div_ceil(UNITS as usize), operations, limits) {
        // SAFETY: as in `forward`.
        unsafe {
            input_gradient_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                dy.tensor_arg(),
                w.tensor_arg(),
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
fn forward_kernel<E: Float, O: Float>(
    x: &Tensor<E>,
    w: &Tensor<E>,
    bias: ComptimeOption<&Tensor<E>>,
    y: &mut Tensor<O>,
    geometry: Geometry,
    span: Span,
    #[comptime] padding: PaddingMode,
    #[comptime] activation: Activation,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    let index = span.index() * UNITS as usize + UNIT_POS as usize;
    let windows_per_channel =
        geometry.depth.output as usize * geometry.height.output as usize * geometry.width.output as usize;
    let out_channels = y.shape(1);
    let image_channel = index / windows_per_channel;
    let n = image_channel / out_channels;
    if span.is_idle() || n >= geometry.batch as usize {
        terminate!();
    }
    let o = (image_channel - n * out_channels) as u32;
    let mut window = geometry.window(index - image_channel * windows_per_channel);
    window.n = n as u32;
    let first_channel = o / geometry.group_out * geometry.group_channels;
    let bias: ComptimeOption<f32> = bias.map(|bias| f32::cast_from(bias[o as usize * bias.stride(0)]));
    let mut sum = bias.unwrap_or_else(|| 0.0f32.runtime());
    for tap in 0..geometry.taps() {
        let at = geometry.column(tap);
        // A tap in the padding adds nothing, whatever its weight.
        let reads = reads(&geometry, window.d, window.h, window.w, &at, padding);
        for block in 0..geometry.group_channels.div_ceil(BLOCK) {
            #[unroll]
            for i in 0..BLOCK {
                let c = block * BLOCK + i;
                if c < geometry.group_channels && reads {
                    let column = Column { c, d: at.d, h: at.h, w: at.w };
                    let value = read_tap(
                        x,
                        &geometry,
                        window.n,
                        first_channel,
                        window.d,
                        window.h,
                        window.w,
                        &column,
                        padding,
                    );
                    sum += value * f32::cast_from(w[offset(w, o, c, at.d, at.h, at.w)]);
                }
            }
        }
    }
    let target = offset(&*y, window.n, o, window.d, window.h, window.w);
    y[target] = O::cast_from(activate(sum, activation));
}

/// Whether a tap of a window reads an element: not in the padding, unless that repeats the edge.
#[cube]
pub(crate) fn reads(
    geometry: &Geometry,
    d: u32,
    h: u32,
    w: u32,
    column: &Column,
    #[comptime] padding: PaddingMode,
) -> bool {
    if comptime!(padding == PaddingMode::Replicate) {
        true.runtime()
    } else {
        // As unsigned numbers, negative positions are larger than any extent: one comparison per axis.
        (geometry.depth.source(d, column.d) as u32) < geometry.depth.input
            && (geometry.height.source(h, column.h) as u32) < geometry.height.input
            && (geometry.width.source(w, column.w) as u32) < geometry.width.input
    }
}

/// `X(n, first_channel + column.c, source of the window and tap)`: zero or clamped outside the input.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn read_tap<E: Float>(
    x: &Tensor<E>,
    geometry: &Geometry,
    n: u32,
    first_channel: u32,
    d: u32,
    h: u32,
    w: u32,
    column: &Column,
    #[comptime] padding: PaddingMode,
) -> f32 {
    let channel = first_channel + column.c;
    let mut value = 0.0f32;
    if comptime!(padding == PaddingMode::Replicate) {
        let at = offset(
            x,
            n,
            channel,
            geometry.depth.clamped_source(d, column.d),
            geometry.height.clamped_source(h, column.h),
            geometry.width.clamped_source(w, column.w),
        );
        value = f32::cast_from(x[at]);
    } else {
        let pd = geometry.depth.source(d, column.d);
        let ph = geometry.height.source(h, column.h);
        let pw = geometry.width.source(w, column.w);
        if reads(geometry, d, h, w, column, padding) {
            value = f32::cast_from(x[offset(x, n, channel, pd as u32, ph as u32, pw as u32)]);
        }
    }
    value
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn input_gradient_kernel<E: Float>(
    dy: &Tensor<E>,
    w: &Tensor<E>,
    dx: &mut Tensor<E>,
    geometry: Geometry,
    span: Span,
    #[comptime] padding: PaddingMode,
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
    let channel = (image_channel - n * channels) as u32;
    let n = n as u32;
    let at = geometry.input(index - image_channel * per_channel);
    let group = channel / geometry.group_channels;
    let c = channel - group * geometry.group_channels;
    let row = GradientRow { n, first_out: group * geometry.group_out, c, w: at.w };
    let mut sum = 0.0f32;
    // With replicate padding an edge element collects what every position that clamps to it would get.
    let replicate = comptime!(padding == PaddingMode::Replicate);
    for pd in geometry.depth.first_alias(at.d, replicate)..geometry.depth.last_alias(at.d, replicate) + 1i32 {
        for kd in 0..geometry.depth.kernel {
            let qd = geometry.depth.window_at(pd, kd);
            if qd < geometry.depth.output {
                sum += gradient_of_plane(dy, w, &geometry, &row, at.h, qd, kd, replicate);
            }
        }
    }
    let target = offset(&*dx, n, channel, at.d, at.h, at.w);
    dx[target] = E::cast_from(sum);
}

/// Where one element's gradient is gathered, apart from depth and height.
#[derive(CubeType, Clone, Copy)]
struct GradientRow {
    n: u32,
    first_out: u32,
    /// Channel inside its group.
    c: u32,
    w: u32,
}

/// What the windows of frame `qd` give through the taps of depth `kd`. One function per axis: nested loops
/// become nested closures when a kernel is expanded, and the compiler's time grows steeply with their depth.
#[cube]
#[allow(clippy::too_many_arguments)]
fn gradient_of_plane<E: Float>(
    dy: &Tensor<E>,
    w: &Tensor<E>,
    geometry: &Geometry,
    row: &GradientRow,
    h: u32,
    qd: u32,
    kd: u32,
    #[comptime] replicate: bool,
) -> f32 {
    let mut sum = 0.0f32;
    for ph in geometry.height.first_alias(h, replicate)..geometry.height.last_alias(h, replicate) + 1i32 {
        for kh in 0..geometry.height.kernel {
            let qh = geometry.height.window_at(ph, kh);
            if qh < geometry.height.output {
                sum += gradient_of_row(dy, w, geometry, row, qd, kd, qh, kh, replicate);
            }
        }
    }
    sum
}

#[cube]
#[allow(clippy::too_many_arguments)]
fn gradient_of_row<E: Float>(
    dy: &Tensor<E>,
    w: &Tensor<E>,
    geometry: &Geometry,
    row: &GradientRow,
    qd: u32,
    kd: u32,
    qh: u32,
    kh: u32,
    #[comptime] replicate: bool,
) -> f32 {
    let mut sum = 0.0f32;
    for pw in geometry.width.first_alias(row.w, replicate)..geometry.width.last_alias(row.w, replicate) + 1i32
    {
        for kw in 0..geometry.width.kernel {
            let qw = geometry.width.window_at(pw, kw);
            if qw < geometry.width.output {
                for block in 0..geometry.group_out.div_ceil(BLOCK) {
                    #[unroll]
                    for i in 0..BLOCK {
                        let in_group = block * BLOCK + i;
                        if in_group < geometry.group_out {
                            let o = row.first_out + in_group;
                            sum += f32::cast_from(dy[offset(dy, row.n, o, qd, qh, qw)])
                                * f32::cast_from(w[offset(w, o, row.c, kd, kh, kw)]);
                        }
                    }
                }
            }
        }
    }
    sum
}
