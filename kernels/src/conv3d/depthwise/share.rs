//! How depthwise work is cut: tiles of a plane, marches and their slices, and what the kernels need of a
//! device.

use super::march::{MOST_TAPS, Window};
use super::weight;
use crate::conv3d::frames::Tile;
use crate::conv3d::gemm::RegisterTile;
use crate::conv3d::gemm::gather::{AxisGather, Gather, gathers, positions, taps};
use crate::conv3d::needs::nest;
use crate::conv3d::plan::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::split::{RUN, affordable_parts};
use crate::limits::Limits;

/// Units that a cube is counted for where the device is to be filled.
pub(super) const UNITS: usize = 256;

/// Sites along H that share the rows they read.
const ROWS: usize = 4;

/// The window of a walk, with cubes of enough units for the marches of one channel, given the sites along H
/// of each.
pub(super) fn window(walks: &Gather, marches: impl Fn(usize) -> usize) -> Window {
    let rows = if !walks[1].is_dense() {
        1
    } else {
        [ROWS, 2, 1][usize::from(walks[1].positions < 3) + usize::from(walks[1].positions < 2)]
    };
    let units = if marches(rows) <= 64 { 64 } else { 256 };
    Window { taps: walks.map(|walk| walk.taps), rows, marches: walks[0].is_dense(), units }
}

/// Sites of a unit along H in a staged forward pass, and in a staged weight gradient, whose sums take the
/// registers.
pub(super) const FORWARD_ROWS: [usize; 2] = [4, 8];
pub(super) const WEIGHT_ROWS: [usize; 2] = [2, 4];

/// Bytes of shared memory that a frame may take.
const MOST_BYTES: usize = 24 * 1024;

/// The tile for a walk, the cheapest by a count of instructions: products, reads of shared memory, and some
/// for each element read and each site and unit. Nothing where neighbouring results do not read neighbouring
/// elements, or where the tile stands mostly empty.
pub(super) fn tile(walks: &Gather, rows: &[usize], limits: &Limits) -> Option<Tile> {
    let [_, height, width] = walks.map(|walk| walk.positions);
    let taps = walks.map(|walk| walk.taps);
    if !walks.iter().all(AxisGather::is_dense) || taps.iter().product::<usize>() > MOST_TAPS {
        return None;
    }
    let columns = (8..=128usize.min(width.next_multiple_of(8))).step_by(8);
    let tiles = columns.flat_map(|columns| {
        let units = [64, 128, 256].into_iter().filter(move |units| columns <= *units);
        units.flat_map(move |units| rows.iter().map(move |rows| Tile { taps, rows: *rows, columns, units }))
    });
    let cost = |tile: &Tile| {
        let products = tile.rows * tile.count();
        let values = (tile.rows + taps[1] - 1) * taps[2] * tile.passes();
        // A vector of four weights counts twice, and a read of shared memory twice beside a product.
        let shared = 2 * (values + 2 * tile.count().div_ceil(4));
        let tiles: usize = tile.tiles(height, width).iter().product();
        tiles * tile.units * (products + shared + 8 * tile.loads() + 8 * tile.rows + 40)
    };
    let fits = |tile: &Tile| {
        4 * tile.loads() * tile.units <= MOST_BYTES && staged_bytes(tile) <= limits.shared_bytes
    };
    let tile = tiles.filter(fits).min_by_key(cost)?;
    let filled = tile.tiles(height, width).iter().product::<usize>() * tile.units * tile.rows;
    (3 * height * width >= filled).then_some(tile)
}

/// Frames that a unit marches through, at most `most`: all of them where there are units enough, since every
/// chunk reads the frames at its ends again.
pub(super) fn chunk(depth: usize, columns: usize, most: usize, limits: &Limits) -> usize {
    let wanted = 2 * limits.cubes_in_flight * UNITS;
    let chunks = wanted.div_ceil(columns.max(1)).min(depth.div_ceil(8)).max(depth.div_ceil(most)).max(1);
    depth.div_ceil(chunks).max(1)
}

