//! Workloads scaled down for a software adapter. What makes each of them special is kept: kernel, stride,
//! padding, dilation, the remainder that the stride leaves over, grouping, channel counts that are no
//! multiples of 16.

use conv_cases::conv3d::Conv3dCase;
use conv_cases::{causal_conv1d, rope2d};

/// Multiply-accumulates of a small conv3d forward pass at most.
pub(crate) const CONV3D_MACS: u64 = 2_000_000;
/// Multiply-accumulates of a small causal conv1d forward pass at most.
pub(crate) const CONV1D_MACS: u64 = 1_000_000;
/// Elements of a small RoPE2D tensor at most.
pub(crate) const ROPE_ELEMENTS: usize = 200_000;

/// The name of a scaled case says so: no record can be mistaken for one of the real shape.
fn small_name(name: &str) -> String {
    format!("{name}_small")
}

/// `case` with its longest extents halved until a forward pass is small. A case that is small already is
/// unchanged.
pub(crate) fn conv3d(case: &Conv3dCase) -> Conv3dCase {
    let mut small = case.clone();
    while small.macs() > CONV3D_MACS {
        let [od, oh, ow] = small.output_extents();
        let (group_c, group_o) = (small.c / small.groups, small.o / small.groups);
        // What may be halved, with weights that keep planes and channels in proportion; 0 where it would
        // vanish.
        let candidates = [
            (small.n, small.n > 1),
            (2 * od, od > 2),
            (oh, oh > 4),
            (ow, ow > 4),
            (group_c / 4, group_c > 16),
            (group_o / 4, group_o > 16),
            (small.groups / 2, small.groups > 4),
        ];
        let largest = (0..candidates.len()).filter(|i| candidates[*i].1).max_by_key(|i| candidates[*i].0);
        match largest {
            Some(0) => small.n = small.n.div_ceil(2),
            Some(axis @ 1..=3) => halve_axis(&mut small, axis - 1),
            Some(4) => small.c = half(group_c) * small.groups,
            Some(5) => small.o = half(group_o) * small.groups,
            Some(_) => {
                small.groups = half(small.groups);
                (small.c, small.o) = (group_c * small.groups, group_o * small.groups);
            }
            None => break,
        }
    }
    if small != *case {
        small.name = small_name(&case.name);
    }
    small
}

/// Half, odd where the whole is odd or twice an odd number.
fn half(extent: usize) -> usize {
    if extent % 2 == 1 { (extent / 2) | 1 } else { extent / 2 }
}

/// Halves the output along an axis; the input shrinks by whole strides, so the same remainder is left over.
fn halve_axis(case: &mut Conv3dCase, axis: usize) {
    let output = case.output_extents()[axis];
    let removed = (output - output.div_ceil(2)) * case.stride[axis];
    let input = [&mut case.d, &mut case.h, &mut case.w];
    for (index, extent) in input.into_iter().enumerate() {
        if index == axis {
            *extent -= removed;
        }
    }
}

/// `case` with time, channels and batch halved until a forward pass is small.
pub(crate) fn causal_conv1d(case: &causal_conv1d::Case) -> causal_conv1d::Case {
    let mut small = case.clone();
    while small.macs() > CONV1D_MACS {
        if small.b > 1 && small.b * 8 >= small.c {
            small.b = half(small.b);
        } else if small.t > small.c {
            small.t = half(small.t);
        } else {
            small.c = half(small.c);
        }
    }
    if small != *case {
        small.name = small_name(&case.name);
    }
    small
}

/// `case` with batch and heads halved, then rows and columns of its patch grid, until its tensor is small.
pub(crate) fn rope2d(case: &rope2d::Case, grid: [usize; 2]) -> (rope2d::Case, [usize; 2]) {
    let (mut small, [mut rows, mut columns]) = (case.clone(), grid);
    let special = case.n - rows * columns;
    while small.b * small.h * small.n * small.d > ROPE_ELEMENTS {
        if small.b > 1 {
            small.b = half(small.b);
        } else if small.h > 2 {
            small.h = half(small.h);
        } else {
            (rows, columns) = (rows.div_ceil(2), columns.div_ceil(2));
            small.n = rows * columns + special;
        }
    }
    if small != *case {
        small.name = small_name(&case.name);
    }
    (small, [rows, columns])
}

#[cfg(test)]
mod tests {
    use super::*;
    use conv_cases::workloads;

    #[test]
    fn conv3d_becomes_small_and_keeps_its_character() {
        for workload in workloads::conv3d() {
            let (case, small) = (&workload.case, conv3d(&workload.case));
            assert!(small.macs() <= CONV3D_MACS, "{} multiply-accumulates in {small}", small.macs());
            let window = |case: &Conv3dCase| (case.kernel, case.stride, case.padding, case.dilation);
            assert_eq!(window(&small), window(case));
            assert_eq!((small.c % small.groups, small.o % small.groups), (0, 0), "{small}");
            assert_eq!(small.groups == small.c, case.groups == case.c, "{small}");
            assert_eq!(small.groups > 1, case.groups > 1, "{small}");
            for (now, before) in small.output_extents().iter().zip(case.output_extents()) {
                assert!(*now >= before.min(2) && *now <= before, "{small}");
            }
            let left_over = |case: &Conv3dCase| {
                [case.d, case.h, case.w]
                    .iter()
                    .enumerate()
                    .map(|(i, extent)| extent % case.stride[i])
                    .collect()
            };
            let (now, before): (Vec<_>, Vec<_>) = (left_over(&small), left_over(case));
            assert_eq!(now, before, "{small}");
            assert_eq!(small.name == case.name, small == *case);
        }
    }

    #[test]
    fn odd_channel_counts_stay_odd() {
        let case = Conv3dCase::new("odd", [1, 45, 16, 56, 56], 64, [3, 1, 1]);
        assert_eq!(conv3d(&case).c % 2, 1);
    }

    #[test]
    fn sequences_and_tokens_become_small() {
        for workload in workloads::causal_conv1d() {
            let small = causal_conv1d(&workload.case);
            assert!(small.macs() <= CONV1D_MACS && small.macs() > 0, "{small}");
            let kept = |case: &causal_conv1d::Case| (case.w, case.bias, case.silu, case.t == 1);
            assert_eq!(kept(&small), kept(&workload.case), "{small}");
        }
        for workload in workloads::rope2d() {
            let (small, grid) = rope2d(&workload.case, workload.grid);
            assert!(small.b * small.h * small.n * small.d <= ROPE_ELEMENTS, "{}", small.name);
            assert_eq!(small.d, workload.case.d);
            let special = |case: &rope2d::Case, grid: [usize; 2]| case.n - grid[0] * grid[1];
            assert_eq!(special(&small, grid), special(&workload.case, workload.grid), "{}", small.name);
        }
    }
}
