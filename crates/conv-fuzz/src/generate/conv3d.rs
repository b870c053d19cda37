//! Random conv3d problems, most of them tiny edge cases.

use super::{class, dtype};
use crate::random::Random;
use crate::tensors::{OUTPUT_VIEWS, VIEWS};
use crate::text::{Case, Op};

/// The theme of a family.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    General,
    Pointwise,
    DepthOnly,
    Frame3x3,
    Long,
    Depthwise,
    FewResults,
    FewChannels,
    /// Few frames of many positions: the tiny cases never reach what large frames decide.
    LargeFrames,
    /// Long sums over positions.
    ManyPositions,
}

/// Channels around vectors, fragments and tiles.
const CHANNELS: [i64; 16] = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65];

/// One random case.
pub(super) fn random(family: &mut Random, each: &mut Random) -> Case {
    use Kind::*;
    let mut case = Case::new(Op::Conv3d);
    let kind = family.pick(&[
        General,
        General,
        Pointwise,
        DepthOnly,
        DepthOnly,
        Frame3x3,
        Frame3x3,
        Long,
        Long,
        Long,
        Depthwise,
        Depthwise,
        FewResults,
        FewChannels,
        LargeFrames,
        LargeFrames,
        ManyPositions,
    ]);
    let kernel = kernel(kind, family);
    let strided = !matches!(kind, FewResults | LargeFrames) && family.once_in(2);
    let stride = [(); 3].map(|()| if strided { family.pick(&[1, 1, 2, 2, 3, 4, 5]) } else { 1 });
    let dilated = kind != FewResults && family.once_in(4);
    let dilation = [(); 3].map(|()| if dilated { family.pick(&[1, 1, 2, 3, 6]) } else { 1 });
    case.set("k", &kernel);
    case.set("s", &stride);
    case.set("d", &dilation);
    let modes = match family.range(0, 5) {
        0..=1 => [0; 3],
        2..=4 if kind == LargeFrames => [0; 3],
        2..=3 => {
            case.set("replicate", &[1]);
            [0; 3]
        }
        _ => [(); 3].map(|()| family.range(0, 3)),
    };
    case.set("modes", &modes);
    case.set("held", &[if kind != LargeFrames && family.once_in(4) { family.range(1, 3) } else { 0 }]);
    case.set_word("type", dtype(family));
    case.set_word("limits", class(family));
    case.set("bias", &[family.range(0, 1)]);
    case.set_word("act", family.pick(&["none", "none", "relu", "silu"]));
    case.set_word("data", family.pick(&["normal", "normal", "integers"]));
    if family.once_in(8) {
        case.set_word("data", "normal");
        case.set_word("act", "none");
        case.set_word("bad", family.pick(&["nan_x", "inf_x", "nan_dy", "inf_dy", "inf_w"]));
    }
    if family.once_in(2) {
        for name in ["x_view", "w_view", "dy_view"] {
            case.set_word(name, family.pick(VIEWS));
        }
        case.set_word("out_view", family.pick(OUTPUT_VIEWS));
    }
    case.set_word("pass", family.pick(&["forward", "dx", "dx", "dw", "db"]));
    // Of transposed convolutions the padding is zeros.
    if case.word("pass") == "dx" && modes == [0; 3] && !case.is("replicate") && family.once_in(2) {
        case.set_word("pass", "transposed");
    }
    let groups = family.pick(&[1, 1, 1, 2, 3]);
    case.plan = format!("pick{}", family.bits() % 1000);
    case.set("residual", &[family.range(0, 1)]);

    let padding = padding(each, kernel, dilation);
    let mut x = [each.pick(&[1, 1, 1, 2, 3]), 1, extent(each), extent(each), extent(each)];
    if each.once_in(3) {
        // Slices that are whole vectors.
        [x[3], x[4]] = each.pick(&[[1, 8], [2, 4], [4, 4], [8, 8], [4, 6], [3, 8], [16, 1], [2, 12]]);
    }
    let (mut c, mut o) = (each.pick(&CHANNELS), each.pick(&CHANNELS));
    match kind {
        FewResults => o = each.range(1, 4),
        FewChannels => c = each.range(1, 4),
        LargeFrames => {
            x = [each.range(1, 2), 1, each.range(1, 4), each.range(23, 34), each.range(31, 36)];
            (c, o) = (each.pick(&[1, 2, 4, 4]), each.range(1, 3));
        }
        ManyPositions => {
            x = [each.range(1, 3), 1, each.range(1, 9), each.range(20, 70), each.range(20, 70)];
            (c, o) = (each.range(1, 3), each.range(1, 3));
        }
        _ => {}
    }
    // Shrink to the budget, but keep the input at least as large as the window.
    let budget = match kind {
        LargeFrames | ManyPositions => 500_000,
        _ => each.pick(&[3000, 3000, 3000, 3000, 3000, 3000, 30_000, 30_000, 400_000]),
    };
    let mut padding = padding;
    loop {
        for axis in 0..3 {
            let span = dilation[axis] * (kernel[axis] - 1) + 1;
            let missing = span - x[axis + 2] - padding[2 * axis] - padding[2 * axis + 1];
            if missing > 0 {
                match each.range(0, 2) {
                    0 => padding[2 * axis] += missing,
                    1 => padding[2 * axis + 1] += missing,
                    _ => x[axis + 2] += missing,
                }
            }
        }
        let outputs = (0..3).map(|axis| {
            let span = dilation[axis] * (kernel[axis] - 1) + 1;
            (x[axis + 2] + padding[2 * axis] + padding[2 * axis + 1] - span) / stride[axis] + 1
        });
        let positions = x[0] * outputs.product::<i64>();
        let channels = if kind == Depthwise { c } else { c * o };
        if positions * channels * kernel.iter().product::<i64>() <= budget {
            break;
        }
        let largest = (0..3).max_by_key(|axis| x[axis + 2]).unwrap_or(0);
        if kind != Depthwise && o.max(c) > 1 && (each.once_in(2) || x[largest + 2] == 1) {
            if o > c { o = (o / 2).max(1) } else { c = (c / 2).max(1) }
        } else if x[largest + 2] > 1 {
            x[largest + 2] = (x[largest + 2] / 2).max(1);
        } else if c > 1 {
            c = (c / 2).max(1);
        } else if x[0] > 1 {
            x[0] -= 1;
        } else if let Some(side) = (0..6).filter(|side| padding[*side] > 0).max_by_key(|side| padding[*side])
            && kernel[side / 2] * dilation[side / 2]
                < x[side / 2 + 2] + padding[side & !1] + padding[side | 1]
        {
            padding[side] -= 1;
        } else {
            break;
        }
    }
    let (c, o, groups) = match kind {
        Depthwise => (c, c, c),
        _ => (c.div_euclid(groups).max(1) * groups, o.div_euclid(groups).max(1) * groups, groups),
    };
    x[1] = c;
    if each.once_in(80) {
        x[0] = 0;
    }
    for axis in 0..3 {
        // Reflect and circular padding end at the input's extent.
        let most = match modes[axis] {
            2 => x[axis + 2] - 1,
            3 => x[axis + 2],
            _ => i64::MAX,
        };
        for side in [2 * axis, 2 * axis + 1] {
            padding[side] = padding[side].min(most);
        }
        let span = dilation[axis] * (kernel[axis] - 1) + 1;
        x[axis + 2] = x[axis + 2].max(span - padding[2 * axis] - padding[2 * axis + 1]);
    }
    case.set("x", &x);
    case.set("o", &[o]);
    case.set("groups", &[groups]);
    case.set("pad", &padding);
    case
}

