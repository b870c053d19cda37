//! Bitwise equal results for other strides, expanded axes, layouts, small limits and repeated calls.

use super::{Results, Tensors, launch, normal, plans, problem, read_results, sample, tensors};
use crate::support::{Buffer, client, upload, upload_indices, upload_strided};
use conv_cases::causal_conv1d::{self as cases, Case};
use conv_kernels::causal_conv1d::{CausalConv1dProblem, Conv1dLayout};
use conv_kernels::{FloatType, IndexType, Limits, row_major};
use cubecl::prelude::*;

pub(crate) fn bits(client: &Client, results: Vec<Results>) -> Vec<Vec<(&'static str, Vec<u64>)>> {
    let to_bits = |values: Vec<f64>| values.into_iter().map(f64::to_bits).collect();
    read_results(client, &results)
        .into_iter()
        .map(|results| results.into_iter().map(|(name, values)| (name, to_bits(values))).collect())
        .collect()
}

/// The tensors of a problem with other strides: axes in the given order, a gap after each element.
fn restrided(client: &Client, tensors: &Tensors, order: &[usize]) -> Tensors {
    let again = |buffer: &Buffer| {
        let operand = buffer.operand();
        let rank = operand.shape.len();
        let order: Vec<usize> = order.iter().copied().filter(|axis| *axis < rank).collect();
        let mut strides = vec![0; rank];
        let mut stride = 2;
        for axis in order.into_iter().rev() {
            strides[axis] = stride;
            stride = stride * operand.shape[axis] + 3;
        }
        let values: Vec<f32> = buffer.values().into_iter().map(|value| value as f32).collect();
        upload_strided(client, &values, &operand.shape, &strides, operand.dtype)
    };
    let ids = tensors.ids.as_ref().map(|(ids, operand)| {
        let strides = [3 * operand.shape[1] + 5, 3];
        (ids.clone(), upload_indices(client, ids, &operand.shape, &strides, IndexType::I32))
    });
    Tensors {
        x: again(&tensors.x),
        weight: again(&tensors.weight),
        bias: tensors.bias.as_ref().map(again),
        state: tensors.state.as_ref().map(again),
        ids,
        dy: again(&tensors.dy),
        dfinal: tensors.dfinal.as_ref().map(again),
        residual: tensors.residual.as_ref().map(again),
    }
}

#[test]
fn views_give_the_bits_of_contiguous_tensors() {
    let client = client();
    let limits = Limits::of(&client);
    for (case, dtype) in sample().iter().flat_map(|case| [(case, FloatType::F32), (case, FloatType::F16)]) {
        let problem = problem(case, dtype, dtype);
        let tensors = tensors(&client, &problem, &cases::seq_idx(case), true, &normal);
        for plans in plans(&problem, &limits) {
            let mut launched = vec![launch((&client, &limits), &problem, plans, &tensors)];
            for order in [[0, 1, 2], [0, 2, 1], [2, 1, 0]] {
                let views = restrided(&client, &tensors, &order);
                launched.push(launch((&client, &limits), &problem, plans, &views));
            }
            let bits = bits(&client, launched);
            for view in &bits[1..] {
                assert_eq!(*view, bits[0], "{case} {} {plans:?}", dtype.name());
            }
        }
    }
}

/// A batch that repeats one row in memory (stride 0), for inputs, gradients and ids.
#[test]
fn expanded_tensors_give_the_bits_of_repeated_ones() {
    let client = client();
    let limits = Limits::of(&client);
    for case in sample() {
        let problem = problem(&case, FloatType::F32, FloatType::F32);
        let row: Vec<i32> = cases::seq_idx(&Case { b: 1, ..case.clone() });
        let ids: Vec<i32> = std::iter::repeat_n(row, case.b).flatten().collect();
        let repeat = |seed: u64, length: usize| {
            // The weight and the bias have no batch axis.
            let period = if seed == 2 { case.w } else { length / case.b };
            normal(seed, period).into_iter().cycle().take(length).collect()
        };
        let repeated = tensors(&client, &problem, &ids, true, &repeat);
        let expand = |buffer: &Buffer| {
            let operand = buffer.operand();
            let mut strides = row_major(&operand.shape);
            strides[0] = 0;
            let values: Vec<f32> = buffer.values().into_iter().map(|value| value as f32).collect();
            upload_strided(&client, &values, &operand.shape, &strides, operand.dtype)
        };
        let again = tensors(&client, &problem, &ids, true, &repeat);
        let expanded = Tensors {
            x: expand(&repeated.x),
            weight: expand(&repeated.weight),
            state: repeated.state.as_ref().map(&expand),
            ids: repeated.ids.as_ref().map(|(ids, operand)| {
                let strides = [0, 1];
                (ids.clone(), upload_indices(&client, ids, &operand.shape, &strides, IndexType::I32))
            }),
            dy: expand(&repeated.dy),
            dfinal: repeated.dfinal.as_ref().map(&expand),
            residual: repeated.residual.as_ref().map(&expand),
            ..again
        };
        for plans in plans(&problem, &limits) {
            let launched =
                [&repeated, &expanded].map(|tensors| launch((&client, &limits), &problem, plans, tensors));
            let bits = bits(&client, launched.into());
            assert_eq!(bits[1], bits[0], "{case} {plans:?}");
        }
    }
}

