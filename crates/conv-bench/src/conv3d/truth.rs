//! f64 results of conv3d: whole tensors by the reference where they are small, else single elements, each
//! summed from the inputs that were uploaded.

use crate::data::{Memory, Source};
use crate::verify::{SAMPLES, Truth, sample};
use conv_kernels::conv3d::{Conv3dProblem, PaddingMode, Pass, Window, WinogradTile, reference, winograd};
use conv_kernels::tolerance::Guard;
use rayon::prelude::*;

/// Multiply-accumulates up to which the reference computes the whole result.
const WHOLE: f64 = 4e6;
/// Products that are summed for all samples together.
const PRODUCTS: usize = 200_000_000;
/// Samples at which Winograd's own bound is computed, which costs a transform per channel and tap.
const WINOGRAD_SAMPLES: usize = 128;

/// What the passes read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs {
    pub(crate) x: Source,
    pub(crate) w: Source,
    pub(crate) dy: Source,
}

/// Shape of what a pass computes.
pub(crate) fn result_shape(problem: &Conv3dProblem, pass: Pass) -> [usize; 5] {
    match pass {
        Pass::Forward => problem.y_shape(),
        Pass::InputGradient => problem.x_shape(),
        Pass::WeightGradient => problem.weight_shape(),
    }
}

/// The result of a pass, with the bound of a plain sum. Zero padding, no bias, no activation.
pub(crate) fn truth(problem: &Conv3dProblem, pass: Pass, inputs: &Inputs) -> Truth {
    let shape = result_shape(problem, pass);
    let [forward, input, windows] = reference::longest_sums(problem);
    let (terms, guard) = match pass {
        Pass::Forward => (forward, Guard::SUM),
        Pass::InputGradient => (input, Guard::SUM),
        Pass::WeightGradient => (windows, Guard::WEIGHT_GRADIENT),
    };
    let mut truth = Truth {
        shape: shape.to_vec(),
        memory: Memory::RowMajor,
        positions: None,
        values: Vec::new(),
        magnitudes: Vec::new(),
        terms,
        slope: 1.0,
        guard,
    };
    if problem.multiply_adds() <= WHOLE {
        let whole = |absolute: bool| {
            let values = |source: &Source, shape: [usize; 5]| {
                let mut values = source.values(shape.iter().product());
                if absolute {
                    values.iter_mut().for_each(|value| *value = value.abs());
                }
                values
            };
            let x = || values(&inputs.x, problem.x_shape());
            let w = || values(&inputs.w, problem.weight_shape());
            let dy = || values(&inputs.dy, problem.y_shape());
            match pass {
                Pass::Forward => reference::pre_activation(problem, &x(), &w(), None),
                Pass::InputGradient => reference::input_gradient(problem, &w(), &dy()),
                Pass::WeightGradient => reference::weight_gradient(problem, &x(), &dy()),
            }
        };
        (truth.values, truth.magnitudes) = (whole(false), whole(true));
        return truth;
    }
    truth.positions = sample(&shape, (PRODUCTS / terms.max(1)).clamp(64, SAMPLES));
    let sums = truth.positions().into_par_iter().map(|index| {
        let (mut value, mut magnitude) = (0.0, 0.0);
        for_each_product(problem, pass, index, |a, b| {
            let (a, b) = match pass {
                Pass::Forward => (inputs.x.get(a), inputs.w.get(b)),
                Pass::InputGradient => (inputs.w.get(a), inputs.dy.get(b)),
                Pass::WeightGradient => (inputs.x.get(a), inputs.dy.get(b)),
            };
            value += a * b;
            magnitude += (a * b).abs();
        });
        (value, magnitude)
    });
    (truth.values, truth.magnitudes) = sums.unzip();
    truth
}