/// How the marches of a weight gradient are cut into slices.
pub(super) struct WeightShare {
    /// The window, and what of it one thread sums.
    pub(super) whole: Window,
    pub(super) window: Window,
    pub(super) cuts: usize,
    /// Frames of a march.
    pub(super) chunk: usize,
    pub(super) marches: usize,
    /// Slices, and marches of each.
    pub(super) parts: usize,
    pub(super) length: usize,
}

pub(super) fn weight_share(problem: &Conv3dProblem, walks: &Gather, limits: &Limits) -> WeightShare {
    let [depth, height, width] = walks.map(|walk| walk.positions);
    let [depth_taps, row_taps, column_taps] = walks.map(|walk| walk.taps);
    let whole = Window { rows: 1, ..window(walks, |_| usize::MAX) };
    // A window that does not fit the registers is cut into its depth taps, which march on their own.
    let cuts = if whole.count() > weight::MOST_SUMS { depth_taps } else { 1 };
    let taps = [depth_taps / cuts, row_taps, column_taps];
    let units = weight::units(taps.iter().product());
    let window = Window { taps, marches: whole.marches && cuts == 1, units, ..whole };
    let columns = problem.batch * height * width;
    // Every cube ends with a sum over its units: it should have marched for longer than that takes.
    let cubes = (2 * limits.cubes_in_flight).div_ceil(problem.channels.max(1) * cuts);
    let chunk = chunk(depth, columns * problem.channels, RUN, limits);
    let marches = columns * depth.div_ceil(chunk);
    let accurate = marches.div_ceil(units * (RUN / chunk).max(1));
    let affordable = affordable_parts(problem.weight_shape().iter().product(), limits);
    let parts = cubes.min(marches.div_ceil(units)).max(accurate).min(affordable).max(1);
    let length = marches.div_ceil(parts);
    let parts = marches.div_ceil(length.max(1)).max(1);
    WeightShare { whole, window, cuts, chunk, marches, parts, length }
}

/// Bytes of threadgroup memory of a staged tile: a frame and the weights.
fn staged_bytes(tile: &Tile) -> usize {
    4 * tile.loads() * tile.units + 16 * tile.count().div_ceil(4)
}

/// Bytes of threadgroup memory, threads and loop iterations of a pass.
pub(crate) fn needs(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> (usize, usize, usize) {
    if pass == Pass::WeightGradient {
        return weight_needs(problem, limits);
    }
    let frames = |walks: &Gather| walks[0].positions + walks[0].taps;
    let mut most = (0, UNITS, 0);
    for walks in gathers(problem, pass).iter().filter(|walks| positions(walks) > 0) {
        let (bytes, turns) = if taps(walks) == 0 {
            (RegisterTile::M128N8.shared_bytes(), 64)
        } else if let Some(tile) = tile(walks, &FORWARD_ROWS, limits) {
            (staged_bytes(&tile), nest(frames(walks), 0))
        } else {
            let vectors = taps(walks).div_ceil(4);
            (16 * vectors, nest(frames(walks), 0) + nest(vectors.div_ceil(64), 0))
        };
        most = (most.0.max(bytes), most.1, most.2.max(turns));
    }
    most
}

/// [`needs`] of the weight gradient, by either of its kernels.
fn weight_needs(problem: &Conv3dProblem, limits: &Limits) -> (usize, usize, usize) {
    let walks = &gathers(problem, Pass::Forward)[0];
    let frames = nest(walks[0].positions + walks[0].taps, 0);
    let staged = tile(walks, &WEIGHT_ROWS, limits)
        .map_or((0, 0), |tile| (staged_bytes(&tile), frames + tile.sum_turns(tile.count() + 1)));
    let share = weight_share(problem, walks, limits);
    let (units, taps) = (share.window.units, share.window.count());
    let marches = nest(share.length.div_ceil(units), nest(share.chunk + walks[0].taps, 0));
    let summed = nest(taps.div_ceil(units), nest(units, 0)) + nest((units / taps).clamp(1, 16), 0);
    let bytes = 4 * units * (taps + 1);
    (staged.0.max(bytes), UNITS, staged.1.max(marches + summed))
}
