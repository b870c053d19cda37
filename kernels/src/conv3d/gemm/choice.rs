//! Which tile multiplies: the choice among the engine's tiles and those with windows in shared memory, from
//! timings of every tile on an H200 (through Vulkan; `examples/tiles.rs` repeats them).
//!
//! | channels of the result per group | tile (sites x channels) | because                                           |
//! |----------------------------------|-------------------------|---------------------------------------------------|
//! | any, with matrix units           | window, by its cost    | f16, 256 channels: 3.3 ms, gathered 6.0; one tap in a plane that is a run of sites: 0.21, gathered 0.40 |
//! | up to 4                          | 256x4                   | what Head and Stem leave: 0.43 ms, 128x8 takes 0.52 |
//! | 5 to 8                           | 128x8                   | fewer channels of padding                         |
//! | more, with matrix units          | 128x64 or 128x128       | f16: 0.17 ms where multiply-adds take 0.60        |
//! | 9 to 32                          | 128x32                  | fewer channels of padding                         |
//! | more, few tiles (half a wave)    | 64x64, the sum split    | 2x7x7, 512 channels: 0.095 ms, 128x64 takes 0.115 |
//! | a multiple of 128, many tiles    | 128x128                 | 384 channels: 1.60 ms, 128x64 takes 1.76          |
//! | others                           | 128x64                  | least waste                                       |
//!
//! On matrix units dw keeps a window in shared memory where frames are large and its tiles dense (f16, 64 ->
//! 128, 16x56x56: 0.15 ms, gathered 0.27), else its tile follows the output channels (multiply-adds take
//! 0.75). Without them it takes 128x64 for more than 32 output channels (512 -> 512, 2x7x7: 0.071 ms, 128x128
//! 0.080), with fewer than 512 rows (channels x taps) 64x64: 0.11 ms where 128x64 takes 0.14.

use super::depth::{depth_runs, depth_share};
use super::{MatrixTile, RegisterTile, is_patches};
use crate::conv3d::pass::Pass;
use crate::conv3d::plan::{Plan, matrix_tiles, product_extents, window_tiles, window_weight_tiles};
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::window::{self, WindowTile, WindowWeightTile};
use crate::limits::Limits;

