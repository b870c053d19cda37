//! Depthwise conv3d, forward and input gradient: groups = C = O, bound by memory.
//!
//! ```text
//!           w ->                a unit: `rows` sites of one column, marching along depth
//!      +---------------+        per frame: (rows + KH - 1) * KW values read, each used for `rows * KD`
//!    h |  lanes run    | d/       products at most; the KD unfinished results of each site wait in
//!      |  along w      |/         registers
//!      +---------------+        bytes: every element once from memory, the window's overlap from the cache
//! ```
//!
//! A cube works on one channel of one image, whose weights it shares: 75 of them do not fit the registers
//! beside the rest. With a depth stride or dilation no frame serves neighbouring results, and each result
//! reads its own window. The window's size is part of the kernel: loops over it are unrolled. Declined:
//! channel multipliers, windows of more than [`MOST_TAPS`] taps.

use crate::activation::activate_by_code;
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::plan::Pass;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// Taps of the largest window.
pub(super) const MOST_TAPS: usize = 80;

/// What of a march is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Window {
    pub(super) taps: [usize; 3],
    /// Sites of a unit along H; above 1 only where neighbours read neighbouring rows.
    pub(super) rows: usize,
    /// Whether neighbouring results read neighbouring frames.
    pub(super) marches: bool,
    /// Units of a cube.
    pub(super) units: usize,
}

/// Weights that are read from shared memory at once.
type Weights = Vector<f32, Const<4>>;

impl Window {
    pub(super) fn count(&self) -> usize {
        self.taps.iter().product()
    }

    /// Rows of the source that a unit reads.
    fn source_rows(&self) -> usize {
        self.taps[1] + self.rows - 1
    }

    /// Results of a site that a frame adds to.
    fn unfinished(&self) -> usize {
        if self.marches { self.taps[0] } else { 1 }
    }
}

/// How the sites of a channel are shared out: a unit's index, from the fastest: w, block of rows, chunk of
/// frames.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Share {
    pub(super) width: FastDivmod<u32>,
    pub(super) blocks: FastDivmod<u32>,
    /// Chunks of frames.
    pub(super) chunks: FastDivmod<u32>,
    pub(super) channels: FastDivmod<u32>,
    pub(super) channel_count: u32,
    /// Sites along depth, and those of one chunk.
    pub(super) depth: u32,
    pub(super) chunk: u32,
    pub(super) height: u32,
    /// Marches of one channel (weight gradient: in all images).
    pub(super) marches: u32,
    /// Cubes of one channel (weight gradient: cuts of the window).
    pub(super) cubes: FastDivmod<u32>,
    /// Taps of the whole window.
    pub(super) taps: u32,
    /// [`Activation::code`](crate::activation::Activation::code) of what is applied to the result.
    pub(super) activation: u32,
}

