//! Where Burn's own forward pass is faster than the plan that was chosen.
//!
//! Burn 0.22.1 (cubek 0.3.1) tunes among a direct kernel, which every fp32 layer with a window gets, and, on
//! matrix units, these products of x with channels last, which it copies into that order:
//!
//! ```text
//! windows of one element   one matrix product [positions, C] x [C, O]; a stride is taken by the copy
//! other windows            implicit GEMM
//! ```
//!
//! Time of an M x N x K product on matrix units of rate R, of theirs and ours:
//!
//! ```text
//! 2 M N K / (share R) * (1 + k / K)
//!
//! k: K elements whose products take as long as a tile's first loads, its results and copies
//!
//! product                        N               share    k
//! Burn, windows of one element   whole 64        0.175    24
//! Burn, other windows            whole 64        0.275   430
//! Plan::Window                   N               0.675   330
//! Plan::Gemm, matrix units       N               0.350   330
//! ```
//!
//! Fitted to the 35 dense rows in f16 of records of an H200, fragments of 16. Measured over predicted time:
//! ours 0.97 to 1.4 on layers of 0.3 ms and more, up to 4.5 on shorter ones; Burn's 0.95 to 1.03 for windows
//! of one element, 0.97 to 21 for others (the model is Burn at its best). docs/decisions/conv3d.md lists what
//! the rule leaves to Burn. It predicts nothing for
//!
//! - gradients, fp32 and groups: ours were faster on every recorded row;
//! - fragments of 8 (Apple): nothing was timed there;
//! - fewer than 64 K elements, and 2^31 elements and more: outside what was fitted.

use super::MEASURED_FRAGMENT;
use super::model::{bytes, work_seconds};
use crate::conv3d::gemm::{self, GemmTile};
use crate::conv3d::pass::Pass;
use crate::conv3d::plan::PassProblem;
use crate::conv3d::plan::Plan;
use crate::conv3d::problem::Conv3dProblem;
use crate::limits::Limits;

/// Columns of Burn's tiles.
const COLUMNS: usize = 64;

/// The least K that was fitted.
const LEAST_TERMS: usize = 64;

/// Share of the rate of matrix units, and the K elements of a tile's ends.
#[derive(Clone, Copy)]
struct Product {
    share: f64,
    ends: f64,
}

const BURN_POINTWISE: Product = Product { share: 0.175, ends: 24.0 };
const BURN_WINDOWS: Product = Product { share: 0.275, ends: 430.0 };
/// K elements of the ends of ours, whose shares are [`Shares::window`](crate::Shares) and `gathered`.
const OUR_ENDS: f64 = 330.0;

impl Product {
    fn seconds(self, problem: &Conv3dProblem, columns: usize, limits: &Limits) -> f64 {
        let terms = (problem.group_channels() * problem.taps()) as f64;
        let operations = 2.0 * problem.positions() as f64 * columns as f64 * terms;
        operations / (self.share * limits.chip.matrices) * (1.0 + self.ends / terms)
    }
}

