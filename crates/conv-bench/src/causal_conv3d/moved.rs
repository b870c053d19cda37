//! The bytes that a way moves, by its algorithm.
//!
//! ```text
//! conv       the frames that are convolved, w and y once, and Winograd's workspace (`predicted_bytes`)
//! gradient   the same tensors' gradients, and dy, whose ones are written first
//!
//! causal     conv of [cache, x]; the new cache is x, or a copy where x is shorter or longer than it
//! pad+cat    [cache, x] read and written; where H and W are padded, read and written padded; conv of that
//! joined     conv of frames that were joined before
//! ```
//!
//! Not counted: packed weights and partial sums of split products, what Burn's convolution moves beyond its
//! tensors, and what the backward pass of joining and padding copies.

use super::{Way, padded};
use crate::conv3d::bytes;
use conv_kernels::ConvError;
use conv_kernels::conv3d::{Conv3dProblem, Pass, Plan, predicted_bytes};

/// Bytes of a pass of the frames joined along depth, the first `held` of them a cache, by a plan of ours.
pub(super) fn bytes_of(
    way: Way,
    problem: &Conv3dProblem,
    held: usize,
    pass: Pass,
    plan: &Plan,
) -> Result<f64, ConvError> {
    let of = |shape: [usize; 5]| bytes(&shape, problem.dtype) as f64;
    let padded = padded(problem)?;
    let joins = held > 0 && matches!(way, Way::PadCat | Way::Burn);
    let convolved = if joins { padded } else { *problem };
    let conv = match way {
        Way::Burn => of(convolved.x_shape()) + of(convolved.weight_shape()) + of(convolved.y_shape()),
        _ => predicted_bytes(&convolved, pass, plan),
    };
    if pass != Pass::Forward {
        return Ok(conv + of(problem.y_shape()));
    }
    let (joined, in_plane) = (of(problem.x_shape()), of(padded.x_shape()));
    let [n, c, frames, h, w] = problem.x_shape();
    let copied = match way {
        _ if joins && in_plane > joined => 2.0 * joined + joined + in_plane,
        _ if joins => 2.0 * joined,
        Way::Causal if held > 0 && held != frames - held => 2.0 * of([n, c, held, h, w]),
        _ => 0.0,
    };
    Ok(conv + copied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use conv_kernels::FloatType;
    use conv_kernels::conv3d::Window;

    #[test]
    fn copies_count_by_way() {
        let window = |plane| Window { padding: [(0, 0), plane, plane], ..Window::default() };
        let problem = |frames, plane| {
            let x = [1, 2, frames, 4, 4];
            Conv3dProblem::new(x, [2, 2, 3, 3, 3], None, window(plane), FloatType::F32).unwrap()
        };
        let of = |way, problem: &Conv3dProblem, pass| bytes_of(way, problem, 2, pass, &Plan::Direct).unwrap();
        // Six frames of 32 elements, w 108, y four frames.
        let six = problem(6, (1, 1));
        let conv = 4.0 * (6.0 * 32.0 + 108.0 + 4.0 * 32.0);
        // The new cache is a copy of x's last frames.
        let cache = 4.0 * 2.0 * 64.0;
        let both = [Way::Causal, Way::Joined].map(|way| of(way, &six, Pass::Forward));
        assert_eq!(both, [conv + cache, conv]);
        // Frames of 72 elements with their padding.
        let copies = 4.0 * (2.0 * 192.0 + 192.0 + 432.0);
        let of_padded = 4.0 * (6.0 * 72.0 + 108.0 + 4.0 * 32.0);
        assert_eq!([Way::PadCat, Way::Burn].map(|way| of(way, &six, Pass::Forward)), [copies + of_padded; 2]);
        assert_eq!(of(Way::Causal, &six, Pass::WeightGradient), conv + 4.0 * 128.0);
        // One new frame: the new cache is a copy of the last frames of both.
        let three = problem(3, (1, 1));
        let conv = 4.0 * (3.0 * 32.0 + 108.0 + 32.0);
        assert_eq!(of(Way::Causal, &three, Pass::Forward), conv + cache);
        assert_eq!(of(Way::Joined, &three, Pass::Forward), conv);
        // As many new frames: the new cache is x.
        let four = problem(4, (1, 1));
        assert_eq!(of(Way::Causal, &four, Pass::Forward), of(Way::Joined, &four, Pass::Forward));
        // Nothing is padded along H and W.
        let bare = problem(6, (0, 0));
        let conv = 4.0 * (192.0 + 108.0 + 4.0 * 2.0 * 4.0);
        assert_eq!(of(Way::PadCat, &bare, Pass::Forward), conv + 4.0 * 384.0);
    }
}