/// The bias gradient: sums of dy.
pub(crate) fn bias_truth(problem: &Conv3dProblem, dy: &Source) -> Truth {
    let [batch, channels, d, h, w] = problem.y_shape();
    let plane = d * h * w;
    let positions = sample(&[channels], (PRODUCTS / problem.positions().max(1)).clamp(8, SAMPLES));
    let mut truth = Truth {
        shape: vec![channels],
        memory: Memory::RowMajor,
        positions,
        values: Vec::new(),
        magnitudes: Vec::new(),
        terms: problem.positions(),
        slope: 1.0,
        guard: Guard::WEIGHT_GRADIENT,
    };
    let sums = truth.positions().into_par_iter().map(|channel| {
        let (mut value, mut magnitude) = (0.0, 0.0);
        for n in 0..batch {
            for index in 0..plane {
                let dy = dy.get((n * channels + channel) * plane + index);
                value += dy;
                magnitude += dy.abs();
            }
        }
        (value, magnitude)
    });
    (truth.values, truth.magnitudes) = sums.unzip();
    truth
}

/// Calls `visit(first index, second index)` for every product that element `index` of a pass's result sums:
/// indices into (x, w), (w, dy) or (x, dy).
fn for_each_product(problem: &Conv3dProblem, pass: Pass, index: usize, mut visit: impl FnMut(usize, usize)) {
    let [_, out_channels, od, oh, ow] = problem.y_shape();
    let [kd, kh, kw] = problem.kernel;
    let [d, h, w] = problem.input;
    let (group_c, group_o) = (problem.group_channels(), problem.group_out_channels());
    let x_index =
        |n: usize, c: usize, p: [usize; 3]| (((n * problem.channels + c) * d + p[0]) * h + p[1]) * w + p[2];
    let w_index =
        |o: usize, c: usize, k: [usize; 3]| (((o * group_c + c) * kd + k[0]) * kh + k[1]) * kw + k[2];
    let y_index =
        |n: usize, o: usize, q: [usize; 3]| (((n * out_channels + o) * od + q[0]) * oh + q[1]) * ow + q[2];
    let [i0, i1, i2, i3, i4] = unravel(index, result_shape(problem, pass));
    match pass {
        Pass::Forward => {
            let (n, o, q) = (i0, i1, [i2, i3, i4]);
            for c in 0..group_c {
                for_each(problem.kernel, |k| {
                    if let Some(p) = source(problem, q, k) {
                        visit(x_index(n, o / group_o * group_c + c, p), w_index(o, c, k));
                    }
                });
            }
        }
        Pass::InputGradient => {
            let (n, c, p) = (i0, i1, [i2, i3, i4]);
            for o in 0..group_o {
                let o = c / group_c * group_o + o;
                for_each(problem.kernel, |k| {
                    if let Some(q) = window_of(problem, p, k) {
                        visit(w_index(o, c % group_c, k), y_index(n, o, q));
                    }
                });
            }
        }
        Pass::WeightGradient => {
            let (o, c, k) = (i0, i1, [i2, i3, i4]);
            for n in 0..problem.batch {
                for_each(problem.output(), |q| {
                    if let Some(p) = source(problem, q, k) {
                        visit(x_index(n, o / group_o * group_c + c, p), y_index(n, o, q));
                    }
                });
            }
        }
    }
}

/// The input position that tap `k` of window `q` reads; none in the padding.
fn source(problem: &Conv3dProblem, q: [usize; 3], k: [usize; 3]) -> Option<[usize; 3]> {
    let mut p = [0; 3];
    for axis in 0..3 {
        let geometry = problem.axis(axis);
        let padded = q[axis] * geometry.stride + k[axis] * geometry.dilation;
        p[axis] = padded.checked_sub(geometry.padding.0).filter(|p| *p < geometry.input)?;
    }
    Some(p)
}

/// The window whose tap `k` reads input position `p`, if there is one.
fn window_of(problem: &Conv3dProblem, p: [usize; 3], k: [usize; 3]) -> Option<[usize; 3]> {
    let output = problem.output();
    let mut q = [0; 3];
    for axis in 0..3 {
        let geometry = problem.axis(axis);
        let start = (p[axis] + geometry.padding.0).checked_sub(k[axis] * geometry.dilation)?;
        q[axis] =
            Some(start / geometry.stride).filter(|q| start % geometry.stride == 0 && *q < output[axis])?;
    }
    Some(q)
}

