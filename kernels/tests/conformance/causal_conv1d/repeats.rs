//! Isolation of non-finite values in a wide filter, several tiles per threadgroup, and bitwise
//! reproducibility over many launches.

use super::views::bits;
use super::{check, launch, normal, plans, problem, read_results, sample, tensors};
use crate::device::repeats;
use crate::support::client;
use conv_cases::causal_conv1d::{self as cases, Case};
use conv_kernels::causal_conv1d::Plan;
use conv_kernels::conv3d::Activation;
use conv_kernels::{FloatType, IndexType, Limits};
use std::collections::HashSet;

/// With a wide filter a NaN in x reaches the W steps that read it, a NaN in dy the W steps whose gradient
/// reads it: the tail of a block of taps is not padded with zero taps.
#[test]
fn nan_stays_in_the_reach_of_a_wide_filter() {
    let client = client();
    let limits = Limits::of(&client);
    let (w, t) = (21, 70);
    for (btc, silu) in [(false, true), (true, false)] {
        let case = Case { btc, silu, ..Case::new("nan", [1, 2, t], w) };
        let problem = problem(&case, FloatType::F32, FloatType::F32);
        let at = |c: usize, step: usize| if btc { step * 2 + c } else { c * t + step };
        for position in [0, 20, 33, 60, t - 1] {
            let poisoned = |which: u64| {
                let fill = move |seed: u64, length: usize| {
                    let mut values = normal(seed, length);
                    if seed == which {
                        values[at(1, position)] = f32::NAN;
                    }
                    values
                };
                tensors(&client, &problem, &[], false, &fill)
            };
            for plans in plans(&problem, &limits) {
                let launched = [poisoned(1), poisoned(5)]
                    .map(|tensors| launch((&client, &limits), &problem, plans, &tensors));
                let [x, dy] = <[_; 2]>::try_from(read_results(&client, &launched)).expect("two results");
                for step in 0..t {
                    let what = format!("btc {btc} {plans:?} NaN at {position}, step {step}");
                    assert!(!x[0].1[at(0, step)].is_nan() && !dy[2].1[at(0, step)].is_nan(), "{what}");
                    let reads = step >= position && step < position + w;
                    assert_eq!(x[0].1[at(1, step)].is_nan(), reads, "y, {what}");
                    let gives = step <= position && position < step + w;
                    assert_eq!(dy[2].1[at(1, step)].is_nan(), gives, "dx, {what}");
                }
                for k in 0..w {
                    // Step t of dy meets step t - (W-1) + k of x.
                    let meets = position + w - 1 - k < t;
                    assert!(!x[3].1[k].is_nan(), "dw of another channel, {plans:?}");
                    assert_eq!(
                        x[3].1[w + k].is_nan(),
                        meets || silu_spreads(silu, position, k, w, t),
                        "dw {k} {position} {plans:?}"
                    );
                }
            }
        }
    }
}

/// Through SiLU's derivative a NaN in x makes the pre-activation gradient NaN at the steps that read it:
/// dw is NaN for every tap with which such a step reads any step of x.
fn silu_spreads(silu: bool, position: usize, k: usize, w: usize, t: usize) -> bool {
    silu && (position..(position + w).min(t)).any(|step| step + k + 1 >= w)
}

/// With few threadgroups in flight a threadgroup of a wide filter has several tiles, one prefetched during
/// the products of another: vector and scalar rows, one block of taps and several, a last threadgroup with
/// fewer tiles.
#[test]
fn threadgroups_have_several_tiles() {
    let client = client();
    let limits = Limits { cubes_in_flight: 1, ..Limits::of(&client) };
    let cases = [
        (false, [2, 3, 8196], 20),
        (false, [1, 3, 6148], 131),
        (false, [1, 4, 4099], 17),
        (true, [2, 9, 1300], 20),
        (true, [1, 17, 600], 131),
    ];
    for (index, (btc, extents, w)) in cases.into_iter().enumerate() {
        let name = format!("tiles_w{w}_t{}", extents[2]);
        let optional = index % 2 == 0;
        let case = Case { btc, initial: optional, residual: optional, ..Case::new(&name, extents, w) };
        let mut problem = problem(&case, FloatType::F32, FloatType::F32);
        if !optional {
            problem.activation = Activation::Relu;
        }
        let (checks, failures) = check((&client, &limits), &problem, (&[], IndexType::I32), true, true);
        assert!(checks > 0 && failures.is_empty(), "{case}: {failures:?}");
    }
}

/// Every plan of some problems, in 16 and 32 bits, 1,000 times (few times on a software device in the quick
/// tier).
#[test]
fn repeated_launches_give_equal_bits() {
    let client = client();
    let limits = Limits::of(&client);
    let mut problems: Vec<_> = sample()
        .into_iter()
        .chain([
            Case { silu: true, ..Case::new("words", [2, 3, 4104], 4) },
            Case::new("wide", [2, 3, 520], 24),
            Case { btc: true, ..Case::new("wide_btc", [2, 3, 70], 12) },
        ])
        .flat_map(|case| [FloatType::F32, FloatType::F16].map(|dtype| (case.clone(), dtype)))
        .collect();
    problems.retain(|(_, dtype)| limits.dtypes.contains(dtype));
    let repeats = repeats(&limits, 3);
    let mut repeated = HashSet::new();
    for (case, dtype) in problems {
        let problem = problem(&case, dtype, dtype);
        let tensors = tensors(&client, &problem, &cases::seq_idx(&case), true, &normal);
        for plans in plans(&problem, &limits) {
            let mut first = None;
            let mut left = repeats;
            while left > 0 {
                let count = left.min(50);
                left -= count;
                let launched =
                    (0..count).map(|_| launch((&client, &limits), &problem, plans, &tensors)).collect();
                for results in bits(&client, launched) {
                    let first = first.get_or_insert_with(|| results.clone());
                    assert!(results == *first, "{case} {plans:?} {}", dtype.name());
                }
            }
            repeated.extend([0, 1].map(|pass| (case.btc, pass, plans[pass])));
        }
    }
    for btc in [false, true] {
        for (plan, pass) in
            [Plan::Narrow, Plan::Wide, Plan::Looped].into_iter().flat_map(|plan| [(plan, 0), (plan, 1)])
        {
            assert!(repeated.contains(&(btc, pass, plan)), "btc {btc} {plan:?} pass {pass}");
        }
    }
}
