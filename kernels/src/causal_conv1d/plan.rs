//! Which kernels serve a problem: a pure function of problem, pass and limits.
//!
//! | plan   | serves                     | workspace of the backward pass                                   |
//! |--------|----------------------------|------------------------------------------------------------------|
//! | Narrow | width <= 8                 | partial sums of dw, fp32                                         |
//! | Wide   | width > 8, no sequence ids | as Narrow; with an activation also the pre-activation gradient   |
//! | Looped | any width                  | as Wide                                                          |
//!
//! The automatic choice is the first that serves. `Narrow`: one register per tap, every tensor is read and
//! written once, the backward pass is one sweep. Published models use widths 3 and 4; 8 is the limit of a
//! register per tap. `Wide`, for filters such as Hyena's: taps and steps in shared memory, bound by FMA.
//! Packed sequences under a wide filter have only `Looped`: `Wide` would have to compare ids for every
//! product.
//!
//! A plan serves only if the device has what every kernel of the pass needs ([`Needs`](crate::Needs)).

use super::narrow;
use super::problem::CausalConv1dProblem;
use crate::error::{ConvError, unsupported};
use crate::limits::Limits;

/// The widest filter of [`Plan::Narrow`].
pub const NARROW_WIDTH: usize = narrow::WIDTH;

/// A pass of the op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// y.
    Forward,
    /// dx, dw, db and the gradient of the initial state.
    Backward,
}

impl Pass {
    /// The name used in messages and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
        }
    }
}

/// A chosen algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Plan {
    /// The results have no elements: nothing is launched.
    Empty,
    /// Taps in registers, one to eight elements per thread, the backward pass in one sweep. Width <= 8.
    Narrow,
    /// Taps and steps in shared memory, 16 accumulators per thread.
    Wide,
    /// One step per thread, the taps in a loop.
    Looped,
}

impl Plan {
    /// The name used in tables and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Narrow => "narrow",
            Self::Wide => "wide",
            Self::Looped => "looped",
        }
    }
}

/// The plan for one pass.
///
/// # Errors
/// [`ConvError::UnservedDtype`] when the device lacks a storage type, [`ConvError::DeviceLimit`] when it
/// lacks what every plan needs.
pub fn plan(problem: &CausalConv1dProblem, pass: Pass, limits: &Limits) -> Result<Plan, ConvError> {
    for dtype in [problem.dtype, problem.weight_dtype, problem.state_dtype] {
        limits.check_dtype("causal_conv1d", dtype)?;
    }
    let plans = candidates(problem, pass);
    let fits = plans.iter().find(|plan| check(**plan, problem, pass, limits).is_ok());
    // The last plan asks the least of a device: what it lacks is what is missing.
    let plan = *fits.or(plans.last()).expect("there is always a candidate");
    check(plan, problem, pass, limits).map(|()| plan)
}

/// Every plan that serves the pass, the automatic choice first; none if the device lacks what all of them
/// need.
pub fn eligible(problem: &CausalConv1dProblem, pass: Pass, limits: &Limits) -> Vec<Plan> {
    let mut plans = candidates(problem, pass);
    plans.retain(|plan| check(*plan, problem, pass, limits).is_ok());
    plans
}

/// Every plan for such problems, whatever the device's limits.
fn candidates(problem: &CausalConv1dProblem, pass: Pass) -> Vec<Plan> {
    if result_is_empty(problem, pass) {
        vec![Plan::Empty]
    } else if narrow::serves(problem) {
        vec![Plan::Narrow, Plan::Looped]
    } else if wide_serves(problem) {
        vec![Plan::Wide, Plan::Looped]
    } else {
        vec![Plan::Looped]
    }
}

/// Up to [`NARROW_WIDTH`] `Narrow` is faster; sequence ids would have to be compared for every product.
fn wide_serves(problem: &CausalConv1dProblem) -> bool {
    problem.width > NARROW_WIDTH && !problem.seq_idx
}

