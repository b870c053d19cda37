//! Tiles of a channel's plane whose frames pass through shared memory, where neighbouring results read
//! neighbouring elements: what depthwise convolutions march through (`depthwise/staged.rs`,
//! `depthwise/staged_weight.rs`) and heads hold (`head/`).
//!
//! ```text
//!          columns + KW - 1                   a unit:  `rows` sites of one column of the tile, lanes along w
//!      +----------------------+               a frame: read once, `loads` elements by each unit, while the
//!      |  unit | unit | unit  | blocks * rows          one before it is multiplied; then every unit reads
//!      |  unit | unit | unit  |   + KH - 1             (rows + KH - 1) * KW elements of it for rows * taps
//!      +----------------------+                        products
//! ```
//!
//! Reading each element once matters: with the window's overlap read from memory again and again the loads of
//! a 3x5x5 window alone took 1.4 ms where its products take 0.3 (H200). Shared memory: `4 * loads * units`
//! bytes.

use super::gemm::index::GatherArgs;
use super::needs::nest;
use super::problem::PaddingMode;
use crate::registers::Registers;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// Banks of shared memory, each a word wide.
const BANKS: usize = 32;

/// Elements behind a frame's row: what is behind the window is read from memory with it.
const MOST_PAD: usize = 7;

/// What of a tile is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    pub(super) taps: [usize; 3],
    /// Sites of a unit along H.
    pub(super) rows: usize,
    /// Sites of the tile along W.
    pub(super) columns: usize,
    pub(super) units: usize,
}

impl Tile {
    pub(super) fn count(&self) -> usize {
        self.taps.iter().product()
    }

    /// Units of a column of the tile.
    fn blocks(&self) -> usize {
        self.units / self.columns
    }

    /// Sites of the tile along H.
    pub(super) fn height(&self) -> usize {
        self.rows * self.blocks()
    }

    /// Elements of a frame's row: the window's, and a few behind them where the next block of rows then
    /// begins in the bank behind this one's last column. A plane of units that spans two blocks reads them
    /// over as many banks as it has units.
    pub(super) fn stride(&self) -> usize {
        let window = self.columns + self.taps[2] - 1;
        let beside = |pad: &usize| self.rows * (window + pad) % BANKS == self.columns % BANKS;
        let pad = if self.columns.is_multiple_of(BANKS) { None } else { (0..=MOST_PAD).find(beside) };
        window + pad.unwrap_or(0)
    }

    /// How often a plane of units that reads an element each goes over the banks.
    pub(super) fn passes(&self) -> usize {
        let beside = self.rows * self.stride() % BANKS == self.columns % BANKS;
        if self.columns.is_multiple_of(BANKS) || beside { 1 } else { 2 }
    }

    /// Elements of a frame.
    fn frame(&self) -> usize {
        (self.height() + self.taps[1] - 1) * self.stride()
    }

    /// Elements of a frame that a unit reads at most.
    pub(super) fn loads(&self) -> usize {
        self.frame().div_ceil(self.units)
    }

    /// Iterations of the loops of [`sum_units`] for so many sums of a thread.
    pub(super) fn sum_turns(&self, sums: usize) -> usize {
        let together = self.loads().max(1);
        let segments = (self.units / together).clamp(1, 16);
        sums.div_ceil(together) * (nest(self.units.div_ceil(segments), 0) + nest(segments, 0))
    }

    /// Tiles of a plane along H and W.
    pub(super) fn tiles(&self, height: usize, width: usize) -> [usize; 2] {
        [height.div_ceil(self.height()), width.div_ceil(self.columns)]
    }
}

/// How the sites of all channels are shared out: a cube's index, from the fastest: tile along W, along H,
/// chunk of frames, channel, image.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Tiling {
    pub(super) tiles_w: FastDivmod<u32>,
    pub(super) tiles_h: FastDivmod<u32>,
    pub(super) chunks: FastDivmod<u32>,
    pub(super) channels: FastDivmod<u32>,
    pub(super) channel_count: u32,
    /// Cubes of one channel of one image.
    pub(super) cubes: u32,
    /// Sites of a plane, frames, and those of one chunk.
    pub(super) height: u32,
    pub(super) width: u32,
    pub(super) depth: u32,
    pub(super) chunk: u32,
    /// [`Activation::code`](crate::activation::Activation::code) of what is applied to the result.
    pub(super) activation: u32,
}

