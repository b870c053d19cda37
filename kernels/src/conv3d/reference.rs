//! conv3d and its gradients as f64 loops: the mathematics of the op and the oracle of every kernel.
//!
//! With `p_i = q_i * s_i - lo_i + k_i * dilation_i` and `X` the input, outside zero or what [`source`] says:
//!
//! ```text
//! pre[n,o,q] = b[o] + sum_{c in group(o), k} X(n, c, p) * w[o, c, k]      y = activation(pre) + residual
//! dx[n,c,p] += w[o, c, k] * dpre[n,o,q]    for every (o, q, k) that reads position p (through padding too)
//! dw[o,c,k]  = sum_{n,q} X(n, c, p) * dpre[n,o,q]
//! db[o]      = sum_{n,q} dpre[n,o,q]
//! transposed: y[n,c,p] = activation(b[c] + dx[n,c,p]) with x in the place of dpre
//! ```
//!
//! Every function takes row-major slices. Run on absolute values, the same functions give the sum of
//! magnitudes that the tolerance model needs (see [`crate::tolerance`]).

use super::pass::Pass;
use super::problem::{Conv3dProblem, PaddingMode};
use crate::activation::Activation;

/// The element that coordinate `p` of an axis reads; none in zeros.
pub fn source(problem: &Conv3dProblem, axis: usize, p: i64) -> Option<usize> {
    let size = problem.input[axis] as i64;
    let p = match problem.window.padding_mode[axis] {
        PaddingMode::Zeros => p,
        PaddingMode::Replicate => p.clamp(0, size - 1),
        // A period is a b c d c b.
        PaddingMode::Reflect => {
            let at = p.rem_euclid((2 * size - 2).max(1));
            at.min(2 * size - 2 - at)
        }
        PaddingMode::Circular => p.rem_euclid(size),
    };
    usize::try_from(p).ok().filter(|p| *p < problem.input[axis])
}

