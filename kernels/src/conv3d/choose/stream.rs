//! When a stream's forward pass takes Winograd, for which cache and x are joined in memory, instead of the
//! plan that reads them where they are.
//!
//! ```text
//! taken if     seconds of Winograd + the joined input, read and written < seconds of the other plan
//! ```
//!
//! Decided for one window along depth, so that the choice does not depend on the number of frames.

use super::choose;
use super::model::seconds;
use crate::conv3d::pass::Pass;
use crate::conv3d::plan::{Algorithm, Plan};
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::rewrite::PassProblem;
use crate::conv3d::winograd::WinogradTile;
use crate::limits::Limits;

/// The Winograd tile that a stream's forward pass is predicted to be faster by, although the cache and x
/// have to be joined for it. Decided for one window along depth, so that it does not depend on the number
/// of frames.
pub fn stream_tile(problem: &Conv3dProblem, limits: &Limits) -> Option<WinogradTile> {
    let plan = |problem: &Conv3dProblem, algorithm| {
        choose(&PassProblem::of(problem, Pass::Forward), algorithm, limits).ok()
    };
    let whole = |problem: Conv3dProblem| Conv3dProblem { streaming: false, ..problem };
    let one = whole(problem.planned(Pass::Forward));
    let Some(joined @ Plan::Winograd(config)) = plan(&one, Algorithm::Auto) else {
        return None;
    };
    let read = plan(problem, Algorithm::Auto)?;
    let serves = plan(&whole(*problem), Algorithm::Winograd(config.tile)).is_some();
    let elements: f64 = one.x_shape().iter().map(|&size| size as f64).product();
    let copy = 2.0 * elements * problem.dtype.size() as f64 / limits.chip.bandwidth;
    let seconds = |plan| seconds(plan, &one, Pass::Forward, limits);
    (serves && seconds(&joined) + copy < seconds(&read)).then_some(config.tile)
}