/// Refuses a plan that does not serve the problem or needs what the device lacks.
pub(crate) fn check(
    plan: Plan,
    problem: &CausalConv1dProblem,
    pass: Pass,
    limits: &Limits,
) -> Result<(), ConvError> {
    match plan {
        Plan::Empty if !result_is_empty(problem, pass) => {
            unsupported!(
                "causal_conv1d: the plan `empty` was given for a {} pass that has results",
                pass.name()
            )
        }
        Plan::Narrow if !narrow::serves(problem) => unsupported!(
            "causal_conv1d: the plan `narrow` serves widths up to {NARROW_WIDTH}, the weight has width {}",
            problem.width
        ),
        Plan::Wide if !wide_serves(problem) => unsupported!(
            "causal_conv1d: the plan `wide` serves widths above {NARROW_WIDTH} without seq_idx, the weight \
             has \
             width {}{}",
            problem.width,
            if problem.seq_idx { " and there is a seq_idx" } else { "" }
        ),
        _ => {
            let what = format_args!("causal_conv1d: the {} pass by {}", pass.name(), plan.name());
            plan.needs(problem, pass, limits).check(what, limits)
        }
    }
}

fn result_is_empty(problem: &CausalConv1dProblem, pass: Pass) -> bool {
    match pass {
        Pass::Forward => problem.x_shape().contains(&0),
        // Without steps or rows dw is zero, not empty.
        Pass::Backward => problem.channels == 0,
    }
}

/// Split-K of dw: the K elements, one per row and step, in slices that different threadgroups sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SplitK {
    pub(crate) slices: usize,
    /// K elements of every slice but the last.
    pub(crate) slice_length: usize,
}

impl SplitK {
    /// Slices of about `length` of the `k` elements; fewer and longer ones if `results` fp32 sums per slice
    /// exceed the workspace.
    pub(crate) fn of(k: usize, length: usize, results: usize, limits: &Limits) -> Self {
        let bytes = limits.workspace_bytes.min(limits.buffer_bytes);
        let affordable = bytes / (4 * results.max(1)) as u64;
        let affordable = usize::try_from(affordable).unwrap_or(usize::MAX).max(1);
        let slices = k.div_ceil(length).clamp(1, affordable);
        let slice_length = k.div_ceil(slices).max(1);
        Self { slices: k.div_ceil(slice_length).max(1), slice_length }
    }
}

/// Channels whose pre-activation gradient fits in the workspace at a time, at least 1: a plan needs a buffer
/// for one ([`Plan::needs`]).
pub(crate) fn channels_at_a_time(problem: &CausalConv1dProblem, limits: &Limits) -> usize {
    let bytes = 4 * (problem.batch * problem.length).max(1) as u64;
    let channels = limits.workspace_bytes.min(limits.buffer_bytes) / bytes;
    usize::try_from(channels).unwrap_or(usize::MAX).clamp(1, problem.channels.max(1))
}

#[cfg(test)]
mod tests {
    use super::super::problem::{Conv1dLayout, OptionalShapes};
    use super::*;
    use crate::Activation;
    use crate::dtype::FloatType;

    fn problem(x: [usize; 3], width: usize) -> CausalConv1dProblem {
        let (layout, f32) = (Conv1dLayout::Bct, FloatType::F32);
        let optional = OptionalShapes::default();
        CausalConv1dProblem::new(x, [x[1], width], optional, layout, Activation::None, f32, f32).unwrap()
    }

    #[test]
    fn the_automatic_plan_is_the_first_that_serves() {
        let limits = Limits::apple_m1();
        let cases = [
            ([2, 3, 4], 8, Plan::Narrow, Plan::Narrow),
            ([2, 3, 4], 9, Plan::Wide, Plan::Wide),
            ([2, 3, 0], 4, Plan::Empty, Plan::Narrow),
            ([0, 3, 4], 4, Plan::Empty, Plan::Narrow),
            ([2, 0, 4], 4, Plan::Empty, Plan::Empty),
        ];
        for (x, width, forward, backward) in cases {
            let problem = problem(x, width);
            assert_eq!(plan(&problem, Pass::Forward, &limits), Ok(forward), "{x:?} {width}");
            assert_eq!(plan(&problem, Pass::Backward, &limits), Ok(backward), "{x:?} {width}");
        }
        let halves = Limits { dtypes: vec![FloatType::F16], ..limits };
        let message = "causal_conv1d: this device cannot hold f32 tensors, it serves f16";
        assert_eq!(plan(&problem([1, 1, 1], 1), Pass::Forward, &halves).unwrap_err().message(), message);
    }

