//! [`Family`] of the depthwise kernels.

use super::config::{
    FORWARD_ROWS, THREADS, WEIGHT_ROWS, staged_bytes, staged_tile, staged_weight, weight_work,
};
use super::{DepthwiseKernel, launch, serves};
use crate::conv3d::call::Conv3dCall;
use crate::conv3d::family::Family;
use crate::conv3d::gemm::RegisterTile;
use crate::conv3d::gemm::gather::{Gather, gathers, positions, taps};
use crate::conv3d::loops::nest;
use crate::conv3d::needs::kernel_needs;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::reduce;
use crate::error::{ConvError, unsupported};
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::Operand;

impl Family for DepthwiseKernel {
    fn plan_name(&self) -> String {
        match self {
            Self::Staged => "depthwise",
            Self::March => "depthwise_march",
            Self::Phases => "depthwise_phases",
        }
        .into()
    }

    fn serves(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Result<(), ConvError> {
        let name = self.plan_name();
        if !serves(problem, pass) {
            unsupported!(
                "conv3d: the plan `{name}` serves as many groups as channels and at most 80 taps, this \
                 problem has {} groups, {} input and {} output channels and {} taps",
                problem.window.groups,
                problem.channels,
                problem.out_channels,
                problem.taps()
            );
        }
        let kernel = Self::of(problem, pass, limits);
        if kernel != *self {
            unsupported!(
                "conv3d: the plan `{name}` was made for another problem or device, this {} with stride {:?} and \
                 dilation {:?} runs under `{}`",
                pass.name(),
                problem.window.stride,
                problem.window.dilation,
                kernel.plan_name()
            );
        }
        Ok(())
    }

    fn needs(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Needs {
        let (bytes, iterations) = match pass {
            Pass::WeightGradient => weight_needs(problem, limits),
            _ => gather_needs(problem, pass, limits),
        };
        kernel_needs(bytes, THREADS, iterations)
    }

    fn launches(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> usize {
        if pass != Pass::WeightGradient {
            return gathers(problem, pass).iter().filter(|gather| positions(gather) > 0).count();
        }
        let staged = staged_weight(problem, limits).filter(|_| *self == Self::Staged);
        let slices = match staged {
            Some((_, (_, threadgroups))) => problem.batch * threadgroups,
            None => weight_work(problem, &gathers(problem, Pass::Forward)[0], limits).slices,
        };
        1 + reduce::sum_launches(slices)
    }

    fn launch(&self, call: &Conv3dCall, operands: [&Operand; 3]) -> Result<(), ConvError> {
        match call.pass {
            Pass::WeightGradient => launch::weight_gradient(call, *self, operands),
            _ => launch::forward_or_input_gradient(call, *self, operands),
        }
    }

    fn sums_bias(&self) -> bool {
        true
    }
}

/// Bytes of threadgroup memory and loop iterations of the forward pass or the input gradient.
fn gather_needs(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> (usize, usize) {
    let frames = |gather: &Gather| gather[0].positions + gather[0].taps;
    let mut most = (0, 0);
    for gather in gathers(problem, pass).iter().filter(|gather| positions(gather) > 0) {
        let (bytes, iterations) = if taps(gather) == 0 {
            (RegisterTile::M128N8.shared_bytes(), 64)
        } else if let Some(tile) = staged_tile(gather, &FORWARD_ROWS, limits) {
            (staged_bytes(&tile), nest(frames(gather), 0))
        } else {
            let vectors = taps(gather).div_ceil(4);
            (16 * vectors, nest(frames(gather), 0) + nest(vectors.div_ceil(64), 0))
        };
        most = (most.0.max(bytes), most.1.max(iterations));
    }
    most
}

/// [`gather_needs`] of the weight gradient: the larger of its two kernels', whichever runs.
fn weight_needs(problem: &Conv3dProblem, limits: &Limits) -> (usize, usize) {
    let gather = &gathers(problem, Pass::Forward)[0];
    let frames = nest(gather[0].positions + gather[0].taps, 0);
    let staged = staged_tile(gather, &WEIGHT_ROWS, limits).map_or((0, 0), |tile| {
        (staged_bytes(&tile), frames + tile.reduction_iterations(tile.tap_count() + 1))
    });
    let work = weight_work(problem, gather, limits);
    let (threads, taps) = (work.window.threads, work.window.tap_count());
    let marches = nest(work.slice_length.div_ceil(threads), nest(work.chunk + gather[0].taps, 0));
    let summed = nest(taps.div_ceil(threads), nest(threads, 0)) + nest((threads / taps).clamp(1, 16), 0);
    let bytes = 4 * threads * (taps + 1);
    (staged.0.max(bytes), staged.1.max(marches + summed))
}
