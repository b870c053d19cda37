//! RoPE2D: the rotation and its inverse, both types of positions, every split of positions into digits.

use super::{indices, note, tensor};
use crate::server::{Label, Recorder};
use conv_cases::rope2d::conformance;
use conv_kernels::rope2d::{Rope2dProblem, RopeLayout, rotate};
use conv_kernels::{FloatType, IndexType, Limits};

/// Head dimensions on either side of the widths at which tables get fewer bits per digit.
const HEAD_DIMS: [usize; 5] = [4, 512, 516, 4096, 4100];

/// Launches the table of problems in `dtype`.
pub(super) fn record(recorder: &Recorder, dtype: FloatType, refused: &mut Vec<String>) {
    for case in conformance() {
        let layout = if case.bnhd { RopeLayout::Bnhd } else { RopeLayout::Bhnd };
        record_shape(
            recorder,
            [case.b, case.h, case.n, case.d],
            (layout, case.base, case.f0),
            dtype,
            refused,
        );
    }
    for d in HEAD_DIMS {
        for layout in [RopeLayout::Bhnd, RopeLayout::Bnhd] {
            record_shape(recorder, [1, 2, 3, d], (layout, 100.0, 1.0), dtype, refused);
        }
    }
}

/// Launches problems with more elements than 32-bit indices reach.
pub(super) fn record_wide(recorder: &Recorder, dtype: FloatType, refused: &mut Vec<String>) {
    for d in [512, 516, 4100] {
        record_shape(
            recorder,
            [1, (1 << 31) / d / 64 + 1, 64, d],
            (RopeLayout::Bhnd, 100.0, 1.0),
            dtype,
            refused,
        );
    }
}

/// Tokens of `[b, h, n, d]`, in the order of the axes that `layout` has.
fn record_shape(
    recorder: &Recorder,
    [b, h, n, d]: [usize; 4],
    (layout, base, f0): (RopeLayout, f32, f32),
    dtype: FloatType,
    refused: &mut Vec<String>,
) {
    let tokens = if layout == RopeLayout::Bhnd { [b, h, n, d] } else { [b, n, h, d] };
    let case = format!("B, H, N, D = {:?}", [b, h, n, d]);
    let problem = Rope2dProblem::new(tokens, [b, n, 2], layout, base, f0, dtype);
    let limits = Limits::of(recorder.client());
    for index in IndexType::ALL {
        for inverse in [false, true] {
            let pass = if inverse { "inverse" } else { "forward" };
            let what = format!("rope2d {pass} {}", dtype.name());
            let label = Label { what, options: format!("positions {} head {d}", index.name()) };
            let result = problem.clone().and_then(|problem| {
                recorder.record(&label, |client| {
                    let [x, y] = [(); 2].map(|()| tensor(client, &tokens, dtype));
                    let positions = indices(client, &[b, n, 2], index);
                    rotate(client, &limits, &problem, &x, &positions, &y, inverse)
                })
            });
            note(result, &label, &case, refused);
        }
    }
}