/// The kernel extents of a family.
fn kernel(kind: Kind, family: &mut Random) -> [i64; 3] {
    let mut small = || family.pick(&[1, 1, 2, 3, 3, 4, 5]);
    match kind {
        Kind::Pointwise => [1; 3],
        Kind::DepthOnly => [family.range(2, 5), 1, 1],
        Kind::Frame3x3 => [family.range(1, 3), 3, 3],
        Kind::LargeFrames => [family.range(2, 4), family.pick(&[1, 2, 3]), family.pick(&[1, 2, 3])],
        Kind::ManyPositions => [family.range(1, 2), family.range(1, 2), family.range(1, 3)],
        Kind::Depthwise => [family.range(1, 3), family.pick(&[1, 3, 3, 5]), family.pick(&[1, 3, 3, 5])],
        Kind::Long => {
            let mut kernel = [1, family.pick(&[1, 1, 2]), family.pick(&[1, 1, 3])];
            kernel.rotate_left(family.range(0, 2) as usize);
            kernel[family.range(0, 2) as usize] = family.pick(&[9, 10, 11, 12, 13]);
            kernel
        }
        _ => [small(), small(), small()],
    }
}

fn extent(each: &mut Random) -> i64 {
    each.pick(&[1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 17])
}

/// Before and after each axis: none, half a window, one element less than a window, a window, more.
fn padding(each: &mut Random, kernel: [i64; 3], dilation: [i64; 3]) -> [i64; 6] {
    let mut padding = [0; 6];
    let asymmetric = each.once_in(3);
    for axis in 0..3 {
        let (taps, reach) = (kernel[axis], (kernel[axis] - 1) * dilation[axis]);
        let side =
            |each: &mut Random| each.pick(&[0, 0, reach / 2, reach / 2, reach, reach, taps, reach + 2]);
        padding[2 * axis] = side(each);
        padding[2 * axis + 1] = if asymmetric { side(each) } else { padding[2 * axis] };
    }
    padding
}
