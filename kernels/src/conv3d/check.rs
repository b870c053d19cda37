//! Whether a plan that is given can serve a problem.

use super::plan::{Pass, Plan, matrix_tiles, result_is_empty, shifted_tiles, shifted_weight_tiles};
use super::problem::Conv3dProblem;
use super::tile::TileConfig;
use super::{depthwise, gemm, head, stem, winograd};
use crate::error::{ConvError, unsupported};
use crate::limits::Limits;

/// Refuses a plan that was made for another problem.
pub(super) fn check(
    plan: &Plan,
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> Result<(), ConvError> {
    let empty = result_is_empty(problem, pass);
    let turns = loop_turns(plan, problem, pass);
    if let Some(most) = limits.loop_turns
        && turns > most
    {
        return Err(ConvError::TooLarge(format!(
            "conv3d: the {} by {} sums in {turns} loop turns, this software device ends loops after {most}",
            pass.name(),
            plan.name()
        )));
    }
    match plan {
        Plan::Empty if !empty => {
            unsupported!("conv3d: the plan `empty` was given for a {} that has elements", pass.name())
        }
        Plan::ImplicitGemm(tile) => {
            let (bytes, units) = (tile.shared_bytes(), tile.units());
            if bytes > limits.shared_bytes {
                unsupported!(
                    "conv3d: the tile {}x{}x{} needs {bytes} bytes of shared memory, the device has {}",
                    tile.tile_m,
                    tile.tile_n,
                    tile.tile_k,
                    limits.shared_bytes
                );
            }
            if units > limits.units_per_cube {
                unsupported!(
                    "conv3d: the tile {}x{}x{} needs {units} units per cube, the device has {}",
                    tile.tile_m,
                    tile.tile_n,
                    tile.tile_k,
                    limits.units_per_cube
                );
            }
            Ok(())
        }
        Plan::Gemm(_) | Plan::MatrixGemm(_) if !empty && !gemm::serves(problem, pass) => {
            unsupported!(
                "conv3d: {} serves kernels of at most 10 taps along an axis with padding, this one is {:?}",
                plan.name(),
                problem.kernel
            )
        }
        Plan::MatrixGemm(tile) if !matrix_tiles(problem, pass, limits).any(|each| each == *tile) => {
            unsupported!(
                "conv3d: the device has no matrix units for the {} of {} in tiles of {}",
                pass.name(),
                problem.dtype.name(),
                tile.name()
            )
        }
        Plan::ShiftedGemm(_) | Plan::ShiftedWeight(_)
            if !empty && !shifted_serves(plan, problem, pass, limits) =>
        {
            unsupported!(
                "conv3d: {} does not serve the {} of {} with the kernel {:?}, stride {:?} and dilation {:?} on this device",
                plan.name(),
                pass.name(),
                problem.dtype.name(),
                problem.kernel,
                problem.window.stride,
                problem.window.dilation
            )
        }
        Plan::Stem(tile) if !empty && !stem::serves(problem, pass, tile, limits) => {
            unsupported!(
                "conv3d: {} serves the input gradient of at most 4 input channels per group whose windows and weights fit \
                 shared memory and whose sums the device's loops reach, not the {} of {} channels with the kernel {:?}, stride {:?} and dilation {:?}",
                plan.name(),
                pass.name(),
                problem.group_channels(),
                problem.kernel,
                problem.window.stride,
                problem.window.dilation
            )
        }
        Plan::Head(tile) if !empty && !head::serves(problem, pass, tile, limits) => {
            let as_forward = if pass == Pass::WeightGradient { Pass::Forward } else { pass };
            let (channels, results) = problem.channels_of(as_forward);
            unsupported!(
                "conv3d: {} serves at most 4 result channels per group with stride and dilation 1 whose windows fit shared memory \
                 and registers and whose sums the device's loops reach, not the {} of {channels} to \
                 {results} channels with the kernel {:?}, stride {:?} and dilation {:?}",
                plan.name(),
                pass.name(),
                problem.kernel,
                problem.window.stride,
                problem.window.dilation
            )
        }
        Plan::Depthwise if !depthwise::serves(problem, pass) => {
            unsupported!(
                "conv3d: the plan `depthwise` serves as many groups as channels, this problem has {} groups, {} input and \
                 {} output channels and {} taps",
                problem.window.groups,
                problem.channels,
                problem.out_channels,
                problem.taps()
            )
        }
        Plan::Winograd(config) if !empty => winograd::check(config, problem, pass, limits),
        _ => Ok(()),
    }
}

fn shifted_serves(plan: &Plan, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> bool {
    match plan {
        Plan::ShiftedGemm(tile) => shifted_tiles(problem, pass, limits).any(|each| each == *tile),
        Plan::ShiftedWeight(tile) => shifted_weight_tiles(problem, pass, limits).any(|each| each == *tile),
        _ => true,
    }
}

/// Turns that the loops of one unit make together.
fn loop_turns(plan: &Plan, problem: &Conv3dProblem, pass: Pass) -> usize {
    let stages = |terms: usize| terms.div_ceil(TileConfig::LARGE.tile_k);
    match (plan, pass) {
        // Whether a head's or a stem's product serves says how many it makes.
        (Plan::Empty | Plan::Head(_) | Plan::Stem(_), _)
        | (
            Plan::ImplicitGemm(_) | Plan::Gemm(_) | Plan::MatrixGemm(_) | Plan::Winograd(_),
            Pass::WeightGradient,
        )
        | (Plan::ShiftedWeight(_), _) => 0,
        (Plan::ShiftedGemm(_), _) => problem.channels.max(problem.out_channels) * problem.taps(),
        (Plan::Direct, _) => super::direct::loop_turns(problem, pass),
        (Plan::ImplicitGemm(_) | Plan::Gemm(_) | Plan::MatrixGemm(_), Pass::Forward) => {
            stages(problem.group_channels() * problem.taps())
        }
        (Plan::ImplicitGemm(_) | Plan::Gemm(_) | Plan::MatrixGemm(_), _) => {
            stages(problem.group_out_channels() * problem.taps())
        }
        // Depth outside, then what the compiler unrolls.
        (Plan::Depthwise, _) => problem.input[0].max(problem.output()[0]) + problem.kernel[0],
        (Plan::Winograd(_), _) => stages(problem.kernel[0] * problem.channels.max(problem.out_channels)),
    }
}
