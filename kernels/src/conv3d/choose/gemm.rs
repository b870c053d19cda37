//! Chooses the plan among the tiles of the gathered GEMM and of the GEMM with windows in shared memory
//! ([`crate::conv3d::window`]). The thresholds come from timings of every tile (`cargo xtask bench --plan
//! all` repeats them).
//!
//! | columns (channels) per group   | plan, tile (M x N)  | because                                        |
//! |--------------------------------|---------------------|------------------------------------------------|
//! | any, with matrix units         | window, if cheaper  | loads each source element once per window      |
//! | few tiles on fragments of 16   | the shorter time of | whole waves, the partials of split-K and       |
//! |                                | gathered and window | launches decide                                |
//! | up to 4                        | 256x4               | least padding of N                             |
//! | 5 to 8                         | 128x8               | least padding of N                             |
//! | more, with matrix units        | 128x64 or 128x128   | several times the rate of multiply-adds        |
//! |                                | (Apple 64x64, 64x32)|                                                |
//! | 9 to 32                        | 128x32              | least padding of N                             |
//! | more, few tiles (half a wave)  | 64x64, split-K      | more threadgroups                              |
//! | more, on a software device     | 64x64               | one kernel to compile, not three               |
//! | a multiple of 128, many tiles  | 128x128             | most FLOP per byte                             |
//! | others                         | 128x64              | least padding of N                             |
//!
//! The weight gradient on fragments of 16 takes the shorter time as well; on others it keeps a window in
//! shared memory where frames are large and its tiles dense; else its tile follows the output channels.
//! Without matrix units it takes 128x64 for more than 32 output channels, but 64x64 with fewer than 512 rows
//! (channels x taps) and on a software device.
//!
//! Matrix units have two rules, and [`is_timed`] is the boundary between them. *Times* count launches,
//! the waves and the split-K partials of a single product. *Costs* decide everything else: several products,
//! fragments of other sizes, tiles that fill the device. Neither can replace the other: costs would decide a
//! third of the timed calls differently, times a tenth of the other single products (docs/decisions/gemm.md).

use super::MEASURED_FRAGMENT;
use crate::conv3d::gemm::{
    GemmTile, MatrixTile, RegisterTile, cost as gathered_time, depth_tap_fraction, is_patches, launches,
    mma_tiles, serves,
};
use crate::conv3d::pass::Pass;
use crate::conv3d::plan::PassProblem;
use crate::conv3d::plan::Plan;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::tiles::gemm_extents;
use crate::conv3d::window::{self, WindowKernel, WindowTile, WindowWeightTile};
use crate::limits::Limits;

/// Columns up to which the tiles of fp32 multiply-adds for few columns are taken, matrix units or not.
const FEW_COLUMNS: usize = 8;
/// Rows (channels x taps) of a weight gradient from which the larger of its tiles is taken.
const MANY_WEIGHT_ROWS: usize = 512;
/// The wide tile on matrix units beats the narrow one by this factor if no columns are padding.
const WIDE_GAIN: f64 = 1.12;
/// Cost of a gathered multiply-add, on the scale of [`window_cost`].
const GATHERED_COST: f64 = 2.3;
/// Slowdown of a gathered GEMM that is several launches: depth slices or residue classes.
const LAUNCHES_COST: f64 = 1.25;
/// Cost of a window kernel whose frames have one tap: no window to reuse, but vector loads, half the time of
/// gathering.
const POINTWISE_COST: f64 = 1.2;
/// Cost of a window kernel with many taps, and what one tap per window adds: no reuse, and one barrier more
/// than gathering.
const WINDOW_COST: f64 = 0.8;
const SINGLE_TAP_COST: f64 = 2.0;
/// The part of a window kernel's cost that is multiply-adds; the rest is loads from shared memory.
const MULTIPLY_SHARE: f64 = 0.2;
/// The multiply-adds of the weight gradient's window kernel, relative to gathering, that its loads are worth.
const MOST_WEIGHT_PRODUCTS: f64 = 1.5;
/// The fewest chunks of positions of a frame for that kernel.
const MIN_WEIGHT_CHUNKS: usize = 8;
/// The time of a gathered multiply-add, relative to a window kernel's with subgroups of 64x64 results. This
/// and the following on [`MEASURED_FRAGMENT`] (H200, tiles of 128x128 in full waves).
const GATHERED_TIME: f64 = 1.45;
/// And in the weight gradient, relative to its window kernel's.
const GATHERED_WEIGHT_TIME: f64 = 2.4;
/// What the narrow tile adds to the time of a multiply-add, and packing the weights to an input gradient.
const NARROW_TIME: f64 = 1.27;
const PACKING_TIME: f64 = 1.12;

