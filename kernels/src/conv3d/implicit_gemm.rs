//! conv3d as a tiled matrix product whose operands are gathered while they are loaded: no im2col in memory.
//! Serves what the gathered implicit GEMM of `gemm/` declines (more than 10 taps along a padded axis).
//!
//! ```text
//! pass             M (rows)           N (columns)          K (sum)                   lhs(m, k)    rhs(k, n)
//! forward          output positions   O / groups           C / groups * taps         X(m, k)      w(n, k)
//! input gradient   input positions    C / groups           O / groups * taps         dy(m, k)     w(k, n)
//! weight gradient  O / groups         C / groups * taps    output positions (split)  dy(k, m)     X(k, n)
//! ```
//!
//! Output positions are N * OD * OH * OW; `X(position, (c, tap))` is the input that the tap reads, zero or
//! clamped outside. Layouts: any strides for every tensor. A threadgroup computes one tile of one group and
//! one split-K slice; the picture of the tile, its bytes and FLOP are in [`super::implicit_gemm_tile`].
//! Partial tiles are predicated: any sizes, strides and groups. The weight gradient leaves fp32 partials that
//! [`super::reduce`] adds. Declined: the input gradient under replicate padding, which runs on the padded
//! input and is folded by [`super::fold`].

use super::args::{Geometry, Position, offset};
use super::call::Conv3dCall;
use super::direct::read_tap;
use super::family::Family;
use super::implicit_gemm_tile::{REGISTERS, TileConfig, multiply_stages, thread_column, thread_row};
use super::loops::nest;
use super::needs::kernel_needs;
use super::pass::Pass;
use super::problem::{Conv3dProblem, PaddingMode};
use super::reduce;
use super::split::ReductionSplit;
use super::tiles::{Tiles, gemm_extents};
use crate::activation::{Activation, activate};
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Extents of one group's GEMM and of the grid of its tiles.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct GemmExtents {
    m: usize,
    n: usize,
    k: usize,
    /// K elements of one split-K slice; K itself where the sum is not split.
    slice_k: usize,
    tiles_m: usize,
    tiles_n: usize,
    groups: usize,
}

impl Family for TileConfig {
    fn plan_name(&self) -> String {
        format!("implicit_gemm_{}x{}x{}", self.tile_m, self.tile_n, self.tile_k)
    }

    fn serves(&self, _: &Conv3dProblem, _: Pass, _: &Limits) -> Result<(), ConvError> {
        Ok(())
    }

    fn needs(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Needs {
        let [_, _, k] = gemm_extents(problem, pass, false);
        let slice_k = match pass {
            Pass::WeightGradient => weight_split(problem, *self, limits).length,
            _ => k,
        };
        let inner = if unrolls(*self, slice_k, limits) { 0 } else { inner_iterations(*self) };
        let iterations = nest(slice_k.div_ceil(self.tile_k), inner);
        kernel_needs(self.shared_bytes(), self.threads() as usize, iterations)
    }

    fn tiles(&self, problem: &Conv3dProblem, pass: Pass) -> Option<Tiles> {
        Some(Tiles::of_gemm(problem, pass, false, (1, 1.0), [self.tile_m, self.tile_n, self.tile_k]))
    }

    fn launch(&self, call: &Conv3dCall, operands: [&Operand; 3]) -> Result<(), ConvError> {
        if call.pass == Pass::WeightGradient {
            return weight_gradient(call, *self, operands);
        }
        let [_, _, k] = gemm_extents(&call.problem, call.pass, false);
        launch(call, *self, (k, 1), operands)
    }
}

/// Iterations of the loops in a stage: its loads and its product.
fn inner_iterations(config: TileConfig) -> usize {
    [config.lhs_loads(), config.rhs_loads(), config.tile_k].iter().map(|count| nest(*count, 0)).sum()
}

/// Whether these loops are unrolled: where the device would end them. As loops they take a third of the code.
fn unrolls(config: TileConfig, slice_k: usize, limits: &Limits) -> bool {
    let iterations = nest(slice_k.div_ceil(config.tile_k), inner_iterations(config));
    limits.loop_iterations.is_some_and(|most| iterations > most)
}

/// The weight gradient's split-K slices.
fn weight_split(problem: &Conv3dProblem, config: TileConfig, limits: &Limits) -> ReductionSplit {
    let weights = problem.weight_shape().iter().product();
    ReductionSplit::filling(problem.positions(), weights, 1, config.tile_k, limits)
}

/// Launches the weight gradient: operands x, dy, dw.
fn weight_gradient(
    call: &Conv3dCall,
    config: TileConfig,
    [x, dy, dw]: [&Operand; 3],
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, .. } = *call;
    let split = weight_split(problem, config, limits);
    let partials = reduce::partials(client, split.slices, dw);
    launch(call, config, (split.length, split.slices), [dy, x, &partials])?;
    reduce::sum_partials(client, limits, &partials, dw)
}

