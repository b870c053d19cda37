//! The tile of a head and what it costs.

use crate::conv3d::frames::Tile;
use crate::conv3d::gemm::gather::{AxisGather, Gather};
use crate::conv3d::plan::Pass;

/// Results of a group that are served.
pub(super) const MOST_RESULTS: usize = 4;

/// Bytes of shared memory of a cube.
const MOST_BYTES: usize = 24 * 1024;

/// Registers for a weight gradient's sums, dy and the elements that meet it.
const MOST_WEIGHT_NUMBERS: usize = 112;

/// Units of a weight gradient's cube: an NVIDIA multiprocessor's registers hold a single cube of 256, beside
/// which nobody would multiply while it reads.
const MOST_WEIGHT_UNITS: usize = 128;

/// Registers for sums, the weights of a window's column and the elements that meet them. An Apple GPU has 128
/// for a unit, of which addresses and what is on its way from memory take the rest.
const MOST_NUMBERS: usize = 96;

/// How the sites of one group's results are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FewOutputsTile {
    /// Frames of a cube, all of them a unit's own.
    pub frames: usize,
    /// Sites of a unit along H in each of its frames.
    pub rows: usize,
    /// Sites of a cube along W.
    pub columns: usize,
    /// Units of a cube.
    pub units: usize,
    /// Whether the next channel is read before this one is multiplied, into registers. Otherwise other cubes
    /// of the multiprocessor multiply in the meantime.
    pub ahead: bool,
}

impl FewOutputsTile {
    /// The name used in tables and reports.
    pub fn name(&self) -> String {
        let height = self.rows * self.units / self.columns;
        let ahead = if self.ahead { "_ahead" } else { "" };
        format!("{}x{height}x{}_{}{ahead}", self.frames, self.columns, self.units)
    }
}

/// What of a head is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Of a frame.
    pub(super) plane: Tile,
    pub(super) frames: usize,
    /// Channels of the result per group.
    pub(super) results: usize,
    pub(super) ahead: bool,
}

impl Shape {
    pub(super) fn of(walks: &Gather, results: usize, tile: &FewOutputsTile) -> Self {
        let FewOutputsTile { frames, rows, columns, units, ahead } = *tile;
        let plane = Tile { taps: walks.map(|walk| walk.taps), rows, columns, units };
        Self { plane, frames, results, ahead }
    }

    /// Frames of the source that shared memory holds.
    pub(super) fn source_frames(&self) -> usize {
        self.frames + self.plane.taps[0] - 1
    }

    /// Elements of such a frame, those behind its end included.
    pub(super) fn frame_elements(&self) -> usize {
        self.plane.loads() * self.plane.units
    }

    /// Elements of a channel that a unit reads at most.
    pub(super) fn loads(&self) -> usize {
        self.source_frames() * self.plane.loads()
    }

    /// Weights of a column of the window.
    pub(super) fn factors(&self) -> usize {
        self.plane.taps[0] * self.plane.taps[1] * self.results
    }

    /// Vectors of four of them.
    pub(super) fn vectors(&self) -> usize {
        self.factors().div_ceil(4)
    }

    /// Vectors of a channel's weights.
    pub(super) fn weight_vectors(&self) -> usize {
        self.plane.taps[2] * self.vectors()
    }

    /// Sums of a unit.
    pub(super) fn sums(&self) -> usize {
        self.frames * self.plane.rows * self.results
    }

    /// Bytes of threadgroup memory.
    pub(super) fn shared_bytes(&self) -> usize {
        4 * self.source_frames() * self.frame_elements() + 16 * self.weight_vectors()
    }

    fn fits(&self, pass: Pass) -> bool {
        let column = self.plane.rows + self.plane.taps[1] - 1;
        if pass == Pass::WeightGradient {
            let sums = self.plane.count() * self.results;
            return sums + self.sums() + column <= MOST_WEIGHT_NUMBERS
                && self.plane.loads() <= self.plane.units
                && self.plane.units <= MOST_WEIGHT_UNITS
                && self.shared_bytes() <= MOST_BYTES;
        }
        self.sums() + 4 * self.vectors() + column <= MOST_NUMBERS
            && self.weight_vectors() <= self.plane.units
            && self.shared_bytes() <= MOST_BYTES
    }

