//! RoPE2D from elementwise ops. Angles are computed in f64, as in the kernels' tables, and their sines and
//! cosines rounded to fp32. Positions outside the range of i32 give NaN here as there.

use crate::backend::RopePositions;
use crate::backend::portable::{narrow, round, widen};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata, get_device_settings};
use burn::tensor::{FloatDType, Shape, TensorData};
use conv_kernels::rope2d::reference::{self, frequency};
use conv_kernels::rope2d::{Rope2dProblem, RopeLayout};

/// See [`ConvOps::rope2d`](crate::backend::ConvOps::rope2d).
pub(crate) fn rotate<B: Backend>(
    tokens: FloatTensor<B>,
    positions: RopePositions<B>,
    problem: &Rope2dProblem,
    inverse: bool,
) -> FloatTensor<B> {
    if problem.tokens_shape().contains(&0) {
        return tokens;
    }
    let positions = match positions {
        RopePositions::Index(positions) => B::int_into_float(positions, FloatDType::F64),
        RopePositions::Float(positions) => B::float_cast(positions, FloatDType::F64),
        RopePositions::Grid(grid) => {
            let positions = reference::grid_positions(problem, grid).into_iter().map(|place| place as f64);
            let data = TensorData::new(positions.collect(), problem.positions_shape());
            B::float_from_data(data, &tokens.device())
        }
    };
    rotate_at::<B>(tokens, served::<B>(positions), problem, inverse)
}

/// The positions, NaN where they are outside the range of i32.
fn served<B: Backend>(positions: FloatTensor<B>) -> FloatTensor<B> {
    let (least, end) = (f64::from(i32::MIN), f64::from(i32::MAX) + 1.0);
    let bools = get_device_settings::<B>(&positions.device()).bool_dtype;
    let below = B::float_lower_elem(positions.clone(), least.into(), bools);
    let above = B::float_greater_equal_elem(positions.clone(), end.into(), bools);
    B::float_mask_fill(positions, B::bool_or(below, above), f64::NAN.into())
}

/// [`rotate`] by positions `[B, N, 2]` in f64.
fn rotate_at<B: Backend>(
    tokens: FloatTensor<B>,
    positions: FloatTensor<B>,
    problem: &Rope2dProblem,
    inverse: bool,
) -> FloatTensor<B> {
    let shape = problem.tokens_shape();
    if problem.rotated < problem.head_dim {
        // The elements that are rotated, as heads of their own, and the rest.
        let (rotated, rest) = (problem.rotated, problem.head_dim - problem.rotated);
        let rest = narrow::<B>(tokens.clone(), 3, rotated, rest);
        let problem = Rope2dProblem { head_dim: rotated, ..*problem };
        let turned = rotate_at::<B>(narrow::<B>(tokens, 3, 0, rotated), positions, &problem, inverse);
        return B::float_cat(vec![turned, rest], 3);
    }
    if problem.prefix > 0 {
        let (axis, rest) =
            (if problem.layout == RopeLayout::Bhnd { 2 } else { 1 }, problem.tokens - problem.prefix);
        if rest == 0 {
            return tokens;
        }
        let first = narrow::<B>(tokens.clone(), axis, 0, problem.prefix);
        let others = [(0..problem.batch).into(), (problem.prefix..problem.tokens).into(), (0..2).into()];
        let positions = B::float_slice(positions, &others);
        let tokens = narrow::<B>(tokens, axis, problem.prefix, rest);
        let problem = Rope2dProblem { tokens: rest, prefix: 0, ..*problem };
        return B::float_cat(vec![first, rotate_at::<B>(tokens, positions, &problem, inverse)], axis);
    }
    let (dtype, device, quarter) = (tokens.dtype(), tokens.device(), problem.frequencies());
    let sign = if inverse { -1.0 } else { 1.0 };
    let factors: Vec<f64> =
        (0..quarter).map(|i| sign * f64::from(problem.f0) * frequency(problem, i)).collect();
    let factors = B::float_from_data(TensorData::new(factors, [1, 1, 1, quarter]), &device);

    // One angle per token, axis and frequency, the same for every head: [B, N, 2, Q].
    let positions = B::float_reshape(positions, [problem.batch, problem.tokens, 2, 1].into());
    let angle = B::float_mul(positions, factors);
    let heads = match problem.layout {
        RopeLayout::Bhnd => [problem.batch, 1, problem.tokens, 2, 1, quarter],
        RopeLayout::Bnhd => [problem.batch, problem.tokens, 1, 2, 1, quarter],
    };
    let spread = |value: FloatTensor<B>| B::float_reshape(widen::<B>(value), Shape::from(heads));
    let (cos, sin) = (spread(B::float_cos(angle.clone())), spread(B::float_sin(angle)));

    // The last axis is (axis, u or v, frequency).
    let [first, second, third, _] = shape;
    let split = B::float_reshape(widen::<B>(tokens), [first, second, third, 2, 2, quarter].into());
    let (u, v) = (narrow::<B>(split.clone(), 4, 0, 1), narrow::<B>(split, 4, 1, 1));
    let turned_u = B::float_sub(B::float_mul(u.clone(), cos.clone()), B::float_mul(v.clone(), sin.clone()));
    let turned_v = B::float_add(B::float_mul(v, cos), B::float_mul(u, sin));
    let out = B::float_reshape(B::float_cat(vec![turned_u, turned_v], 4), Shape::from(shape));
    round::<B>(out, dtype)
}
