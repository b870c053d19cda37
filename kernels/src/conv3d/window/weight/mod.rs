//! The weight gradient with a window of the source in shared memory for all taps of a plane: its tile, its
//! parts, its launch.

mod kernel;
mod places;

use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::gemm::gather::{Gather, gather_args, gathers};
use crate::conv3d::gemm::{stage_type, stage_vector};
use crate::conv3d::needs::nest;
use crate::conv3d::plan::{Pass, Tiles};
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::reduce;
use crate::conv3d::split::{ReductionSplit, affordable_parts};
use crate::error::ConvError;
use crate::launch::dispatches;
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::prelude::*;
use kernel::{TAPS, window_weight_kernel};
use places::WeightTilingLaunch;

/// How a cube's sums are shared out: four planes, each with two by one fragments for each of nine taps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowWeightTile {
    /// Sites of dy in shared memory.
    pub sites: usize,
    /// Elements of the source in shared memory.
    pub ring: usize,
    /// Rows, columns and terms of a fragment: 8 on Apple's simdgroups, 16 elsewhere.
    pub fragment: usize,
}

/// Fragments of 16 (f16): a unit holds 144 sums, 23 KiB of shared memory. On an H200 (256 -> 256, 43x62x106
/// and 8x28x28, both 3x3x3): 4.5 and 0.25 ms; with 64 sites and a ring of 192 5.5 and 0.21, of 256 5.4 and
/// 0.20; gathered 7.1 and 0.27.
const SIXTEEN: [WindowWeightTile; 1] = [WindowWeightTile { sites: 32, ring: 160, fragment: 16 }];
/// Fragments of 8 (f32): a unit holds 36 sums, 19 KiB.
const EIGHT: [WindowWeightTile; 1] = [WindowWeightTile { sites: 32, ring: 160, fragment: 8 }];

impl WindowWeightTile {
    /// The tiles for fragments of a shape.
    pub fn all(fragment: usize) -> &'static [Self] {
        match fragment {
            8 => &EIGHT,
            16 => &SIXTEEN,
            _ => &[],
        }
    }

    /// Units of a cube.
    pub fn units(&self) -> usize {
        4 * SUBGROUP
    }

    /// Channels of x of a cube.
    pub fn channels(&self) -> usize {
        2 * self.fragment
    }

    /// Channels of dy of a cube.
    pub fn out_channels(&self) -> usize {
        4 * self.fragment
    }

    /// Bytes of shared memory for stages whose elements have `size` bytes.
    pub fn shared_bytes(&self, size: usize) -> usize {
        let patches = self.units() / SUBGROUP * self.fragment * self.fragment * 4;
        (self.ring + self.fragment) * (self.channels() * size + 16)
            + self.sites * (self.out_channels() * size + 16)
            + patches
    }

    /// Vectors of `width` channels that a unit reads of a chunk with so many channels.
    pub(super) fn loads(&self, channels: usize, width: usize) -> usize {
        self.sites * channels / width / self.units()
    }

    /// The name used in tables and reports.
    pub fn name(&self) -> String {
        format!("{}x{}x{TAPS}", self.out_channels(), self.channels())
    }

    /// Vectors of `width` elements from one site of a stage to the next: its channels, and 16 bytes that
    /// spread the rows over the banks.
    pub(super) fn row(&self, channels: usize, width: usize, size: usize) -> usize {
        (channels + 16 / size) / width
    }
}

/// What the sums run over: strips of planes.
#[derive(Clone, Copy, Debug)]
struct Strips {
    /// Strips side by side, of all planes.
    strips: usize,
    planes: usize,
    /// Sites of a strip's row, and its elements.
    sites: usize,
    pitch: usize,
    rows: usize,
    /// Chunks that the taps of one reach beyond it.
    ahead: usize,
}

impl Strips {
    /// Strips so narrow that the ring holds what a chunk's taps reach; none where there are no such.
    fn of(problem: &Conv3dProblem, walks: &Gather, tile: &WindowWeightTile) -> Option<Self> {
        let [depth, height, width] = walks;
        let rim = (width.taps.max(1) - 1) * width.step;
        let reach = (height.taps.max(1) - 1) * height.step;
        let room = (tile.ring - tile.sites).checked_sub(rim)?;
        let longest = room.checked_div(reach).unwrap_or(width.positions + rim);
        let most = longest.checked_sub(rim).filter(|most| *most > 0)?;
        let strips = width.positions.div_ceil(most);
        let sites = width.positions.div_ceil(strips.max(1));
        let pitch = sites + rim;
        (width.positions > 0 && height.positions > 0).then_some(Self {
            strips,
            planes: depth.positions * problem.batch,
            sites,
            pitch,
            rows: height.positions,
            ahead: (reach * pitch + rim).div_ceil(tile.sites),
        })
    }