    /// Cubes of one group of one image.
    pub(super) fn cubes(&self, walks: &Gather) -> usize {
        let [depth, height, width] = walks.map(|walk| walk.positions);
        depth.div_ceil(self.frames) * self.plane.tiles(height, width).iter().product::<usize>()
    }

    /// Instructions of all units for a channel: products, reads of shared memory (a vector of weights counts
    /// twice), what brings the channel there, and the 32-byte sectors of its rows.
    fn cost(&self, walks: &Gather, pass: Pass) -> usize {
        let Tile { taps, rows, units, .. } = self.plane;
        let products = self.sums() * self.plane.count();
        let values = self.source_frames() * taps[2] * (rows + taps[1] - 1) * self.plane.passes();
        let sectors =
            self.source_frames() * (self.plane.height() + taps[1] - 1) * (self.plane.stride() / 8 + 1);
        // A weight gradient places its elements anew for every tile, and reads dy where the others read
        // weights.
        let other = match pass {
            Pass::WeightGradient => 5 * self.sums() + 20 * self.plane.loads() + 6 * self.source_frames(),
            _ => 2 * self.weight_vectors(),
        };
        let of_unit = products + values + other + 5 * self.loads() + 60;
        self.cubes(walks) * (units * of_unit + 64 * sectors)
    }
}

const FRAMES: [usize; 6] = [1, 2, 3, 4, 6, 8];
const ROWS: [usize; 4] = [1, 2, 4, 8];
const COLUMNS: [usize; 4] = [8, 16, 32, 64];
const UNITS: [usize; 3] = [64, 128, 256];

/// Every tile of some frames that fits, for windows that move by one element.
fn fitting(walks: &Gather, pass: Pass, results: usize, frames: &[usize]) -> Vec<Shape> {
    let mut shapes = Vec::new();
    if !walks.iter().all(AxisGather::is_dense) {
        return shapes;
    }
    for &frames in frames {
        for rows in ROWS {
            for columns in COLUMNS {
                shapes.extend(
                    UNITS
                        .map(|units| FewOutputsTile { frames, rows, columns, units, ahead: false })
                        .map(|tile| Shape::of(walks, results, &tile))
                        .into_iter()
                        .filter(|shape| shape.fits(pass)),
                );
            }
        }
    }
    shapes
}

impl From<Shape> for FewOutputsTile {
    fn from(shape: Shape) -> Self {
        let Tile { rows, columns, units, .. } = shape.plane;
        Self { frames: shape.frames, rows, columns, units, ahead: shape.ahead }
    }
}

/// Whether the tile is one of those for the walk.
pub(super) fn is_offered(walks: &Gather, pass: Pass, results: usize, tile: &FewOutputsTile) -> bool {
    let FewOutputsTile { frames, rows, columns, units, .. } = tile;
    walks.iter().all(AxisGather::is_dense)
        && FRAMES.contains(frames)
        && ROWS.contains(rows)
        && COLUMNS.contains(columns)
        && UNITS.contains(units)
        && !(tile.ahead && pass == Pass::WeightGradient)
        && Shape::of(walks, results, tile).fits(pass)
}

/// The cheapest tile of these frames, of any where there are none given.
pub(super) fn cheapest(
    walks: &Gather,
    pass: Pass,
    results: usize,
    frames: Option<usize>,
) -> Option<FewOutputsTile> {
    let shapes = match frames {
        Some(frames) => fitting(walks, pass, results, &[frames]),
        None => fitting(walks, pass, results, &FRAMES),
    };
    shapes.into_iter().min_by_key(|shape| shape.cost(walks, pass)).map(FewOutputsTile::from)
}
