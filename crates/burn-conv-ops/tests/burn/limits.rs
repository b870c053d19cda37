//! Slots that several rows have, very many packed sequences, loops that a device ends, and states of another
//! dtype than x's.

use crate::support::{devices, int_upload, loop_iterations, normal, upload, values};
use burn::tensor::{DType, Tensor};
use burn_conv_ops::{
    CausalConv1dOptions, CausalConv1dUpdateOptions, Conv1dLayout, causal_conv1d_packed,
    causal_conv1d_seq_idx, causal_conv1d_update, causal_conv1d_update_steps, causal_conv1d_with_state,
    try_causal_conv1d_update_steps,
};

/// Of rows with one slot the last has it, the others are padding.
#[test]
fn the_last_row_of_a_slot_has_it() {
    for (on, device) in devices() {
        for (dtype, slots) in [DType::F32, DType::F16]
            .into_iter()
            .flat_map(|d| [[0i64, 0, 2], [1, 1, 1], [0, 2, 0]].map(|s| (d, s)))
        {
            let what = format!("{on} {dtype:?} {slots:?}");
            let x = upload(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [3, 2, 1], &device).cast(dtype);
            let held = upload(&(0..16).map(|v| v as f32).collect::<Vec<_>>(), [4, 2, 2], &device).cast(dtype);
            let weight = upload(&[1.0; 6], [2, 3], &device).cast(dtype);
            let options =
                CausalConv1dUpdateOptions::new().with_state_indices(int_upload(&slots, [3], &device));
            let (y, next) = causal_conv1d_update_steps(x, held, weight, None, options);
            let (mut want, mut y_want) = ((0..16).map(f64::from).collect::<Vec<_>>(), vec![0.0; 6]);
            for (row, slot) in slots.iter().enumerate().filter(|(row, slot)| !slots[row + 1..].contains(slot))
            {
                for c in 0..2 {
                    let at = *slot as usize * 4 + 2 * c;
                    let newest = (row * 2 + c + 1) as f64;
                    y_want[row * 2 + c] = want[at] + want[at + 1] + newest;
                    (want[at], want[at + 1]) = (want[at + 1], newest);
                }
            }
            assert_eq!(values(y), y_want, "{what}: y");
            assert_eq!(values(next), want, "{what}: the states");
        }
    }
}

/// Seventy thousand sequences of one step: ids are counted, not compared with every bound.
#[test]
fn many_packed_sequences_take_little_memory() {
    let count = 70_000;
    for (on, device) in devices() {
        let bounds: Vec<i64> = (0..=count).collect();
        let bounds = || int_upload(&bounds, [count as usize + 1], &device);
        let seq_idx = values(causal_conv1d_seq_idx(bounds(), count as usize + 3).float());
        assert!(seq_idx[..count as usize].iter().zip(0..).all(|(id, step)| *id == f64::from(step)), "{on}");
        assert_eq!(seq_idx[count as usize..], [-1.0; 3], "{on}");

        let x = normal(1, [1, 1, count as usize], &device);
        let weight = upload(&[7.0, 5.0, 2.0], [1, 3], &device);
        let (y, last) = causal_conv1d_packed(x.clone(), weight, None, bounds(), CausalConv1dOptions::new());
        assert_eq!(values(y), values(x.clone() * 2.0), "{on}");
        assert_eq!(values(last.narrow(2, 1, 1)), values(x), "{on}");
    }
}

/// Empty sequences share their place with the next, and bounds may be beyond the row.
#[test]
fn ids_are_counted_from_any_bounds() {
    for (on, device) in devices() {
        for (bounds, steps) in [(vec![0i64, 0, 2, 2, 2, 5, 9], 7usize), (vec![3], 5), (vec![1, 4, 4], 4)] {
            let on_device = int_upload(&bounds, [bounds.len()], &device);
            let want: Vec<f64> = (0..steps as i64)
                .map(|step| match bounds.iter().filter(|bound| **bound <= step).count() {
                    reached if reached == bounds.len() => -1.0,
                    reached => reached as f64 - 1.0,
                })
                .collect();
            assert_eq!(values(causal_conv1d_seq_idx(on_device, steps).float()), want, "{on} {bounds:?}");
        }
    }
}

