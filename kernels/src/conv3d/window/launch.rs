//! What [`crate::conv3d::Plan::Window`] serves, needs and launches: for the forward pass and the input
//! gradient packing ([`super::pack`]), the product and the sum over split-K slices; the weight gradient in
//! [`super::weight`]. Safety: [`super`].

use super::config::WindowTile;
use super::contiguous::contiguous_kernel;
use super::epilogue::OUT_VECTOR;
use super::extents::{self, WindowExtents, k_slices};
use super::kernel::window_kernel;
use super::pack;
use super::weight::{self, WindowWeightTile};
use crate::conv3d::cache::cache_args;
use crate::conv3d::call::Conv3dCall;
use crate::conv3d::epilogue::Epilogue;
use crate::conv3d::family::Family;
use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::gemm::gather::gather_args;
use crate::conv3d::gemm::{joined_vector_width, out_vector_width, stage_type, stage_vector};
use crate::conv3d::needs::{SETUP, kernel_needs, stage_size};
use crate::conv3d::notes::Notes;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::reduce;
use crate::conv3d::tiles::Tiles;
use crate::dtype::FloatType;
use crate::error::{ConvError, unsupported};
use crate::launch::dispatches;
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::{Operand, address_type};
use cubecl::prelude::*;

/// The kernel of a window plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WindowKernel {
    /// Forward pass and input gradient.
    Gemm(WindowTile),
    /// Weight gradient.
    Weight(WindowWeightTile),
}

impl Family for WindowKernel {
    fn plan_name(&self) -> String {
        match self {
            Self::Gemm(tile) => format!("window_gemm_{}", tile.name()),
            Self::Weight(tile) => format!("window_weight_{}", tile.name()),
        }
    }