fn for_each(extents: [usize; 3], mut visit: impl FnMut([usize; 3])) {
    for i in 0..extents[0] {
        for j in 0..extents[1] {
            for k in 0..extents[2] {
                visit([i, j, k]);
            }
        }
    }
}

fn unravel(mut index: usize, shape: [usize; 5]) -> [usize; 5] {
    let mut place = [0; 5];
    for axis in (0..5).rev() {
        place[axis] = index % shape[axis];
        index /= shape[axis];
    }
    place
}

/// `plain` with the bound and guard of a Winograd plan, at some of its elements where it has many.
pub(crate) fn winograd_truth(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: WinogradTile,
    inputs: &Inputs,
    plain: &Truth,
) -> Truth {
    let mut truth = plain.clone();
    truth.guard = match tile {
        WinogradTile::F2x2 => Guard::SUM,
        WinogradTile::F4x4 => Guard::WINOGRAD_4X4,
        WinogradTile::F6x6 => Guard::WINOGRAD_6X6,
    };
    // Two transforms of t terms on the way in, one on the way out, two stages each.
    truth.terms += 6 * tile.inputs();
    let from = if pass == Pass::Forward { &inputs.x } else { &inputs.dy };
    match &plain.positions {
        None => {
            let source_shape = if pass == Pass::Forward { problem.x_shape() } else { problem.y_shape() };
            let values = from.values(source_shape.iter().product());
            let w = inputs.w.values(problem.weight_shape().iter().product());
            let own = winograd::reference::evaluate(problem, pass, tile, &values, &w, true);
            truth.magnitudes.iter_mut().zip(&own).for_each(|(sum, own)| *sum += own);
        }
        Some(positions) => {
            let step = positions.len().div_ceil(WINOGRAD_SAMPLES);
            let pick = |values: &[f64]| values.iter().copied().step_by(step).collect::<Vec<_>>();
            (truth.values, truth.magnitudes) = (pick(&plain.values), pick(&plain.magnitudes));
            let positions: Vec<usize> = positions.iter().copied().step_by(step).collect();
            positions.par_iter().zip(&mut truth.magnitudes).for_each(|(index, magnitude)| {
                *magnitude += one_magnitude(problem, pass, tile, from, &inputs.w, *index);
            });
            truth.positions = Some(positions);
        }
    }
    truth
}

/// The Winograd magnitude of one element: that of a problem of a single tile, cut out around it.
fn one_magnitude(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: WinogradTile,
    from: &Source,
    w: &Source,
    index: usize,
) -> f64 {
    let [n, out, frame, row, column] = unravel(index, result_shape(problem, pass));
    let [kd, _, _] = problem.kernel;
    let forward = pass == Pass::Forward;
    let (from_shape, channels) = if forward {
        (problem.x_shape(), problem.channels)
    } else {
        (problem.y_shape(), problem.out_channels)
    };
    let (size, outputs) = (tile.inputs(), tile.outputs());
    // The input gradient is a correlation of dy with the mirrored kernel, whose padding is what is left of
    // the span.
    let begin = |axis: usize| {
        let (span, low) = (problem.axis(axis).span() as i64, problem.window.padding[axis].0 as i64);
        if forward { low } else { span - 1 - low }
    };
    let (stride, dilation) = (problem.window.stride[0], problem.window.dilation[0]);
    let first_frame = (if forward { frame * stride } else { frame }) as i64 - begin(0);
    let first_row = (row / outputs * outputs) as i64 - begin(1);
    let first_column = (column / outputs * outputs) as i64 - begin(2);
    let inside = |p: i64, extent: usize| usize::try_from(p).ok().filter(|p| *p < extent);
    let (mut patch, mut filter) = (Vec::new(), Vec::new());
    for c in 0..channels {
        for_each([kd, size, size], |[k, i, j]| {
            let place = (
                inside(first_frame + (k * dilation) as i64, from_shape[2]),
                inside(first_row + i as i64, from_shape[3]),
                inside(first_column + j as i64, from_shape[4]),
            );
            patch.push(match place {
                (Some(f), Some(r), Some(q)) => from
                    .get((((n * channels + c) * from_shape[2] + f) * from_shape[3] + r) * from_shape[4] + q),
                _ => 0.0,
            });
        });
        for_each([kd, 3, 3], |[k, i, j]| {
            filter.push(w.get(if forward {
                (((out * channels + c) * kd + k) * 3 + i) * 3 + j
            } else {
                (((c * problem.channels + out) * kd + (kd - 1 - k)) * 3 + 2 - i) * 3 + 2 - j
            }));
        });
    }
    let single = Conv3dProblem {
        batch: 1,
        channels,
        out_channels: 1,
        input: [kd, size, size],
        window: Window { padding_mode: PaddingMode::Zeros, ..Window::default() },
        ..*problem
    };
    let magnitudes = winograd::reference::evaluate(&single, Pass::Forward, tile, &patch, &filter, true);
    magnitudes[row % outputs * outputs + column % outputs]
}