    /// WebGPU's least: eight bindings, 16 KiB of shared memory. Some plan serves every problem.
    #[test]
    fn plans_that_need_more_than_the_device_has_give_way() {
        let least = Limits { bindings: 8, shared_bytes: 16 << 10, units_per_cube: 256, ..Limits::apple_m1() };
        for (width, forward) in [(4, Plan::Narrow), (9, Plan::Looped)] {
            let problem = problem([2, 3, 40], width);
            assert_eq!(plan(&problem, Pass::Forward, &least), Ok(forward), "{width}");
            assert_eq!(plan(&problem, Pass::Backward, &least), Ok(Plan::Looped), "{width}");
        }
        let few = Limits { bindings: 6, ..least };
        assert_eq!(
            plan(&problem([2, 3, 40], 4), Pass::Backward, &few).unwrap_err().message(),
            "causal_conv1d: the backward pass by looped needs 7 buffer bindings, the device has 6"
        );
    }

    #[test]
    fn split_k_covers_every_element_once_within_the_workspace() {
        let limits = Limits { workspace_bytes: 4096, ..Limits::apple_m1() };
        for k in [0usize, 1, 511, 512, 513, 100_000] {
            for results in [1usize, 7, 512, 5000] {
                let split = SplitK::of(k, 512, results, &limits);
                let SplitK { slices, slice_length } = split;
                assert!(slices >= 1 && slices * slice_length >= k, "{k} {results} {split:?}");
                assert!((slices - 1) * slice_length < k.max(1), "an empty slice: {k} {split:?}");
                assert!(slices == 1 || slices * results * 4 <= 4096, "{k} {results} {split:?}");
                // As many as asked for, where the workspace holds them.
                let affordable = k.div_ceil(512).max(1) * results * 4 <= 4096;
                assert!(!affordable || slices == k.div_ceil(512).max(1), "{k} {results} {split:?}");
            }
        }
    }

    #[test]
    fn the_workspace_bounds_the_channels() {
        let limits = Limits { workspace_bytes: 1000, buffer_bytes: 4000, ..Limits::apple_m1() };
        for (x, channels) in [
            ([1, 9, 100], 2),
            ([2, 9, 50], 2),
            ([1, 9, 10], 9),
            ([1, 9, 1000], 1),
            ([1, 9, 0], 9),
            ([0, 0, 5], 1),
        ] {
            assert_eq!(channels_at_a_time(&problem(x, 4), &limits), channels, "{x:?}");
        }
    }

    /// Widths and sequence ids that a plan does not serve are refused, whoever asks for it.
    #[test]
    fn plans_are_refused_where_they_do_not_serve() {
        let limits = Limits::apple_m1();
        let of = |width, seq_idx| CausalConv1dProblem { seq_idx, ..problem([2, 3, 4], width) };
        let wide =
            "causal_conv1d: the plan `wide` serves widths above 8 without seq_idx, the weight has width";
        let narrow = "causal_conv1d: the plan `narrow` serves widths up to 8, the weight has width 9";
        for (plan, problem, refusal) in [
            (Plan::Wide, of(9, false), None),
            (Plan::Wide, of(8, false), Some(format!("{wide} 8"))),
            (Plan::Wide, of(9, true), Some(format!("{wide} 9 and there is a seq_idx"))),
            (Plan::Narrow, of(8, true), None),
            (Plan::Narrow, of(9, false), Some(narrow.into())),
            (Plan::Looped, of(9, true), None),
        ] {
            for pass in [Pass::Forward, Pass::Backward] {
                let error = check(plan, &problem, pass, &limits).err();
                assert_eq!(error.map(|error| error.to_string()), refusal, "{plan:?} {problem:?}");
                assert_eq!(eligible(&problem, pass, &limits).contains(&plan), refusal.is_none(), "{plan:?}");
            }
        }
    }
}
