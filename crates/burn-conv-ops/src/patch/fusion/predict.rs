//! Whether Burn's own op is predicted to be faster than this crate's kernels.

use crate::backend::Conv3dCall;
use crate::conv3d::cube::Decided;
use crate::patch::{BurnSeconds, PatchOptions};
use burn_cubecl::kernel::conv::ConvStrategy;
use conv_kernels::ConvError;
use conv_kernels::conv3d::{self, Algorithm, Pass, Plan};
use std::fmt;

/// What predicts Burn's op. The model is of Burn with its tuner: without it every convolution is a direct
/// one, which was slower than these kernels wherever it was timed.
pub(super) fn of(options: &PatchOptions) -> Option<BurnSeconds> {
    let tuned = !matches!(ConvStrategy::default(), ConvStrategy::Direct);
    let model: Option<BurnSeconds> = if tuned { Some(conv3d::burn_seconds) } else { None };
    options.burn_seconds.or(model).filter(|_| options.leave_slower)
}

/// Why a call is Burn's.
pub(super) enum Left {
    /// The kernels cannot serve it.
    Refused(ConvError),
    /// They are predicted to be slower.
    Slower { plan: Plan, ours: f64, burns: f64 },
}

impl From<ConvError> for Left {
    fn from(error: ConvError) -> Self {
        Self::Refused(error)
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => error.fmt(f),
            Self::Slower { plan, ours, burns } => {
                let [ours, burns] = [ours, burns].map(|seconds| 1e3 * seconds);
                write!(f, "Burn's is predicted to take {burns:.3} ms, {plan} {ours:.3} ms")
            }
        }
    }
}

/// Leaves the call to Burn where its op is predicted to be faster.
pub(super) fn check(
    call: &Conv3dCall,
    pass: Pass,
    decided: &mut Decided,
    burn_seconds: Option<BurnSeconds>,
) -> Result<(), Left> {
    let Some(burn_seconds) = burn_seconds else { return Ok(()) };
    // A forced algorithm is taken.
    if !matches!(call.algorithm, Algorithm::Auto | Algorithm::NoWinograd) {
        return Ok(());
    }
    let Some(burns) = burn_seconds(&call.problem, pass, &decided.limits) else { return Ok(()) };
    let plan = decided.plan(call, pass)?;
    let ours = conv3d::fitted_seconds(&call.problem, pass, &plan, &decided.limits);
    if ours > burns { Err(Left::Slower { plan, ours, burns }) } else { Ok(()) }
}