    /// Rows of a band: as many as have an accurate sum, and so few that `tiles` of every band fill the
    /// device.
    fn band_rows(&self, tiles: usize, tile: &WindowWeightTile, limits: &Limits) -> usize {
        let accurate = self.rows.div_ceil((ReductionSplit::LENGTH / self.pitch).max(1));
        // A band of fewer than eight chunks would spend its time on its ends.
        let worthwhile = (self.rows * self.pitch).div_ceil(8 * tile.sites);
        let cubes = tiles * self.strips * self.planes;
        // A quarter of the cubes in flight keeps every core busy (16 frames of 56x56, 64 -> 128: 192 cubes
        // 0.15 ms, 576 0.19).
        let filling = (limits.cubes_in_flight / 4).div_ceil(cubes.max(1)).min(worthwhile);
        self.rows.div_ceil(accurate.max(filling).min(self.rows))
    }
}

/// Tiles of channels, of output channels, of the plane's taps, of depth taps and groups.
fn tiles_of(problem: &Conv3dProblem, tile: &WindowWeightTile) -> [usize; 5] {
    let [depth, height, width] = problem.kernel;
    [
        problem.group_channels().div_ceil(tile.channels()),
        problem.group_out_channels().div_ceil(tile.out_channels()),
        (height * width).div_ceil(TAPS),
        depth,
        problem.window.groups,
    ]
}

fn walk(problem: &Conv3dProblem) -> Option<Gather> {
    let [walk] = gathers(problem, Pass::Forward)[..] else { return None };
    (walk[1].scale == 1 && walk[2].scale == 1 && walk.iter().all(|axis| axis.taps > 0)).then_some(walk)
}

/// Whether the tile serves a weight gradient: windows that move by one element in the plane and whose taps
/// reach no further than the ring.
pub(crate) fn serves(problem: &Conv3dProblem, pass: Pass, tile: &WindowWeightTile) -> bool {
    pass == Pass::WeightGradient
        && crate::conv3d::gemm::serves(problem, pass)
        && walk(problem).is_some_and(|walks| Strips::of(problem, &walks, tile).is_some())
}

/// The tiles of a weight gradient, as [`crate::conv3d::Plan::tiles`] says.
pub(crate) fn extent(problem: &Conv3dProblem, tile: &WindowWeightTile) -> Option<Tiles> {
    let walks = walk(problem)?;
    let strips = Strips::of(problem, &walks, tile)?;
    let terms = strips.planes * strips.strips * strips.rows * strips.pitch;
    Some(Tiles {
        count: tiles_of(problem, tile).iter().product(),
        rows: tile.out_channels(),
        columns: tile.channels() * TAPS,
        terms,
        reads: terms * (tile.channels() + tile.out_channels()),
    })
}

/// Iterations of the loops of a thread: strips, chunks of them and their fragments.
pub(crate) fn loop_iterations(problem: &Conv3dProblem, tile: &WindowWeightTile, limits: &Limits) -> usize {
    let Some(Tiles { terms, .. }) = extent(problem, tile) else { return 0 };
    let split = ReductionSplit::of(terms, problem.weight_shape().iter().product(), limits);
    nest(split.length.div_ceil(tile.sites) + 1, nest(tile.sites / tile.fragment, 0) + 1)
}

