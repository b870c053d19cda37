//! Chooses the plan among the tiles of the gathered GEMM and of the GEMM with windows in shared memory
//! ([`crate::conv3d::window`]). The thresholds come from timings of every tile (`cargo xtask bench --plan
//! all` repeats them).
//!
//! | columns (channels) per group   | plan, tile (M x N)  | because                                        |
//! |--------------------------------|---------------------|------------------------------------------------|
//! | any, with matrix units         | window, if cheaper  | loads each source element once per window      |
//! | up to 4                        | 256x4               | least padding of N                             |
//! | 5 to 8                         | 128x8               | least padding of N                             |
//! | more, with matrix units        | 128x64 or 128x128   | several times the rate of multiply-adds        |
//! | 9 to 32                        | 128x32              | least padding of N                             |
//! | more, few tiles (half a wave)  | 64x64, split-K      | more threadgroups                              |
//! | a multiple of 128, many tiles  | 128x128             | most FLOP per byte                             |
//! | others                         | 128x64              | least padding of N                             |
//!
//! The weight gradient on matrix units keeps a window in shared memory where frames are large and its tiles
//! dense; else its tile follows the output channels. Without matrix units it takes 128x64 for more than 32
//! output channels, but 64x64 with fewer than 512 rows (channels x taps).

use super::depth::{depth_slices, depth_tap_fraction};
use super::{MatrixTile, RegisterTile, is_patches};
use crate::conv3d::pass::Pass;
use crate::conv3d::plan::{Plan, matrix_tiles, product_extents, window_tiles, window_weight_tiles};
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::window::{self, WindowTile, WindowWeightTile};
use crate::limits::Limits;

