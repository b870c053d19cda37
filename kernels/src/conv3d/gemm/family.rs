//! [`Family`] of the gathered GEMM: what [`crate::conv3d::Plan::Gemm`] serves, needs and
//! launches.

use super::config::{MatrixTile, RegisterTile, VECTOR};
use super::gather::{Gather, is_patches, launched_gathers, patches, serves};
use super::launch::forward_or_input_gradient;
use super::slices::{gemm_shape, kernels, most_slices, waves, weight_split};
use super::{launches, mma_tiles, stage_type, weight};
use crate::conv3d::call::Conv3dCall;
use crate::conv3d::family::Family;
use crate::conv3d::loops::nest;
use crate::conv3d::needs::{SETUP, kernel_needs, stage_size};
use crate::conv3d::notes::Notes;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::tiles::Tiles;
use crate::dtype::FloatType;
use crate::error::{ConvError, unsupported};
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::Operand;

/// The tile of a GEMM, and what multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GemmTile {
    /// fp32 multiply-adds.
    Fma(RegisterTile),
    /// Matrix units.
    Mma(MatrixTile),
}

impl GemmTile {
    /// M, N and K of a threadgroup's stage.
    pub(super) fn shape(&self) -> [usize; 3] {
        match self {
            Self::Fma(tile) => [tile.tile_m, tile.tile_n, tile.tile_k],
            Self::Mma(tile) => [tile.tile_m, tile.tile_n, tile.tile_k],
        }
    }
}

impl Family for GemmTile {
    fn plan_name(&self) -> String {
        match self {
            Self::Fma(tile) => format!("gemm_{}", tile.name()),
            Self::Mma(tile) => format!("matrix_gemm_{}", tile.name()),
        }
    }

    fn serves(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Result<(), ConvError> {
        if !serves(problem, pass) {
            unsupported!(
                "conv3d: {} serves positions and K elements that 31 bits count and few phases of a stride, not \
                 the kernel {:?} with stride {:?} on {:?}",
                self.plan_name(),
                problem.kernel,
                problem.window.stride,
                problem.x_shape()
            );
        }
        if let Self::Mma(tile) = self
            && !mma_tiles(problem, pass, limits).any(|each| each == *tile)
        {
            unsupported!(
                "conv3d: the device has no matrix units for the {} of {} in tiles of {}",
                pass.name(),
                problem.dtype.name(),
                tile.name()
            );
        }
        Ok(())
    }

    fn needs(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Needs {
        let stages = k_iterations(problem, pass, *self, limits);
        match self {
            Self::Fma(tile) => {
                let unrolled = prefetches(problem, pass, *self, limits);
                let iterations = if unrolled { nest(stages, 0) + SETUP } else { looped(tile, stages) };
                kernel_needs(tile.shared_bytes(), tile.threads(), iterations)
            }
            Self::Mma(tile) => {
                let bytes = tile.shared_bytes(stage_size(problem, limits));
                kernel_needs(bytes, tile.threads(), nest(stages, 0) + SETUP)
            }
        }
    }

    fn tiles(&self, problem: &Conv3dProblem, pass: Pass) -> Option<Tiles> {
        let [tile_m, tile_n, tile_k] = self.shape();
        // The weight gradient swaps rows and columns.
        let [rows, columns] = if pass == Pass::WeightGradient { [tile_n, tile_m] } else { [tile_m, tile_n] };
        let tile = [rows, columns, tile_k];
        Some(Tiles::of_gemm(problem, pass, is_patches(problem, pass), launches(problem, pass), tile))
    }

    fn notes(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Notes {
        let notes = Notes::of_sum(pass);
        // The weights that are packed per stride phase.
        let packs = pass == Pass::InputGradient && !is_patches(problem, pass);
        let weights = problem.weight_shape().iter().product::<usize>() * problem.dtype.size();
        Notes {
            domain: match self {
                Self::Fma(_) => FloatType::F32,
                Self::Mma(_) => stage_type(problem.dtype, limits).map_or(FloatType::F32, |(dtype, _)| dtype),
            },
            workspace_bytes: if packs { weights as u64 } else { 0 },
            ..notes
        }
    }

    fn launches(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> usize {
        kernels(problem, pass, *self, limits)
    }

    fn waves(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Option<f64> {
        let counted = matches!(self, Self::Fma(_)) && !problem.streaming;
        counted.then(|| waves(problem, pass, *self, limits))
    }

    fn launch(&self, call: &Conv3dCall, operands: [&Operand; 3]) -> Result<(), ConvError> {
        match call.pass {
            Pass::WeightGradient => weight::weight_gradient(call, *self, operands),
            _ => forward_or_input_gradient(call, *self, operands),
        }
    }

    fn fuses_residual(&self) -> bool {
        true
    }
}

/// Whether the kernels with multiply-adds prefetch stages, their inner loops unrolled: where compilers
/// schedule long straight-line code, and where a device would end the loops.
pub(super) fn prefetches(problem: &Conv3dProblem, pass: Pass, tile: GemmTile, limits: &Limits) -> bool {
    let GemmTile::Fma(fma) = tile else { return limits.unroll };
    let iterations = || looped(&fma, k_iterations(problem, pass, tile, limits));
    limits.unroll || limits.loop_iterations.is_some_and(|most| iterations() > most)
}

/// Loop iterations of the kernels with multiply-adds without prefetch.
fn looped(tile: &RegisterTile, stages: usize) -> usize {
    // The loads of both stages and their product.
    let loops = [tile.loads(tile.tile_m), tile.loads(tile.tile_n), tile.tile_k];
    let inner = loops.iter().map(|count| nest(*count, 0)).sum();
    let epilogue = tile.rows * (tile.columns / VECTOR) * nest(VECTOR, 0);
    nest(stages, inner) + epilogue + SETUP
}

/// Iterations of the longest K loop.
pub(in crate::conv3d) fn k_iterations(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: GemmTile,
    limits: &Limits,
) -> usize {
    let [_, _, tile_k] = tile.shape();
    // One more than the stages: with prefetch the first iteration multiplies zeros while it loads the first.
    if pass == Pass::WeightGradient {
        return weight_split(problem, tile, limits).length.div_ceil(tile_k) + 1;
    }
    let iterations = |gathers: &[Gather]| {
        let slices = most_slices(problem, pass, tile, gathers.iter(), limits);
        let k = gathers.iter().map(|gather| gemm_shape(problem, pass, gather)[2]).max().unwrap_or(0);
        k.div_ceil(slices).div_ceil(tile_k) + 1
    };
    // The strides of the weight decide between the two.
    let patched = if is_patches(problem, pass) { iterations(&[patches(problem)]) } else { 0 };
    patched.max(iterations(&launched_gathers(problem, pass)))
}