/// A unit's part of a tile.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Unit {
    pub(super) n: u32,
    pub(super) c: u32,
    /// Which of the channel's cubes in this image this is.
    pub(super) cube: u32,
    /// The chunk's frames.
    pub(super) first: u32,
    pub(super) end: u32,
    /// The tile's first site.
    pub(super) tile_h: u32,
    pub(super) tile_w: u32,
    /// The unit's first site; past the plane where the unit has none.
    pub(super) h: u32,
    pub(super) w: u32,
    /// Where its window begins in a frame.
    pub(super) corner: usize,
}

#[cube]
impl Tiling {
    pub(super) fn unit(&self, cube: u32, #[comptime] tile: Tile) -> Unit {
        let (rest, in_w) = self.tiles_w.div_mod(cube);
        let (rest, in_h) = self.tiles_h.div_mod(rest);
        let (rest, chunk) = self.chunks.div_mod(rest);
        let (n, c) = self.channels.div_mod(rest);
        let column = UNIT_POS % comptime!(tile.columns as u32);
        let block = UNIT_POS / comptime!(tile.columns as u32);
        // Units beyond the last block repeat it, without writing.
        let row = min(block, comptime!(tile.blocks() as u32 - 1)) * comptime!(tile.rows as u32);
        let tile_h = in_h * comptime!(tile.height() as u32);
        let tile_w = in_w * comptime!(tile.columns as u32);
        Unit {
            n,
            c,
            cube: cube % self.cubes,
            first: chunk * self.chunk,
            end: min((chunk + 1u32) * self.chunk, self.depth),
            tile_h,
            tile_w,
            h: select(block < comptime!(tile.blocks() as u32), tile_h + row, self.height),
            w: tile_w + column,
            corner: (row * comptime!(tile.stride() as u32) + column) as usize,
        }
    }
}

/// Where the elements of a frame that a unit reads lie in the source's plane, and whether they do.
#[derive(CubeType)]
pub(super) struct Places {
    pub(super) at: Sequence<usize>,
    pub(super) inside: Sequence<bool>,
}

#[cube]
pub(super) fn places(
    walk: &GatherArgs,
    unit: &Unit,
    #[comptime] padding: PaddingMode,
    #[comptime] tile: Tile,
) -> Places {
    let mut at = Sequence::<usize>::new();
    let mut inside = Sequence::<bool>::new();
    let h = walk.height.coordinate(unit.tile_h);
    let w = walk.width.coordinate(unit.tile_w);
    #[unroll]
    for load in 0..comptime!(tile.loads()) {
        let element = UNIT_POS + comptime!((load * tile.units) as u32);
        let row = element / comptime!(tile.stride() as u32);
        let column = element % comptime!(tile.stride() as u32);
        let (row, row_inside) = walk.height.load_offset(h + row as i32, padding);
        let (column, column_inside) = walk.width.load_offset(w + column as i32, padding);
        at.push(row + column);
        inside.push(row_inside && column_inside);
    }
    Places { at, inside }
}

/// Reads this unit's elements of a frame into registers; those outside the source are zero.
#[cube]
pub(super) fn read_frame<E: Float>(
    source: &[E],
    base: usize,
    walk: &GatherArgs,
    frame: u32,
    exists: bool,
    places: &Places,
    #[comptime] padding: PaddingMode,
    #[comptime] tile: Tile,
) -> Sequence<E> {
    let (frame, inside) = walk.depth.load_offset(walk.depth.coordinate(frame), padding);
    let inside = inside && exists;
    let mut values = Sequence::<E>::new();
    #[unroll]
    for load in 0..comptime!(tile.loads()) {
        let mut value = E::from_int(0);
        if inside && *places.inside.index(load) {
            value = source[base + frame + *places.at.index(load)];
        }
        values.push(value);
    }
    values
}

