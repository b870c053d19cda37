//! The first step of every call: the problem that is asked for becomes the one that is launched.
//!
//! | asked                                   | launched                                | afterwards      |
//! |-----------------------------------------|-----------------------------------------|-----------------|
//! | input gradient under padding other than | input gradient of the padded input, in  | `fold.rs` adds  |
//! | zeros                                   | fp32; zeros stay padding                | the copies      |
//! | everything else, and all of `Direct`    | the same                                |                 |
//!
//! Plans are chosen for the launched problem, checked for it and launched on it.

use super::pass::Pass;
use super::problem::{Conv3dProblem, PaddingMode};

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

fn is_folded(problem: &Conv3dProblem, pass: Pass) -> bool {
    pass == Pass::InputGradient && problem.window.padding_mode != [PaddingMode::Zeros; 3]
}
