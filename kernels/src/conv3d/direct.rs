//! The direct algorithm: always valid, the fallback and the second oracle of every faster plan.
//!
//! ```text
//! forward          one thread per y[n,o,q]:   b[o] + sum over c, k of X(n,c,p) * w[o,c,k], then the epilogue
//! input gradient   one thread per dx[n,c,p]:  sum over k, o of dy[n,o,q] * w[o,c,k], window q reads p with
//!                                             tap k; then b[c] and a transposed pass' activation
//! ```
//!
//! Layouts: any strides for every tensor. Threads run along the output's last axis, so that loads of x and dy
//! are coalesced where their W axis is contiguous. No shared memory; a threadgroup is a row of 256 results:
//!
//! ```text
//! result   | 0 | 1 | .. | 255 | 256 | ..      linear index, W fastest
//!          |  threadgroup 0   | threadgroup 1
//! ```
//!
//! Per thread K = C/groups * KD * KH * KW multiply-adds (input gradient: O/groups), 2K loads and one store.
//! Taps in the padding are skipped, not multiplied by zero. Nothing is declined.

use super::args::{ChannelTap, Geometry, offset, read_joined};
use super::call::Conv3dCall;
use super::epilogue::{Epilogue, add_residual, bias_of, channel_bias, finished};
use super::family::Family;
use super::loops::nest;
use super::needs::kernel_needs;
use super::pass::Pass;
use super::problem::{Conv3dProblem, PaddingMode};
use super::{direct_weight, fold};
use crate::activation::{Activation, activate_by_code};
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Threads of a threadgroup: what WebGPU guarantees.
const THREADS: u32 = 256;
/// Channels per loop iteration: software devices bound the iterations ([`Limits::loop_iterations`]).
const CHANNEL_BLOCK: u32 = 8;

/// The family of [`super::Plan::Direct`].
pub(super) struct Direct;

impl Family for Direct {
    fn plan_name(&self) -> String {
        "direct".into()
    }

    fn serves(&self, _: &Conv3dProblem, _: Pass, _: &Limits) -> Result<(), ConvError> {
        Ok(())
    }

    fn needs(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Needs {
        match pass {
            Pass::WeightGradient => direct_weight::needs(problem, limits),
            _ => kernel_needs(0, THREADS as usize, loop_iterations(problem, pass)),
        }
    }

    fn launches(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> usize {
        if pass == Pass::WeightGradient { direct_weight::launches(problem, limits) } else { 1 }
    }

    fn launch(&self, call: &Conv3dCall, operands: [&Operand; 3]) -> Result<(), ConvError> {
        match call.pass {
            Pass::Forward => forward(call, operands),
            Pass::InputGradient => input_gradient(call, operands),
            Pass::WeightGradient => direct_weight::weight_gradient(call, operands),
        }
    }

    fn fuses_residual(&self) -> bool {
        true
    }

    fn is_rewritten(&self) -> bool {
        false
    }
}

/// Loop iterations of one thread in the forward pass and the input gradient.
fn loop_iterations(problem: &Conv3dProblem, pass: Pass) -> usize {
    let block = CHANNEL_BLOCK as usize;
    if pass == Pass::Forward {
        return nest(problem.taps(), nest(problem.group_channels().div_ceil(block), 0));
    }
    let aliases = fold::aliases(problem);
    let blocks = nest(problem.group_out_channels().div_ceil(block), 0);
    // Aliases and taps, axis by axis. Mesa's software driver spends six iterations on an alias with one tap
    // and one block, one more than `nest` counts: each loop over taps counts one more here.
    [2, 1, 0]
        .into_iter()
        .fold(blocks, |inner, axis: usize| nest(aliases[axis], nest(problem.kernel[axis], inner) + 1))
}

fn forward(call: &Conv3dCall, [x, w, y]: [&Operand; 3]) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, cache, .. } = *call;
    let Epilogue { bias, residual, activation } = call.epilogue();
    let reached: Vec<_> = [x, w, y].into_iter().chain(cache).chain(residual).collect();
    let address = address_type("conv3d", &reached, y.len(), limits)?;
    let operations = 2.0 * f64::from(THREADS) * (problem.group_channels() * problem.taps()) as f64;
    for dispatch in dispatches(y.len().div_ceil(THREADS as usize), operations, limits) {
        // SAFETY: see `conv3d`; threads past y exit, taps outside x are skipped or read an element of it.
        unsafe {
            forward_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                x.tensor_arg(),
                cache.map(|cache| cache.tensor_arg()).into(),
                w.tensor_arg(),
                bias.map(|bias| bias.tensor_arg()).into(),
                residual.map(|residual| residual.tensor_arg()).into(),
                y.tensor_arg(),
                problem.geometry(),
                dispatch.span(),
                activation.code(),
                problem.window.padding_mode,
                [cache.is_some(), residual.is_some()],
                problem.dtype.elem(),
                y.dtype.elem(),
            );
        }
    }
    Ok(())
}