/// Calls `visit(x_index, w_index, y_index)` for every product of the convolution, in a fixed order.
fn for_each_product(problem: &Conv3dProblem, mut visit: impl FnMut(usize, usize, usize)) {
    let [od, oh, ow] = problem.output();
    let [kd, kh, kw] = problem.kernel;
    let [d, h, w] = problem.input;
    let (group_channels, group_out) = (problem.group_channels(), problem.group_out_channels());
    let read = |axis: usize, q: usize, k: usize| -> Option<usize> {
        let geometry = problem.axis(axis);
        source(
            problem,
            axis,
            (q * geometry.stride + k * geometry.dilation) as i64 - geometry.padding.0 as i64,
        )
    };
    // Coordinates are looked up once per axis instead of once per product.
    let table = |axis: usize, outputs: usize, taps: usize| -> Vec<Vec<Option<usize>>> {
        (0..outputs).map(|q| (0..taps).map(|k| read(axis, q, k)).collect()).collect()
    };
    let (depth, height, width) = (table(0, od, kd), table(1, oh, kh), table(2, ow, kw));
    for n in 0..problem.batch {
        for o in 0..problem.out_channels {
            let first_channel = o / group_out * group_channels;
            for (qd, depth) in depth.iter().enumerate() {
                for (qh, height) in height.iter().enumerate() {
                    for (qw, width) in width.iter().enumerate() {
                        let y_index = (((n * problem.out_channels + o) * od + qd) * oh + qh) * ow + qw;
                        for c in 0..group_channels {
                            let x_channel = n * problem.channels + first_channel + c;
                            let w_channel = o * group_channels + c;
                            for (td, pd) in depth.iter().enumerate() {
                                let Some(pd) = pd else { continue };
                                for (th, ph) in height.iter().enumerate() {
                                    let Some(ph) = ph else { continue };
                                    for (tw, pw) in width.iter().enumerate() {
                                        let Some(pw) = pw else { continue };
                                        let x_index = ((x_channel * d + pd) * h + ph) * w + pw;
                                        let w_index = ((w_channel * kd + td) * kh + th) * kw + tw;
                                        visit(x_index, w_index, y_index);
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The convolution plus bias, before the activation: `[N, O, OD, OH, OW]`.
pub fn pre_activation(problem: &Conv3dProblem, x: &[f64], w: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let [_, _, od, oh, ow] = problem.y_shape();
    let mut y = vec![0.0; problem.y_shape().iter().product()];
    if let Some(bias) = bias {
        for (index, y) in y.iter_mut().enumerate() {
            *y = bias[index / (od * oh * ow) % problem.out_channels];
        }
    }
    for_each_product(problem, |xi, wi, yi| y[yi] += x[xi] * w[wi]);
    y
}

/// The forward pass without a residual: `[N, O, OD, OH, OW]`.
pub fn forward(problem: &Conv3dProblem, x: &[f64], w: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let mut y = pre_activation(problem, x, w, bias);
    y.iter_mut().for_each(|value| *value = activate(problem.window.activation, *value));
    y
}

/// Gradient of the input: `[N, C, D, H, W]`. `dpre` is the gradient before the activation.
pub fn input_gradient(problem: &Conv3dProblem, w: &[f64], dpre: &[f64]) -> Vec<f64> {
    let mut dx = vec![0.0; problem.x_shape().iter().product()];
    for_each_product(problem, |xi, wi, yi| dx[xi] += dpre[yi] * w[wi]);
    dx
}

/// The transposed convolution: `[N, C, D, H, W]` of x, which has y's shape, and bias `[C]`.
pub fn transposed_forward(problem: &Conv3dProblem, x: &[f64], w: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let mut y = input_gradient(problem, w, x);
    let positions = problem.input.iter().product::<usize>();
    for (index, y) in y.iter_mut().enumerate() {
        let pre = *y + bias.map_or(0.0, |bias| bias[index / positions % problem.channels]);
        *y = activate(problem.window.activation, pre);
    }
    y
}

/// Gradient of the weight: `[O, C/groups, KD, KH, KW]`.
pub fn weight_gradient(problem: &Conv3dProblem, x: &[f64], dpre: &[f64]) -> Vec<f64> {
    let mut dw = vec![0.0; problem.weight_shape().iter().product()];
    for_each_product(problem, |xi, wi, yi| dw[wi] += x[xi] * dpre[yi]);
    dw
}

/// Gradient of the bias: `[O]`.
pub fn bias_gradient(problem: &Conv3dProblem, dpre: &[f64]) -> Vec<f64> {
    let [_, out_channels, od, oh, ow] = problem.y_shape();
    let mut db = vec![0.0; out_channels];
    for (index, value) in dpre.iter().enumerate() {
        db[index / (od * oh * ow) % out_channels] += value;
    }
    db
}

/// The activation at `v`.
pub fn activate(activation: Activation, v: f64) -> f64 {
    match activation {
        Activation::None => v,
        Activation::Relu => v.max(0.0),
        Activation::Silu => v / (1.0 + (-v).exp()),
    }
}

/// The activation's derivative at `v`; ReLU's at 0 is 0, as in PyTorch.
pub fn activation_derivative(activation: Activation, v: f64) -> f64 {
    match activation {
        Activation::None => 1.0,
        Activation::Relu => f64::from(u8::from(v > 0.0)),
        Activation::Silu => {
            let sigmoid = 1.0 / (1.0 + (-v).exp());
            sigmoid * (1.0 + v * (1.0 - sigmoid))
        }
    }
}

/// How a result depends on the operands' non-finite elements: NaN and infinities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It is finite and right.
    Never,
    /// It is either right or not finite: plans multiply by the zeros of the padding and of windows that do
    /// not exist.
    May,
    /// It is not finite: a product of its sum holds one of them.
    Must,
}

/// Which results of a pass become non-finite under any plan but Winograd; the operands are those of
/// [`pre_activation`], [`input_gradient`] or [`weight_gradient`].
///
/// A weight `[o, c, k]` may reach every result of channel o (forward) or c (input gradient), an element of x
/// or dy every weight gradient of its channel. All other results keep their values.
pub fn reach(problem: &Conv3dProblem, pass: Pass, [first, second]: [&[f64]; 2]) -> Vec<Reach> {
    let (taps, group_channels) = (problem.taps(), problem.group_channels());
    let group_out = problem.group_out_channels();
    let count = |extents: [usize; 3]| extents.iter().product::<usize>();
    let (inputs, outputs) = (count(problem.input), count(problem.output()));
    // A weight's channels of x and y.
    let channels = |w: usize| {
        let o = w / taps / group_channels;
        (o / group_out * group_channels + w / taps % group_channels, o)
    };
    let non_finite = |values: &[f64]| -> Vec<usize> {
        (0..values.len()).filter(|index| !values[*index].is_finite()).collect()
    };
    let [in_first, in_second] = [non_finite(first), non_finite(second)];
    let may = |result: usize| match pass {
        Pass::Forward => in_second.iter().any(|w| channels(*w).1 == result / outputs % problem.out_channels),
        Pass::InputGradient => in_first.iter().any(|w| channels(*w).0 == result / inputs % problem.channels),
        Pass::WeightGradient => {
            let (c, o) = channels(result);
            in_first.iter().any(|x| x / inputs % problem.channels == c)
                || in_second.iter().any(|dy| dy / outputs % problem.out_channels == o)
        }
    };
    let results = match pass {
        Pass::Forward => problem.y_shape(),
        Pass::InputGradient => problem.x_shape(),
        Pass::WeightGradient => problem.weight_shape(),
    };
    let mut reach: Vec<_> = (0..results.iter().product())
        .map(|result| if may(result) { Reach::May } else { Reach::Never })
        .collect();
    for_each_product(problem, |xi, wi, yi| {
        let (result, factors) = match pass {
            Pass::Forward => (yi, [xi, wi]),
            Pass::InputGradient => (xi, [wi, yi]),
            Pass::WeightGradient => (wi, [xi, yi]),
        };
        if !(first[factors[0]].is_finite() && second[factors[1]].is_finite()) {
            reach[result] = Reach::Must;
        }
    });
    reach
}

/// The most products that a result of `pre_activation`, `input_gradient` and `weight_gradient` sums.
pub fn longest_sums(problem: &Conv3dProblem) -> [usize; 3] {
    let forward = problem.group_channels() * problem.taps();
    let positions = problem.positions();
    let per_axis = |axis: usize| match problem.window.padding_mode[axis] {
        PaddingMode::Zeros => problem.kernel[axis],
        // Up to all windows of an axis read a clamped position.
        PaddingMode::Replicate => problem.kernel[axis] * problem.output()[axis],
        // A position and its copies on either side.
        PaddingMode::Reflect | PaddingMode::Circular => 3 * problem.kernel[axis],
    };
    let input = problem.group_out_channels() * (0..3).map(per_axis).product::<usize>();
    [forward, input, positions]
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
