//! The K loop of the gathered GEMMs on matrix units, one for all passes: what a thread loads of each stage's
//! operands, and when.
//!
//! ```text
//! prefetch (NVIDIA)      load the next stage | multiply this one | barrier | store the next one | barrier
//! after branches         load                | barrier | store | barrier | multiply
//! in flight (elsewhere)  load, then zeros for what is outside | barrier | store | barrier | multiply
//! ```
//!
//! Readers of the source ([`SourceRows`]): forward and input gradient keep output positions in registers and
//! look channel taps up; the weight gradient looks both up, or where positions are contiguous divides one out
//! per stage. Reader of the channels: [`Channels`]. Bytes and FLOP: [`super::config`].

use super::channels::{Channels, or_zero};
use super::config::MatrixTile;
use super::fragments::{multiply, store_rows};
use super::index::{OutputPosition, RANGE_BIT};
use super::read::{Source, inside_or_zero};
use super::stage::{WorkTile, zero_stage};
use super::table::IndexTable;
use cubecl::cmma;
use cubecl::prelude::*;

/// The stages of both operands in shared memory.
#[derive(CubeType)]
pub(super) struct Stages<S: Float, V: Size> {
    source: Shared<[Vector<S, V>]>,
    channels: Shared<[Vector<S, V>]>,
    /// Whether the source's and the channels' stage are K-major.
    #[cube(comptime)]
    k_major: (bool, bool),
    /// Bytes of an element.
    #[cube(comptime)]
    size: usize,
    #[cube(comptime)]
    tile: MatrixTile,
}

#[cube]
impl<S: Float, V: Size> Stages<S, V> {
    pub(super) fn new(
        #[comptime] k_major: (bool, bool),
        #[comptime] size: usize,
        #[comptime] tile: MatrixTile,
    ) -> Stages<S, V> {
        let width = V::value();
        let (source_rows, source_row) = comptime!(tile.source_stage(k_major.0, width, size));
        let (channel_rows, channel_row) = comptime!(tile.channel_stage(k_major.1, width, size));
        Stages::<S, V> {
            source: Shared::<[Vector<S, V>]>::new_slice(comptime!(source_rows * source_row)),
            channels: Shared::<[Vector<S, V>]>::new_slice(comptime!(channel_rows * channel_row)),
            k_major,
            size,
            tile,
        }
    }

    pub(super) fn zero(&mut self) {
        zero_stage(&mut self.source, comptime!(self.tile.threads()));
        zero_stage(&mut self.channels, comptime!(self.tile.threads()));
    }

    /// Stores what was loaded of the source with lanes along K, and of the channels.
    pub(super) fn store<E: Float, R: Size, W: Size>(
        &mut self,
        source: &Sequence<Vector<E, R>>,
        channels: &Sequence<Vector<E, W>>,
    ) {
        let tile = comptime!(self.tile);
        let width = V::value();
        let (_, row) = comptime!(tile.source_stage(self.k_major.0, width, self.size));
        store_rows(source, &mut self.source, row, tile.tile_m, tile);
        self.store_channels(channels);
    }

    /// Stores what was loaded of the source with lanes along positions. Vectors are built here, not at the
    /// load: the first use of a value waits for its load.
    fn store_positions<E: Float, R: Size>(&mut self, from: &Sequence<Vector<E, R>>) {
        let tile = comptime!(self.tile);
        let width = V::value();
        let source_width = R::value();
        let (_, row) = comptime!(tile.source_stage(self.k_major.0, width, self.size));
        let count = comptime!(tile.positions_per_thread(width, source_width));
        let lanes = comptime!(tile.tile_m / (count * source_width));
        #[unroll]
        for load in 0..comptime!(tile.loads(tile.tile_m, width)) {
            let next = UNIT_POS as usize / lanes + comptime!(load / count * (tile.threads() / lanes));
            if comptime!(source_width == width) {
                self.source[next * row + UNIT_POS as usize % lanes] = Vector::cast_from(*from.index(load));
            } else {
                let position = comptime!(load % count);
                let mut values = Vector::<S, V>::empty();
                #[unroll]
                for i in 0..width {
                    // In the order of the loads: vectors, K indices, positions.
                    let value = from.index(comptime!((load / count * width + i) * count + position));
                    values.insert(i, S::cast_from(value.extract(0usize)));
                }
                let in_tile = UNIT_POS as usize % lanes + comptime!(position * lanes);
                self.source[in_tile * row + next] = values;
            }
        }
    }

    fn store_channels<E: Float, W: Size>(&mut self, channels: &Sequence<Vector<E, W>>) {
        let tile = comptime!(self.tile);
        let width = V::value();
        let (_, row) = comptime!(tile.channel_stage(self.k_major.1, width, self.size));
        store_rows(channels, &mut self.channels, row, tile.tile_n, tile);
    }

    pub(super) fn multiply(&self, sums: &Sequence<cmma::Matrix<f32>>) {
        multiply(
            &self.source,
            &self.channels,
            sums,
            comptime!(self.k_major),
            comptime!(self.size),
            comptime!(self.tile),
        );
    }
}

/// The rows (M) of the source that a thread loads.
#[derive(CubeType)]
#[expect(dead_code, reason = "the macro builds variants of its own")]
pub(super) enum SourceRows {
    /// Output positions, the same in all stages. K indices are channel taps of a table.
    Positions(Sequence<OutputPosition>),
    /// A tile's channel taps, in a table as well: register pressure limits occupancy. K indices are output
    /// positions.
    Taps(IndexTable),
}

