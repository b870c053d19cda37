//! Values and memory layouts of tensors.

use crate::text::Case;
use conv_cases::fill;
use conv_kernels::tolerance::Expected;
use conv_kernels::{FloatType, row_major};
use conv_testing::buffer::{self, Buffer};
use cubecl::prelude::*;

/// Storage types.
pub const TYPES: &[&str] = &["f32", "f16", "bf16"];

/// The storage type of a word of [`TYPES`].
pub fn dtype(word: &str) -> FloatType {
    match word {
        "f16" => FloatType::F16,
        "bf16" => FloatType::Bf16,
        _ => FloatType::F32,
    }
}

/// Data: normally distributed, or small integers, whose sums are exact.
pub const DATA: &[&str] = &["normal", "integers"];

/// Memory layouts: row-major; all axes reversed; the second axis innermost; axes rotated by one; gaps after
/// rows; every other element; odd strides for axes of one element; stride 0 along the batch; stride 0 along
/// the last axis.
pub const VIEWS: &[&str] =
    &["plain", "reversed", "last", "turned", "gaps", "halves", "odd", "batch", "inner"];

/// The [`VIEWS`] for outputs: no two elements share memory.
pub const OUTPUT_VIEWS: &[&str] = &["plain", "reversed", "last", "turned", "gaps", "halves", "odd"];

/// `length` values of tensor number `tensor` of a case.
pub fn values(data: &str, seed: i64, tensor: u64, length: usize) -> Vec<f32> {
    let seed = fill::hash(seed as u64, tensor);
    match data {
        "integers" => fill::integers(seed, length, -3, 3),
        _ => fill::normal(seed, length),
    }
}

/// Sets one to three random elements to `value`.
pub fn make_non_finite(values: &mut [f32], seed: i64, value: f32) {
    if values.is_empty() {
        return;
    }
    let count = 1 + fill::hash(seed as u64, 1000) % 3;
    for index in 0..count {
        values[fill::hash(seed as u64, 1001 + index) as usize % values.len()] = value;
    }
}

/// Strides of a layout.
pub fn strides(view: &str, shape: &[usize]) -> Vec<usize> {
    let rank = shape.len();
    // Axes from outermost to innermost in memory.
    let mut order: Vec<usize> = (0..rank).collect();
    match view {
        "reversed" => order.reverse(),
        "last" if rank > 1 => {
            order.remove(1);
            order.push(1);
        }
        "turned" => order.rotate_left(1),
        _ => {}
    }
    let (mut next, gap) = match view {
        "gaps" => (1, 3),
        "halves" => (2, 0),
        _ => (1, 0),
    };
    let mut strides = vec![0; rank];
    for axis in order.into_iter().rev() {
        strides[axis] = next;
        next = next * shape[axis].max(1) + gap;
    }
    let expanded = match view {
        "batch" => Some(0),
        "inner" => rank.checked_sub(1),
        _ => None,
    };
    if view == "odd" {
        let single = (0..rank).filter(|axis| shape[*axis] == 1);
        single.for_each(|axis| strides[axis] = 7 + 2 * axis);
    }
    if let Some(axis) = expanded {
        strides = row_major(
            &shape.iter().enumerate().map(|(a, n)| if a == axis { 1 } else { *n }).collect::<Vec<_>>(),
        );
        strides[axis] = 0;
    }
    strides
}

/// The most elements that any of these shapes spans in any of the case's layouts.
pub fn largest_span(case: &Case, shapes: &[&[usize]]) -> usize {
    let views = ["x_view", "w_view", "dy_view", "out_view"].map(|name| case.word(name));
    let span = |view: &str, shape: &[usize]| buffer::extent(shape, &strides(view, shape));
    let spans = shapes.iter().flat_map(|shape| views.map(|view| span(view, shape)));
    spans.max().unwrap_or(0)
}

/// Uploads `values` in a layout; elements that share memory get the first one's value.
pub fn upload(client: &Client, values: &[f32], shape: &[usize], view: &str, dtype: FloatType) -> Buffer {
    let strides = strides(view, shape);
    let mut values = values.to_vec();
    if let Some(axis) = (0..shape.len()).find(|axis| strides[*axis] == 0) {
        let inner: usize = shape[axis + 1..].iter().product();
        for index in 0..values.len() {
            values[index] = values[index - index / inner % shape[axis] * inner];
        }
    }
    buffer::upload_strided(client, &values, shape, &strides, dtype)
}

/// Sums from which on the RMS guard applies: with fewer, rounding to f16 alone can exceed it.
const GUARDED: usize = 1024;

/// Whether the RMS guard applies: to so many results that have a term. The bound per element always applies.
pub fn is_guarded(expected: &Expected) -> bool {
    expected.magnitudes.iter().filter(|magnitude| **magnitude > 0.0).count() >= GUARDED
}

/// An output in a layout.
pub fn output(client: &Client, shape: &[usize], view: &str, dtype: FloatType) -> Buffer {
    buffer::output_strided(client, shape, &strides(view, shape), dtype)
}

/// Compares results with a reference that has non-finite values: there the result must be non-finite too;
/// elsewhere it must be `right` or, where non-finite values may `spread`, non-finite.
///
/// # Errors
/// The first element that is wrong.
pub fn check_non_finite(
    got: &[f64],
    want: &[f64],
    spread: impl Fn(usize) -> bool,
    right: impl Fn(usize) -> bool,
) -> Result<(), String> {
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let sound = match (got.is_finite(), want.is_finite()) {
            (false, false) => true,
            (false, true) => spread(index),
            (true, false) => false,
            (true, true) => right(index),
        };
        if !sound {
            return Err(format!("element {index}: got {got:e}, reference {want:e}, among non-finite values"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_elements_of_an_output_share_memory() {
        for view in OUTPUT_VIEWS {
            for shape in [vec![2, 3, 1, 4, 5], vec![1, 1, 1], vec![3, 2], vec![4], vec![2, 1, 3, 1, 1]] {
                let strides = strides(view, &shape);
                let mut offsets = std::collections::HashSet::new();
                for index in 0..shape.iter().product::<usize>() {
                    let (mut rest, mut offset) = (index, 0);
                    for (size, stride) in shape.iter().zip(&strides).rev() {
                        offset += rest % size * stride;
                        rest /= size;
                    }
                    assert!(offsets.insert(offset), "{view} {shape:?} {strides:?}");
                }
            }
        }
    }

    #[test]
    fn expanded_tensors_repeat_one_axis() {
        assert_eq!(strides("batch", &[4, 3, 2]), [0, 2, 1]);
        assert_eq!(strides("inner", &[4, 3, 2]), [3, 1, 0]);
        assert_eq!(strides("last", &[4, 3, 2]), [6, 1, 3]);
    }
}
