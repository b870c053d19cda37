//! f64 results of conv3d: whole tensors by the reference where they are small, else single elements, each
//! summed from the inputs that were uploaded.

use crate::data::{Memory, Source};
use crate::verify::{SAMPLES, Truth, sample};
use conv_kernels::conv3d::{Conv3dProblem, Pass, reference};
use conv_kernels::tolerance::Guard;
use rayon::prelude::*;

/// Multiply-accumulates up to which the reference computes the whole result.
const WHOLE: f64 = 4e6;
/// Products that are summed for all samples together.
const PRODUCTS: usize = 200_000_000;

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

pub(super) fn for_each(extents: [usize; 3], mut visit: impl FnMut([usize; 3])) {
    for i in 0..extents[0] {
        for j in 0..extents[1] {
            for k in 0..extents[2] {
                visit([i, j, k]);
            }
        }
    }
}

pub(super) fn unravel(mut index: usize, shape: [usize; 5]) -> [usize; 5] {
    let mut place = [0; 5];
    for axis in (0..5).rev() {
        place[axis] = index % shape[axis];
        index /= shape[axis];
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;
    use conv_kernels::FloatType;
    use conv_kernels::conv3d::Window;

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
}
