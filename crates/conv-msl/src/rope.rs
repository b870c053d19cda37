//! RoPE: both orders of pairs, one tensor or two, single elements, vectors and packed vectors. All else is
//! run-time arguments: axes, frequencies, the source of positions, the direction.

use crate::{note_refusal, tensor};
use conv_kernels::rope::{Positions, RopeAngles, RopeLayout, RopePairs, RopeProblem, Rotation, rotate_all};
use conv_kernels::{FloatType, Limits};
use msl_host::{Label, Recorder};

/// Angles of two axes and head dimensions that reach every kernel of the op: the pairs of an axis, or all of
/// them where neighbours are pairs, are a multiple of one, four and eight.
pub fn table() -> Vec<(RopeAngles, usize)> {
    let halves = RopeAngles::rope2d(100.0, 1.0);
    let neighbours = RopeAngles { pairs: RopePairs::Neighbours, ..halves };
    vec![(halves, 12), (halves, 16), (halves, 32), (neighbours, 12), (neighbours, 24), (neighbours, 32)]
}

/// Launches the table in `dtype`.
pub(super) fn record(recorder: &Recorder, limits: &Limits, dtype: FloatType, refused: &mut Vec<String>) {
    for ((angles, d), count) in table().into_iter().flat_map(|each| [(each, 1), (each, 2)]) {
        let shape = [1, 3, 6, d];
        let label = Label {
            what: format!("rope {}", dtype.name()),
            options: format!("{:?} head {d} tensors {count}", angles.pairs),
        };
        let result = RopeProblem::new(shape, RopeLayout::Bhnd, angles, dtype).and_then(|problem| {
            recorder.record(&label, |client| {
                let [x, y] = [(); 2].map(|()| tensor(client, &shape, dtype));
                let rotation = Rotation { problem, tokens: &x, positions: Positions::Offset(0), out: &y };
                rotate_all(client, limits, &[rotation; 2][..count], true)
            })
        });
        note_refusal(result, &label, &format!("B, H, N, D = {shape:?}"), refused);
    }
}