/// Launches the weight gradient: operands x, dy, dw.
pub(crate) fn launch(
    client: &Client,
    problem: &Conv3dProblem,
    tile: WindowWeightTile,
    limits: &Limits,
    [x, dy, dw]: [&Operand; 3],
) -> Result<(), ConvError> {
    let walks = walk(problem).expect("`check` has looked at the walk");
    let strips = Strips::of(problem, &walks, &tile).expect("`check` has looked at the window");
    let (stage, width) = stage_vector(tile.fragment, problem.dtype, limits);
    let [tiles_c, tiles_o, tap_tiles, depth_taps, groups] = tiles_of(problem, &tile);
    let tiles = tiles_c * tiles_o * tap_tiles * depth_taps * groups;
    let band_rows = strips.band_rows(tiles, &tile, limits);
    let bands = strips.rows.div_ceil(band_rows);
    let count = bands * strips.strips * strips.planes;
    let elements = (band_rows * strips.pitch).next_multiple_of(tile.sites);
    let filling = limits.cubes_in_flight.div_ceil(tiles.max(1));
    let split = ReductionSplit::filling(count * elements, dw.len(), filling, tile.sites, limits);
    let affordable = count.div_ceil(affordable_parts(dw.len(), limits));
    let part_bands = (split.length / elements).max(affordable).max(1);
    let parts = count.div_ceil(part_bands);
    let partials = reduce::partials(client, parts, dw);
    // Partials hold a tap's channels behind each other, so that lanes write neighbours; the weight its taps.
    let taps = problem.taps();
    let channels = problem.group_channels();
    let strides = if partials.shape == dw.shape {
        [channels * taps, taps, 1]
    } else {
        [channels, 1, dw.shape[0] * channels]
    };
    let [row_stride, channel_stride, tap_stride] = strides;
    let cubes = tiles * parts;
    let address = address_type("conv3d", &[x, dy, &partials], cubes.max(count * elements), limits)?;
    let operations = 2.0 * (tile.out_channels() * tile.channels() * TAPS * part_bands * elements) as f64;
    for dispatch in dispatches(cubes, operations, limits) {
        // SAFETY: elements outside the source, sites of a rim and channels past the last are not read; taps
        // and channels past the last are not written; the ring holds all that a chunk's taps reach.
        unsafe {
            window_weight_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_2d(SUBGROUP as u32, 4),
                address,
                width,
                x.buffer_arg(1),
                dy.buffer_arg(1),
                partials.buffer_arg(1),
                gather_args(problem, Pass::Forward, &walks, [x, dw, dy]),
                WeightTilingLaunch::new(
                    tiles_c as u32,
                    tiles_o as u32,
                    tap_tiles as u32,
                    depth_taps as u32,
                    parts as u32,
                    bands as u32,
                    strips.strips as u32,
                    walks[0].positions as u32,
                    count as u32,
                    part_bands as u32,
                    band_rows as u32,
                    strips.sites as u32,
                    strips.pitch as u32,
                    strips.pitch as u32,
                    walks[1].positions as u32,
                    walks[2].positions as u32,
                    strips.ahead as u32,
                    problem.group_channels() as u32,
                    problem.group_out_channels() as u32,
                    (walks[1].taps * walks[2].taps) as u32,
                    walks[2].taps as u32,
                    dw.len(),
                    row_stride,
                    channel_stride,
                    tap_stride,
                ),
                dispatch.span(),
                problem.window.padding_mode,
                tile,
                stage.size(),
                x.dtype.elem(),
                stage.elem(),
                partials.dtype.elem(),
            );
        }
    }
    if partials.shape == dw.shape {
        return Ok(());
    }
    let order = [2, 3, 4, 0, 1];
    let by_tap = Operand {
        shape: order.map(|axis| dw.shape[axis]).to_vec(),
        strides: order.map(|axis| dw.strides[axis]).to_vec(),
        ..dw.clone()
    };
    reduce::sum_partials(client, limits, &partials, &by_tap)
}

/// Whether the device has matrix units for the problem's type, and the tiles for them.
pub(crate) fn tiles(problem: &Conv3dProblem, limits: &Limits) -> &'static [WindowWeightTile] {
    WindowWeightTile::all(stage_type(problem.dtype, limits).map_or(0, |(_, fragment)| fragment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_share_out_evenly_within_apples_budget() {
        for (tile, size) in SIXTEEN.iter().map(|tile| (tile, 2)).chain(EIGHT.iter().map(|tile| (tile, 4))) {
            assert!(tile.shared_bytes(size) <= 32 * 1024, "{tile:?}: {} bytes", tile.shared_bytes(size));
            assert_eq!(tile.ring % tile.sites, 0, "{tile:?}: the ring holds whole chunks");
            let width = if tile.fragment == 8 { 4 } else { 16 / size };
            // Nothing is read with a mask.
            for channels in [tile.channels(), tile.out_channels()] {
                assert_eq!(tile.sites * channels % (width * tile.units()), 0, "{tile:?}");
            }
        }
    }
}
