//! Split-K slices of the gathered GEMM, the loop iterations of its threads, and the time of a pass by whole
//! waves of its tiles.

use super::config::{GemmTile, MatrixTile, RegisterTile};
use super::gather::{Gather, columns, is_patches, launched_gathers, patches, positions, taps};
use crate::conv3d::loops::nest;
use crate::conv3d::needs::SETUP;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::reduce;
use crate::conv3d::split::{
    LastWave, MIN_STAGES, ReductionSplit, SliceCount, TiledProduct, affordable_slices,
};
use crate::conv3d::window::is_pointwise_in_frame;
use crate::limits::Limits;

/// Multiply-adds in the time of storing one result of a weight gradient (H200).
const WEIGHT_EPILOGUE: f64 = 400.0;

/// M, N and K of one group's GEMM.
pub(super) fn gemm_shape(problem: &Conv3dProblem, pass: Pass, gather: &Gather) -> [usize; 3] {
    let (source_channels, n) = problem.channels_of(pass);
    [problem.batch * positions(gather), n * columns(gather), source_channels * taps(gather)]
}

/// The most split-K slices that any of a pass's gathers needs.
pub(super) fn most_slices<'a>(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: GemmTile,
    gathers: impl Iterator<Item = &'a Gather>,
    limits: &Limits,
) -> usize {
    gathers.map(|gather| slices_of(problem, pass, tile, gather, limits)).max().unwrap_or(1)
}

/// Split-K slices that fill the device, on matrix units those that take the least time; one where the tiles
/// fill half of it, and for streams, whose bits must not depend on the number of frames.
fn slices_of(problem: &Conv3dProblem, pass: Pass, tile: GemmTile, gather: &Gather, limits: &Limits) -> usize {
    let (m_n_k, elements) = (gemm_shape(problem, pass, gather), problem.result_elements(pass));
    let product = tiled_product(problem, tile, m_n_k, elements, limits);
    if problem.streaming || 2 * product.tiles > limits.cubes_in_flight {
        return 1;
    }
    let [_, _, tile_k] = tile.shape();
    let most = SliceCount {
        filling: limits.cubes_in_flight / product.tiles.max(1),
        worthwhile: m_n_k[2] / (MIN_STAGES * tile_k),
        accurate: 1,
        affordable: affordable_slices(elements, limits),
    }
    .slices();
    match tile {
        GemmTile::Mma(_) => product.fastest_slices(1..=most, limits),
        GemmTile::Fma(_) => most,
    }
}

/// The time of a pass on matrix units that is one launch, on the scale of [`TiledProduct::cost`].
pub(crate) fn cost(problem: &Conv3dProblem, pass: Pass, tile: MatrixTile, limits: &Limits) -> f64 {
    let tile = GemmTile::Mma(tile);
    if pass == Pass::WeightGradient {
        let (product, slices) =
            (weight_product(problem, tile, limits), weight_split(problem, tile, limits).slices);
        return product.cost(slices, limits) + WEIGHT_EPILOGUE * product.elements as f64;
    }
    let gather = &launched_gathers(problem, pass)[0];
    let (m_n_k, elements) = (gemm_shape(problem, pass, gather), problem.result_elements(pass));
    let slices = slices_of(problem, pass, tile, gather, limits);
    tiled_product(problem, tile, m_n_k, elements, limits).cost(slices, limits)
}

/// The gathers of a pass that have positions; patches where the weight's layout allows.
fn gathers(problem: &Conv3dProblem, pass: Pass) -> Vec<Gather> {
    let patched = is_patches(problem, pass);
    let mut gathers = if patched { vec![patches(problem)] } else { launched_gathers(problem, pass) };
    gathers.retain(|gather| positions(gather) > 0);
    gathers
}

/// Kernels of a pass: the product of each gather, an input gradient's packed weights, the sum over slices.
pub(super) fn kernels(problem: &Conv3dProblem, pass: Pass, tile: GemmTile, limits: &Limits) -> usize {
    if pass == Pass::WeightGradient {
        return 1 + reduce::sum_launches(weight_split(problem, tile, limits).slices);
    }
    let gathers = gathers(problem, pass);
    let packs = |gather: &&Gather| pass == Pass::InputGradient && columns(gather) == 1 && taps(gather) > 0;
    let packed = gathers.iter().filter(packs).count();
    let slices = most_slices(problem, pass, tile, gathers.iter(), limits);
    gathers.len() + packed + reduce::sum_launches(slices)
}

/// Waves of a launch, on average; of tiles below 64x64 no more fit than of those.
pub(super) fn waves(problem: &Conv3dProblem, pass: Pass, tile: GemmTile, limits: &Limits) -> f64 {
    let [tile_m, tile_n, _] = tile.shape();
    let wave = limits.cubes_in_flight as f64 * (FULL_OCCUPANCY as f64 / (tile_m * tile_n) as f64).min(1.0);
    if pass == Pass::WeightGradient {
        let slices = weight_split(problem, tile, limits).slices;
        return (weight_product(problem, tile, limits).tiles * slices) as f64 / wave;
    }
    let gathers = gathers(problem, pass);
    let tiles = |gather| tiled_product(problem, tile, gemm_shape(problem, pass, gather), 0, limits).tiles;
    let slices = most_slices(problem, pass, tile, gathers.iter(), limits);
    (slices * gathers.iter().map(tiles).sum::<usize>()) as f64 / gathers.len().max(1) as f64 / wave
}