/// The plan of this module's table, for a problem that the gathered GEMM serves.
pub(crate) fn choose(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Plan {
    // The rows of a weight gradient are channels and taps.
    let patches = is_patches(problem, pass);
    let (rows, columns) = match (product_extents(problem, pass, patches), pass) {
        ((out, taps), Pass::WeightGradient) => (taps, out),
        (shape, _) => shape,
    };
    let matrices: Vec<_> = matrix_tiles(problem, pass, limits).collect();
    let gathered = matrix_tile(pass, columns, &matrices);
    let cost = |tile: &WindowTile| window_cost(problem, pass, tile, limits);
    let windows = window_tiles(problem, pass, limits).filter_map(|tile| Some((cost(&tile)?, tile)));
    if let Some((cost, tile)) = windows.min_by(|(a, _), (b, _)| a.total_cmp(b))
        && let Some(gathered) = gathered
        && cost * depth_tap_fraction(problem, pass) * occupancy_penalty(problem, pass, &tile, limits)
            < gathered_cost(problem, pass, &gathered)
    {
        return Plan::WindowGemm(tile);
    }
    let pays =
        |tile: &WindowWeightTile| gathered.is_some_and(|other| window_weight_pays(problem, tile, &other));
    if let Some(tile) = window_weight_tiles(problem, pass, limits).find(pays) {
        return Plan::WindowWeight(tile);
    }
    if columns > 8
        && let Some(tile) = gathered
    {
        return Plan::MatrixGemm(tile);
    }
    let (phases, _) = phases(problem, pass);
    // Half a wave of threadgroups of 128 threads.
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

/// The gathered tile on matrix units: the narrow one where it holds all columns or (not in the weight
/// gradient) saves more than an eighth of the padded columns; the wide one is faster by about that much.
fn matrix_tile(pass: Pass, columns: usize, tiles: &[MatrixTile]) -> Option<MatrixTile> {
    let padded = |tile: &MatrixTile| columns.next_multiple_of(tile.tile_n);
    let wide = tiles.first()?;
    let narrow = tiles.last()?;
    let fits = columns <= narrow.tile_n;
    let denser = pass != Pass::WeightGradient && 9 * padded(narrow) < 8 * padded(wide);
    Some(if fits || denser { *narrow } else { *wide })
}

/// The cost of a GEMM with windows in shared memory, assuming that all depth taps are valid: its
/// multiply-adds, weighted by a subgroup's shared-memory loads for each. None where its threadgroups fill
/// less than an eighth of the device.
fn window_cost(problem: &Conv3dProblem, pass: Pass, tile: &WindowTile, limits: &Limits) -> Option<f64> {
    let tiles = window::extent(problem, pass, tile)?;
    let reads = 32.0 * (1.0 / tile.subgroup_m as f64 + 1.0 / tile.subgroup_n as f64);
    let reuse = if window::is_pointwise_in_frame(problem) {
        // No window to reuse, but vector loads: half the time of gathering.
        1.2
    } else {
        // With one tap per window there is no reuse, and one barrier more than gathering.
        0.8 + 2.0 / window::taps_of_window(problem, pass)
    };
    (8 * window::threadgroups(problem, pass, tile, limits)? >= limits.cubes_in_flight)
        .then_some(tiles.products() * (0.2 + 0.8 * reads) * reuse)
}

/// The slowdown of a GEMM with windows in shared memory whose threadgroups do not fill half the device.
fn occupancy_penalty(problem: &Conv3dProblem, pass: Pass, tile: &WindowTile, limits: &Limits) -> f64 {
    let count = window::threadgroups(problem, pass, tile, limits).map_or(1, |count| count.max(1));
    (limits.cubes_in_flight as f64 / 2.0 / count as f64).max(1.0).sqrt()
}

/// The cost of the gathered GEMM, which loads the source again for each tap, on the scale of [`window_cost`].
fn gathered_cost(problem: &Conv3dProblem, pass: Pass, tile: &MatrixTile) -> f64 {
    let patches = is_patches(problem, pass);
    let (rows, columns) = product_extents(problem, pass, patches);
    let (channels, _) = problem.channels_of(pass);
    let narrow = if tile.tile_n < tile.tile_m { 1.12 } else { 1.0 };
    let taps = if patches { 1 } else { problem.taps() };
    let products = product([rows, columns.next_multiple_of(tile.tile_n), channels, taps]);
    // Depth slices and residue classes are launched one after the other.
    let (launches, taps_fraction) = phases(problem, pass);
    let launched = if launches > 1 { 1.25 } else { 1.0 };
    2.3 * narrow * launched * taps_fraction * products * problem.window.groups as f64
}

/// Whether the weight gradient's window in shared memory beats gathering: it computes less than 1.5 times as
/// many multiply-adds, and a frame has at least eight chunks of positions.
fn window_weight_pays(problem: &Conv3dProblem, tile: &WindowWeightTile, gathered: &MatrixTile) -> bool {
    let Some(tiles) = window::weight::extent(problem, tile) else { return false };
    let (out, taps) = product_extents(problem, Pass::WeightGradient, false);
    let gathered = [out.next_multiple_of(gathered.tile_n), taps.next_multiple_of(gathered.tile_m)];
    let gathered = product([gathered[0], gathered[1], problem.window.groups, problem.positions()]);
    let [_, height, width] = problem.output();
    height * width >= 8 * tile.positions && tiles.products() < 1.5 * gathered
}

/// The product of counts, which may exceed 64 bits.
fn product(counts: [usize; 4]) -> f64 {
    counts.iter().map(|count| *count as f64).product()
}

/// Launches of the gathered GEMM for a pass, and the average fraction of all taps in each of them.
pub(crate) fn phases(problem: &Conv3dProblem, pass: Pass) -> (usize, f64) {
    if pass == Pass::WeightGradient || is_patches(problem, pass) {
        return (1, 1.0);
    }
    if let Some(slices) = depth_slices(problem, pass) {
        return (slices.len(), depth_tap_fraction(problem, pass));
    }
    if pass != Pass::InputGradient {
        return (1, 1.0);
    }
    // Phases beyond the extent have no elements.
    let launched = [0, 1, 2].map(|axis| problem.window.stride[axis].min(problem.input[axis]).max(1));
    let fraction = problem.window.stride.iter().map(|stride| 1.0 / *stride as f64).product();
    (launched.iter().product(), fraction)
}
