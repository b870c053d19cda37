//! The channels' operand of the gathered GEMMs on matrix units (the weight; dy in the weight gradient): what
//! a thread loads of each stage, lanes along K, in vectors along K or element by element.

use super::config::MatrixTile;
use super::table::IndexTable;
use crate::conv3d::pass::Pass;
use cubecl::prelude::*;

/// The operand, and the channels of a tile.
#[derive(CubeType)]
pub(super) struct Channels<'a, E: Float, W: Size> {
    tensor: &'a [Vector<E, W>],
    /// Offset of channel 0 at K index 0.
    start: usize,
    /// The tile's first channel, and the last of all.
    first: u32,
    last: u32,
    stride: usize,
    #[cube(comptime)]
    tile: MatrixTile,
}

#[cube]
impl<'a, E: Float, W: Size> Channels<'a, E, W> {
    pub(super) fn new(
        tensor: &'a [Vector<E, W>],
        start: usize,
        first: u32,
        last: u32,
        stride: usize,
        #[comptime] tile: MatrixTile,
    ) -> Channels<'a, E, W> {
        Channels::<'a, E, W> { tensor, start, first, last, stride, tile }
    }

    /// [`Self::load`] with the offset of this thread's K index from the table.
    pub(super) fn load_via_table(
        &self,
        table: &IndexTable,
        at: usize,
        #[comptime] width: usize,
    ) -> Sequence<Vector<E, W>> {
        let load_width = W::value();
        let entry = at + UNIT_POS as usize % comptime!(self.tile.tile_k / load_width) * load_width;
        self.load(self.start + table.offset(entry), table.exists(entry), width)
    }

    /// Loads this thread's elements of a stage of vectors of `width` into registers. `offset` is that of
    /// channel 0 at the thread's K index.
    pub(super) fn load(
        &self,
        offset: usize,
        exists: bool,
        #[comptime] width: usize,
    ) -> Sequence<Vector<E, W>> {
        let mut values = Sequence::<Vector<E, W>>::new();
        let load_width = W::value();
        #[unroll]
        for load in 0..comptime!(self.tile.loads(self.tile.tile_n, load_width)) {
            let channel = self.loaded_channel(load, width);
            let mut value = Vector::<E, W>::new(E::from_int(0));
            if exists {
                value = self.tensor[(offset + channel as usize * self.stride) / load_width];
            }
            values.push(value);
        }
        values
    }

    /// The channel of a thread's `load`-th load. Clamped: results past N are not stored.
    fn loaded_channel(&self, #[comptime] load: usize, #[comptime] width: usize) -> u32 {
        let load_width = W::value();
        let k_vectors = comptime!(self.tile.tile_k / load_width);
        let step = comptime!(self.tile.threads() / k_vectors);
        let mut in_tile = UNIT_POS as usize / k_vectors + comptime!(load * step);
        if comptime!(load_width == 1) {
            let vector = UNIT_POS as usize / k_vectors + comptime!(load / width * step);
            in_tile = vector * width + comptime!(load % width);
        }
        min(self.first + in_tile as u32, self.last)
    }

    /// Where the channels that a thread loads begin, in vectors; the same in all stages. In the order of
    /// [`Self::load`].
    pub(super) fn rows(&self, #[comptime] width: usize) -> Sequence<usize> {
        let mut rows = Sequence::<usize>::new();
        let load_width = W::value();
        #[unroll]
        for load in 0..comptime!(self.tile.loads(self.tile.tile_n, load_width)) {
            let channel = self.loaded_channel(load, width);
            rows.push((self.start + channel as usize * self.stride) / load_width);
        }
        rows
    }

    /// This thread's K index of a stage: in vectors, but in elements in the weight gradient.
    pub(super) fn lane(&self, #[comptime] pass: Pass) -> usize {
        let load_width = W::value();
        let lane = UNIT_POS as usize % comptime!(self.tile.tile_k / load_width);
        if comptime!(pass == Pass::WeightGradient) { lane * load_width } else { lane }
    }

    /// The vector of each row at this thread's K index of the stage, and whether that exists.
    pub(super) fn stage_offset(
        &self,
        table: &IndexTable,
        entry: usize,
        lane: usize,
        stage_k: u32,
        end_k: u32,
    ) -> (usize, bool) {
        let load_width = W::value();
        if comptime!(table.layout.pass == Pass::WeightGradient) {
            (table.offset(entry + lane) / load_width, table.exists(entry + lane))
        } else {
            // Vectors of the weight need no table: their rows are K itself.
            let mut offset = stage_k as usize / load_width + lane;
            let mut exists = stage_k + ((lane * load_width) as u32) < end_k;
            if comptime!(load_width == 1) {
                offset = table.offset(entry + lane);
                exists = table.exists(entry + lane);
            }
            (offset, exists)
        }
    }

    /// [`Self::load`] without a branch, `offset` vectors into each of the `rows`: what does not exist reads
    /// the row's first vector ([`or_zero`]).
    pub(super) fn load_rows(
        &self,
        rows: &Sequence<usize>,
        offset: usize,
        exists: bool,
    ) -> Sequence<Vector<E, W>> {
        let mut values = Sequence::<Vector<E, W>>::new();
        let load_width = W::value();
        let offset = select(exists, offset, 0usize);
        #[unroll]
        for load in 0..comptime!(self.tile.loads(self.tile.tile_n, load_width)) {
            values.push(self.tensor[*rows.index(load) + offset]);
        }
        values
    }
}

/// What was loaded, or zeros. After the last load: the first use of a value waits for its load.
#[cube]
pub(super) fn or_zero<E: Float, W: Size>(
    loaded: &Sequence<Vector<E, W>>,
    exists: bool,
) -> Sequence<Vector<E, W>> {
    let mut values = Sequence::<Vector<E, W>>::new();
    #[unroll]
    for i in 0..loaded.len() {
        values.push(select(exists, *loaded.index(i), Vector::new(E::from_int(0))));
    }
    values
}