/// Sums the products of all of a slice's stages.
#[cube]
pub(super) fn k_loop<E: Float, S: Float, V: Size, W: Size, R: Size>(
    source: &Source<Vector<E, R>>,
    rows: &SourceRows,
    channels: &Channels<E, W>,
    mut table: IndexTable,
    stages: &mut Stages<S, V>,
    sums: &Sequence<cmma::Matrix<f32>>,
    work: &WorkTile,
    #[comptime] prefetch: bool,
    #[comptime] branches: bool,
) {
    let width = V::value();
    let tile = comptime!(stages.tile);
    let entries = comptime!(table.layout.entries);
    if prefetch {
        stages.zero();
    }
    let stage = comptime!(tile.tile_k as u32).runtime();
    let end_k = work.end_k;
    let mut stage_k = work.first_k;
    let mut at = 0usize.runtime();
    table.fill_half(source.gather, 0usize, stage_k, end_k);
    sync_cube();
    if branches {
        // With prefetch each iteration loads the stage at `stage_k` and multiplies the one before; the last
        // loads nothing. Without, the loads' registers are free during the product.
        let ahead = comptime!(if prefetch { tile.tile_k as u32 } else { 0 });
        while stage_k < end_k + ahead {
            // Before the loads: a divergent branch after them may stall on loads in flight.
            table.fill_other_half(source.gather, at, stage_k, end_k);
            let (from_source, _) = load_source(source, rows, &table, at, width, branches, tile);
            let from_channels = channels.load_via_table(&table, at, width);
            if prefetch {
                stages.multiply(sums);
            }
            sync_cube();
            store(&from_source, &from_channels, rows, stages);
            stage_k += stage;
            at = (at + tile.tile_k) % entries;
            sync_cube();
            if !prefetch {
                stages.multiply(sums);
            }
        }
    } else {
        // All loads of a stage are in flight together; their registers are free during the product.
        let channel_rows = channels.rows(width);
        let lane = channels.lane(comptime!(table.layout.pass));
        while stage_k < end_k {
            // Entries of half the table, while the other half is filled.
            let last_k = table.fill_next_half(source.gather, at, stage_k, end_k);
            let mut entry = at;
            while stage_k < last_k {
                let (from_source, inside) = load_source(source, rows, &table, entry, width, branches, tile);
                let (offset, exists) = channels.stage_offset(&table, entry, lane, stage_k, end_k);
                let from_channels = channels.load_rows(&channel_rows, offset, exists);
                let from_source = inside_or_zero(&from_source, &inside);
                let from_channels = or_zero(&from_channels, exists);
                sync_cube();
                store(&from_source, &from_channels, rows, stages);
                sync_cube();
                stages.multiply(sums);
                stage_k += stage;
                entry += tile.tile_k;
            }
            at = comptime!(entries / 2) - at;
        }
    }
}

/// Loads this thread's elements of the source's stage whose K indices begin at entry `at`, into registers.
/// `branches`: whether what is outside is not loaded; else the second result says what is inside.
#[cube]
fn load_source<E: Float, R: Size>(
    source: &Source<Vector<E, R>>,
    rows: &SourceRows,
    table: &IndexTable,
    at: usize,
    #[comptime] width: usize,
    #[comptime] branches: bool,
    #[comptime] tile: MatrixTile,
) -> (Sequence<Vector<E, R>>, Sequence<bool>) {
    let mut values = Sequence::<Vector<E, R>>::new();
    let mut insides = Sequence::<bool>::new();
    let source_width = R::value();
    #[comptime]
    match rows {
        SourceRows::Positions(positions) => {
            // Lanes along positions (coalesced).
            let count = comptime!(tile.positions_per_thread(width, source_width));
            let lanes = comptime!(tile.tile_m / (count * source_width));
            // Consecutive K indices of a thread: a vector of a K-major stage, else one.
            let k_count = comptime!(if source_width == 1 { width } else { 1 });
            #[unroll]
            for load in 0..comptime!(tile.loads(tile.tile_m, width) / count) {
                let first =
                    (UNIT_POS as usize / lanes + comptime!(load * (tile.threads() / lanes))) * k_count;
                #[unroll]
                for i in 0..k_count {
                    let tap = table.tap(at + first + i);
                    #[unroll]
                    for j in 0..count {
                        source.push(&mut values, &mut insides, positions.index(j), &tap, branches);
                    }
                }
            }
        }
        SourceRows::Taps(taps) => {
            // One position (or one vector of them) of several channel taps, lanes along positions.
            let k_vectors = comptime!(tile.tile_k / source_width);
            let entry = at + UNIT_POS as usize % k_vectors * source_width;
            let position = table.position(entry);
            // Consecutive channel taps of a thread: a vector of an M-major stage, else one.
            let tap_count = comptime!(if source_width == 1 { width } else { 1 });
            #[unroll]
            for load in 0..comptime!(tile.loads(tile.tile_m, width)) {
                let first = (UNIT_POS as usize / k_vectors + comptime!(load * (tile.threads() / k_vectors)))
                    * tap_count;
                #[unroll]
                for i in 0..tap_count {
                    let mut tap = taps.tap(first + i);
                    if comptime!(!branches && source.check.needs_coordinates()) {
                        // Without masks all taps require the same.
                        tap.bits = RANGE_BIT.runtime();
                    }
                    source.push(&mut values, &mut insides, &position, &tap, branches);
                }
            }
        }
    }
    (values, insides)
}

/// Stores what was loaded of both operands.
#[cube]
fn store<E: Float, S: Float, V: Size, W: Size, R: Size>(
    from_source: &Sequence<Vector<E, R>>,
    from_channels: &Sequence<Vector<E, W>>,
    rows: &SourceRows,
    stages: &mut Stages<S, V>,
) {
    #[comptime]
    match rows {
        SourceRows::Positions(_) => {
            stages.store_positions(from_source);
            stages.store_channels(from_channels);
        }
        SourceRows::Taps(_) => stages.store(from_source, from_channels),
    }
}
