//! Which algorithm serves a problem: a pure function of problem, pass and limits, so the same problem on the
//! same kind of device always rounds the same way. A [`Plan`] is the whole decision: it names the kernels
//! that run. What a plan serves, needs and launches: its [`Family`].
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
//! every axis.
//!
//! The first step of every call: the problem that is asked for becomes the one that is launched
//! ([`PassProblem`]). Plans are chosen for the launched problem, checked for it and launched on it.
//!
//! | asked                                   | launched                                | afterwards      |
//! |-----------------------------------------|-----------------------------------------|-----------------|
//! | input gradient under padding other than | input gradient of the padded input, in  | `fold.rs` adds  |
//! | zeros                                   | fp32; zeros stay padding                | the copies      |
//! | everything else, and all of `Direct`    | the same                                |                 |
//!
//! A stream ([`Conv3dProblem::for_streams`]) is read by all plans. The forward pass is planned for a single
//! window along depth, without split-K, so that no bit of y depends on the number of frames. Only the extent
//! of Winograd's regions and the tile of `FewOutputs` do.
//!
//! Which plan is taken: `choose/`. Where a plan needs more than the device has ([`crate::Needs`]) the next
//! candidate is taken: smaller tiles of the same GEMM, at last `Direct`.

use super::depthwise::DepthwiseKernel;
use super::direct::Direct;
use super::family::{Empty, Family};
use super::few_outputs::FewOutputsTile;
use super::fold;
use super::gemm::GemmTile;
use super::notes::Notes;
use super::pass::Pass;
use super::problem::{Conv3dProblem, PaddingMode};
use super::subpixel::SubpixelTile;
use super::tiles::Tiles;
use super::window::WindowKernel;
use super::winograd::{WinogradConfig, WinogradTile};
use crate::error::ConvError;
use crate::limits::Limits;
use crate::needs::Needs;
use std::fmt::{self, Display, Formatter};

/// What the caller asks for. A forced algorithm that cannot serve the forward pass is an error; a gradient it
/// cannot serve is computed by the automatic choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// The fastest plan by the rules of `choose/`.
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

    /// The plan's properties for one pass of a problem.
    pub fn notes(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Notes {
        let problem = PassProblem::of(problem, pass);
        self.family().notes(self.launched(&problem), pass, limits)
    }

    /// Refuses a device that lacks what the plan needs for one pass of a problem that it serves.
    ///
    /// # Errors
    /// As [`Needs::check`].
    pub(super) fn check_needs(&self, problem: &PassProblem, limits: &Limits) -> Result<(), ConvError> {
        let what = format_args!("conv3d: the {} by {self}", problem.pass.name());
        self.needs_for(problem, limits).check(what, limits)
    }

    /// What the plan needs of a device for one pass of a problem that it serves.
    pub fn needs(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Needs {
        self.needs_for(&PassProblem::of(problem, pass), limits)
    }

    fn needs_for(&self, problem: &PassProblem, limits: &Limits) -> Needs {
        let launched = self.launched(problem);
        let needs = self.family().needs(launched, problem.pass, limits);
        // The cache of a stream, and a residual.
        let residual = launched.residual && problem.pass == Pass::Forward;
        let optional = [launched.streaming, residual].map(usize::from);
        let mut needs = Needs { bindings: needs.bindings + optional.iter().sum::<usize>(), ..needs };
        if residual && !self.family().fuses_residual() {
            needs.buffer_bytes = needs.buffer_bytes.max(fp32_bytes(launched.y_shape()));
        }
        if !self.folds(problem) {
            return needs;
        }
        Needs {
            buffer_bytes: needs.buffer_bytes.max(fp32_bytes(problem.launched.x_shape())),
            loop_iterations: needs.loop_iterations.max(fold::loop_iterations(&problem.asked)),
            ..needs
        }
    }
}

/// Bytes of an fp32 tensor.
fn fp32_bytes(shape: [usize; 5]) -> u64 {
    shape.iter().fold(4, |bytes, size| bytes.saturating_mul(*size as u64))
}

/// A pass of a problem, before and after the rewrite.
#[derive(Clone, Copy)]
pub(super) struct PassProblem {
    pub(super) asked: Conv3dProblem,
    /// What all plans but `Direct` launch.
    pub(super) launched: Conv3dProblem,
    pub(super) pass: Pass,
}

impl PassProblem {
    pub(super) fn of(problem: &Conv3dProblem, pass: Pass) -> Self {
        // dx does not read frames: it is that of the joined input.
        let streaming = problem.streaming && pass != Pass::InputGradient;
        let asked = Conv3dProblem { streaming, ..*problem };
        let launched = if is_folded(&asked, pass) { asked.explicitly_padded() } else { asked };
        Self { asked, launched, pass }
    }

    /// Whether the launched problem's gradient is folded afterwards.
    pub(super) fn is_folded(&self) -> bool {
        is_folded(&self.asked, self.pass)
    }

    /// Whether the pass has no result to compute.
    pub(super) fn is_empty(&self) -> bool {
        let shape = match self.pass {
            Pass::Forward => self.asked.y_shape(),
            Pass::InputGradient => self.asked.x_shape(),
            Pass::WeightGradient => self.asked.weight_shape(),
        };
        shape.contains(&0)
    }
}

/// Whether an input gradient is computed on the padded input.
fn is_folded(problem: &Conv3dProblem, pass: Pass) -> bool {
    pass == Pass::InputGradient && problem.window.padding_mode != [PaddingMode::Zeros; 3]
}

#[cfg(test)]
#[path = "needs_tests.rs"]
mod needs_tests;
