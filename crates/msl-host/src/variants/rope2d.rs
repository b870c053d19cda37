//! RoPE2D: every source of positions, one tensor or two, vector and scalar access. The split of positions
//! into digits and the direction are run-time arguments.

use super::{indices, note_refusal, tensor};
use crate::server::{Label, Recorder};
use conv_cases::rope2d::Case;
use conv_kernels::rope2d::{Positions, Rope2dProblem, RopeGrid, RopeLayout, Rotation, rotate, rotate_all};
use conv_kernels::{FloatType, IndexType, Limits};

/// Head dimensions whose quarter is, and is not, a multiple of four; the largest leaves tables fewer bits per
/// digit.
const HEAD_DIMS: [usize; 3] = [4, 32, 528];

/// Problems that reach every kernel of the op.
pub fn table() -> Vec<Case> {
    let mut cases = Vec::new();
    for bnhd in [false, true] {
        cases.extend(HEAD_DIMS.map(|d| Case {
            name: format!("head_{d}"),
            b: 1,
            h: 4,
            n: 3,
            d,
            bnhd,
            base: 100.0,
            f0: 1.0,
            negative: true,
            int64: false,
        }));
    }
    cases
}

/// Launches the table in `dtype`, in both directions, with both types of positions.
pub(super) fn record(recorder: &Recorder, limits: &Limits, dtype: FloatType, refused: &mut Vec<String>) {
    for Case { b, h, n, d, bnhd, base, f0, .. } in table() {
        let (layout, tokens) =
            if bnhd { (RopeLayout::Bnhd, [b, n, h, d]) } else { (RopeLayout::Bhnd, [b, h, n, d]) };
        let case = format!("B, H, N, D = {:?}", [b, h, n, d]);
        let problem = Rope2dProblem::new(tokens, [b, n, 2], layout, base, f0, dtype);
        let served = IndexType::ALL.into_iter().filter(|index| index.served_by(recorder.client()));
        for (index, inverse) in served.flat_map(|index| [(index, false), (index, true)]) {
            let pass = if inverse { "inverse" } else { "forward" };
            let what = format!("rope2d {pass} {}", dtype.name());
            let label = Label { what, options: format!("positions {} head {d}", index.name()) };
            let result = problem.clone().and_then(|problem| {
                recorder.record(&label, |client| {
                    let [x, y] = [(); 2].map(|()| tensor(client, &tokens, dtype));
                    let positions = indices(client, &[b, n, 2], index);
                    rotate(client, limits, &problem, &x, &positions, &y, inverse)
                })
            });
            note_refusal(result, &label, &case, refused);
        }
    }
    for d in [16, 12] {
        let problem = Rope2dProblem::new([1, 3, 6, d], [1, 6, 2], RopeLayout::Bhnd, 100.0, 1.0, dtype);
        for (name, count) in ["i32", "i64", "f32", "grid"].into_iter().flat_map(|name| [(name, 1), (name, 2)])
        {
            let index = if name == "i64" { IndexType::I64 } else { IndexType::I32 };
            if !index.served_by(recorder.client()) {
                continue;
            }
            let label = Label {
                what: format!("rope2d {}", dtype.name()),
                options: format!("positions {name} tensors {count} head {d}"),
            };
            let result = problem.clone().and_then(|problem| {
                recorder.record(&label, |client| {
                    let [x, y] = [(); 2].map(|()| tensor(client, &[1, 3, 6, d], dtype));
                    let whole = indices(client, &[1, 6, 2], index);
                    let numbers = tensor(client, &[1, 6, 2], FloatType::F32);
                    let positions = match name {
                        "grid" => Positions::Grid(RopeGrid { rows: 2, columns: 3, first: -1 }),
                        "f32" => Positions::Float(&numbers),
                        _ => Positions::Index(&whole),
                    };
                    let rotation = Rotation { problem, tokens: &x, positions, out: &y };
                    rotate_all(client, limits, &[rotation; 2][..count], true)
                })
            });
            note_refusal(result, &label, "sources", refused);
        }
    }
}