/// Work split into many dispatches, the gradient workspace into groups of channels.
#[test]
fn small_limits_give_the_same_bits() {
    let client = client();
    let limits = Limits::of(&client);
    // 4 * 2 * 37 bytes per channel: five channels at a time. As many slices of dw as without the limit fit,
    // two at most, of 4 * 40 * 5 bytes: their number would change its bits.
    let small =
        Limits { cubes_per_axis: 2, dispatch_operations: 1.0, workspace_bytes: 1600, ..limits.clone() };
    for case in sample() {
        let problem = problem(&case, FloatType::F32, FloatType::F32);
        let tensors = tensors(&client, &problem, &cases::seq_idx(&case), true, &normal);
        for plans in plans(&problem, &limits) {
            let launched =
                [&limits, &small].map(|limits| launch((&client, limits), &problem, plans, &tensors));
            let bits = bits(&client, launched.into());
            assert_eq!(bits[1], bits[0], "{case} {plans:?}");
        }
    }
}

#[test]
fn equal_calls_give_equal_bits() {
    let client = client();
    let limits = Limits::of(&client);
    // Long enough for several split-K slices of dw.
    let long = Case { silu: true, ..Case::new("long", [2, 3, 9000], 4) };
    for case in [long.clone(), Case { btc: true, ..long }] {
        let problem = problem(&case, FloatType::F32, FloatType::F32);
        let tensors = tensors(&client, &problem, &[], false, &normal);
        for plans in plans(&problem, &limits) {
            let launched: Vec<_> =
                (0..20).map(|_| launch((&client, &limits), &problem, plans, &tensors)).collect();
            let bits = bits(&client, launched);
            for repeat in &bits[1..] {
                assert!(*repeat == bits[0], "{case} {plans:?}: a repeated call differs");
            }
        }
    }
}

/// The layout changes the elements' offsets, not their values.
#[test]
fn layouts_give_the_same_bits() {
    let client = client();
    let limits = Limits::of(&client);
    let case = &sample()[0];
    let problem = problem(case, FloatType::F32, FloatType::F32);
    let channels_last = CausalConv1dProblem { layout: Conv1dLayout::Btc, ..problem };
    let first = tensors(&client, &problem, &cases::seq_idx(case), true, &normal);
    let last = tensors(&client, &channels_last, &cases::seq_idx(case), true, &normal);
    // The tensors of the second problem are those of the first, seen through swapped axes.
    let swapped = |buffer: &Buffer| {
        let values: Vec<f32> = buffer.values().into_iter().map(|value| value as f32).collect();
        let (c, t) = (case.c, case.t);
        let transposed: Vec<f32> = (0..values.len())
            .map(|index| {
                let (b, step, channel) = (index / (c * t), index / c % t, index % c);
                values[(b * c + channel) * t + step]
            })
            .collect();
        upload(&client, &transposed, &channels_last.x_shape(), FloatType::F32)
    };
    let residual = first.residual.as_ref().map(swapped);
    let last = Tensors { x: swapped(&first.x), dy: swapped(&first.dy), residual, ..last };
    for plans in plans(&problem, &limits) {
        let launched = [
            launch((&client, &limits), &problem, plans, &first),
            launch((&client, &limits), &channels_last, plans, &last),
        ];
        let [a, b] = <[_; 2]>::try_from(read_results(&client, &launched)).expect("two results");
        for ((name, a), (_, b)) in a.iter().zip(&b) {
            match *name {
                "y" | "dx" => {
                    for (index, a) in a.iter().enumerate() {
                        let (row, channel, t) =
                            (index / (case.c * case.t), index / case.t % case.c, index % case.t);
                        assert_eq!(*a, b[(row * case.t + t) * case.c + channel], "{name} {plans:?}");
                    }
                }
                // dw and db sum in another order.
                "dw" | "db" => {
                    for (a, b) in a.iter().zip(b) {
                        assert!((a - b).abs() <= 1e-4, "{name} {plans:?}: {a}, {b}");
                    }
                }
                _ => assert_eq!(a, b, "{name} {plans:?}"),
            }
        }
    }
}
