//! RoPE2D: the rotation and its inverse, both types of positions, every split of positions into digits.

use super::{indices, note, tensor};
use crate::server::{Label, Recorder};
use conv_cases::rope2d::Case;
use conv_kernels::rope2d::{Rope2dProblem, RopeLayout, rotate};
use conv_kernels::{FloatType, IndexType, Limits};

/// Head dimensions on either side of the widths at which tables get fewer bits per digit.
const HEAD_DIMS: [usize; 5] = [4, 512, 516, 4096, 4100];

/// Problems that reach every kernel of the op.
pub fn table() -> Vec<Case> {
    let mut cases = Vec::new();
    for bnhd in [false, true] {
        cases.extend(HEAD_DIMS.map(|d| Case {
            name: format!("head_{d}"),
            b: 1,
            h: 2,
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

/// Launches the table in `dtype`, both ways, with both types of positions.
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
            note(result, &label, &case, refused);
        }
    }
}