    fn serves(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Result<(), ConvError> {
        if super::kernels(problem, pass, limits).any(|kernel| kernel == *self) {
            return Ok(());
        }
        unsupported!(
            "conv3d: {} does not serve the {} of {} with the kernel {:?}, stride {:?} and dilation {:?} \
             on this device",
            self.plan_name(),
            pass.name(),
            problem.dtype.name(),
            problem.kernel,
            problem.window.stride,
            problem.window.dilation
        )
    }

    fn needs(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Needs {
        let size = stage_size(problem, limits);
        match self {
            Self::Gemm(tile) => {
                let bytes = tile.shared_bytes(size).max(pack::SHARED_BYTES);
                let iterations = extents::loop_iterations(problem, pass, tile, limits);
                Needs {
                    buffer_bytes: extents::packed_bytes(problem, pass, tile, limits),
                    ..kernel_needs(bytes, tile.threads(), iterations + SETUP)
                }
            }
            Self::Weight(tile) => {
                let iterations = weight::loop_iterations(problem, tile, limits);
                kernel_needs(tile.shared_bytes(size), tile.threads(), iterations + SETUP)
            }
        }
    }

    fn tiles(&self, problem: &Conv3dProblem, pass: Pass) -> Option<Tiles> {
        match self {
            Self::Gemm(tile) => extents::extent(problem, pass, tile),
            Self::Weight(tile) => weight::extent(problem, tile),
        }
    }

    fn notes(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Notes {
        Notes {
            domain: stage_type(problem.dtype, limits).map_or(FloatType::F32, |(dtype, _)| dtype),
            workspace_bytes: match self {
                Self::Gemm(tile) => extents::packed_bytes(problem, pass, tile, limits),
                Self::Weight(_) => 0,
            },
            ..Notes::of_sum(pass)
        }
    }

    fn launches(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> usize {
        let slices = match self {
            // Packed weights and the product.
            Self::Gemm(tile) => {
                return 2 + reduce::sum_launches(extents::slices(problem, pass, tile, limits));
            }
            Self::Weight(tile) => weight::slices(problem, tile, limits),
        };
        1 + reduce::sum_launches(slices)
    }

    fn launch(&self, call: &Conv3dCall, operands: [&Operand; 3]) -> Result<(), ConvError> {
        match self {
            Self::Gemm(tile) => launch(call, *tile, operands),
            Self::Weight(tile) => weight::launch(call, *tile, operands),
        }
    }

    fn fuses_residual(&self) -> bool {
        true
    }
}

/// Launches the forward pass (operands x, w, y) or the input gradient (dy, w, dx). With too few tiles to fill
/// the device the GEMM is split along K: the fp32 partials and the packed weights take at most
/// `Limits::workspace_bytes`.
fn launch(
    call: &Conv3dCall,
    tile: WindowTile,
    [source, weight, out]: [&Operand; 3],
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, pass, .. } = *call;
    let extents = WindowExtents::of(problem, pass, &tile).expect("`serves` has checked the windows");
    let k_slices = k_slices(problem, pass, &extents, &tile, limits);
    let launch = WindowLaunch { call, tile, extents: &extents, k_slices };
    if k_slices == 1 {
        return launch_gemm(&launch, [source, weight, out], call.epilogue());
    }
    let (partials, first) = reduce::split_result(client, k_slices, out);
    launch_gemm(&launch, [source, weight, &first], Epilogue::default())?;
    reduce::finish_partials(client, limits, &partials, out, call.epilogue())
}

/// What the launches of a pass share, apart from their operands.
struct WindowLaunch<'a> {
    call: &'a Conv3dCall<'a>,
    tile: WindowTile,
    extents: &'a WindowExtents,
    k_slices: usize,
}

/// Packs the weights and runs the GEMM; each split-K slice writes its own partials.
fn launch_gemm(
    launch: &WindowLaunch,
    [source, weight, out]: [&Operand; 3],
    Epilogue { bias, residual, activation }: Epilogue,
) -> Result<(), ConvError> {
    let WindowLaunch { call, tile, extents, k_slices } = *launch;
    let Conv3dCall { client, limits, ref problem, pass, cache, .. } = *call;
    let (stage, width) = stage_vector(tile.fragment, problem.dtype, limits);
    let elements = extents.packed(problem.window.groups);
    let packed = Operand::empty(client, &[elements], stage);
    let threadgroups = extents.tiles(problem, &tile) * k_slices;
    let slice_stride = if k_slices == 1 { 0 } else { out.len() };
    let largest =
        threadgroups.max(elements).max(extents.channels * problem.taps()).max(slice_stride * k_slices);
    let sources = || [source].into_iter().chain(cache);
    let reached: Vec<_> = sources().chain([weight, out, &packed]).chain(residual).collect();
    let address = address_type("conv3d", &reached, largest, limits)?;
    pack::launch(call, extents, [weight, &packed], width)?;
    let operations = 2.0 * (tile.tile_m * tile.tile_n * extents.mean_k().div_ceil(k_slices)) as f64;
    // One tap in the frame, and contiguous frames of the sources, the result and the residual.
    let vectors = |operand: &Operand| out_vector_width(&extents.gather, operand, OUT_VECTOR) == OUT_VECTOR;
    let contiguous = joined_vector_width(&extents.gather, sources(), width) == width
        && vectors(out)
        && residual.is_none_or(vectors);
    for dispatch in dispatches(threadgroups, operations, limits) {
        let count = dispatch.count();
        let dim = CubeDim::new_2d(SUBGROUP as u32, tile.subgroups() as u32);
        let weight_arg = packed.buffer_arg(width);
        let out_arg = out.buffer_arg(if contiguous { OUT_VECTOR } else { 1 });
        let bias = bias.map(|bias| bias.tensor_arg());
        let residual_arg = residual.map(|residual| residual.tensor_arg());
        let gather = gather_args(problem, pass, &extents.gather, [source, weight, out]);
        let tiling = extents.tiling(problem, &tile, (k_slices, slice_stride), activation);
        let phases = extents.phases(problem);
        let padding = problem.window_padding().expect("`serves` has checked the padding");
        let size = stage.size();
        let [elem, stage_elem, out_elem] = [source.dtype, stage, out.dtype].map(|dtype| dtype.elem());
        if contiguous {
            // SAFETY: the module's contract. Channels past the last and positions past the frame's end are
            // neither read nor written; a vector never crosses the end of a frame.
            unsafe {
                contiguous_kernel::launch_unchecked(
                    client,
                    count,
                    dim,
                    address,
                    width,
                    source.buffer_arg(width),
                    cache.map(|cache| cache.buffer_arg(width)).into(),
                    weight_arg,
                    bias.into(),
                    residual_arg.into(),
                    out_arg,
                    gather,
                    cache.map(cache_args).into(),
                    tiling,
                    phases.into(),
                    dispatch.span(),
                    padding,
                    tile,
                    limits.unroll,
                    size,
                    residual.is_some(),
                    cache.is_some(),
                    elem,
                    stage_elem,
                    out_elem,
                );
            }
        } else {
            // SAFETY: the module's contract. Elements outside the source and channels past the last are not
            // read; the halo, rows past the last and channels past the last are not written; the window
            // holds every element that the taps of a tile reach.
            unsafe {
                window_kernel::launch_unchecked(
                    client,
                    count,
                    dim,
                    address,
                    width,
                    source.buffer_arg(1),
                    cache.map(|cache| cache.buffer_arg(1)).into(),
                    weight_arg,
                    bias.into(),
                    residual_arg.into(),
                    out_arg,
                    gather,
                    cache.map(cache_args).into(),
                    tiling,
                    phases.into(),
                    dispatch.span(),
                    padding,
                    tile,
                    limits.unroll,
                    size,
                    residual.is_some(),
                    cache.is_some(),
                    elem,
                    stage_elem,
                    out_elem,
                );
            }
        }
    }
    Ok(())
}