/// The plan of this module's table, for what the engine serves.
pub(crate) fn choose(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Plan {
    // The weight gradient's sites are channels and taps.
    let patches = is_patches(problem, pass);
    let (rows, columns) = match (product_extents(problem, pass, patches), pass) {
        ((out, columns), Pass::WeightGradient) => (columns, out),
        (extents, _) => extents,
    };
    let matrices: Vec<_> = matrix_tiles(problem, pass, limits).collect();
    let gathered = matrix_tile(pass, columns, &matrices);
    let cost = |tile: &WindowTile| window_cost(problem, pass, tile, limits);
    let shifted = window_tiles(problem, pass, limits).filter_map(|tile| Some((cost(&tile)?, tile)));
    if let Some((cost, tile)) = shifted.min_by(|(a, _), (b, _)| a.total_cmp(b))
        && let Some(gathered) = gathered
        && cost * depth_share(problem, pass) * thinness(problem, pass, &tile, limits)
            < gathered_cost(problem, pass, &gathered)
    {
        return Plan::WindowGemm(tile);
    }
    let pays = |tile: &WindowWeightTile| gathered.is_some_and(|other| weight_pays(problem, tile, &other));
    if let Some(tile) = window_weight_tiles(problem, pass, limits).find(pays) {
        return Plan::WindowWeight(tile);
    }
    if columns > 8
        && let Some(tile) = gathered
    {
        return Plan::MatrixGemm(tile);
    }
    let (phases, _) = phases(problem, pass);
    // Half a wave of cubes of 128 units.
    let few = |tile_m: usize, tile_n: usize| {
        let tiles = rows.div_ceil(phases * tile_m) * columns.div_ceil(tile_n) * problem.window.groups;
        tiles < limits.cubes_in_flight / 4
    };
    let tile = match columns {
        ..=4 => RegisterTile::M256N4,
        5..=8 => RegisterTile::M128N8,
        9..=32 => RegisterTile::M128N32,
        _ if pass == Pass::WeightGradient => {
            if rows < 512 {
                RegisterTile::M64N64
            } else {
                RegisterTile::M128N64
            }
        }
        _ if few(128, 64) => RegisterTile::M64N64,
        _ if columns.is_multiple_of(128) && !few(128, 128) => RegisterTile::M128N128,
        _ => RegisterTile::M128N64,
    };
    Plan::Gemm(tile)
}

/// The engine's tile on matrix units: the narrower one where it holds all columns or, of a gathered result,
/// where its padding is less by more than an eighth, which the wider one is faster (144 channels: 0.098 ms,
/// 128x128 takes 0.110).
fn matrix_tile(pass: Pass, columns: usize, tiles: &[MatrixTile]) -> Option<MatrixTile> {
    let padded = |tile: &MatrixTile| columns.next_multiple_of(tile.tile_n);
    let wide = tiles.first()?;
    let narrow = tiles.last()?;
    let fits = columns <= narrow.tile_n;
    let denser = pass != Pass::WeightGradient && 9 * padded(narrow) < 8 * padded(wide);
    Some(if fits || denser { *narrow } else { *wide })
}

/// What a product with windows in shared memory costs, were all depth taps inside: the products it computes,
/// weighed by what a plane reads for each (f16, 32 channels, 128x128x128: 1.6 ms with planes of 64x32, 2.3
/// with half-empty ones of 64x64). None where its cubes fill less than an eighth of the device.
fn window_cost(problem: &Conv3dProblem, pass: Pass, tile: &WindowTile, limits: &Limits) -> Option<f64> {
    let tiles = window::extent(problem, pass, tile)?;
    let reads = 32.0 * (1.0 / tile.subgroup_m as f64 + 1.0 / tile.subgroup_n as f64);
    let reuse = if window::is_pointwise_in_frame(problem) {
        // Nothing is read twice, but in vectors: 256 channels, 3x1x1: 0.21 ms, gathered 0.40.
        1.2
    } else {
        // A window that one tap reads is read as often as the engine reads it, behind a barrier more.
        0.8 + 2.0 / window::taps_of_window(problem, pass)
    };
    (8 * window::threadgroups(problem, pass, tile, limits)? >= limits.cubes_in_flight)
        .then_some(tiles.products() * (0.2 + 0.8 * reads) * reuse)
}

/// How much longer a product with windows in shared memory takes for its cubes being few.
fn thinness(problem: &Conv3dProblem, pass: Pass, tile: &WindowTile, limits: &Limits) -> f64 {
    let count = window::threadgroups(problem, pass, tile, limits).map_or(1, |cubes| cubes.max(1));
    (limits.cubes_in_flight as f64 / 2.0 / count as f64).max(1.0).sqrt()
}

/// What gathering every tap anew costs, on the scale of [`window_cost`]. (f16, 96 channels, 3x3x3: 7.7 ms
/// with 4/3 of the products, 4.5 with shared windows; 384 to 768 channels, 3x1x1, read one by one: 0.135 and
/// 0.169.)
fn gathered_cost(problem: &Conv3dProblem, pass: Pass, tile: &MatrixTile) -> f64 {
    let patches = is_patches(problem, pass);
    let (rows, columns) = product_extents(problem, pass, patches);
    let (channels, _) = problem.channels_of(pass);
    let narrow = if tile.tile_n < tile.tile_m { 1.12 } else { 1.0 };
    let taps = if patches { 1 } else { problem.taps() };
    let products = product([rows, columns.next_multiple_of(tile.tile_n), channels, taps]);
    // Runs of frames and residue classes are launched one after the other.
    let (launches, share) = phases(problem, pass);
    let launched = if launches > 1 { 1.25 } else { 1.0 };
    2.3 * narrow * launched * share * products * problem.window.groups as f64
}

/// Whether the weight gradient's window in shared memory beats gathering: where it computes less than half as
/// much again, and a strip of a frame fills eight chunks. (f16, 64 to 192 channels, 56x56: 0.45 ms, gathered
/// 0.84; 1024 channels, 8x8: 0.38 and 0.18.)
fn weight_pays(problem: &Conv3dProblem, tile: &WindowWeightTile, gathered: &MatrixTile) -> bool {
    let Some(tiles) = window::weight::extent(problem, tile) else { return false };
    let (out, sites) = product_extents(problem, Pass::WeightGradient, false);
    let gathered = [out.next_multiple_of(gathered.tile_n), sites.next_multiple_of(gathered.tile_m)];
    let gathered = product([gathered[0], gathered[1], problem.window.groups, problem.positions()]);
    let [_, height, width] = problem.output();
    height * width >= 8 * tile.positions && tiles.products() < 1.5 * gathered
}

/// Counts whose product may pass 64 bits.
fn product(counts: [usize; 4]) -> f64 {
    counts.iter().map(|count| *count as f64).product()
}

/// Launches of the engine for a pass, and the share of all taps that each of them has on average.
pub(crate) fn phases(problem: &Conv3dProblem, pass: Pass) -> (usize, f64) {
    if pass == Pass::WeightGradient || is_patches(problem, pass) {
        return (1, 1.0);
    }
    if let Some(runs) = depth_runs(problem, pass) {
        return (runs.len(), depth_share(problem, pass));
    }
    if pass != Pass::InputGradient {
        return (1, 1.0);
    }
    // A stride beyond the extent leaves phases without elements.
    let launched = [0, 1, 2].map(|axis| problem.window.stride[axis].min(problem.input[axis]).max(1));
    let share = problem.window.stride.iter().map(|stride| 1.0 / *stride as f64).product();
    (launched.iter().product(), share)
}
