//! RoPE from elementwise ops. Angles are computed in f64 and their sines and cosines rounded to fp32.
//! Positions outside the range of i32 give NaN here as in the kernels.

use crate::backend::RopePositions;
use crate::backend::portable::{narrow, round, widen};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata, get_device_settings};
use burn::tensor::{FloatDType, Shape, TensorData};
use conv_kernels::rope::reference;
use conv_kernels::rope::{RopeLayout, RopePairs, RopeProblem};

/// See [`ConvOps::rope`](crate::backend::ConvOps::rope).
pub(crate) fn rotate<B: Backend>(
    tokens: FloatTensor<B>,
    positions: RopePositions<B>,
    problem: &RopeProblem,
    inverse: bool,
) -> FloatTensor<B> {
    if problem.tokens_shape().contains(&0) {
        return tokens;
    }
    let device = tokens.device();
    let upload = |positions: Vec<i64>| {
        let positions: Vec<f64> = positions.into_iter().map(|place| place as f64).collect();
        B::float_from_data(TensorData::new(positions, problem.positions_shape()), &device)
    };
    let positions = match positions {
        RopePositions::Index(positions) => B::int_into_float(positions, FloatDType::F64),
        RopePositions::Float(positions) => B::float_cast(positions, FloatDType::F64),
        RopePositions::Grid(grid) => upload(reference::grid_positions(problem, grid)),
        RopePositions::Volume(volume) => upload(reference::volume_positions(problem, volume)),
        RopePositions::Offset(offset) => upload(reference::line_positions(problem, offset)),
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

/// [`rotate`] by positions `[B, N, axes]` in f64.
fn rotate_at<B: Backend>(
    tokens: FloatTensor<B>,
    positions: FloatTensor<B>,
    problem: &RopeProblem,
    inverse: bool,
) -> FloatTensor<B> {
    if problem.rotated < problem.head_dim {
        // The elements that are rotated, as heads of their own, and the rest.
        let (rotated, rest) = (problem.rotated, problem.head_dim - problem.rotated);
        let rest = narrow::<B>(tokens.clone(), 3, rotated, rest);
        let problem = RopeProblem { head_dim: rotated, ..*problem };
        let turned = rotate_at::<B>(narrow::<B>(tokens, 3, 0, rotated), positions, &problem, inverse);
        return B::float_cat(vec![turned, rest], 3);
    }
    let axis = if problem.layout == RopeLayout::Bhnd { 2 } else { 1 };
    if problem.prefix > 0 {
        let rest = problem.tokens - problem.prefix;
        if rest == 0 {
            return tokens;
        }
        let first = narrow::<B>(tokens.clone(), axis, 0, problem.prefix);
        let positions = narrow::<B>(positions, 1, problem.prefix, rest);
        let tokens = narrow::<B>(tokens, axis, problem.prefix, rest);
        let problem = RopeProblem { tokens: rest, prefix: 0, ..*problem };
        return B::float_cat(vec![first, rotate_at::<B>(tokens, positions, &problem, inverse)], axis);
    }
    let dtype = tokens.dtype();
    let (cos, sin) = cos_and_sin::<B>(positions, problem, inverse);
    let pairs = problem.rotated / 2;
    let mut heads = problem.tokens_shape();
    heads[3 - axis] = 1;
    heads[3] = pairs;
    let spread = |value: FloatTensor<B>| B::float_reshape(widen::<B>(value), Shape::from(heads));
    round::<B>(turn::<B>(widen::<B>(tokens), [spread(cos), spread(sin)], problem), dtype)
}

/// cos and sin `[B, N, pairs]` of every token and pair in f64, the same for all heads.
fn cos_and_sin<B: Backend>(
    positions: FloatTensor<B>,
    problem: &RopeProblem,
    inverse: bool,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let device = positions.device();
    let frequencies = problem.frequencies();
    // Pairs of one axis after the other, as long as they are neighbours. (A position without an angle must
    // not reach the pairs of other axes.)
    let times = |part: fn(f64) -> f64| {
        let runs = frequencies.chunk_by(|a, b| a.axis == b.axis).map(|run| {
            let factors: Vec<f64> = run.iter().map(|each| part(each.radians)).collect();
            let factors = B::float_from_data(TensorData::new(factors, [1, 1, run.len()]), &device);
            B::float_mul(narrow::<B>(positions.clone(), 2, run[0].axis, 1), factors)
        });
        B::float_cat(runs.collect(), 2)
    };
    // The product with the first 22 bits of a frequency is exact, the other is small.
    let (large, small) = (times(first_bits), times(|radians| radians - first_bits(radians)));
    let [c, s] = [B::float_cos(large.clone()), B::float_sin(large)];
    let [c_small, s_small] = [B::float_cos(small.clone()), B::float_sin(small)];
    let product = |a: &FloatTensor<B>, b: &FloatTensor<B>| B::float_mul(a.clone(), b.clone());
    let cos = B::float_sub(product(&c, &c_small), product(&s, &s_small));
    let sin = B::float_add(product(&s, &c_small), product(&c, &s_small));
    (cos, if inverse { B::float_neg(sin) } else { sin })
}

/// A frequency without its last 31 bits.
fn first_bits(radians: f64) -> f64 {
    f64::from_bits(radians.to_bits() & !((1 << 31) - 1))
}

/// All pairs of fp32 tokens `[.., .., .., rotated]`, turned.
fn turn<B: Backend>(
    tokens: FloatTensor<B>,
    [cos, sin]: [FloatTensor<B>; 2],
    problem: &RopeProblem,
) -> FloatTensor<B> {
    let turned = |u: FloatTensor<B>, v: FloatTensor<B>, cos: FloatTensor<B>, sin: FloatTensor<B>| {
        let turned_u =
            B::float_sub(B::float_mul(u.clone(), cos.clone()), B::float_mul(v.clone(), sin.clone()));
        [turned_u, B::float_add(B::float_mul(v, cos), B::float_mul(u, sin))]
    };
    let shape = problem.tokens_shape();
    let [first, second, third, rotated] = shape;
    if problem.angles.pairs == RopePairs::Neighbours {
        let as_pairs = [first, second, third, rotated / 2, 2];
        let split = B::float_reshape(tokens, as_pairs.into());
        let part = |place| {
            B::float_reshape(
                narrow::<B>(split.clone(), 4, place, 1),
                [first, second, third, rotated / 2].into(),
            )
        };
        let parts = turned(part(0), part(1), cos, sin)
            .map(|part| B::float_reshape(part, [first, second, third, rotated / 2, 1].into()));
        return B::float_reshape(B::float_cat(parts.into(), 4), Shape::from(shape));
    }
    let blocks = problem.blocks();
    let blocks = blocks.windows(2).filter(|ends| ends[0] < ends[1]);
    let parts = blocks.flat_map(|ends| {
        let (first, count) = (ends[0], ends[1] - ends[0]);
        let part = |from: usize| narrow::<B>(tokens.clone(), 3, from, count);
        let [cos, sin] = [&cos, &sin].map(|each| narrow::<B>(each.clone(), 3, first, count));
        turned(part(2 * first), part(2 * first + count), cos, sin)
    });
    B::float_cat(parts.collect(), 3)
}
