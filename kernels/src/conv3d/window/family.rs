//! [`Family`] of the kernels with a shared input window.

use super::config::WindowTile;
use super::weight::{self, WindowWeightTile};
use super::{extents, launch, pack};
use crate::conv3d::call::Conv3dCall;
use crate::conv3d::family::Family;
use crate::conv3d::gemm::stage_type;
use crate::conv3d::needs::{SETUP, kernel_needs, stage_size};
use crate::conv3d::notes::Notes;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::reduce;
use crate::conv3d::tiles::Tiles;
use crate::dtype::FloatType;
use crate::error::{ConvError, unsupported};
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::Operand;

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
            Self::Gemm(tile) => launch::launch(call, *tile, operands),
            Self::Weight(tile) => weight::launch(call, *tile, operands),
        }
    }

    fn fuses_residual(&self) -> bool {
        true
    }
}