#[cfg(test)]
mod tests {
    use super::*;
    use conv_kernels::FloatType;

    const PASSES: [Pass; 3] = [Pass::Forward, Pass::InputGradient, Pass::WeightGradient];

    fn inputs() -> Inputs {
        let source = |seed| Source::normal(seed, FloatType::F32);
        Inputs { x: source(1), w: source(2), dy: source(3) }
    }

    #[test]
    fn single_elements_equal_the_whole_reference() {
        let window = Window {
            stride: [2, 1, 3],
            padding: [(1, 0), (0, 2), (2, 1)],
            dilation: [1, 2, 1],
            groups: 2,
            ..Window::default()
        };
        let problem =
            Conv3dProblem::new([2, 4, 5, 7, 8], [6, 2, 2, 3, 3], None, window, FloatType::F32).unwrap();
        for pass in PASSES {
            let whole = truth(&problem, pass, &inputs());
            assert_eq!(whole.positions, None);
            for (index, want) in whole.values.iter().enumerate() {
                let mut sum = 0.0;
                let Inputs { x, w, dy } = inputs();
                for_each_product(&problem, pass, index, |a, b| {
                    sum += match pass {
                        Pass::Forward => x.get(a) * w.get(b),
                        Pass::InputGradient => w.get(a) * dy.get(b),
                        Pass::WeightGradient => x.get(a) * dy.get(b),
                    };
                });
                assert!((sum - want).abs() < 1e-9, "{pass:?} {index}: {sum} {want}");
            }
        }
    }

    #[test]
    fn one_winograd_magnitude_equals_that_of_the_whole_problem() {
        let window = Window {
            stride: [1; 3],
            padding: [(2, 1), (1, 0), (0, 2)],
            dilation: [2, 1, 1],
            ..Window::default()
        };
        let problem =
            Conv3dProblem::new([2, 3, 5, 9, 8], [2, 3, 2, 3, 3], None, window, FloatType::F32).unwrap();
        let Inputs { x, w, dy } = inputs();
        for pass in [Pass::Forward, Pass::InputGradient] {
            let (from, shape) =
                if pass == Pass::Forward { (x, problem.x_shape()) } else { (dy, problem.y_shape()) };
            let values = from.values(shape.iter().product());
            let weight = w.values(problem.weight_shape().iter().product());
            for tile in WinogradTile::ALL {
                let whole = winograd::reference::evaluate(&problem, pass, tile, &values, &weight, true);
                for (index, want) in whole.iter().enumerate() {
                    let one = one_magnitude(&problem, pass, tile, &from, &w, index);
                    assert!(
                        (one - want).abs() < 1e-9 * want.max(1.0),
                        "{pass:?} {tile:?} {index}: {one} {want}"
                    );
                }
            }
        }
    }
}
