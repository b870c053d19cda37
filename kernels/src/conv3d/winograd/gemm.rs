//! `M[point, o, (frame, tile)] = sum over (kd, c) of V[point, c, (source(frame, kd), tile)] * U[point, (kd, c), o]`
//!
//! One matrix product per point: rows are the region's (frame, tile) pairs, columns the output channels, K = KD * C.
//! The overlap of frames is in the row's address, not in memory. A frame in the zero padding contributes nothing.
//! Tile picture, bytes and operations per cube: [`crate::conv3d::tile`]. Points are the slowest index of the grid.

use super::{Call, Region, RegionArgs};
use crate::conv3d::tile::{REGISTERS, TileConfig, multiply_stages, unit_column, unit_row};
use crate::grid::{Span, dispatches};
use crate::operand::Operand;
use cubecl::prelude::*;

/// How output frames find their input frames, and the extents of the product.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Depth {
    input: u32,
    kernel: u32,
    stride: u32,
    dilation: u32,
    begin: i32,
    in_channels: u32,
    out_channels: u32,
    tiles_m: usize,
    tiles_n: usize,
}

pub(crate) fn launch(call: &Call, region: &Region, [u, v, m]: [&Operand; 3]) {
    let correlation = call.correlation;
    let rows = region.frame_count() * region.tiles(call);
    let columns = correlation.out_channels;
    let config = if rows > 32 && columns > 32 { TileConfig::LARGE } else { TileConfig::SMALL };
    let (tiles_m, tiles_n) = (rows.div_ceil(config.tile_m), columns.div_ceil(config.tile_n));
    let points = call.tile.inputs() * call.tile.inputs();
    let k = correlation.kernel_depth * correlation.in_channels;
    let operations = 2.0 * (config.tile_m * config.tile_n * k) as f64;
    for dispatch in dispatches(tiles_m * tiles_n * points, operations, call.limits) {
        // SAFETY: rows, columns and sums are checked against the extents in `Depth` and `RegionArgs`.
        unsafe {
            gemm_kernel::launch_unchecked(
                call.client,
                dispatch.count(),
                CubeDim::new_1d(config.units()),
                call.address,
                v.tensor_arg(),
                u.tensor_arg(),
                m.tensor_arg(),
                dispatch.span(),
                region.args(call),
                DepthLaunch::new(
                    correlation.input[0] as u32,
                    correlation.kernel_depth as u32,
                    correlation.stride_depth as u32,
                    correlation.dilation_depth as u32,
                    correlation.begin[0],
                    correlation.in_channels as u32,
                    correlation.out_channels as u32,
                    tiles_m,
                    tiles_n,
                ),
                correlation.replicate,
                config,
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn gemm_kernel(
    v: &Tensor<f32>,
    u: &Tensor<f32>,
    m: &mut Tensor<f32>,
    span: Span,
    region: RegionArgs,
    depth: Depth,
    #[comptime] replicate: bool,
    #[comptime] config: TileConfig,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let cube = span.cube();
    let tile_m = cube % depth.tiles_m;
    let rest = cube / depth.tiles_m;
    let tile_n = rest % depth.tiles_n;
    let point = rest / depth.tiles_n;

    let tiles = region.rows as usize * region.columns as usize;
    let rows = region.frames as usize * tiles;
    let v_rows = region.sources as usize * tiles;
    let columns = depth.out_channels as usize;
    let in_channels = depth.in_channels as usize;
    let sum_length = depth.kernel as usize * in_channels;

    let units = comptime!(config.units() as usize);
    let mut lhs_stage = Shared::<[f32]>::new_slice(comptime!(config.tile_m * config.tile_k));
    let mut rhs_stage = Shared::<[f32]>::new_slice(comptime!(config.tile_n * config.tile_k));
    let mut registers = Array::<f32>::new(comptime!(REGISTERS * REGISTERS));
    #[unroll]
    for i in 0..comptime!(REGISTERS * REGISTERS) {
        registers[i] = 0.0f32;
    }

    let unit = UNIT_POS as usize;
    let row_in_tile = unit % config.tile_m;
    let column_in_tile = unit % config.tile_n;
    let row = tile_m * config.tile_m + row_in_tile;
    let column = tile_n * config.tile_n + column_in_tile;
    let frame = row / tiles;
    let tile = row - frame * tiles;
    // Where tap 0 of this row's output frame reads; negative in the padding.
    let first_frame = ((region.first_frame + frame as u32) * depth.stride) as i32 - depth.begin;

    let mut stage_k = 0usize;
    while stage_k < sum_length {
        #[unroll]
        for step in 0..comptime!(config.lhs_loads()) {
            let k_in_stage = unit / config.tile_m + step * (units / config.tile_m);
            let k = stage_k + k_in_stage;
            let mut value = 0.0f32;
            if row < rows && k < sum_length {
                let kd = k / in_channels;
                let c = k - kd * in_channels;
                let mut source = first_frame + (kd as u32 * depth.dilation) as i32;
                if comptime!(replicate) {
                    source = clamp(source, 0i32, depth.input as i32 - 1i32);
                }
                if (source as u32) < depth.input {
                    let at = (source as u32 - region.first_source) as usize * tiles + tile;
                    value = v[(point * in_channels + c) * v_rows + at];
                }
            }
            lhs_stage[k_in_stage * config.tile_m + row_in_tile] = value;
        }
        #[unroll]
        for step in 0..comptime!(config.rhs_loads()) {
            let k_in_stage = unit / config.tile_n + step * (units / config.tile_n);
            let k = stage_k + k_in_stage;
            let mut value = 0.0f32;
            if column < columns && k < sum_length {
                value = u[(point * sum_length + k) * columns + column];
            }
            rhs_stage[k_in_stage * config.tile_n + column_in_tile] = value;
        }
        sync_cube();
        multiply_stages(&lhs_stage, &rhs_stage, &mut registers, config);
        sync_cube();
        stage_k += config.tile_k;
    }

    #[unroll]
    for i in 0..REGISTERS {
        let row = tile_m * config.tile_m + unit_row(config) + i;
        if row < rows {
            #[unroll]
            for j in 0..REGISTERS {
                let column = tile_n * config.tile_n + unit_column(config) + j;
                if column < columns {
                    m[(point * columns + column) * rows + row] = registers[i * REGISTERS + j];
                }
            }
        }
    }
}
