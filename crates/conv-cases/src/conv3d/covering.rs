//! All pairs of the levels of 14 conv3d options, in about as many rows as kernel levels times padding levels.

use super::{Activation, Conv3dCase};
use crate::pairwise;

/// The largest work of a row; the edge cases may be larger.
const MAX_MACS: u64 = 250_000;

const BATCH: [usize; 3] = [1, 2, 3];
const CHANNELS: [usize; 8] = [1, 2, 3, 4, 8, 16, 17, 33];
const OUTPUTS: [usize; 9] = [1, 2, 3, 4, 8, 16, 17, 33, 34];
const DEPTH: [usize; 5] = [1, 2, 3, 5, 7];
const HEIGHT: [usize; 5] = [1, 3, 4, 6, 9];
const WIDTH: [usize; 6] = [1, 2, 5, 8, 13, 17];
const KERNEL: [[usize; 3]; 12] = [
    [1, 1, 1],
    [3, 3, 3],
    [2, 2, 2],
    [1, 3, 3],
    [3, 1, 1],
    [2, 3, 3],
    [2, 3, 4],
    [3, 5, 2],
    [1, 1, 7],
    [7, 1, 1],
    [5, 3, 1],
    [4, 1, 3],
];
const STRIDE: [[usize; 3]; 7] = [[1, 1, 1], [2, 2, 2], [1, 2, 2], [2, 1, 1], [3, 3, 3], [1, 3, 2], [4, 1, 2]];
const PADDING: [[(usize, usize); 3]; 10] = [
    [(0, 0), (0, 0), (0, 0)],
    [(1, 1), (1, 1), (1, 1)],
    [(0, 0), (1, 1), (1, 1)],
    [(2, 2), (0, 0), (1, 1)],
    // Asymmetric, one-sided, causal.
    [(1, 2), (1, 2), (1, 2)],
    [(1, 0), (0, 1), (0, 0)],
    [(0, 2), (1, 0), (2, 1)],
    [(2, 0), (1, 1), (1, 1)],
    // Larger than every kernel on some axis.
    [(6, 6), (6, 3), (3, 6)],
    [(0, 0), (0, 0), (8, 8)],
];
const DILATION: [[usize; 3]; 5] = [[1, 1, 1], [2, 2, 2], [1, 2, 2], [2, 1, 1], [3, 1, 2]];
const ACTIVATION: [Activation; 3] = [Activation::None, Activation::Relu, Activation::Silu];

/// How the groups follow from the channels.
#[derive(Clone, Copy, PartialEq)]
enum Groups {
    One,
    Two,
    /// `groups = C = O`.
    Depthwise,
    /// `groups = C`, and O is another multiple of C.
    Multiplier,
}
const GROUPS: [Groups; 4] = [Groups::One, Groups::Two, Groups::Depthwise, Groups::Multiplier];

// The axes, by their index in a row.
const N: usize = 0;
const C: usize = 1;
const O: usize = 2;
const SIZE: [usize; 3] = [3, 4, 5];
const K: usize = 6;
const S: usize = 7;
const P: usize = 8;
const DIL: usize = 9;
const G: usize = 10;
const REPLICATE: usize = 11;
const BIAS: usize = 12;
const ACT: usize = 13;

fn levels() -> [usize; 14] {
    let mut levels = [2; 14];
    levels[N] = BATCH.len();
    levels[C] = CHANNELS.len();
    levels[O] = OUTPUTS.len();
    (levels[SIZE[0]], levels[SIZE[1]], levels[SIZE[2]]) = (DEPTH.len(), HEIGHT.len(), WIDTH.len());
    levels[K] = KERNEL.len();
    levels[S] = STRIDE.len();
    levels[P] = PADDING.len();
    levels[DIL] = DILATION.len();
    levels[G] = GROUPS.len();
    levels[ACT] = ACTIVATION.len();
    levels
}

/// The conformance cases of the covering.
pub(super) fn cases() -> Vec<Conv3dCase> {
    let rows = pairwise::cover(&levels(), &[], allowed);
    rows.iter().enumerate().map(|(index, row)| case(index, row)).collect()
}

fn case(index: usize, row: &[usize]) -> Conv3dCase {
    let (c, o) = (CHANNELS[row[C]], OUTPUTS[row[O]]);
    let (d, h, w) = (DEPTH[row[SIZE[0]]], HEIGHT[row[SIZE[1]]], WIDTH[row[SIZE[2]]]);
    Conv3dCase {
        stride: STRIDE[row[S]],
        padding: PADDING[row[P]],
        dilation: DILATION[row[DIL]],
        groups: match GROUPS[row[G]] {
            Groups::One => 1,
            Groups::Two => 2,
            Groups::Depthwise | Groups::Multiplier => c,
        },
        replicate: row[REPLICATE] == 1,
        bias: row[BIAS] == 1,
        activation: ACTIVATION[row[ACT]],
        ..Conv3dCase::new(&format!("pairs_{index:03}"), [BATCH[row[N]], c, d, h, w], o, KERNEL[row[K]])
    }
}

/// Whether some completion of the row may be a valid and small problem.
fn allowed(row: &[Option<usize>]) -> bool {
    channels_allowed(row[C], row[O], row[G])
        && (0..3).all(|axis| fits(row, axis))
        && least_macs(row) <= MAX_MACS
}

