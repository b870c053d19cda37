//! Which algorithm serves a problem: a pure function of problem, pass and limits, so the same problem on the
//! same kind of device always rounds the same way. A [`Plan`] is the whole decision: it names the kernels
//! that run.
//!
//! | plan           | passes      | serves                                            | workspace          |
//! |----------------|-------------|---------------------------------------------------|--------------------|
//! | Depthwise      | all         | groups = C = O, at most 80 taps                   | dw: partials       |
//! | Gemm, FMA      | all         | M and K that 31 bits count; dx: <= 512 phases [3] | dx: weights,       |
//! |                |             |                                                   | partials           |
//! | Gemm, MMA      | all         | the same, on matrix units                         | the same           |
//! | Window, Gemm   | forward, dx | the same, stride 1 along H and W (dx: any) [1, 4] | weights, partials  |
//! | Window, Weight | dw          | matrix units, stride 1 along H and W [1, 4]       | partials           |
//! | FewOutputs     | all         | <= 4 results per group, stride and dilation 1 [1] | partials           |
//! | Subpixel       | dx          | <= 4 input channels per group [1]                 | weights, partials  |
//! | Winograd       | all         | 3x3 in H x W, stride and dilation 1, groups 1 [2] | stated by the plan |
//! | Direct         | all         | everything: one result per thread                 | dw: partials       |
//!
//! Workspace: packed weights and the fp32 partials of split-K. [1] Where the input window of a tile fits
//! shared memory. [2] Depth: any stride (dx: 1) and dilation; dw: not F(6x6). [3] Residue classes of dx
//! modulo the stride, each one launch. Beyond, and for 2^31 - 1 positions or K elements and more, `Direct`
//! serves. [4] At most 10 taps along an axis that reads zero padding.
//!
//! Every plan reads zeros or replicate padding that all padded axes share. `Winograd` also reads zeros along
//! depth with replicate along both H and W, and the other way round. `Gemm` and `Direct` read every mode on
//! every axis. The input gradient under padding other than zeros is computed in fp32 on the padded input and
//! folded, by all plans but `Direct`: the plan is chosen for that problem, checked for it and launched on it
//! (`rewrite.rs`).
//!
//! A stream ([`Conv3dProblem::for_streams`]) is read by all plans. The forward pass is planned for a single
//! window along depth, without split-K, so that no bit of y depends on the number of frames. Only the extent
//! of Winograd's regions and the tile of `FewOutputs` do.
//!
//! Which plan is taken: `choose/`. Where a plan needs more than the device has ([`crate::Needs`]) the next
//! candidate is taken: smaller tiles of the same GEMM, at last `Direct`.
//!
//! What a plan serves, needs and launches: its [`Family`].

use super::choose;
use super::depthwise::{self, DepthwiseKernel};
use super::direct::Direct;
use super::family::{Empty, Family};
use super::few_outputs::{self, FewOutputsTile};
use super::gemm::{self, GemmTile};
use super::pass::Pass;
use super::problem::Conv3dProblem;
use super::rewrite::PassProblem;
use super::subpixel::{self, SubpixelTile};
use super::tiles::Tiles;
use super::window::{self, WindowKernel};
use super::winograd::{self, WinogradConfig, WinogradTile};
use crate::error::ConvError;
use crate::limits::Limits;
use std::fmt::{self, Display, Formatter};

/// What the caller asks for. A forced algorithm that cannot serve the forward pass is an error; a gradient it
/// cannot serve is computed by the automatic choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// The fastest plan by this module's rules.
    #[default]
    Auto,
    /// As `Auto`, without Winograd: the error is that of an fp32 sum, and a NaN in x reaches only the results
    /// whose windows hold it.
    NoWinograd,
    /// One output per thread. Taps in the padding are skipped: an infinite weight reaches only the results
    /// whose windows hold an element there.
    Direct,
    /// Matrix product with operands gathered from x, w and dy: [`Plan::Gemm`] or [`Plan::Window`].
    ImplicitGemm,
    /// Winograd along H and W, depth taps summed in the transform domain.
    Winograd(WinogradTile),
}

/// A chosen algorithm with its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Plan {
    /// The result has no elements: nothing is launched.
    Empty,
    /// See `direct.rs`.
    Direct,
    /// See `depthwise/`.
    Depthwise(DepthwiseKernel),
    /// See `gemm/`.
    Gemm(GemmTile),
    /// See `window/`.
    Window(WindowKernel),
    /// See `few_outputs/`.
    FewOutputs(FewOutputsTile),
    /// See `subpixel/`.
    Subpixel(SubpixelTile),
    /// See `winograd/`.
    Winograd(WinogradConfig),
}

/// The name used in tables, reports and errors.
impl Display for Plan {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Plan {
    /// The name used in tables, reports and errors.
    pub fn name(&self) -> String {
        self.family().plan_name()
    }