/// Writes what [`read_frame`] has read.
#[cube]
pub(super) fn write_frame<E: Float>(values: &Sequence<E>, stage: &mut Shared<[f32]>, #[comptime] tile: Tile) {
    #[unroll]
    for load in 0..comptime!(tile.loads()) {
        stage[UNIT_POS as usize + comptime!(load * tile.units)] = f32::cast_from(*values.index(load));
    }
}

/// The frame's elements of one of the window's columns that a unit's sites read, downwards.
#[cube]
pub(super) fn read_column(
    stage: &Shared<[f32]>,
    corner: usize,
    #[comptime] column: usize,
    #[comptime] tile: Tile,
) -> Sequence<f32> {
    let mut values = Sequence::<f32>::new();
    #[unroll]
    for row in 0..comptime!(tile.rows + tile.taps[1] - 1) {
        values.push(stage[corner + comptime!(row * tile.stride() + column)]);
    }
    values
}

/// What a weight gradient's units have summed: `[column, row, depth, result]` for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sums {
    taps: [usize; 3],
    results: usize,
    units: usize,
    /// Sums that meet in shared memory at a time.
    together: usize,
    /// Whether there is one more, of dy itself.
    bias: bool,
}

impl Sums {
    pub(super) fn of(tile: &Tile, results: usize, bias: bool) -> Self {
        Self { taps: tile.taps, results, units: tile.units, together: tile.loads(), bias }
    }

    fn taps(&self) -> usize {
        self.taps.iter().product::<usize>() * self.results
    }

    fn count(&self) -> usize {
        self.taps() + usize::from(self.bias)
    }
}

/// Writes the sums of all units, some at a time, as many as a frame has elements for: first segments of
/// units, then the segments of each sum. Results lie `result_stride` apart, their taps in the weight's order;
/// the sum of dy goes to `bias_out`.
#[cube]
pub(super) fn sum_units<O: Float>(
    sums: &Registers<f32>,
    stage: &mut Shared<[f32]>,
    out: &mut [O],
    first_out: usize,
    result_stride: usize,
    bias_out: usize,
    #[comptime] of: Sums,
) {
    let unit = UNIT_POS as usize;
    let together = comptime!(of.together);
    // Sixteen sixteens at most.
    let segments = comptime!((of.units / of.together).clamp(1, 16));
    #[unroll]
    for round in 0..comptime!(of.count().div_ceil(of.together)) {
        #[unroll]
        for i in 0..together {
            let tap = comptime!(round * together + i);
            if comptime!(tap < of.count()) {
                stage[unit + comptime!(i * of.units)] = sums.get(tap);
            }
        }
        sync_cube();
        let tap = unit / segments;
        let segment = unit % segments;
        let mut total = 0.0f32;
        if tap < together {
            let mut other = segment;
            while other < of.units {
                total += stage[tap * of.units + other];
                other += segments;
            }
        }
        sync_cube();
        if tap < together {
            stage[unit] = total;
        }
        sync_cube();
        let index = unit + comptime!(round * together);
        if unit < together && index < comptime!(of.count()) {
            let mut sum = 0.0f32;
            for segment in 0..segments {
                sum += stage[unit * segments + segment];
            }
            // From the order of the sums to the weight's: depth, row, column.
            let result = index % of.results;
            let tap = index / of.results;
            let depth = tap % of.taps[0];
            let row = tap / of.taps[0] % of.taps[1];
            let column = tap / comptime!(of.taps[0] * of.taps[1]);
            let tap = (depth * of.taps[1] + row) * of.taps[2] + column;
            let mut at = first_out + result * result_stride + tap;
            if comptime!(of.bias) && index == comptime!(of.taps()) {
                at = bias_out;
            }
            out[at] = O::cast_from(sum);
        }
        sync_cube();
    }
}