/// Where a unit's rows and columns of the source lie, and whether they do.
#[derive(CubeType)]
pub(super) struct Plane {
    pub(super) row: Sequence<usize>,
    pub(super) row_inside: Sequence<bool>,
    pub(super) column: Sequence<usize>,
    pub(super) column_inside: Sequence<bool>,
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn march_kernel<E: Float, O: Float>(
    source: &[E],
    weight: &[E],
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    walk: GatherArgs,
    share: Share,
    span: Span,
    #[comptime] pass: Pass,
    #[comptime] padding: PaddingMode,
    #[comptime] window: Window,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole cube leaves together: a barrier follows.
    if span.is_idle() {
        terminate!();
    }
    let (rest, cube) = share.cubes.div_mod(span.cube() as u32);
    let (n, c) = share.channels.div_mod(rest);
    let weights = share_weights(weight, &walk, c, pass, window);
    sync_cube();
    let index = cube * window.units as u32 + UNIT_POS;
    if index >= share.marches {
        terminate!();
    }
    let (rest, w) = share.width.div_mod(index);
    let (chunk, block) = share.blocks.div_mod(rest);
    let h = block * window.rows as u32;
    let first = chunk * share.chunk;
    let end = min(first + share.chunk, share.depth);

    let base = walk.source_at(n, c);
    let plane = plane(&walk, h, w, padding, window);
    let bias: ComptimeOption<f32> = bias.map(|bias| f32::cast_from(bias[c as usize * bias.stride(0)]));
    let start = bias.unwrap_or_else(|| 0.0f32.runtime());
    let out_column = walk.out_at(n, c) + walk.width.out_offset(w);

    // sums[age * rows + row]: the result that this frame reaches with depth tap `age`.
    let sums = Registers::<f32>::new(comptime!(window.unfinished() * window.rows), 0.0f32);
    if comptime!(window.marches) {
        let ahead = comptime!(window.taps[0] as u32 - 1);
        for frame in first..end + ahead {
            let (at, inside) = walk.depth.load_offset(walk.depth.coordinate(frame), padding);
            if inside {
                add_frame(source, base + at, &plane, &weights, 0usize, &sums, window);
            }
            if frame >= first + ahead {
                let d = frame - ahead;
                write_rows(out, &walk, &share, &sums, start, out_column, d, h, window);
            }
            age(&sums, window.rows);
        }
    } else {
        for d in first..end {
            #[unroll]
            for tap in 0..window.taps[0] {
                let coordinate = walk.depth.coordinate(d) + (tap as u32 * walk.depth.step) as i32;
                let (at, inside) = walk.depth.load_offset(coordinate, padding);
                if inside {
                    add_frame(source, base + at, &plane, &weights, tap, &sums, window);
                }
            }
            write_rows(out, &walk, &share, &sums, start, out_column, d, h, window);
            #[unroll]
            for i in 0..window.rows {
                sums.set(i, 0.0f32);
            }
        }
    }
}

#[cube]
pub(super) fn plane(
    walk: &GatherArgs,
    h: u32,
    w: u32,
    #[comptime] padding: PaddingMode,
    #[comptime] window: Window,
) -> Plane {
    let mut row = Sequence::<usize>::new();
    let mut row_inside = Sequence::<bool>::new();
    // Rows that several sites share are neighbours; those of one site lie a step apart.
    let mut step = walk.height.step;
    if comptime!(window.rows > 1) {
        step = 1u32;
    }
    #[unroll]
    for i in 0..comptime!(window.source_rows()) {
        let (at, inside) =
            walk.height.load_offset(walk.height.coordinate(h) + (i as u32 * step) as i32, padding);
        row.push(at);
        row_inside.push(inside);
    }
    let mut column = Sequence::<usize>::new();
    let mut column_inside = Sequence::<bool>::new();
    #[unroll]
    for i in 0..window.taps[2] {
        let coordinate = walk.width.coordinate(w) + (i as u32 * walk.width.step) as i32;
        let (at, inside) = walk.width.load_offset(coordinate, padding);
        column.push(at);
        column_inside.push(inside);
    }
    Plane { row, row_inside, column, column_inside }
}

/// Brings the channel's weights into shared memory, in the order in which a frame's values meet them: row,
/// column, depth.
#[cube]
fn share_weights<E: Float>(
    weight: &[E],
    walk: &GatherArgs,
    c: u32,
    #[comptime] pass: Pass,
    #[comptime] window: Window,
) -> Shared<[Weights]> {
    let mut shared = Shared::<[Weights]>::new_slice(comptime!(window.count().div_ceil(4)));
    let mut vector = UNIT_POS;
    while vector < comptime!(window.count().div_ceil(4) as u32) {
        let mut weights = Weights::new(0.0f32);
        #[unroll]
        for i in 0..4usize {
            let tap = vector * 4u32 + i as u32;
            if tap < comptime!(window.count() as u32) {
                let d = tap % window.taps[0] as u32;
                let cell = tap / window.taps[0] as u32;
                let at = walk.weight_group(c)
                    + walk.depth.weight_offset(d, pass)
                    + walk.height.weight_offset(cell / window.taps[2] as u32, pass)
                    + walk.width.weight_offset(cell % window.taps[2] as u32, pass);
                weights.insert(i, f32::cast_from(weight[at]));
            }
        }
        shared[vector as usize] = weights;
        vector += window.units as u32;
    }
    shared
}

/// Adds one frame of the source to the sums; `first_tap` is the depth tap of the youngest.
#[cube]
fn add_frame<E: Float>(
    source: &[E],
    frame: usize,
    plane: &Plane,
    weights: &Shared<[Weights]>,
    #[comptime] first_tap: usize,
    sums: &Registers<f32>,
    #[comptime] window: Window,
) {
    let values = read_frame(source, frame, plane, comptime!(window.source_rows()), window.taps[2]);
    #[unroll]
    for cell in 0..comptime!(window.source_rows() * window.taps[2]) {
        let row = comptime!(cell / window.taps[2]);
        let column = comptime!(cell % window.taps[2]);
        add_cell(*values.index(cell), row, column, weights, first_tap, sums, window);
    }
}

/// Reads the values of a frame that a unit needs, without branches, so that all of them are under way at
/// once: places outside the source read its first element and are zero.
#[cube]
pub(super) fn read_frame<E: Float>(
    source: &[E],
    frame: usize,
    plane: &Plane,
    #[comptime] rows: usize,
    #[comptime] columns: usize,
) -> Sequence<f32> {
    let mut values = Sequence::<f32>::new();
    #[unroll]
    for cell in 0..comptime!(rows * columns) {
        let row = comptime!(cell / columns);
        let column = comptime!(cell % columns);
        let inside = *plane.row_inside.index(row) && *plane.column_inside.index(column);
        let at = select(inside, frame + *plane.row.index(row) + *plane.column.index(column), 0usize);
        values.push(select(inside, f32::cast_from(source[at]), 0.0f32));
    }
    values
}

#[cube]
fn add_cell(
    value: f32,
    #[comptime] row: usize,
    #[comptime] column: usize,
    weights: &Shared<[Weights]>,
    #[comptime] first_tap: usize,
    sums: &Registers<f32>,
    #[comptime] window: Window,
) {
    #[unroll]
    for i in 0..comptime!(window.unfinished() * window.rows) {
        let site = comptime!(i % window.rows);
        if comptime!(row >= site && row - site < window.taps[1]) {
            let depth_tap = comptime!(first_tap + i / window.rows);
            let tap = comptime!(((row - site) * window.taps[2] + column) * window.taps[0] + depth_tap);
            sums.set(i, fma(value, weights[comptime!(tap / 4)].extract(comptime!(tap % 4)), sums.get(i)));
        }
    }
}

/// Ages the sums of `rows` sites by a frame; the youngest start at zero.
#[cube]
pub(super) fn age(sums: &Registers<f32>, #[comptime] rows: usize) {
    sums.shift(rows);
    #[unroll]
    for i in 0..rows {
        sums.set(i, 0.0f32);
    }
}

/// Writes the oldest results.
#[cube]
#[allow(clippy::too_many_arguments)]
fn write_rows<O: Float>(
    out: &mut [O],
    walk: &GatherArgs,
    share: &Share,
    sums: &Registers<f32>,
    bias: f32,
    out_column: usize,
    d: u32,
    h: u32,
    #[comptime] window: Window,
) {
    #[unroll]
    for i in 0..window.rows {
        let row = h + i as u32;
        if row < share.height {
            let sum = sums.get(comptime!((window.unfinished() - 1) * window.rows + i));
            let at = out_column + walk.depth.out_offset(d) + walk.height.out_offset(row);
            out[at] = O::cast_from(activate_by_code(sum + bias, share.activation));
        }
    }
}