    /// The one place that tells the variants apart.
    pub(super) fn family(&self) -> &dyn Family {
        match self {
            Self::Empty => &Empty,
            Self::Direct => &Direct,
            Self::Depthwise(kernel) => kernel,
            Self::Gemm(tile) => tile,
            Self::Window(kernel) => kernel,
            Self::FewOutputs(tile) => tile,
            Self::Subpixel(tile) => tile,
            Self::Winograd(config) => config,
        }
    }

    /// The problem that the plan launches.
    pub(super) fn launched<'a>(&self, problem: &'a PassProblem) -> &'a Conv3dProblem {
        if self.family().is_rewritten() { &problem.launched } else { &problem.asked }
    }

    /// Whether the plan computes the gradient of the padded input, to be folded.
    pub(super) fn folds(&self, problem: &PassProblem) -> bool {
        problem.is_folded() && self.family().is_rewritten()
    }

    /// Kernels that a pass launches one after the other, the fold of an input gradient and the pass of a
    /// residual included. Work that is split for a watchdog's sake counts once.
    pub fn launches(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> usize {
        let rewritten = PassProblem::of(problem, pass);
        let launched = self.launched(&rewritten);
        let residual = launched.residual && pass == Pass::Forward && !self.family().fuses_residual();
        let others = [self.folds(&rewritten), residual].map(usize::from);
        self.family().launches(launched, pass, limits) + others.iter().sum::<usize>()
    }

    /// The plan's tiles; none for plans that are not a single GEMM.
    pub fn tiles(&self, problem: &Conv3dProblem, pass: Pass) -> Option<Tiles> {
        self.family().tiles(self.launched(&PassProblem::of(problem, pass)), pass)
    }
}

/// The plan for one pass.
///
/// # Errors
/// [`ConvError::Unsupported`] with the reason when a forced algorithm cannot serve the pass,
/// [`ConvError::DeviceLimit`] when the device lacks what every plan needs, [`ConvError::TooLarge`] when a
/// piece of a stream has more positions than its plan counts.
pub fn plan(
    problem: &Conv3dProblem,
    pass: Pass,
    algorithm: Algorithm,
    limits: &Limits,
) -> Result<Plan, ConvError> {
    choose::choose(&PassProblem::of(problem, pass), algorithm, limits)
}

/// The plan for a gradient: a forced algorithm where it serves, else the automatic choice.
///
/// # Errors
/// As [`plan`].
pub fn gradient_plan(
    problem: &Conv3dProblem,
    pass: Pass,
    algorithm: Algorithm,
    limits: &Limits,
) -> Result<Plan, ConvError> {
    plan(problem, pass, algorithm, limits).or_else(|_| plan(problem, pass, Algorithm::Auto, limits))
}

/// Seconds that the model of `choose/model.rs` predicts for a plan on the device that `limits` describe:
/// operations and bytes at the rates of [`crate::Chip`]. A lower bound for short layers, and never a
/// measurement.
pub fn predicted_seconds(problem: &Conv3dProblem, pass: Pass, plan: &Plan, limits: &Limits) -> f64 {
    choose::model::seconds(plan, plan.launched(&PassProblem::of(problem, pass)), pass, limits)
}

/// Bytes that the model of `choose/model.rs` counts for a plan: x, w and y (or their gradients) once, and
/// Winograd's workspace; not packed weights, nor the partials of split sums.
pub fn predicted_bytes(problem: &Conv3dProblem, pass: Pass, plan: &Plan) -> f64 {
    choose::model::bytes(plan, plan.launched(&PassProblem::of(problem, pass)), pass)
}

/// Every plan that serves the pass and that some choice or its fallback may take on the device: the tests run
/// and the benchmarks time all of them. Only wide tiles of multiply-adds are served beyond these, where
/// matrix units serve the same product (`choose/gemm.rs`).
pub fn eligible(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Vec<Plan> {
    let rewritten = PassProblem::of(problem, pass);
    if rewritten.is_empty() {
        return vec![Plan::Empty];
    }
    let problem = &rewritten.launched;
    let winograd =
        WinogradTile::ALL.into_iter().filter_map(|tile| winograd::config(problem, pass, tile, limits).ok());
    let fma = choose::fma_tiles(&rewritten, limits).into_iter().map(GemmTile::Fma);
    let mma = gemm::mma_tiles(problem, pass, limits).map(GemmTile::Mma);
    let depthwise = depthwise::serves(problem, pass).then(|| DepthwiseKernel::of(problem, pass, limits));
    std::iter::once(Plan::Direct)
        .chain(fma.chain(mma).map(Plan::Gemm))
        .chain(window::kernels(problem, pass, limits).map(Plan::Window))
        .chain(few_outputs::tiles(problem, pass, limits).into_iter().map(Plan::FewOutputs))
        .chain(subpixel::tiles(problem, pass, limits).map(Plan::Subpixel))
        .chain(depthwise.map(Plan::Depthwise))
        .chain(winograd.map(Plan::Winograd))
        .filter(|plan| plan.check_needs(&rewritten, limits).is_ok())
        .filter(|plan| choose::check_piece(plan, &rewritten, limits).is_ok())
        .collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