/// Whether channels and groups divide; undecided ones may still become anything.
fn channels_allowed(c: Option<usize>, o: Option<usize>, groups: Option<usize>) -> bool {
    let options = |level: Option<usize>, count: usize| level.map_or(0..count, |level| level..level + 1);
    options(c, CHANNELS.len()).any(|c| {
        options(o, OUTPUTS.len()).any(|o| {
            options(groups, GROUPS.len()).any(|groups| {
                let (c, o) = (CHANNELS[c], OUTPUTS[o]);
                match GROUPS[groups] {
                    Groups::One => true,
                    Groups::Two => c % 2 == 0 && o % 2 == 0,
                    Groups::Depthwise => o == c,
                    Groups::Multiplier => o > c && o % c == 0,
                }
            })
        })
    })
}

/// The smallest and largest value that `value` takes over the decided level, or over all levels.
fn range(row: &[Option<usize>], axis: usize, value: impl Fn(usize) -> usize) -> (usize, usize) {
    let levels = row[axis].map_or(0..levels()[axis], |level| level..level + 1);
    levels.map(value).fold((usize::MAX, 0), |(lo, hi), v| (lo.min(v), hi.max(v)))
}

/// The (smallest, largest) extent, padding, kernel span of one spatial axis.
fn ranges(row: &[Option<usize>], axis: usize) -> [(usize, usize); 3] {
    let size = range(row, SIZE[axis], |level| [DEPTH.as_slice(), &HEIGHT, &WIDTH][axis][level]);
    let padding = range(row, P, |level| PADDING[level][axis].0 + PADDING[level][axis].1);
    let kernel = range(row, K, |level| KERNEL[level][axis]);
    let dilation = range(row, DIL, |level| DILATION[level][axis]);
    [size, padding, (dilation.0 * (kernel.0 - 1) + 1, dilation.1 * (kernel.1 - 1) + 1)]
}

fn fits(row: &[Option<usize>], axis: usize) -> bool {
    let [size, padding, span] = ranges(row, axis);
    size.1 + padding.1 >= span.0
}

/// A lower bound of the multiply-accumulates of every completion; exact for a complete row.
fn least_macs(row: &[Option<usize>]) -> u64 {
    let extent = |axis: usize| {
        let [size, padding, span] = ranges(row, axis);
        let stride = range(row, S, |level| STRIDE[level][axis]).1;
        (size.0 + padding.0).saturating_sub(span.1) / stride + 1
    };
    let outputs = range(row, N, |level| BATCH[level]).0 * range(row, O, |level| OUTPUTS[level]).0;
    let taps = range(row, K, |level| KERNEL[level].iter().product()).0;
    let group_channels = |c: usize| match row[G].map(|level| GROUPS[level]) {
        Some(Groups::One) => c,
        Some(Groups::Two) => (c / 2).max(1),
        _ => 1,
    };
    let channels = group_channels(range(row, C, |level| CHANNELS[level]).0);
    (outputs * (0..3).map(extent).product::<usize>() * taps * channels) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a finished case shows `level` of `axis`, judged by its numbers alone.
    fn shows(case: &Conv3dCase, axis: usize, level: usize) -> bool {
        match axis {
            N => case.n == BATCH[level],
            C => case.c == CHANNELS[level],
            O => case.o == OUTPUTS[level],
            K => case.kernel == KERNEL[level],
            S => case.stride == STRIDE[level],
            P => case.padding == PADDING[level],
            DIL => case.dilation == DILATION[level],
            REPLICATE => case.replicate == (level == 1),
            BIAS => case.bias == (level == 1),
            ACT => case.activation == ACTIVATION[level],
            G => match GROUPS[level] {
                Groups::One => case.groups == 1,
                Groups::Two => case.groups == 2,
                Groups::Depthwise => case.groups == case.c && case.o == case.c,
                Groups::Multiplier => case.groups == case.c && case.o > case.c,
            },
            3 => case.d == DEPTH[level],
            4 => case.h == HEIGHT[level],
            _ => case.w == WIDTH[level],
        }
    }

    #[test]
    fn every_possible_pair_is_covered() {
        let cases = cases();
        let channel_axes = [C, O, G];
        let covered = |i, a, j, b| cases.iter().any(|case| shows(case, i, a) && shows(case, j, b));
        let possible = |i, a, j, b| {
            // Channels and groups that do not divide exclude each other; nothing else does.
            let level = |axis| if axis == i { Some(a) } else { (axis == j).then_some(b) };
            let [c, o, groups] = channel_axes.map(level);
            channels_allowed(c, o, groups)
        };
        let all = pairwise::pairs(&levels());
        assert!(all.len() > 2000, "{} pairs", all.len());
        let missing: Vec<_> =
            all.into_iter().filter(|&(i, a, j, b)| possible(i, a, j, b) && !covered(i, a, j, b)).collect();
        assert!(missing.is_empty(), "pairs (axis, level, axis, level) that no case shows: {missing:?}");
        // 12 kernels x 10 paddings need 120 rows.
        assert!((120..=160).contains(&cases.len()), "{} rows", cases.len());
    }

    #[test]
    fn the_table_is_the_same_every_time() {
        assert_eq!(cases(), cases());
    }
}
