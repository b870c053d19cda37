//! The launch of the weight gradient, and its kernel with fp32 multiply-adds: any device, any storage type.
//!
//! ```text
//! partial[part, o, m] = sum over the part's windows q of source(q, m) * dy(q, o)        m = (c, tap)
//! ```
//!
//! Both operands hold windows in runs, so lanes run along windows (the sum). A window's place is divided out
//! once, by one unit, and shared; a source's once per cube. Tile, bytes, operations and shared memory per
//! cube: [`super::config`]; the partials are written and read once more, 8 bytes each. Parts are summed in
//! order by `reduce.rs`. Where there is one part it is the result. Declined: more than 2^31 - 1 windows or
//! columns.

use super::config::{PLANE, RegisterTile, VECTOR, shared_terms};
use super::contiguous_weight::contiguous_weight_kernel;
use super::index::Walk;
use super::mma_weight::mma_weight_kernel;
use super::stage::{
    Extents, ExtentsLaunch, Neighbours, Share, clear, column_of, multiply, row_of, write_along_terms,
};
use super::table::{Table, fill_half, fill_other_half};
use super::vectors::windows_together;
use super::walk::{walk_args, walks};
use super::{Tile, sites_together, stage_vector};
use crate::activation::Activation;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::{Conv3dProblem, PaddingMode};
use crate::conv3d::reduce;
use crate::conv3d::split::ReductionSplit;
use crate::conv3d::window::is_pointwise_in_frame;
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Launches the weight gradient: operands x, dy, dw.
pub(crate) fn weight_gradient(
    client: &Client,
    problem: &Conv3dProblem,
    tile: Tile,
    limits: &Limits,
    [x, dy, dw]: [&Operand; 3],
) -> Result<(), ConvError> {
    let groups = problem.window.groups;
    let [m, n, k] =
        [problem.group_channels() * problem.taps(), problem.group_out_channels(), problem.positions()];
    let [tile_m, tile_n, tile_k] = tile.extents();
    let (tiles_m, tiles_n) = (m.div_ceil(tile_m), n.div_ceil(tile_n));
    let [walks] = &walks(problem, Pass::Forward)[..] else { unreachable!("a forward pass is one walk") };
    let padding = problem.window.padding_mode;
    // How many neighbouring windows are read at once, of dy and of x; a kernel of its own where they are
    // whole vectors of both.
    let (together, beside, run) = match tile {
        Tile::Registers(_) => (1, 1, false),
        Tile::Matrices(tile) => {
            let (stage, width) = stage_vector(tile.fragment, problem.dtype, limits);
            let (together, beside) = (windows_together(dy, width), sites_together(walks, x, width));
            let run = [together, beside] == [width; 2] && padding == PaddingMode::Zeros;
            let beside = if run || tile.reads_runs_of_windows(stage.size()) { beside } else { 1 };
            (together, beside, run)
        }
    };
    let tiles = tiles_m * tiles_n * groups;
    // By the shape alone: parts of other lengths round in another way, and a view has the bits of a
    // contiguous tensor.
    let filling = if matches!(tile, Tile::Matrices(_)) && is_pointwise_in_frame(problem) {
        // A unit holds so many sums that half as many cubes are under way: at most those at once. (f16,
        // 1x1x1, 512 channels, 16 tiles: in 17 parts 0.49 ms, in 33 0.35; 3x1x1, 256 channels, 12 tiles: in
        // 22 0.21, in 31 0.29, in 44 0.23.)
        limits.cubes_in_flight / 2 / tiles.max(1)
    } else {
        limits.cubes_in_flight.div_ceil(tiles.max(1))
    };
    let split = ReductionSplit::filling(k, dw.len(), filling, tile_k, limits);
    let partials = reduce::partials(client, split.slices, dw);
    let cubes = tiles * split.slices;
    let address = address_type("conv3d", &[x, dy, &partials], m.max(n).max(k).max(cubes), limits)?;
    let operations = 2.0 * (tile_m * tile_n * split.length) as f64;
    for dispatch in dispatches(cubes, operations, limits) {
        let walk = walk_args(problem, Pass::Forward, walks, [x, dw, dy]);
        let extents = ExtentsLaunch::new(
            m as u32,
            n as u32,
            k as u32,
            split.length as u32,
            problem.group_channels() as u32,
            tiles_m,
            tiles_n,
            groups,
            dw.len(),
            Activation::None.code(),
        );
        match tile {
            // SAFETY: as in the engine's launch of the other passes; windows past the part's last are not
            // read.
            Tile::Registers(tile) => unsafe {
                weight_kernel::launch_unchecked(
                    client,
                    dispatch.count(),
                    CubeDim::new_1d(tile.units() as u32),
                    address,
                    x.buffer_arg(1),
                    dy.buffer_arg(1),
                    partials.buffer_arg(1),
                    walk,
                    extents,
                    dispatch.span(),
                    padding,
                    tile,
                    limits.unroll,
                    x.dtype.elem(),
                    partials.dtype.elem(),
                );
            },
            Tile::Matrices(tile) => {
                let (stage, width) = stage_vector(tile.fragment, problem.dtype, limits);
                let partials_arg = partials.buffer_arg(1);
                let count = dispatch.count();
                let [elem, stage_elem, out_elem] = [x.dtype, stage, partials.dtype].map(|dtype| dtype.elem());
                if run {
                    let tile = tile.of_runs();
                    // SAFETY: as above.
                    unsafe {
                        contiguous_weight_kernel::launch_unchecked(
                            client,
                            count,
                            CubeDim::new_2d(PLANE as u32, tile.planes() as u32),
                            address,
                            width,
                            x.buffer_arg(width),
                            dy.buffer_arg(width),
                            partials_arg,
                            walk,
                            extents,
                            dispatch.span(),
                            tile,
                            stage.size(),
                            elem,
                            stage_elem,
                            out_elem,
                        );
                    }
                    continue;
                }
                // SAFETY: as above.
                unsafe {
                    mma_weight_kernel::launch_unchecked(
                        client,
                        count,
                        CubeDim::new_2d(PLANE as u32, tile.planes() as u32),
                        address,
                        width,
                        together,
                        beside,
                        x.buffer_arg(beside),
                        dy.buffer_arg(together),
                        partials_arg,
                        walk,
                        extents,
                        dispatch.span(),
                        padding,
                        tile,
                        stage.size(),
                        elem,
                        stage_elem,
                        out_elem,
                    );
                }
            }
        }
    }
    reduce::sum_partials(client, limits, &partials, dw)
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn weight_kernel<E: Float, O: Float>(
    source: &[E],
    dy: &[E],
    out: &mut [O],
    walk: Walk,
    extents: Extents,
    span: Span,
    #[comptime] padding: PaddingMode,
    #[comptime] tile: RegisterTile,
    #[comptime] unroll: bool,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let share = extents.share(span.index(), tile.tile_m, tile.tile_n);
    let group = share.group;
    let part = share.part;
    let first_m = share.first_m;
    let first_n = share.first_n;
    let first_k = share.first_k;
    let end_k = share.end_k;

    let mut source_stage = Shared::<[Neighbours]>::new_slice(comptime!(tile.stage_vectors(tile.tile_m)));
    let mut dy_stage = Shared::<[Neighbours]>::new_slice(comptime!(tile.stage_vectors(tile.tile_n)));
    let replicate = comptime!(padding == PaddingMode::Replicate);
    let mut columns = Table::new(tile.tile_m, false, replicate);
    let terms = comptime!(shared_terms(tile.tile_k, padding));
    let mut windows = Table::new(terms, true, replicate);
    fill_columns(&mut columns, &walk, &share, &extents, replicate, tile.tile_m, tile.units());

    let mut sums = Array::<f32>::new(comptime!(tile.rows * tile.columns));
    #[unroll]
    for i in 0..comptime!(tile.rows * tile.columns) {
        sums[i] = 0.0f32;
    }
    let first_o = group * extents.n + first_n;
    let last_o = group * extents.n + extents.n - 1u32;
    clear(&mut source_stage, tile.units());
    clear(&mut dy_stage, tile.units());
    // The windows at `stage_k` are read while those before are multiplied; past the end there is nothing to
    // read.
    let stage = comptime!(tile.tile_k as u32).runtime();
    let mut stage_k = first_k;
    let mut at = 0usize.runtime();
    fill_half(
        &mut windows,
        &walk,
        0usize,
        stage_k,
        end_k,
        Pass::WeightGradient,
        padding,
        terms,
        tile.units(),
    );
    sync_cube();
    while stage_k < end_k + stage {
        // Before anything is read: a driver may wait for what is under way where control flow parts.
        fill_other_half(
            &mut windows,
            &walk,
            at,
            stage_k,
            end_k,
            Pass::WeightGradient,
            padding,
            terms,
            tile.units(),
        );
        let (sources, gradients) =
            gather(source, dy, &walk, &columns, &windows, at, first_o, last_o, padding, tile);
        multiply(&source_stage, &dy_stage, &mut sums, tile, unroll);
        sync_cube();
        write_along_terms(&sources, &mut source_stage, tile.tile_m, tile);
        write_along_terms(&gradients, &mut dy_stage, tile.tile_n, tile);
        stage_k += stage;
        at = (at + tile.tile_k) % terms;
        sync_cube();
    }

    #[unroll]
    for j in 0..tile.columns {
        let n = first_n + column_of(j, tile);
        if n < extents.n {
            let row = part * extents.part_stride + (group * extents.n + n) as usize * extents.m as usize;
            #[unroll]
            for i in 0..tile.rows {
                let m = first_m + row_of(i, tile);
                if m < extents.m {
                    out[row + m as usize] = O::cast_from(sums[comptime!(i * tile.columns + j)]);
                }
            }
        }
    }
}

/// Divides the sources of a tile out, each by one unit. Columns past the last repeat it: their results are
/// not written.
#[cube]
pub(super) fn fill_columns(
    columns: &mut Table,
    walk: &Walk,
    share: &Share,
    extents: &Extents,
    #[comptime] steps: bool,
    #[comptime] tile_m: usize,
    #[comptime] units: usize,
) {
    let first_channel = walk.source_channel(share.group * extents.source_channels);
    let mut in_tile = UNIT_POS as usize;
    while in_tile < tile_m {
        let mut tap = walk.column(min(share.first_m + in_tile as u32, extents.m - 1u32));
        tap.source += first_channel;
        columns.set(in_tile, &tap, false, steps);
        in_tile += units;
    }
}

/// Reads this unit's window of the next stages into registers.
#[cube]
#[allow(clippy::too_many_arguments)]
fn gather<E: Float>(
    source: &[E],
    dy: &[E],
    walk: &Walk,
    columns: &Table,
    windows: &Table,
    at: usize,
    first_o: u32,
    last_o: u32,
    #[comptime] padding: PaddingMode,
    #[comptime] tile: RegisterTile,
) -> (Sequence<E>, Sequence<E>) {
    let mut sources = Sequence::<E>::new();
    let mut gradients = Sequence::<E>::new();
    let window = at + UNIT_POS as usize % tile.tile_k;
    let site = windows.site(window, comptime!(padding == PaddingMode::Replicate));
    let exists = windows.exists(window, Pass::WeightGradient);
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_m)) {
        let vector = UNIT_POS as usize / tile.tile_k + comptime!(load * (tile.units() / tile.tile_k));
        #[unroll]
        for i in 0..VECTOR {
            let tap = columns.get(vector * VECTOR + i, comptime!(padding == PaddingMode::Replicate));
            let (place, inside) = walk.place(&site, &tap, padding);
            let mut value = E::from_int(0);
            if inside {
                value = source[place];
            }
            sources.push(value);
        }
    }
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_n)) {
        let vector = UNIT_POS as usize / tile.tile_k + comptime!(load * (tile.units() / tile.tile_k));
        #[unroll]
        for i in 0..VECTOR {
            let o = min(first_o + (vector * VECTOR + i) as u32, last_o);
            let mut value = E::from_int(0);
            if exists {
                value = dy[site.out + walk.out_channel(o)];
            }
            gradients.push(value);
        }
    }
    (sources, gradients)
}