/// Seconds that Burn's own op takes with its tuner, the result with channels last. None where this model does
/// not know, or Burn has no kernel on matrix units.
pub fn burn_seconds(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Option<f64> {
    let terms = problem.group_channels() * problem.taps();
    let fitted = pass == Pass::Forward
        && gemm::fragment(problem, limits) == MEASURED_FRAGMENT
        && problem.window.groups == 1
        && terms >= LEAST_TERMS
        && [problem.x_shape(), problem.y_shape()].iter().all(|shape| is_counted(shape));
    if !fitted {
        return None;
    }
    let pointwise = problem.taps() == 1 && problem.window.padding == [(0, 0); 3];
    let product = if pointwise { BURN_POINTWISE } else { BURN_WINDOWS };
    Some(product.seconds(problem, problem.out_channels.next_multiple_of(COLUMNS), limits))
}

/// Whether 31 bits count the elements.
fn is_counted(shape: &[usize]) -> bool {
    shape.iter().map(|&size| size as f64).product::<f64>() < 2f64.powi(31)
}

/// Seconds of a plan for comparison with [`burn_seconds`], which counts no launches either: by the same fit
/// where it was made, else by the work of `model.rs`.
pub fn fitted_seconds(problem: &Conv3dProblem, pass: Pass, plan: &Plan, limits: &Limits) -> f64 {
    let rewritten = PassProblem::of(problem, pass);
    let launched = plan.launched(&rewritten);
    let work = work_seconds(plan, launched, pass, limits);
    let fragments = gemm::fragment(problem, limits) == MEASURED_FRAGMENT;
    let share = match plan {
        Plan::Window(_) => limits.chip.shares.window,
        Plan::Gemm(GemmTile::Mma(_)) => limits.chip.shares.gathered,
        _ => return work,
    };
    if pass != Pass::Forward || !fragments {
        return work;
    }
    // The fit leaves out the padding of tiles: with it the operations are a bound at the whole rate.
    let bound = (share * work).max(bytes(plan, launched, pass) / limits.chip.bandwidth);
    bound.max(Product { share, ends: OUR_ENDS }.seconds(problem, problem.out_channels, limits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv3d::choose::plan;
    use crate::conv3d::plan::Algorithm;
    use crate::conv3d::problem::Window;
    use crate::dtype::FloatType;

    fn layer(channels: [usize; 2], kernel: usize, stride: usize, dtype: FloatType) -> Conv3dProblem {
        let half = kernel / 2;
        let window = Window {
            stride: [1, stride, stride],
            padding: [(0, 0), (half, half), (half, half)],
            ..Window::default()
        };
        let [input, output] = channels;
        let weight = [output, input, 1, kernel, kernel];
        Conv3dProblem::new([32, input, 1, 56, 56], weight, None, window, dtype).expect("valid")
    }

    /// Ours over Burn's; none where Burn's is not known.
    fn ratio(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Option<f64> {
        let burns = burn_seconds(problem, pass, limits)?;
        let plan = plan(problem, pass, Algorithm::Auto, limits).expect("a plan");
        Some(fitted_seconds(problem, pass, &plan, limits) / burns)
    }

    /// ResNet-50's layers, measured: 1.15, 1.13 and 0.29.
    #[test]
    fn short_sums_are_burns() {
        let limits = Limits::h200();
        let forward = |channels, kernel, stride| {
            ratio(&layer(channels, kernel, stride, FloatType::F16), Pass::Forward, &limits).expect("known")
        };
        let near = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 0.01, "{got}, {want}");
        near(forward([64, 256], 1, 1), 1.16);
        near(forward([256, 512], 1, 2), 1.05);
        near(forward([64, 64], 3, 1), 0.37);
        // The other way round the sum is longer.
        assert!(forward([256, 64], 1, 1) < 0.7);
    }

    #[test]
    fn what_was_not_timed_is_not_known() {
        let limits = Limits::h200();
        let known =
            |problem: &Conv3dProblem, pass, limits: &Limits| burn_seconds(problem, pass, limits).is_some();
        let half = layer([64, 256], 1, 1, FloatType::F16);
        assert!(known(&half, Pass::Forward, &limits));
        assert!(!known(&half, Pass::InputGradient, &limits));
        assert!(!known(&half, Pass::WeightGradient, &limits));
        assert!(!known(&half, Pass::Forward, &Limits::apple_m1()));
        assert!(!known(&layer([64, 256], 1, 1, FloatType::F32), Pass::Forward, &limits));
        assert!(!known(&layer([32, 256], 1, 1, FloatType::F16), Pass::Forward, &limits));
        let without = Limits { matrices: Vec::new(), ..limits };
        assert!(!known(&half, Pass::Forward, &without));
    }

    /// A device of the same rates on which the window kernels do not fit: multiply-adds take longer.
    #[test]
    fn slower_plans_are_compared_with_the_same_product() {
        let limits = Limits::h200();
        let layer = layer([256, 256], 3, 1, FloatType::F16);
        let burns = burn_seconds(&layer, Pass::Forward, &limits).expect("known");
        let ours = |plan: &Plan| fitted_seconds(&layer, Pass::Forward, plan, &limits);
        assert!(ours(&Plan::Direct) > 5.0 * burns);
        let chosen = plan(&layer, Pass::Forward, Algorithm::Auto, &limits).expect("a plan");
        assert!(ours(&chosen) < 0.5 * burns, "{chosen}");
    }
}