fn input_gradient(call: &Conv3dCall, [dy, w, dx]: [&Operand; 3]) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, bias, activation, .. } = *call;
    let address = address_type("conv3d", &[dy, w, dx], dx.len(), limits)?;
    let operations = 2.0 * f64::from(THREADS) * (problem.group_out_channels() * problem.taps()) as f64;
    for dispatch in dispatches(dx.len().div_ceil(THREADS as usize), operations, limits) {
        // SAFETY: see `conv3d`; threads past dx exit, windows that do not exist are skipped.
        unsafe {
            input_gradient_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                dy.tensor_arg(),
                w.tensor_arg(),
                bias.map(|bias| bias.tensor_arg()).into(),
                dx.tensor_arg(),
                problem.geometry(),
                dispatch.span(),
                problem.window.padding_mode,
                activation,
                problem.dtype.elem(),
                dx.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn forward_kernel<E: Float, O: Float>(
    x: &Tensor<E>,
    cache: ComptimeOption<&Tensor<E>>,
    w: &Tensor<E>,
    bias: ComptimeOption<&Tensor<E>>,
    residual: ComptimeOption<&Tensor<E>>,
    y: &mut Tensor<O>,
    geometry: Geometry,
    span: Span,
    activation: u32,
    #[comptime] padding: [PaddingMode; 3],
    // For the kernel's key, in which optional arguments do not count.
    #[comptime] _has_cache_and_residual: [bool; 2],
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    let positions_per_channel =
        geometry.depth.output as usize * geometry.height.output as usize * geometry.width.output as usize;
    let out_channels = y.shape(1);
    let image_channel = index / positions_per_channel;
    let n = image_channel / out_channels;
    if span.is_idle() || n >= geometry.batch as usize {
        terminate!();
    }
    let o = (image_channel - n * out_channels) as u32;
    let mut window = geometry.output_position(index - image_channel * positions_per_channel);
    window.n = n as u32;
    let first_channel = o / geometry.group_out * geometry.group_channels;
    let mut sum = channel_bias(bias, o);
    for index in 0..geometry.taps() {
        let tap = geometry.channel_tap(index);
        // A tap in the padding adds nothing, even if its weight is infinite.
        let reads = reads(&geometry, window.d, window.h, window.w, &tap, padding);
        for block in 0..geometry.group_channels.div_ceil(CHANNEL_BLOCK) {
            #[unroll]
            for i in 0..CHANNEL_BLOCK {
                let c = block * CHANNEL_BLOCK + i;
                if c < geometry.group_channels && reads {
                    let tap_of_c = ChannelTap { c, d: tap.d, h: tap.h, w: tap.w };
                    let value = read_tap(
                        x,
                        cache,
                        &geometry,
                        window.n,
                        first_channel,
                        window.d,
                        window.h,
                        window.w,
                        &tap_of_c,
                        padding,
                    );
                    sum += value * f32::cast_from(w[offset(w, o, c, tap.d, tap.h, tap.w)]);
                }
            }
        }
    }
    let target = offset(&*y, window.n, o, window.d, window.h, window.w);
    let value = activate_by_code(sum, activation);
    let added: ComptimeOption<f32> = residual.map(|residual| {
        f32::cast_from(residual[offset(residual, window.n, o, window.d, window.h, window.w)])
    });
    y[target] = O::cast_from(add_residual(value, added, activation));
}

/// Whether a tap of a window reads an element: not in padding with zeros.
#[cube]
pub(crate) fn reads(
    geometry: &Geometry,
    d: u32,
    h: u32,
    w: u32,
    tap: &ChannelTap,
    #[comptime] padding: [PaddingMode; 3],
) -> bool {
    let [depth, height, width] = padding;
    if comptime!(!padding.contains(&PaddingMode::Zeros)) {
        true.runtime()
    } else {
        // Negative positions are larger than any extent as unsigned: one comparison per axis.
        (geometry.depth.element(d, tap.d, depth) as u32) < geometry.depth.input
            && (geometry.height.element(h, tap.h, height) as u32) < geometry.height.input
            && (geometry.width.element(w, tap.w, width) as u32) < geometry.width.input
    }
}

/// `X(n, first_channel + tap.c, source of the window and tap)`: zero outside the input or what the padding
/// repeats.
#[cube]
pub(crate) fn read_tap<E: Float>(
    x: &Tensor<E>,
    cache: ComptimeOption<&Tensor<E>>,
    geometry: &Geometry,
    n: u32,
    first_channel: u32,
    d: u32,
    h: u32,
    w: u32,
    tap: &ChannelTap,
    #[comptime] padding: [PaddingMode; 3],
) -> f32 {
    let channel = first_channel + tap.c;
    let mut value = 0.0f32;
    let [depth, height, width] = padding;
    if comptime!(!padding.contains(&PaddingMode::Zeros)) {
        value = read_joined(
            x,
            cache,
            n,
            channel,
            geometry.depth.element(d, tap.d, depth) as u32,
            geometry.height.element(h, tap.h, height) as u32,
            geometry.width.element(w, tap.w, width) as u32,
        );
    } else {
        let pd = geometry.depth.element(d, tap.d, depth);
        let ph = geometry.height.element(h, tap.h, height);
        let pw = geometry.width.element(w, tap.w, width);
        if reads(geometry, d, h, w, tap, padding) {
            value = read_joined(x, cache, n, channel, pd as u32, ph as u32, pw as u32);
        }
    }
    value
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn input_gradient_kernel<E: Float, O: Float>(
    dy: &Tensor<E>,
    w: &Tensor<E>,
    bias: ComptimeOption<&Tensor<E>>,
    dx: &mut Tensor<O>,
    geometry: Geometry,
    span: Span,
    #[comptime] padding: [PaddingMode; 3],
    #[comptime] activation: Activation,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
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
    let channel = (image_channel - n * channels) as u32;
    let n = n as u32;
    let at = geometry.input_position(index - image_channel * elements_per_channel);
    let group = channel / geometry.group_channels;
    let c = channel - group * geometry.group_channels;
    let row = GradientRow { n, first_out: group * geometry.group_out, c, w: at.w };
    let mut sum = 0.0f32;
    // An element collects the gradient of every padded position that reads it.
    let [mode, ..] = padding;
    for pd in geometry.depth.first_alias(at.d, mode)..geometry.depth.last_alias(at.d, mode) + 1i32 {
        for kd in 0..geometry.depth.kernel {
            let qd = geometry.depth.window_at_alias(at.d, pd, kd, mode);
            if qd < geometry.depth.output {
                sum += gradient_of_frame(dy, w, &geometry, &row, at.h, qd, kd, padding);
            }
        }
    }
    let target = offset(&*dx, n, channel, at.d, at.h, at.w);
    let bias: ComptimeOption<f32> = bias.map(|bias| bias_of(bias, channel as usize));
    dx[target] = O::cast_from(finished(sum, bias, activation));
}

/// The element whose gradient is gathered, apart from depth and height.
#[derive(CubeType, Clone, Copy)]
struct GradientRow {
    n: u32,
    first_out: u32,
    /// Channel inside its group.
    c: u32,
    w: u32,
}

/// What the windows of output frame `qd` add through the taps of depth `kd`. One function per axis: nested
/// loops expand to nested closures, whose compile time grows steeply with depth.
#[cube]
fn gradient_of_frame<E: Float>(
    dy: &Tensor<E>,
    w: &Tensor<E>,
    geometry: &Geometry,
    row: &GradientRow,
    h: u32,
    qd: u32,
    kd: u32,
    #[comptime] padding: [PaddingMode; 3],
) -> f32 {
    let mut sum = 0.0f32;
    let [_, mode, _] = padding;
    for ph in geometry.height.first_alias(h, mode)..geometry.height.last_alias(h, mode) + 1i32 {
        for kh in 0..geometry.height.kernel {
            let qh = geometry.height.window_at_alias(h, ph, kh, mode);
            if qh < geometry.height.output {
                sum += gradient_of_row(dy, w, geometry, row, qd, kd, qh, kh, padding);
            }
        }
    }
    sum
}

/// What the windows of one output row add through the taps of one filter row.
#[cube]
fn gradient_of_row<E: Float>(
    dy: &Tensor<E>,
    w: &Tensor<E>,
    geometry: &Geometry,
    row: &GradientRow,
    qd: u32,
    kd: u32,
    qh: u32,
    kh: u32,
    #[comptime] padding: [PaddingMode; 3],
) -> f32 {
    let mut sum = 0.0f32;
    let [.., mode] = padding;
    for pw in geometry.width.first_alias(row.w, mode)..geometry.width.last_alias(row.w, mode) + 1i32 {
        for kw in 0..geometry.width.kernel {
            let qw = geometry.width.window_at_alias(row.w, pw, kw, mode);
            if qw < geometry.width.output {
                for block in 0..geometry.group_out.div_ceil(CHANNEL_BLOCK) {
                    #[unroll]
                    for i in 0..CHANNEL_BLOCK {
                        let in_group = block * CHANNEL_BLOCK + i;
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