/// Results of a tile of which a device runs [`Limits::cubes_in_flight`] at once: larger ones need more
/// registers (H200: one threadgroup of 128x128 for each multiprocessor; a second one gains nothing).
const FULL_OCCUPANCY: usize = 64 * 64;

/// A GEMM of this shape for every group.
fn tiled_product(
    problem: &Conv3dProblem,
    tile: GemmTile,
    [m, n, k]: [usize; 3],
    elements: usize,
    limits: &Limits,
) -> TiledProduct {
    let [tile_m, tile_n, _] = tile.shape();
    TiledProduct {
        tiles: m.div_ceil(tile_m) * n.div_ceil(tile_n) * problem.window.groups,
        products: (tile_m * tile_n) as f64 * k as f64,
        wave: (limits.cubes_in_flight * FULL_OCCUPANCY / (tile_m * tile_n)).max(1),
        last: LastWave::Whole(1.0),
        elements,
    }
}

/// The split-K slices. From the shape alone, not the strides: other slices round differently, and a view must
/// give the same bits as a contiguous tensor.
pub(super) fn weight_split(problem: &Conv3dProblem, tile: GemmTile, limits: &Limits) -> ReductionSplit {
    let [_, _, tile_k] = tile.shape();
    let product = weight_product(problem, tile, limits);
    let most = limits.cubes_in_flight.div_ceil(product.tiles.max(1));
    let filling = match tile {
        // Vector loads of both sources: two threadgroups per core hide their latency.
        GemmTile::Mma(_) if is_pointwise_in_frame(problem) => {
            limits.cubes_in_flight / 2 / product.tiles.max(1)
        }
        GemmTile::Mma(_) => product.fastest_slices(1..=most, limits),
        GemmTile::Fma(_) => most,
    };
    ReductionSplit::filling(problem.positions(), product.elements, filling, tile_k, limits)
}

/// The product of a weight gradient.
fn weight_product(problem: &Conv3dProblem, tile: GemmTile, limits: &Limits) -> TiledProduct {
    let [m, n] = [problem.group_channels() * problem.taps(), problem.group_out_channels()];
    let elements = problem.weight_shape().iter().product();
    tiled_product(problem, tile, [m, n, problem.positions()], elements, limits)
}

/// Whether the kernels with multiply-adds prefetch stages, their inner loops unrolled: where compilers
/// schedule long straight-line code, and where a device would end the loops.
pub(super) fn prefetches(problem: &Conv3dProblem, pass: Pass, tile: GemmTile, limits: &Limits) -> bool {
    let GemmTile::Fma(fma) = tile else { return limits.unroll };
    let iterations = || looped(&fma, k_iterations(problem, pass, tile, limits));
    limits.unroll || limits.loop_iterations.is_some_and(|most| iterations() > most)
}

/// Loop iterations of a thread.
pub(super) fn loop_iterations(problem: &Conv3dProblem, pass: Pass, tile: GemmTile, limits: &Limits) -> usize {
    let stages = k_iterations(problem, pass, tile, limits);
    match tile {
        GemmTile::Fma(fma) if !prefetches(problem, pass, tile, limits) => looped(&fma, stages),
        _ => nest(stages, 0) + SETUP,
    }
}

/// Loop iterations of the kernels with multiply-adds without prefetch.
fn looped(tile: &RegisterTile, stages: usize) -> usize {
    // The loads of both stages and their product.
    let loops = [tile.loads(tile.tile_m), tile.loads(tile.tile_n), tile.tile_k];
    let inner = loops.iter().map(|count| nest(*count, 0)).sum();
    let rows = tile.rows_at_once();
    let epilogue = tile.rows / rows * nest(rows, nest(tile.columns, 0));
    nest(stages, inner) + epilogue + SETUP
}

/// Iterations of the longest K loop.
pub(in crate::conv3d) fn k_iterations(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: GemmTile,
    limits: &Limits,
) -> usize {
    let [_, _, tile_k] = tile.shape();
    // One more than the stages: with prefetch the first iteration multiplies zeros while it loads the first.
    if pass == Pass::WeightGradient {
        return weight_split(problem, tile, limits).length.div_ceil(tile_k) + 1;
    }
    let iterations = |gathers: &[Gather]| {
        let slices = most_slices(problem, pass, tile, gathers.iter(), limits);
        let k = gathers.iter().map(|gather| gemm_shape(problem, pass, gather)[2]).max().unwrap_or(0);
        k.div_ceil(slices).div_ceil(tile_k) + 1
    };
    // The strides of the weight decide between the two.
    let patched = if is_patches(problem, pass) { iterations(&[patches(problem)]) } else { 0 };
    patched.max(iterations(&launched_gathers(problem, pass)))
}
