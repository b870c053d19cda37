//! [`Family`] of the sub-pixel input gradient.

use super::config::SubpixelTile;
use super::{SubpixelExtents, launch, loop_iterations, packed_bytes, serves, stage};
use crate::conv3d::call::Conv3dCall;
use crate::conv3d::family::Family;
use crate::conv3d::needs::{kernel_needs, stage_size};
use crate::conv3d::notes::{NonFinite, Notes};
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::reduce;
use crate::conv3d::tiles::Tiles;
use crate::error::{ConvError, unsupported};
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::Operand;

impl Family for SubpixelTile {
    fn plan_name(&self) -> String {
        format!("subpixel_{}", self.name())
    }

    fn serves(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Result<(), ConvError> {
        if serves(problem, pass, self, limits) {
            return Ok(());
        }
        unsupported!(
            "conv3d: {} serves the input gradient of at most 4 input channels per group whose windows \
             and weights fit shared memory and whose sums fit the device's loop iterations, not the {} \
             of {} channels with the kernel {:?}, stride {:?} and dilation {:?}",
            self.plan_name(),
            pass.name(),
            problem.group_channels(),
            problem.kernel,
            problem.window.stride,
            problem.window.dilation
        )
    }

    fn needs(&self, problem: &Conv3dProblem, _: Pass, limits: &Limits) -> Needs {
        let bytes = self.shared_bytes(stage_size(problem, limits));
        Needs {
            buffer_bytes: packed_bytes(problem, self, limits),
            ..kernel_needs(bytes, self.threads(), loop_iterations(problem, self, limits))
        }
    }

    fn tiles(&self, problem: &Conv3dProblem, _: Pass) -> Option<Tiles> {
        let extents = SubpixelExtents::of(problem, self)?;
        let depth_taps = problem.kernel[0].div_ceil(problem.window.stride[0]);
        let terms = depth_taps * extents.chunks * self.channels * extents.taps();
        let count = extents.threadgroups(problem, self);
        Some(Tiles { count, rows: self.tile_m, columns: self.columns, terms })
    }

    fn notes(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Notes {
        // Taps that do not reach a position of a block have zero weights.
        let dense = problem.window.stride[1..] == [1, 1];
        Notes {
            domain: stage(problem, self, limits).0,
            workspace_bytes: packed_bytes(problem, self, limits),
            non_finite: if dense { NonFinite::Window } else { NonFinite::Blocks },
            ..Notes::of_sum(pass)
        }
    }

    fn launches(&self, problem: &Conv3dProblem, _: Pass, limits: &Limits) -> usize {
        let slices = SubpixelExtents::of(problem, self)
            .map_or(1, |extents| extents.chunks.div_ceil(extents.slice_chunks(problem, self, limits)));
        // Packed weights and the product.
        2 + reduce::sum_launches(slices)
    }

    fn launch(&self, call: &Conv3dCall, operands: [&Operand; 3]) -> Result<(), ConvError> {
        launch::launch(call, self, operands)
    }
}