/// The plan of this module's table, for a problem that the gathered GEMM serves.
pub(super) fn choose(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Plan {
    let matrices: Vec<_> = mma_tiles(problem, pass, limits).collect();
    let [_, columns] = rows_and_columns(problem, pass);
    if columns > FEW_COLUMNS && is_timed(problem, pass, &matrices, limits) {
        return shortest(problem, pass, &matrices, limits);
    }
    let gathered = matrix_tile(pass, columns, &matrices);
    if let Some(kernel) = gathered.and_then(|gathered| cheaper_window(problem, pass, &gathered, limits)) {
        return Plan::Window(kernel);
    }
    Plan::Gemm(match gathered {
        Some(tile) if columns > FEW_COLUMNS => GemmTile::Mma(tile),
        _ => GemmTile::Fma(fma_tile(problem, pass, limits)),
    })
}

/// Rows and columns of the gathered GEMM; the rows of a weight gradient are channels and taps.
fn rows_and_columns(problem: &Conv3dProblem, pass: Pass) -> [usize; 2] {
    let [rows, columns, _] = gemm_extents(problem, pass, is_patches(problem, pass));
    if pass == Pass::WeightGradient { [columns, rows] } else { [rows, columns] }
}

/// The window kernel that costs less than the gathered GEMM on matrix units, if any.
fn cheaper_window(
    problem: &Conv3dProblem,
    pass: Pass,
    gathered: &MatrixTile,
    limits: &Limits,
) -> Option<WindowKernel> {
    let cost = |tile: WindowTile| Some((window_cost(problem, pass, &tile, limits)?, tile));
    let windows = window::tiles(problem, pass, limits).filter_map(cost);
    let cheapest = windows.min_by(|(a, _), (b, _)| a.total_cmp(b)).filter(|(cost, tile)| {
        cost * depth_tap_fraction(problem, pass) * occupancy_penalty(problem, pass, tile, limits)
            < gathered_cost(problem, pass, gathered)
    });
    let weight = || {
        let mut tiles = window::weight::tiles(problem, pass, limits);
        tiles.find(|tile| window_weight_pays(problem, tile, gathered)).map(WindowKernel::Weight)
    };
    cheapest.map(|(_, tile)| WindowKernel::Gemm(tile)).or_else(weight)
}

/// The gathered tile of multiply-adds.
fn fma_tile(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> RegisterTile {
    let [rows, columns] = rows_and_columns(problem, pass);
    let (phases, _) = launches(problem, pass);
    // Only these limit loop iterations.
    let software = limits.loop_iterations.is_some();
    // Half a wave of threadgroups of 128 threads.
    let few = |tile_m: usize, tile_n: usize| {
        let tiles = rows.div_ceil(phases * tile_m) * columns.div_ceil(tile_n) * problem.window.groups;
        tiles < limits.cubes_in_flight / 4
    };
    match columns {
        ..=4 => RegisterTile::M256N4,
        5..=FEW_COLUMNS => RegisterTile::M128N8,
        9..=32 => RegisterTile::M128N32,
        _ if software => RegisterTile::M64N64,
        _ if pass == Pass::WeightGradient && rows < MANY_WEIGHT_ROWS => RegisterTile::M64N64,
        _ if pass == Pass::WeightGradient => RegisterTile::M128N64,
        _ if few(128, 64) => RegisterTile::M64N64,
        _ if columns.is_multiple_of(128) && !few(128, 128) => RegisterTile::M128N128,
        _ => RegisterTile::M128N64,
    }
}

/// The gathered tiles of multiply-adds that the choice or its fallback may take. Wide ones only where a tile
/// on matrix units does not serve the pass, or needs more than the device has.
pub(in crate::conv3d) fn fma_tiles(problem: &PassProblem, limits: &Limits) -> Vec<RegisterTile> {
    let (launched, pass) = (&problem.launched, problem.pass);
    let fits = |tile| Plan::Gemm(GemmTile::Mma(tile)).check_needs(problem, limits).is_ok();
    let mut matrices = mma_tiles(launched, pass, limits).peekable();
    let narrow_only = matrices.peek().is_some() && matrices.all(fits);
    let mut tiles = if serves(launched, pass) { RegisterTile::ALL.to_vec() } else { Vec::new() };
    tiles.retain(|tile| !narrow_only || tile.tile_n <= FEW_COLUMNS);
    tiles
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
    (8 * window::threadgroups(problem, pass, tile, limits)? >= limits.cubes_in_flight)
        .then_some(tiles.products() * window_factor(problem, pass, tile))
}

/// The cost of one multiply-add of a window kernel: about 1 for 3x3 windows and subgroups of 64x64 results.
fn window_factor(problem: &Conv3dProblem, pass: Pass, tile: &WindowTile) -> f64 {
    let loads = 32.0 * (1.0 / tile.subgroup_m as f64 + 1.0 / tile.subgroup_n as f64);
    let reuse = if window::is_pointwise_in_frame(problem) {
        POINTWISE_COST
    } else {
        WINDOW_COST + SINGLE_TAP_COST / window::taps_of_window(problem, pass)
    };
    (MULTIPLY_SHARE + (1.0 - MULTIPLY_SHARE) * loads) * reuse
}

/// Whether times decide, and not costs: on the fragments that they were measured with, in weight gradients
/// and where the gathered GEMM is one launch of so few tiles that it may split K.
fn is_timed(problem: &Conv3dProblem, pass: Pass, tiles: &[MatrixTile], limits: &Limits) -> bool {
    let Some(wide) = tiles.first().filter(|tile| tile.fragment == MEASURED_FRAGMENT) else { return false };
    let [rows, columns, _] = gemm_extents(problem, pass, false);
    let count = rows.div_ceil(wide.tile_m) * columns.div_ceil(wide.tile_n) * problem.window.groups;
    let one_launch = !is_patches(problem, pass) && launches(problem, pass).0 == 1;
    pass == Pass::WeightGradient || one_launch && 2 * count <= limits.cubes_in_flight
}

/// The plan with the shortest time by waves of threadgroups, the partials of split-K and launches.
fn shortest(problem: &Conv3dProblem, pass: Pass, tiles: &[MatrixTile], limits: &Limits) -> Plan {
    let gathered = tiles.iter().map(|tile| {
        let narrow = if tile.tile_n < tile.tile_m { NARROW_TIME } else { 1.0 };
        let factor = match pass {
            Pass::Forward => GATHERED_TIME,
            Pass::InputGradient => GATHERED_TIME * PACKING_TIME,
            Pass::WeightGradient => GATHERED_WEIGHT_TIME,
        };
        (factor * narrow * gathered_time(problem, pass, *tile, limits), Plan::Gemm(GemmTile::Mma(*tile)))
    });
    let windows = window::tiles(problem, pass, limits).filter_map(|tile| {
        window_cost(problem, pass, &tile, limits)?;
        let time = window_factor(problem, pass, &tile) * window::cost(problem, pass, &tile, limits)?;
        Some((time, Plan::Window(WindowKernel::Gemm(tile))))
    });
    let weights = window::weight::tiles(problem, pass, limits).filter_map(|tile| {
        Some((window::weight::cost(problem, &tile, limits)?, Plan::Window(WindowKernel::Weight(tile))))
    });
    // Of launches, on the same scale: the time of a window kernel's multiply-add in full waves.
    let multiply_add = 2.0 / (limits.chip.shares.window * limits.chip.matrices);
    let launched = |(time, plan): (f64, Plan)| {
        let launches = plan.family().launches(problem, pass, limits) as f64;
        (time + launches * limits.chip.launch / multiply_add, plan)
    };
    let plans = gathered.chain(windows).chain(weights).map(launched);
    let shortest = plans.min_by(|(a, _), (b, _)| a.total_cmp(b)).expect("the gathered tiles are among them");
    shortest.1
}

/// The slowdown of a GEMM with windows in shared memory whose threadgroups do not fill half the device.
fn occupancy_penalty(problem: &Conv3dProblem, pass: Pass, tile: &WindowTile, limits: &Limits) -> f64 {
    let count = window::threadgroups(problem, pass, tile, limits).map_or(1, |count| count.max(1));
    (limits.cubes_in_flight as f64 / 2.0 / count as f64).max(1.0).sqrt()
}

/// The cost of the gathered GEMM, which loads the source again for each tap, on the scale of [`window_cost`].
fn gathered_cost(problem: &Conv3dProblem, pass: Pass, tile: &MatrixTile) -> f64 {
    let patches = is_patches(problem, pass);
    let [rows, columns, _] = gemm_extents(problem, pass, patches);
    let (channels, _) = problem.channels_of(pass);
    let narrow = if tile.tile_n < tile.tile_m { WIDE_GAIN } else { 1.0 };
    let taps = if patches { 1 } else { problem.taps() };
    let products = product([rows, columns.next_multiple_of(tile.tile_n), channels, taps]);
    // Depth slices and residue classes are launched one after the other.
    let (launches, taps_fraction) = launches(problem, pass);
    let launched = if launches > 1 { LAUNCHES_COST } else { 1.0 };
    GATHERED_COST * narrow * launched * taps_fraction * products * problem.window.groups as f64
}

/// Whether the weight gradient's window in shared memory beats gathering: it computes not many more
/// multiply-adds, and a frame has several chunks of positions.
fn window_weight_pays(problem: &Conv3dProblem, tile: &WindowWeightTile, gathered: &MatrixTile) -> bool {
    let Some(tiles) = window::weight::extent(problem, tile) else { return false };
    let [out, taps, _] = gemm_extents(problem, Pass::WeightGradient, false);
    let gathered = [out.next_multiple_of(gathered.tile_n), taps.next_multiple_of(gathered.tile_m)];
    let gathered = product([gathered[0], gathered[1], problem.window.groups, problem.positions()]);
    let [_, height, width] = problem.output();
    height * width >= MIN_WEIGHT_CHUNKS * tile.positions && tiles.products() < MOST_WEIGHT_PRODUCTS * gathered
}

/// The product of counts, which may exceed 64 bits.
fn product(counts: [usize; 4]) -> f64 {
    counts.iter().map(|count| *count as f64).product()
}

#[cfg(test)]
#[path = "gemm_tests.rs"]
mod tests;
