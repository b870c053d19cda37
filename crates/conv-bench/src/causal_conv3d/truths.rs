//! What a causal convolution must give, from the truth of the frames joined along depth.

use crate::data::{Memory, Source};
use crate::options::Pass;
use crate::verify::{SAMPLES, Truth, sample};
use conv_kernels::conv3d::Conv3dProblem;
use conv_kernels::tolerance::Guard;
use std::rc::Rc;

/// The truths of a pass whose first `held` frames are in a cache: y and the new cache, the gradients of the
/// cache and of x, or dw. Without a cache: of the joined frames.
pub(super) fn of(joined: &Rc<Truth>, problem: &Conv3dProblem, pass: Pass, held: usize) -> Vec<Rc<Truth>> {
    match (held, pass) {
        (0, _) | (_, Pass::Dw) => vec![joined.clone()],
        (_, Pass::Dx) => vec![
            Rc::new(frames_of(joined, 0, held)),
            Rc::new(frames_of(joined, held, problem.x_shape()[2] - held)),
        ],
        _ => vec![joined.clone(), Rc::new(last_frames(problem, held))],
    }
}

/// The elements of `count` frames from `first` on.
fn frames_of(joined: &Truth, first: usize, count: usize) -> Truth {
    let [d, frame] = [joined.shape[2], joined.shape[3] * joined.shape[4]];
    let mut part =
        Truth { positions: Some(Vec::new()), values: Vec::new(), magnitudes: Vec::new(), ..joined.clone() };
    part.shape[2] = count;
    let mut positions = Vec::new();
    for (index, position) in joined.positions().into_iter().enumerate() {
        let (image, rest) = (position / (d * frame), position % (d * frame));
        if (first..first + count).contains(&(rest / frame)) {
            positions.push(image * count * frame + rest - first * frame);
            part.values.push(joined.values[index]);
            part.magnitudes.push(joined.magnitudes[index]);
        }
    }
    part.positions = Some(positions);
    part
}

/// The last frames of the joined ones: a copy, so that no rounding is allowed for.
fn last_frames(problem: &Conv3dProblem, held: usize) -> Truth {
    let [n, c, d, h, w] = problem.x_shape();
    let shape = vec![n, c, held, h, w];
    let source = Source::normal(1, problem.dtype);
    let mut truth = Truth {
        positions: sample(&shape, SAMPLES),
        shape,
        memory: Memory::RowMajor,
        values: Vec::new(),
        magnitudes: Vec::new(),
        terms: 1,
        slope: 1.0,
        guard: Guard::SUM,
    };
    let kept = held * h * w;
    let joined = |index: usize| index / kept * d * h * w + (d - held) * h * w + index % kept;
    truth.values = truth.positions().into_iter().map(|index| source.get(joined(index))).collect();
    truth.magnitudes = vec![0.0; truth.values.len()];
    truth
}

#[cfg(test)]
mod tests {
    use super::*;
    use conv_kernels::FloatType;
    use conv_kernels::conv3d::Window;

    #[test]
    fn parts_of_a_truth_are_its_frames() {
        let window = Window::default();
        let problem =
            Conv3dProblem::new([1, 2, 5, 2, 3], [1, 2, 3, 1, 1], None, window, FloatType::F32).unwrap();
        let source = Source::normal(1, FloatType::F32);
        let joined = Rc::new(Truth {
            shape: vec![1, 2, 5, 2, 3],
            memory: Memory::RowMajor,
            positions: None,
            values: source.values(60),
            magnitudes: source.values(60),
            terms: 1,
            slope: 1.0,
            guard: Guard::SUM,
        });
        let [cache, x] = <[_; 2]>::try_from(of(&joined, &problem, Pass::Dx, 2)).unwrap();
        assert_eq!((&cache.shape[2], &x.shape[2]), (&2, &3));
        assert_eq!(
            cache.values,
            [source.values(60)[..12].to_vec(), source.values(60)[30..42].to_vec()].concat()
        );
        assert_eq!(cache.positions().iter().max(), Some(&23));
        assert_eq!(x.positions(), (0..36).collect::<Vec<_>>());
        // The last two frames of each channel.
        let [_, next] = <[_; 2]>::try_from(of(&joined, &problem, Pass::Fwd, 2)).unwrap();
        assert_eq!(
            next.values,
            [source.values(60)[18..30].to_vec(), source.values(60)[48..].to_vec()].concat()
        );
        assert_eq!(of(&joined, &problem, Pass::Fwd, 0).len(), 1);
    }
}
