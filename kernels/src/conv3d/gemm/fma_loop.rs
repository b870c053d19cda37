//! The K loop of the gathered GEMMs with fp32 multiply-adds, one for all passes: what a thread loads of each
//! stage's operands, and when.
//!
//! ```text
//! prefetch (NVIDIA)    load the next stage | multiply this one | barrier | store the next one | barrier
//! elsewhere            load and store, vector by vector        | barrier | multiply           | barrier
//! ```
//!
//! Without prefetch the loads are a loop, which takes few registers and a third of the code. Rows
//! ([`SourceRows`]): forward and input gradient keep output positions in registers and look a channel tap up
//! at each load; the weight gradient looks its position up once per stage. Bytes and FLOP: [`super::config`].

use super::config::{RegisterTile, VECTOR};
use super::index::OutputPosition;
use super::mma_loop::{SourceRows, SourceRowsExpand};
use super::read::Source;
use super::stage::{
    F32x4, WorkTile, multiply, store_vector_along_k, store_vector_along_m, vector_along_k, zero_stage,
};
use super::table::IndexTable;
use cubecl::prelude::*;

/// What each load of a tensor takes: one element.
pub(super) type Element<E> = Vector<E, Const<1>>;

/// What a thread loads: rows (M) of the source, columns (N) of the weight or of dy.
#[derive(CubeType)]
pub(super) struct Operands<'a, 'c, E: Float, R: Size> {
    source: Source<'a, 'c, Vector<E, R>>,
    rows: SourceRows,
    columns: &'a [Element<E>],
    /// Offset of column 0 at K index 0.
    start: usize,
    stride: usize,
    /// The tile's first column; how many there are, but the last one of dy.
    first: u32,
    end: u32,
    #[cube(comptime)]
    tile: RegisterTile,
}

/// A thread's K index of a stage in the weight gradient.
#[derive(CubeType, Clone, Copy)]
struct KPosition {
    position: OutputPosition,
    exists: bool,
}

#[cube]
impl<'a, 'c, E: Float, R: Size> Operands<'a, 'c, E, R> {
    pub(super) fn new(
        source: Source<'a, 'c, Vector<E, R>>,
        rows: SourceRows,
        columns: &'a [Element<E>],
        start: usize,
        stride: usize,
        columns_of_tile: (u32, u32),
        #[comptime] tile: RegisterTile,
    ) -> Operands<'a, 'c, E, R> {
        let (first, end) = columns_of_tile;
        Operands::<'a, 'c, E, R> { source, rows, columns, start, stride, first, end, tile }
    }

    /// The position that all of a thread's loads of the stage at entry `at` read.
    fn k_position(&self, table: &IndexTable, at: usize) -> ComptimeOption<KPosition> {
        #[comptime]
        match &self.rows {
            SourceRows::Positions(_) => ComptimeOption::new_None(),
            SourceRows::Taps(_) => {
                let entry = at + UNIT_POS as usize % comptime!(self.tile.tile_k);
                let position = table.position(entry);
                ComptimeOption::new_Some(KPosition { position, exists: table.exists(entry) })
            }
        }
    }

    /// Loads a thread's `load`-th four rows: adjacent positions of a K index, or channel taps of its
    /// position.
    fn push_rows(
        &self,
        values: &mut Sequence<Vector<E, R>>,
        table: &IndexTable,
        at: usize,
        k: &ComptimeOption<KPosition>,
        load: usize,
    ) {
        let tile = comptime!(self.tile);
        #[comptime]
        match &self.rows {
            SourceRows::Positions(positions) => {
                // Lanes along positions (coalesced).
                let k =
                    (UNIT_POS as usize + load * comptime!(tile.threads())) / comptime!(tile.tile_m / VECTOR);
                let tap = table.tap(at + k);
                #[unroll]
                for i in 0..positions.len() {
                    values.push(self.source.read(positions.index(i), &tap));
                }
            }
            SourceRows::Taps(taps) => {
                // Lanes along K, which are positions (coalesced).
                let k = k.as_ref().unwrap();
                let vector = vector_along_k(load, tile);
                #[unroll]
                for i in 0..VECTOR {
                    let tap = taps.tap(vector * VECTOR + i);
                    values.push(self.source.read(&k.position, &tap));
                }
            }
        }
    }