/// States in fp32 next to x in 16 bits, as servers keep them: nothing of them is rounded to 16 bits.
#[test]
fn states_of_halves_may_be_fp32() {
    let fine = 1.0 + 1.0 / 4096.0;
    for (on, device) in devices() {
        for track in [false, true] {
            let what = format!("{on} tracked {track}");
            let device = if track { device.clone().autodiff() } else { device.clone() };
            let halves = |tensor: Tensor<3>| tensor.cast(DType::F16);
            let weight = upload(&[1.0, 0.5, 0.25, 2.0], [1, 4], &device).cast(DType::F16);
            let state = || upload(&[fine, 2.0, 3.0], [1, 1, 3], &device);
            let initial = if track { state().require_grad() } else { state() };

            for layout in [Conv1dLayout::Bct, Conv1dLayout::Btc] {
                let shape = layout.swapped([1, 1, 2]);
                let x = halves(upload(&[4.0, 8.0], shape, &device));
                let options = CausalConv1dOptions::from(initial.clone()).with_layout(layout);
                let (y, next) = causal_conv1d_with_state(x, weight.clone(), None, options);
                assert_eq!((y.dtype(), next.dtype()), (DType::F16, DType::F32), "{what}");
                // 1 + 1/4096 + 1 + 0.75 + 8, rounded to a half once.
                assert_eq!(values(y.clone()), [10.75, 2.0 + 1.5 + 1.0 + 16.0], "{what}");
                assert_eq!(values(next.clone()), [3.0, 4.0, 8.0], "{what}");
                if track {
                    let grads = (y.cast(DType::F32).sum() + (next * fine).sum()).backward();
                    let dinitial = initial.grad(&grads).expect("dinitial");
                    assert_eq!(dinitial.dtype(), DType::F32, "{what}");
                    assert_eq!(values(dinitial), [1.0, 1.5, 0.75 + f64::from(fine)], "{what}");
                }
            }
            let (x, none) = (halves(upload(&[4.0], [1, 1, 1], &device)), CausalConv1dUpdateOptions::new());
            let (y, next) = causal_conv1d_update(
                x.clone().reshape([1, 1]),
                initial.clone(),
                weight.clone(),
                None,
                none.clone(),
            );
            assert_eq!((y.dtype(), next.dtype()), (DType::F16, DType::F32), "{what}");
            assert_eq!((values(y), values(next)), (vec![10.75], vec![2.0, 3.0, 4.0]), "{what}");

            // A longer state, whose first column stays as fine as it was, shifted and as a ring.
            let long = || upload(&[9.0, fine, 2.0, 3.0], [1, 1, 4], &device);
            for ring in [false, true] {
                let mut options = none.clone();
                if ring {
                    options = options.with_cache_seqlens(int_upload(&[4], [1], &device));
                }
                let (y, next) = causal_conv1d_update_steps(x.clone(), long(), weight.clone(), None, options);
                let fine = f64::from(fine);
                let want = if ring { [4.0, fine, 2.0, 3.0] } else { [fine, 2.0, 3.0, 4.0] };
                assert_eq!((values(y), values(next)), (vec![10.75], want.to_vec()), "{what} ring {ring}");
            }
        }
    }
}

/// What a device's loops cannot do is refused before anything is launched, not found out when a result is
/// read; up to that limit results are right.
#[test]
fn long_loops_are_refused_where_the_device_ends_them() {
    for (on, device) in devices() {
        let most = loop_iterations(&device);
        let iterations = |steps: usize| 3 * steps + 12;
        let longest = most.map_or(30_000, |most| (most - 12) / 3);
        for steps in [longest, longest + 1] {
            let x: Vec<f32> = (0..2 * steps).map(|index| 1.0 + (index % steps % 5) as f32).collect();
            let x = upload(&x, [1, 2, steps], &device);
            let (state, weight) =
                (upload(&[1.0; 14], [1, 2, 7], &device), upload(&[1.0; 2], [2, 1], &device));
            let options = CausalConv1dUpdateOptions::new().with_cache_seqlens(int_upload(&[3], [1], &device));
            let result = try_causal_conv1d_update_steps(x.clone(), state, weight, None, options);
            if let Some(most) = most.filter(|_| steps > longest) {
                assert_eq!(
                    result.expect_err("a refusal").to_string(),
                    format!(
                        "causal_conv1d_update: a call with steps = {steps} takes {} loop iterations per thread, \
                         this software device ends loops after {most}",
                        iterations(steps)
                    ),
                );
                continue;
            }
            let (y, next) = result.expect("a result");
            assert_eq!(values(y), values(x), "{on} {steps} steps");
            // Column (3 + t) mod 7 holds step t.
            let mut ring = vec![0.0; 7];
            (steps - 7..steps).for_each(|t| ring[(3 + t) % 7] = 1.0 + (t % 5) as f64);
            assert_eq!(values(next), [ring.clone(), ring].concat(), "{on} {steps} steps");
        }
    }
}
