//! A chunk of the weight gradient's segments: this thread's elements of x and dy, from memory to registers to
//! shared memory.

use super::WindowWeightTile;
use super::tiling::{Segment, WeightTiling, WeightWork, dy_offset, x_offset};
use crate::conv3d::cache::CacheArgs;
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::mma::pack_vector;
use crate::conv3d::problem::PaddingMode;
use crate::registers::Registers;
use cubecl::prelude::*;

/// What the chunks of a threadgroup are read from.
#[derive(CubeType)]
pub(super) struct ChunkReader<'a, 'c, E: Float> {
    source: &'a [E],
    cache: ComptimeOption<&'c [E]>,
    dy: &'a [E],
    gather: &'a GatherArgs,
    cache_args: &'a ComptimeOption<CacheArgs>,
    tiling: &'a WeightTiling,
    work: &'a WeightWork,
    /// Along H and W.
    #[cube(comptime)]
    padding: PaddingMode,
    #[cube(comptime)]
    tile: WindowWeightTile,
}

#[cube]
impl<'a, 'c, E: Float> ChunkReader<'a, 'c, E> {
    pub(super) fn new(
        source: &'a [E],
        cache: ComptimeOption<&'c [E]>,
        dy: &'a [E],
        gather: &'a GatherArgs,
        cache_args: &'a ComptimeOption<CacheArgs>,
        tiling: &'a WeightTiling,
        work: &'a WeightWork,
        #[comptime] padding: PaddingMode,
        #[comptime] tile: WindowWeightTile,
    ) -> ChunkReader<'a, 'c, E> {
        ChunkReader::<'a, 'c, E> { source, cache, dy, gather, cache_args, tiling, work, padding, tile }
    }

    /// Loads this thread's vectors of chunk `chunk` of a segment of x, and of dy's chunk `lag` before it.
    pub(super) fn read(
        &self,
        segment: &Segment,
        chunk: u32,
        chunks: u32,
        #[comptime] width: usize,
    ) -> (Sequence<E>, Sequence<E>) {
        let gather = self.gather;
        let tiling = self.tiling;
        let tile = comptime!(self.tile);
        // This thread's position in a chunk, and its first channel.
        let position = UNIT_POS % comptime!(tile.positions as u32);
        let in_tile = UNIT_POS / comptime!(tile.positions as u32) * width as u32;
        let first_c = self.work.first_c + in_tile;
        let first_o = self.work.first_o + in_tile;
        let step = comptime!((tile.threads() / tile.positions * width) as u32);
        let exists = chunk < chunks;

        let (offset, inside) = x_offset(
            gather,
            tiling,
            segment,
            chunk * comptime!(tile.positions as u32) + position,
            comptime!(self.padding),
        );
        let first_channel = self.work.group * tiling.channels + first_c;
        let loads = comptime!(tile.loads(tile.channels(), width));
        let values = #[comptime]
        match self.cache_args {
            ComptimeOption::Some(args) => {
                let cache = self.cache.unwrap();
                let stride = select(segment.in_cache, args.channel_stride, gather.source_channel_stride);
                let first = offset + first_channel as usize * stride;
                let left = select(inside && exists, max(tiling.channels, first_c) - first_c, 0u32);
                let values = Registers::<E>::new(comptime!(loads * width), E::from_int(0));
                if segment.in_cache {
                    load_channels(&values, cache, first, stride, step, left, loads, width);
                } else {
                    load_channels(&values, self.source, first, stride, step, left, loads, width);
                }
                values.values()
            }
            ComptimeOption::None => read_channels::<E>(
                self.source,
                offset + gather.source_channel(first_channel),
                gather.source_channel(1u32),
                step,
                max(tiling.channels, first_c) - first_c,
                inside && exists,
                loads,
                width,
            ),
        };
        let started = chunk >= tiling.lag;
        let chunk = max(chunk, tiling.lag) - tiling.lag;
        let (offset, inside) =
            dy_offset(gather, tiling, segment, chunk * comptime!(tile.positions as u32) + position);
        let dy_values = read_channels::<E>(
            self.dy,
            offset + gather.out_channel(self.work.group * tiling.out_channels + first_o),
            gather.out_channel(1u32),
            step,
            max(tiling.out_channels, first_o) - first_o,
            inside && exists && started,
            comptime!(tile.loads(tile.out_channels(), width)),
            width,
        );
        (values, dy_values)
    }
}

/// Stores what was read of a chunk: dy, and x into a slot of the ring; the first rows of slot 0 also behind
/// the last slot.
#[cube]
pub(super) fn write_chunk<E: Float, S: Float, V: Size>(
    x_values: &Sequence<E>,
    dy_values: &Sequence<E>,
    ring: &mut Shared<[Vector<S, V>]>,
    dy_stage: &mut Shared<[Vector<S, V>]>,
    slot: u32,
    #[comptime] pitches: (usize, usize),
    #[comptime] tile: WindowWeightTile,
) {
    let (x_pitch, dy_pitch) = pitches;
    let position = UNIT_POS % comptime!(tile.positions as u32);
    write_channels(
        x_values,
        ring,
        slot * comptime!(tile.positions as u32) + position,
        x_pitch,
        comptime!(tile.channels()),
        tile,
    );
    if slot == 0u32 && position < comptime!(tile.fragment as u32) {
        write_channels(
            x_values,
            ring,
            position + comptime!(tile.ring as u32),
            x_pitch,
            comptime!(tile.channels()),
            tile,
        );
    }
    write_channels(dy_values, dy_stage, position, dy_pitch, comptime!(tile.out_channels()), tile);
}

/// Loads this thread's vectors of a chunk into registers: `width` consecutive channels of one element, `step`
/// channels apart, zero from channel `end` on; lanes along elements.
#[cube]
fn read_channels<E: Float>(
    from: &[E],
    offset: usize,
    stride: usize,
    step: u32,
    end: u32,
    exists: bool,
    #[comptime] loads: usize,
    #[comptime] width: usize,
) -> Sequence<E> {
    let mut values = Sequence::<E>::new();
    #[unroll]
    for load in 0..loads {
        #[unroll]
        for i in 0..width {
            let channel = step * load as u32 + i as u32;
            let mut value = E::from_int(0);
            if exists && channel < end {
                value = from[offset + channel as usize * stride];
            }
            values.push(value);
        }
    }
    values
}

/// [`read_channels`] into registers that hold zeros.
#[cube]
fn load_channels<E: Float>(
    values: &Registers<E>,
    from: &[E],
    offset: usize,
    stride: usize,
    step: u32,
    end: u32,
    #[comptime] loads: usize,
    #[comptime] width: usize,
) {
    #[unroll]
    for load in 0..loads {
        #[unroll]
        for i in 0..width {
            let channel = step * load as u32 + i as u32;
            if channel < end {
                values.set(comptime!(load * width + i), from[offset + channel as usize * stride]);
            }
        }
    }
}

/// Stores what [`read_channels`] has loaded into row `row` of a stage.
#[cube]
fn write_channels<E: Float, S: Float, V: Size>(
    values: &Sequence<E>,
    stage: &mut Shared<[Vector<S, V>]>,
    row: u32,
    #[comptime] pitch: usize,
    #[comptime] channels: usize,
    #[comptime] tile: WindowWeightTile,
) {
    let width = V::value();
    let vector = UNIT_POS as usize / tile.positions;
    #[unroll]
    for load in 0..comptime!(tile.loads(channels, width)) {
        stage[row as usize * pitch + vector + comptime!(load * (tile.threads() / tile.positions))] =
            pack_vector(values, load);
    }
}
