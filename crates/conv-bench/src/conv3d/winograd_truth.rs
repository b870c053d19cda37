//! The bound that holds for a Winograd plan's own rounding errors, at some elements of a result.

use super::truth::{Inputs, for_each, result_shape, unravel};
use crate::data::Source;
use crate::verify::Truth;
use conv_kernels::conv3d::winograd::reference::{evaluate, weight_gradient};
use conv_kernels::conv3d::{Conv3dProblem, PaddingMode, Pass, Window, WinogradTile};
use rayon::prelude::*;

/// Samples at which the bound is computed, which costs a transform per channel and tap.
const SAMPLES: usize = 128;
/// And for dw, where it costs transforms of two whole channels: windows of all samples together.
const ELEMENTS: usize = 10_000_000;

/// `plain` with the bound and guard of a Winograd plan, at some of its elements where it has many.
pub(super) fn truth(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: WinogradTile,
    inputs: &Inputs,
    plain: &Truth,
) -> Truth {
    let mut truth = plain.clone();
    truth.guard = tile.guard();
    // Two transforms of t terms on the way in, one on the way out, two stages each.
    truth.terms += 6 * tile.inputs();
    match &plain.positions {
        None => {
            let x = || inputs.x.values(problem.x_shape().iter().product());
            let w = || inputs.w.values(problem.weight_shape().iter().product());
            let dy = || inputs.dy.values(problem.y_shape().iter().product());
            let own = match pass {
                Pass::Forward => evaluate(problem, pass, tile, &x(), &w(), true),
                Pass::InputGradient => evaluate(problem, pass, tile, &dy(), &w(), true),
                Pass::WeightGradient => weight_gradient(problem, tile, &x(), &dy(), true),
            };
            truth.magnitudes.iter_mut().zip(&own).for_each(|(sum, own)| *sum += own);
        }
        Some(positions) => {
            let samples = match pass {
                Pass::WeightGradient => (ELEMENTS / problem.positions()).clamp(8, SAMPLES),
                _ => SAMPLES,
            };
            let step = positions.len().div_ceil(samples);
            let pick = |values: &[f64]| values.iter().copied().step_by(step).collect::<Vec<_>>();
            (truth.values, truth.magnitudes) = (pick(&plain.values), pick(&plain.magnitudes));
            let positions: Vec<usize> = positions.iter().copied().step_by(step).collect();
            positions.par_iter().zip(&mut truth.magnitudes).for_each(|(index, magnitude)| {
                *magnitude += match pass {
                    Pass::Forward => one_magnitude(problem, pass, tile, [&inputs.x, &inputs.w], *index),
                    Pass::InputGradient => {
                        one_magnitude(problem, pass, tile, [&inputs.dy, &inputs.w], *index)
                    }
                    Pass::WeightGradient => weight_magnitude(problem, tile, [&inputs.x, &inputs.dy], *index),
                };
            });
            truth.positions = Some(positions);
        }
    }
    truth
}

/// The Winograd magnitude of one element of y or dx: that of a problem of a single tile, cut out around it.
fn one_magnitude(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: WinogradTile,
    [from, w]: [&Source; 2],
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
        window: Window { padding_mode: [PaddingMode::Zeros; 3], ..Window::default() },
        ..*problem
    };
    let magnitudes = evaluate(&single, Pass::Forward, tile, &patch, &filter, true);
    magnitudes[row % outputs * outputs + column % outputs]
}

/// The Winograd magnitude of one element of dw: that of a problem with its two channels alone.
fn weight_magnitude(problem: &Conv3dProblem, tile: WinogradTile, [x, dy]: [&Source; 2], index: usize) -> f64 {
    let shape = problem.weight_shape();
    let [o, c, ..] = unravel(index, shape);
    let channel = |source: &Source, [batch, channels, d, h, w]: [usize; 5], channel: usize| -> Vec<f64> {
        let length = d * h * w;
        let frames = (0..batch).map(|n| (n * channels + channel) * length);
        frames.flat_map(|first| (first..first + length).map(|index| source.get(index))).collect()
    };
    let single = Conv3dProblem { channels: 1, out_channels: 1, ..*problem };
    let x = channel(x, problem.x_shape(), c);
    let dy = channel(dy, problem.y_shape(), o);
    let taps: usize = shape[2..].iter().product();
    weight_gradient(&single, tile, &x, &dy, true)[index % taps]
}

#[cfg(test)]
mod tests {
    use super::*;
    use conv_kernels::FloatType;

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
        let source = |seed| Source::normal(seed, FloatType::F32);
        let Inputs { x, w, dy } = Inputs { x: source(1), w: source(2), dy: source(3) };
        for pass in [Pass::Forward, Pass::InputGradient] {
            let (from, shape) =
                if pass == Pass::Forward { (x, problem.x_shape()) } else { (dy, problem.y_shape()) };
            let values = from.values(shape.iter().product());
            let weight = w.values(problem.weight_shape().iter().product());
            for tile in WinogradTile::ALL {
                let whole = evaluate(&problem, pass, tile, &values, &weight, true);
                for (index, want) in whole.iter().enumerate() {
                    let one = one_magnitude(&problem, pass, tile, [&from, &w], index);
                    assert!(
                        (one - want).abs() < 1e-9 * want.max(1.0),
                        "{pass:?} {tile:?} {index}: {one} {want}"
                    );
                }
            }
        }
        let values = x.values(problem.x_shape().iter().product());
        let gradient = dy.values(problem.y_shape().iter().product());
        for tile in [WinogradTile::F2x2, WinogradTile::F4x4] {
            let whole = weight_gradient(&problem, tile, &values, &gradient, true);
            for (index, want) in whole.iter().enumerate() {
                let one = weight_magnitude(&problem, tile, [&x, &dy], index);
                assert!((one - want).abs() < 1e-9 * want.max(1.0), "{tile:?} {index}: {one} {want}");
            }
        }
    }
}