    /// Loads a thread's `load`-th four columns of its K index, lanes along K (coalesced).
    fn push_columns(
        &self,
        values: &mut Sequence<Element<E>>,
        table: &IndexTable,
        at: usize,
        k: &ComptimeOption<KPosition>,
        load: usize,
    ) {
        let tile = comptime!(self.tile);
        let (offset, exists) = #[comptime]
        match k {
            ComptimeOption::Some(k) => (k.position.out, k.exists),
            ComptimeOption::None => {
                let entry = at + UNIT_POS as usize % comptime!(tile.tile_k);
                (self.start + table.offset(entry), table.exists(entry))
            }
        };
        let vector = vector_along_k(load, tile);
        #[unroll]
        for i in 0..VECTOR {
            // Clamped: results past N are not stored.
            let column = self.first + (vector * VECTOR + i) as u32;
            let column = min(column, if comptime!(k.is_some()) { self.end } else { self.end - 1u32 });
            let mut value = Element::<E>::new(E::from_int(0));
            if exists {
                value = self.columns[offset + column as usize * self.stride];
            }
            values.push(value);
        }
    }

    /// Stores a thread's `load`-th four rows, the `at`-th of `values`.
    fn store_rows(
        &self,
        values: &Sequence<Vector<E, R>>,
        #[comptime] at: usize,
        load: usize,
        stage: &mut Shared<[F32x4]>,
    ) {
        let tile = comptime!(self.tile);
        #[comptime]
        match &self.rows {
            SourceRows::Positions(_) => store_vector_along_m(values, at, load, stage, tile),
            SourceRows::Taps(_) => store_vector_along_k(values, at, load, stage, tile.tile_m, tile),
        }
    }
}

/// Adds the products of all of a slice's stages to a thread's sums. `table`: of K indices.
#[cube]
pub(super) fn k_loop<E: Float, R: Size>(
    operands: &Operands<E, R>,
    mut table: IndexTable,
    rows_stage: &mut Shared<[F32x4]>,
    columns_stage: &mut Shared<[F32x4]>,
    sums: &mut Array<f32>,
    work: &WorkTile,
    #[comptime] prefetch: bool,
) {
    let tile = comptime!(operands.tile);
    let gather = operands.source.gather;
    let entries = comptime!(table.layout.entries);
    // With `prefetch` each iteration loads the stage at `stage_k` and multiplies the one before; the last
    // loads nothing.
    let stage = comptime!(tile.tile_k as u32).runtime();
    let mut past_k = work.end_k;
    if prefetch {
        zero_stage(rows_stage, tile.threads());
        zero_stage(columns_stage, tile.threads());
        past_k += stage;
    }
    let mut stage_k = work.first_k;
    let mut at = 0usize.runtime();
    table.fill_half(gather, 0usize, stage_k, work.end_k);
    sync_cube();
    while stage_k < past_k {
        // Before the loads: a divergent branch after them may stall on loads in flight.
        table.fill_other_half(gather, at, stage_k, work.end_k);
        let k = operands.k_position(&table, at);
        if prefetch {
            let mut rows = Sequence::<Vector<E, R>>::new();
            #[unroll]
            for load in 0..comptime!(tile.loads(tile.tile_m)) {
                operands.push_rows(&mut rows, &table, at, &k, load);
            }
            let mut columns = Sequence::<Element<E>>::new();
            #[unroll]
            for load in 0..comptime!(tile.loads(tile.tile_n)) {
                operands.push_columns(&mut columns, &table, at, &k, load);
            }
            multiply(&*rows_stage, &*columns_stage, sums, tile, true);
            sync_cube();
            #[unroll]
            for load in 0..comptime!(tile.loads(tile.tile_m)) {
                operands.store_rows(&rows, load, load, rows_stage);
            }
            #[unroll]
            for load in 0..comptime!(tile.loads(tile.tile_n)) {
                store_vector_along_k(&columns, load, load, columns_stage, tile.tile_n, tile);
            }
        } else {
            for load in 0..tile.loads(tile.tile_m) {
                let mut next = Sequence::<Vector<E, R>>::new();
                operands.push_rows(&mut next, &table, at, &k, load);
                operands.store_rows(&next, 0usize, load, rows_stage);
            }
            for load in 0..tile.loads(tile.tile_n) {
                let mut next = Sequence::<Element<E>>::new();
                operands.push_columns(&mut next, &table, at, &k, load);
                store_vector_along_k(&next, 0usize, load, columns_stage, tile.tile_n, tile);
            }
            sync_cube();
            multiply(&*rows_stage, &*columns_stage, sums, tile, false);
        }
        stage_k += stage;
        at = (at + tile.tile_k) % entries;
        sync_cube();
    }
}