/// Launches the product. dx may be fp32 whatever the problem's dtype.
fn launch(
    call: &Conv3dCall,
    config: TileConfig,
    (slice_k, slices): (usize, usize),
    [lhs, rhs, out]: [&Operand; 3],
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, pass, bias, .. } = *call;
    let [m, n, k] = gemm_extents(problem, pass, false);
    let (tiles_m, tiles_n) = (m.div_ceil(config.tile_m), n.div_ceil(config.tile_n));
    let groups = problem.window.groups;
    let threadgroups = tiles_m * tiles_n * groups * slices;
    let address = address_type("conv3d", &[lhs, rhs, out], m.max(n).max(k).max(threadgroups), limits)?;
    let operations = 2.0 * (config.tile_m * config.tile_n * slice_k) as f64;
    for dispatch in dispatches(threadgroups, operations, limits) {
        // SAFETY: see `conv3d`; the kernel checks rows, columns and K indices against `GemmExtents`.
        unsafe {
            gemm_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(config.threads()),
                address,
                lhs.tensor_arg(),
                rhs.tensor_arg(),
                bias.map(|bias| bias.tensor_arg()).into(),
                out.tensor_arg(),
                problem.geometry(),
                GemmExtentsLaunch { m, n, k, slice_k, tiles_m, tiles_n, groups },
                dispatch.span(),
                pass,
                problem.window.padding_mode,
                problem.activation_of(pass),
                config,
                unrolls(config, slice_k, limits),
                problem.dtype.elem(),
                out.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn gemm_kernel<E: Float, O: Float>(
    lhs: &Tensor<E>,
    rhs: &Tensor<E>,
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut Tensor<O>,
    geometry: Geometry,
    gemm: GemmExtents,
    span: Span,
    #[comptime] pass: Pass,
    #[comptime] padding: PaddingMode,
    #[comptime] activation: Activation,
    #[comptime] config: TileConfig,
    #[comptime] unroll: bool,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // All threads of a threadgroup exit together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let threadgroup = span.index();
    let tile_m = threadgroup % gemm.tiles_m;
    let rest = threadgroup / gemm.tiles_m;
    let tile_n = rest % gemm.tiles_n;
    let rest = rest / gemm.tiles_n;
    let group = (rest % gemm.groups) as u32;
    let slice = rest / gemm.groups;

    let threads = comptime!(config.threads() as usize);
    let mut lhs_stage = Shared::<[f32]>::new_slice(comptime!(config.tile_m * config.tile_k));
    let mut rhs_stage = Shared::<[f32]>::new_slice(comptime!(config.tile_n * config.tile_k));
    let mut registers = Array::<f32>::new(comptime!(REGISTERS * REGISTERS));
    #[unroll]
    for i in 0..comptime!(REGISTERS * REGISTERS) {
        registers[i] = 0.0f32;
    }

    // A thread always loads the same row of lhs and the same column of rhs, and steps along K.
    let thread = UNIT_POS as usize;
    let row_in_tile = thread % config.tile_m;
    let column_in_tile = thread % config.tile_n;
    let row = tile_m * config.tile_m + row_in_tile;
    let column = tile_n * config.tile_n + column_in_tile;
    let row_position = decode_row(&geometry, row, pass);

    let first_k = slice * gemm.slice_k;
    let end_k = min(first_k + gemm.slice_k, gemm.k);
    let mut stage_k = first_k;
    while stage_k < end_k {
        #[unroll(unroll)]
        for step in 0..config.lhs_loads() {
            let k_in_stage = thread / config.tile_m + step * (threads / config.tile_m);
            let k = stage_k + k_in_stage;
            let mut value = 0.0f32;
            if row < gemm.m && k < end_k {
                value = load_lhs(lhs, &geometry, group, row, &row_position, k, pass, padding);
            }
            lhs_stage[k_in_stage * config.tile_m + row_in_tile] = value;
        }
        #[unroll(unroll)]
        for step in 0..config.rhs_loads() {
            let k_in_stage = thread / config.tile_n + step * (threads / config.tile_n);
            let k = stage_k + k_in_stage;
            let mut value = 0.0f32;
            if column < gemm.n && k < end_k {
                value = load_rhs(rhs, &geometry, group, column as u32, k, pass, padding);
            }
            rhs_stage[k_in_stage * config.tile_n + column_in_tile] = value;
        }
        sync_cube();
        multiply_stages(&lhs_stage, &rhs_stage, &mut registers, config, unroll);
        sync_cube();
        stage_k += config.tile_k;
    }

    #[unroll]
    for i in 0..REGISTERS {
        let row = tile_m * config.tile_m + thread_row(config) + i;
        if row < gemm.m {
            let position = decode_row(&geometry, row, pass);
            #[unroll]
            for j in 0..REGISTERS {
                let column = tile_n * config.tile_n + thread_column(config) + j;
                if column < gemm.n {
                    let value = registers[i * REGISTERS + j];
                    if comptime!(pass == Pass::WeightGradient) {
                        let o = group as usize * gemm.m + row;
                        let weights = gemm.groups * gemm.m * gemm.n;
                        out[slice * weights + o * gemm.n + column] = O::cast_from(value);
                    } else {
                        let channel = group * gemm.n as u32 + column as u32;
                        let bias: ComptimeOption<f32> =
                            bias.map(|bias| f32::cast_from(bias[channel as usize * bias.stride(0)]));
                        let value = value + bias.unwrap_or_else(|| 0.0f32.runtime());
                        let at = offset(&*out, position.n, channel, position.d, position.h, position.w);
                        out[at] = O::cast_from(activate(value, activation));
                    }
                }
            }
        }
    }
}

/// The position of a GEMM row: of the output, of the input, or (weight gradient, whose rows are channels)
/// none.
#[cube]
fn decode_row(geometry: &Geometry, row: usize, #[comptime] pass: Pass) -> Position {
    if comptime!(pass == Pass::Forward) {
        geometry.output_position(row)
    } else if comptime!(pass == Pass::InputGradient) {
        geometry.input_position(row)
    } else {
        Position { n: 0u32.runtime(), d: 0u32.runtime(), h: 0u32.runtime(), w: 0u32.runtime() }
    }
}

#[cube]
fn load_lhs<E: Float>(
    lhs: &Tensor<E>,
    geometry: &Geometry,
    group: u32,
    row: usize,
    position: &Position,
    k: usize,
    #[comptime] pass: Pass,
    #[comptime] padding: PaddingMode,
) -> f32 {
    if comptime!(pass == Pass::Forward) {
        let tap = geometry.channel_tap(k as u32);
        let first = group * geometry.group_channels;
        read_tap(lhs, geometry, position.n, first, position.d, position.h, position.w, &tap, padding)
    } else if comptime!(pass == Pass::InputGradient) {
        // K is (output channel, tap), taps in the weight's order.
        let tap = geometry.channel_tap(k as u32);
        let qd = geometry.depth.window_at(position.d as i32, tap.d);
        let qh = geometry.height.window_at(position.h as i32, tap.h);
        let qw = geometry.width.window_at(position.w as i32, tap.w);
        let mut value = 0.0f32;
        if qd < geometry.depth.output && qh < geometry.height.output && qw < geometry.width.output {
            let o = group * geometry.group_out + tap.c;
            value = f32::cast_from(lhs[offset(lhs, position.n, o, qd, qh, qw)]);
        }
        value
    } else {
        let q = geometry.output_position(k);
        f32::cast_from(lhs[offset(lhs, q.n, group * geometry.group_out + row as u32, q.d, q.h, q.w)])
    }
}

#[cube]
fn load_rhs<E: Float>(
    rhs: &Tensor<E>,
    geometry: &Geometry,
    group: u32,
    column: u32,
    k: usize,
    #[comptime] pass: Pass,
    #[comptime] padding: PaddingMode,
) -> f32 {
    if comptime!(pass == Pass::Forward) {
        let tap = geometry.channel_tap(k as u32);
        f32::cast_from(rhs[offset(rhs, group * geometry.group_out + column, tap.c, tap.d, tap.h, tap.w)])
    } else if comptime!(pass == Pass::InputGradient) {
        let tap = geometry.channel_tap(k as u32);
        f32::cast_from(rhs[offset(rhs, group * geometry.group_out + tap.c, column, tap.d, tap.h, tap.w)])
    } else {
        let q = geometry.output_position(k);
        let tap = geometry.channel_tap(column);
        read_tap(rhs, geometry, q.n, group * geometry.group_channels, q.d, q.h, q.w, &tap, padding)
    }
}
